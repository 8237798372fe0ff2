"""What has come, on disk before it is used: input.jsonl, and batches.jsonl, how it was divided.

input.jsonl    the lines as they came; of a pipe they do not come back
batches.jsonl  {"end": the number of the last line} of every micro-batch, in order

A thread copies what comes to input.jsonl and syncs it; all lines are read from there, so that a
line that was waited for and one that was left by a process that was killed are the same. Where a
micro-batch was closed hangs on the clock. So its end is synced before it is used, and a run that
goes on divides the lines as the one before had.
"""

import collections
import json
import os
import select
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jcl import strict
from jcl.errors import InputError, SaveError

MOST_BYTES = strict.LINE_CHARACTERS  # of a line
CHUNK_BYTES = 2**16
# By how much the copy may run ahead of what is used: beyond it a pipe's writer has to wait.
AHEAD_BYTES = 2**26
POLL_SECONDS = 0.05


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
            if _cut_torn(path) < used:
                raise InputError(
                    f"{path} has lost lines that the newest checkpoint has used: put the file "
                    "back, or begin again with --fresh."
                )
        self._copy = _Copy(place, source, follow)
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

    def next(
        self, size: int, wait_seconds: float, stopped: Callable[[], Any]
    ) -> list[Line] | None:
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
                raise _not_written(Path(self._ends.name), error) from error
            known = self._known.readline()
        found, self._read = self._read[:number], self._read[number:]
        self.lines += number
        self.ends += len(known)
        self.offset = self._read[0].offset if self._read else self._read_offset
        return found

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


class _Copy(threading.Thread):
    """Copies what comes to input.jsonl, and syncs it before anybody reads it there.

    Attributes:
        changed: guards what follows.
        whole: bytes of input.jsonl up to the end of its last whole line.
        ended: there comes no more; or the `error` came.
        regular: the source is a file, whose lines come back.
    """

    def __init__(self, path: Path, source: str, follow: bool):
        super().__init__(name="input", daemon=True)
        self._path, self._source, self._follow = path, source, follow
        self._file = path.open("r+b", buffering=0)
        self.whole = self._length = self._file.seek(0, os.SEEK_END)
        try:
            self._from = os.dup(0) if source == "-" else os.open(source, os.O_RDONLY)
        except OSError as error:
            raise InputError(
                f"--input {source} cannot be read ({error.strerror}): name a file or a pipe, or - "
                "for standard input."
            ) from error
        kind = os.fstat(self._from).st_mode
        self.regular = stat.S_ISREG(kind)
        if stat.S_ISDIR(kind):
            raise InputError(f"--input {source} is a folder: name a file in it.")
        if follow and not self.regular:
            raise InputError(
                f"--follow: {source} is no file that could grow; a pipe is read to its end anyway."
            )
        if self.regular:
            self._check_same()
            os.lseek(self._from, self._length, os.SEEK_SET)
        self.changed = threading.Condition()
        self.ended = False
        self.error: Exception | None = None
        self._arrivals: collections.deque[tuple[int, float]] = collections.deque()
        self._used, self._stop_asked, self._old = 0, False, self.whole

    def run(self) -> None:
        try:
            while not self._stop_asked and self._step():
                pass
        except OSError as error:
            self._finish(_not_written(self._path, error))
        except Exception as error:  # whoever waits for more is to know
            self._finish(error)
        else:
            self._finish(None)

    def used(self, offset: int) -> float | None:
        """When the byte before this offset came; what lies before is used now."""
        with self.changed:
            self._used = offset
            while self._arrivals and self._arrivals[0][0] < offset:
                self._arrivals.popleft()
            return self._arrivals[0][1] if offset > self._old else None

    def close(self) -> None:
        self._stop_asked = True
        if self.is_alive():
            self.join()
        os.close(self._from)
        self._file.close()

    def _step(self) -> bool:
        """Whether there may be more."""
        if self.whole - self._used > AHEAD_BYTES:
            time.sleep(POLL_SECONDS)
            return True
        # Never to read what could then not be written: `close` waits for this thread.
        if not select.select([self._from], [], [], POLL_SECONDS)[0]:
            return True
        chunk = os.read(self._from, CHUNK_BYTES)
        if chunk:
            self._write(chunk)
        elif self._follow:
            self._check_still_there()
            time.sleep(POLL_SECONDS)
        else:
            if self._length > self.whole:
                self._write(b"\n")  # the last line of a file may lack its end
            return False
        return True

    def _write(self, chunk: bytes) -> None:
        written = 0
        while written < len(chunk):
            written += self._file.write(chunk[written:]) or 0
        os.fdatasync(self._file.fileno())
        with self.changed:
            self._length += len(chunk)
            last = chunk.rfind(b"\n")
            if last >= 0:
                self.whole = self._length - len(chunk) + last + 1
                self._arrivals.append((self.whole, time.monotonic()))
                self.changed.notify_all()

    def _finish(self, error: Exception | None) -> None:
        with self.changed:
            self.ended, self.error = True, error
            self.changed.notify_all()

    def _check_same(self) -> None:
        """Refuses a file that does not begin with what has come of it already."""
        os.lseek(self._from, 0, os.SEEK_SET)
        with self._path.open("rb") as ours:
            at = 0
            while mine := ours.read(2**20):
                theirs = b""
                while len(theirs) < len(mine) and (more := os.read(self._from, len(mine))):
                    theirs += more
                theirs = theirs[: len(mine)]
                ending = mine == theirs + b"\n" and at + len(mine) == self._length
                if mine != theirs and not ending:
                    raise InputError(
                        f"--input {self._source} is not the file that {self._path} was copied from "
                        f"(they differ within its bytes {at} to {at + len(mine)}): give that file, "
                        "to which lines may have been added, or name another folder with --out."
                    )
                at += len(mine)
                os.lseek(self._from, at, os.SEEK_SET)

    def _check_still_there(self) -> None:
        """Refuses to wait for a file that is another by now."""
        ours = os.fstat(self._from)
        try:
            named = ours if self._source == "-" else os.stat(self._source)
        except OSError:
            named = None
        if named is None or named.st_ino != ours.st_ino or ours.st_size < self._length - 1:
            raise InputError(
                f"--follow: {self._source} was cut, moved or replaced after {self._length} bytes "
                "of it had come, all of which are learned from: give what follows as a pipe "
                "(--input -), to another run that begins where this one stands."
            )


def _cut_torn(path: Path) -> int:
    """Makes the file if it is not there, and cuts what a kill has left of a line; its length."""
    with path.open("ab+") as file:
        length = end = file.seek(0, os.SEEK_END)
        while end:
            begin = max(0, end - CHUNK_BYTES)
            file.seek(begin)
            last = file.read(end - begin).rfind(b"\n")
            if last >= 0:
                end = begin + last + 1
                break
            end = begin
        if end < length:
            file.truncate(end)
        return end


def _not_written(path: Path, error: OSError) -> SaveError:
    return SaveError(
        f"{path} cannot be written, or the input not be read ({error.strerror}); what has come "
        "before is there. Make room, then start the same command again."
    )
