"""GDumb: greedy sampler and dumb learner."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jcl import checks
from jcl import memory as memories
from jcl.core import Params, Strategy, check_complete, split, strategy
from jcl.errors import InputError


class Dumb(NamedTuple):
    """Attributes:
    memory: greedily balanced over the classes.
    start: what every training begins from; () where `init` makes it.
    """

    memory: memories.ByClass
    start: Params


def gdumb(
    capacity: int,
    classes: int,
    *,
    steps: int,
    size: int,
    optimizer: optax.GradientTransformation,
    init: Callable[[jax.Array], Params] | None = None,
) -> Strategy:
    """Learns nothing from the stream but what to store, then trains afresh on the memory (GDumb).

    At a boundary: params <- `steps` steps of the optimizer from a fresh start, each on
    loss_fn(params, draw(memory, size)). In between updates are 0.

    Prabhu et al. 2020. The memory is `jcl.memory.greedy_balanced`, filled at every step.
    It is a test of the benchmark as much as a method: what it scores needs no continual learning.
    Differs from the paper in: a number of steps on draws with replacement, not of epochs; no
    CutMix; training happens at every boundary, so that the matrix has all its rows.

    Args:
        capacity: examples kept.
        classes: labels are 0 .. classes - 1.
        steps: of the training at a boundary.
        size: examples of each of its steps.
        optimizer: its own, with a fresh state each time; a schedule counts its steps.
        init: (key) -> params, such as `model.init`; by default all begin from the run's first
            params, which are kept.

    Stores: a memory of examples; one params-sized tree, or none where init is given.
    Place: right of the optimizer, or alone.
    Scenario: class-incremental.

    >>> import jcl, optax
    >>> method = jcl.gdumb(1000, classes=10, steps=500, size=16, optimizer=optax.sgd(0.05))
    """
    steps, size = checks.whole("gdumb", "steps", steps), checks.whole("gdumb", "size", size)
    if not isinstance(optimizer, optax.GradientTransformation):
        raise InputError(
            f"gdumb(optimizer={optimizer!r}): give an optax transformation, such as "
            "optax.sgd(0.05)."
        )
    policy = memories.greedy_balanced(capacity, classes)

    def begin(params, *, batch, aux, **_):
        check_complete("gdumb", params)
        memories.check_head(policy, aux)
        return Dumb(policy.init(batch), () if init else jax.tree.map(jnp.copy, params))

    def update(updates, state, params, *, batch, key, **_):
        memory = policy.insert(state.memory, batch, key)
        return jax.tree.map(jnp.zeros_like, updates), state._replace(memory=memory)

    def consolidate(state, params, *, loss_fn, key, **_):
        key_init, key_training = split(key, 2)
        fresh = state.start
        if init is not None:
            fresh = init(jax.random.key(0) if key_init is None else key_init)
        # With an empty memory the params stay: read in any case, they can be donated.
        params = jax.tree.map(
            lambda new, old: jnp.where(state.memory.seen > 0, new, old), fresh, params
        )

        def train(step, carry):
            params, moments = carry
            # Without a key the draws still have to differ from step to step.
            key_step = jax.random.key(0) if key_training is None else key_training
            key_draw, key_dropout = jax.random.split(jax.random.fold_in(key_step, step))
            drawn = policy.draw(state.memory, size, key_draw)
            key_dropout = None if key_training is None else key_dropout
            gradient = jax.grad(lambda params: loss_fn(params, drawn, key_dropout)[0])(params)
            updates, moments = optimizer.update(gradient, moments, params)
            return optax.apply_updates(params, updates), moments

        number = jnp.where(state.memory.seen > 0, steps, 0)
        params, _ = jax.lax.fori_loop(0, number, train, (params, optimizer.init(params)))
        return state, params

    return strategy(
        name="gdumb",
        side="step",
        covers=lambda path: True,
        init=begin,
        update=update,
        consolidate=consolidate,
    )
