"""Losses of a task and measures of a result, made from a model's apply.

A loss is (params, batch, key) -> (scalar, aux) with aux = {"logits", "losses"}; losses hold one
number per example. Without targets in the batch (predict) the scalar is 0 and aux has only the
logits. The logits are returned lazily: XLA drops them where no strategy reads them. Where the batch
holds an attention_mask [batch, length] (1 where a token counts, 0 at padding) or token_types
[batch, length] (of a pair of texts, which of them a token is of), apply gets them.

A target whose mask is 0 may be any number, such as Hugging Face's -100. One that counts must lie
from 0 to the number of logits less one: no compiled function can refuse another (`jcl run` looks at
each task's first batches). Beyond them it gives NaN, and below 0 it counts from the end, so that a
-100 that no mask leaves out is silently another class.

The losses and measures of language models take a `chunk`: the logits of so many tokens stand in
memory at once, forward and backward, instead of all of them. At 50,257 tokens of vocabulary those
of a batch of 16 x 512 take 1.6 GB, and their gradient as much again.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jcl import checks
from jcl.errors import InputError

# What a batch may say of its tokens beside their ids, as arguments of apply.
OF_TOKENS = ("attention_mask", "token_types")

# The logit of what may not be chosen; exp of it is 0, and it stays finite where it is multiplied.
HIDDEN = -1e9

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


def causal_lm(model: Any, *, chunk: int | None = None) -> LossFn:
    """Mean cross-entropy, in nats, over the counted targets of a batch of blocks.

    Args:
        model: its apply, (params, inputs [batch, length], key) -> logits [batch, length, vocab];
            with a chunk the model itself, since its features and head are needed.
        chunk: how many tokens' logits stand in memory at once, such as 1024: positions of all
            examples of the batch, at least one. The backward pass computes them again. None is
            all of them.

    The batch holds inputs and targets [batch, length], targets already shifted, and may hold a
    mask of the same shape (1 where the target counts). An example's loss is the mean over its own
    counted targets.

    Raises:
        InputError: there is a chunk, and what is given has no features or no head.

    >>> import jcl
    >>> model = jcl.models.gpt2("small")
    >>> loss_fn = jcl.losses.causal_lm(model, chunk=1024)
    """
    by_token = _by_token("causal_lm", model, chunk)

    def loss_fn(params, batch, key):
        logits, losses = by_token(params, batch, key)
        if losses is None:
            return jnp.zeros(()), {"logits": logits}
        mask = _mask(batch, losses)
        each = (losses * mask).sum(axis=1) / jnp.maximum(mask.sum(axis=1), 1.0)
        loss = (losses * mask).sum() / jnp.maximum(mask.sum(), 1.0)
        return loss, {"logits": logits, "losses": each}

    return loss_fn


def masked_lm(model: Any, *, chunk: int | None = None) -> LossFn:
    """Mean cross-entropy, in nats, over the masked positions of a batch of texts.

    Args:
        model: as in `causal_lm`.
        chunk: as in `causal_lm`.

    The batch holds inputs, with some tokens hidden, targets [batch, length], the tokens at the same
    places, and a mask of the same shape: 1 at the places that are predicted. An example's loss is
    the mean over its own. Devlin et al. 2019, section 3.1.

    Raises:
        InputError: the batch has targets but no mask; or as in `causal_lm`.
    """
    _by_token("masked_lm", model, chunk)  # for its checks
    per_token = causal_lm(model, chunk=chunk)

    def loss_fn(params, batch, key):
        if "targets" in batch and "mask" not in batch:
            raise InputError(
                "masked_lm: the batch has no mask, so every token would be predicted, also those "
                "that the model sees: give mask [batch, length], 1 where the token was hidden."
            )
        return per_token(params, batch, key)

    return loss_fn


def classify(apply: Apply, answer: Apply | None = None) -> LossFn:
    """Mean cross-entropy, in nats, of a batch of labelled examples.

    Args:
        apply: (params, inputs, key) -> logits [batch, classes].
        answer: the same, of the head that answers where that is not the one which is trained: the
            logits of a batch without targets are its.

    The batch holds inputs and targets [batch], and may hold a mask [batch] and a label_mask
    [batch, classes] of the classes that an example may be given. In the loss an example's own
    target is never masked, so that the first example of a class not seen before has a finite one.
    Where the model itself hides the class (a logit of -1e9 from a head that is computed of what was
    seen, such as `jcl.slda`'s), there is nothing to learn from yet, and the example's loss is 0.
    """

    def loss_fn(params, batch, key):
        if "targets" not in batch:
            free = outputs(answer or apply, params, batch, key)
            return jnp.zeros(()), {"logits": mask_labels(free, batch.get("label_mask"))}
        free = outputs(apply, params, batch, key)
        # Half of it, since a matmul in bfloat16 does not meet it exactly.
        return of_labels(free, batch, free < HIDDEN / 2)

    return loss_fn


def of_labels(
    free: Float[Array, "batch classes"], batch: dict[str, Any], hidden: Bool[Array, "batch classes"]
) -> tuple[jax.Array, dict[str, Any]]:
    """What `classify` makes of the logits of a batch with targets; the loss of an example whose
    class is hidden is 0."""
    logits = mask_labels(free, batch.get("label_mask"))
    targets = _counted_targets(batch)
    own = jax.nn.one_hot(targets, free.shape[-1], dtype=bool)
    counted = logits if "label_mask" not in batch else jnp.where(own, free, logits)
    losses = jnp.where(jnp.any(own & hidden, axis=-1), 0.0, cross_entropy(counted, targets))
    mask = _mask(batch, losses)
    loss = (losses * mask).sum() / jnp.maximum(mask.sum(), 1.0)
    return loss, {"logits": logits, "losses": losses * mask}


def squared_error(apply: Apply) -> LossFn:
    """Mean squared error of a batch of examples with numbers for targets.

    Args:
        apply: (params, inputs, key) -> predictions [batch, outputs], which aux calls logits.

    The batch holds inputs and targets [batch, outputs], and may hold a mask [batch] or
    [batch, outputs], 1 where a number counts. An example's loss is the mean over its own.

    Raises:
        InputError: at the call, the targets have another shape than the predictions.
    """

    def loss_fn(params, batch, key):
        predictions = outputs(apply, params, batch, key)
        if "targets" not in batch:
            return jnp.zeros(()), {"logits": predictions}
        if jnp.shape(batch["targets"]) != predictions.shape:
            raise InputError(
                f"squared_error: predictions {list(predictions.shape)} and targets "
                f"{list(jnp.shape(batch['targets']))} differ in shape: give the targets as "
                "[batch, outputs]."
            )
        errors = (predictions - batch["targets"]) ** 2
        mask = _mask(batch, errors)
        mask = jnp.broadcast_to(mask if mask.ndim == errors.ndim else mask[:, None], errors.shape)
        each = (errors * mask).sum(axis=1) / jnp.maximum(mask.sum(axis=1), 1.0)
        loss = (errors * mask).sum() / jnp.maximum(mask.sum(), 1.0)
        return loss, {"logits": predictions, "losses": each}

    return loss_fn


def bits_per_byte(model: Any, bytes_per_token: np.ndarray, *, chunk: int | None = None) -> Measure:
    """Bits needed for the counted targets, specials included, per byte of their text.

    Args:
        model: as in `causal_lm`.
        bytes_per_token: [vocab], the length in bytes of each token's text; 0 for specials.
        chunk: as in `causal_lm`.
    """
    by_token = _by_token("bits_per_byte", model, chunk)
    table = np.asarray(bytes_per_token, np.float32)

    def function(params, batch):
        _, losses = by_token(params, batch, None)
        mask = _mask(batch, losses)
        bits = (losses * mask).sum() / jnp.log(2.0)
        return bits, (jnp.asarray(table)[_counted_targets(batch)] * mask).sum()

    return Measure("bits_per_byte", False, function)


def accuracy(apply: Apply) -> Measure:
    """The share of examples whose likeliest class is the target, or of tokens where each has one.

    The mask is [batch] or, of tokens, [batch, length].

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
    """apply(params, inputs, *key) of the batch, given what else it says of its tokens."""
    return apply(
        params, batch["inputs"], *key, **{name: batch[name] for name in OF_TOKENS if name in batch}
    )


def cross_entropy(
    logits: Float[Array, "*rows classes"], targets: Int[Array, "*rows"]
) -> Float[Array, "*rows"]:
    """-log softmax(logits)[target], in nats."""
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen


def mask_labels(
    logits: Float[Array, "*rows classes"],
    label_mask: Bool[Array, "*rows classes"] | Float[Array, "*rows classes"] | None,
) -> Float[Array, "*rows classes"]:
    """The logits, very negative where the mask is 0."""
    return logits if label_mask is None else jnp.where(label_mask > 0, logits, HIDDEN)


def _by_token(call: str, model: Any, chunk: int | None) -> Callable[..., Any]:
    """(params, batch, key) -> logits [batch, length, vocab], losses [batch, length]; the losses are
    None where the batch has no targets."""
    if chunk is None:
        apply = getattr(model, "apply", model)

        def whole(params, batch, key):
            logits = outputs(apply, params, batch, key)
            if "targets" not in batch:
                return logits, None
            return logits, cross_entropy(logits, _counted_targets(batch))

        return whole
    tokens = checks.whole(call, "chunk", chunk)
    if getattr(model, "features", None) is None or getattr(model, "head", None) is None:
        raise InputError(
            f"{call}(chunk={chunk}): the logits are made chunk by chunk from the model's features "
            "and head, which what you gave has not: give the model itself rather than its apply, "
            "and for a model without a head of tokens leave out the chunk."
        )

    def chunked(params, batch, key):
        hidden = outputs(model.features, params, batch, key)
        logits = model.head(params, hidden, key)  # in full, only where somebody reads them
        if "targets" not in batch:
            return logits, None
        head = functools.partial(model.head, params)
        return logits, _chunked_cross_entropy(head, hidden, _counted_targets(batch), key, tokens)

    return chunked


def _chunked_cross_entropy(head, hidden, targets, key, tokens):
    """The cross-entropy of head(hidden, key), [batch, length], of as many positions at a time as
    come to that many tokens."""
    # Cut along the length, so that a batch which lies on several devices stays where it is.
    batch, length = targets.shape
    number = -(-length // max(tokens // batch, 1))
    size = -(-length // number)

    def cut(array):
        padding = [(0, 0)] * array.ndim
        padding[1] = (0, number * size - length)
        array = jnp.pad(array, padding).reshape(batch, number, size, *array.shape[2:])
        return jnp.moveaxis(array, 1, 0)

    # The loop keeps XLA from seeing that the backward pass computes the logits again.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def one(each):
        hidden, targets, index = each
        own = None if key is None else jax.random.fold_in(key, index)
        return cross_entropy(head(hidden, own), targets)

    losses = jax.lax.map(one, (cut(hidden), cut(targets), jnp.arange(number)))
    return jnp.moveaxis(losses, 0, 1).reshape(batch, -1)[:, :length]


def _counted_targets(batch: dict[str, Any]) -> jax.Array:
    """The targets, 0 where they do not count: 0 times the NaN of one out of range would be NaN."""
    targets, mask = batch["targets"], batch.get("mask")
    return targets if mask is None else jnp.where(mask > 0, targets, 0)


def _mask(batch: dict[str, Any], losses: jax.Array) -> jax.Array:
    mask = batch.get("mask")
    return jnp.ones_like(losses) if mask is None else mask.astype(losses.dtype)
