"""Plain distances to earlier params, without any importance."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jcl import checks
from jcl.core import Params, Strategy, kept, strategy

Toward = Literal["anchor", "initial"]


class Anchored(NamedTuple):
    """Where the params are drawn to.

    Attributes:
        anchor: shaped like params.
        placed: whether the anchor stands (bool); toward the last boundary there is none before
            the first.
    """

    anchor: Params
    placed: jax.Array


def l2(strength: float, *, toward: Toward = "anchor") -> Strategy:
    """Holds all params alike near those of the last boundary, or near the initial ones.

    loss = task loss + strength * sum_i (params_i - anchor_i)^2.

    toward="anchor" is the L2 of Hsu et al. 2018, as in their code: EWC with every importance one
    and only the last boundary's params kept; nothing before the first boundary.
    toward="initial" is L2 Init of Kumar et al. 2023, against the loss of plasticity, from the
    first step.

    Args:
        strength: weight of the penalty, without a half; 0 switches it off.
        toward: "anchor" (the params at the last boundary) or "initial".

    Stores: 1 params-sized tree (anchor).
    Place: anywhere.
    Scenario: any.

    >>> import jcl, optax
    >>> method = jcl.chain(jcl.l2(strength=0.01), optax.adamw(1e-3))
    """
    return _anchored("l2", strength, toward, jnp.square)


def l1(strength: float, *, toward: Toward = "anchor") -> Strategy:
    """Holds all params near earlier ones by absolute distance, so that few of them move.

    loss = task loss + strength * sum_i |params_i - anchor_i|.

    L1-SP of Li et al. 2018 over all params, the anchor moving as in `l2`; where a parameter is at
    its anchor the gradient is 0.

    Args:
        strength: weight of the penalty; 0 switches it off.
        toward: "anchor" (the params at the last boundary; nothing before the first) or "initial".

    Stores: 1 params-sized tree (anchor).
    Place: anywhere.
    Scenario: any.

    >>> import jcl, optax
    >>> method = jcl.chain(jcl.l1(strength=0.001, toward="initial"), optax.adamw(1e-3))
    """
    return _anchored("l1", strength, toward, jnp.abs)


def _anchored(
    name: str, strength: float, toward: Toward, norm: Callable[[jax.Array], jax.Array]
) -> Strategy:
    checks.number(name, "strength", strength)
    checks.one_of(name, "toward", toward, ("anchor", "initial"))

    def init(params, **_):
        return Anchored(jax.tree.map(jnp.copy, params), jnp.asarray(toward == "initial"))

    def loss(state, params, **_):
        distances = jax.tree.map(lambda new, old: jnp.sum(norm(new - old)), params, state.anchor)
        return {name: strength * jnp.where(state.placed, optax.tree.sum(distances), 0.0)}

    def consolidate(state, params, **_):
        if toward == "initial":
            return state, params
        return Anchored(kept(params), jnp.ones_like(state.placed)), params

    return strategy(name=name, init=init, loss=loss, consolidate=consolidate)
