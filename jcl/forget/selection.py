"""Which stored examples are meant: by their text, a pattern in it, their label or their task."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jcl import strict
from jcl.errors import InputError
from jcl.forget import remains

# Of a text that a block of tokens was cut within, so many characters at the block's edge count.
EDGE = 8
_KINDS = ("text", "regex", "label", "task")
_MARKS = ("pad", "cls", "sep", "bos", "eos")


class Selection(NamedTuple):
    """What is looked for; an example is meant where any of it is true of it.

    Attributes:
        texts: whole texts.
        patterns: regular expressions, searched in the text.
        labels: names or numbers of classes.
        tasks: names or numbers of tasks.
    """

    texts: tuple[str, ...]
    patterns: tuple[re.Pattern[str], ...]
    labels: tuple[str, ...]
    tasks: tuple[str, ...]

    @property
    def by_text(self) -> bool:
        """Whether the tokenizer is needed."""
        return bool(self.texts or self.patterns)

    def kinds(self) -> list[str]:
        """What may be told of it: neither a text nor a pattern, which may name somebody."""
        told = ["text"] * bool(self.texts) + ["regex"] * bool(self.patterns)
        told += [f"label={label}" for label in self.labels]
        return told + [f"task={task}" for task in self.tasks]


def read(where: Sequence[str], file: Path | None) -> Selection:
    """The selection of the command's `--where KIND=VALUE`, and of a file with a text a line.

    Raises:
        InputError: there is none, or one that is not understood.

    >>> read(['text=my name is Ada', 'label=3'], None).kinds()
    ['text', 'label=3']
    """
    found: dict[str, list[str]] = {kind: [] for kind in _KINDS}
    for each in where:
        kind, equals, value = each.partition("=")
        if kind not in found or not equals or not value.strip():
            raise InputError(
                f"--where {kind[:20]}=...: give one of text=TEXT, regex=PATTERN, label=NAME and "
                'task=NAME, such as --where text="my name is Ada".'
            )
        found[kind].append(value)
    found["text"] += _of_file(file) if file else []
    if not any(found.values()):
        raise InputError(
            'say which examples: --where text="...", regex=PATTERN, label=NAME or task=NAME, or '
            "--where-file texts.jsonl."
        )
    try:
        patterns = tuple(re.compile(pattern) for pattern in found["regex"])
    except re.error as error:
        raise InputError(f"--where regex=...: the pattern is wrong: {error}.") from error
    return Selection(tuple(found["text"]), patterns, tuple(found["label"]), tuple(found["task"]))


def _of_file(path: Path) -> list[str]:
    texts = []
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--where-file {path} cannot be read ({error}).") from error
    for number, line in enumerate(lines, 1):
        try:
            value = strict.parse_json(line) if line.strip() else None
        except ValueError as error:
            raise InputError(f"{path}, line {number} is no JSON ({error}).") from error
        value = value.get("text") if isinstance(value, dict) else value
        if isinstance(value, str) and value.strip():
            texts.append(value)
        elif line.strip():
            raise InputError(f'{path}, line {number}: give "a text" or {{"text": "a text"}}.')
    return texts


class Chooser:
    """A selection, with what it takes to know a run's numbers by.

    Args:
        selection: what is looked for.
        labels: the names of the classes, by number.
        tasks: the names of the tasks, by number.
        tokenizer: of the texts; needed where the selection is by text.
        parts: whether a line is meant that holds a text, as of a language model, and not only one
            that is it.

    Attributes:
        reads_back: whether the tokenizer gives the text of ids, which a pattern needs.

    Raises:
        InputError: a name is none of the run's.
    """

    def __init__(
        self,
        selection: Selection,
        *,
        labels: Sequence[str] = (),
        tasks: Sequence[str] = (),
        tokenizer: Any = None,
        parts: bool = False,
    ):
        self.selection, self.tokenizer, self._parts = selection, tokenizer, parts
        self.reads_back = callable(getattr(tokenizer, "decode", None))
        self._labels = _numbers("label", selection.labels, labels)
        self._tasks = _numbers("task", selection.tasks, tasks)
        self._names = {*selection.labels, *(labels[n] for n in self._labels if n < len(labels))}
        if tokenizer is not None:
            normal = (self._decoded(self._encoded(text)) for text in selection.texts)
            self._normal = [text for text in normal if text]
            named = [getattr(tokenizer, f"{name}_token_id", None) for name in _MARKS]
            named += [getattr(tokenizer, name, None) for name in ("separator", "pad")]
            self._marks = [int(each) for each in named if isinstance(each, int | np.integer)]

    def of_items(self, items: Mapping[str, np.ndarray], where: str) -> np.ndarray:
        """[number], whether each item is meant.

        Args:
            items: every leaf is [number, ...].
            where: what to call them.

        Raises:
            InputError: they lack what they are to be chosen by, or the tokenizer is missing.
        """
        chosen = np.zeros(len(next(iter(items.values()))), bool)
        if self._labels:
            targets = _needed(items, "targets", "label", where)
            if targets.ndim != 1:
                raise InputError(f"--where label=...: the examples of {where} have no labels.")
            chosen |= np.isin(targets, self._labels)
        if self._tasks:
            chosen |= np.isin(_needed(items, "task", "task", where), self._tasks)
        if self.selection.by_text:
            if self.tokenizer is None:
                raise InputError(
                    "--where text= and regex= need the tokenizer of the run, and the experiment "
                    "has none: give it one in the config, jcl.Experiment(tokenizer=...), or choose "
                    "by label= or task=."
                )
            inputs = _needed(items, "inputs", "text", where)
            if not np.issubdtype(inputs.dtype, np.integer) or inputs.ndim != 2:
                raise InputError(f"--where text=...: the examples of {where} are no texts.")
            blocks = items.get("targets", np.zeros(0)).shape == inputs.shape
            for number, row in enumerate(inputs):
                chosen[number] |= self.of_ids(row, items["targets"][number] if blocks else None)
        return chosen

    def of_ids(self, inputs: np.ndarray, targets: np.ndarray | None) -> bool:
        """Whether an example is meant by its text.

        Args:
            inputs: [length] ids.
            targets: [length] ids of a language model's, one on; None of a labelled text.
        """
        if targets is None:
            return self._meant(inputs, False)
        return self._meant(np.append(inputs, targets[-1]), True)

    def of_line(self, record: Mapping[str, Any], text: str, label: str) -> bool:
        """Whether a line of JSON is meant.

        Args:
            record: the line.
            text: its field of the text.
            label: its field of the label.
        """
        found, name = record.get(text), record.get(label)
        if isinstance(found, str):
            sought = [each.strip() for each in self.selection.texts]
            if any(found.strip() == each or (self._parts and each in found) for each in sought):
                return True
            if any(pattern.search(found) for pattern in self.selection.patterns):
                return True
        return name is not None and str(name) in self._names

    def of_bytes(self, line: bytes) -> bool:
        """Whether a line that is no example, such as one of broken JSON, holds a text of at least
        8 bytes or fits a pattern as it stands."""
        if any(each in line for each in remains.patterns(self.selection.texts, [])):
            return True
        found = line.decode(errors="replace")
        return any(pattern.search(found) for pattern in self.selection.patterns)

    def text_of(self, row: np.ndarray) -> str:
        """The text that a row of ids stands for."""
        return " ".join(self._texts(row))

    def _meant(self, row: np.ndarray, block: bool) -> bool:
        texts = self._texts(row)
        whole = self._decoded(row) if block else " ".join(texts)
        if self.reads_back and any(pattern.search(whole) for pattern in self.selection.patterns):
            return True
        if block:
            return any(_overlaps(whole, text) for text in self._normal)
        cut = self._is_full(row)
        return any(
            text == each or (cut and text.startswith(each))
            for text in self._normal
            for each in texts
        )

    def _is_full(self, row: np.ndarray) -> bool:
        """Whether no padding follows, so that the text may have been cut."""
        tokenizer = self.tokenizer
        pad = getattr(tokenizer, "pad_token_id", None)
        pad = getattr(tokenizer, "pad", None) if pad is None else pad
        return row[-1] != pad

    def _texts(self, row: np.ndarray) -> list[str]:
        """The text between each two marks, such as those of the beginning and the padding."""
        edges = np.flatnonzero(np.isin(row, self._marks))
        pieces = np.split(row, edges)
        texts = [self._decoded(piece[np.isin(piece, self._marks, invert=True)]) for piece in pieces]
        return [text for text in texts if text]

    def _encoded(self, text: str) -> np.ndarray:
        own = hasattr(self.tokenizer, "pad_token_id")
        ids = self.tokenizer.encode(text, **({"add_special_tokens": False} if own else {}))
        return np.asarray(ids)

    def _decoded(self, ids: np.ndarray) -> str:
        if not self.reads_back:
            return "".join(map(chr, ids.tolist()))  # ids compare as a text would
        own = hasattr(self.tokenizer, "pad_token_id")
        if own:
            return self.tokenizer.decode(ids.tolist(), skip_special_tokens=True).strip()
        return self.tokenizer.decode(ids).strip()


def _overlaps(block: str, text: str) -> bool:
    """Whether a block of a longer text holds this one, or a piece of it at an edge."""
    if text in block or (len(block) >= EDGE and block in text):
        return True
    lengths = range(EDGE, min(len(block), len(text)))
    return any(block.endswith(text[:n]) or block.startswith(text[-n:]) for n in lengths)


def _needed(items: Mapping[str, np.ndarray], key: str, kind: str, where: str) -> np.ndarray:
    if key not in items:
        raise InputError(
            f"--where {kind}=...: the examples of {where} hold {', '.join(items)}, and no {key!r}: "
            "choose them by something else."
        )
    return np.asarray(items[key])


def _numbers(kind: str, given: Sequence[str], names: Sequence[str]) -> list[int]:
    found = []
    for each in given:
        if each in names:
            found.append(list(names).index(each))
        elif each.isdecimal():
            found.append(int(each))
        else:
            some = ", ".join(names[:5]) or "no names, only numbers"
            raise InputError(f"--where {kind}={each}: the run's {kind}s are {some}.")
    return found
