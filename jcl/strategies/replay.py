"""Experience replay."""

from typing import Literal

import jax
import jax.numpy as jnp

from jcl import memory as memories
from jcl.core import Strategy, split, strategy
from jcl.errors import InputError


def replay(
    capacity: int,
    size: int,
    *,
    strength: float = 1.0,
    insert: Literal["step", "boundary"] = "step",
) -> Strategy:
    """Adds the loss on examples drawn from a memory of what was seen.

    loss = task loss + strength * loss_fn(params, draw(memory, size)).

    The memory is a reservoir, a uniform sample of all examples offered so far; until something
    lies in it the term is zero. Rolnick et al. 2019 and Chaudhry et al. 2019 ("On tiny episodic
    memories"), section 3. Differs from the latter in: the two means are summed rather than taken
    over the joined batch, which for equal sizes is twice their loss.

    Args:
        capacity: examples kept.
        size: examples drawn at every step.
        strength: weight of the term.
        insert: "step" offers every training batch as it is seen; "boundary" offers the batches
            that `consolidate` gets, so that the current task is not replayed.

    Stores: a memory of `capacity` examples.
    Place: anywhere.
    Scenario: any.

    >>> import jcl, optax
    >>> method = jcl.chain(jcl.replay(capacity=1000, size=16), optax.adamw(1e-3))
    """
    if size < 1:
        raise InputError(f"replay(size={size}): at least one example must be drawn a step.")
    if isinstance(strength, int | float) and strength < 0:
        raise InputError(f"replay(strength={strength}): the strength must not be negative.")
    if insert not in ("step", "boundary"):
        raise InputError(f'replay(insert={insert!r}): insert is "step" or "boundary".')
    policy = memories.reservoir(capacity)

    def init(params, *, batch, **_):
        return policy.init(batch)

    def loss(state, params, *, loss_fn, key, **_):
        key_draw, key_dropout = split(key, 2)
        value, _ = loss_fn(params, policy.draw(state, size, key_draw), key_dropout)
        return {"replay": strength * jnp.where(state.seen > 0, value, 0.0)}

    def update(updates, state, params, *, batch, key, **_):
        return updates, policy.insert(state, batch, key) if insert == "step" else state

    def consolidate(state, params, *, batches, key, **_):
        if insert == "step":
            return state, params
        offered = jax.tree.map(lambda leaf: leaf.reshape((-1, *leaf.shape[2:])), batches)
        return policy.insert(state, offered, key), params

    return strategy(name="replay", init=init, loss=loss, update=update, consolidate=consolidate)
