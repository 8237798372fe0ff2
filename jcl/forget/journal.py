"""The journal of an online run, without lines that are to be forgotten.

input.jsonl holds the lines that were read and predictions.jsonl what was told of each. Both are
known by line numbers and offsets, so that a line that goes leaves as many spaces behind.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jcl.forget.selection import Chooser

INPUT, PREDICTIONS = "input.jsonl", "predictions.jsonl"


class Fields(NamedTuple):
    """How a line of JSON calls its text, its label and what late labels name it by."""

    text: str = "text"
    label: str = "label"
    identity: str = "id"


class Found(NamedTuple):
    """Attributes:
    numbers: of the lines that are meant, from 1: texts, and labels that came later for them.
    texts: theirs.
    rows: their ids, where it is known how lines become ids.
    hashed: the lines' bytes.
    found: how many lines there are.
    lacking: fields that are looked in and that no line has.
    """

    numbers: set[int]
    texts: list[str]
    rows: list[np.ndarray]
    hashed: list[bytes]
    found: int
    lacking: list[str]


def find(
    path: Path,
    chooser: Chooser,
    fields: Fields,
    read: Callable[[bytes], Any] | None = None,
    known: Iterable[bytes] = (),
) -> Found:
    """The lines of a file of JSON that are meant, those equal to them, and their late labels.

    Args:
        path: of the lines.
        chooser: knows which are meant.
        fields: of the lines.
        read: what makes an example of a line, as `jcl.data.Lines.read`: lines that give the ids of
            one that is meant are equal to it. Without it those of the same text are.
        known: ids, as bytes, of examples that are meant.
    """
    numbers: set[int] = set()
    keys: dict[int, list[bytes]] = {}  # equal lines have one in common
    of: dict[Any, int] = {}  # the line that an identity names last
    late: list[tuple[int, int]] = []
    met: set[str] = set()
    objects = found = 0
    for found, line, record in _records(path):
        if not line.strip():
            continue
        usable, leaves = _read(read, line, record)
        if not usable and chooser.of_bytes(line):
            numbers.add(found)
        if not isinstance(record, dict):
            continue
        objects, met = objects + 1, met | record.keys() & set(fields)
        identity, text = record.get(fields.identity), record.get(fields.text)
        identity = identity if isinstance(identity, str | int) else None
        if chooser.of_line(record, fields.text, fields.label):
            numbers.add(found)
        if isinstance(text, str):
            keys[found] = [_key(text.strip().encode(errors="surrogatepass"))]
            if leaves is not None:
                keys[found].append(_key(leaves["inputs"].tobytes()))
                targets = leaves["targets"]
                if chooser.selection.by_text and chooser.of_ids(
                    leaves["inputs"], targets if targets.ndim else None
                ):
                    numbers.add(found)
            if identity is not None:
                of[identity] = found
        elif usable and identity in of:
            late.append((found, of[identity]))
    numbers |= {text for number, text in late if number in numbers}
    wanted = {_key(each) for each in known}.union(*(keys.get(number, ()) for number in numbers))
    numbers |= {number for number, own in keys.items() if not wanted.isdisjoint(own)}
    numbers |= {number for number, text in late if text in numbers}

    texts, rows, hashed = [], {}, []
    for number, line, record in _records(path):
        # A late label's line has nothing of its text, and its identity may be anything.
        if number not in numbers or (number not in keys and isinstance(record, dict)
                                     and _read(read, line, record)[0]):  # fmt: skip
            continue
        text = record.get(fields.text) if isinstance(record, dict) else None
        text = text if isinstance(text, str) else line.strip().decode(errors="replace")
        texts.append(text.encode(errors="replace").decode())  # half a surrogate pair has no bytes
        hashed.append(line.strip())
        if (leaves := _read(read, line, record)[1]) is not None:
            rows[leaves["inputs"].tobytes()] = leaves["inputs"]
    sought = [fields.text] * chooser.selection.by_text
    sought += [fields.label] * bool(chooser.selection.labels)
    lacking = [field for field in sought if objects and field not in met]
    return Found(numbers, texts, list(rows.values()), hashed, found, lacking)


def _read(
    read: Callable[[bytes], Any] | None, line: bytes, record: Any
) -> tuple[bool, dict[str, np.ndarray] | None]:
    """Whether a run can use the line, and the leaves of its example where it is a text."""
    if read is None:
        return isinstance(record, dict), None
    try:
        return True, getattr(read(line), "leaves", None)
    except ValueError:
        return False, None


def _key(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def spaces(number: int, line: bytes, record: Any) -> tuple[int, bytes]:
    """Of the input: the line's number, and as many spaces in its place."""
    content = line.rstrip(b"\r\n")
    return number, b" " * len(content) + line[len(content) :]


def nameless(number: int, line: bytes, record: Any) -> tuple[int, bytes]:
    """Of the predictions: which line it tells of, and the same without what names its text or
    says why it was left out."""
    if not isinstance(record, dict):
        return 0, line
    told = {name: value for name, value in record.items() if name not in ("id", "skipped")}
    short = json.dumps(told, separators=(",", ":")).encode().ljust(len(line) - 1) + b"\n"
    return record.get("line", 0), short


def blank(path: Path, numbers: set[int], change: Callable[..., tuple[int, bytes]]) -> None:
    """Puts what `change` makes of the lines in their place, whole or not at all."""
    if not numbers or not path.is_file():
        return
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        for number, line, record in _records(path):
            of, changed = change(number, line, record)
            file.write(changed if of in numbers else line)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def without(progress: Any, numbers: set[int]) -> Any:
    """The progress of a checkpoint in which none of the lines waits for its label."""
    if not isinstance(progress, Mapping):
        return progress
    kept = {name: without(value, numbers) for name, value in progress.items()}
    if isinstance(kept.get("waiting"), list):
        kept["waiting"] = [each for each in kept["waiting"] if each[0] not in numbers]
    return kept


def _records(path: Path) -> Iterator[tuple[int, bytes, Any]]:
    """Each line's number, bytes and value; None where it is no JSON, as one cut off is."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield number, line, json.loads(line)
            except (ValueError, RecursionError):
                yield number, line, None
