"""Few-shot episodes of a labelled source, and classes divided for meta-learning."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jcl import checks
from jcl.data.arrays import Arrays
from jcl.data.draws import Drawn, distinct, uniform
from jcl.data.streams import Batch, Source, Stream, check_unchanging, gather
from jcl.errors import InputError

_RENUMBERED = ("task", "label_mask")


class Episodes(Drawn):
    """Episodes of some ways and shots: each example is a small classification task of its own.

    An episode has ways * queries examples to predict, `inputs` and `targets`, and ways * shots to
    adapt to, `support_inputs` and `support_targets`. Further keys of the source's examples, such as
    attention_mask, do as `inputs` does. Targets are int32, 0 to ways - 1, in the order in which the
    classes were drawn, and stand in this order: the shots of a class one behind the other.

    Episode i is a function of the arguments and of i alone. With more shots it is the same episode
    with examples added to its support: same classes, same queries. No example of the source is
    drawn twice for an episode.

    Args:
        source: labelled examples; their `targets` are whole numbers, one for each.
        ways: classes of an episode.
        shots: examples of a class to adapt to.
        queries: examples of a class to predict.
        number: how many episodes.
        seed: of the draws.
        classes: the targets to draw classes from, such as `split_classes(...).train`; by default
            all there are.
        padded_shots: pad the support to so many examples a class, so that episodes of fewer shots
            have one shape. The rows that fill it repeat the first of their class, and
            `support_mask` [ways * padded_shots] (float32) is 0 at them.

    Raises:
        InputError: too few classes, or too few examples of one; a class that the source lacks; a
            source whose targets are no class numbers, or which tells the task (`label_mask` and
            `task` speak of the classes before they are renumbered).

    >>> import numpy as np
    >>> from jcl.data import Arrays, Episodes
    >>> source = Arrays({"inputs": np.arange(60), "targets": np.arange(60) % 6})
    >>> episodes = Episodes(source, ways=2, shots=1, queries=3, number=100, seed=0)
    >>> episode = episodes[7]
    >>> episode["targets"].tolist(), episode["support_targets"].tolist()
    ([0, 0, 0, 1, 1, 1], [0, 1])
    >>> (episode["support_inputs"] % 6).tolist() == (episode["inputs"][::3] % 6).tolist()
    True
    """

    def __init__(
        self,
        source: Source,
        ways: int,
        shots: int,
        queries: int,
        *,
        number: int,
        seed: int,
        classes: Sequence[int] | np.ndarray | None = None,
        padded_shots: int | None = None,
    ):
        super().__init__("Episodes", number, seed)
        self._ways = checks.whole("Episodes", "ways", ways)
        self._shots = checks.whole("Episodes", "shots", shots)
        self._queries = checks.whole("Episodes", "queries", queries)
        self._slots, self._mask = slots("Episodes", self._shots, padded_shots)
        check_unchanging("Episodes", source, "give it the stream that is not augmented")
        self._leaves = _examples(source)
        targets = class_numbers(self._leaves)
        self._classes = _classes(classes, targets, self._ways)
        order = np.argsort(targets, kind="stable")
        self._order = order
        self._starts = np.searchsorted(targets[order], self._classes, side="left")
        ends = np.searchsorted(targets[order], self._classes, side="right")
        self._sizes = ends - self._starts
        needed = self._shots + self._queries
        for label, size in zip(self._classes, self._sizes, strict=True):
            if size < needed:
                raise InputError(
                    f"Episodes: class {label} has {size} examples, fewer than {self._shots} shots "
                    f"and {self._queries} queries: ask for fewer, or leave it out of classes="
                )

    def hash(self) -> str:
        """SHA-256 (hex) of the source's content and of the arguments."""
        arguments = (self._ways, self._shots, self._queries, len(self), self._seed, self._slots)
        digest = hashlib.sha256(Arrays(dict(sorted(self._leaves.items()))).hash().encode())
        for part in (*arguments, self._classes):
            digest.update(f"{np.asarray(part).tolist()};".encode())
        return digest.hexdigest()

    def _draw(self, indices: np.ndarray) -> Batch:
        ways, queries = self._ways, self._queries
        number, each = len(indices), queries + self._shots
        numbers = uniform(self._seed, indices, ways * (1 + each))
        which = distinct(numbers[:, :ways], len(self._classes))
        # The queries are drawn first, and the shots one after the other, so that an episode of
        # more shots holds the one of fewer.
        by_class = numbers[:, ways:].reshape(number, each, ways).swapaxes(1, 2)
        rows = self._starts[which][..., None] + distinct(by_class, self._sizes[which])
        rows = self._order[rows]
        support = rows[..., queries + self._slots].reshape(number, -1)
        batch = self._part(rows[..., :queries].reshape(number, -1), queries)
        for key, leaf in self._part(support, len(self._slots)).items():
            batch[f"support_{key}"] = leaf
        if self._mask is not None:
            real = np.tile(self._mask, (number, ways))
            batch["support_mask"] = real * batch.get("support_mask", np.float32(1))
        return batch

    def _part(self, rows: np.ndarray, each: int) -> Batch:
        labels = np.repeat(np.arange(self._ways, dtype=np.int32), each)
        leaves = {key: leaf[rows] for key, leaf in self._leaves.items() if key != "targets"}
        return {**leaves, "targets": np.tile(labels, (len(rows), 1))}


