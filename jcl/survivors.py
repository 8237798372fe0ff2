"""Which replicas of a run still train: one whose numbers are no longer finite has diverged."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jcl.errors import REMEDY, Diverged
from jcl.grid import Replica


class Survivors:
    """A grid goes on without the replicas that have diverged; any other run stops at the first.

    Args:
        replicas: of the run.
        diverged: for each of them None, or the {"task", "step"} where it did; kept up to date.
        tell: what is called with the number of each that diverges, and a sentence on it.
    """

    def __init__(
        self,
        replicas: Sequence[Replica],
        diverged: list[dict[str, Any] | None],
        tell: Callable[[int, str], None],
    ):
        self._replicas, self._diverged, self._tell = replicas, diverged, tell

    def left(self, finite: Any) -> list[int]:
        """Which of them still trained and are no longer finite."""
        pairs = zip(np.atleast_1d(finite), self._diverged, strict=True)
        return [number for number, (fine, gone) in enumerate(pairs) if not (fine or gone)]

    def all_lost(self, lost: list[int]) -> bool:
        """Whether the run stops without these."""
        return not self._replicas[0].setting or len(lost) == self._diverged.count(None)

    def check(
        self,
        name: str,
        values: Any,
        task: str,
        step: int,
        where: str | None = None,
        remedy: str = REMEDY,
    ) -> None:
        """Looks at a measured number of each replica; see `leave`."""
        values = np.atleast_1d(values)
        if lost := self.left(np.isfinite(values)):
            self.leave(lost, f"{name} is {values[lost[0]]}", task, step, where, remedy)

    def leave(
        self,
        lost: list[int],
        what: str,
        task: str,
        step: int,
        where: str | None = None,
        remedy: str = REMEDY,
    ) -> None:
        """Goes on without these replicas.

        Raises:
            Diverged: there is no grid, or they are the last.
        """
        where = where or f"task {task}, step {step}"
        names = " and ".join(f"({self._replicas[number]})" for number in lost)
        of = f" for {names}" if len(self._replicas) > 1 else ""
        if self.all_lost(lost):
            raise Diverged(f"{what}{of} at {where}: {remedy}")
        for number in lost:
            self._diverged[number] = {"task": task, "step": step}
        for number in lost:
            said = f"({self._replicas[number]}) has diverged: {what} at {where}. The others go on."
            self._tell(number, said)

    def numbers(self, values: Any) -> list[float | None]:
        """One for each replica, as JSON knows them: None of those that have diverged, or where it
        is not finite."""
        pairs = zip(np.atleast_1d(values).tolist(), self._diverged, strict=True)
        return [None if gone or not np.isfinite(each) else each for each, gone in pairs]

    def mean(self, values: Any) -> float:
        """Over those that still train."""
        kept = [gone is None for gone in self._diverged]
        return float(np.mean(np.atleast_1d(values)[kept]))
