"""What an episode's adaptation was worth."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jcl import checks
from jcl.errors import InputError
from jcl.losses import Measure
from jcl.meta.episodes import check_episodes, over_episodes


def accuracy(meta_loss: Callable[..., Any]) -> Measure:
    """The share of queries that are answered rightly after adapting.

    Args:
        meta_loss: of episodes, such as `jcl.maml(loss_fn, steps=10, ...)`; its steps may differ
            from those that are trained.
    """

    def function(params, batch):
        logits = _answers(meta_loss, params, batch)
        right = (jnp.argmax(logits, axis=-1) == batch["targets"]).astype(jnp.float32)
        return _counted(right, batch)

    return Measure("accuracy", True, function)


def squared_error(meta_loss: Callable[..., Any], *, at_most: float | None = None) -> Measure:
    """The mean squared error of the queries after adapting.

    Args:
        meta_loss: as in `accuracy`.
        at_most: what an error counts at most, and one that is not a number: else a single episode
            whose inner loop runs away decides the mean. By default there is no bound.

    Raises:
        InputError: at_most is no number above 0.
    """
    if at_most is not None:
        checks.number("squared_error", "at_most", at_most, "(0, inf)")

    def function(params, batch):
        errors = (_answers(meta_loss, params, batch) - batch["targets"]) ** 2
        if at_most is not None:
            errors = jnp.where(errors < at_most, errors, at_most)  # of NaN at_most
        return _counted(errors, batch)

    return Measure("squared_error", False, function)


def deviation(measure: Measure) -> Callable[..., Any]:
    """(params, batch) -> the standard deviation of the measure over the batch's episodes.

    For `jcl.Experiment(probes={"deviation": ...})`, which takes it on a task's first test batch:
    the 95 % interval of the mean of n episodes is 1.96 deviation / sqrt(n). Episodes whose queries
    do not count, as those that fill a last batch, are left out.

    Args:
        measure: of episodes, such as `accuracy`.

    Raises:
        InputError: at the call, there is one episode, which has no deviation.
    """

    def probe(params, batch):
        if jax.tree.leaves(batch)[0].shape[0] < 2:
            raise InputError("deviation: one episode has none; measure on at least 2 episodes.")

        def one(episode, key):
            total, count = measure.function(params, jax.tree.map(lambda leaf: leaf[None], episode))
            return total / jnp.maximum(count, 1e-9), count > 0

        values, real = over_episodes(one, batch, None, "map")
        mean = jnp.mean(values, where=real)
        return jnp.sqrt(jnp.sum((values - mean) ** 2, where=real) / (real.sum() - 1))

    return probe


def _answers(meta_loss: Callable[..., Any], params: Any, batch: Any) -> Any:
    check_episodes(batch)
    unlabelled = {name: leaf for name, leaf in batch.items() if name not in ("targets", "mask")}
    return meta_loss(params, unlabelled, None)[1]["logits"]


def _counted(values: Any, batch: Any) -> Any:
    mask = jnp.broadcast_to(batch.get("mask", jnp.ones_like(values)), values.shape)
    return (values * mask).sum(), mask.sum()
