"""What comes is copied to input.jsonl by a thread, and synced before anybody uses it."""

import collections
import os
import select
import stat
import threading
import time
from pathlib import Path

from jcl import strict
from jcl.errors import InputError, SaveError

CHUNK_BYTES = 2**16
# By how much the copy may run ahead of what is used: beyond it a pipe's writer has to wait.
AHEAD_BYTES = 2**26
POLL_SECONDS = 0.05


class Copy(threading.Thread):
    """Copies what comes to input.jsonl, and syncs it before anybody reads it there.

    Attributes:
        changed: guards what follows.
        whole: bytes of input.jsonl up to the end of its last whole line.
        ended: there comes no more; or the `error` came.
        torn: it ended within a line, which is left out: no whole line, and not to be made one.
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
        self.ended = self.torn = False
        self.error: Exception | None = None
        self._arrivals: collections.deque[tuple[int, float]] = collections.deque()
        self._used, self._stop_asked, self._old = 0, False, self.whole

    def run(self) -> None:
        try:
            while not self._stop_asked and self._step():
                pass
        except OSError as error:
            self._finish(not_written(self._path, error))
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
            self._close_last_line()
            return False
        return True

    def _close_last_line(self) -> None:
        """The last line may lack its end; one that is still being written is no object yet."""
        if self._length == self.whole:
            return
        self._file.seek(self.whole)
        last = self._file.read(strict.LINE_CHARACTERS + 1)
        try:
            self.torn = not isinstance(strict.parse_json(last.decode()), dict)
        except ValueError:
            self.torn = True
        if not self.torn:
            self._file.seek(0, os.SEEK_END)
            self._write(b"\n")

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
                "of it had come. Lines of a file that is rotated come as a pipe: "
                f"`tail -n +1 -F {self._source} | jcl online ... --input -`."
            )


def cut_torn(path: Path) -> int:
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


def not_written(path: Path, error: OSError) -> SaveError:
    """What to raise where the journal cannot be written."""
    return SaveError(
        f"{path} cannot be written, or the input not be read ({error.strerror}); what has come "
        "before is there. Make room, then start the same command again."
    )
