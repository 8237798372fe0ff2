"""Files that may come from elsewhere: read as they were meant, or refused before they do harm.

What is wrong is a ValueError whose message is the reason alone; the caller adds where and the
remedy, and makes an InputError of it.
"""

import json
import math
import os
import re
import stat
import typing
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

# Of a file of JSON, which takes up to thirty times as much once it is read.
JSON_BYTES = 16 * 2**20
# Of a line of a table.
LINE_CHARACTERS = 8_000_000
# What a packed file may always unpack to, and by how much a larger one may have been packed.
UNPACKED_BYTES, PACKED_TO = 256 * 2**20, 100

NUMBER = int | float

# What a terminal would obey, or would turn the text around by.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def size(path: Path) -> int:
    """The bytes of a regular file: reading a device or a pipe may never end.

    Raises:
        OSError: there is none.
        ValueError: it is something else.
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it is no ordinary file")
    return found.st_size


def most_unpacked(packed: int) -> int:
    """To how many bytes a packed file of so many may unpack, so that a small one fills no memory.

    >>> most_unpacked(1000) // 2**20, most_unpacked(2**30) // 2**30
    (256, 100)
    """
    return max(UNPACKED_BYTES, PACKED_TO * packed)


def control(text: str) -> str | None:
    """The first control character of a name, in letters that show it; None where there is none.

    >>> control("a\\tb"), control("ab")
    ("'\\\\t'", None)
    """
    found = _CONTROL.search(text)
    return ascii(found[0]) if found else None


def read_json(path: Path) -> Any:
    """The value in a file of JSON.

    Raises:
        OSError: it cannot be read.
        ValueError: it is longer than 16 MiB, not UTF-8, holds half a surrogate pair, or is refused
            by `parse_json`.
    """
    length = size(path)
    if length > JSON_BYTES:
        raise ValueError(f"it has {length:,} bytes, where {JSON_BYTES:,} are the most")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8: look at the byte at offset {error.start}") from None
    found = parse_json(text)
    if "\\u" in text:
        try:
            json.dumps(found, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("it holds half a surrogate pair, which is no character") from None
    return found


def parse_json(text: str) -> Any:
    """The value of JSON in which no key stands twice in an object, every number is finite and
    whole ones have at most 64 bits.

    Raises:
        ValueError: it is other, or too deeply nested.

    >>> parse_json('{"a": [1, 2.5, null]}')
    {'a': [1, 2.5, None]}
    >>> parse_json('{"a": 1, "a": 2}')
    Traceback (most recent call last):
    ValueError: the key 'a' stands twice in one object
    """
    try:
        return json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_refuse_constant,
            parse_float=_float,
            parse_int=_int,
        )
    except RecursionError:
        raise ValueError("it is too deeply nested") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {_shown(key)} stands twice in one object")
        found[key] = value
    return found


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word} is no number of JSON's")


def _float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"the number {_shown(digits)} is too large")
    return number


def _int(digits: str) -> int:
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**64:
        raise ValueError(f"the number {_shown(digits)} has more than 64 bits")
    return int(digits)


def fits(value: Any, shape: Any, place: str = "it") -> None:
    """Passes a value of JSON that has the shape.

    Args:
        value: what was read.
        shape: a type or a union of types; [shape] for a list of such; {"key": shape} for an object
            with at least these keys, {str: shape} for one whose every value is such.
        place: how a message calls the value.

    Raises:
        ValueError: it has another; the message says where within it.

    >>> fits({"seeds": [0, 1]}, {"seeds": [int]})
    >>> fits({"seeds": [0, "1"]}, {"seeds": [int]})
    Traceback (most recent call last):
    ValueError: its seeds[1] is '1', which should be int
    """
    if isinstance(shape, list):
        _is(value, list, place)
        for number, each in enumerate(value):
            fits(each, shape[0], f"{place}[{number}]")
    elif isinstance(shape, dict):
        _is(value, dict, place)
        prefix = "its " if place == "it" else f"{place}."
        for key, inner in shape.items():
            if key is str:
                for name, each in value.items():
                    fits(each, inner, f"{prefix}{name[:40]}")
            elif key not in value:
                raise ValueError(f"{place} lacks {key}")
            else:
                fits(value[key], inner, f"{prefix}{key}")
    else:
        _is(value, shape, place)


def _is(value: Any, kind: Any, place: str) -> None:
    kinds = typing.get_args(kind) or (kind,)
    # For Python a truth value is a whole number.
    counts = not isinstance(value, bool) or bool in kinds or object in kinds
    if not (counts and isinstance(value, kind)):
        names = " or ".join(each.__name__ for each in kinds)
        raise ValueError(f"{place} is {_shown(value)}, which should be {names}")


def read_npz(path: Path, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of a file of numpy's, .npz, by name.

    Nothing is unpickled. Nothing is allocated before what the header of an array declares, the
    length of its part and the length of the file are found to agree.

    Args:
        path: of the file.
        names: which arrays; by default all.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no such file, lacks an array, or unpacks to more than `most_unpacked`.
    """
    most = most_unpacked(size(path))
    try:
        with zipfile.ZipFile(path) as archive:
            parts: dict[str, zipfile.ZipInfo] = {}
            for part in archive.infolist():
                name = part.filename.removesuffix(".npy")
                if name in parts:
                    raise ValueError(f"the array {_shown(name)} is there twice")
                if name.startswith("/") or ".." in re.split(r"[/\\]", name):
                    raise ValueError(f"the name {_shown(name)} leads out of the file")
                parts[name] = part
            for name in names or ():
                if name not in parts:
                    raise ValueError(f"it lacks the array {name}")
            wanted = {name: parts[name] for name in (parts if names is None else names)}
            unpacked = sum(part.file_size for part in wanted.values())
            if unpacked > most:
                raise ValueError(
                    f"it unpacks to {unpacked:,} bytes, where {most:,} are the most for a file "
                    "that is so small"
                )
            return {name: _array(archive, name, part) for name, part in wanted.items()}
    except (OSError, ValueError):
        raise
    except Exception as error:  # of zipfile, zlib, struct and numpy, some dozen kinds
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _array(archive: zipfile.ZipFile, name: str, part: zipfile.ZipInfo) -> np.ndarray:
    # Others unpack all that they hold, however much was declared and is asked for.
    if part.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{_shown(name)} is packed in a way that numpy never uses")
    headers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    with archive.open(part) as file:
        version = np.lib.format.read_magic(file)
        if version not in headers:
            raise ValueError(f"{_shown(name)} is of numpy's format {version}, which is not read")
        shape, _, dtype = headers[version](file)
        begin = file.tell()
    if dtype.hasobject:
        raise ValueError(f"{_shown(name)} is a pickle, which can run any program when it is read")
    declared = math.prod(shape) * dtype.itemsize
    # An axis beside one of length 0, or items of no bytes, cost nothing in the file.
    empty = dtype.itemsize == 0 or math.prod(max(1, axis) for axis in shape) > UNPACKED_BYTES
    if begin + declared != part.file_size or min(shape, default=0) < 0 or (not declared and empty):
        raise ValueError(
            f"{_shown(name)} declares {dtype}{[*shape]}, {declared:,} bytes, and holds "
            f"{part.file_size - begin:,}"
        )
    with archive.open(part) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _shown(value: Any) -> str:
    shown = f"a {type(value).__name__}" if isinstance(value, list | dict) else repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
