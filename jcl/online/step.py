"""Predict, then learn: one micro-batch after the other, each met once."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jcl.core import Batch
from jcl.learner import Learner, LearnerState
from jcl.losses import cross_entropy

# Of a class that the model calls impossible, a probability of 1e-15 is taken, as others do: one
# example must not make the mean of all infinite.
LEAST_LOG_PROBABILITY = -34.5387764


class Prequential(NamedTuple):
    """Pure functions over micro-batches of one size; compile them with `jax.jit`.

    A batch holds `inputs`, `targets` and a `mask` (1 where a target counts), and may hold what else
    the model and the strategy read. A row whose mask is all 0 is predicted and not learned from:
    its label is not known yet, or it only fills the batch up.

    Attributes:
        predict: (state, batch) -> outputs, by what was learned before this batch. The targets are
            looked at for `losses` and `correct` alone.
        learn: (state, batch) -> state, metrics: the learner's step. A batch needs one row at least
            that counts: an optimizer with momentum moves the params for one of none as well.
        step: (state, batch) -> state, outputs: both in one program. Without dropout XLA computes
            the forward pass once for the two of them.

    Outputs of a classifier: `predictions` (int32[batch]), their `probabilities` (float32[batch]),
    `scores` (log-probabilities, float32[batch, classes]), and of the rows that count `losses`
    (nats, float32[batch]) and `correct` (float32[batch]). Of a language model, whose targets are
    [batch, length]: `losses`, the mean over a row's own targets, and `tokens`, their number.
    """

    predict: Callable[[LearnerState, Batch], dict[str, jax.Array]]
    learn: Callable[[LearnerState, Batch], tuple[LearnerState, dict[str, jax.Array]]]
    step: Callable[[LearnerState, Batch], tuple[LearnerState, dict[str, jax.Array]]]


def prequential(learner: Learner) -> Prequential:
    """Prequential (predictive sequential) evaluation: an example tests the model, then trains it.

    Dawid 1984; for streams of data Gama, Sebastiao and Rodrigues 2013.

    Args:
        learner: from `jcl.learner`; its strategy has no boundaries, as in an online run there are
            none.

    >>> import jax, jcl, optax
    >>> model = jcl.models.mlp(jcl.models.MLPConfig(inputs=2, hidden=(), classes=2))
    >>> learner = jcl.learner(jcl.losses.classify(model.apply), optax.sgd(0.1))
    >>> step = jax.jit(jcl.online.prequential(learner).step, donate_argnums=0)
    >>> batch = {"inputs": jax.numpy.ones((1, 2)), "targets": jax.numpy.zeros(1, int),
    ...          "mask": jax.numpy.ones(1)}
    >>> state = learner.init(jax.random.key(0), model.init(jax.random.key(1)), batch)
    >>> losses = []
    >>> for _ in range(2):
    ...     state, outputs = step(state, batch)
    ...     losses.append(float(outputs["losses"][0]))
    >>> losses[1] < losses[0]
    True
    """

    def predict(state: LearnerState, batch: Batch) -> dict[str, jax.Array]:
        logits = learner.predict(state, batch)["logits"].astype(jnp.float32)
        targets, mask = jnp.asarray(batch["targets"]), jnp.asarray(batch["mask"])
        targets = jnp.where(mask > 0, targets, 0)
        if targets.ndim == 2:
            losses = (cross_entropy(logits, targets) * mask).sum(axis=1)
            tokens = mask.sum(axis=1)
            return {"losses": losses / jnp.maximum(tokens, 1.0), "tokens": tokens}
        scores = jnp.maximum(jax.nn.log_softmax(logits), LEAST_LOG_PROBABILITY)
        predictions = jnp.argmax(scores, axis=1).astype(jnp.int32)
        own = jnp.take_along_axis(scores, targets[:, None], axis=1)[:, 0]
        return {
            "predictions": predictions,
            "probabilities": jnp.exp(scores.max(axis=1)),
            "scores": scores,
            "losses": -own * mask,
            "correct": (predictions == targets) * mask,
        }

    def step(state: LearnerState, batch: Batch) -> tuple[LearnerState, dict[str, Any]]:
        outputs = predict(state, batch)
        state, _ = learner.step(state, batch)
        return state, outputs

    return Prequential(predict, learner.step, step)
