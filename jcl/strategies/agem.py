"""Averaged gradient episodic memory."""

from typing import Literal

import jax
import jax.numpy as jnp
import optax

from jcl import checks
from jcl import memory as memories
from jcl.core import Strategy, split, strategy


def agem(capacity: int, size: int, *, insert: Literal["step", "boundary"] = "boundary") -> Strategy:
    """Takes from the gradient what would raise the loss on a draw from a memory (A-GEM).

    With r the gradient of loss_fn on the draw: updates <- g - min(g.r, 0) / (r.r) r.

    Chaudhry et al. 2019 ("Efficient lifelong learning with A-GEM"). Inner products are over the
    whole tree of params. g is whatever the parts on the left made of the gradient. While the memory
    is empty, or where r is zero, g stays as it is.
    Differs from the paper in: the memory is one reservoir, not equal shares of a known number of
    tasks.

    Args:
        capacity: examples kept.
        size: examples drawn at every step.
        insert: "boundary" offers the batches that `consolidate` gets, so that, as in the paper,
            only past tasks constrain; "step" offers every training batch after it was used.

    Stores: a memory of examples.
    Place: left of the optimizer.
    Scenario: any.

    >>> import jcl, optax
    >>> method = jcl.chain(jcl.agem(capacity=1000, size=64), optax.sgd(0.1))
    """
    size = checks.whole("agem", "size", size)
    checks.one_of("agem", "insert", insert, ("step", "boundary"))
    policy = memories.reservoir(checks.whole("agem", "capacity", capacity))

    def init(params, *, batch, **_):
        return policy.init(batch)

    def update(updates, state, params, *, batch, loss_fn, key, **_):
        key_draw, key_dropout, key_insert = split(key, 3)
        drawn = policy.draw(state, size, key_draw)
        reference = jax.grad(lambda params: loss_fn(params, drawn, key_dropout)[0])(params)
        against = jnp.minimum(optax.tree.vdot(updates, reference), 0.0)
        square = jnp.asarray(optax.tree.vdot(reference, reference))
        projects = (state.seen > 0) & (square > 0)
        share = jnp.where(projects, against / jnp.where(square > 0, square, 1.0), 0.0)
        updates = jax.tree.map(lambda g, r: g - share * r, updates, reference)
        if insert == "step":
            state = policy.insert(memories.after(state, updates), batch, key_insert)
        return updates, state

    def consolidate(state, params, *, batches, key, **_):
        if insert == "step":
            return state, params
        offered = jax.tree.map(lambda leaf: leaf.reshape((-1, *leaf.shape[2:])), batches)
        return policy.insert(state, offered, key), params

    return strategy(name="agem", side="gradient", init=init, update=update, consolidate=consolidate)
