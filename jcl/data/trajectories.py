"""Trajectories: classes that come one drawing after another, and what must not be forgotten."""

import hashlib
from collections.abc import Sequence

import numpy as np

from jcl import checks
from jcl.data.arrays import Arrays
from jcl.data.draws import distinct, uniform
from jcl.data.episodes import Episodes, class_numbers
from jcl.data.streams import Batch, Source, Stream, Task, check_unchanging, gather
from jcl.errors import InputError


class Trajectories(Episodes):
    """Episodes for learning to learn continually: one example after another, without forgetting.

    The support is a trajectory, `shots` examples of each of a few classes, the classes one behind
    the other. The queries are `queries` further examples of each of them, and then `sample`
    examples of the other classes: each of a class drawn anew, so that an example may come twice.
    Unlike in `Episodes` a target is the class's place among all the classes, from 0, so that one
    head answers for all of them.

    Javed and White 2019 (OML), where three classes have five examples each, and Beaulieu et al.
    2020 (ANML), where one class has 20.

    Args:
        source: labelled examples; their `targets` are whole numbers, one for each.
        ways: classes of a trajectory.
        shots: examples of a class in it.
        queries: further examples of each of its classes.
        sample: examples of other classes.
        number: how many trajectories.
        seed: of the draws; trajectory i is a function of the arguments and of i alone.
        classes: the targets to draw classes from; by default all there are.

    Raises:
        InputError: as in `Episodes`, or there is no other class.

    >>> import numpy as np
    >>> from jcl.data import Arrays, Trajectories
    >>> source = Arrays({"inputs": np.arange(60), "targets": np.arange(60) % 6})
    >>> made = Trajectories(source, ways=1, shots=4, queries=2, sample=3, number=100, seed=0)
    >>> made[7]["support_targets"].tolist(), made[7]["targets"].tolist()
    ([4, 4, 4, 4], [4, 4, 3, 5, 3])
    """

    def __init__(
        self,
        source: Source,
        ways: int,
        shots: int,
        queries: int,
        sample: int,
        *,
        number: int,
        seed: int,
        classes: Sequence[int] | np.ndarray | None = None,
    ):
        super().__init__(source, ways, shots, queries, number=number, seed=seed, classes=classes)
        self._sample = checks.whole("Trajectories", "sample", sample)
        if len(self._classes) == self._ways:
            raise InputError(
                f"Trajectories(ways={ways}): there are {ways} classes, and none is left to sample "
                "from: ask for fewer ways or give more classes"
            )

    @property
    def classes(self) -> int:
        """How many classes there are, which the model's head must have."""
        return len(self._classes)

    def hash(self) -> str:
        """SHA-256 (hex) of the source's content and of the arguments."""
        return hashlib.sha256(f"{super().hash()} {self._sample}".encode()).hexdigest()

    def _draw(self, indices: np.ndarray) -> Batch:
        batch = super()._draw(indices)
        # A row of numbers begins as that of the episode does, and goes on behind it.
        drawn = self._ways * (1 + self._queries + self._shots)
        numbers = uniform(self._seed, indices, drawn + 2 * self._sample)
        which = distinct(numbers[:, : self._ways], self.classes)
        others = np.floor(
            numbers[:, drawn : drawn + self._sample] * (self.classes - self._ways)
        ).astype(np.int64)
        for chosen in np.sort(which, axis=1).T:
            others += others >= chosen[:, None]
        offsets = np.floor(numbers[:, drawn + self._sample :] * self._sizes[others])
        rows = self._order[self._starts[others] + offsets.astype(np.int64)]
        for key in ("targets", "support_targets"):
            batch[key] = np.take_along_axis(which, batch[key], axis=1).astype(np.int32)
        sampled = {key: leaf[rows] for key, leaf in self._leaves.items()}
        sampled["targets"] = others.astype(np.int32)
        for key, leaf in sampled.items():
            batch[key] = np.concatenate([batch[key], leaf], axis=1)
        return batch


def class_sequence(
    source: Source, classes: Sequence[int] | np.ndarray, *, task: int, learned: int
) -> Stream:
    """A class-incremental stream of examples in a fixed order: one class after another.

    classes of task i = classes[i * task : (i + 1) * task].

    Its train part is the first `learned` examples of the first of them, in the source's order, then
    those of the second, and so on, and is met in this order; its test part all the others. A target
    is the class's place among those given.

    As OML and ANML are tested, with 15 drawings of a character to learn and five to answer: each
    training example is met once (`Experiment(batch_size=1, epochs=1)`).

    Args:
        source: labelled examples, their `targets` whole numbers.
        classes: the targets, in the order in which they come.
        task: classes of a task.
        learned: examples of a class to learn.

    Raises:
        InputError: a class of too few examples, or one that is given twice.

    >>> import numpy as np
    >>> from jcl.data import Arrays, class_sequence
    >>> source = Arrays({"inputs": np.arange(12), "targets": np.arange(12) % 4})
    >>> stream = class_sequence(source, [2, 0, 3], task=2, learned=2)
    >>> [task.train.arrays()["inputs"].tolist() for task in stream.tasks]
    [[2, 6, 0, 4], [3, 7]]
    >>> stream.tasks[0].test.arrays()["targets"].tolist()
    [0, 1]
    """
    task = checks.whole("class_sequence", "task", task)
    learned = checks.whole("class_sequence", "learned", learned)
    check_unchanging("class_sequence", source, "give it the stream that is not augmented")
    leaves = gather(source, np.arange(len(source)))
    labels = class_numbers(leaves)
    if len(np.unique(classes)) < len(classes):
        raise InputError(f"class_sequence(classes={classes!r}): name every class once")
    rows = [np.flatnonzero(labels == label) for label in classes]
    for label, own in zip(classes, rows, strict=True):
        if len(own) <= learned:
            raise InputError(
                f"class_sequence(learned={learned}): class {label} has {len(own)} examples, and "
                "none is left to test: learn fewer, or leave it out of the classes"
            )

    def part(places: range, chosen: slice) -> Arrays:
        own = [rows[place][chosen] for place in places]
        found = {key: leaf[np.concatenate(own)] for key, leaf in leaves.items()}
        found["targets"] = np.repeat(np.array(places, np.int32), [len(each) for each in own])
        return Arrays(found, ordered=True)

    tasks = []
    for first in range(0, len(rows), task):
        places = range(first, min(first + task, len(rows)))
        train, test = part(places, slice(learned)), part(places, slice(learned, None))
        name = f"{first + 1} to {places[-1] + 1}"
        content = hashlib.sha256(f"{train.hash()} {test.hash()}".encode()).hexdigest()
        tasks.append(Task(name, train, test, content))
    return Stream("classes in turn", tuple(tasks))
