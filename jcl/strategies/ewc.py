"""Elastic weight consolidation."""

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from jcl import checks
from jcl.core import Batch, Params, Strategy, kept, strategy
from jcl.strategies.quadratic import Quadratic, distance, flat, mean_over_examples

Targets = Literal["true", "sampled", "predicted"]


def ewc(
    strength: float,
    *,
    decay: float = 1.0,
    recentre: bool = False,
    targets: Targets = "true",
    chunk: int = 1,
) -> Strategy:
    """Holds the params near those of past tasks, each by its Fisher information.

    loss = task loss + strength / 2 * sum_i F_i (params_i - anchor_i)^2.

    Kirkpatrick et al. 2017, equation 3. At a boundary, with f the Fisher information of the task
    at params p: F' = decay F, anchor <- (F' anchor + f p) / (F' + f), F <- F' + f, which for
    decay 1 equals the sum of all tasks' own penalties up to a constant, in memory of two
    params-sized trees however many tasks there are. Where F' + f is zero (a token never seen) the
    anchor is p. With recentre=True the anchor is p everywhere and decay below 1 forgets: online
    EWC of Schwarz et al. 2018, section 3.2.

    The scale of f: the mean over examples of the squared gradient of that example's own loss, as
    loss_fn returns it for a batch of one. It does not depend on the batch size. For a language
    model an example is a block and its loss the mean over the block's tokens.

    Args:
        strength: weight of the penalty; 0 switches it off.
        decay: in [0, 1]; what a boundary leaves of the importance of earlier tasks.
        recentre: online EWC's anchor instead of the exact sum.
        targets: "true" takes the data's own (the empirical Fisher), "sampled" draws them from the
            model (the Fisher information proper), "predicted" takes the likeliest (Hsu et al. 2018,
            in their code).
        chunk: examples differentiated at once; 1 takes the least memory. It must divide the
            examples of a boundary.

    Stores: 2 params-sized trees (importance, anchor).
    Place: anywhere.
    Scenario: any.

    >>> import jcl, optax
    >>> method = jcl.chain(jcl.ewc(strength=100.0), optax.adamw(1e-3))
    """
    checks.number("ewc", "strength", strength)
    checks.flag("ewc", "recentre", recentre)
    checks.number("ewc", "decay", decay, "[0, 1]")
    checks.one_of("ewc", "targets", targets, get_args(Targets))
    chunk = checks.whole("ewc", "chunk", chunk)

    def init(params, **_):
        return flat(params)

    def loss(state, params, **_):
        bowl = distance(state.importance, params, state.anchor)
        return {"ewc": 0.5 * strength * bowl}

    def consolidate(state, params, *, batches, loss_fn, key, **_):
        new = fisher(loss_fn, params, batches, key, targets=targets, chunk=chunk)
        old = jax.tree.map(lambda importance: decay * importance, state.importance)
        total = jax.tree.map(jnp.add, old, new)

        def move(anchor, parameter, new, total):
            share = jnp.where(total > 0, new / jnp.where(total > 0, total, 1.0), 1.0)
            return anchor + share * (parameter - anchor)

        anchors = state.anchor, params, new, total
        return Quadratic(total, kept(params) if recentre else jax.tree.map(move, *anchors)), params

    return strategy(name="ewc", init=init, loss=loss, consolidate=consolidate)


def fisher(
    loss_fn: Any,
    params: Params,
    batches: Batch,
    key: jax.Array | None = None,
    *,
    targets: Targets = "true",
    chunk: int = 1,
) -> Params:
    """The diagonal of the Fisher information, shaped like params.

    mean over examples of (d loss_fn(params, example) / d params)^2: squared per example, never of
    a batch's mean gradient. A scan over examples holds one params-sized tree of gradients at a
    time (times `chunk`).

    Args:
        loss_fn: (params, batch, key) -> (scalar, aux).
        params: where it is taken.
        batches: every leaf is [number, batch, ...].
        key: for sampled targets; None draws them from a fixed key.
        targets: as in `ewc`.
        chunk: as in `ewc`.
    """

    def squared_gradient(example, key):
        if targets != "true":
            logits = loss_fn(params, example, None)[1]["logits"]
            sampled = targets == "sampled"
            chosen = jax.random.categorical(key, logits) if sampled else jnp.argmax(logits, axis=-1)
            example = {**example, "targets": chosen}
        gradient = jax.grad(lambda params: loss_fn(params, example, None)[0])(params)
        return jax.tree.map(jnp.square, gradient)

    return mean_over_examples(squared_gradient, params, batches, key, chunk=chunk, name="ewc")
