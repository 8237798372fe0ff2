"""Text as a stream: documents in, blocks of tokens out."""

import gzip
import hashlib
import io
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from jcl import strict
from jcl.data.streams import Batch, Stream, Task
from jcl.data.tokenization import BYTES, Tokenizer
from jcl.errors import InputError

_DOCUMENT_CHARACTERS = 2000
_ENDINGS = (".txt.gz", ".txt", ".jsonl")


class Blocks:
    """A token array cut in blocks of `length + 1` that advance by `length`.

    Every token but the first is so predicted exactly once. An example is
    `{"inputs": int32[length], "targets": int32[length]}`.

    Args:
        tokens: 1-D integer ids.
        length: targets a block.
        mask_remainder: for test parts. The last block is then filled with `pad` and every example
            has a `mask` (float32[length], 1 where the target counts); otherwise the remainder is
            dropped and there is no mask.
        pad: the id that fills the last block.

    Raises:
        InputError: the length is below 1, or the tokens are not 1-D integers.
    """

    def __init__(self, tokens: np.ndarray, length: int, mask_remainder: bool, *, pad: int = 0):
        tokens = np.asarray(tokens)
        _check_length(length)
        if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
            raise InputError(
                f"tokens are {tokens.dtype}{list(tokens.shape)}: give a 1-D array of integer ids"
            )
        self._length, self._masked = length, mask_remainder
        self._targets = max(len(tokens) - 1, 0)
        self._count = -(-self._targets // length) if mask_remainder else self._targets // length
        self._tokens = np.full(self._count * length + 1, pad, np.int32)
        kept = tokens[: len(self._tokens)]
        self._tokens[: len(kept)] = kept

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < self._count:
            raise IndexError(f"block {index} of {self._count}")
        return {key: leaf[0] for key, leaf in self.take(np.array([index])).items()}

    def take(self, indices: np.ndarray) -> Batch:
        """Gathers the blocks `indices`, batch axis first."""
        positions = np.asarray(indices)[:, None] * self._length + np.arange(self._length)
        batch: Batch = {"inputs": self._tokens[positions], "targets": self._tokens[positions + 1]}
        if self._masked:
            batch["mask"] = (positions < self._targets).astype(np.float32)
        return batch

    def arrays(self) -> Batch:
        """All blocks."""
        return self.take(np.arange(self._count))


def text_task(
    name: str,
    train_documents: Sequence[str],
    test_documents: Sequence[str],
    tokenizer: Tokenizer,
    length: int,
) -> Task:
    """Returns a task over documents: a separator before each, then blocks.

    The separator at the very start lets the first byte of the text be predicted too. The hash is
    over the token ids and the length, so it changes with the text, the tokenizer and the blocks.

    Raises:
        InputError: the length is below 1, or the text gives no whole train block or no test block.
    """
    train = _tokens(train_documents, tokenizer)
    test = _tokens(test_documents, tokenizer)
    sources = (
        Blocks(train, length, False, pad=tokenizer.pad),
        Blocks(test, length, True, pad=tokenizer.pad),
    )
    for part, tokens, source in zip(("train", "test"), (train, test), sources, strict=True):
        if not len(source):
            raise InputError(
                f"the {part} text of task '{name}' is too short: {len(tokens)} tokens give no "
                f"block of length {length}; give more text or a smaller length"
            )
    digest = hashlib.sha256(f"{length},{len(train)},{len(test)}:".encode())
    for tokens in (train, test):
        digest.update(tokens.astype("<i4").tobytes())
    return Task(name, *sources, digest.hexdigest())


def text_files(
    files: Mapping[str, str | PathLike | Sequence[str | PathLike]] | Sequence[str | PathLike],
    *,
    tokenizer: Tokenizer = BYTES,
    length: int = 128,
    test_fraction: float = 0.1,
    seed: int = 0,
) -> Stream:
    """Returns the stream "text" with one task for each entry of `files`.

    A `.txt` or `.txt.gz` file is cut at blank lines; paragraphs that follow each other are put
    together to documents of about 2,000 characters. A `.jsonl` file has one document a line, the
    string under its key `text`. Of the documents of a task the share `test_fraction`, drawn by
    `seed`, is the test part; where that is less than one document, the end of the text is.

    Args:
        files: `{task name: path or paths}`, or paths, each a task named like the file without its
            ending. The order is the order of the tasks.
        tokenizer: text to ids.
        length: targets a block.
        test_fraction: the share of the test part, above 0 and below 1.
        seed: of the split.

    Raises:
        InputError: a file is missing, empty, not UTF-8 or of another format (the message names the
            file and the line or byte), a task name occurs twice, the text is too short, or an
            argument is out of its range.
    """
    _check_length(length)
    if not 0 < test_fraction < 1:
        raise InputError(f"test_fraction is {test_fraction}: give a share above 0 and below 1")
    tasks = []
    for name, paths in _named_paths(files).items():
        documents = [document for path in paths for document in _read(path)]
        train, test = split_documents(documents, test_fraction, seed)
        tasks.append(text_task(name, train, test, tokenizer, length))
    return Stream("text", tuple(tasks))


def split_documents(
    documents: Sequence[str], test_fraction: float, seed: int
) -> tuple[list[str], list[str]]:
    """Returns train and test documents, drawn by `seed`, each in the order they came in.

    Where the share is less than one whole document, the end of the whole text is the test part.
    """
    count = round(len(documents) * test_fraction)
    if not 0 < count < len(documents):
        text = "\n\n".join(documents)
        cut = round(len(text) * (1 - test_fraction))
        return [text[:cut]], [text[cut:]]
    order = np.random.default_rng(seed).permutation(len(documents))
    chosen = {int(index) for index in order[:count]}
    train = [document for index, document in enumerate(documents) if index not in chosen]
    return train, [documents[index] for index in sorted(chosen)]


def group(pieces: Sequence[str], joiner: str, characters: int = _DOCUMENT_CHARACTERS) -> list[str]:
    """Returns `pieces` joined to documents, each closed once it has at least `characters`."""
    documents, current, size = [], [], 0
    for piece in pieces:
        current.append(piece)
        size += len(piece)
        if size >= characters:
            documents.append(joiner.join(current))
            current, size = [], 0
    if current:
        documents.append(joiner.join(current))
    return documents


def paragraphs(text: str) -> list[str]:
    """Returns the parts of `text` between blank lines, without those of white space only."""
    return [part.strip("\n") for part in re.split(r"\n[ \t]*\n", text) if part.strip()]


def _tokens(documents: Sequence[str], tokenizer: Tokenizer) -> np.ndarray:
    separator = np.array([tokenizer.separator], np.int32)
    pieces = [piece for document in documents for piece in (separator, tokenizer.encode(document))]
    return np.concatenate([np.array([], np.int32), *pieces])


def _named_paths(files) -> dict[str, list[Path]]:
    if isinstance(files, str | PathLike) or not files:
        raise InputError(
            f"files is {files!r}: give a list of paths, or a dict {{task name: path or paths}}"
        )
    every = files.values() if isinstance(files, Mapping) else files
    for each in every:
        for path in each if isinstance(each, Sequence) and not isinstance(each, str) else [each]:
            if not isinstance(path, str | PathLike):
                raise InputError(f"files holds {path!r}: give paths, as strings or pathlib.Path")
    if isinstance(files, Mapping):
        named = {
            name: [Path(path) for path in ([paths] if isinstance(paths, str | PathLike) else paths)]
            for name, paths in files.items()
        }
        for name, paths in named.items():
            if not paths:
                raise InputError(f"task '{name}' has no file: give it at least one path")
        return named
    named = {}
    for path in map(Path, files):
        name = path.name.removesuffix(_ending(path))
        if name in named:
            raise InputError(
                f"{named[name][0]} and {path} both give a task named '{name}': "
                "give files as a dict {task name: path}"
            )
        named[name] = [path]
    return named


def _ending(path: Path) -> str:
    for ending in _ENDINGS:
        if path.name.endswith(ending):
            return ending
    raise InputError(f"{path} does not end in {', '.join(_ENDINGS)}: convert it to one of these")


def read_utf8(path: Path) -> str:
    """Returns the text of a file, unpacked where its name ends in `.gz`, with \\n as line ends.

    Raises:
        InputError: it is missing, a directory, cannot be read, or is not UTF-8 (or not gzip, or
            packed so well that it would fill the memory).
    """
    if path.is_dir():
        raise InputError(f"{path} is a directory: give the files in it")
    try:
        strict.size(path)
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: check the path") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): check its rights") from None
    except ValueError as error:
        raise InputError(f"{path}: {error}: give a file") from None
    if path.name.endswith(".gz"):
        most = max(2**24, strict.PACKED_TO * len(data))
        try:
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as packed:
                data = packed.read(most + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{path} is not a whole gzip file ({error}): pack it again") from None
        if len(data) > most:
            raise InputError(
                f"{path} unpacks to more than {most:,} bytes, as no text does: unpack it yourself "
                "if you trust it"
            )
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8: the byte at offset {error.start} is 0x{data[error.start]:02x}; "
            "convert it, for example with `iconv -t utf-8`"
        ) from None
    return text.removeprefix("\ufeff").replace("\r\n", "\n")


