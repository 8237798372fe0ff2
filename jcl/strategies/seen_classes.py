"""Classes that have not come yet are masked."""

import jax
import jax.numpy as jnp

from jcl import checks
from jcl.core import Batch, Strategy, strategy
from jcl.errors import InputError


def seen_classes(classes: int) -> Strategy:
    """Hides the logits of classes that no target has named so far.

    label_mask_c = 1 where class c was a target of any training batch before, joined (by and) with
    the batch's own mask. Heads are of full size from the start, so that nothing is traced again
    when classes arrive (class-incremental learning as in Rebuffi et al. 2017, whose head grows).

    A batch's classes are seen from the next step on. In the loss itself a target is never masked
    (`jcl.losses.classify`), so that the first batch of a class is learned from; in the very first
    step of all, each target is compared with nothing and the params stay. A target that the
    batch's mask leaves out names no class, nor does one below 0, such as the -1 of an example
    without a label; the loss counts it unless the mask leaves it out.

    Args:
        classes: of the head.

    Stores: one flag for each class.
    Place: anywhere.
    Scenario: class-incremental.

    >>> import jcl, optax
    >>> method = jcl.chain(jcl.seen_classes(classes=10), optax.sgd(0.1))
    """
    classes = checks.whole("seen_classes", "classes", classes, least=2)

    def init(params, *, aux, **_):
        shape = aux["logits"].shape
        if len(shape) != 2 or shape[-1] != classes:
            raise InputError(
                f"seen_classes(classes={classes}): the model's logits are {list(shape)}, and must "
                f"be [batch, {classes}], one class for each example."
            )
        return jnp.zeros(classes, bool)

    def view(state, params, batch):
        mask = batch.get("label_mask")
        own = jnp.broadcast_to(state, (batch["inputs"].shape[0], classes))
        return params, {**batch, "label_mask": own if mask is None else own & (mask > 0)}

    def update(updates, state, params, *, batch, **_):
        return updates, with_targets(state, batch)

    return strategy(name="seen_classes", init=init, view=view, update=update)


def with_targets(seen: jax.Array, batch: Batch) -> jax.Array:
    """The flags [classes], set for every class that a counted target of the batch names."""
    targets = batch["targets"]
    counts = (targets >= 0) & (targets < len(seen))
    if "mask" in batch:
        counts &= batch["mask"] > 0
    return seen.at[jnp.where(counts, targets, 0)].max(counts)
