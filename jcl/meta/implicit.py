"""Implicit MAML: the gradient of an inner loop that has come to its end, without its path."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from jcl import checks
from jcl.core import split
from jcl.meta.adaptation import adaptation, check_inner_loop
from jcl.meta.episodes import divided, over_episodes


def implicit_maml(
    loss_fn: Callable[..., Any],
    *,
    steps: int,
    optimizer: optax.GradientTransformation,
    strength: float,
    iterations: int = 5,
    over: Literal["vmap", "map"] = "vmap",
) -> Callable[..., Any]:
    """The loss on an episode's queries at the params that fit its support near the shared ones.

    theta* = argmin loss_fn(phi, support) + strength / 2 |phi - theta|^2, by the inner loop;
    d L / d theta = (I + H / strength)^-1 d loss_fn(theta*, queries), H the Hessian of
    loss_fn(., support) at theta*, by conjugate gradients.

    Rajeswaran et al. 2019. Memory and time of the gradient do not grow with the inner steps, which
    must have come near to the minimum for it to be right.

    Args:
        loss_fn: (params, batch, key) -> (scalar, aux).
        steps: of the inner loop.
        optimizer: of the inner loop.
        strength: how strongly theta* is held to theta.
        iterations: of the conjugate gradients.
        over: as in `jcl.maml`, as is the batch.

    Raises:
        InputError: as in `jcl.maml`.

    >>> import jcl, optax
    >>> model = jcl.models.mlp(jcl.models.MLPConfig(inputs=4, hidden=(8,), classes=3))
    >>> loss_fn = jcl.losses.classify(model.apply)
    >>> meta_loss = jcl.implicit_maml(
    ...     loss_fn, steps=20, optimizer=optax.sgd(0.1), strength=2.0
    ... )
    """
    check_inner_loop("implicit_maml", loss_fn, optimizer)
    steps = checks.whole("implicit_maml", "steps", steps)
    iterations = checks.whole("implicit_maml", "iterations", iterations)
    checks.number("implicit_maml", "strength", strength, "(0, inf)")
    checks.one_of("implicit_maml", "over", over, ("vmap", "map"))

    @jax.custom_vjp
    def fitted(params, support, key):
        def near(phi, batch, key):
            value, aux = loss_fn(phi, batch, key)
            apart = jax.tree.map(lambda one, other: jnp.sum((one - other) ** 2), phi, params)
            return value + 0.5 * strength * sum(jax.tree.leaves(apart)), aux

        return adaptation(near, optimizer)(params, support, key, steps)

    def forward(params, support, key):
        phi = fitted(params, support, key)
        return phi, (phi, support, key)

    def backward(kept, cotangent):
        phi, support, key = kept
        # In reverse over reverse: some models have backward passes of their own, and those cannot
        # be differentiated forward.
        _, curvature = jax.vjp(jax.grad(lambda phi: loss_fn(phi, support, key)[0]), phi)

        def product(vector):
            (curved,) = curvature(vector)
            return jax.tree.map(lambda one, other: one + other / strength, vector, curved)

        solved, _ = jax.scipy.sparse.linalg.cg(product, cotangent, maxiter=iterations)
        return solved, None, None

    fitted.defvjp(forward, backward)

    def meta_loss(params, batch, key):
        def one(episode, key):
            support, queries = divided(episode)
            key_inner, key_outer = split(key, 2)
            return loss_fn(fitted(params, support, key_inner), queries, key_outer)

        # Numpy arrays cannot be constants of a custom derivative.
        batch = jax.tree.map(jnp.asarray, batch)
        values, aux = over_episodes(one, batch, key, over)
        return jnp.mean(values), {"logits": aux["logits"], "losses": values}

    return meta_loss
