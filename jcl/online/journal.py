"""What has come, on disk before it is used: input.jsonl, and batches.jsonl, how it was divided.

input.jsonl    the lines as they came; of a pipe they do not come back
batches.jsonl  {"end": the number of the last line} of every micro-batch, in order

A thread copies what comes to input.jsonl and syncs it; all lines are read from there, so that a
line that was waited for and one that was left by a process that was killed are the same. Where a
micro-batch was closed hangs on the clock. So its end is synced before it is used, and a run that
goes on divides the lines as the one before had.
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jcl import strict
from jcl.errors import InputError
from jcl.online.copying import CHUNK_BYTES, POLL_SECONDS, Copy, cut_torn, not_written

MOST_BYTES = strict.LINE_CHARACTERS  # of a line


class Line(NamedTuple):
    """One line of the input.

    Attributes:
        number: from 1.
        offset: of its first byte in input.jsonl.
        content: without the line's end; None where it is longer than a line may be.
        arrived: by the monotonic clock; None of one that an earlier process has left.
    """

    number: int
    offset: int
    content: bytes | None
    arrived: float | None


class Journal:
    """The lines of a run from where it stands, in micro-batches.

    Args:
        folder: the run's.
        source: "-" for standard input, or a file, a pipe.
        follow: wait for more at the end of a file.
        lines: how many were used already.
        offset: behind them in input.jsonl.
        ends: behind their micro-batches in batches.jsonl.

    Raises:
        InputError: the source cannot be read or is another than before, or the journal has lost
            what was used.

    Attributes:
        lines, offset, ends: as given, moved on by `next`.
    """

    def __init__(
        self, folder: Path, source: str, *, follow: bool, lines: int, offset: int, ends: int
    ):
        self.lines, self.offset, self.ends = lines, offset, ends
        place = folder / "input.jsonl"
        for path, used in ((place, offset), (folder / "batches.jsonl", ends)):
            if cut_torn(path) < used:
                raise InputError(
                    f"{path} has lost lines that the newest checkpoint has used: put the file "
                    "back, or begin again with --fresh."
                )
        self._copy = Copy(place, source, follow)
        self._input = place.open("rb")
        self._input.seek(offset)
        self._ends = (folder / "batches.jsonl").open("r+b", buffering=0)
        self._known = (folder / "batches.jsonl").open("rb")
        self._known.seek(ends)
        self._read: list[Line] = []  # and in no micro-batch yet
        self._read_lines, self._read_offset = lines, offset
        self._begun = 0.0
        self.patient = self._copy.regular and not follow

    def start(self) -> None:
        """Begins to copy what comes."""
        self._begun = time.monotonic()
        self._copy.start()

    def next(self, size: int, wait_seconds: float, stopped: Callable[[], Any]) -> list[Line] | None:
        """The next micro-batch, once it has so many lines or its first has waited so long.

        Of a file that is not followed it always has as many as there are.

        Args:
            size: the most lines of it.
            wait_seconds: from the first line's arrival.
            stopped: whether to wait no longer.

        Returns:
            Its lines; none at the end of the input; None where it was stopped.
        """
        known = self._known.readline()
        if known:
            number = self._end(known) - self.lines
            while len(self._read) < number:
                self._read.append(self._line())
        else:
            number = self._gather(size, None if self.patient else wait_seconds, stopped)
            if not number:
                return None if number is None else []
            end = json.dumps({"end": self.lines + number}).encode() + b"\n"
            try:
                self._ends.seek(0, os.SEEK_END)
                self._ends.write(end)
                os.fdatasync(self._ends.fileno())
            except OSError as error:
                raise not_written(Path(self._ends.name), error) from error
            known = self._known.readline()
        found, self._read = self._read[:number], self._read[number:]
        self.lines += number
        self.ends += len(known)
        self.offset = self._read[0].offset if self._read else self._read_offset
        return found

    @property
    def torn(self) -> bool:
        """Whether the input has ended within a line, which was left out."""
        return self._copy.torn

    def close(self) -> None:
        """Ends the copying; what was read of a pipe is synced."""
        self._copy.close()
        for file in (self._input, self._ends, self._known):
            file.close()

    def _end(self, line: bytes) -> int:
        try:
            found = strict.parse_json(line.decode())
            strict.fits(found, {"end": int})
            if found["end"] <= self.lines:
                raise ValueError(f"it ends at line {found['end']}, behind which line it begins")
        except ValueError as error:
            raise InputError(
                f"{self._known.name}, byte {self.ends}, is no end of a micro-batch ({error}): put "
                "the file back, or begin again with --fresh."
            ) from error
        return found["end"]

    def _gather(
        self, size: int, wait_seconds: float | None, stopped: Callable[[], Any]
    ) -> int | None:
        """How many lines make the next micro-batch."""
        copy, changed = self._copy, self._copy.changed
        while len(self._read) < size:
            with changed:
                while self._read_offset >= copy.whole and not copy.ended:
                    if stopped():
                        return None
                    left = POLL_SECONDS
                    if self._read and wait_seconds is not None:
                        arrived = self._read[0].arrived or self._begun
                        left = min(left, arrived + wait_seconds - time.monotonic())
                        if left <= 0:
                            return len(self._read)
                    changed.wait(left)
                if self._read_offset >= copy.whole:
                    if copy.error:
                        raise copy.error
                    break
            self._read.append(self._line())
        return len(self._read)

    def _line(self) -> Line:
        """The next line of input.jsonl, which is whole."""
        content: bytes | None = self._input.readline(MOST_BYTES + 1)
        length = len(content)
        last = content[-1:]
        while last not in (b"\n", b""):
            content = None
            more = self._input.readline(CHUNK_BYTES)
            length, last = length + len(more), more[-1:]
        if not last:
            raise InputError(
                f"{self._input.name} has lost lines that a micro-batch had: put the file back, or "
                "begin again with --fresh."
            )
        offset = self._read_offset
        self._read_lines, self._read_offset = self._read_lines + 1, offset + length
        arrived = self._copy.used(self._read_offset)
        return Line(self._read_lines, offset, content and content[:-1], arrived)
