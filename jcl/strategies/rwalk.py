"""Riemannian Walk."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jcl import checks
from jcl.core import Params, Strategy, kept, strategy
from jcl.errors import InputError
from jcl.strategies.ewc import fisher
from jcl.strategies.quadratic import distance


class Walk(NamedTuple):
    """What the way of the params through all tasks has shown; all but the counter like params.

    Attributes:
        importance: of the penalty, fixed between boundaries; zero before the first.
        anchor: where the params stood at the last boundary.
        fisher: the moving average of the Fisher information.
        score: the average of past tasks' scores, and the current task's on top of it.
        path: by how much the steps since `start` lowered the loss.
        start: the params when the current interval began.
        boundaries: how many there were (int32); the first task's score is averaged with none.
    """

    importance: Params
    anchor: Params
    fisher: Params
    score: Params
    path: Params
    start: Params
    boundaries: jax.Array


def rwalk(
    strength: float,
    *,
    rate: float = 0.9,
    every: int = 10,
    damping: float = 1e-6,
    chunk: int = 1,
) -> Strategy:
    """Holds the params by their Fisher information and by what they did for the loss on their way.

    loss = task loss + strength * sum_i importance_i (params_i - anchor_i)^2.

    Chaudhry et al. 2018 ("Riemannian walk for incremental learning"). At the end of every interval
    of `every` steps:
    fisher <- rate f + (1 - rate) fisher, with f the Fisher information of the current batch (as
    in `jcl.ewc`, per example): EWC++;
    score <- score + path / (fisher / 2 (params - start)^2 + damping), with path the sum of
    -gradient * step: the loss saved per distance in Fisher's metric (KL) walked.
    At a boundary the task's score is averaged with the average of those before it, negative
    scores count as 0, and importance = fisher / max(fisher) + score / max(score), the largest of
    all parameters; anchor <- params. Differs from the paper in: the gradient in the path is that
    of the total loss, which needs no second backward pass; the Fisher moves at the ends of
    intervals, not at every step. The samples the paper keeps of past tasks are `jcl.replay`'s.

    Args:
        strength: weight of the penalty; 0 switches it off.
        rate: in (0, 1]; the weight of the newest batch in the moving average.
        every: steps of an interval.
        damping: larger than 0; bounds the score of what hardly walked.
        chunk: examples differentiated at once; it must divide the batch.

    Stores: 6 params-sized trees (importance, anchor, fisher, score, path, start).
    Place: right of the optimizer.
    Scenario: any; the paper adds replay in class-incremental.

    >>> import jcl, optax
    >>> method = jcl.chain(optax.adamw(1e-3), jcl.rwalk(strength=1.0))
    """
    checks.number("rwalk", "strength", strength)
    checks.number("rwalk", "rate", rate, "(0, 1]")
    every = checks.whole("rwalk", "every", every)
    checks.number("rwalk", "damping", damping, "(0, inf)")
    chunk = checks.whole("rwalk", "chunk", chunk)

    def init(params, *, batch, **_):
        size = jax.tree.leaves(batch)[0].shape[0]
        if size % chunk:
            raise InputError(
                f"rwalk(chunk={chunk}) does not divide the batch of {size} examples, of which its "
                "Fisher information is taken: choose a divisor of it."
            )
        importance, average, score, path = (jax.tree.map(jnp.zeros_like, params) for _ in range(4))
        anchor, start = (jax.tree.map(jnp.copy, params) for _ in range(2))
        return Walk(importance, anchor, average, score, path, start, jnp.zeros((), jnp.int32))

    def loss(state, params, **_):
        return {"rwalk": strength * distance(state.importance, params, state.anchor)}

    def update(updates, state, params, *, grad, loss_fn, batch, step, **_):
        path = jax.tree.map(lambda path, g, moved: path - g * moved, state.path, grad, updates)

        def close(state):
            batches = jax.tree.map(lambda leaf: leaf[None], batch)
            new = fisher(loss_fn, params, batches, chunk=chunk)
            average = jax.tree.map(lambda n, old: rate * n + (1 - rate) * old, new, state.fisher)
            return end_interval(
                state._replace(fisher=average), optax.apply_updates(params, updates), damping
            )

        due = (step + 1) % every == 0
        return updates, jax.lax.cond(due, close, lambda own: own, state._replace(path=path))

    def consolidate(state, params, **_):
        state = end_interval(state, params, damping)
        share = jnp.where(state.boundaries == 0, 1.0, 0.5)
        score = jax.tree.map(lambda score: share * score, state.score)
        positive = jax.tree.map(lambda score: jnp.maximum(score, 0.0), score)
        importance = jax.tree.map(jnp.add, relative(state.fisher), relative(positive))
        anchor = kept(params)
        return state._replace(
            importance=importance, anchor=anchor, score=score, boundaries=state.boundaries + 1
        ), params

    return strategy(
        name="rwalk", side="step", init=init, loss=loss, update=update, consolidate=consolidate
    )


def end_interval(state: Walk, params: Params, damping: float) -> Walk:
    """The state with the score of the interval from `start` to params; a new one begins."""

    def add(score, path, information, parameter, start):
        return score + path / (0.5 * information * (parameter - start) ** 2 + damping)

    score = jax.tree.map(add, state.score, state.path, state.fisher, params, state.start)
    path = jax.tree.map(jnp.zeros_like, state.path)
    return state._replace(score=score, path=path, start=kept(params))


def relative(tree: Params) -> Params:
    """A tree of numbers not below 0, divided by the largest of all; zeros where all are zero."""
    largest = jnp.asarray(optax.tree.max(tree))
    return jax.tree.map(lambda leaf: leaf / jnp.where(largest > 0, largest, 1.0), tree)
