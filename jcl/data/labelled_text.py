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
            row = Row(text, "", "", "", "a text")
            ids, _ = _encoded(self.tokenizer, row)
            if len(ids) > self.length:
                ids, _ = _encoded(self.tokenizer, row, self.length)
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
    (int32[batch, length], 1 where a token counts) and `targets` (int32[batch]); of pairs of texts
    also `token_types` (int32[batch, length], where the tokenizer tells them); in the task scenario
    also `task` (int32[batch]) and `label_mask` (bool[batch, classes]).

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
    if isinstance(tokenizer, str) or not callable(getattr(tokenizer, "encode", None)):
        given = f'"{tokenizer}"' if isinstance(tokenizer, str) else "folder"
        raise InputError(
            f"{name}(tokenizer={tokenizer!r}): give a tokenizer, such as "
            f"jcl.models.tokenizer({given}) or jcl.data.ByteTokenizer()"
        )
    if len(labels) < 2:
        raise InputError(
            f"{name}: every train row has the label '{labels[0]}': give texts of at least two"
        )
    length, longest, truncated, tokens = _tokens([*train, *test], tokenizer, length)
    encoding = Encoding(tokenizer, length, padding(tokenizer))
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
            if is_test or rows[0].pair is not None:  # pairs are not augmented
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
    rows: Sequence[Row], tokenizer: Any, length: int | None
) -> tuple[int, int, int, dict[str, np.ndarray]]:
    """Returns length, longest, truncated, and the leaves inputs, attention_mask and, of pairs
    where the tokenizer tells them, token_types."""
    # Bytes have none; [CLS] and [SEP] around every text are two.
    pairs = rows[0].pair is not None
    empty = Row("", "", "", "", "an empty text", "" if pairs else None)
    special = _encoded(tokenizer, empty)[0].tolist()
    added = tokenizer.num_special_tokens_to_add(pair=True) if pairs else len(special)
    least = added + (2 if pairs else 1)
    if length is not None and checks.whole("text", "length", length) < least:
        raise InputError(
            f"length is {length}: the tokenizer adds {added} special tokens to every "
            f"{'pair' if pairs else 'text'}, so give at least {least}"
        )
    both = [_encoded(tokenizer, row) for row in rows]
    found: set[int] = set()
    for ids, _ in both:
        found.update({*ids.tolist()} - {*special})
        if len(found) > 1:
            break
    if not found or (len(found) < 2 and len({(row.text, row.pair) for row in rows}) > 1):
        gives = "every token of {} texts the same id" if found else "no token for any of {} texts"
        raise InputError(
            f"the tokenizer gives {gives.format(len(rows))}: its vocabulary is empty; load it with "
            "transformers.AutoTokenizer.from_pretrained(folder)"
        )
    for row, (ids, _) in zip(rows, both, strict=True):
        if not len(ids):
            raise InputError(f"{row.place}: the text gives no token: drop the row")
    pad = padding(tokenizer)
    longest = max(len(ids) for ids, _ in both)
    length = length or longest
    lengths = np.array([len(ids) for ids, _ in both])
    inputs, types = (np.full((len(rows), length), fill, np.int32) for fill in (pad, 0))
    for index, (ids, own) in enumerate(both):
        if len(ids) > length:
            ids, own = _encoded(tokenizer, rows[index], length)
        inputs[index, : len(ids)] = ids
        types[index, : len(ids)] = 0 if own is None else own
    mask = (np.arange(length) < lengths[:, None]).astype(np.int32)
    leaves = {"inputs": inputs, "attention_mask": mask}
    if both[0][1] is not None:
        leaves["token_types"] = types
    return length, longest, int((lengths > length).sum()), leaves


def _encoded(
    tokenizer: Any, row: Row, length: int | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """The ids of a row, cut to the length, and of a pair the type of each, where it has types."""
    # Only the tokenizer knows that its closing token must stay at the end of a cut text.
    own = hasattr(tokenizer, "pad_token_id")
    cut = {"truncation": True, "max_length": length} if own and length else {}
    if row.pair is None:
        return _ids(tokenizer.encode(row.text, **cut), row.place)[:length], None
    if not own or not callable(tokenizer):
        raise InputError(
            f"a {type(tokenizer).__name__} encodes no pairs of texts: give transformers' "
            "tokenizer, such as jcl.models.tokenizer(folder)"
        )
    found: Any = tokenizer(row.text, row.pair, **cut)
    types = found.get("token_type_ids")
    return _ids(found["input_ids"], row.place), None if types is None else np.asarray(types)


def _ids(found: Any, place: str) -> np.ndarray:
    ids = np.asarray(found)
    if ids.size == 0:
        return np.zeros(0, np.int32)
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise InputError(
            f"{place}: tokenizer.encode gives {ids.dtype}{list(ids.shape)}, not a list of ids: use "
            "transformers' tokenizer (PreTrainedTokenizerFast(tokenizer_object=...) wraps one of "
            "the package tokenizers), or jcl.data.ByteTokenizer()"
        )
    return ids.astype(np.int32)


def padding(tokenizer: Any) -> int:
    """The id that fills a text of this tokenizer up."""
    # transformers' tokenizers have a method named pad.
    pad = getattr(tokenizer, "pad_token_id", None)
    pad = getattr(tokenizer, "pad", None) if pad is None else pad
    if not isinstance(pad, int | np.integer):
        raise InputError(
            f"a {type(tokenizer).__name__} without an id for padding: set it, for example with "
            "tokenizer.pad_token = tokenizer.eos_token; padding is masked, so any id will do"
        )
    return int(pad)
