"""A schedule that begins again at an alarm."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jcl import checks
from jcl.core import State, Strategy, alarmed, lift


class Restarting(NamedTuple):
    """The optimizer's own state, and the steps since the last alarm (int32)."""

    inner: State
    steps: jax.Array


def restarting(
    optimizer: Callable[..., optax.GradientTransformation],
    learning_rate: Callable[[jax.Array], jax.Array],
    **options: Any,
) -> Strategy:
    """An optax optimizer whose learning rate follows the steps since a drift was detected.

    rate_t = learning_rate(t - the step of the last alarm, or 0 before the first)

    A decay to a floor, or half a cosine, which begins again where the stream changes: the warm
    restarts of Loshchilov and Hutter 2017, section 3. Differs from the paper in: an alarm sets
    their time, not a period. The optimizer's moments stay. Restarts at fixed times need no
    strategy: `optax.sgd(optax.sgdr_schedule(...))`.

    Args:
        optimizer: an optax factory that takes the learning rate first, such as `optax.adam`.
        learning_rate: steps -> rate; any optax schedule, such as
            `optax.cosine_decay_schedule(1e-3, 500, alpha=0.1)`.
        **options: the factory's further arguments.

    Stores: the optimizer's moments, and a counter.
    Place: the optimizer's.
    Scenario: a stream without boundaries, whose batches tell of alarms (`drift`).

    >>> import jcl, optax
    >>> rate = optax.exponential_decay(1e-2, transition_steps=100, decay_rate=0.5, end_value=1e-3)
    >>> method = jcl.chain(jcl.replay(capacity=500, size=8), jcl.restarting(optax.sgd, rate))
    """
    checks.function("restarting", "learning_rate", learning_rate, "optax.cosine_decay_schedule")

    def at(steps):
        return lift(optimizer(learning_rate(steps), **options))

    first = at(jnp.zeros((), jnp.int32))

    def init(params, **rest):
        return Restarting(first.init(params, **rest), jnp.zeros((), jnp.int32))

    def update(updates, state, params, *, batch, **extra):
        steps = jnp.where(alarmed(batch), 0, state.steps)
        updates, inner = at(steps).update(updates, state.inner, params, batch=batch, **extra)
        return updates, Restarting(inner, steps + 1)

    return first._replace(init=init, update=update, name="restarting(optax)", alarms=True)
