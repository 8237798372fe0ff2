"""The journal of an online run, without lines that are to be forgotten.

input.jsonl holds the lines that were read and predictions.jsonl what was told of each. Both are
known by line numbers and offsets, so that a line that goes leaves as many spaces behind.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jcl.selection import Chooser

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
    hashed: the lines' bytes.
    found: how many lines there are.
    """

    numbers: set[int]
    texts: list[str]
    hashed: list[bytes]
    found: int


def find(path: Path, chooser: Chooser, fields: Fields) -> Found:
    """The lines of a file of JSON that are meant, and the late labels of those."""
    numbers: set[int] = set()
    texts: dict[int, str] = {}
    hashed: dict[int, bytes] = {}
    of: dict[Any, int] = {}  # the line that an identity names last
    found = 0
    for found, line, record in _records(path):
        if not isinstance(record, dict):
            continue
        identity, text = record.get(fields.identity), record.get(fields.text)
        identity = identity if isinstance(identity, str | int) else None
        meant = chooser.of_line(record, fields.text, fields.label)
        if isinstance(text, str):
            texts[found], hashed[found] = text, line.strip()
            if identity is not None:
                of[identity] = found
            if meant:
                numbers.add(found)
        elif identity in of and (meant or of[identity] in numbers):
            numbers |= {found, of[identity]}
    chosen = sorted(numbers & texts.keys())
    return Found(numbers, [texts[n] for n in chosen], [hashed[n] for n in chosen], found)


def spaces(number: int, line: bytes, record: Any) -> tuple[int, bytes]:
    """Of the input: the line's number, and as many spaces in its place."""
    content = line.rstrip(b"\r\n")
    return number, b" " * len(content) + line[len(content) :]


def nameless(number: int, line: bytes, record: Any) -> tuple[int, bytes]:
    """Of the predictions: which line it tells of, and the same without what names its text."""
    if not isinstance(record, dict):
        return 0, line
    told = {name: value for name, value in record.items() if name != "id"}
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
