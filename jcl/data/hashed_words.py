"""Words to token ids without a vocabulary, for streams whose words are not known beforehand."""

import re
import zlib
from dataclasses import dataclass

import numpy as np

from jcl import checks

_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class HashedWords:
    """One token a word or sign, by a hash: any word of a later task has an id already.

    id = 1 + CRC-32(word in small letters) mod (vocab_size - 1); 0 is the padding.

    Two words may share an id: of 1,000 words among 4,096 ids about a fifth do. There is no way back
    from ids to text. The hashing trick, Weinberger et al. 2009.

    Attributes:
        vocab_size: how many ids there are, at least 2.

    Raises:
        InputError: there are too few.

    >>> from jcl.data import HashedWords
    >>> HashedWords(4096).encode("Is it? It is!").tolist()
    [387, 191, 2401, 191, 387, 1842]
    """

    vocab_size: int = 4096
    # Without an annotation it is a constant of the class, not a field.
    pad = 0

    def __post_init__(self):
        checks.whole("HashedWords", "vocab_size", self.vocab_size, least=2)

    def encode(self, text: str) -> np.ndarray:
        """Returns the ids of the words of `text`, 1-D int32."""
        words = _WORD.findall(text.casefold())
        ids = [1 + zlib.crc32(word.encode()) % (self.vocab_size - 1) for word in words]
        return np.array(ids, np.int32)
