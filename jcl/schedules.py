"""Learning rates that follow the progress of the task, beside `jcl.cosine`.

Each is a function of progress in [0, 1] for `jcl.scheduled`. A rate that falls where the loss falls
no more is `optax.contrib.reduce_on_plateau`, which stands right of the optimizer and reads the loss
of every step: `chain(optax.adamw(1e-3), optax.contrib.reduce_on_plateau(accumulation_size=100))`.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jcl import checks
from jcl.core import Schedule
from jcl.errors import InputError


def restarts(
    peak: float, cycles: int, *, growth: float = 1.0, warmup: float = 0.0, floor: float = 0.0
) -> Schedule:
    """Linear warm-up, then half a cosine down to `floor` again and again, each time from `peak`.

    rate(t) = floor + (peak - floor) (1 + cos(pi s)) / 2, with s in [0, 1) the position in the
    cycle; cycle i is growth^i times as long as the first, and together they fill what the warm-up
    leaves of the task (SGDR, Loshchilov and Hutter 2017, section 3).

    Args:
        peak: the rate at the beginning of a cycle.
        cycles: how many.
        growth: of their length, from each to the next; the paper's T_mult.
        warmup: the share of the task spent on a warm-up from zero, in [0, 1).
        floor: the rate at the end of a cycle, at most `peak`.

    Raises:
        InputError: an argument is out of range.

    >>> import jcl, optax
    >>> optimizer = jcl.scheduled(optax.adamw, jcl.restarts(1e-3, cycles=3, growth=2.0))
    """
    cycles = checks.whole("restarts", "cycles", cycles)
    _check("restarts", peak, warmup)
    checks.floor("restarts", floor, peak)
    checks.number("restarts", "growth", growth, "(0, inf)")

    def schedule(progress):
        # Of the longest, so that none overflows; one may be too short for a float.
        longest = jnp.where(jnp.asarray(growth) > 1, cycles - 1, 0)
        lengths = jnp.asarray(growth, jnp.float32) ** (jnp.arange(cycles) - longest)
        ends = jnp.cumsum(lengths) / jnp.sum(lengths)
        starts = jnp.concatenate([jnp.zeros(1), ends[:-1]])
        rest = _rest(progress, warmup)
        cycle = jnp.searchsorted(ends[:-1], rest, side="right")
        length = jnp.maximum(ends[cycle] - starts[cycle], jnp.finfo(jnp.float32).tiny)
        position = (rest - starts[cycle]) / length
        falling = floor + (peak - floor) * 0.5 * (1 + jnp.cos(jnp.pi * position))
        return jnp.where(progress < warmup, _rising(progress, peak, warmup), falling)

    return schedule


def step_decay(
    peak: float, at: Sequence[float], *, factor: float = 0.1, warmup: float = 0.0
) -> Schedule:
    """Linear warm-up to `peak`, which is multiplied by `factor` at each of some points of the task.

    rate(t) = peak factor^n, with n the number of points that t has reached.

    Args:
        peak: the rate after the warm-up.
        at: the points, as shares of the task in (0, 1).
        factor: of the rate at each of them.
        warmup: the share of the task spent on a warm-up from zero, in [0, 1).

    Raises:
        InputError: there is no point, or one lies outside the task.

    >>> import jcl, optax
    >>> optimizer = jcl.scheduled(optax.sgd, jcl.step_decay(0.1, at=(0.5, 0.75)), momentum=0.9)
    """
    _check("step_decay", peak, warmup)
    checks.number("step_decay", "factor", factor, "(0, inf)")
    if not isinstance(at, Sequence) or not at:
        raise InputError(f"step_decay(at={at!r}): give the points, such as at=(0.5, 0.75).")
    for point in at:
        checks.number("step_decay", "at", point, "(0, 1)")

    def schedule(progress):
        reached = sum((progress >= point) * 1.0 for point in at)
        return jnp.where(progress < warmup, _rising(progress, peak, warmup), peak * factor**reached)

    return schedule


def exponential(peak: float, floor: float, *, warmup: float = 0.0) -> Schedule:
    """Linear warm-up to `peak`, then down to `floor` by the same factor in every step.

    rate(t) = peak (floor / peak)^s, with s the share that is done of what the warm-up leaves of
    the task.

    Args:
        peak: the highest rate.
        floor: the rate at the end, above 0 and at most `peak`.
        warmup: the share of the task spent on a warm-up from zero, in [0, 1).

    Raises:
        InputError: an argument is out of range.

    >>> import jcl, optax
    >>> optimizer = jcl.scheduled(optax.lion, jcl.exponential(1e-4, 1e-6, warmup=0.1))
    """
    checks.number("exponential", "peak", peak, "(0, inf)")
    checks.floor("exponential", floor, peak, "(0")
    checks.number("exponential", "warmup", warmup, "[0, 1)")

    def schedule(progress):
        falling = peak * (floor / peak) ** _rest(progress, warmup)
        return jnp.where(progress < warmup, _rising(progress, peak, warmup), falling)

    return schedule


def _check(call: str, peak: float, warmup: float) -> None:
    checks.number(call, "peak", peak)
    checks.number(call, "warmup", warmup, "[0, 1)")


def _rising(progress: jax.Array, peak: float, warmup: float) -> jax.Array:
    return peak * progress / jnp.maximum(warmup, 1e-12)


def _rest(progress: jax.Array, warmup: float) -> jax.Array:
    """The share that is done of what the warm-up leaves of the task."""
    return jnp.maximum((progress - warmup) / (1 - warmup), 0.0)
