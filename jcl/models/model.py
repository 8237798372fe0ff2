"""What a model is."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class Model(NamedTuple):
    """A model as pure functions of its params.

    Attributes:
        init: (key) -> params, a nested dict.
        apply: (params, inputs, key=None) -> logits; a key of None switches dropout off.
        config: what it was made from.
        features: (params, inputs, key=None) -> what the head gets, [batch, ..., width]; for the
            methods that work on it.
    """

    init: Callable[[jax.Array], Any]
    apply: Callable[..., jax.Array]
    config: Any
    features: Callable[..., jax.Array] | None = None


class Tensor(NamedTuple):
    """Where Hugging Face keeps a parameter: its name in a checkpoint, and whether [out, in]."""

    name: str
    transpose: bool = False
