"""Memories that choose by the order in which items come, or by their loss: no label matters."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jcl import checks
from jcl.errors import InputError
from jcl.memory import forgetting
from jcl.memory.policy import (
    Items,
    Policy,
    counted,
    draw_first,
    draw_weighted,
    empty,
    first,
    key_or_own,
    with_one,
    write,
)


def of(call: str, capacity: Any) -> Policy:
    """The policy given, or a reservoir of that capacity.

    Raises:
        InputError: it is neither.
    """
    if isinstance(capacity, Policy):
        return capacity
    if callable(capacity):
        raise InputError(
            f"{call}: {getattr(capacity, '__name__', capacity)!r} is a function that makes a "
            "memory: call it, as in jcl.memory.ring(1000)."
        )
    return reservoir(checks.whole(call, "capacity", capacity))


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

    slot(item t) = t while t < capacity, else uniform on 0..t, and dropped at or above the capacity.

    Items count from 0. Where two items of one batch take the same slot the later one wins, as it
    would one at a time. Draws are uniform with replacement.

    Args:
        capacity: number of items it holds.
    """
    capacity = checks.whole("reservoir", "capacity", capacity)

    def init(batch):
        return Reservoir(empty(capacity, batch), jnp.zeros((), jnp.int32))

    def insert(memory, batch, key, scores=None):
        place, number = counted(batch)
        order = memory.seen + place
        drawn = jax.random.randint(key_or_own(memory, key, 0), order.shape, 0, order + 1)
        slot = jnp.minimum(jnp.where(order < capacity, order, drawn), capacity)
        slot = jnp.where(place < 0, capacity, slot)
        return Reservoir(write(memory.items, batch, slot), memory.seen + number)

    return Policy(init, insert, draw_first(capacity), first(capacity), forget=forgetting.reservoir)


class Ring(NamedTuple):
    """Attributes:
    items: every leaf is [capacity, ...]; item t lies in slot t modulo the capacity.
    seen: how many items were ever offered (int32).
    """

    items: Items
    seen: jax.Array


def ring(capacity: int) -> Policy:
    """The last items offered: first in, first out. Draws are uniform with replacement.

    slot(item t) = t mod capacity.

    Args:
        capacity: number of items it holds.
    """
    capacity = checks.whole("ring", "capacity", capacity)

    def init(batch):
        return Ring(empty(capacity, batch), jnp.zeros((), jnp.int32))

    def insert(memory, batch, key, scores=None):
        place, number = counted(batch)
        stays = (place >= 0) & (place >= number - capacity)
        slot = jnp.where(stays, (memory.seen + place) % capacity, capacity)
        return Ring(write(memory.items, batch, slot), memory.seen + number)

    return Policy(init, insert, draw_first(capacity), first(capacity), forget=forgetting.ring)


class Prioritized(NamedTuple):
    """Attributes:
    items: every leaf is [capacity, ...].
    seen: how many items were ever offered (int32).
    scores: [capacity], each item's score as it was offered; later ones compete with it.
    """

    items: Items
    seen: jax.Array
    scores: jax.Array


def priority(
    capacity: int,
    *,
    keep: str = "highest",
    replacement: str = "priority",
    draw: str = "uniform",
) -> Policy:
    """Items of high (or low) loss. While a slot is free an item takes it; then its loss decides.

    an item enters where its loss > min (replacement="random": mean) of the scores in the memory.

    replacement="priority": an item above the lowest score of the memory takes its place, so that
    the memory holds the highest of all ever offered; of equal scores the older stays.
    replacement="random": an item above the mean score of the memory takes a uniformly random slot.
    Each exchange raises that mean in expectation, and what came early does not stay for good.
    With keep="lowest" read below for above and highest for lowest. Scores are the losses as the
    items were offered, by the params of that moment: they are not taken again.

    Args:
        capacity: number of items it holds.
        keep: the losses that are preferred, "highest" or "lowest".
        replacement: what goes for a new item, "priority" or "random"; random offers the batch's
            items one after the other, by a scan over their scores.
        draw: "uniform", or "score": with a chance proportional to the loss (the proportional
            variant of prioritized replay, Schaul et al. 2016, with exponent 1 and
            without its importance weights). Both with replacement.
    """
    capacity = checks.whole("priority", "capacity", capacity)
    checks.one_of("priority", "keep", keep, ("highest", "lowest"))
    checks.one_of("priority", "replacement", replacement, ("priority", "random"))
    checks.one_of("priority", "draw", draw, ("uniform", "score"))
    if keep == "lowest" and draw == "score":
        raise InputError(
            'priority(keep="lowest", draw="score"): the draw would prefer the high losses that '
            'the memory does not keep; draw="uniform".'
        )
    sign = 1.0 if keep == "highest" else -1.0

    def init(batch):
        scores = jnp.zeros(capacity, jnp.float32)
        return Prioritized(empty(capacity, batch), jnp.zeros((), jnp.int32), scores)

    def insert(memory, batch, key, scores):
        place, number = counted(batch)
        scores = jnp.where(place < 0, -sign * jnp.inf, scores)
        pairs = min(len(scores), capacity)
        rank = jnp.where(filled(memory), sign * memory.scores, -jnp.inf)
        # The i-th worst of the memory meets the i-th best of the batch: what wins its pair is
        # among the best of both, and no more than a batch is ever written.
        worst = jnp.argsort(rank)[:pairs]
        best = jnp.argsort(-sign * scores)[:pairs]
        slot = jnp.where(sign * scores[best] > rank[worst], worst, capacity)
        chosen = jax.tree.map(lambda leaf: leaf[best], batch)
        stored = {"items": memory.items, "scores": memory.scores}
        stored = write(stored, {"items": chosen, "scores": scores[best]}, slot)
        return Prioritized(stored["items"], memory.seen + number, stored["scores"])

    def insert_at_random(memory, batch, key, scores):
        place, _ = counted(batch)
        victims = jax.random.randint(key_or_own(memory, key, 0), place.shape, 0, capacity)

        def offer(carry, item):
            kept, seen = carry
            score, victim, place = item
            enters = sign * score > sign * kept.mean()
            slot = jnp.where(seen < capacity, seen, jnp.where(enters, victim, capacity))
            slot = jnp.where(place < 0, capacity, slot)
            return (with_one(kept, slot, score), seen + (place >= 0)), slot

        carry = (memory.scores, memory.seen)
        (kept, seen), slot = jax.lax.scan(offer, carry, (scores, victims, place))
        return Prioritized(write(memory.items, batch, slot), seen, kept)

    def draw_by_score(memory, size, key):
        weights = jnp.where(filled(memory), jnp.maximum(memory.scores, 1e-12), 0.0)
        return draw_weighted(memory, weights, size, key)

    filled = first(capacity)
    inserted = insert if replacement == "priority" else insert_at_random
    drawn = draw_first(capacity) if draw == "uniform" else draw_by_score

    def score(params, batch, aux):
        return aux["losses"]

    return Policy(init, inserted, drawn, filled, score, forget=forgetting.prioritized)
