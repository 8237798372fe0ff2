"""The journal of an online run, without lines that are to be forgotten.

input.jsonl holds the lines that were read and predictions.jsonl what was told of each. Both are
known by line numbers and offsets, so that a line that goes leaves as many spaces behind.
"""

import json
import os
from collections.abc import Iterator, Mapping
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


def find(run: Path, chooser: Chooser, fields: Fields) -> Found:
    """The lines of a run's journal that are meant, and the late labels of those."""
    numbers: set[int] = set()
    texts, hashed, found = {}, {}, 0
    of: dict[Any, int] = {}  # the line that an identity names last
    for found, line, record in _records(run / INPUT):
        if not isinstance(record, dict):
            continue
        identity = record.get(fields.identity)
        meant = chooser.of_line(record, fields.text, fields.label)
        text = record.get(fields.text)
        if isinstance(text, str):
            texts[found], hashed[found] = text, line.strip()
            if isinstance(identity, str | int):
                of[identity] = found
            if meant:
                numbers.add(found)
        elif isinstance(identity, str | int) and identity in of and (
            meant or of[identity] in numbers
        ):
            numbers |= {found, of[identity]}
    chosen = sorted(numbers & texts.keys())
    return Found(numbers, [texts[n] for n in chosen], [hashed[n] for n in chosen], found)


def blank(run: Path, lines: Found) -> None:
    """Puts spaces in the place of the lines, and takes what names their texts out of what was told.

    Each file is replaced whole or not at all.
    """
    if not lines.numbers:
        return

    def spaces(number, line, record):
        return b" " * len(line.rstrip(b"\r\n")) + line[len(line.rstrip(b"\r\n")) :]

    def nameless(number, line, record):
        told = {name: value for name, value in record.items() if name != "id"}
        return json.dumps(told, separators=(",", ":")).encode().ljust(len(line) - 1) + b"\n"

    _rewrite(run / INPUT, lambda number, record: number in lines.numbers, spaces)
    _rewrite(
        run / PREDICTIONS,
        lambda _, record: isinstance(record, dict) and record.get("line") in lines.numbers,
        nameless,
    )


def without(progress: Any, numbers: set[int]) -> Any:
    """The progress of a checkpoint in which none of the lines waits for its label."""
    if not isinstance(progress, Mapping):
        return progress
    kept = {name: without(value, numbers) for name, value in progress.items()}
    if isinstance(kept.get("waiting"), list):
        kept["waiting"] = [each for each in kept["waiting"] if each[0] not in numbers]
    return kept


def _rewrite(path: Path, chosen: Any, change: Any) -> None:
    if not path.is_file():
        return
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        for number, line, record in _records(path):
            file.write(change(number, line, record) if chosen(number, record) else line)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _records(path: Path) -> Iterator[tuple[int, bytes, Any]]:
    """Each line's number, bytes and value; None where it is no JSON, as one cut off is."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield number, line, json.loads(line)
            except ValueError:
                yield number, line, None
