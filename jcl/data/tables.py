"""Labelled texts from files, saved Hugging Face sets and tensorflow-datasets, as checked rows."""

import csv
import json
import os
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jcl import strict
from jcl.data.prepared import prepared
from jcl.data.text import check_line, check_whole, json_lines, read_utf8
from jcl.errors import InputError

_ENDINGS = (".csv", ".tsv", ".jsonl")
# The name of a set of tensorflow-datasets, with its config and version.
_SET = re.compile(r"\w+(/[\w.-]+)?(:[\d.]+)?")
_QUOTES = 'within quotation marks, one that is a letter is written twice ("")'


class Row(NamedTuple):
    """One labelled text.

    Attributes:
        text: not blank; of a pair the first.
        label: the name of its class.
        domain: the name of what it belongs to beside its class; "" where nothing was asked for.
        part: such as "train", where a column says so; else "".
        place: where it was read, for messages.
        pair: of a pair of texts the second, not blank; else None.
    """

    text: str
    label: str
    domain: str
    part: str
    place: str
    pair: str | None = None


class Columns(NamedTuple):
    """Which columns a row is read from; None where nothing is asked for."""

    text: str
    label: str
    domain: str | None = None
    part: str | None = None
    pair: str | None = None


class Table(NamedTuple):
    """Rows, and the names of their labels in the order of the set, where it has one."""

    rows: list[Row]
    order: tuple[str, ...] | None


def read_table(source: str | os.PathLike, columns: Columns, part: str) -> Table:
    """Reads one file, folder or prepared set.

    Args:
        source: a .csv (fields may be quoted), .tsv (a quotation mark is a letter) or .jsonl file; a
            folder that Hugging Face's save_to_disk wrote; or the name of a tensorflow-datasets
            set that has been prepared as array_record.
        columns: whose columns.
        part: of a set or a folder that has parts; a file has none, and is read whole.

    Raises:
        InputError: it is not there, not of that format, empty, or a row is not usable.
    """
    path = Path(source)
    names: Mapping[str, list[str]] = {}
    if path.is_dir():
        records, names = _saved(path, columns, part)
    elif _ending(path) in _ENDINGS:
        records = (_jsonl if _ending(path) == ".jsonl" else _csv)(path, columns)
    elif isinstance(source, str) and _SET.fullmatch(source) and not path.is_file():
        records, names = _prepared(source, part)
    else:
        raise InputError(
            f"{source} is no folder, and does not end in {', '.join(_ENDINGS)}: give such a file, "
            "unpacked (JSON as an object a line), a folder saved by Hugging Face datasets, or the "
            "name of a tensorflow-datasets set"
        )
    rows = [_row(place, record, columns, names) for place, record in records]
    if not rows:
        raise InputError(f"{source} holds no row: fill it or leave it out")
    order = names.get(columns.label)
    return Table(rows, tuple(order) if order else None)


def has_parts(source: str | os.PathLike) -> bool:
    """Whether the source itself is divided in parts, as a set is and a file is not."""
    path = Path(source)
    if path.is_dir():
        return (path / "dataset_dict.json").is_file()
    return _ending(path) not in _ENDINGS


def _ending(path: Path) -> str:
    return path.suffix.lower()


def _row(place: str, record: Mapping[str, Any], columns: Columns, names) -> Row:
    for column in filter(None, columns):
        if column not in record:
            found = ", ".join(f"'{key}'" for key in record)
            raise InputError(
                f"{place} has no column '{column}', but {found or 'none'}: name the right one, as "
                'in text_classification(..., text="sentence", label="intent")'
            )
    text = _text(place, columns.text, record[columns.text])
    pair = columns.pair and _text(place, columns.pair, record[columns.pair])
    label, domain, part = (
        _name(place, column, record[column], names.get(column)) if column else ""
        for column in (columns.label, columns.domain, columns.part)
    )
    return Row(text, label, domain, part, place, pair)


def _text(place: str, column: str, value: Any) -> str:
    value = value.decode("utf-8", errors="replace") if isinstance(value, bytes) else value
    if not isinstance(value, str):
        raise InputError(
            f"{place}: '{column}' is {value!r}, no text: write a string, or name another "
            "column with text="
        )
    if not value.strip():
        raise InputError(f"{place}: '{column}' is blank: write a text or drop the row")
    check_whole(value, place, column)
    return value


