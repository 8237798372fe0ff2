"""Dark experience replay."""

import jax
import jax.numpy as jnp

from jcl import checks
from jcl import memory as memories
from jcl.core import Strategy, split, strategy
from jcl.errors import InputError

# Below this a logit is one that a label mask hides: nobody matches minus a thousand million.
HIDDEN = -1e8
STORED = "stored_logits"


def der(
    capacity: int,
    size: int,
    strength: float,
    *,
    replay_strength: float = 0.0,
    top: int | None = None,
) -> Strategy:
    """Matches the logits that examples of a memory had when they were met (DER, DER++).

    loss = task loss + strength * mean (logits - stored logits)^2 + replay_strength * loss_fn,
    the first mean over the examples and classes of one draw, loss_fn on a second, separate draw.

    Buzzega et al. 2020, section 3 (replay_strength 0 is DER, above 0 DER++). The memory
    is a reservoir of examples and logits, filled at every step and never at boundaries; until
    something lies in it both terms are zero. Logits are stored as the training step saw them, with
    its dropout. Rows that the batch's `mask` does not count are left out of the mean, and so are
    classes that a label mask hides now or hid then.
    Differs from the paper in: `top`, for which it has no equivalent.

    Args:
        capacity: examples kept.
        size: examples of each draw.
        strength: weight of the logits' term, the paper's alpha.
        replay_strength: weight of the targets' term, the paper's beta; 0 leaves the draw out.
        top: store and match only so many of each row's largest logits, such as 64 of a language
            model's 50,257 a token; None for all.

    Stores: a memory of examples and their logits (with top: values and indices).
    Place: anywhere.
    Scenario: any.

    >>> import jcl, optax
    >>> method = jcl.chain(jcl.der(1000, 16, 0.5, replay_strength=0.5), optax.sgd(0.1))
    """
    size = checks.whole("der", "size", size)
    checks.number("der", "strength", strength)
    checks.number("der", "replay_strength", replay_strength)
    top = None if top is None else checks.whole("der", "top", top)
    policy = memories.reservoir(checks.whole("der", "capacity", capacity))
    targets_too = not (isinstance(replay_strength, int | float) and replay_strength == 0)

    def keep(logits):
        if top is None:
            return {"values": logits}
        values, indices = jax.lax.top_k(logits, top)
        return {"values": values, "indices": indices}

    def init(params, *, batch, aux, **_):
        logits = aux["logits"]
        if top is not None and top > logits.shape[-1]:
            raise InputError(
                f"der(top={top}): the model has {logits.shape[-1]} logits a row; give top=None "
                "to store them all."
            )
        return policy.init({**batch, STORED: jax.eval_shape(keep, logits)})

    def loss(state, params, *, loss_fn, key, **_):
        key_draw, key_match, key_replay = split(key, 3)
        drawn = policy.draw(state, 2 * size if targets_too else size, key_draw)
        stored = drawn.pop(STORED)
        first, stored = jax.tree.map(lambda leaf: leaf[:size], (drawn, stored))
        logits = loss_fn(params, first, key_match)[1]["logits"]
        terms = {"der": strength * _distance(logits, stored, first.get("mask"))}
        if targets_too:
            second = jax.tree.map(lambda leaf: leaf[size:], drawn)
            terms["der_replay"] = replay_strength * loss_fn(params, second, key_replay)[0]
        return {name: jnp.where(state.seen > 0, term, 0.0) for name, term in terms.items()}

    def update(updates, state, params, *, batch, aux, key, **_):
        met = {**batch, STORED: keep(aux["logits"])}
        return updates, policy.insert(memories.after(state, updates), met, key)

    return strategy(name="der", init=init, loss=loss, update=update)


def _distance(logits, stored, mask):
    """The mean squared difference over the counted rows and their stored classes."""
    if "indices" in stored:
        logits = jnp.take_along_axis(logits, stored["indices"], axis=-1)
    shown = jnp.minimum(logits, stored["values"]) > HIDDEN
    squares = jnp.square(jnp.where(shown, logits - stored["values"], 0.0)).mean(axis=-1)
    weights = jnp.ones_like(squares) if mask is None else mask.astype(squares.dtype)
    return (squares * weights).sum() / jnp.maximum(weights.sum(), 1.0)
