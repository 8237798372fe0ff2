"""Labelled images, and the streams that the literature makes of them."""

import os
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from jcl import checks, strict
from jcl.data.arrays import Arrays
from jcl.data.prepared import prepared
from jcl.data.streams import Stream, Task
from jcl.errors import InputError


class Images(NamedTuple):
    """Labelled images, such as MNIST's.

    Attributes:
        train_inputs: [examples, height, width], uint8.
        train_targets: [examples], int32, from 0.
        test_inputs: as train_inputs.
        test_targets: as train_targets.
    """

    train_inputs: np.ndarray
    train_targets: np.ndarray
    test_inputs: np.ndarray
    test_targets: np.ndarray


def mnist(path: str | os.PathLike | None = None) -> Images:
    """MNIST (LeCun et al. 1998) in its official order and split.

    Args:
        path: of an npz file with the arrays x_train, y_train, x_test and y_test, as Keras has it;
            by default mnist/mnist.npz in the folder that the environment variable JCL_DATA names,
            or else tensorflow-datasets' mnist, where that has been prepared with the file format
            array_record.

    Raises:
        InputError: it is found nowhere, or the file lacks an array.
    """
    folder = os.environ.get("JCL_DATA")
    if path is None and folder:
        path = Path(folder) / "mnist" / "mnist.npz"
    if path is None:
        return _prepared("mnist")
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"There is no {path}: give jcl.data.mnist the path of Keras's mnist.npz, or set "
            "JCL_DATA to the folder that holds mnist/mnist.npz."
        )
    try:
        held = strict.read_npz(path, ("x_train", "y_train", "x_test", "y_test"))
        arrays = [*held.values()]
        for inputs, targets in (arrays[:2], arrays[2:]):
            _check(inputs, targets)
        if arrays[0].shape[1:] != arrays[2].shape[1:]:
            raise ValueError("the images of train and test differ in size")
    except (ValueError, OSError) as error:
        raise InputError(
            f"{path} is no npz file with x_train, y_train, x_test and y_test ({error})."
        ) from error
    return Images(arrays[0], arrays[1].astype(np.int32), arrays[2], arrays[3].astype(np.int32))


def _check(inputs: np.ndarray, targets: np.ndarray) -> None:
    """Passes images with their labels.

    Raises:
        ValueError: they are none.
    """
    if inputs.dtype != np.uint8 or inputs.ndim != 3 or not inputs.size:
        raise ValueError(f"images are {inputs.dtype}{[*inputs.shape]}, not uint8[examples, h, w]")
    if targets.dtype.kind not in "iu" or targets.shape != inputs.shape[:1]:
        raise ValueError(f"labels are {targets.dtype}{[*targets.shape]}, one whole number an image")
    # Arrays of as many entries as there are classes are made for every task.
    if targets.min() < 0 or targets.max() >= 2**16:
        raise ValueError(f"labels go from {targets.min()} to {targets.max()}")


def permuted(images: Images, tasks: int, *, seed: int = 0) -> Stream:
    """A task for each of `tasks` random permutations of the pixels (Goodfellow et al. 2013).

    image_t[i] = image[permutation_t[i]].

    Args:
        images: whose pixels move.
        tasks: their number; the first is permuted too.
        seed: of the permutations.
    """
    tasks, seed = _tasks_and_seed("permuted", tasks, seed)
    pixels = images.train_inputs[0].size
    orders = [np.random.default_rng((seed, task)).permutation(pixels) for task in range(tasks)]
    return _moved("permuted", images, [f"permutation {task}" for task in range(tasks)], orders)


def rotated(images: Images, tasks: int, *, seed: int = 0, degrees: float = 180.0) -> Stream:
    """A task for each of `tasks` angles, uniform in [0, degrees), counterclockwise.

    image_t[p] = image[the pixel nearest to p turned back by angle_t], 0 outside.

    Each pixel of the result is the nearest of the original, zero outside it, as Pillow rotates.

    Args:
        images: what is rotated.
        tasks: their number.
        seed: of the angles.
        degrees: the limit.
    """
    tasks, seed = _tasks_and_seed("rotated", tasks, seed)
    checks.number("rotated", "degrees", degrees, "(0, 360]")
    angles = np.random.default_rng(seed).uniform(0, degrees, tasks)
    size = images.train_inputs.shape[1:]
    names = [f"rotation {task}" for task in range(tasks)]  # the same for every seed
    return _moved("rotated", images, names, [rotation(size, angle) for angle in angles])


