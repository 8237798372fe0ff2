"""Memories that choose by label: balanced over classes, herding, and balanced draws."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jcl import checks
from jcl.errors import InputError
from jcl.losses import outputs
from jcl.memory import forgetting
from jcl.memory.policy import (
    Items,
    Policy,
    at,
    counted,
    draw_weighted,
    empty,
    key_or_own,
    with_one,
    write,
)


class ByClass(NamedTuple):
    """Attributes:
    items: every leaf is [capacity, ...].
    seen: how many items were ever offered (int32).
    stored: [classes], items in the memory.
    offered: [classes], items ever offered.
    full: [classes], whether the class is or was the largest of a memory without a free slot.
    """

    items: Items
    seen: jax.Array
    stored: jax.Array
    offered: jax.Array
    full: jax.Array


def class_balanced(capacity: int, classes: int) -> Policy:
    """The class-balancing reservoir: equal classes where the stream allows, each a uniform sample.

    P(an item of class c enters) = 1 until c was a full memory's largest, then stored_c / offered_c.

    Chrysakis and Moens 2020. While a slot is free an item takes it. Then an item whose class was
    never the largest overwrites a random item of the largest class (of the largest classes); one of
    a class that is or was the largest overwrites, if it enters, a random item of its own class.
    Draws are uniform with replacement.

    The batch's items are offered one after the other, by a scan over their labels.

    Args:
        capacity: number of items it holds.
        classes: labels are 0 .. classes - 1.
    """

    def decide(label, memory, free, chance):
        largest = memory.stored == memory.stored.max()
        full = memory.full | (largest & ~free)
        own = jnp.arange(classes) == label
        accepted = chance * memory.offered[label] < memory.stored[label]
        return free | ~full[label] | accepted, jnp.where(full[label], own, largest), full

    return _by_class("class_balanced", capacity, classes, decide)


def greedy_balanced(capacity: int, classes: int) -> Policy:
    """GDumb's greedy sampler: the first items of each class, as many as its share allows.

    an item of class c enters while stored_c < capacity / (classes met so far).

    Prabhu et al. 2020. Where no slot is free the item overwrites a random one of the largest class
    (of the largest classes). Draws are uniform with replacement.

    Args:
        capacity: number of items it holds.
        classes: labels are 0 .. classes - 1.
    """

    def decide(label, memory, free, chance):
        accepted = memory.stored[label] * jnp.sum(memory.offered > 0) < capacity
        return accepted, memory.stored == memory.stored.max(), memory.full

    return _by_class("greedy_balanced", capacity, classes, decide)


class Herded(NamedTuple):
    """Attributes:
    items: every leaf is [capacity, ...]; one run of slots for each class met, best first.
    seen: how many items were ever offered (int32).
    filled: [capacity], since a class may have fewer items than its share.
    place: [classes], how many classes came before this one; -1 before it is met.
    """

    items: Items
    seen: jax.Array
    filled: jax.Array
    place: jax.Array


def herding(capacity: int, classes: int, features: Callable[[Any, jax.Array], jax.Array]) -> Policy:
    """Of each class the exemplars whose running mean of features stays nearest the class's mean.

    p_k = argmin_x || mean - (f(x) + f(p_1) + ... + f(p_{k-1})) / k ||, without taking one twice.

    Rebuffi et al. 2017 (iCaRL). f is divided by its length. Each
    class met has the same share, capacity // classes met; as classes come the last exemplars of
    the earlier ones go. A class that is offered again keeps its first exemplars. It is filled at
    boundaries, where a whole task is at hand. Draws are uniform with replacement.
    Differs from the paper in: means of features are not divided by their length again.

    Args:
        capacity: number of items it holds; at least one per class.
        classes: labels are 0 .. classes - 1.
        features: (params, inputs) -> [batch, width], such as `model.features`.
    """
    capacity, classes = _check_classes("herding", capacity, classes)
    checks.function("herding", "features", features, "model.features")

    def init(batch):
        _check_labels("herding", batch)
        filled = jnp.zeros(capacity, bool)
        place = jnp.full(classes, -1, jnp.int32)
        return Herded(empty(capacity, batch), jnp.zeros((), jnp.int32), filled, place)

    def insert(memory, batch, key, scores):
        place, offered = counted(batch)
        number, known = len(place), jnp.sum(memory.place >= 0)
        member = (batch["targets"][:, None] == jnp.arange(classes)) & (place >= 0)[:, None]
        new = jnp.any(member, axis=0) & (memory.place < 0)
        place = jnp.where(new, known + jnp.cumsum(new) - 1, memory.place).astype(jnp.int32)
        met = known + new.sum()
        before, share = (capacity // jnp.maximum(count, 1) for count in (known, met))
        exemplars = herd(scores, member & new, share, min(capacity, number))

        slot = jnp.arange(capacity)
        position, rank = slot // share, slot % share
        by_place = jnp.zeros(classes + 1, jnp.int32)  # the last of those that are not met
        by_place = by_place.at[jnp.where(place < 0, classes, place)].set(
            jnp.arange(classes, dtype=jnp.int32)
        )
        label = by_place[jnp.minimum(position, classes - 1)]
        fresh = exemplars[jnp.minimum(rank, len(exemplars) - 1), label]
        old = jnp.minimum(position * before + rank, capacity - 1)
        has_fresh = (rank < len(exemplars)) & (fresh < number)
        filled = jnp.where(new[label], has_fresh, memory.filled[old])
        filled = filled & (position < met)

        def choose(kept, offered):
            shape = (capacity,) + (1,) * (kept.ndim - 1)
            from_batch = offered[jnp.minimum(fresh, number - 1)]
            return jnp.where(new[label].reshape(shape), from_batch, kept[old])

        items = jax.tree.map(choose, memory.items, batch)
        return Herded(items, memory.seen + offered, filled, place)

    def draw(memory, size, key):
        return draw_weighted(memory, memory.filled.astype(jnp.float32), size, key)

    def score(params, batch, aux):
        return outputs(features, params, batch)

    def filled(memory):
        return memory.filled

    return Policy(init, insert, draw, filled, score, True, classes, forget=forgetting.herded)


def herd(
    features: Float[Array, "number width"],
    member: Bool[Array, "number classes"],
    share: Int[Array, ""] | int,
    longest: int,
) -> Int[Array, "longest classes"]:
    """The rows of each class's exemplars, best first; `number` where there is none.

    Args:
        features: of all examples.
        member: of which class each is.
        share: exemplars of a class, at most `longest`.
        longest: rows of the result.
    """
    number, classes = member.shape
    length = jnp.linalg.norm(features, axis=1, keepdims=True)
    features = features / jnp.where(length > 0, length, 1.0)
    mean = (member.T @ features) / jnp.maximum(member.sum(axis=0), 1)[:, None]

    def pick(rank, carry):
        exemplars, total, left = carry
        # Up to what all candidates share, k^2 times the squared distance to the mean.
        distance = jnp.sum(features**2, axis=1)[:, None] - 2 * jnp.matmul(
            features, ((rank + 1) * mean - total).T, precision=jax.lax.Precision.HIGHEST
        )
        nearest = jnp.argmin(jnp.where(left, distance, jnp.inf), axis=0)
        there = jnp.any(left, axis=0)
        exemplars = exemplars.at[rank].set(jnp.where(there, nearest, number))
        total = total + jnp.where(there[:, None], features[nearest], 0.0)
        return exemplars, total, left.at[nearest, jnp.arange(classes)].set(False)

    exemplars = jnp.full((longest, classes), number)
    carry = (exemplars, jnp.zeros_like(mean), member)
    return jax.lax.fori_loop(0, jnp.minimum(share, longest), pick, carry)[0]


def balanced(policy: Policy) -> Policy:
    """The policy, with draws in which every class present has the same chance.

    P(draw of an item of class c) = 1 / (classes present * stored_c).

    A class is drawn first, uniformly, then an item of it, with replacement. Items need `targets`
    [capacity].

    Args:
        policy: what another factory made, such as `reservoir(1000)`.
    """
    if not isinstance(policy, Policy):
        raise InputError(
            f"balanced(policy={getattr(policy, '__name__', policy)}): give a memory to draw from, "
            "as in jcl.memory.balanced(jcl.memory.reservoir(1000))."
        )

    def init(batch):
        _check_labels("balanced", batch)
        return policy.init(batch)

    def draw(memory, size, key):
        filled = policy.filled(memory)
        labels = memory.items["targets"].astype(jnp.int32)
        labels = jnp.where(filled, labels, jnp.iinfo(jnp.int32).max)
        ordered = jnp.sort(labels)
        first, after = (jnp.searchsorted(ordered, labels, side=side) for side in ("left", "right"))
        return draw_weighted(memory, filled / (after - first), size, key)

    return policy._replace(init=init, draw=draw)


def _by_class(name: str, capacity: int, classes: int, decide: Callable[..., Any]) -> Policy:
    """A policy that decides on one item after the other, by its label and what is stored.

    decide: (label, memory, free, chance) -> whether the item is taken, [classes] whose items it may
    overwrite, full.
    """
    capacity, classes = _check_classes(name, capacity, classes)

    def init(batch):
        _check_labels(name, batch)
        zero, counts = jnp.zeros((), jnp.int32), jnp.zeros(classes, jnp.int32)
        return ByClass(empty(capacity, batch), zero, counts, counts, jnp.zeros(classes, bool))

    def insert(memory, batch, key, scores=None):
        places, number = counted(batch)
        chances = jax.random.uniform(key_or_own(memory, key, 0), (len(places), 2))

        # Only labels and counts travel through the scan; the items are written once, after it.
        def offer(carry, item):
            labels, memory = carry
            label, (chance, which), place = item
            stored, counts = memory.stored.sum(), place >= 0
            memory = memory._replace(offered=memory.offered.at[label].add(counts))
            free = stored < capacity
            taken, classes_of_victims, full = decide(label, memory, free, chance)
            taken = taken & counts
            victims = jnp.cumsum(classes_of_victims[labels] & (jnp.arange(capacity) < stored))
            victim = jnp.minimum((which * victims[-1]).astype(jnp.int32), victims[-1] - 1)
            slot = jnp.where(free, stored, jnp.argmax(victims > victim))
            slot = jnp.where(taken, slot, capacity)
            left = jnp.where(taken & ~free, labels[slot], classes)
            come = jnp.where(taken, label, classes)
            each = jnp.arange(classes)
            counts = memory.stored - (each == left) + (each == come)
            labels = with_one(labels, slot, label)
            return (labels, memory._replace(stored=counts, full=full)), slot

        labels = memory.items["targets"].astype(jnp.int32)
        carry = (labels, memory._replace(items={}))
        items = (batch["targets"].astype(jnp.int32), chances, places)
        (_, after), slot = jax.lax.scan(offer, carry, items)
        return after._replace(items=write(memory.items, batch, slot), seen=memory.seen + number)

    def filled(memory):
        return jnp.arange(capacity) < memory.stored.sum()

    def draw(memory, size, key):
        slot = jax.random.randint(
            key_or_own(memory, key, 1), (size,), 0, jnp.maximum(memory.stored.sum(), 1)
        )
        return at(memory, slot)

    return Policy(init, insert, draw, filled, classes=classes, forget=forgetting.by_class)


def _check_classes(name: str, capacity: int, classes: int) -> tuple[int, int]:
    capacity = checks.whole(name, "capacity", capacity)
    classes = checks.whole(name, "classes", classes)
    if classes > capacity:
        raise InputError(
            f"{name}(capacity={capacity}, classes={classes}): there must be room for an item of "
            "each class."
        )
    return capacity, classes


def _check_labels(name: str, batch: Items) -> None:
    if "targets" not in batch or len(batch["targets"].shape) != 1:
        raise InputError(
            f'{name}: the batch has no labels: it needs "targets" of the shape [batch], one class '
            "per example. For a language model choose a reservoir or a ring."
        )
