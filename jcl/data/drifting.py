"""Streams whose drifts are known: the concept changes abruptly, gradually, or comes back."""

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jcl import checks
from jcl.data.arrays import Arrays, check_plain
from jcl.data.streams import Concatenated, Stream, Task, check_unchanging, gather
from jcl.errors import InputError


@dataclass(frozen=True)
class DriftStream(Stream):
    """A stream of one ordered stage, with the truth about its drifts.

    Task c is concept c: its train part are the stage's examples of that concept, its test part all
    test examples as the concept has them.

    Attributes:
        drifts: for every drift the number of the first example that may be of the next concept.
        width: examples over which it fades into the next, from there on; 0 for an abrupt drift.
        order: the concept of each segment, one more than there are drifts.
        concepts: the concept of every example of the stage.
        labels: the names of the classes, where they have some for the whole stream.
        classes: how many targets there are: the outputs that a model needs.
    """

    drifts: tuple[int, ...] = ()
    width: int = 0
    order: tuple[int, ...] = ()
    concepts: tuple[int, ...] = ()
    labels: tuple[str, ...] = ()
    classes: int = 0


def drifting(
    stream: Stream,
    order: Sequence[int],
    length: int,
    *,
    change: Literal["labels", "domains"] = "labels",
    width: int = 0,
    seed: int = 0,
) -> DriftStream:
    """Returns `stream` as one stage, whose concept changes at places that are known.

    target = (task + concept) mod tasks, or, of domains, texts of the concept's own tasks only.

    "labels": the examples of all tasks come mixed, and an example's target is the number of its
    task (the group of its labels), moved on by the concept, so that from one concept to another
    every text has another target: what was learned contradicts what comes. "domains": targets stay,
    and each concept has an equal share of the tasks: new classes or domains come while the old
    remain true. order=(0, 1, 2) has two drifts; in (0, 1, 0, 1) concepts come back.

    Within a concept (of labels: within the stream) each example is met once before any is met
    again; a stream longer than the data repeats it. Everything follows from the arguments.

    Args:
        stream: of class- or domain-incremental tasks; encode it before.
        order: the concept of each segment, from 0.
        length: examples of a segment.
        change: what a concept is.
        width: examples, around each drift, over which the chance of the next concept rises
            linearly from 0 to 1; 0 changes at once.
        seed: of the order of the examples, and of the concept of each while one fades.

    Raises:
        InputError: concepts are left out, one follows itself, or there are more than tasks; the
            window is wider than a segment; the stream has task labels, is augmented, or has other
            stages.

    >>> import jcl
    >>> texts = jcl.data.intents(tokenizer=jcl.data.ByteTokenizer())
    >>> stream = jcl.data.drifting(texts, order=(0, 1, 0), length=500)
    >>> stream.drifts, stream.classes, len(stream.stages[0])
    ((500, 1000), 10, 1500)
    """
    checks.one_of("drifting", "change", change, ("labels", "domains"))
    length = checks.whole("drifting", "length", length)
    if checks.whole("drifting", "width", width, least=0) > length:
        raise InputError(f"drifting(width={width}): at most a segment's length, {length}")
    checks.whole("drifting", "seed", seed, least=0)
    check_plain("drifting", stream, "drift")
    order = _order(order, stream)
    generator = np.random.default_rng(seed)
    concepts, drifts = _concepts(generator, order, length, width)
    parts = np.array_split(np.arange(len(stream.tasks)), 1 + max(order))

    lengths = [len(task.train) for task in stream.tasks]
    groups = np.repeat(np.arange(len(lengths)), lengths)
    chosen = np.zeros(len(concepts), np.int64)
    if change == "labels":
        chosen = _met(generator, np.arange(len(groups)), len(concepts))
    for concept, tasks in enumerate(parts if change == "domains" else ()):
        own = np.flatnonzero(np.isin(groups, tasks))
        places = concepts == concept
        chosen[places] = _met(generator, own, int(places.sum()))

    def leaves(sources, indices, groups, concepts):
        for source in sources:
            check_unchanging("drifting", source, "let the stream drift that is not augmented")
        found = gather(Concatenated(sources), indices)
        if "label_mask" in found or "task" in found:
            raise InputError(
                f"drifting: the examples of stream '{stream.name}' tell their task, which a "
                'concept would contradict: use scenario="class" or "domain"'
            )
        if change == "labels":
            moved = (groups[indices] + concepts) % len(stream.tasks)
            found = {**found, "targets": moved.astype(np.int32)}
        return found

    trains = [task.train for task in stream.tasks]
    stage = leaves(trains, chosen, groups, concepts)
    tasks = []
    for concept, own in enumerate(parts):
        members = own if change == "domains" else np.arange(len(stream.tasks))
        tests = [stream.tasks[number].test for number in members]
        homes = np.repeat(members, [len(test) for test in tests])
        test = Arrays(leaves(tests, np.arange(len(homes)), homes, np.int64(concept)))
        train = Arrays({key: leaf[concepts == concept] for key, leaf in stage.items()})
        if not len(train):
            raise InputError(f"drifting: no example of concept {concept} fell into the stream")
        tasks.append((f"concept {concept}", train, test))
    whole = Arrays(stage, ordered=True)
    content = whole.hash()
    return DriftStream(
        f"{stream.name}, drifting {change}",
        tuple(Task(name, train, test, _hash(content, test)) for name, train, test in tasks),
        stages=(whole,),
        drifts=drifts,
        width=width,
        order=order,
        concepts=tuple(concepts.tolist()),
        labels=getattr(stream, "labels", ()) if change == "domains" else (),
        classes=len(stream.tasks) if change == "labels" else _classes(stream),
    )


def _order(order: Sequence[int], stream: Stream) -> tuple[int, ...]:
    found = tuple(checks.whole("drifting", "order", concept, least=0) for concept in order)
    if not found or set(found) != set(range(1 + max(found))):
        raise InputError(f"drifting(order={found}): the concepts from 0 on, none left out")
    if any(one == other for one, other in itertools.pairwise(found)):
        raise InputError(f"drifting(order={found}): a concept follows itself, which is no drift")
    if max(found) >= len(stream.tasks):
        raise InputError(
            f"drifting(order={found}): {1 + max(found)} concepts of the {len(stream.tasks)} tasks "
            f"of stream '{stream.name}': at most one concept a task"
        )
    return found


def _concepts(
    generator: np.random.Generator, order: tuple[int, ...], length: int, width: int
) -> tuple[np.ndarray, tuple[int, ...]]:
    """The concept of every example, and where the drifts begin."""
    concepts = np.repeat(order, length)
    drifts = tuple(number * length - width // 2 for number in range(1, len(order)))
    for number, start in enumerate(drifts):
        later = generator.random(width) < (np.arange(width) + 0.5) / max(width, 1)
        concepts[start : start + width] = np.where(later, order[number + 1], order[number])
    return concepts, drifts


def _met(generator: np.random.Generator, pool: np.ndarray, number: int) -> np.ndarray:
    """So many of the pool, all of it before any again."""
    rounds = -(-number // len(pool))
    return np.concatenate([generator.permutation(pool) for _ in range(max(rounds, 1))])[:number]


def _classes(stream: Stream) -> int:
    """As many as it says, or as its train parts have targets."""
    if known := getattr(stream, "classes", 0):
        return known
    every = [gather(task.train, np.arange(len(task.train)))["targets"] for task in stream.tasks]
    return 1 + max(int(targets.max()) for targets in every)


def _hash(content: str, test: Arrays) -> str:
    return hashlib.sha256((content + test.hash()).encode()).hexdigest()
