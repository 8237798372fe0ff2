"""What a memory is: its policy's functions, and what they share.

A policy is a few pure functions over a NamedTuple of its own, which has at least `items`, whose
leaves are [capacity, ...], and `seen`, how many items were ever offered; nothing here knows of
strategies.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jcl.core import never
from jcl.errors import InputError

Items = dict[str, Any]
AGE = "age"  # of every item of `aged`: the examples offered since


class Origin(NamedTuple):
    """Of an imported memory.

    Attributes:
        path: its file.
        target: the largest counted one in it; -1 where there is none.
        vocabulary: of the run that it comes from; None where the file does not say.
    """

    path: str
    target: int
    vocabulary: int | None


class Policy(NamedTuple):
    """How a memory is made, filled and drawn from.

    Attributes:
        init: (batch) -> memory, empty; only the shapes of the batch count.
        insert: (memory, batch, key, scores=None) -> memory; scores are what `score` returned.
        draw: (memory, size, key) -> items, a batch of that size.
        filled: (memory) -> [capacity], which slots hold an item.
        score: (params, batch, aux) -> scores, one row per example, where `insert` wants them.
        boundary: whether it chooses among all examples of a task and so is filled at boundaries
            only.
        classes: how many it tells apart; None where labels do not matter.
        origin: of a memory that begins with what another run has stored.
        forget: (memory, keep) -> memory without the items of the slots where keep, [capacity], is
            False; None where it cannot let go of any.
    """

    init: Callable[[Items], Any]
    insert: Callable[..., Any]
    draw: Callable[[Any, int, jax.Array | None], Items]
    filled: Callable[[Any], jax.Array]
    score: Callable[[Any, Items, dict[str, Any]], jax.Array] | None = None
    boundary: bool = False
    classes: int | None = None
    origin: Origin | None = None
    forget: Callable[[Any, jax.Array], Any] | None = None


def check_head(policy: Policy, aux: dict[str, Any]) -> None:
    """Refuses a policy that counts fewer classes than aux has logits, or begins with others."""
    origin = policy.origin
    if policy.classes is None and origin is None:
        return
    shape = aux["logits"].shape
    logits = shape[-1]
    if policy.classes is not None and policy.classes < logits:
        raise InputError(
            f"The memory tells {policy.classes} classes apart and the model {logits}: give the "
            f"memory classes={logits}."
        )
    if origin is None:
        return
    if origin.target >= logits:
        raise InputError(
            f"{origin.path} holds the target {origin.target} and the model gives {logits} logits: "
            "give the model at least as many as the run had that the memory comes from."
        )
    if len(shape) == 3 and origin.vocabulary not in (None, logits):
        raise InputError(
            f"{origin.path} comes from a run with a vocabulary of {origin.vocabulary} and the "
            f"model's is {logits}, so that its tokens would be other words: take that run's "
            "tokenizer and model."
        )


def after(memory: Any, *known: Any) -> Any:
    """The memory as it is, for an insert that waits until the trees of arrays `known` are there.

    They are made of what was drawn before, so that the memory is written in place (`core.never`).
    """
    late = never(leaf for tree in known for leaf in jax.tree.leaves(tree)[:1])
    return memory._replace(seen=memory.seen + late)


def counted(batch: Items) -> tuple[jax.Array, jax.Array | int]:
    """Each row's place among those that count, [number], and how many do.

    A row whose `mask` is all 0 does not count: it has the place -1 and enters no memory.
    """
    number = rows(batch)
    if "mask" not in batch:
        return jnp.arange(number, dtype=jnp.int32), number
    counts = jnp.any(batch["mask"].reshape(number, -1) > 0, axis=1)
    return jnp.where(counts, jnp.cumsum(counts, dtype=jnp.int32) - 1, -1), counts.sum()


def rows(batch: Items) -> int:
    return jax.tree.leaves(batch)[0].shape[0]


def empty(capacity: int, batch: Items) -> Items:
    return jax.tree.map(lambda leaf: jnp.zeros((capacity, *leaf.shape[1:]), leaf.dtype), batch)


def write(items: Items, batch: Items, slot: jax.Array) -> Items:
    """The items with each of the batch in its slot; slots beyond the last are dropped, and of two
    in one slot the later wins."""
    same = slot[:, None] == slot[None, :]
    overwritten = jnp.any(jnp.triu(same, k=1), axis=1)
    enters = (slot < rows(items)) & ~overwritten
    # What does not enter writes again what the first that does has written or, where none does,
    # what the first slot holds: with several replicas in one program a GPU's deterministic scatter
    # takes an index beyond the last for one of the next replica's memory.
    some, source = enters.any(), jnp.where(enters, jnp.arange(len(slot)), jnp.argmax(enters))
    slot = jnp.where(some, slot[source], 0)
    return jax.tree.map(
        lambda kept, new: kept.at[slot].set(
            jnp.where(some, new[source], kept[0]), mode="promise_in_bounds"
        ),
        items,
        batch,
    )


def with_one(values: jax.Array, slot: jax.Array, value: jax.Array) -> jax.Array:
    """The values [capacity] with this one in its slot; in one beyond the last it is dropped."""
    return jnp.where(jnp.arange(len(values)) == slot, value, values)


def first(capacity: int) -> Callable[[Any], jax.Array]:
    return lambda memory: jnp.arange(capacity) < memory.seen


def draw_first(capacity: int) -> Callable[[Any, int, jax.Array | None], Items]:
    def draw(memory, size, key):
        filled = jnp.clip(memory.seen, 1, capacity)
        slot = jax.random.randint(key_or_own(memory, key, 1), (size,), 0, filled)
        return at(memory, slot)

    return draw


def draw_weighted(memory: Any, weights: jax.Array, size: int, key: jax.Array | None) -> Items:
    """Items with a chance proportional to their weight; the first slot where all weights are 0."""
    upto = jnp.cumsum(weights)
    height = upto[-1] * (1 - jax.random.uniform(key_or_own(memory, key, 1), (size,)))
    slot = jnp.searchsorted(upto, height)
    return at(memory, slot)


def key_or_own(memory: Any, key: jax.Array | None, purpose: int) -> jax.Array:
    """The key given, or, where none is, one of the memory's counter and the purpose alone."""
    return jax.random.fold_in(jax.random.key(purpose), memory.seen) if key is None else key


def at(memory: Any, slot: jax.Array) -> Items:
    """The items in these slots, as a batch."""
    shown = {name: leaf for name, leaf in memory.items.items() if name != AGE}
    return jax.tree.map(lambda kept: kept[slot], shown)
