"""What a masked language model would say in the place of hidden tokens."""

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jcl import checks
from jcl.errors import InputError
from jcl.models.model import Model


class MaskFiller(NamedTuple):
    """A masked language model as `jcl.data.augmentation.masked_lm` asks it.

    Attributes:
        function: (ids [batch, length], hidden bool[batch, length], lengths [batch], mask, special
            bool[vocab]) -> logits and ids of the likeliest tokens, both
            [batch, length, candidates]; compiled once for each shape.
        candidates: how many.
        vocab_size: of the model.
        positions: the longest text that it takes.
        content: SHA-256 (hex) of the params.
    """

    function: Callable[..., Any]
    candidates: int
    vocab_size: int
    positions: int
    content: str


def mask_filler(model: Model, params: Any, *, candidates: int = 10) -> MaskFiller:
    """The likeliest tokens at every hidden place, but neither a special one nor the token itself.

    Args:
        model: with a masked-LM head, such as `jcl.models.bert(BertConfig(head="masked_lm"))`.
        params: its own.
        candidates: how many tokens of each place.

    Raises:
        InputError: the model has another head, or fewer tokens.

    >>> import jax, jcl, numpy as np
    >>> model = jcl.models.bert(jcl.models.BertConfig(
    ...     20, positions=8, width=4, layers=1, heads=1, inner=4, dropout=0.0))
    >>> shapes = jax.eval_shape(model.init, jax.random.key(0))
    >>> params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
    >>> filler = jcl.models.mask_filler(model, params, candidates=3)
    >>> filler.candidates, filler.vocab_size, filler.positions
    (3, 20, 8)
    """
    candidates = checks.whole("mask_filler", "candidates", candidates)
    config = model.config
    if getattr(config, "head", None) != "masked_lm":
        raise InputError(
            "mask_filler: the model has no masked-LM head: load one that has, or make it with "
            'BertConfig(head="masked_lm")'
        )
    if candidates >= config.vocab_size:
        raise InputError(
            f"mask_filler(candidates={candidates}): the model has {config.vocab_size} tokens: ask "
            "for fewer"
        )
    held = jax.tree.map(jnp.asarray, params)

    @jax.jit
    def likeliest(params, ids, hidden, lengths, mask, special):
        counted = (jnp.arange(ids.shape[1]) < lengths[:, None]).astype(jnp.int32)
        logits = model.apply(params, jnp.where(hidden, mask, ids), attention_mask=counted)
        own = jax.nn.one_hot(ids, config.vocab_size, dtype=bool)
        logits = jnp.where(own | special, -jnp.inf, logits.astype(jnp.float32))
        return jax.lax.top_k(logits, candidates)

    def function(*arguments):
        return likeliest(held, *arguments)

    return MaskFiller(function, candidates, config.vocab_size, config.positions, _content(params))


def _content(params: Any) -> str:
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