def json_lines(path: Path, text: str, such_as: str) -> Iterator[tuple[int, Any]]:
    """Yields the number of every line that is not blank, from 1, and the JSON value on it.

    Raises:
        InputError: a line is not JSON or of more than 8,000,000 characters; the message names it,
            and shows the object `such_as`.
    """
    # str.splitlines would also cut at U+2028, which may stand inside a JSON string.
    for number, line in enumerate(text.split("\n"), start=1):
        check_line(path, number, line)
        if not line.strip():
            continue
        try:
            record = strict.parse_json(line)
        except ValueError as error:
            raise InputError(
                f"{path}, line {number} is not JSON ({error}): write one object like {such_as} "
                "a line"
            ) from None
        yield number, record


def check_line(path: Path, number: int, line: str) -> None:
    """Passes a line of a table that is no longer than an example can be.

    Raises:
        InputError: it is longer.
    """
    if len(line) > strict.LINE_CHARACTERS:
        raise InputError(
            f"{path}, line {number} has {len(line):,} characters, where "
            f"{strict.LINE_CHARACTERS:,} are the most: divide its text among several lines"
        )


def check_whole(text: str, place: str, key: str) -> None:
    """Passes text without half a surrogate pair, which JSON can write and UTF-8 cannot.

    Raises:
        InputError: there is one; the message names `place` and `key`.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{place} holds half a surrogate pair at character {error.start} of '{key}': "
            "write the whole character"
        ) from None


def _read(path: Path) -> list[str]:
    ending = _ending(path)
    text = read_utf8(path)
    documents = _documents(path, text) if ending == ".jsonl" else group(paragraphs(text), "\n\n")
    if not any(document.strip() for document in documents):
        raise InputError(f"{path} holds no text: fill it or leave it out")
    return documents


def _documents(path: Path, text: str) -> list[str]:
    documents, such_as = [], '{"text": "..."}'
    for number, record in json_lines(path, text, such_as):
        if not isinstance(record, dict) or not isinstance(record.get("text"), str):
            raise InputError(
                f"{path}, line {number} has no string under the key 'text': "
                f"write one object like {such_as} a line"
            )
        check_whole(record["text"], f"{path}, line {number}", "text")
        documents.append(record["text"])
    return documents


def _check_length(length: int) -> None:
    if not isinstance(length, int | np.integer) or length < 1:
        raise InputError(f"length is {length}: give a whole number of at least 1")
