"""Lines of JSON, one after the other, as examples: for what is learned online."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jcl import checks, strict
from jcl.data.labelled_text import Encoding, padding
from jcl.data.streams import Batch
from jcl.errors import InputError

Identity = str | int


class Example(NamedTuple):
    """One text, and what is known of it.

    Attributes:
        leaves: of a batch, without the batch axis: `targets` (0 where the label is unknown) and
            `mask` (1 where a target counts) are always among them.
        labelled: whether there is anything to learn from.
        identity: by which a label that comes later names it; None where none can come.
        time: of the line, in seconds; None where it has none.
        size: bytes of the text that its targets stand for; 0 where nobody counts them.
    """

    leaves: Batch
    labelled: bool
    identity: Identity | None = None
    time: float | None = None
    size: int = 0

    def with_target(self, target: int) -> "Example":
        """The example once its class is known."""
        known = {"targets": np.int32(target), "mask": np.float32(1.0)}
        return self._replace(leaves={**self.leaves, **known}, labelled=True)


class Label(NamedTuple):
    """The class of an earlier example, by its number, and the line's time."""

    identity: Identity
    target: int
    time: float | None = None


@dataclass(frozen=True, kw_only=True)
class Lines:
    """How a line of JSON becomes an example.

    With labels a line is `{"text": "...", "label": "..."}`, and the example has `inputs` (int32
    [length], filled on the right), `attention_mask`, and its class as `targets`. A line with an
    `id` and no label is an example whose label may come later, as `{"id": ..., "label": "..."}`.
    Without labels a line is a text for a language model, as `jcl.data.text_files` has it: every
    token is predicted from those before it, the first from the tokenizer's separator.

    Attributes:
        tokenizer: text to ids, transformers' or jcl's; of a language model jcl's, such as
            `jcl.data.ByteTokenizer()` or `jcl.data.PretrainedTokenizer(...)`.
        length: tokens of an example; longer texts are cut.
        labels: the names of all classes, by class number; None for a language model.
        text: the field of the text.
        label: the field of the label.
        identity: the field by which a late label names its text.
        time: the field of the time, in seconds.

    Raises:
        InputError: the length or a label is none, or the tokenizer lacks what is asked of it.

    >>> import jcl
    >>> lines = jcl.data.Lines(
    ...     tokenizer=jcl.data.ByteTokenizer(), length=4, labels=("no", "yes")
    ... )
    >>> example = lines.read(b'{"text": "fine", "label": "yes"}')
    >>> example.leaves["inputs"].tolist(), int(example.leaves["targets"])
    ([102, 105, 110, 101], 1)
    """

    tokenizer: Any
    length: int
    labels: Sequence[str] | None = None
    text: str = "text"
    label: str = "label"
    identity: str = "id"
    time: str = "time"

    def __post_init__(self):
        checks.whole("Lines", "length", self.length)
        encode = getattr(self.tokenizer, "encode", None)
        if isinstance(self.tokenizer, str) or not callable(encode):
            raise InputError(
                f"Lines(tokenizer={self.tokenizer!r}): give a tokenizer, such as "
                "jcl.data.ByteTokenizer() or jcl.models.tokenizer(folder)."
            )
        if self.labels is None:
            for name in ("separator", "pad", "bytes_per_token"):
                if not hasattr(self.tokenizer, name):
                    raise InputError(
                        f"Lines(tokenizer=a {type(self.tokenizer).__name__}) has no {name}, which "
                        "a language model's needs: give jcl.data.ByteTokenizer() or "
                        "jcl.data.PretrainedTokenizer(tokenizer), or labels for a classifier."
                    )
            return
        named = [each for each in self.labels if isinstance(each, str) and each]
        if isinstance(self.labels, str) or len({*named}) != len(self.labels) or len(named) < 2:
            raise InputError(
                f"Lines(labels={self.labels!r}): give the names of at least two classes, each once."
            )

    def read(self, line: bytes) -> Example | Label:
        """What a line says.

        Raises:
            ValueError: it is not JSON, lacks a field, has one of another type or a label that is
                none of the classes; the message is the reason alone.
        """
        try:
            record = strict.parse_json(line.decode())
        except UnicodeDecodeError as error:
            raise ValueError(f"it is not UTF-8: look at its byte {error.start}") from None
        if not isinstance(record, dict):
            raise ValueError(f'it is no object such as {{"{self.text}": "..."}}')
        identity, time = record.get(self.identity), record.get(self.time)
        strict.fits(identity, str | int | None, f"its {self.identity}")
        strict.fits(time, int | float | None, f"its {self.time}")
        target = self._target(record)
        if self.text not in record:
            if target is None or identity is None:
                needed = f"{self.text}, nor {self.identity} and {self.label}"
                raise ValueError(f"it has no {needed if self.labels else self.text}")
            return Label(identity, target, time)
        text = record[self.text]
        strict.fits(text, str, f"its {self.text}")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError(f"its {self.text} holds half a surrogate pair") from None
        if self.labels is None:
            return self._of_language(text)._replace(identity=identity, time=time)
        inputs, number = self._encoding(text)
        if not number:
            raise ValueError(f"its {self.text} gives no token")
        leaves = {
            "inputs": inputs,
            "attention_mask": (np.arange(self.length) < number).astype(np.int32),
            "targets": np.int32(0),
            "mask": np.float32(0.0),
        }
        example = Example(leaves, False, identity, time, len(text.encode()))
        return example if target is None else example.with_target(target)

    def blank(self) -> Example:
        """An example of the shapes that all have."""
        found = self.read(f'{{"{self.text}": "a"}}'.encode())
        assert isinstance(found, Example)
        return found

    @functools.cached_property
    def _encoding(self) -> Encoding:
        return Encoding(self.tokenizer, self.length, padding(self.tokenizer))

    @functools.cached_property
    def _classes(self) -> dict[str, int]:
        return {label: number for number, label in enumerate(self.labels or ())}

    @functools.cached_property
    def _bytes(self) -> np.ndarray:
        return np.asarray(self.tokenizer.bytes_per_token)

    def _target(self, record: dict[str, Any]) -> int | None:
        label = record.get(self.label) if self.labels else None
        if label is None:
            return None
        if str(label) not in self._classes or not isinstance(label, str | int):
            some = ", ".join(list(self._classes)[:4])
            raise ValueError(
                f"its {self.label} is none of the {len(self._classes)} classes ({some}, ...)"
            )
        return self._classes[str(label)]

    def _of_language(self, text: str) -> Example:
        ids = np.asarray(self.tokenizer.encode(text), np.int32)[: self.length]
        if not len(ids):
            raise ValueError(f"its {self.text} gives no token")
        filled = np.full(self.length + 1, self.tokenizer.pad, np.int32)
        filled[0], filled[1 : len(ids) + 1] = self.tokenizer.separator, ids
        mask = (np.arange(self.length) < len(ids)).astype(np.float32)
        leaves = {"inputs": filled[:-1], "targets": filled[1:], "mask": mask}
        return Example(leaves, True, size=int(self._bytes[ids].sum()))
