"""What an online run has measured: over all examples, over the last ones, and at its worst."""

import collections
import math
from typing import Any, NamedTuple


class Result(NamedTuple):
    """Of one example, once its label is known.

    Attributes:
        loss: in nats, the sum over its targets.
        targets: how many; 1 of a classifier.
        correct: whether the predicted class was right; None of a language model.
        size: bytes of its text.
    """

    loss: float
    targets: int
    correct: bool | None
    size: int


class Measures:
    """Sums over all results and over a window of the last ones, in constant memory.

    Args:
        window: results in the window.
        classes: of a classifier, which has an accuracy.
    """

    def __init__(self, window: int, *, classes: bool):
        self._last: collections.deque[Result] = collections.deque(maxlen=window)
        self._all, self._windowed = [0.0, 0, 0, 0], [0.0, 0, 0, 0]
        self.results, self._classes = 0, classes
        self.worst: dict[str, float | None] | None = None

    def add(self, result: Result) -> None:
        """Counts one more result."""
        if len(self._last) == self._last.maxlen:
            _add(self._windowed, self._last[0], -1)
        self._last.append(result)
        _add(self._windowed, result)
        _add(self._all, result)
        self.results += 1
        if len(self._last) == self._last.maxlen:
            found = self.windowed()
            if self.worst is None or self._badness(found) > self._badness(self.worst):
                self.worst = found

    def running(self) -> dict[str, float | None]:
        """Over all results: accuracy and loss, or loss, perplexity and bits_per_byte.

        A loss is the mean over targets, in nats; None where there is no result yet.
        """
        return self._of(self._all, self.results)

    def windowed(self) -> dict[str, float | None]:
        """The same over the last results, as many as the window holds."""
        return self._of(self._windowed, len(self._last))

    def saved(self) -> dict[str, Any]:
        """All of it, as JSON."""
        return {
            "last": [list(each) for each in self._last], "all": self._all, "worst": self.worst,
            "windowed": self._windowed, "results": self.results,
        }  # fmt: skip

    def restore(self, saved: dict[str, Any]) -> None:
        """Takes up what `saved` gave."""
        self._last.extend(Result(*each) for each in saved["last"])
        self._all, self._windowed = list(saved["all"]), list(saved["windowed"])
        self.worst, self.results = saved["worst"], saved["results"]

    def _badness(self, found: dict[str, Any]) -> float:
        return -found["accuracy"] if self._classes else found["loss"]

    def _of(self, sums: list[Any], results: int) -> dict[str, float | None]:
        loss, targets, correct, size = sums
        mean = loss / targets if targets else None
        if self._classes:
            return {"accuracy": correct / results if results else None, "loss": mean}
        return {
            "loss": mean,
            "perplexity": None if mean is None else math.exp(min(mean, 700.0)),
            "bits_per_byte": loss / math.log(2) / size if size else None,
        }


def _add(sums: list[Any], result: Result, sign: int = 1) -> None:
    for place, value in enumerate(result):
        sums[place] += sign * (value or 0)
