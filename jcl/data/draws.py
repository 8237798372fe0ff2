"""Random numbers by their place, and sources whose examples are drawn when they are asked for."""

import abc
from typing import Any

import numpy as np

from jcl import checks
from jcl.data.streams import Batch

_STEP = 0x9E3779B97F4A7C15  # 2**64 over the golden ratio
_ROWS = 1 << 12  # examples drawn at a time for arrays(), so that the working memory stays small


def uniform(seed: int, indices: np.ndarray, count: int) -> np.ndarray:
    """Uniform numbers in [0, 1): [len(indices), count] float64.

    The row of an index depends on the seed and the index alone, and begins with the same numbers
    whatever the count. It is the SplitMix64 sequence (Steele, Lea and Flood 2014) of a seed that
    is itself mixed from both.

    Args:
        seed: 0 or above.
        indices: [rows], each 0 or above.
        count: numbers of a row.
    """
    key = _mix(np.array([seed % 2**64], np.uint64) + np.uint64(_STEP))
    rows = _mix(key + (np.asarray(indices).astype(np.uint64) + np.uint64(1)) * np.uint64(_STEP))
    places = (np.arange(count, dtype=np.uint64) + np.uint64(1)) * np.uint64(_STEP)
    return (_mix(rows[:, None] + places) >> np.uint64(11)) * 2.0**-53


def distinct(numbers: np.ndarray, sizes: np.ndarray | int) -> np.ndarray:
    """Draws without replacement, in random order: [..., count] whole numbers from 0 to sizes - 1.

    The first steps of a Fisher-Yates shuffle: step t exchanges the entry t with one of those from
    t on. An entry's value is found by following the exchanges back, so that the `sizes` entries
    themselves are never made.

    Args:
        numbers: [..., count], uniform in [0, 1).
        sizes: [...] how many there are to draw from, at least `count`.
    """
    count = numbers.shape[-1]
    rest = np.asarray(sizes)[..., None] - np.arange(count)
    exchanged = np.arange(count) + np.floor(numbers * rest).astype(np.int64)
    drawn = exchanged.copy()
    for step in range(count):
        for before in reversed(range(step)):
            moved = drawn[..., step] == exchanged[..., before]
            drawn[..., step][moved] = before
    return drawn


class Drawn(abc.ABC):
    """A source of `number` examples; a subclass draws those of given numbers by `_draw`."""

    def __init__(self, call: str, number: Any, seed: Any):
        self._number = checks.whole(call, "number", number)
        self._seed = checks.whole(call, "seed", seed, least=0)

    def __len__(self) -> int:
        return self._number

    def __getitem__(self, index: int) -> Batch:
        return {key: leaf[0] for key, leaf in self.take(np.array([index])).items()}

    def take(self, indices: np.ndarray) -> Batch:
        """Draws the examples `indices`, batch axis first, in the order asked for."""
        indices = np.asarray(indices)
        if indices.size and not np.issubdtype(indices.dtype, np.integer):
            raise IndexError(f"example {indices.flat[0]!r} of {self._number}: give whole numbers")
        for index in indices[(indices < 0) | (indices >= self._number)][:1]:
            raise IndexError(f"example {index} of {self._number}")
        return self._draw(indices)

    def arrays(self) -> Batch:
        """All examples."""
        first = self._draw(np.arange(1))
        every = {
            key: np.empty((self._number, *leaf.shape[1:]), leaf.dtype)
            for key, leaf in first.items()
        }
        for start in range(0, self._number, _ROWS):
            stop = min(start + _ROWS, self._number)
            for key, leaf in self._draw(np.arange(start, stop)).items():
                every[key][start:stop] = leaf
        return every

    @abc.abstractmethod
    def _draw(self, indices: np.ndarray) -> Batch:
        """The examples `indices`, batch axis first."""


def _mix(numbers: np.ndarray) -> np.ndarray:
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))
