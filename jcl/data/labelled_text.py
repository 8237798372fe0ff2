"""Rows of labelled texts as a stream: ids of one static length, and masks."""

import functools
import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from jcl import checks
from jcl.data.arrays import Arrays
from jcl.data.streams import Batch, Stream, Task
from jcl.data.tables import Row
from jcl.errors import InputError

Scenario = Literal["task", "domain", "class"]

# A fast tokenizer that two threads ask at once, with and without truncation, raises an error.
_ONE_AT_A_TIME = threading.Lock()


class Encoder(Protocol):
    """What these streams ask of a tokenizer, beside an id for padding.

    That id is its `pad_token_id`, as transformers' tokenizers have it, or else its `pad`, as jcl's.
    """

    def encode(self, text: str, /) -> Any:
        """Returns the ids of `text`, special ones included."""
        ...


@dataclass(frozen=True)
class Encoding:
    """How the texts of a stream became its ids.

    Attributes:
        tokenizer: text to ids.
        length: tokens of an example.
        pad: the id behind the end of a text.
    """

    tokenizer: Encoder
    length: int
    pad: int

    @functools.cached_property
    def special(self) -> list[int]:
        """The ids that stand for no text, in order."""
        separator = getattr(self.tokenizer, "separator", None)
        named = getattr(self.tokenizer, "all_special_ids", None) or [separator]
        return sorted({self.pad, *(int(each) for each in named if each is not None)})

    def __call__(self, text: str) -> tuple[np.ndarray, int]:
        """Returns the ids of a text, int32[length] and filled on the right, and how many they are;
        0 where the tokenizer gives none."""
        with _ONE_AT_A_TIME:
            ids = _ids(self.tokenizer, text, "a text")
            if len(ids) > self.length:
                ids = _cut(self.tokenizer, text, ids, self.length)
        filled = np.full(self.length, self.pad, np.int32)
        filled[: len(ids)] = ids
        return filled, len(ids)


class Texts(Arrays):
    """What labelled texts are learned from: their ids, and beside them the texts themselves.

    Attributes:
        texts: of the examples.
        encoding: what made their ids of them.
    """

    def __init__(
        self,
        leaves: Mapping[str, np.ndarray],
        texts: Sequence[str],
        encoding: Encoding,
        *,
        constants: Batch,
    ):
        super().__init__(leaves, constants=constants)
        self.texts, self.encoding = tuple(texts), encoding


@dataclass(frozen=True)
class TextStream(Stream):
    """A stream of labelled texts.

    A batch holds `inputs` (int32[batch, length], filled on the right), `attention_mask`
    (int32[batch, length], 1 where a token counts) and `targets` (int32[batch]); in the task
    scenario also `task` (int32[batch]) and `label_mask` (bool[batch, classes]).

    Attributes:
        labels: the names of the classes, by class number.
        classes: how many targets there are: the outputs that a model needs.
        length: tokens of every example, one for the whole run.
        longest: tokens of the longest text, of train and test parts together.
        truncated: how many texts of both were cut to `length`.
    """

    labels: tuple[str, ...] = ()
    classes: int = 0
    length: int = 0
    longest: int = 0
    truncated: int = 0


def labelled_texts(
    name: str,
    train: Sequence[Row],
    test: Sequence[Row],
    groups: Mapping[str, Sequence[str]],
    labels: Sequence[str],
    scenario: Scenario,
    tokenizer: Encoder,
    length: int | None,
    *,
    positions: bool,
) -> TextStream:
    """The stream of rows whose `domain` is the name of their task, called by a public function.

    Args:
        name: of the stream, before the scenario.
        train: all rows to learn.
        test: all rows to test.
        groups: {task: the labels that it has}, in the order of the tasks.
        labels: of all classes, by class number.
        scenario: which.
        tokenizer: text to ids.
        length: tokens of an example, or None for the longest text's.
        positions: whether targets are the positions in the group.
    """
    if len(labels) < 2:
        raise InputError(
            f"{name}: every train row has the label '{labels[0]}': give texts of at least two"
        )
    length, longest, truncated, tokens = _tokens([*train, *test], tokenizer, length)
    encoding = Encoding(tokenizer, length, _pad(tokenizer))
    if truncated:
        warnings.warn(
            f"{name}: {truncated} of {len(train) + len(test)} texts were cut to {length} tokens; "
            f"the longest has {longest}: raise length to keep them whole",
            stacklevel=3,
        )
    number = {label: index for index, label in enumerate(labels)}
    sources: dict[tuple[str, bool], list[int]] = {}
    rows = [*train, *test]
    for index, row in enumerate(rows):
        sources.setdefault((row.domain, index >= len(train)), []).append(index)
    built = []
    for task, (domain, group) in enumerate(groups.items()):
        within = {label: place for place, label in enumerate(group)} if positions else number
        constants = {}
        if scenario == "task":
            mask = np.isin(np.arange(len(labels)), [number[label] for label in group])
            constants = {"task": np.int32(task), "label_mask": mask}
        both = []
        for is_test in (False, True):
            chosen = sources.get((domain, is_test), [])
            targets = np.array([within[rows[index].label] for index in chosen], np.int32)
            leaves = {key: leaf[chosen] for key, leaf in tokens.items()} | {"targets": targets}
            if is_test:
                both.append(Arrays(leaves, constants=constants))
            else:
                texts = [rows[index].text for index in chosen]
                both.append(Texts(leaves, texts, encoding, constants=constants))
        built.append(Task(domain, both[0], both[1], both[0].hash() + both[1].hash()))
    return TextStream(
        f"{name}, {scenario}",
        tuple(built),
        labels=tuple(labels),
        classes=max(len(group) for group in groups.values()) if positions else len(labels),
        length=length,
        longest=longest,
        truncated=truncated,
    )