def split(
    images: Images,
    scenario: Literal["task", "domain", "class"],
    *,
    classes_per_task: int = 2,
    masked: Literal["both", "test"] = "both",
) -> Stream:
    """A task for each group of consecutive classes, in one of the three scenarios.

    train_t = the examples whose class // classes_per_task = t.

    The scenarios are those of van de Ven and Tolias 2019. class: targets are the classes
    themselves and nothing tells the task. domain: targets are the positions in the group, shared by
    all tasks. task: as class, and every example has its `task` and a `label_mask` of its task's
    classes.

    Args:
        images: with at least two groups of classes.
        scenario: which.
        classes_per_task: size of a group; it divides the number of classes.
        masked: whether the task scenario masks labels in training as well, or in the test only.

    Raises:
        InputError: an unknown scenario, or groups that do not come out even.
    """
    classes = int(images.train_targets.max()) + 1
    checks.one_of("split", "scenario", scenario, ("task", "domain", "class"))
    checks.one_of("split", "masked", masked, ("both", "test"))
    classes_per_task = checks.whole("split", "classes_per_task", classes_per_task)
    if classes_per_task >= classes or classes % classes_per_task:
        raise InputError(
            f"split(classes_per_task={classes_per_task}): {classes} classes do not fall into two or"
            " more groups of that size."
        )

    def part(inputs, targets, task, hints):
        first = task * classes_per_task
        members = (targets >= first) & (targets < first + classes_per_task)
        own = targets[members] - (first if scenario == "domain" else 0)
        constants = {}
        if hints:
            mask = (np.arange(classes) // classes_per_task) == task
            constants = {"task": np.int32(task), "label_mask": mask}
        return Arrays({"inputs": inputs[members], "targets": own}, constants=constants)

    tasks = []
    for task in range(classes // classes_per_task):
        train = part(images[0], images[1], task, scenario == "task" and masked == "both")
        test = part(images[2], images[3], task, scenario == "task")
        digits = range(task * classes_per_task, (task + 1) * classes_per_task)
        name = "classes " + " ".join(str(digit) for digit in digits)
        tasks.append(Task(name, train, test, train.hash() + test.hash()))
    return Stream(f"split, {scenario}", tuple(tasks))


def rotation(size: tuple[int, ...], degrees: float) -> np.ndarray:
    """Where each pixel of a rotated image comes from: [height * width], -1 outside.

    Args:
        size: (height, width).
        degrees: counterclockwise.
    """
    height, width = size
    angle = np.deg2rad(degrees)
    rows, columns = np.mgrid[:height, :width]
    x, y = columns + 0.5 - width / 2, rows + 0.5 - height / 2
    column = np.floor(np.cos(angle) * x - np.sin(angle) * y + width / 2).astype(int)
    row = np.floor(np.sin(angle) * x + np.cos(angle) * y + height / 2).astype(int)
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return np.where(inside, row * width + column, -1).ravel()


def mnist_360(
    images: Images, *, seed: int = 0, rounds: int = 3, replacement: bool = False
) -> Stream:
    """A stream of slowly rotating digits without boundaries (Buzzega et al. 2020, section 4).

    angle(k of the n images of a digit) = (digit - 1) * 60 degrees + 360 degrees * k / n.

    Two consecutive digits of 0 to 8 are mixed at a time: 0 and 1, 1 and 2, ..., 8 and 0; each of
    the nine pairs is visited `rounds` times. A digit is so met in 2 * rounds episodes, among which
    its images are divided; over all of them it turns once around, from (digit - 1) * 60 degrees.
    The one test task holds every test image of the digits 0 to 8, which turn once around too.
    Digit 9 is left out, since a 6 turns into it. One pass, in order.

    Args:
        images: MNIST.
        seed: of the order of the images.
        rounds: visits of each pair.
        replacement: draw an episode's images with replacement from its share, as the authors'
            released code does, so that about a third of them is never met.
    """
    checks.flag("mnist_360", "replacement", replacement)
    digits, rounds = 9, checks.whole("mnist_360", "rounds", rounds)
    generator = np.random.default_rng(checks.whole("mnist_360", "seed", seed, least=0))
    episodes = {}  # (digit, episode) -> inputs
    for digit in range(digits):
        members = generator.permutation(np.flatnonzero(images.train_targets == digit))
        if replacement:
            shares = np.array_split(members, 2 * rounds)
            members = np.concatenate([generator.choice(share, len(share)) for share in shares])
        start = (digit - 1) * 60.0
        angles = start + 360.0 * np.arange(len(members)) / len(members)
        turned = _turn(images.train_inputs[members], angles)
        for episode, inputs in enumerate(np.array_split(turned, 2 * rounds)):
            episodes[digit, episode] = inputs
    inputs, targets, met = [], [], [0] * digits
    for _ in range(rounds):
        for first in range(digits):
            pair = []
            for digit in (first, (first + 1) % digits):
                pair.append(episodes[digit, met[digit]])
                met[digit] += 1
            times = np.concatenate([np.arange(len(each)) / len(each) for each in pair])
            order = np.argsort(times, kind="stable")  # both pass at an even pace
            inputs.append(np.concatenate(pair)[order])
            labels = np.repeat([first, (first + 1) % digits], [len(each) for each in pair])
            targets.append(labels[order].astype(np.int32))
    train = Arrays(
        {"inputs": np.concatenate(inputs), "targets": np.concatenate(targets)}, ordered=True
    )
    tests, labels = [], []
    for digit in range(digits):
        members = np.flatnonzero(images.test_targets == digit)
        tests.append(
            _turn(images.test_inputs[members], 360.0 * np.arange(len(members)) / len(members))
        )
        labels.append(np.full(len(members), digit, np.int32))
    test = Arrays({"inputs": np.concatenate(tests), "targets": np.concatenate(labels)})
    task = Task("rotating digits", train, test, train.hash() + test.hash())
    return Stream("MNIST-360", (task,))


def _tasks_and_seed(call: str, tasks: int, seed: int) -> tuple[int, int]:
    return checks.whole(call, "tasks", tasks), checks.whole(call, "seed", seed, least=0)


def _turn(inputs: np.ndarray, degrees: np.ndarray) -> np.ndarray:
    """Each image by its own angle, to the nearest whole degree of a table."""
    size = inputs.shape[1:]
    whole = np.round(degrees).astype(int) % 360
    table = {angle: rotation(size, angle) for angle in np.unique(whole)}
    positions = np.stack([table[angle] for angle in whole])
    flat = np.take_along_axis(inputs.reshape(len(inputs), -1), positions, axis=1)
    return np.where(positions < 0, 0, flat).astype(inputs.dtype).reshape(inputs.shape)


def _moved(name: str, images: Images, names: list[str], positions: list[np.ndarray]) -> Stream:
    """A stream of the same images with their pixels moved."""
    train = {"inputs": images.train_inputs, "targets": images.train_targets}
    test = {"inputs": images.test_inputs, "targets": images.test_targets}
    content = Arrays(train).hash() + Arrays(test).hash()
    tasks = [
        Task(
            each,
            Arrays(train, positions=moved),
            Arrays(test, positions=moved),
            content + Arrays({"positions": moved}).hash(),
        )
        for each, moved in zip(names, positions, strict=True)
    ]
    return Stream(name, tuple(tasks))


def _prepared(name: str) -> Images:
    """Images from tensorflow-datasets, already on the disk; nothing is downloaded."""
    try:
        builder = prepared(name)
        arrays: list[Any] = []
        for part in ("train", "test"):
            source: Any = builder.as_data_source(part)
            examples: list[Any] = [source[index] for index in range(len(source))]
            arrays.append(np.stack([np.asarray(each["image"])[..., 0] for each in examples]))
            arrays.append(np.asarray([each["label"] for each in examples], np.int32))
    except Exception as error:
        raise InputError(
            f"{name} is found neither in JCL_DATA (unset) nor in tensorflow-datasets "
            f"({type(error).__name__}): set JCL_DATA to a folder with {name}/{name}.npz, or run "
            f'tfds.builder("{name}", file_format="array_record").download_and_prepare() once.'
        ) from error
    return Images(*arrays)
