"""Maximally interfered retrieval."""

import jax
import jax.numpy as jnp

from jcl import checks
from jcl import memory as memories
from jcl.core import Strategy, split
from jcl.errors import InputError
from jcl.strategies.replay import replay


def mir(
    capacity: int | memories.Policy,
    size: int,
    candidates: int,
    learning_rate: float,
    *,
    strength: float = 1.0,
) -> Strategy:
    """Replays what the step to come would make worst (MIR).

    loss = task loss + strength * loss_fn(params, worst), where `worst` are the `size` of the
    candidates drawn from the memory whose loss rises most from params to
    params - learning_rate * grad(task loss).

    Aljundi et al. 2019 ("Online continual learning with maximally interfered retrieval"), the
    variant for replay. The memory and the strength are those of `replay`, filled at every step. The
    choice is made without dropout and no gradient goes through it. A step costs a further gradient
    on the batch and two forward passes on the candidates.
    Differs from the paper in: candidates are drawn with replacement; the two means are summed
    rather than taken over the joined batch.

    Args:
        capacity: examples kept, in a reservoir; or a policy of `jcl.memory`.
        size: examples replayed at every step.
        candidates: examples drawn, of which `size` are replayed.
        learning_rate: of the virtual step of plain gradient descent.
        strength: weight of the term.

    Stores: a memory of examples.
    Place: anywhere.
    Scenario: any.

    >>> import jcl, optax
    >>> method = jcl.chain(jcl.mir(1000, 16, 64, learning_rate=0.1), optax.sgd(0.1))
    """
    size = checks.whole("mir", "size", size)
    if checks.whole("mir", "candidates", candidates) < size:
        raise InputError(
            f"mir(size={size}, candidates={candidates}): the examples are chosen among the "
            "candidates, of which there must be at least as many."
        )
    checks.number("mir", "learning_rate", learning_rate, "(0, inf)")
    checks.number("mir", "strength", strength)
    policy = memories.of("mir", capacity)
    if policy.boundary:
        raise InputError(
            "mir: this memory chooses among all examples of a task, at its end, and mir fills it "
            "at every step: give another, such as jcl.memory.class_balanced(1000, classes=10)."
        )
    plain = replay(policy, size, strength=strength)

    def loss(state, params, *, batch, loss_fn, key, **_):
        key_draw, key_dropout = split(key, 2)
        drawn = policy.draw(state, candidates, key_draw)
        now = jax.tree.map(jax.lax.stop_gradient, params)
        gradient = jax.grad(lambda params: loss_fn(params, batch, None)[0])(now)
        then = jax.tree.map(lambda parameter, g: parameter - learning_rate * g, now, gradient)
        before, after = (loss_fn(params, drawn, None)[1]["losses"] for params in (now, then))
        _, worst = jax.lax.top_k(jax.lax.stop_gradient(after - before), size)
        replayed = jax.tree.map(lambda leaf: leaf[worst], drawn)
        value, _ = loss_fn(params, replayed, key_dropout)
        return {"mir": strength * jnp.where(state.seen > 0, value, 0.0)}

    return plain._replace(loss=loss, name="mir")
