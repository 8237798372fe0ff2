"""Text to token ids and back. Bytes need no vocabulary file, so every language works."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np


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


# The default of the text streams; it has no state, so all may share it.
BYTES = ByteTokenizer()
