"""Learning without Forgetting."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jcl import checks
from jcl.core import Batch, Params, Strategy, kept, strategy
from jcl.strategies.seen_classes import with_targets


class Teacher(NamedTuple):
    """The model of the last boundary.

    Attributes:
        params: shaped like params.
        old: [classes], those the teacher has learned (bool); none before the first boundary, so
            that nothing is distilled.
        seen: [classes], those that were targets so far (bool); `old` at the next boundary.
    """

    params: Params
    old: jax.Array
    seen: jax.Array


def lwf(strength: float, *, temperature: float = 2.0) -> Strategy:
    """Keeps the outputs on new data near those of the model before the task, by distillation.

    loss = task loss + strength * temperature^2 * KL(teacher || student), the mean over examples
    (over counted positions of a language model), both softmax(logits / temperature) over the old
    classes.

    Li and Hoiem 2016, section 3. The teacher is a copy of the params at the last boundary and
    sees the current batch through the same loss_fn, without dropout. The old classes are those
    that were targets before that boundary. A `label_mask` in the batch, which would hide the old
    classes of a task's batch, is lifted for the distillation, at the price of a second forward
    pass. Differs from the paper in: KL instead of cross-entropy, whose gradient is the same; the
    factor temperature^2, with which the gradient does not shrink as the temperature grows (Hinton
    et al. 2015, section 2); no warm-up of new classes alone.

    Args:
        strength: weight of the term; 0 switches it off.
        temperature: larger than 0; the higher, the more the unlikely classes count.

    Stores: 1 params-sized tree (the teacher).
    Place: anywhere.
    Scenario: any; weak where the new inputs are unlike the old.

    >>> import jcl, optax
    >>> method = jcl.chain(jcl.lwf(strength=1.0), optax.adamw(1e-3))
    """
    checks.number("lwf", "strength", strength)
    checks.number("lwf", "temperature", temperature, "(0, inf)")

    def init(params, *, aux, **_):
        none = jnp.zeros(aux["logits"].shape[-1], bool)
        return Teacher(jax.tree.map(jnp.copy, params), none, jnp.copy(none))

    def loss(state, params, *, batch, aux, loss_fn, key, **_):
        bare = {name: leaf for name, leaf in batch.items() if name != "label_mask"}
        student = (
            loss_fn(params, bare, key)[1]["logits"] if "label_mask" in batch else aux["logits"]
        )
        teacher = jax.lax.stop_gradient(loss_fn(state.params, bare, None)[1]["logits"])

        def log_chances(logits):
            return jax.nn.log_softmax(jnp.where(state.old, logits, -1e9) / temperature)

        teacher, student = log_chances(teacher), log_chances(student)
        divergence = jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1)
        return {"lwf": strength * temperature**2 * mean_over_counted(divergence, batch)}

    def update(updates, state, params, *, batch, **_):
        return updates, state._replace(seen=with_targets(state.seen, batch))

    def consolidate(state, params, **_):
        return Teacher(kept(params), kept(state.seen), state.seen), params

    return strategy(name="lwf", init=init, loss=loss, update=update, consolidate=consolidate)


def mean_over_counted(rows: jax.Array, batch: Batch) -> jax.Array:
    """The mean of [batch, ...] over the examples or positions whose mask in the batch is not 0."""
    mask = batch.get("mask")
    if mask is None:
        return rows.mean()
    mask = mask.reshape(mask.shape + (1,) * (rows.ndim - mask.ndim)).astype(rows.dtype)
    mask = jnp.broadcast_to(mask, rows.shape)
    return (rows * mask).sum() / jnp.maximum(mask.sum(), 1.0)