def _name(place: str, column: str, value: Any, names: list[str] | None) -> str:
    """The name of a class or of a domain, from text or a whole number, without space around it."""
    value = value.item() if getattr(value, "size", 0) == 1 else value
    value = value.decode("utf-8", errors="replace") if isinstance(value, bytes) else value
    if isinstance(value, int) and not isinstance(value, bool) and names is not None:
        if not 0 <= value < len(names):
            raise InputError(
                f"{place}: '{column}' is {value}, which has no name among {len(names)}; parts "
                "whose labels are kept back have -1: choose another with parts=, such as "
                'parts=("train", "validation")'
            )
        return names[value]
    if not isinstance(value, str | int) or isinstance(value, bool) or not str(value).strip():
        raise InputError(f"{place}: '{column}' is {value!r}: write a name or a whole number")
    return str(value).strip()


def _jsonl(path: Path, columns: Columns) -> Iterator[tuple[str, dict]]:
    such_as = json.dumps({column: "..." for column in filter(None, columns)})
    for number, record in json_lines(path, read_utf8(path), such_as):
        place = f"{path}, line {number}"
        if not isinstance(record, dict):
            raise InputError(f"{place} is no JSON object: write one like {such_as} a line")
        yield place, record


def _csv(path: Path, columns: Columns) -> Iterator[tuple[str, dict]]:
    text, tabs = read_utf8(path), _ending(path) == ".tsv"
    # Python's own limit is of 131,072 characters, and of the whole process: it is never lowered.
    csv.field_size_limit(max(csv.field_size_limit(), len(text) + 1))
    # Where tabs divide the fields a quotation mark is a letter, and may stand alone.
    quoting = csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL
    reader = csv.reader(
        _lines(path, text), delimiter="\t" if tabs else ",", quoting=quoting, strict=not tabs
    )
    header, start = None, 1
    tall, names = [], {column: set() for column in columns[1:4] if column}
    try:
        for cells in reader:
            first, start = start, reader.line_num + 1
            place = f"{path}, line {first}"
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = cells
                if len(set(header)) < len(header):
                    raise InputError(f"{place} names a column twice ({header}): rename one")
                continue
            if len(cells) != len(header):
                remedy = (
                    "a text must not hold a tab: write one that does as .csv or .jsonl"
                    if tabs
                    else f"put a text that holds the delimiter in double quotes; {_QUOTES}"
                )
                raise InputError(
                    f"{place} has {len(cells)} fields, the header {len(header)}: {remedy}"
                )
            record = dict(zip(header, cells, strict=True))
            if start > first + 1:
                tall.append((first, start - 1, cells))
            else:
                for column in names.keys() & record:
                    names[column].add(record[column])
            yield place, record
    except csv.Error as error:
        raise InputError(
            f"{path}, line {start} to {reader.line_num}: {error}: where a quotation mark opens a "
            f"text, another must close it; {_QUOTES}"
        ) from None
    for first, last, cells in tall:
        if _holds_rows(header or [], cells, names):
            raise InputError(
                f"{path}, line {first} to {last}: between two quotation marks, as one text, stand "
                f"lines that are rows by themselves; {_QUOTES}, or write the table as .jsonl"
            )


def _holds_rows(header: list[str], cells: list[str], names: dict[str, set[str]]) -> bool:
    """Whether a field of several lines has swallowed rows: of a line within it the cells are as
    many as they must be, and those of a label, domain or part are such as other rows have."""
    for place, cell in enumerate(cells):
        lines = [line.split(",") for line in cell.split("\n")]
        if len(lines) == 1:
            continue
        wanted = [header[place:], *[header] * (len(lines) - 2), header[: place + 1]]
        for columns, line in zip(wanted, lines, strict=True):
            told = [
                found in names[column]
                for column, found in zip(columns, line, strict=False)
                if column in names and column != header[place]
            ]
            if len(line) == len(columns) and told and all(told):
                return True
    return False


def _lines(path: Path, text: str) -> Iterator[str]:
    for number, line in enumerate(text.split("\n"), start=1):
        check_line(path, number, line)
        yield line + "\n"


