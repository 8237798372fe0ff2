"""Labelled drawings of characters, the examples of few-shot image episodes."""

from collections.abc import Sequence

import numpy as np

from jcl.data.arrays import Arrays
from jcl.errors import InputError


class Characters(Arrays):
    """Drawings of characters: a source for `jcl.data.Episodes`.

    Examples are `inputs` [28, 28] uint8, 0 the paper and 255 the ink (scale by 1 / 255 for ink of
    1), and `targets`, the class as an int32. They are sorted by class.

    Args:
        inputs: [examples, height, width] uint8.
        targets: [examples], from 0.
        names: of the character of each class; turned versions of one share its name, so that
            `split_classes(characters.names, ...)` never divides them.
        alphabets: of each class, what its character belongs to.

    Raises:
        InputError: names or alphabets of another number than the classes.
    """

    def __init__(
        self,
        inputs: np.ndarray,
        targets: np.ndarray,
        names: Sequence[str],
        alphabets: Sequence[str],
    ):
        super().__init__({"inputs": inputs, "targets": np.asarray(targets, np.int32)})
        classes = len(np.unique(targets))
        if not len(names) == len(alphabets) == classes:
            raise InputError(
                f"Characters: {classes} classes, {len(names)} names and {len(alphabets)} "
                "alphabets: give one of each for every class"
            )
        self.names, self.alphabets = tuple(names), tuple(alphabets)

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return len(self.names)


def quarter_turns(characters: Characters) -> Characters:
    """Four classes for each: its drawings turned by 0, 90, 180 and 270 degrees, counterclockwise.

    class(turns, character) = turns * characters + character.

    As the field enlarges Omniglot (Santoro et al. 2016, section 4.1). A character that looks the
    same when it is turned, such as O, gives classes that cannot be told apart.

    Args:
        characters: whose drawings are square.
    """
    leaves = characters.arrays()
    inputs = [np.rot90(leaves["inputs"], turns, axes=(1, 2)) for turns in range(4)]
    targets = [leaves["targets"] + turns * characters.classes for turns in range(4)]
    return Characters(
        np.concatenate(inputs),
        np.concatenate(targets),
        characters.names * 4,
        characters.alphabets * 4,
    )
