"""Reptile: the shared params go a part of the way to those of each task."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from jcl import checks
from jcl.core import split
from jcl.meta.adaptation import adaptation, check_inner_loop
from jcl.meta.episodes import divided, over_episodes


def reptile(
    loss_fn: Callable[..., Any],
    *,
    steps: int,
    optimizer: optax.GradientTransformation,
    where: str | Sequence[str] = "*",
    one_by_one: bool = False,
    over: Literal["vmap", "map"] = "vmap",
) -> Callable[..., Any]:
    """A loss whose gradient leads away from the params that episodes adapt to.

    d L / d theta = mean over episodes of theta - theta_steps.

    Nichol et al. 2018, the batched version: with `optax.sgd(epsilon)` the step is
    theta <- theta + epsilon (mean of theta_steps - theta). The value of the loss is that of the
    queries after adapting, which is only looked at. Differs from the paper in: the inner steps are
    on the whole support, or on one example of it after another, not on mini-batches, and every
    episode begins with a fresh inner optimizer.

    Args:
        loss_fn: (params, batch, key) -> (scalar, aux).
        steps: of the inner loop.
        optimizer: of the inner loop.
        where: patterns of the paths of what adapts; the rest never moves.
        one_by_one: an inner step is on one example of the support, in their order.
        over: as in `jcl.maml`, as is the batch.

    Raises:
        InputError: as in `jcl.maml`.

    >>> import jcl, optax
    >>> model = jcl.models.mlp(jcl.models.MLPConfig(inputs=4, hidden=(8,), classes=3))
    >>> loss_fn = jcl.losses.classify(model.apply)
    >>> meta_loss = jcl.reptile(loss_fn, steps=8, optimizer=optax.adam(1e-3))
    >>> learner = jcl.learner(meta_loss, optax.sgd(0.1))
    """
    check_inner_loop("reptile", loss_fn, optimizer, where, one_by_one=one_by_one)
    steps = checks.whole("reptile", "steps", steps)
    checks.one_of("reptile", "over", over, ("vmap", "map"))
    adapt = adaptation(loss_fn, optimizer, where=where, one_by_one=one_by_one)

    def meta_loss(params, batch, key):
        fixed = jax.lax.stop_gradient(params)

        def one(episode, key):
            support, queries = divided(episode)
            key_inner, key_outer = split(key, 2)
            adapted = adapt(fixed, support, key_inner, steps)
            value, aux = loss_fn(adapted, queries, key_outer)
            return value, aux["logits"], adapted

        values, logits, adapted = over_episodes(one, batch, key, over)
        away = jax.tree.map(lambda leaf, ends: leaf - ends.mean(axis=0), fixed, adapted)
        products = jax.tree.map(lambda leaf, way: jnp.sum(leaf * way), params, away)
        product = sum(jax.tree.leaves(products))
        # Adds nothing to the value, and `away` to the gradient.
        value = jnp.mean(values) + product - jax.lax.stop_gradient(product)
        return value, {"logits": logits, "losses": values}

    return meta_loss