def _saved(path: Path, columns: Columns, part: str) -> tuple[Iterable, dict[str, list[str]]]:
    """Rows of a folder that save_to_disk wrote: arrow streams beside two JSON files."""
    import pyarrow

    if has_parts(path):
        parts = _json(path / "dataset_dict.json", {"splits": [str]})["splits"]
        if part not in parts:
            raise InputError(
                f"{path} has the parts {', '.join(parts)}, not '{part}': choose with parts="
            )
        path = path / part
    state = _json(path / "state.json", {"_data_files": [{"filename": str}]})
    files = [each["filename"] for each in state["_data_files"]]
    for file in files:
        # A path would lead elsewhere.
        if Path(file).name != file:
            raise InputError(
                f"{path / 'state.json'}: '{file}' is no name of a file in the folder: save it again"
            )
    described = _json(path / "dataset_info.json", {}).get("features") or {}
    _check(path / "dataset_info.json", described, {str: object})
    names = {}
    for column, feature in described.items():
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
            _check(path / "dataset_info.json", feature, {"names": [str]})
            names[column] = feature["names"]
    wanted = set(filter(None, columns))

    def records():
        number = 0
        for file in files:
            try:
                length = strict.size(path / file)
                # Hugging Face writes arrow's streaming format, which has no index at its end.
                with pyarrow.memory_map(str(path / file)) as mapped:
                    if any(map(_packed, pyarrow.ipc.MessageReader.open_stream(mapped))):
                        raise ValueError("it is packed, as Hugging Face writes none")
                    mapped.seek(0)
                    table = pyarrow.ipc.open_stream(mapped).read_all()
                    # Lengths and places within the file that are wrong would be followed.
                    table.validate(full=True)
                    found = _rows(table, wanted, length)
            except (
                OSError, ValueError, TypeError, LookupError, struct.error, pyarrow.ArrowException
            ) as error:  # fmt: skip
                raise InputError(
                    f"{path / file} is no arrow stream ({error}): save it again"
                ) from None
            for record in found:
                yield f"{path}, example {number}", record
                number += 1

    return records(), names


def _rows(table: Any, wanted: set[str], length: int) -> list[dict[str, Any]]:
    """The rows of an arrow table from a file of that length; their names alone where one lacks.

    Of types that may say much in few bytes (dictionaries, views, lists) none is unfolded.
    """
    from pyarrow import types

    if not wanted <= {*table.column_names}:
        return [dict.fromkeys(table.column_names)]
    for name in sorted(wanted):
        kind = table.schema.field(name).type
        kinds = (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary)
        text = any(one(kind) for one in kinds)
        if not (text or types.is_primitive(kind) or types.is_null(kind)):
            raise ValueError(f"the column '{name}' is of the type {kind}, no text or number")
    if table.num_rows > length:
        raise ValueError(f"it says {table.num_rows:,} rows in {length:,} bytes")
    return table.select(sorted(wanted)).to_pylist()


def _packed(message: Any) -> bool:
    """Whether a part of an arrow stream is packed: it would say itself how long it becomes.

    In the table RecordBatch of Message.fbs, a flatbuffer, that is the fourth field, which pyarrow
    does not show.
    """

    def number(kind: str, place: int) -> int:
        return struct.unpack_from(kind, message.metadata, place)[0]

    def field(table: int, which: int) -> int:
        places = table - number("<i", table)
        held = 4 + 2 * which < number("<H", places)
        offset = number("<H", places + 4 + 2 * which) if held else 0
        return table + offset if offset else 0

    def inner(table: int, which: int) -> int:
        place = field(table, which)
        return place + number("<I", place)

    if message.type not in ("record batch", "dictionary"):
        return False
    batch = inner(number("<I", 0), 2)
    return bool(field(batch if message.type == "record batch" else inner(batch, 1), 3))


def _prepared(name: str, part: str) -> tuple[Iterable, dict[str, list[str]]]:
    """Rows of a tensorflow-datasets set on the disk; nothing is downloaded."""
    try:
        builder = prepared(name)
        features: Any = builder.info.features
        if part not in builder.info.splits:
            raise InputError(
                f"{name} has the parts {', '.join(builder.info.splits)}, not '{part}': choose with "
                "parts="
            )
        examples: Any = builder.as_data_source(part)
    except InputError:
        raise
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise InputError(
            f"{name} is no file or folder here, and no tensorflow-datasets set that has been "
            f"prepared as array_record ({type(error).__name__}: {reason}): check the path, or run "
            "once: import tensorflow_datasets as tfds, tensorflow_datasets.text; "
            f'tfds.builder("{name}", file_format="array_record").download_and_prepare()'
        ) from None
    names = {key: each.names for key, each in features.items() if getattr(each, "names", None)}
    rows = ((f"{name}, {part} example {i}", examples[i]) for i in range(len(examples)))
    return rows, names


def _json(path: Path, shape: dict) -> dict:
    try:
        found = strict.read_json(path)
    except OSError:
        raise InputError(
            f"{path} does not exist: a folder must be one that Hugging Face's save_to_disk wrote"
        ) from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}): save the set again") from None
    _check(path, found, shape)
    return found


def _check(path: Path, found: Any, shape: dict) -> None:
    try:
        strict.fits(found, shape)
    except ValueError as error:
        raise InputError(f"{path}: {error}: save the set again") from None
