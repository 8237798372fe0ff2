"""Model-agnostic meta-learning, as a loss of a batch of episodes."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from jcl import checks
from jcl.core import split
from jcl.errors import InputError
from jcl.meta.adaptation import adaptation, check_inner_loop
from jcl.meta.episodes import divided, over_episodes
from jcl.models import wrapping
from jcl.models.model import Model

RATES = "rates"


def maml(
    loss_fn: Callable[..., Any],
    *,
    steps: int | None,
    optimizer: optax.GradientTransformation,
    where: str | Sequence[str] = "*",
    rates: str | None = None,
    one_by_one: bool = False,
    first_order: bool = False,
    start: Callable[..., Any] | None = None,
    remat: bool = False,
    over: Literal["vmap", "map"] = "vmap",
) -> Callable[..., Any]:
    """The loss on an episode's queries after adapting to its support, differentiated through all.

    L(theta) = mean over episodes of loss_fn(theta_steps, queries), theta_0 = theta,
    theta_{k+1} = theta_k + optimizer(d loss_fn(theta_k, support) / d theta_k).

    Finn et al. 2017. Its kin are its arguments: first-order MAML is
    `first_order=True`; ANIL (Raghu et al. 2020) is `where="head/*"`; Meta-SGD (Li et al. 2017) is
    `jcl.meta.learned_rates(model, 0.01)` with `optimizer=optax.sgd(1.0), rates="rates"`; OML (Javed
    and White 2019) and ANML (Beaulieu et al. 2020) are `one_by_one=True` and a `where`. With no
    steps it is plain training on the queries.

    Args:
        loss_fn: (params, batch, key) -> (scalar, aux), such as `jcl.losses.classify(model.apply)`.
        steps: of the inner loop. None takes each episode's own, `steps` [episodes] of the batch;
            that cannot be differentiated and is for measuring.
        optimizer: of the inner loop, any of optax's; Adam with an eps_root, such as
            optax.adam(0.01, eps_root=1e-8), since the root of 0 has no finite derivative.
        where: patterns of the paths of what adapts.
        rates: the entry of the params with a learned rate for every number, which multiplies the
            optimizer's step.
        one_by_one: an inner step is on one example of the support, in their order.
        first_order: the inner gradients count as constants, which saves the second derivatives.
        start: (params, support, key) -> params, what an episode begins from where that is not
            theta itself, such as a head with fresh weights.
        remat: the activations of inner steps are computed again in the backward pass.
        over: "vmap" computes the episodes together, "map" one after the other, which on a CPU is
            the faster for a model with convolutions (`jcl.models.convolutional` has matmuls of
            patches in their place and is faster by vmap). Where a run splits the batch over
            devices, each takes its own episodes, together or one after the other.

    The batch holds episodes: inputs [episodes, queries, ...], targets [episodes, queries, ...],
    support_inputs [episodes, examples, ...], support_targets [episodes, examples, ...], and more
    of either kind, such as attention_mask and support_attention_mask. Of a padded support only the
    examples with a support_mask of 1 count, and a model that normalizes over the batch cannot have
    one. aux holds the queries' logits and a loss for every episode.

    Raises:
        InputError: an argument that makes no sense; at the first call, a pattern that matches no
            path, a batch without support, or a padded one that the model cannot have.

    >>> import jcl, optax
    >>> model = jcl.models.mlp(jcl.models.MLPConfig(inputs=4, hidden=(8,), classes=3))
    >>> loss_fn = jcl.losses.classify(model.apply)
    >>> meta_loss = jcl.maml(loss_fn, steps=5, optimizer=optax.sgd(0.1))
    >>> learner = jcl.learner(meta_loss, optax.adam(1e-3))
    """
    flags = {"one_by_one": one_by_one, "first_order": first_order, "remat": remat}
    check_inner_loop("maml", loss_fn, optimizer, where, rates, **flags)
    checks.one_of("maml", "over", over, ("vmap", "map"))
    if start is not None:
        checks.function("maml", "start", start, "jcl.meta.fresh_classes()")
    if steps is not None:
        steps = checks.whole("maml", "steps", steps, least=0)
    adapt = adaptation(loss_fn, optimizer, where=where, rates=rates, **flags)

    def meta_loss(params, batch, key):
        if steps is None and "steps" not in batch:
            raise InputError(
                "maml(steps=None): the batch has no `steps` [episodes]: give the number to maml, "
                "or give the episodes one."
            )

        def one(episode, key):
            episode = dict(episode)
            number = episode.pop("steps", None) if steps is None else steps
            support, queries = divided(episode)
            key_start, key_inner, key_outer = split(key, 3)
            begin = params if start is None else start(params, support, key_start)
            return loss_fn(adapt(begin, support, key_inner, number), queries, key_outer)

        values, aux = over_episodes(one, batch, key, over)
        return jnp.mean(values), {"logits": aux["logits"], "losses": values}

    return meta_loss


def learned_rates(model: Model, initial: float) -> Model:
    """The model, whose params also hold a rate for every number, at first the same for all.

    params["rates"] is a tree as the params are; the outer optimizer learns it like the rest.
    Li et al. 2017 (Meta-SGD).

    >>> import jax, jcl
    >>> model = jcl.models.mlp(jcl.models.MLPConfig(inputs=4, hidden=(8,), classes=3))
    >>> sorted(jcl.meta.learned_rates(model, 0.01).init(jax.random.key(0)))
    ['head', 'layer_0', 'rates']
    """
    checks.number("learned_rates", "initial", initial, "(0, inf)")
    # Flax takes no offence at an entry that no module asks for.
    return wrapping.extended(
        model,
        RATES,
        lambda _, params: jax.tree.map(lambda leaf: jnp.full_like(leaf, initial), params),
    )
