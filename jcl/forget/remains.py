"""What is left of examples: looked for in arrays of any type, and in the bytes of files."""

import json
import mmap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

# Shorter ones stand by chance in any file.
LEAST_BYTES = 8
_WHOLE = (np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64)
_ODD = np.uint64(0x9E3779B97F4A7C15)


def in_arrays(arrays: Mapping[str, Any], rows: Sequence[np.ndarray]) -> list[str]:
    """The names of the arrays in which one of the rows stands, as numbers one after the other.

    Rows of whole numbers are found in arrays of whole numbers of any type, others in arrays of
    their own type. A row whose numbers are all the same says nothing and is left out.

    Args:
        arrays: by name.
        rows: all of one length and type.

    >>> in_arrays({"a": np.arange(9, dtype=np.int16).reshape(3, 3)}, [np.array([2, 3, 4])])
    ['a']
    """
    telling = [row.ravel() for row in rows if row.size and (row.ravel() != row.flat[0]).any()]
    if not telling:
        return []
    wanted = np.stack(telling)
    found = []
    for name, array in arrays.items():
        array = np.asarray(array)
        numbers, sought = _bits(array, wanted.dtype), _bits(wanted, wanted.dtype)
        if numbers is not None and sought is not None and _holds(numbers.ravel(), sought):
            found.append(name)
    return found


def _bits(array: np.ndarray, dtype: np.dtype) -> np.ndarray | None:
    """The numbers as uint64, where they can be compared with those of the type."""
    if dtype.kind in "iu":
        return array.astype(np.int64).view(np.uint64) if array.dtype.kind in "iu" else None
    if array.dtype != dtype or dtype.itemsize not in (1, 2, 4, 8):
        return None
    return np.ascontiguousarray(array).view(f"u{dtype.itemsize}").astype(np.uint64)


def _holds(numbers: np.ndarray, rows: np.ndarray) -> bool:
    """Whether any of the rows stands in the numbers, by a hash of every window."""
    length = rows.shape[1]
    if len(numbers) < length:
        return False
    with np.errstate(over="ignore"):
        powers = np.cumprod(np.full(max(len(numbers), length), _ODD))
        sums = np.concatenate([[np.uint64(0)], np.cumsum(numbers * powers[: len(numbers)])])
        windows = sums[length:] - sums[:-length]
        hashes = (rows * powers[:length]).sum(axis=1, dtype=np.uint64)
        # A window that begins at i has its row's hash times the odd number to the i.
        inverse = np.uint64(pow(int(_ODD), -1, 2**64))
        shifted = np.cumprod(np.full(len(windows), inverse)) * _ODD * windows
    starts = np.flatnonzero(np.isin(shifted, hashes))
    known = {row.tobytes() for row in rows}
    return any(numbers[start : start + length].tobytes() in known for start in starts)


def patterns(texts: Iterable[str], rows: Sequence[np.ndarray]) -> list[bytes]:
    """The bytes by which texts and rows of ids would stand in a file: as UTF-8, as JSON writes
    them, and as numbers of any type."""
    found = set()
    for text in texts:
        found |= {text.encode(), json.dumps(text)[1:-1].encode()}
        found.add(json.dumps(text, ensure_ascii=False)[1:-1].encode())
    for row in rows:
        row = np.asarray(row).ravel()
        if not row.size or (row == row[0]).all():
            continue
        for dtype in _WHOLE if row.dtype.kind in "iu" else (row.dtype,):
            if row.dtype.kind not in "iu" or (row.astype(dtype) == row).all():
                found.add(row.astype(dtype).tobytes())
    return sorted(each for each in found if len(each) >= LEAST_BYTES)


def in_files(files: Iterable[Path], wanted: Sequence[bytes]) -> list[Path]:
    """The files whose bytes hold one of the patterns."""
    found = []
    for path in files:
        if not path.stat().st_size:
            continue
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as held:
            if any(held.find(each) >= 0 for each in wanted):
                found.append(path)
    return found
