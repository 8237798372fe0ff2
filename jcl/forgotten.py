"""forgotten.json: what `jcl forget` has taken out of a folder, by salted hashes, never by a text.

An entry is begun before anything is changed and done at the end, so that a command that was cut off
leaves a trace and is given again. The salt stands beside the hashes: they tell whether a text that
one has was among them, and keep nobody from trying texts that are easy to guess.
"""

import hashlib
import secrets
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from jcl import folder, strict
from jcl.errors import InputError

NAME = "forgotten.json"


class Record:
    """forgotten.json: begun before anything is changed, so that a kill leaves a trace."""

    def __init__(self, path: Path):
        self._path = path
        self._content = read_record(path) or {
            "schema": 1, "salt": secrets.token_hex(16), "forgotten": [],
        }  # fmt: skip

    @property
    def cut(self) -> bool:
        """Whether a command was cut off."""
        return any(not each["done"] for each in self._content["forgotten"])

    def begin(self, kinds: list[str], examples: Iterable[Any]) -> None:
        """Notes the examples by their salted hashes, beside those of a command that was cut off."""
        done = [each for each in self._content["forgotten"] if each["done"]]
        cut = [each for each in self._content["forgotten"] if not each["done"]]
        hashes = {self._hash(each) for each in examples}
        hashes |= {each for entry in cut for each in entry["sha256"]}
        kinds = sorted({*kinds, *(kind for entry in cut for kind in entry["where"])})
        entry = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "where": kinds,
            "examples": len(hashes), "sha256": sorted(hashes), "done": False,
        }  # fmt: skip
        self._content["forgotten"] = [*done, entry]
        folder.write_json(self._path, self._content)

    def end(self, left: list[str]) -> None:
        """Notes that all is done, and where something is left."""
        self._content["forgotten"][-1] |= {"done": True, "left": left}
        folder.write_json(self._path, self._content)

    def _hash(self, example: Any) -> str:
        data = example.tobytes() if isinstance(example, np.ndarray) else bytes(example)
        return hashlib.sha256(self._content["salt"].encode() + data).hexdigest()


def read_record(path: Path) -> dict[str, Any] | None:
    """What a forgotten.json says; None where there is none.

    Raises:
        InputError: it is damaged.
    """
    if not path.exists():
        return None
    try:
        found = strict.read_json(path)
        entry = {"time": str, "where": [str], "examples": int, "sha256": [str], "done": bool}
        strict.fits(found, {"schema": int, "salt": str, "forgotten": [entry]})
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read ({error}): it is the record of `jcl forget`; bring it back, or "
            "remove it if you know that nothing was being forgotten."
        ) from error
    return found


def told(run: Path) -> str | None:
    """What a run that goes on says of what was taken out of its folder; None where nothing was.

    Raises:
        InputError: a `jcl forget` was cut off before its end.
    """
    found = read_record(run / NAME)
    entries = found["forgotten"] if found else []
    if any(not each["done"] for each in entries):
        raise InputError(
            f"{run}: a `jcl forget` was cut off, so that it is not known what is left: give the "
            "same command again, then go on."
        )
    number = sum(each["examples"] for each in entries)
    if not number:
        return None
    return (
        f"{run}: {number} examples were forgotten, the last at {entries[-1]['time']}: the run goes "
        "on without them in its memories, and no longer equals one that never forgot. Where its "
        "data still hold them, it meets them again."
    )