def _tokens(
    rows: Sequence[Row], tokenizer: Encoder, length: int | None
) -> tuple[int, int, int, dict[str, np.ndarray]]:
    """Returns length, longest, truncated, and the leaves inputs and attention_mask."""
    # Bytes have none; [CLS] and [SEP] around every text are two.
    special = _ids(tokenizer, "", "an empty text").tolist()
    least = len(special) + 1
    if length is not None and checks.whole("text", "length", length) < least:
        raise InputError(
            f"length is {length}: the tokenizer adds {least - 1} special tokens to every text, so "
            f"give at least {least}"
        )
    ids = [_ids(tokenizer, row.text, row.place) for row in rows]
    found: set[int] = set()
    for each in ids:
        found.update({*each.tolist()} - {*special})
        if len(found) > 1:
            break
    if not found or (len(found) < 2 and len({row.text for row in rows}) > 1):
        gives = "every token of {} texts the same id" if found else "no token for any of {} texts"
        raise InputError(
            f"the tokenizer gives {gives.format(len(rows))}: its vocabulary is empty; load it with "
            "transformers.AutoTokenizer.from_pretrained(folder)"
        )
    for row, each in zip(rows, ids, strict=True):
        if not len(each):
            raise InputError(f"{row.place}: the text gives no token: drop the row")
    pad = _pad(tokenizer)
    longest = max(len(each) for each in ids)
    length = length or longest
    inputs = np.full((len(rows), length), pad, np.int32)
    lengths = np.array([len(each) for each in ids])
    for index, each in enumerate(ids):
        if len(each) > length:
            each = _cut(tokenizer, rows[index].text, each, length)
        inputs[index, : len(each)] = each
    mask = (np.arange(length) < lengths[:, None]).astype(np.int32)
    leaves = {"inputs": inputs, "attention_mask": mask}
    return length, longest, int((lengths > length).sum()), leaves


def _ids(tokenizer: Encoder, text: str, place: str) -> np.ndarray:
    ids = np.asarray(tokenizer.encode(text))
    if ids.size == 0:
        return np.zeros(0, np.int32)
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise InputError(
            f"{place}: tokenizer.encode gives {ids.dtype}{list(ids.shape)}, not a list of ids: use "
            "transformers' tokenizer (PreTrainedTokenizerFast(tokenizer_object=...) wraps one of "
            "the package tokenizers), or jcl.data.ByteTokenizer()"
        )
    return ids.astype(np.int32)


def _cut(tokenizer: Any, text: str, ids: np.ndarray, length: int) -> np.ndarray:
    # Only the tokenizer knows that its closing token must stay at the end of a cut text.
    if hasattr(tokenizer, "pad_token_id"):
        return np.asarray(tokenizer.encode(text, truncation=True, max_length=length))
    return ids[:length]


def _pad(tokenizer: Any) -> int:
    # transformers' tokenizers have a method named pad.
    pad = getattr(tokenizer, "pad_token_id", None)
    pad = getattr(tokenizer, "pad", None) if pad is None else pad
    if not isinstance(pad, int | np.integer):
        raise InputError(
            f"a {type(tokenizer).__name__} without an id for padding: set it, for example with "
            "tokenizer.pad_token = tokenizer.eos_token; padding is masked, so any id will do"
        )
    return int(pad)
