"""Mix-up inside a model, as a loss of a loss."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jcl import checks, paths
from jcl.errors import InputError

# What a batch says of the answer to an example, beside its inputs.
_ANSWERS = ("targets", "mask", "label_mask")


def mixup(
    loss_fn: Callable[..., Any], *, alpha: float = 0.2, where: str = "embeddings"
) -> Callable[..., Any]:
    """The loss of mixtures of two examples of the batch, blended where a module ends.

    L = s * loss_fn(x', y) + (1 - s) * loss_fn(x', y[p]), x' with h' = s * h + (1 - s) * h[p] at the
    module `where`, s ~ Beta(alpha, alpha), p a permutation of the batch.

    Zhang et al. 2018 mix the inputs; Guo et al. 2019 ("Augmenting data with mixup for sentence
    classification") the embeddings of texts; Verma et al. 2019 the hidden states of a layer, here
    `where="layer_3"`. Cross-entropy is linear in soft targets, so that the two terms are the loss
    of the mixed target; the model runs once. Off where the key is None or the batch has no targets,
    as in an evaluation. s is one number for the batch, as in Zhang et al.'s own code. Two texts of
    different length count where either does, with the padding's embedding behind the shorter one.
    An example whose mask is 0 is mixed with none; nor is one that is a batch of its own, as where
    examples are differentiated one by one: under `jcl.private` nothing is mixed.

    aux has the logits of the mixtures, and the losses mixed in the same way: what a strategy keeps
    of them (`jcl.der`) is not what the batch's own inputs give. Loss terms of strategies, such as a
    replay's, are mixed as well, within their own batches.

    Args:
        loss_fn: (params, batch, key) -> (scalar, aux), such as `jcl.losses.classify(model.apply)`,
            of a model made of Flax linen modules.
        alpha: of the Beta distribution; 1 is uniform, and towards 0 one of the two prevails.
        where: pattern of the path of one module whose output begins with the batch, or with batch *
            length: "embeddings" of a BERT, "layer_0" of an MLP.

    Raises:
        InputError: alpha is not above 0; at the first call, no module matches, or several.

    >>> import jcl
    >>> shape = jcl.models.BertConfig(258, 8, 4, 1, 2, 8, head="classes", classes=3)
    >>> model = jcl.models.bert(shape)
    >>> loss_fn = jcl.mixup(jcl.losses.classify(model.apply), alpha=0.2)
    """
    checks.function("mixup", "loss_fn", loss_fn, "jcl.losses.classify(model.apply)")
    checks.number("mixup", "alpha", alpha, "(0, inf)")
    patterns = paths.as_patterns(where)

    def mixed_loss(params, batch, key):
        if key is None or "targets" not in batch:
            return loss_fn(params, batch, key)
        batch = jax.tree.map(jnp.asarray, batch)
        key_share, key_partner, key_loss = jax.random.split(key, 3)
        share = jax.random.beta(key_share, alpha, alpha)
        partner = _partners(batch, key_partner)
        shown = {name: leaf for name, leaf in batch.items() if name not in _ANSWERS}
        if "attention_mask" in shown:
            mask = shown["attention_mask"]
            shown["attention_mask"] = jnp.maximum(mask, mask[partner])
        # Own answers and the partners'; what does not depend on them is computed once.
        answers = {
            name: jnp.stack([batch[name], batch[name][partner]])
            for name in _ANSWERS
            if name in batch
        }
        met: dict[str, bool] = {}

        def intercept(following, arguments, options, context):
            output = following(*arguments, **options)
            path = "/".join(context.module.path)
            if context.method_name != "__call__":
                return output
            met[path] = paths.matches(path, patterns)
            return _blended(output, share, partner) if met[path] else output

        def loss(answer):
            with nn.intercept_methods(intercept):
                return loss_fn(params, {**shown, **answer}, key_loss)

        values, aux = jax.vmap(loss)(answers)
        _check_one(where, met)
        weights = jnp.stack([share, 1 - share])
        own = jax.tree.map(lambda leaf: leaf[0], aux)
        return weights @ values, {**own, "losses": weights @ aux["losses"]}

    return mixed_loss


def _partners(batch: dict[str, Any], key: jax.Array) -> jax.Array:
    """A permutation in which examples that do not count, and whoever would get one, keep their
    place."""
    size = len(batch["targets"])
    partner = jax.random.permutation(key, size)
    if "mask" not in batch:
        return partner
    counted = jnp.any(batch["mask"].reshape(size, -1) > 0, axis=1)
    return jnp.where(counted & counted[partner], partner, jnp.arange(size))


def _blended(output: jax.Array, share: jax.Array, partner: jax.Array) -> jax.Array:
    rows = output.reshape(len(partner), -1)  # of one example each, whether or not tokens lead
    mixed = share * rows + (1 - share) * rows[partner]
    return mixed.astype(output.dtype).reshape(output.shape)


def _check_one(where: str, met: dict[str, bool]) -> None:
    names = sorted(name for name in met if name)
    paths.check("mixup: no module that the loss calls matches", paths.as_patterns(where), names)
    chosen = [name for name in names if met[name]]
    if len(chosen) > 1:
        raise InputError(
            f"mixup(where={where!r}): the modules {', '.join(chosen[:5])} match, and an example "
            "would be mixed more than once: name one of them."
        )
