"""What a model is."""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Shaped

from jcl.errors import InputError


class Model(NamedTuple):
    """A model as pure functions of its params.

    Attributes:
        init: (key) -> params, a nested dict.
        apply: (params, inputs, key=None) -> logits; a key of None switches dropout off.
        config: what it was made from.
        features: (params, inputs, key=None) -> what the head gets, [batch, ..., width]; for the
            methods that work on it.
        head: (params, features [..., width], key=None) -> logits [..., vocab], of a language
            model; for losses that hold the logits of a part of the tokens at a time. Then
            apply(params, inputs, key) is head(params, features(params, inputs, key), key).
        lora_alpha: of its adapters, where `jcl.models.lora` made it; for who merges them.
        decode: (params, inputs, key=None, *, cache, attention_mask=None) -> logits of the token
            that follows the inputs [batch, vocab], and the cache with the inputs in it; None where
            the model has none.
        cache: (params, batch, length) -> an empty one for so many tokens of so many texts.
        start: () -> SHA-256 (hex) of the params that `jcl.models.starting_from` was given; a run
            that goes on compares it.
        source: the folder, or name on the hub, that `from_pretrained` read it from.
    """

    init: Callable[[jax.Array], Any]
    apply: Callable[..., jax.Array]
    config: Any
    features: Callable[..., jax.Array] | None = None
    head: Callable[..., jax.Array] | None = None
    lora_alpha: float | None = None
    decode: Callable[..., tuple[jax.Array, Any]] | None = None
    cache: Callable[[Any, int, int], Any] | None = None
    start: Callable[[], str] | None = None
    source: str | None = None


def classifier(module: nn.Module, config: Any, shape: tuple[int, ...]) -> Model:
    """The model of a module that is called with (inputs, head=True) and gives logits, or with
    head=False what the head gets.

    Args:
        module: of the whole network, without dropout.
        config: what it was made from.
        shape: of an example.
    """

    def init(key: jax.Array) -> Any:
        return module.init(key, jnp.zeros((1, *shape)))["params"]

    def apply(
        params: Any, inputs: Shaped[Array, "batch ..."], key: jax.Array | None = None
    ) -> Float[Array, "batch classes"]:
        logits = module.apply({"params": params}, inputs)
        assert isinstance(logits, jax.Array)
        return logits

    def features(
        params: Any, inputs: Shaped[Array, "batch ..."], key: jax.Array | None = None
    ) -> Float[Array, "batch width"]:
        hidden = module.apply({"params": params}, inputs, head=False)
        assert isinstance(hidden, jax.Array)
        return hidden

    return Model(init, apply, config, features)


class Tensor(NamedTuple):
    """Where Hugging Face keeps a parameter: its name in a checkpoint, and whether [out, in]."""

    name: str
    transpose: bool = False


def setting(
    family: str, settings: dict[str, Any], field: str, default: Any, only: tuple[Any, ...] = ()
) -> Any:
    """A field of a config.json, or the default where it is absent.

    Raises:
        InputError: there is an `only` and the value is none of it.
    """
    value = settings.get(field, default)
    if only and value not in only:
        known = " or ".join(json.dumps(choice) for choice in only)
        raise InputError(
            f'config.json: "{field}" is {json.dumps(value)}, and jcl\'s {family} is made for '
            f"{known} alone. Take another checkpoint, or change the field in a copy of it where "
            "that does not matter."
        )
    return value
