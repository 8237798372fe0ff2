"""Memories that live inside a strategy's state, on the device, filled and drawn inside the step.

A policy is three pure functions over a NamedTuple of its own; nothing here knows of strategies.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jcl.errors import InputError

Items = dict[str, Any]


class Policy(NamedTuple):
    """How a memory is made, filled and drawn from.

    Attributes:
        init: (batch) -> memory, empty; only the shapes of the batch count.
        insert: (memory, batch, key) -> memory.
        draw: (memory, size, key) -> items, a batch of that size.
    """

    init: Callable[[Items], Any]
    insert: Callable[[Any, Items, jax.Array | None], Any]
    draw: Callable[[Any, int, jax.Array | None], Items]


class Reservoir(NamedTuple):
    """Attributes:
    items: every leaf is [capacity, ...]; slots beyond `seen` are zero.
    seen: how many items were ever offered (int32, so at most 2**31 - 1); the chance of each later
        item depends on it, which is why it is part of every checkpoint.
    """

    items: Items
    seen: jax.Array


def reservoir(capacity: int) -> Policy:
    """A uniform sample of everything ever offered (Vitter 1985, algorithm R), a batch at a time.

    Item t (from 0) goes to slot t while t < capacity, else to a slot uniform on 0..t, and is
    dropped where that slot does not exist. Where two items of one batch take the same slot the
    later one wins, as it would one at a time. Draws are uniform with replacement.

    Args:
        capacity: number of items it holds.
    """
    if capacity < 1:
        raise InputError(
            f"A memory of capacity {capacity} holds nothing: give a capacity of at least 1, or "
            "leave the memory out of the chain."
        )

    def init(batch):
        items = jax.tree.map(lambda leaf: jnp.zeros((capacity, *leaf.shape[1:]), leaf.dtype), batch)
        return Reservoir(items, jnp.zeros((), jnp.int32))

    def insert(memory, batch, key):
        number = jax.tree.leaves(batch)[0].shape[0]
        order = memory.seen + jnp.arange(number, dtype=jnp.int32)
        drawn = jax.random.randint(_key(memory, key, 0), (number,), 0, order + 1)
        slot = jnp.minimum(jnp.where(order < capacity, order, drawn), capacity)
        same = slot[:, None] == slot[None, :]
        overwritten = jnp.any(jnp.triu(same, k=1), axis=1)
        slot = jnp.where(overwritten, capacity, slot)
        items = jax.tree.map(
            lambda kept, new: kept.at[slot].set(new, mode="drop"), memory.items, batch
        )
        return Reservoir(items, memory.seen + number)

    def draw(memory, size, key):
        filled = jnp.clip(memory.seen, 1, capacity)
        slot = jax.random.randint(_key(memory, key, 1), (size,), 0, filled)
        return jax.tree.map(lambda kept: kept[slot], memory.items)

    return Policy(init, insert, draw)


def _key(memory: Reservoir, key: jax.Array | None, purpose: int) -> jax.Array:
    """The key given, or, where none is, one of the memory's counter and the purpose alone."""
    return jax.random.fold_in(jax.random.key(purpose), memory.seen) if key is None else key
