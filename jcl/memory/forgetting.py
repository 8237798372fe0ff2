"""What a memory is without some of its items, one function for each kind of memory.

keep is [capacity], True for the slots that stay; what it says of an empty slot does not matter.
What goes leaves zeros behind, or copies of what stays, and the counts are such that the policy's
insert and draw go on as its paper wants them.
"""

import collections
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp


def reservoir(memory: Any, keep: jax.Array, *, aligned: bool = False) -> Any:
    """A reservoir's: seen falls by the share of what it held that goes.

    seen <- seen (1 - gone / held), the expected number of those ever offered that are left.

    A sample that is not full stays one without a gap. In one that is full every gap is filled with
    a copy of an item that stays, drawn without replacement as long as there are enough, so that
    every example ever offered and not gone still has the same expected number of slots, capacity /
    seen, and so has each to come. (With free slots in place of the copies the next few examples
    would all enter; with a seen that begins anew they would displace the rest.)

    Args:
        memory: a Reservoir; with aligned a Ring as well, which looks the same in a file.
        keep: [capacity].
        aligned: seen falls by multiples of the capacity alone, so that a ring's next slot stays its
            next; of a full memory of either kind items then stay in their slots.
    """
    capacity = len(keep)
    slot = jnp.arange(capacity)
    keep = keep & (slot < memory.seen)
    held, number = jnp.minimum(memory.seen, capacity), keep.sum()
    share = (held - number) / jnp.maximum(held, 1)
    lost = jnp.round(memory.seen * share).astype(memory.seen.dtype)
    if aligned:
        full = memory.seen > capacity
        turns = jnp.round(lost / capacity).astype(lost.dtype)
        turns = jnp.minimum(turns, memory.seen // capacity - 1)
        lost = jnp.where(full, turns * capacity, lost)
    seen = jnp.where(number > 0, jnp.maximum(memory.seen - lost, number), 0)

    in_order = jnp.argsort(~keep, stable=True)
    key = jax.random.fold_in(jax.random.key(2), memory.seen)
    shuffled = jnp.argsort(jnp.where(keep, jax.random.uniform(key, (capacity,)), 2.0))

    def copied(gap):
        return shuffled[gap % jnp.maximum(number, 1)]

    compact = jnp.where(slot < number, in_order, copied(slot - number))
    in_place = jnp.where(keep, slot, copied(jnp.cumsum(~keep) - 1))
    source = jnp.where(seen < capacity, compact, in_place)
    return memory._replace(
        items=_moved(memory.items, source, slot < seen), seen=seen.astype(memory.seen.dtype)
    )


def ring(memory: Any, keep: jax.Array) -> Any:
    """A ring's: what stays moves together, the oldest first, and seen counts it alone."""
    capacity = len(keep)
    first = jnp.where(memory.seen > capacity, memory.seen % capacity, 0)
    age = (jnp.arange(capacity) - first) % capacity
    held = jnp.minimum(memory.seen, capacity)
    keep = keep & (age < held)
    return _together(memory, keep, jnp.where(keep, age, capacity), held)


def prioritized(memory: Any, keep: jax.Array) -> Any:
    """That of a memory of scores: what stays moves together, and the next items take the slots that
    are free."""
    slot = jnp.arange(len(keep))
    held = jnp.minimum(memory.seen, len(keep))
    keep = keep & (slot < held)
    return _together(memory, keep, jnp.where(keep, slot, len(keep)), held)


def by_class(memory: Any, keep: jax.Array) -> Any:
    """That of a memory that counts by label: of each class `offered` falls as `stored` does.

    A class that loses all it had counts as never met. The next items take the slots that are free.
    """
    capacity, classes = len(keep), len(memory.stored)
    keep = keep & (jnp.arange(capacity) < memory.stored.sum())
    labels = memory.items["targets"].astype(jnp.int32)
    stored = jnp.zeros_like(memory.stored).at[jnp.clip(labels, 0, classes - 1)].add(keep)
    share = (memory.stored - stored) / jnp.maximum(memory.stored, 1)
    lost = jnp.round(memory.offered * share).astype(memory.offered.dtype)
    emptied = (memory.stored > 0) & (stored == 0)
    number = keep.sum()
    seen = jnp.where(number > 0, jnp.maximum(memory.seen - lost.sum(), number), 0)
    order = jnp.argsort(~keep, stable=True)
    return memory._replace(
        items=_moved(memory.items, order, jnp.arange(capacity) < number),
        seen=seen.astype(memory.seen.dtype),
        stored=stored,
        offered=memory.offered - lost,
        full=memory.full & ~emptied,
    )


def herded(memory: Any, keep: jax.Array) -> Any:
    """Herding's: in each class the exemplars behind move up; a class that loses all was never met,
    and the others' shares grow."""
    capacity = len(keep)
    keep = keep & memory.filled
    met = jnp.sum(memory.place >= 0)
    position = jnp.minimum(jnp.arange(capacity) // (capacity // jnp.maximum(met, 1)), capacity - 1)
    there = jnp.zeros(capacity, jnp.int32).at[position].add(keep) > 0
    moved = jnp.cumsum(there) - 1
    share = capacity // jnp.maximum(there.sum(), 1)
    upto = jnp.cumsum(keep)
    before = jnp.full(capacity, capacity).at[position].min(upto - keep)  # kept in the places before
    rank = upto - 1 - before[position]
    target = jnp.where(keep, moved[position] * share + rank, capacity)
    source = jnp.zeros(capacity + 1, jnp.int32).at[target].set(jnp.arange(capacity))[:capacity]
    filled = jnp.zeros(capacity + 1, bool).at[target].set(True)[:capacity]
    own = jnp.maximum(memory.place, 0)
    stays = (memory.place >= 0) & there[own]
    number = keep.sum()
    seen = jnp.maximum(memory.seen - (memory.filled.sum() - number), number)
    return memory._replace(
        items=_moved(memory.items, source, filled),
        seen=jnp.where(number > 0, seen, 0).astype(memory.seen.dtype),
        filled=filled,
        place=jnp.where(stays, moved[own], -1).astype(memory.place.dtype),
    )


def _together(memory: Any, keep: jax.Array, order: jax.Array, held: jax.Array) -> Any:
    """What stays in the first slots, in that order; where nothing goes, all as it is."""
    slot, number = jnp.arange(len(keep)), keep.sum()
    same = number == held
    source = jnp.where(same, slot, jnp.argsort(order))
    there = slot < number
    moved = memory._replace(
        items=_moved(memory.items, source, there),
        seen=jnp.where(same, memory.seen, number).astype(memory.seen.dtype),
    )
    if not hasattr(memory, "scores"):
        return moved
    return moved._replace(scores=_moved(memory.scores, source, there))


def _moved(items: Any, source: jax.Array, there: jax.Array) -> Any:
    """Each slot's item from its source; zeros where there is none."""

    def move(leaf):
        wide = there.reshape((-1,) + (1,) * (leaf.ndim - 1))
        return jnp.where(wide, leaf[source], jnp.zeros((), leaf.dtype))

    return jax.tree.map(move, items)


def without(arrays: Mapping[str, Any], keep: Any) -> dict[str, Any]:
    """The arrays of a memory by name, "items/inputs", without the items where keep is False.

    What a file holds does not tell a reservoir from a ring: such a memory is treated as both want
    it, and all others by their own function.

    Args:
        arrays: with "seen", whose axes, such as one of seeds, all others have in front.
        keep: [*axes of seen, capacity].
    """
    fields = {name: leaf for name, leaf in arrays.items() if "/" not in name}
    items = {name[6:]: leaf for name, leaf in arrays.items() if name.startswith("items/")}
    memory = collections.namedtuple("Memory", ["items", *fields])(items, **fields)
    function = functools.partial(reservoir, aligned=True)
    for name, other in (("scores", prioritized), ("stored", by_class), ("filled", herded)):
        function = other if name in fields else function
    axes = jnp.shape(arrays["seen"])
    number = math.prod(axes)
    flat = jax.tree.map(lambda leaf: jnp.reshape(leaf, (number, *leaf.shape[len(axes) :])), memory)
    changed = jax.jit(jax.vmap(function))(flat, jnp.reshape(jnp.asarray(keep), (number, -1)))
    changed = jax.tree.map(lambda new, old: jnp.reshape(new, old.shape), changed, memory)
    kept = {f"items/{name}": leaf for name, leaf in changed.items.items()}
    kept |= {name: getattr(changed, name) for name in fields}
    return {**arrays, **kept}
