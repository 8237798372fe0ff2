"""Memories that live inside a strategy's state, on the device, filled and drawn inside the step.

A policy is a few pure functions over a NamedTuple of its own, which has at least `items`, whose
leaves are [capacity, ...], and `seen`, how many items were ever offered; nothing here knows of
strategies.
"""

import contextlib
import contextvars
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jcl import checks
from jcl.core import never
from jcl.errors import InputError, SaveError
from jcl.losses import outputs

Items = dict[str, Any]
_SHAPES_ALONE = contextvars.ContextVar("shapes_alone", default=False)
_TOKENS = ("items/inputs", "items/targets", "items/attention_mask", "items/mask")
# Along these axes an imported leaf may be longer in the new run, and what is filled in there.
_GROWS = {
    **dict.fromkeys((*_TOKENS, "items/label_mask"), (1, 0)),
    **dict.fromkeys(("stored", "offered", "full"), (0, 0)),
    "place": (0, -1),
}


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
    """

    init: Callable[[Items], Any]
    insert: Callable[..., Any]
    draw: Callable[[Any, int, jax.Array | None], Items]
    filled: Callable[[Any], jax.Array]
    score: Callable[[Any, Items, dict[str, Any]], jax.Array] | None = None
    boundary: bool = False
    classes: int | None = None
    origin: Origin | None = None


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
        return Reservoir(_empty(capacity, batch), jnp.zeros((), jnp.int32))

    def insert(memory, batch, key, scores=None):
        place, number = counted(batch)
        order = memory.seen + place
        drawn = jax.random.randint(_key(memory, key, 0), order.shape, 0, order + 1)
        slot = jnp.minimum(jnp.where(order < capacity, order, drawn), capacity)
        slot = jnp.where(place < 0, capacity, slot)
        return Reservoir(write(memory.items, batch, slot), memory.seen + number)

    return Policy(init, insert, _draw_first(capacity), _first(capacity))


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
        return Ring(_empty(capacity, batch), jnp.zeros((), jnp.int32))

    def insert(memory, batch, key, scores=None):
        place, number = counted(batch)
        stays = (place >= 0) & (place >= number - capacity)
        slot = jnp.where(stays, (memory.seen + place) % capacity, capacity)
        items = jax.tree.map(
            lambda old, new: old.at[slot].set(new, mode="drop"), memory.items, batch
        )
        return Ring(items, memory.seen + number)

    return Policy(init, insert, _draw_first(capacity), _first(capacity))


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
        return Prioritized(_empty(capacity, batch), jnp.zeros((), jnp.int32), scores)

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
        kept = memory.scores.at[slot].set(scores[best], mode="drop")
        return Prioritized(write(memory.items, chosen, slot), memory.seen + number, kept)

    def insert_at_random(memory, batch, key, scores):
        place, _ = counted(batch)
        victims = jax.random.randint(_key(memory, key, 0), place.shape, 0, capacity)

        def offer(carry, item):
            kept, seen = carry
            score, victim, place = item
            enters = sign * score > sign * kept.mean()
            slot = jnp.where(seen < capacity, seen, jnp.where(enters, victim, capacity))
            slot = jnp.where(place < 0, capacity, slot)
            return (kept.at[slot].set(score, mode="drop"), seen + (place >= 0)), slot

        carry = (memory.scores, memory.seen)
        (kept, seen), slot = jax.lax.scan(offer, carry, (scores, victims, place))
        return Prioritized(write(memory.items, batch, slot), seen, kept)

    def draw_by_score(memory, size, key):
        weights = jnp.where(filled(memory), jnp.maximum(memory.scores, 1e-12), 0.0)
        return _draw_weighted(memory, weights, size, key)

    filled = _first(capacity)
    inserted = insert if replacement == "priority" else insert_at_random
    drawn = _draw_first(capacity) if draw == "uniform" else draw_by_score
    return Policy(init, inserted, drawn, filled, lambda params, batch, aux: aux["losses"])


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
        return Herded(_empty(capacity, batch), jnp.zeros((), jnp.int32), filled, place)

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
        by_place = jnp.zeros(classes, jnp.int32)
        by_place = by_place.at[jnp.where(place < 0, classes, place)].set(
            jnp.arange(classes, dtype=jnp.int32), mode="drop"
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
        return _draw_weighted(memory, memory.filled.astype(jnp.float32), size, key)

    def score(params, batch, aux):
        return outputs(features, params, batch)

    return Policy(init, insert, draw, lambda memory: memory.filled, score, True, classes)


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
        return _draw_weighted(memory, filled / (after - first), size, key)

    return policy._replace(init=init, draw=draw)


def save(
    path: str | os.PathLike[str],
    memory: Any,
    *,
    labels: Sequence[str] = (),
    vocabulary: int | None = None,
) -> None:
    """Writes a memory to a file, from which `starting_from` takes it up in another run.

    The memory is part of the learner's state, `state.strategy[0]` where it is the first part's of a
    chain; of a finished run `jcl memory RUN FILE.npz` writes it.

    Args:
        path: of a file of numpy's, .npz, without pickle; it is replaced.
        memory: what a policy made: a NamedTuple of arrays with `items` and `seen`; or the same
            arrays by name, "items/inputs".
        labels: the names of the classes, by class number, such as a text stream's `labels`; the
            other run must have them too. `jcl memory` takes them from the run folder.
        vocabulary: of the model, where the items are of a language model.

    Raises:
        InputError: it is no memory, or one of several seeds (give one seed's).
        SaveError: the file could not be written.
    """
    arrays = memory if isinstance(memory, Mapping) else named(memory)
    arrays = {name: np.asarray(leaf) for name, leaf in arrays.items()}
    if "seen" not in arrays or not any(name.startswith("items/") for name in arrays):
        raise InputError(
            f"memory.save: a {type(memory).__name__} with {', '.join(arrays) or 'no arrays'} is no "
            "memory, which has items and seen: give state.strategy[...] of the part that keeps it."
        )
    if arrays["seen"].ndim:
        raise InputError(
            f"memory.save: the memory is one of {len(arrays['seen'])} seeds: save one of them, "
            "jax.tree.map(lambda leaf: leaf[0], memory)."
        )
    if labels:
        arrays["known/labels"] = np.array(labels, str)
    if vocabulary is not None:
        arrays["known/vocabulary"] = np.array(vocabulary)
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
        partial.replace(path)
    except OSError as error:
        raise SaveError(
            f"{path}: the memory could not be written ({error}). Make room or choose another "
            "place, and save again."
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def starting_from(
    policy: Any, path: str | os.PathLike[str], *, labels: Sequence[str] = ()
) -> Policy:
    """The policy, whose memory begins with what `save` has written rather than empty.

    init(batch) = the arrays of the file, or insert(..., the file's examples, one after the other).

    With the params that go with it (`jcl.models.starting_from`) a run goes on where another ended:
    `replay(starting_from(reservoir(1000), "memory.npz"), size=16)`. The draws of the first step are
    of it.

    A policy of the same kind and capacity takes the arrays as they are, counts included, so that
    new items take the place of old ones as they would have. Any other, such as one of another
    capacity, is offered the examples by its own insert, the oldest first where the file is a
    ring's; where that fills it, it goes on with the file's counts, else it counts them alone, and
    what comes later takes their place sooner.

    There may be more classes than in the other run, behind its own, and longer texts: examples
    are filled up on the right, with the mask 0 (attention_mask; of a language model mask).

    Args:
        policy: any memory; herding, which needs features, only as it was in the other run.
        path: of the file. A run that has a checkpoint goes on without it.
        labels: the names of this run's classes, by class number; to be given where the file has
            names, and then they begin with those.

    Raises:
        InputError: the file is none of numpy's, or its classes are others; at init, if there is no
            file, or it holds other items than the batch, or of other shapes or types, each by name;
            from `replay`, if it holds targets that the model has no logit for.

    >>> import jax.numpy as jnp, jcl, pathlib, tempfile
    >>> policy, batch = jcl.memory.ring(4), {"inputs": jnp.array([3.0, 5.0])}
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "memory.npz"
    >>> jcl.memory.save(path, policy.insert(policy.init(batch), batch, None))
    >>> jcl.memory.starting_from(policy, path).init(batch).items["inputs"].tolist()
    [3.0, 5.0, 0.0, 0.0]
    """
    if not isinstance(policy, Policy):
        raise InputError(
            "memory.starting_from: give a memory and a file, as in "
            'starting_from(jcl.memory.reservoir(1000), "memory.npz").'
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except FileNotFoundError:
        return policy._replace(init=_awaiting(policy, path))
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path} is no memory that can be read ({error}): give a file that jcl.memory.save or "
            "`jcl memory` has written."
        ) from error
    _check_same_classes(path, found.pop("known/labels", np.array([], str)).tolist(), labels)
    vocabulary = found.pop("known/vocabulary", None)
    targets = found.get("items/targets", np.zeros(0))
    if "items/mask" in found and found["items/mask"].shape == targets.shape:
        targets = targets[found["items/mask"] > 0]
    whole = targets.size and np.issubdtype(targets.dtype, np.integer)
    origin = Origin(
        str(path),
        int(targets.max()) if whole else -1,
        None if vocabulary is None else int(vocabulary),
    )
    return policy._replace(init=lambda batch: _taken(policy, path, found, batch), origin=origin)


@contextlib.contextmanager
def shapes_alone() -> Iterator[None]:
    """Inside, `starting_from` needs no file: only shapes are asked for, to restore a checkpoint."""
    token = _SHAPES_ALONE.set(True)
    try:
        yield
    finally:
        _SHAPES_ALONE.reset(token)


def _awaiting(policy: Policy, path: str | os.PathLike[str]) -> Callable[[Items], Any]:
    def init(batch):
        if _SHAPES_ALONE.get():
            return policy.init(batch)
        raise InputError(
            f"There is no {path}, with which the memory begins: write it by `jcl memory RUN {path}`"
            ", or leave out memory.starting_from. Only a run with a checkpoint goes on without it."
        )

    return init


def _check_same_classes(
    path: str | os.PathLike[str], own: Sequence[str], labels: Sequence[str]
) -> None:
    """Refuses other names than the file's: numbers alone would make one class of another."""
    if own and not len(labels):
        shown = ", ".join(own[:5]) + (", ..." if len(own) > 5 else "")
        raise InputError(
            f"{path}: its targets are the classes {shown}: give starting_from labels="
            "stream.labels, so that it is known whether they are this run's as well."
        )
    for number, name in enumerate(own):
        here = labels[number] if number < len(labels) else None
        if here != name:
            raise InputError(
                f"{path}: class {number} is {name!r} in the file and "
                f"{'missing' if here is None else repr(here)} in this run: give the stream the "
                "file's classes first and in their order (tasks= lists of labels), new ones behind."
            )


def _taken(policy: Policy, path: Any, found: dict[str, np.ndarray], batch: Items) -> Any:
    """The memory that a file's arrays make, in the shapes of the policy and the batch."""
    empty = jax.eval_shape(policy.init, batch)
    wanted = named(empty)
    found = {name: _grown(name, leaf, wanted.get(name), batch) for name, leaf in found.items()}
    if wanted.keys() == found.keys() and all(_alike(found[n], wanted[n]) for n in wanted):
        return jax.tree.unflatten(
            jax.tree.structure(empty), [jnp.asarray(found[n]) for n in wanted]
        )
    names = {name for name in wanted.keys() | found.keys() if name.startswith("items/")}
    names |= _GROWS.keys() & wanted.keys() & found.keys()
    wrong = [
        f"{name} is {_shown(found.get(name))} in the file and {_shown(wanted.get(name))} in this "
        "run"
        for name in sorted(names)
        if not _alike(found.get(name), wanted.get(name), capacity=name.startswith("items/"))
    ]
    if wrong:
        raise InputError(
            f"{path}: {'; '.join(wrong)}. Give batches with the keys and types that the other run "
            "had, no fewer classes, and texts that are no shorter; longer ones need a mask."
        )
    if policy.boundary or (policy.score and "scores" not in found):
        raise InputError(
            f"{path}: this policy wants features or losses with every example, which the file has "
            "not: give it as it was in the other run, or take a reservoir, a ring or a "
            "class-balanced memory."
        )
    structure = jax.tree.structure(empty.items)
    order, capacity = _stored(found), _number(empty.items)
    names = [f"items/{name}" for name in named(empty.items)]
    items = jax.tree.unflatten(structure, [jnp.asarray(found[name][order]) for name in names])
    scores = jnp.asarray(found["scores"][order]) if policy.score else None

    def offer(memory, each):
        item, score = jax.tree.map(lambda leaf: leaf[None], each)
        return policy.insert(memory, item, None, score), None

    memory, _ = jax.lax.scan(offer, policy.init(batch), (items, scores))
    if len(order) >= capacity:
        counts = {"seen", "offered"} & wanted.keys() & found.keys()
        memory = memory._replace(**{name: jnp.asarray(found[name]) for name in counts})
    return memory


def _grown(name: str, leaf: np.ndarray, wanted: Any, batch: Items) -> np.ndarray:
    """The leaf as long as it is wanted, where what is filled in does not count."""
    if wanted is None or leaf.ndim != len(wanted.shape):
        return leaf
    if leaf.dtype.kind == "V" and leaf.dtype.itemsize == wanted.dtype.itemsize:
        leaf = leaf.view(wanted.dtype)  # numpy knows no bfloat16 and reads its bytes as nameless
    axis, fill = _GROWS.get(name, (leaf.ndim, 0))
    if axis >= leaf.ndim or (name in _TOKENS and not _marks_tokens(batch)):
        return leaf
    more = max(0, wanted.shape[axis] - leaf.shape[axis])
    width = [(0, more if each == axis else 0) for each in range(leaf.ndim)]
    return np.pad(leaf, width, constant_values=fill)


def _marks_tokens(batch: Items) -> bool:
    """Whether each token has a mark of its own, which says that it is none."""
    targets = batch.get("targets")
    if targets is None or "inputs" not in batch:
        return False
    mark = batch.get("attention_mask" if len(targets.shape) == 1 else "mask")
    return mark is not None and tuple(mark.shape) == tuple(batch["inputs"].shape)


def _stored(found: dict[str, np.ndarray]) -> np.ndarray:
    """The slots that hold an item; a ring's begin with the oldest."""
    if "filled" in found:
        return np.flatnonzero(found["filled"])
    if "stored" in found:
        return np.arange(found["stored"].sum())
    seen = int(found["seen"])
    capacity = len(next(leaf for name, leaf in found.items() if name.startswith("items/")))
    first = seen % capacity if seen > capacity else 0
    return (first + np.arange(min(seen, capacity))) % capacity


def named(memory: Any) -> dict[str, Any]:
    """The leaves of a memory by name, such as "items/inputs"."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(memory)
    }


def _alike(found: Any, wanted: Any, *, capacity: bool = False) -> bool:
    """Whether both have one shape and type; the capacity, the first axis, may be left out."""
    if found is None or wanted is None:
        return False
    shapes = (tuple(each.shape)[1 if capacity else 0 :] for each in (found, wanted))
    return len(set(shapes)) == 1 and found.dtype == wanted.dtype


def _shown(leaf: Any) -> str:
    return "missing" if leaf is None else f"{leaf.dtype}{list(leaf.shape)}"


def _by_class(name: str, capacity: int, classes: int, decide: Callable[..., Any]) -> Policy:
    """A policy that decides on one item after the other, by its label and what is stored.

    decide: (label, memory, free, chance) -> whether the item is taken, [classes] whose items it may
    overwrite, full.
    """
    capacity, classes = _check_classes(name, capacity, classes)

    def init(batch):
        _check_labels(name, batch)
        zero, counts = jnp.zeros((), jnp.int32), jnp.zeros(classes, jnp.int32)
        return ByClass(_empty(capacity, batch), zero, counts, counts, jnp.zeros(classes, bool))

    def insert(memory, batch, key, scores=None):
        places, number = counted(batch)
        chances = jax.random.uniform(_key(memory, key, 0), (len(places), 2))

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
            counts = memory.stored.at[left].add(-1, mode="drop").at[come].add(1, mode="drop")
            labels = labels.at[slot].set(label, mode="drop")
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
            _key(memory, key, 1), (size,), 0, jnp.maximum(memory.stored.sum(), 1)
        )
        return jax.tree.map(lambda kept: kept[slot], memory.items)

    return Policy(init, insert, draw, filled, classes=classes)


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


def counted(batch: Items) -> tuple[jax.Array, jax.Array | int]:
    """Each row's place among those that count, [number], and how many do.

    A row whose `mask` is all 0 does not count: it has the place -1 and enters no memory.
    """
    number = _number(batch)
    if "mask" not in batch:
        return jnp.arange(number, dtype=jnp.int32), number
    counts = jnp.any(batch["mask"].reshape(number, -1) > 0, axis=1)
    return jnp.where(counts, jnp.cumsum(counts, dtype=jnp.int32) - 1, -1), counts.sum()


def _number(batch: Items) -> int:
    return jax.tree.leaves(batch)[0].shape[0]


def _empty(capacity: int, batch: Items) -> Items:
    return jax.tree.map(lambda leaf: jnp.zeros((capacity, *leaf.shape[1:]), leaf.dtype), batch)


def write(items: Items, batch: Items, slot: jax.Array) -> Items:
    """The items with each of the batch in its slot; slots beyond the last are dropped, and of two
    in one slot the later wins."""
    capacity = _number(items)
    same = slot[:, None] == slot[None, :]
    overwritten = jnp.any(jnp.triu(same, k=1), axis=1)
    slot = jnp.where(overwritten, capacity, slot)
    return jax.tree.map(lambda kept, new: kept.at[slot].set(new, mode="drop"), items, batch)


def _first(capacity: int) -> Callable[[Any], jax.Array]:
    return lambda memory: jnp.arange(capacity) < memory.seen


def _draw_first(capacity: int) -> Callable[[Any, int, jax.Array | None], Items]:
    def draw(memory, size, key):
        filled = jnp.clip(memory.seen, 1, capacity)
        slot = jax.random.randint(_key(memory, key, 1), (size,), 0, filled)
        return jax.tree.map(lambda kept: kept[slot], memory.items)

    return draw


def _draw_weighted(memory: Any, weights: jax.Array, size: int, key: jax.Array | None) -> Items:
    """Items with a chance proportional to their weight; the first slot where all weights are 0."""
    upto = jnp.cumsum(weights)
    height = upto[-1] * (1 - jax.random.uniform(_key(memory, key, 1), (size,)))
    slot = jnp.searchsorted(upto, height)
    return jax.tree.map(lambda kept: kept[slot], memory.items)


def _key(memory: Any, key: jax.Array | None, purpose: int) -> jax.Array:
    """The key given, or, where none is, one of the memory's counter and the purpose alone."""
    return jax.random.fold_in(jax.random.key(purpose), memory.seen) if key is None else key