class ClassSplit(NamedTuple):
    """Class numbers in rising order; none stands in two parts.

    Attributes:
        train: of meta-training.
        validation: of choosing settings.
        test: of meta-testing.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def split_classes(
    groups: int | Sequence[str],
    *,
    test: int | Sequence[str],
    validation: int | Sequence[str] = 0,
    seed: int = 0,
) -> ClassSplit:
    """Divides classes into meta-train, meta-validation and meta-test classes that never overlap.

    Args:
        groups: the number of classes, or the group of each class by its number, such as the
            alphabets of characters or the domains of intents; a group is never divided.
        test: how many groups (of a number of classes: how many classes) are drawn for the test,
            or which groups.
        validation: as test.
        seed: of the draw.

    Raises:
        InputError: an unknown group, one for both parts, or no class left for training.

    >>> from jcl.data import split_classes
    >>> split = split_classes(["food", "food", "money", "travel"], test=["money"], validation=0)
    >>> split.train.tolist(), split.test.tolist()
    ([0, 1, 3], [2])
    >>> [len(part) for part in split_classes(242, validation=42, test=60)]
    [140, 42, 60]
    """
    seed = checks.whole("split_classes", "seed", seed, least=0)
    if isinstance(groups, int | np.integer):
        of = np.arange(checks.whole("split_classes", "groups", groups))
        names = [str(each) for each in of]
    elif isinstance(groups, str):
        raise InputError(
            f"split_classes({groups!r}): a number of classes, or a list of the group of each"
        )
    else:
        names = list(dict.fromkeys(groups))
        of = np.array([names.index(name) for name in groups], int)
    asked = {"validation": validation, "test": test}
    part = np.full(len(names), "train", dtype="U10")
    for field, value in asked.items():
        for name in [] if isinstance(value, int | np.integer) else _names(field, value, names):
            place = names.index(name)
            if part[place] != "train":
                raise InputError(
                    f"split_classes: group '{name}' stands in validation and in test, or twice: "
                    "name it once"
                )
            part[place] = field
    free = np.argsort(uniform(seed, np.zeros(1, int), len(names))[0], kind="stable")
    free = [place for place in free if part[place] == "train"]
    for field, value in asked.items():
        if isinstance(value, int | np.integer):
            count = checks.whole("split_classes", field, value, least=0)
            part[free[:count]] = field
            free = free[count:]
    if not np.any(part == "train"):
        raise InputError(
            f"split_classes(test={test!r}, validation={validation!r}) of {len(names)} groups "
            "leaves no class for training: ask for fewer"
        )
    return ClassSplit(*(np.flatnonzero(part[of] == field) for field in ClassSplit._fields))


def class_tasks(stream: Stream) -> tuple[str, ...]:
    """Returns the name of the task that learns each class, by class number, for `split_classes`.

    Episodes of a whole stream, here of texts, are drawn from the train parts of all its tasks:

    >>> from jcl.data import ByteTokenizer, Episodes, class_tasks, intents, joint, split_classes
    >>> stream = intents(tokenizer=ByteTokenizer(), tasks=10)
    >>> split = split_classes(class_tasks(stream), test=3, validation=2)
    >>> (texts,) = joint(stream).stages
    >>> episodes = Episodes(texts, 5, 1, 4, number=1000, seed=0, classes=split.train)
    >>> sorted(episodes[0])  # doctest: +NORMALIZE_WHITESPACE
    ['attention_mask', 'inputs', 'support_attention_mask', 'support_inputs', 'support_targets',
     'targets']
    >>> len(split.train), episodes[0]["support_inputs"].shape == (5, stream.length)
    (15, True)

    Raises:
        InputError: two tasks learn the same class number, or a number between has no example.
    """
    home: dict[int, str] = {}
    for task in stream.tasks:
        targets = class_numbers(gather(task.train, np.arange(len(task.train))))
        for label in np.unique(targets).tolist():
            if label in home:
                raise InputError(
                    f"class_tasks: the tasks '{home[label]}' and '{task.name}' of stream "
                    f"'{stream.name}' share class {label}: use its scenario \"class\", where every "
                    "class has a number of its own"
                )
            home[label] = task.name
    for label in range(len(home)):
        if label not in home:
            raise InputError(
                f"class_tasks: stream '{stream.name}' has no train example of class {label}: "
                "number its classes from 0 without a gap"
            )
    return tuple(home[label] for label in range(len(home)))


def slots(call: str, shots: int, padded_shots: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """Which shot stands at each place of a padded support, and a mask that is 0 at repetitions.

    Returns:
        [padded_shots] int and [padded_shots] float32; without padding [shots] and None.

    Raises:
        InputError: fewer places than shots.
    """
    if padded_shots is None:
        return np.arange(shots), None
    places = np.arange(checks.whole(call, "padded_shots", padded_shots))
    if len(places) < shots:
        raise InputError(f"{call}(padded_shots={padded_shots}): at least the {shots} shots")
    real = places < shots
    return np.where(real, places, 0), real.astype(np.float32)


def class_numbers(leaves: Batch) -> np.ndarray:
    """The targets of labelled examples.

    Raises:
        InputError: they are no class numbers, or the examples tell the task.
    """
    targets = leaves.get("targets")
    if targets is None or targets.ndim != 1 or not np.issubdtype(targets.dtype, np.integer):
        found = "none" if targets is None else f"{targets.dtype}{list(targets.shape[1:])}"
        raise InputError(
            f"Episodes: an example's targets must be one whole number, its class; found: {found}"
        )
    for key in _RENUMBERED:
        if key in leaves:
            raise InputError(
                f"Episodes: the examples hold '{key}', which speaks of the classes before an "
                'episode renumbers them: use the scenario "class"'
            )
    return targets


def _examples(source: Any) -> Batch:
    """All examples of a source.

    Raises:
        InputError: it is none.
    """
    some = hasattr(source, "__len__") and len(source) and not isinstance(source, Mapping)
    first = source[0] if some else None
    if not isinstance(first, Mapping) or not all(hasattr(leaf, "dtype") for leaf in first.values()):
        raise InputError(
            f"Episodes: this {type(source).__name__} is no source of examples, each a dict of "
            'arrays: give one, such as jcl.data.Arrays({"inputs": ..., "targets": ...})'
        )
    return gather(source, np.arange(len(source)))


def _classes(classes: Any, targets: np.ndarray, ways: int) -> np.ndarray:
    present = np.unique(targets)
    chosen = present if classes is None else np.asarray(classes)
    if chosen.ndim != 1 or (chosen.size and not np.issubdtype(chosen.dtype, np.integer)):
        raise InputError(f"Episodes(classes={classes!r}): a list of class numbers")
    for label in chosen[~np.isin(chosen, present)][:1]:
        raise InputError(f"Episodes: the source has no example of class {label}, one of classes=")
    if len(np.unique(chosen)) < len(chosen):
        raise InputError(f"Episodes(classes={classes!r}): name every class once")
    if len(chosen) < ways:
        raise InputError(
            f"Episodes(ways={ways}): there are {len(chosen)} classes to draw from; ask for fewer "
            "ways or give more classes"
        )
    return chosen


def _names(field: str, value: Any, names: list[str]) -> list[str]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise InputError(f"split_classes({field}={value!r}): a number, or a list of groups")
    for name in value:
        if name not in names:
            raise InputError(
                f"split_classes({field}=...): there is no group '{name}'; there are "
                f"{', '.join(names[:20])}"
            )
    return list(value)
