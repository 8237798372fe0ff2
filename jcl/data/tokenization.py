"""Text to token ids and back. Bytes need no vocabulary file, so every language works."""

import functools
import re
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from jcl.errors import InputError


class Tokenizer(Protocol):
    """What the text streams ask of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """How many ids there are; ids are `0 .. vocab_size - 1`."""
        ...

    @property
    def separator(self) -> int:
        """The id that stands before every document."""
        ...

    @property
    def pad(self) -> int:
        """The id that fills a block behind the end of the text."""
        ...

    @property
    def bytes_per_token(self) -> np.ndarray:
        """`[vocab_size]` int32: the UTF-8 bytes that each id stands for, 0 for the special ids."""
        ...

    def encode(self, text: str) -> np.ndarray:
        """Returns the ids of `text`, 1-D int32, without special ids."""
        ...

    def decode(self, ids: np.ndarray) -> str:
        """Returns the text of 1-D `ids`; special ids are dropped."""
        ...


@dataclass(frozen=True)
class ByteTokenizer:
    """One token a UTF-8 byte: ids 0 to 255 are the bytes, 256 the separator, 257 the padding."""

    # Without annotations these are constants of the class, not fields of the dataclass.
    separator = 256
    pad = 257
    vocab_size = 258

    @property
    def bytes_per_token(self) -> np.ndarray:
        """`[258]` int32: 1 for a byte, 0 for the two special ids."""
        return (np.arange(self.vocab_size) < 256).astype(np.int32)

    def encode(self, text: str) -> np.ndarray:
        """Returns the UTF-8 bytes of `text`, 1-D int32."""
        return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32)

    def decode(self, ids: np.ndarray) -> str:
        """Returns the text of 1-D `ids`; special ids are dropped, broken UTF-8 becomes U+FFFD."""
        ids = np.asarray(ids)
        return ids[ids < 256].astype(np.uint8).tobytes().decode("utf-8", errors="replace")


@dataclass(frozen=True)
class PretrainedTokenizer:
    """transformers' tokenizer of a causal model, as the text streams take it.

    For byte-level BPE (GPT-2, Llama 3, Qwen2) and for sentencepiece with byte fallback (Llama 2,
    Mistral). The tokens that the tokenizer would put around a text are left out.

    Attributes:
        tokenizer: transformers' own, such as `jcl.models.tokenizer(folder)`.

    Raises:
        InputError: it has no token for the end or the beginning of a text.
    """

    tokenizer: Any

    def __post_init__(self):
        if self.tokenizer.eos_token_id is None and self.tokenizer.bos_token_id is None:
            raise InputError(
                "PretrainedTokenizer: the tokenizer has neither eos_token nor bos_token, one of "
                "which stands before every document: set it, tokenizer.eos_token = ..."
            )

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return max(self.tokenizer.get_vocab().values()) + 1

    @property
    def separator(self) -> int:
        """The end of a text, or its beginning where there is no such token."""
        end = self.tokenizer.eos_token_id
        return self.tokenizer.bos_token_id if end is None else end

    @property
    def pad(self) -> int:
        """The tokenizer's own, or the separator."""
        own = self.tokenizer.pad_token_id
        return self.separator if own is None else own

    @functools.cached_property
    def bytes_per_token(self) -> np.ndarray:
        """`[vocab_size]` int32, of special and added tokens 0."""
        special = set(self.tokenizer.all_special_tokens) | set(self.tokenizer.get_added_vocab())
        words = {
            token: index
            for token, index in self.tokenizer.get_vocab().items()
            if token not in special
        }
        # In a byte-level vocabulary every byte is one letter, and a space is this one.
        byte_level = any(token.startswith("\u0120") for token in words)
        table = np.zeros(self.vocab_size, np.int32)
        for token, index in words.items():
            one_byte = re.fullmatch(r"<0x[0-9A-F]{2}>", token)
            table[index] = (
                len(token) if byte_level
                else 1 if one_byte
                else len(token.replace("\u2581", " ").encode())
            )  # fmt: skip
        return table

    def encode(self, text: str) -> np.ndarray:
        """Returns the ids of `text`, 1-D int32."""
        ids = self.tokenizer.encode(text, add_special_tokens=False, verbose=False)
        return np.asarray(ids, np.int32)

    def decode(self, ids: np.ndarray) -> str:
        """Returns the text of 1-D `ids`; special ids are dropped."""
        return self.tokenizer.decode(np.asarray(ids).tolist(), skip_special_tokens=True)


# The default of the text streams; it has no state, so all may share it.
BYTES = ByteTokenizer()
