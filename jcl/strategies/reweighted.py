"""Another weight of a part's terms after an alarm."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jcl import checks
from jcl.core import State, Strategy, lift, strategy
from jcl.errors import InputError
from jcl.strategies.boost import decayed, raised, scaling

_NO_TERMS = strategy(name="no terms").loss


class Reweighted(NamedTuple):
    """The part's own state, and the level, 1 at an alarm."""

    inner: State
    level: jax.Array


def reweighted(part: Strategy, factor: float, half_life: float) -> Strategy:
    """Weighs what a part adds to the loss otherwise when a drift is detected, and decays back.

    term <- (1 + (factor - 1) level) term, level = 1 at an alarm and half that every half_life steps

    A reaction to drift in the sense of Gama et al. 2014 (their survey): of replay a factor above 1
    enlarges the share of what was stored, for a drift after which the old still holds; a factor
    below 1 forgets it for a while, for one after which it contradicts the new.

    Args:
        part: such as `replay(...)`, `ewc(...)` or `lwf(...)`.
        factor: what an alarm multiplies the part's terms by.
        half_life: steps after which half the difference is left.

    Raises:
        InputError: the part adds nothing to the loss.

    Stores: what the part stores, and one number, the level.
    Place: the part's.
    Scenario: a stream without boundaries, whose batches tell of alarms (`drift`).

    >>> import jcl, optax
    >>> part = jcl.reweighted(jcl.replay(capacity=500, size=8), factor=3.0, half_life=50.0)
    >>> method = jcl.chain(part, optax.sgd(0.01))
    """
    part = lift(part)
    if part.loss is _NO_TERMS:
        raise InputError(
            f"reweighted({part.name}): it adds no term to the loss; boost(factor, half_life) "
            "scales the step instead."
        )
    checks.number("reweighted", "factor", factor)
    checks.number("reweighted", "half_life", half_life, "(0, inf)")

    def init(params, **rest):
        return Reweighted(part.init(params, **rest), jnp.zeros(()))

    def view(state, params, batch):
        return part.view(state.inner, params, batch)

    def loss(state, params, *, batch, **rest):
        scale = scaling(factor, raised(state.level, batch))
        terms = part.loss(state.inner, params, batch=batch, **rest)
        return {name: scale * term for name, term in terms.items()}

    def update(updates, state, params, *, batch, **extra):
        updates, inner = part.update(updates, state.inner, params, batch=batch, **extra)
        return updates, Reweighted(inner, decayed(raised(state.level, batch), half_life))

    def consolidate(state, params, **rest):
        inner, params = part.consolidate(state.inner, params, **rest)
        return state._replace(inner=inner), params

    return part._replace(
        init=init,
        view=view,
        loss=loss,
        update=update,
        consolidate=consolidate,
        name=f"reweighted({part.name})",
        alarms=True,
    )
