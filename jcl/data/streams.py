"""Streams of tasks, and the batches that a run draws from them.

Everything is random access: batch `i` is a function of the source, the batch size, the seed and
`i` alone, so that one integer is the whole data position of a run.
"""

import functools
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import grain
import numpy as np

from jcl import strict
from jcl.errors import InputError

Batch = dict[str, np.ndarray]
EVERY = slice(None)


class Source(Protocol):
    """Examples by index.

    A source may also have `take(indices) -> Batch`, which gathers many examples at once with the
    batch axis first, so that batches are built several times faster; `arrays() -> Batch`, all its
    examples, for runs that hold them on the device; and a true `ordered`, which asks that its
    examples be met in their own order. One with a true `by_epoch` has
    `take_in_epoch(indices, epochs) -> Batch`, which gives the version of each example that belongs
    to its epoch; what is learned from is asked for so.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Batch: ...


class Task(NamedTuple):
    """One task of a stream.

    Attributes:
        name: how reports call it.
        train: what is learned.
        test: what is evaluated.
        hash: SHA-256 (hex) of the task's content; a resumed run compares it.
    """

    name: str
    train: Source
    test: Source
    hash: str


@dataclass(frozen=True)
class Stream:
    """Tasks in order.

    Attributes:
        name: how reports call it.
        tasks: the tasks; the test part of every one is evaluated after every stage.
        stages: what is trained on, in order; by default the train part of each task.

    Raises:
        InputError: no task, a name twice or with a control character, or a task without a train or
            a test example.
    """

    name: str
    tasks: tuple[Task, ...]
    stages: tuple[Source, ...] = ()

    def __post_init__(self):
        if not self.tasks:
            raise InputError(f"stream '{self.name}' has no task: give it at least one")
        names = [task.name for task in self.tasks]
        for name in names:
            if names.count(name) > 1:
                raise InputError(
                    f"stream '{self.name}' has {names.count(name)} tasks named '{name}': "
                    "give every task a name of its own"
                )
            if shown := strict.control(name):
                raise InputError(
                    f"stream '{self.name}' has a task with the control character {shown} in its "
                    "name, which a terminal would obey: rename it, or the file it is called by"
                )
        for task in self.tasks:
            for part, source in (("train", task.train), ("test", task.test)):
                if len(source) == 0:
                    raise InputError(
                        f"task '{task.name}' of stream '{self.name}' has no {part} example: "
                        "add data to it or leave the task out"
                    )
        object.__setattr__(self, "tasks", tuple(self.tasks))
        stages = tuple(self.stages) or tuple(task.train for task in self.tasks)
        object.__setattr__(self, "stages", stages)


class Concatenated:
    """Sources one behind the other; an example is found in O(log n) for n sources.

    Raises:
        InputError: no source, or sources whose examples differ in keys, shapes or types.
    """

    def __init__(self, sources: Sequence[Source]):
        # An empty source would contribute no index, and has no first example to compare.
        self._sources = tuple(source for source in sources if len(source))
        if not self._sources:
            raise InputError("nothing to concatenate: give at least one source with an example")
        self._ends = np.cumsum([len(source) for source in self._sources])
        self.by_epoch = any(map(changes, self._sources))
        layouts = [_layout(source[0]) for source in self._sources]
        for index, layout in enumerate(layouts):
            if layout != layouts[0]:
                raise InputError(
                    f"examples of source {index} are {layout}, those of source 0 are {layouts[0]}: "
                    "only sources with the same keys, shapes and types can be concatenated"
                )

    @property
    def sources(self) -> tuple[Source, ...]:
        """Those that hold an example."""
        return self._sources

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        which = int(np.searchsorted(self._ends, index, side="right"))
        return self._sources[which][int(index - self._start(which))]

    def take(self, indices: np.ndarray) -> Batch:
        """Gathers the examples `indices`, batch axis first, in the order asked for."""
        return self._take(indices, None)

    def take_in_epoch(self, indices: np.ndarray, epochs: np.ndarray) -> Batch:
        """As `take`, each example as its epoch has it."""
        return self._take(indices, epochs)

    def _take(self, indices: np.ndarray, epochs: np.ndarray | None) -> Batch:
        indices = np.asarray(indices)
        which = np.searchsorted(self._ends, indices, side="right")
        positions, parts = [], []
        for chosen in np.unique(which):
            position = np.flatnonzero(which == chosen)
            positions.append(position)
            own = None if epochs is None else epochs[position]
            parts.append(
                gather(self._sources[chosen], indices[position] - self._start(chosen), own)
            )
        order = np.argsort(np.concatenate(positions))
        return {key: np.concatenate([part[key] for part in parts])[order] for key in parts[0]}

    def arrays(self) -> Batch:
        """All examples, if every source can give all of its own."""
        return concatenate([held(source) for source in self._sources])

    def _start(self, which: int) -> int:
        return int(self._ends[which]) - len(self._sources[which])


def joint(stream: Stream) -> Stream:
    """Returns `stream` with one stage that holds the train parts of all tasks: the upper bound.

    stage_0 = train_0 + ... + train_{tasks - 1}.
    """
    everything = Concatenated([task.train for task in stream.tasks])
    return replace(stream, stages=(everything,))


def cumulative(stream: Stream) -> Stream:
    """Returns `stream` whose stage i holds the train parts of the tasks 0 to i.

    stage_i = train_0 + ... + train_i.
    """
    trains = [task.train for task in stream.tasks]
    stages = tuple(Concatenated(trains[: index + 1]) for index in range(len(trains)))
    return replace(stream, stages=stages)


class Walk:
    """Which examples make up batch i of an endless walk over a source.

    Every epoch holds each example once, in an order of its own (in the source's where it is
    ordered); what an epoch leaves over opens the next one.

    Args:
        length: examples of the source.
        batch_size: examples a batch.
        seed: of the shuffle.
        ordered: no shuffle.
    """

    def __init__(self, length: int, batch_size: int, seed: int, *, ordered: bool = False):
        self._length, self._batch_size, self._seed = length, batch_size, seed
        self._ordered = ordered
        # A batch touches two epochs at most. The cache belongs to the object, not to the class,
        # so that replicas with other seeds do not drive each other's orders out.
        self._order = functools.lru_cache(maxsize=2)(self._permutation)

    def __getitem__(self, index: int) -> np.ndarray:
        epoch, position = divmod(int(index) * self._batch_size, self._length)
        indices = self._order(epoch)[position : position + self._batch_size]
        missing = self._batch_size - len(indices)
        if missing:
            indices = np.concatenate([indices, self._order(epoch + 1)[:missing]])
        return indices

    def epochs(self, index: int) -> np.ndarray:
        """The epoch, from 0, of every example of batch `index`."""
        return (int(index) * self._batch_size + np.arange(self._batch_size)) // self._length

    def _permutation(self, epoch: int) -> np.ndarray:
        if self._ordered:
            return np.arange(self._length)
        return np.random.default_rng((self._seed, epoch)).permutation(self._length)


class _ShuffledBatches:
    """Batch i of the walk over a source.

    grain's own shuffle and batch visit the examples one by one, at 60 microseconds each; one
    permutation an epoch and one gather a batch give the same walk many times faster.
    """

    def __init__(
        self,
        source: Source,
        batch_size: int,
        seed: int,
        rows: np.ndarray | slice,
        by_epoch: bool,
    ):
        self._source, self._batch_size, self._rows = source, batch_size, rows
        self._by_epoch = by_epoch
        self._walk = walk(source, batch_size, seed)

    def __len__(self) -> int:
        return sys.maxsize // self._batch_size

    def __getitem__(self, index: int) -> Batch:
        epochs = self._walk.epochs(index)[self._rows] if self._by_epoch else None
        return gather(self._source, self._walk[index][self._rows], epochs)


def walk(source: Source, batch_size: int, seed: int) -> Walk:
    """The order in which `training_batches` meets the examples of a source."""
    return Walk(len(source), batch_size, seed, ordered=getattr(source, "ordered", False))


def training_batches(
    source: Source,
    batch_size: int,
    seed: int,
    *,
    name: str = "source",
    rows: np.ndarray | slice = EVERY,
    by_epoch: bool = True,
) -> grain.MapDataset:
    """Returns endless shuffled batches: `result[i]` is batch i, batch axis first.

    Every epoch holds each example once, in an order of its own; what an epoch leaves over opens
    the next epoch. Batch i depends on the arguments and on i only, so it is the same in any
    order of asking and in any process.

    Args:
        source: the examples, at least `batch_size` of them.
        batch_size: examples a batch.
        seed: of the shuffle, 0 or above.
        name: what an error calls the source, usually the task's name.
        rows: of every batch, where this process makes only a part of it; no other example is read.
        by_epoch: where a source's examples change from epoch to epoch, as augmented ones do, give
            those of the epoch; else they come as they are.

    Raises:
        InputError: the batch size is below 1, the seed is negative, or the source is shorter than
            one batch.
    """
    _check_batch_size(batch_size)
    if seed < 0:
        raise InputError(f"seed is {seed}: give a whole number of at least 0")
    if len(source) < batch_size:
        raise InputError(
            f"task '{name}' has {len(source)} train examples, fewer than one batch of "
            f"{batch_size}: use a smaller batch size, shorter blocks or more text"
        )
    return grain.MapDataset.source(_ShuffledBatches(source, batch_size, seed, rows, by_epoch))


def steps_per_epoch(source: Source, batch_size: int, epochs: float = 1) -> int:
    """Returns how many whole batches `epochs` passes over `source` hold; the remainder is dropped.

    Raises:
        InputError: the batch size is below 1.
    """
    _check_batch_size(batch_size)
    return int(len(source) * epochs) // batch_size


def prefetch(
    dataset: grain.MapDataset, start: int, stop: int, *, name: str = "source"
) -> Iterator[Batch]:
    """Yields `dataset[start]` to `dataset[stop - 1]` in order, built ahead by background threads.

    Args:
        dataset: what `training_batches` returned.
        start: the first batch, so the saved position of a resumed run.
        stop: one behind the last batch.
        name: what an error calls the source, usually the task's name.

    Raises:
        InputError: a thread could not build a batch; the message says which, of what and why.
    """
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
    batches = iter(dataset.slice(slice(start, stop)).to_iter_dataset(options))
    for index in range(start, stop):
        try:
            batch = next(batches)
        except (Exception, SystemExit) as error:  # of a thread, where an exit would be no exit
            last = traceback.extract_tb(error.__traceback__)[-1]
            raise InputError(
                f"batch {index} of '{name}' could not be built: {type(error).__name__}: {error} "
                f"(in {last.name}, {last.filename}, line {last.lineno}). Mend the data or its "
                "source; the same command goes on from the last checkpoint."
            ) from error
        yield batch


def evaluation_batches(
    source: Source, batch_size: int, *, rows: np.ndarray | slice = EVERY
) -> Iterator[Batch]:
    """Yields all examples in order, in batches of one shape, with a `mask` that counts exactly.

    The last batch is filled by its last example, with `mask` 0. Examples without a `mask` get
    ones (float32) in the shape of their `targets`.

    Args:
        source: the examples.
        batch_size: examples a batch.
        rows: of every batch, where this process makes only a part of it; no other example is read.

    Raises:
        InputError: the batch size is below 1, or the examples have neither `mask` nor `targets`.
    """
    _check_batch_size(batch_size)
    for first in range(0, len(source), batch_size):
        indices = np.arange(first, first + batch_size)[rows]
        batch = gather(source, np.minimum(indices, len(source) - 1))
        if "mask" not in batch and "targets" not in batch:
            raise InputError(
                f"examples have the keys {sorted(batch)}, neither 'mask' nor 'targets': "
                "give them targets, so that it is known what an evaluation counts"
            )
        mask = batch["mask"] if "mask" in batch else np.ones(batch["targets"].shape, np.float32)
        real = (indices < len(source)).reshape((-1,) + (1,) * (mask.ndim - 1))
        yield {**batch, "mask": np.where(real, mask, np.zeros_like(mask))}


def stack(batches: Sequence[Batch]) -> Batch:
    """Returns one dict of arrays `[len(batches), batch, ...]`.

    Raises:
        InputError: no batch, or batches that differ in keys, shapes or types.
    """
    if not batches:
        raise InputError("no batch to stack: give at least one")
    for index, batch in enumerate(batches):
        if _layout(batch) != _layout(batches[0]):
            raise InputError(
                f"batch {index} is {_layout(batch)}, batch 0 is {_layout(batches[0])}: "
                "only batches with the same keys, shapes and types can be stacked"
            )
    return {key: np.stack([batch[key] for batch in batches]) for key in batches[0]}


def held(source: Source) -> Batch:
    """All examples of a source, batch axis first.

    Raises:
        InputError: the source cannot give them.
    """
    check_unchanging("Experiment(device_data=True)", source, "use device_data=False")
    arrays = getattr(source, "arrays", None)
    if arrays is None:
        raise InputError(
            f"a {type(source).__name__} cannot be held on the device, as it has no arrays(): use "
            "Experiment(device_data=False), or jcl.data.Arrays"
        )
    return arrays()


def concatenate(batches: Sequence[Batch]) -> Batch:
    """Returns one batch of the examples of all."""
    return {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}


def gather(source: Source, indices: np.ndarray, epochs: np.ndarray | None = None) -> Batch:
    """Returns the examples `indices` of a source, batch axis first, in the order asked for, each as
    its epoch has it where epochs are given."""
    in_epoch = getattr(source, "take_in_epoch", None)
    if epochs is not None and in_epoch and changes(source):
        return in_epoch(indices, epochs)
    take = getattr(source, "take", None)
    return take(indices) if take else stack([source[int(index)] for index in indices])


def changes(source: Source) -> bool:
    """Whether the examples of a source change from epoch to epoch."""
    return getattr(source, "by_epoch", False)


def check_unchanging(call: str, source: Source, remedy: str) -> None:
    """Passes a source whose examples are the same in every epoch, for who reads them once.

    Raises:
        InputError: they change.
    """
    if changes(source):
        raise InputError(
            f"{call} reads every example once, and those of this source are augmented, others in "
            f"every epoch: {remedy}"
        )


def _layout(example: Batch) -> dict[str, str]:
    return {key: f"{leaf.dtype}{list(leaf.shape)}" for key, leaf in sorted(example.items())}


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}: give a whole number of at least 1")
