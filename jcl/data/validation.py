"""A stream whose tests are held out of its training parts, so that nothing is chosen by a test."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from jcl.data.arrays import Chosen
from jcl.data.streams import Batch, Concatenated, Source, Stream, Task, changes, gather
from jcl.errors import InputError

_ROWS = 1000  # of the examples whose hash is taken, at a time
_HASHES: dict[tuple[str, str, bytes], str] = {}


class Dressed:
    """A source whose examples also carry what others of their task share.

    Args:
        source: the examples.
        constants: such as {"label_mask": [classes]}, without the batch axis.
    """

    def __init__(self, source: Source, constants: Mapping[str, np.ndarray]):
        self._source, self._constants = source, dict(constants)
        self.ordered, self.by_epoch = getattr(source, "ordered", False), changes(source)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Batch:
        return {**self._source[index], **self._constants}

    def take(self, indices: np.ndarray) -> Batch:
        """Gathers the examples `indices`, batch axis first, in the order asked for."""
        batch = gather(self._source, np.asarray(indices))
        constants = {
            key: np.broadcast_to(value, (len(indices), *np.shape(value)))
            for key, value in self._constants.items()
        }
        return {**batch, **constants}


def held_out(stream: Stream, share: float, *, seed: int = 0, tasks: int | None = None) -> Stream:
    """Returns `stream` whose tests are examples held out of its training parts.

    test_t = share of train_t, train_t = the rest.

    The stream's own tests are never asked for an example. Of them is known alone what all of a task
    share, such as the mask of its labels. The hash of a task is that of the examples held out.

    Args:
        stream: whose stages are the train parts of its tasks, one or several in a stage.
        share: of every train part, in (0, 1).
        seed: of the choice.
        tasks: keep the first ones alone; then every stage is one task.

    Raises:
        InputError: a stage holds something else, or a task has too few examples to hold one out, or
            there are not so many tasks.
    """
    if not 0 < share < 1:
        raise InputError(f"held_out(share={share}): a share in (0, 1)")
    plain = stream.stages == tuple(task.train for task in stream.tasks)
    if tasks is not None and not (1 <= tasks <= len(stream.tasks) and plain):
        have = f"{len(stream.tasks)} tasks" if plain else "stages that are not its tasks"
        raise InputError(
            f"stream '{stream.name}' has {have}, so that its first {tasks} cannot be learned "
            "alone: name fewer, or choose over the whole stream"
        )
    rest: dict[int, Source] = {}
    made = []
    for number, task in enumerate(stream.tasks[:tasks]):
        length = len(task.train)
        held = round(share * length)
        if not 1 <= held < length:
            raise InputError(
                f"task '{task.name}' has {length} train examples, too few to hold {share:g} of "
                "them out: give it more"
            )
        order = np.random.default_rng((seed, number)).permutation(length)
        ordered = getattr(task.train, "ordered", False)
        kept, out = np.sort(order[held:]), np.sort(order[:held])
        train = rest[id(task.train)] = Chosen(task.train, kept, ordered=ordered)
        shared = getattr(task.test, "constants", {})
        test = Chosen(task.train, out)
        test = Dressed(test, shared) if shared else test
        made.append(Task(task.name, train, test, _hash(task, out)))
    stages = () if plain else tuple(_without(stream, stage, rest) for stage in stream.stages)
    return replace(stream, tasks=tuple(made), stages=stages)


def _without(stream: Stream, stage: Source, rest: Mapping[int, Source]) -> Source:
    """A stage without the examples that are held out."""
    if id(stage) in rest:
        return rest[id(stage)]
    parts = stage.sources if isinstance(stage, Concatenated) else ()
    if not parts or any(id(part) not in rest for part in parts):
        raise InputError(
            f"a stage of stream '{stream.name}' is made of more than the train parts of its tasks, "
            "so that nothing can be held out of it: choose on the stream before blurry or fuzzy"
        )
    return Concatenated([rest[id(part)] for part in parts])


def _hash(task: Task, held: np.ndarray) -> str:
    """SHA-256 (hex) of the examples held out and of their places; of the same task it is taken
    once."""
    key = (task.name, task.hash, held.tobytes())
    if key not in _HASHES:
        digest = hashlib.sha256(f"{task.name} {len(task.train)} ".encode() + key[-1])
        for first in range(0, len(held), _ROWS):
            batch = gather(task.train, held[first : first + _ROWS])
            for name, leaf in sorted(batch.items()):
                digest.update(f"{name} {leaf.dtype}{leaf.shape}".encode())
                digest.update(np.ascontiguousarray(leaf).data)
        _HASHES[key] = digest.hexdigest()
    return _HASHES[key]
