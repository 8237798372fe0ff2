"""What was predicted and waits for its label: how late labels are, and which are dropped."""

import base64
import collections
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jcl import checks
from jcl.data import Example, Label
from jcl.errors import InputError
from jcl.online.measures import Result


class Entry(NamedTuple):
    """What one line, or one example of a stream, says.

    Attributes:
        number: of the line, from 1.
        offset: of the line in its file; 0 where there is none.
        said: what it says.
    """

    number: int
    offset: int
    said: Example | Label


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
    """When what is predicted is learned from.

    Attributes:
        batch: rows of a micro-batch.
        delay: an example's label counts as known once so many examples more have been predicted.
        delay_seconds: or once a line has come whose time is so much later.
        waiting: examples that may wait for their labels; of more, the oldest is dropped.
        window: results in the window of the measures.
    """

    batch: int = 8
    delay: int = 0
    delay_seconds: float = 0.0
    waiting: int = 1000
    window: int = 500

    def __post_init__(self):
        for name in ("batch", "waiting", "window"):
            checks.whole("jcl online", f"--{name}", getattr(self, name))
        checks.whole("jcl online", "--delay", self.delay, least=0)
        checks.number("jcl online", "--delay-seconds", self.delay_seconds)
        if self.delay and self.delay_seconds:
            raise InputError(
                f"--delay {self.delay} and --delay-seconds {self.delay_seconds}: labels are late "
                "by a number of examples or by a time; leave one of them out."
            )
        if self.delay > self.waiting:
            raise InputError(
                f"--delay {self.delay}: {self.waiting} examples at most wait for their labels, so "
                f"that all would be dropped: give --waiting {self.delay}, or more."
            )


@dataclasses.dataclass
class Waiting:
    """An example that was predicted and not learned from.

    Attributes:
        line: its number.
        offset: of its line.
        place: among all examples, from 1.
        example: itself.
        prediction: the class; None of a language model.
        loss: a sum over its targets, in nats; None until the label is known.
        scores: log-probabilities, while the label is not known.
    """

    line: int
    offset: int
    place: int
    example: Example
    prediction: int | None
    loss: float | None
    scores: np.ndarray | None

    def result(self) -> Result:
        """What came of it; its label is known."""
        assert self.loss is not None
        leaves = self.example.leaves
        correct = None if self.prediction is None else self.prediction == int(leaves["targets"])
        return Result(self.loss, int((leaves["mask"] > 0).sum()), correct, self.example.size)


class Queues:
    """Those whose known labels are late, those without a label, and those to be learned from now.

    Attributes:
        due: to be learned from now, in order.
        dropped: how many did not get their label in time.
    """

    def __init__(self, timing: Timing):
        self._timing, self._time = timing, -float("inf")
        self._late: collections.deque[Waiting] = collections.deque()
        self._open: dict[Any, Waiting] = {}
        self.due: collections.deque[Waiting] = collections.deque()
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._late) + len(self._open)

    def put(self, waiting: Waiting) -> None:
        """One more; it takes the place of one of its identity that waits for its label."""
        identity = waiting.example.identity
        self.dropped += self._open.pop(identity, None) is not None
        if waiting.loss is not None:
            self._late.append(waiting)
        else:
            self._open[identity] = waiting

    def label(self, label: Label) -> Waiting | None:
        """The example that has waited for it, now due; None where none does."""
        waiting = self._open.pop(label.identity, None)
        if waiting is None:
            return None
        assert waiting.scores is not None
        waiting.example = waiting.example.with_target(label.target)
        waiting.loss, waiting.scores = -float(waiting.scores[label.target]), None
        self.due.append(waiting)
        return waiting

    def release(self, examples: int, time: float | None) -> None:
        """Makes those due whose delay is over, none before those that came before it; drops the
        oldest of too many.

        Args:
            examples: predicted so far.
            time: of the last line.
        """
        self._time = self._time if time is None else max(self._time, time)
        while self._late and self._known(self._late[0], examples):
            self.due.append(self._late.popleft())
        while len(self) > self._timing.waiting:
            opened = next(iter(self._open.values()), None)
            if opened is None or (self._late and self._late[0].place < opened.place):
                self._late.popleft()
            else:
                del self._open[opened.example.identity]
            self.dropped += 1

    def saved(self) -> dict[str, Any]:
        """All of it, as JSON, while nothing is due; of an example where its line is."""
        return {
            "time": None if self._time == -float("inf") else self._time,
            "dropped": self.dropped,
            "waiting": [_as_json(each) for each in (*self._late, *self._open.values())],
        }

    def restore(self, saved: dict[str, Any], read: Callable[[int], Any]) -> None:
        """Takes up what `saved` gave; `read` tells what the line at an offset says."""
        self._time = -float("inf") if saved["time"] is None else saved["time"]
        self.dropped = saved["dropped"]
        for line, offset, place, prediction, loss, scores in saved["waiting"]:
            known = np.frombuffer(base64.b64decode(scores), np.float32) if scores else None
            self.put(Waiting(line, offset, place, read(offset), prediction, loss, known))

    def _known(self, waiting: Waiting, examples: int) -> bool:
        if self._timing.delay_seconds:
            return (waiting.example.time or 0.0) + self._timing.delay_seconds <= self._time
        return waiting.place + self._timing.delay <= examples


def _as_json(waiting: Waiting) -> list[Any]:
    place = [waiting.line, waiting.offset, waiting.place, waiting.prediction, waiting.loss]
    if waiting.scores is None:
        return [*place, None]
    return [*place, base64.b64encode(waiting.scores.astype(np.float32).tobytes()).decode()]
