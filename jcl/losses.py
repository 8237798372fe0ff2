"""Losses of a task and measures of a result, made from a model's apply.

A loss is (params, batch, key) -> (scalar, aux) with aux = {"logits", "losses"}; losses hold one
number per example. Without targets in the batch (predict) the scalar is 0 and aux has only the
logits. The logits are returned lazily: XLA drops them where no strategy reads them. Where the batch
holds an attention_mask [batch, length] (1 where a token counts, 0 at padding), apply gets it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jcl.errors import InputError

Apply = Callable[..., jax.Array]
LossFn = Callable[[Any, dict[str, Any], jax.Array | None], tuple[jax.Array, dict[str, Any]]]


class Measure(NamedTuple):
    """What a matrix holds.

    Attributes:
        name: such as "accuracy" or "bits_per_byte".
        higher_is_better: its direction.
        function: (params, batch) -> (sum, count); the measure is the sum of the sums over the sum
            of the counts.
    """

    name: str
    higher_is_better: bool
    function: Callable[[Any, dict[str, Any]], tuple[jax.Array, jax.Array]]


def causal_lm(apply: Apply) -> LossFn:
    """Mean cross-entropy, in nats, over the counted targets of a batch of blocks.

    Args:
        apply: (params, inputs [batch, length], key) -> logits [batch, length, vocab].

    The batch holds inputs and targets [batch, length], targets already shifted, and may hold a
    mask of the same shape (1 where the target counts). An example's loss is the mean over its own
    counted targets.
    """

    def loss_fn(params, batch, key):
        logits = outputs(apply, params, batch, key)
        if "targets" not in batch:
            return jnp.zeros(()), {"logits": logits}
        losses = cross_entropy(logits, batch["targets"])
        mask = _mask(batch, losses)
        each = (losses * mask).sum(axis=1) / jnp.maximum(mask.sum(axis=1), 1.0)
        loss = (losses * mask).sum() / jnp.maximum(mask.sum(), 1.0)
        return loss, {"logits": logits, "losses": each}

    return loss_fn


def masked_lm(apply: Apply) -> LossFn:
    """Mean cross-entropy, in nats, over the masked positions of a batch of texts.

    Args:
        apply: (params, inputs [batch, length], key) -> logits [batch, length, vocab].

    The batch holds inputs, with some tokens hidden, targets [batch, length], the tokens at the same
    places, and a mask of the same shape: 1 at the places that are predicted. An example's loss is
    the mean over its own. Devlin et al. 2019, section 3.1.

    Raises:
        InputError: the batch has targets but no mask.
    """
    per_token = causal_lm(apply)

    def loss_fn(params, batch, key):
        if "targets" in batch and "mask" not in batch:
            raise InputError(
                "masked_lm: the batch has no mask, so every token would be predicted, also those "
                "that the model sees: give mask [batch, length], 1 where the token was hidden."
            )
        return per_token(params, batch, key)

    return loss_fn


def classify(apply: Apply) -> LossFn:
    """Mean cross-entropy, in nats, of a batch of labelled examples.

    Args:
        apply: (params, inputs, key) -> logits [batch, classes].

    The batch holds inputs and targets [batch], and may hold a mask [batch] and a label_mask
    [batch, classes] of the classes that an example may be given. In the loss an example's own
    target is never masked, so that the first example of a class not seen before has a finite one.
    """

    def loss_fn(params, batch, key):
        free = outputs(apply, params, batch, key)
        logits = mask_labels(free, batch.get("label_mask"))
        if "targets" not in batch:
            return jnp.zeros(()), {"logits": logits}
        own = jax.nn.one_hot(batch["targets"], free.shape[-1], dtype=bool)
        counted = logits if "label_mask" not in batch else jnp.where(own, free, logits)
        losses = cross_entropy(counted, batch["targets"])
        mask = _mask(batch, losses)
        loss = (losses * mask).sum() / jnp.maximum(mask.sum(), 1.0)
        return loss, {"logits": logits, "losses": losses * mask}

    return loss_fn


def bits_per_byte(apply: Apply, bytes_per_token: np.ndarray) -> Measure:
    """Bits needed for the counted targets, specials included, per byte of their text.

    Args:
        apply: as in `causal_lm`.
        bytes_per_token: [vocab], the length in bytes of each token's text; 0 for specials.
    """
    table = np.asarray(bytes_per_token, np.float32)

    def function(params, batch):
        losses = cross_entropy(outputs(apply, params, batch, None), batch["targets"])
        mask = _mask(batch, losses)
        bits = (losses * mask).sum() / jnp.log(2.0)
        return bits, (jnp.asarray(table)[batch["targets"]] * mask).sum()

    return Measure("bits_per_byte", False, function)


def accuracy(apply: Apply) -> Measure:
    """The share of examples whose likeliest class is the target.

    Args:
        apply: as in `classify`.
    """

    def function(params, batch):
        logits = mask_labels(outputs(apply, params, batch, None), batch.get("label_mask"))
        right = (jnp.argmax(logits, axis=-1) == batch["targets"]).astype(jnp.float32)
        mask = _mask(batch, right)
        return (right * mask).sum(), mask.sum()

    return Measure("accuracy", True, function)


def outputs(apply: Apply, params: Any, batch: dict[str, Any], *key: jax.Array | None) -> jax.Array:
    """apply(params, inputs, *key) of the batch, given its attention_mask where it has one."""
    if "attention_mask" not in batch:
        return apply(params, batch["inputs"], *key)
    return apply(params, batch["inputs"], *key, attention_mask=batch["attention_mask"])


def cross_entropy(
    logits: Float[Array, "*rows classes"], targets: Int[Array, "*rows"]
) -> Float[Array, "*rows"]:
    """-log softmax(logits)[target], in nats."""
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen


def mask_labels(
    logits: Float[Array, "batch classes"],
    label_mask: Bool[Array, "batch classes"] | Float[Array, "batch classes"] | None,
) -> Float[Array, "batch classes"]:
    """The logits, very negative where the mask is 0."""
    return logits if label_mask is None else jnp.where(label_mask > 0, logits, -1e9)


def _mask(batch: dict[str, Any], losses: jax.Array) -> jax.Array:
    mask = batch.get("mask")
    return jnp.ones_like(losses) if mask is None else mask.astype(losses.dtype)
