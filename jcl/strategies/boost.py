"""A larger step after an alarm."""

import jax
import jax.numpy as jnp

from jcl import checks
from jcl.core import Batch, Strategy, alarmed, strategy


def boost(factor: float, half_life: float) -> Strategy:
    """Raises the learning rate when a drift is detected, and lets it decay back.

    step <- (1 + (factor - 1) level) step, level = 1 at an alarm and half that every half_life steps

    Kuncheva and Plumpton 2008 let the learning rate follow the change of the error. Differs from
    the paper in: the rise has one size, at the alarm of a detector (`jcl.drift`), and decays by
    itself. The whole step is scaled, weight decay and momentum with it, whatever made it. An alarm
    while the level is up sets it to 1 again; until the first alarm it is 0 and nothing changes.

    Args:
        factor: what an alarm multiplies the step by; below 1 it becomes smaller.
        half_life: steps after which half the rise is left.

    Stores: one number, the level.
    Place: right of the optimizer.
    Scenario: a stream without boundaries, whose batches tell of alarms (`drift`).

    >>> import jcl, optax
    >>> method = jcl.chain(optax.sgd(0.01), jcl.boost(factor=10.0, half_life=20.0))
    """
    checks.number("boost", "factor", factor)
    checks.number("boost", "half_life", half_life, "(0, inf)")

    def init(params, **_):
        return jnp.zeros(())

    def update(updates, level, params, *, batch, **_):
        level = raised(level, batch)
        scale = scaling(factor, level)
        updates = jax.tree.map(lambda step: (scale * step).astype(step.dtype), updates)
        return updates, decayed(level, half_life)

    return strategy(name="boost", side="step", alarms=True, init=init, update=update)


def raised(level: jax.Array, batch: Batch) -> jax.Array:
    """The level, 1 where the batch tells of an alarm."""
    return jnp.where(alarmed(batch), 1.0, level)


def decayed(level: jax.Array, half_life: float) -> jax.Array:
    """The level a step later."""
    return level * 0.5 ** (1 / half_life)


def scaling(factor: float, level: jax.Array) -> jax.Array:
    """From 1 at level 0 to the factor at level 1."""
    return 1.0 + (factor - 1.0) * level
