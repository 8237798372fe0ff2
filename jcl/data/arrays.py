"""Sources that hold their examples as whole arrays, and streams with soft boundaries of them."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from jcl.data.streams import (
    Batch,
    Concatenated,
    Source,
    Stream,
    Task,
    changes,
    check_unchanging,
    gather,
    held,
)
from jcl.errors import InputError


class Arrays:
    """Examples that lie in memory, batch axis first.

    Args:
        leaves: such as {"inputs": [examples, ...], "targets": [examples]}; not copied.
        constants: leaves that every example shares, such as {"task": 3}, without the batch axis.
        positions: [numbers] where each number of an input comes from among the numbers of the
            stored one (its axes flattened), -1 for a zero; a permutation or a rotation, applied
            when examples are asked for, so that many tasks share one set of images.
        ordered: the examples are met in their own order.

    Raises:
        InputError: the leaves differ in length, or there is none.
    """

    def __init__(
        self,
        leaves: Mapping[str, np.ndarray],
        *,
        constants: Mapping[str, np.ndarray | int | float] | None = None,
        positions: np.ndarray | None = None,
        ordered: bool = False,
    ):
        lengths = {key: len(leaf) for key, leaf in leaves.items()}
        if not lengths or len(set(lengths.values())) > 1:
            raise InputError(
                f"Arrays: the leaves have the lengths {lengths}: give at least one leaf, all with "
                "one entry for each example"
            )
        self._leaves = {key: np.asarray(leaf) for key, leaf in leaves.items()}
        self._constants = {key: np.asarray(value) for key, value in (constants or {}).items()}
        self._positions, self.ordered = positions, ordered
        self._length = next(iter(lengths.values()))

    @property
    def constants(self) -> Batch:
        """What every example shares, without the batch axis."""
        return dict(self._constants)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < self._length:
            raise IndexError(f"example {index} of {self._length}")
        return {key: leaf[0] for key, leaf in self.take(np.array([index])).items()}

    def take(self, indices: np.ndarray) -> Batch:
        """Gathers the examples `indices`, batch axis first, in the order asked for."""
        indices = np.asarray(indices)
        return self._dress({key: leaf[indices] for key, leaf in self._leaves.items()}, len(indices))

    def arrays(self) -> Batch:
        """All examples."""
        return self._dress(dict(self._leaves), self._length)

    def hash(self) -> str:
        """SHA-256 (hex) of the content."""
        digest = hashlib.sha256()
        for kind in (self._leaves, self._constants, {"positions": self._positions}):
            for key, leaf in kind.items():
                leaf = np.asarray(leaf if leaf is not None else [])
                digest.update(f"{key} {leaf.dtype}{leaf.shape}".encode())
                digest.update(np.ascontiguousarray(leaf).data)
        return digest.hexdigest()

    def _dress(self, batch: Batch, number: int) -> Batch:
        if self._positions is not None:
            flat = batch["inputs"].reshape(number, -1)
            moved = flat.take(self._positions, axis=1)  # -1 takes the last, and becomes 0 below
            moved[:, self._positions < 0] = 0
            batch["inputs"] = moved.reshape(number, *batch["inputs"].shape[1:])
        for key, value in self._constants.items():
            batch[key] = np.broadcast_to(value, (number, *value.shape))
        return batch


class Chosen:
    """Some examples of a source, in the order of their indices.

    Args:
        source: the examples.
        indices: which; an index may stand more than once.
        ordered: they are met in that order.
    """

    def __init__(self, source: Source, indices: np.ndarray, *, ordered: bool = False):
        self._source, self._indices, self.ordered = source, np.asarray(indices), ordered
        self.by_epoch = changes(source)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Batch:
        return self._source[int(self._indices[index])]

    def take(self, indices: np.ndarray) -> Batch:
        """Gathers the examples `indices`, batch axis first, in the order asked for."""
        return gather(self._source, self._indices[np.asarray(indices)])

    def take_in_epoch(self, indices: np.ndarray, epochs: np.ndarray) -> Batch:
        """As `take`, each example as its epoch has it."""
        return gather(self._source, self._indices[np.asarray(indices)], epochs)

    def arrays(self) -> Batch:
        """All examples."""
        return {key: leaf[self._indices] for key, leaf in held(self._source).items()}


class Labelled:
    """A source whose examples carry the number of their task, `task`."""

    def __init__(self, source: Source, task: int):
        self._source, self._task = source, np.asarray(task, np.int32)
        self.ordered, self.by_epoch = getattr(source, "ordered", False), changes(source)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Batch:
        return {**self._source[index], "task": self._task}

    def take(self, indices: np.ndarray) -> Batch:
        """Gathers the examples `indices`, batch axis first, in the order asked for."""
        return self._label(gather(self._source, np.asarray(indices)), len(indices))

    def take_in_epoch(self, indices: np.ndarray, epochs: np.ndarray) -> Batch:
        """As `take`, each example as its epoch has it."""
        return self._label(gather(self._source, np.asarray(indices), epochs), len(indices))

    def arrays(self) -> Batch:
        """All examples."""
        return self._label(held(self._source), len(self))

    def _label(self, batch: Batch, number: int) -> Batch:
        return {**batch, "task": np.broadcast_to(self._task, number)}


def labelled(stream: Stream) -> Stream:
    """Returns `stream` with examples that carry the number of their task, in training and test.

    batch["task"] = the number of the task.

    For methods that ask for a task label at prediction: `jcl.separate`, `jcl.packnet`,
    `jcl.progressive_prompts`.

    Args:
        stream: whose stages are the train parts of its tasks; label before `joint` or `blurry`.

    Raises:
        InputError: the stages are others.
    """
    check_plain("labelled", stream, "label")
    tasks = tuple(
        task._replace(train=Labelled(task.train, number), test=Labelled(task.test, number))
        for number, task in enumerate(stream.tasks)
    )
    return replace(stream, tasks=tasks, stages=())


def encoded(stream: Stream, encode: Callable[[Batch], Any], *, batch_size: int = 250) -> Stream:
    """Returns `stream` with inputs that `encode` has made of each example, once for the whole run.

    batch["inputs"] = encode(batch), without attention_mask and token_types.

    For a frozen encoder, whose features need not be computed anew in every step: the methods that
    learn a head alone then train a head alone, such as an MLP without a hidden layer. A task's hash
    stays that of its examples before.

    Args:
        stream: whose stages are the train parts of its tasks; encode before `joint` or `blurry`.
        encode: batch -> [batch, ...], such as a jitted `model.features`. It gets all examples in
            batches of one size; what fills up the last is dropped.
        batch_size: examples of one call.

    Raises:
        InputError: the stages are others, or `encode` gives another number of rows.
    """
    check_plain("encoded", stream, "encode")
    if batch_size < 1:
        raise InputError(f"encoded(batch_size={batch_size}): a whole number, at least 1")

    def encode_all(source: Source) -> Arrays:
        check_unchanging("encoded", source, "encode the stream that is not augmented")
        leaves = dict(gather(source, np.arange(len(source))))
        parts = []
        for first in range(0, len(source), batch_size):
            indices = np.minimum(np.arange(first, first + batch_size), len(source) - 1)
            part = np.asarray(encode(gather(source, indices)))
            if part.shape[:1] != (batch_size,):
                raise InputError(
                    f"encoded: encode gave an array of {list(part.shape)} for {batch_size} "
                    f"examples: it must give [{batch_size}, ...]"
                )
            parts.append(part)
        for name in ("attention_mask", "token_types"):
            leaves.pop(name, None)
        return Arrays({**leaves, "inputs": np.concatenate(parts)[: len(source)]})

    tasks = [
        Task(task.name, encode_all(task.train), encode_all(task.test), task.hash)
        for task in stream.tasks
    ]
    return Stream(f"{stream.name}, encoded", tuple(tasks))


def check_plain(call: str, stream: Stream, verb: str) -> None:
    if stream.stages != tuple(task.train for task in stream.tasks):
        raise InputError(
            f"{call}: the stages of stream '{stream.name}' are not the train parts of its tasks: "
            f"{verb} the stream first, and change its stages then"
        )


def blurry(stream: Stream, share: float, *, seed: int = 0) -> Stream:
    """Returns `stream` with stages that hold some examples of the other tasks.

    stage_i = (1 - share) of train_i + share / (tasks - 1) of every other train_j.

    Stage i keeps 1 - share of its own task's examples; the rest is dealt out evenly to the other
    stages, so that every example is met once (after Bang et al. 2021, "blurry" task boundaries,
    where share = 0.1 is called blurry10).

    Args:
        stream: at least two tasks.
        share: of each task's examples that other stages get, in [0, 1).
        seed: of the choice.

    Raises:
        InputError: the share is outside [0, 1), or there is one task only.
    """
    number = len(stream.tasks)
    if not 0 <= share < 1:
        raise InputError(f"blurry(share={share}): a share in [0, 1)")
    if number < 2:
        raise InputError(f"blurry: stream '{stream.name}' has one task, and so no boundary")
    generator = np.random.default_rng(seed)
    stages: list[list[np.ndarray]] = [[] for _ in stream.tasks]
    start = 0
    for index, task in enumerate(stream.tasks):
        order = start + generator.permutation(len(task.train))
        start += len(task.train)
        away = round(share * len(order))
        stages[index].append(order[away:])
        others = [other for other in range(number) if other != index]
        for other, part in zip(others, np.array_split(order[:away], number - 1), strict=True):
            stages[other].append(part)
    everything = Concatenated([task.train for task in stream.tasks])
    chosen = tuple(Chosen(everything, np.concatenate(parts)) for parts in stages)
    return replace(stream, name=f"{stream.name}, blurry {share:g}", stages=chosen)


def fuzzy(stream: Stream, width: float, *, seed: int = 0) -> Stream:
    """Returns `stream` as one stage without boundaries, whose tasks fade into each other.

    P(the later task) = 1/2 + (position - boundary) / window, within half a window of a boundary.

    Around each boundary, over a window of `width` times the shorter neighbour's examples, the
    chance to meet the later task rises linearly from 0 to 1. Every example is met once. Nothing
    marks a boundary: use methods that need none, or `jcl.periodically`.

    Args:
        stream: at least two tasks.
        width: of the window, in [0, 1].
        seed: of the order.

    Raises:
        InputError: the width is outside [0, 1], or there is one task only.
    """
    if not 0 <= width <= 1:
        raise InputError(f"fuzzy(width={width}): a share of a task in [0, 1]")
    if len(stream.tasks) < 2:
        raise InputError(f"fuzzy: stream '{stream.name}' has one task, and so no boundary")
    generator = np.random.default_rng(seed)
    lengths = [len(task.train) for task in stream.tasks]
    indices, times, start = [], [], 0
    for index, length in enumerate(lengths):
        # Example k of a task would be met at time start + k; near a boundary its time is jittered
        # over the window, and the examples are met in the order of their times.
        time = np.arange(length, dtype=np.float64)
        for neighbour, edge in ((index - 1, 0), (index + 1, length)):
            if 0 <= neighbour < len(lengths):
                window = width * min(length, lengths[neighbour])
                near = np.abs(time - edge) < window / 2
                time[near] = edge + _crossing(generator, near.sum(), window, edge == 0)
        indices.append(start + generator.permutation(length))
        times.append(start + time)
        start += length
    order = np.concatenate(indices)[np.argsort(np.concatenate(times), kind="stable")]
    everything = Concatenated([task.train for task in stream.tasks])
    stage = Chosen(everything, order, ordered=True)
    return replace(stream, name=f"{stream.name}, fuzzy {width:g}", stages=(stage,))


def _crossing(
    generator: np.random.Generator, number: int, window: float, rising: bool
) -> np.ndarray:
    """Times in [-window / 2, window / 2] whose density rises (or falls) linearly from 0."""
    time = window * (np.sqrt(generator.random(number)) - 0.5)
    return time if rising else -time
