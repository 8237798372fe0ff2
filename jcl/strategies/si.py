"""Synaptic Intelligence."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jcl import checks
from jcl.core import Params, Strategy, kept, strategy
from jcl.strategies.quadratic import distance


class Synapses(NamedTuple):
    """What each parameter has done for past tasks, and does for this one.

    Attributes:
        importance: shaped like params; zero before the first boundary.
        anchor: shaped like params; where they stood at the last boundary, where the penalty is
            lowest and from where the task's path is measured.
        path: shaped like params; by how much each parameter's steps in this task lowered the loss.
    """

    importance: Params
    anchor: Params
    path: Params


def si(strength: float, *, damping: float = 0.1, rectify: bool = False) -> Strategy:
    """Holds the params near those of past tasks, each by how far it lowered their loss.

    loss = task loss + strength * sum_i importance_i (params_i - anchor_i)^2.

    Zenke et al. 2017, section 3: at every step path <- path - gradient * step (equation 3); at a
    boundary importance <- importance + path / ((params - anchor)^2 + damping) (equation 5),
    path <- 0, anchor <- params; the penalty is equation 4, without a half. The equations cut
    nothing off: a parameter whose steps raised the loss has a negative importance, which is a
    reward for moving. rectify=True is the authors' released code, which cuts the accumulated
    importance at zero. The gradient is that of the batch that made the step, without this
    penalty's own, as in the code of Hsu et al. 2018. Differs from the paper in: terms that other
    parts of a chain add to the loss, such as replay, stay in it.

    Args:
        strength: weight of the penalty (the paper's c); 0 switches it off.
        damping: the paper's xi, larger than 0; bounds the importance of what hardly moved.
        rectify: cut negative importance.

    Stores: 3 params-sized trees (importance, anchor, path).
    Place: right of the optimizer.
    Scenario: any.

    >>> import jcl, optax
    >>> method = jcl.chain(optax.adamw(1e-3), jcl.si(strength=0.1))
    """
    checks.number("si", "strength", strength)
    checks.flag("si", "rectify", rectify)
    checks.number("si", "damping", damping, "(0, inf)")

    def init(params, **_):
        importance, path = (jax.tree.map(jnp.zeros_like, params) for _ in range(2))
        return Synapses(importance, jax.tree.map(jnp.copy, params), path)

    def loss(state, params, **_):
        return {"si": strength * distance(state.importance, params, state.anchor)}

    def update(updates, state, params, *, grad, **_):
        def add(path, g, step, importance, parameter, anchor):
            own = 2 * strength * importance * (parameter - anchor)  # the penalty's gradient
            return path - (g - own) * step

        path = jax.tree.map(add, state.path, grad, updates, state.importance, params, state.anchor)
        return updates, state._replace(path=path)

    def consolidate(state, params, **_):
        def add(importance, path, parameter, anchor):
            total = importance + path / ((parameter - anchor) ** 2 + damping)
            return jnp.maximum(total, 0.0) if rectify else total

        importance = jax.tree.map(add, state.importance, state.path, params, state.anchor)
        path = jax.tree.map(jnp.zeros_like, state.path)
        return Synapses(importance, kept(params), path), params

    return strategy(
        name="si", side="step", init=init, loss=loss, update=update, consolidate=consolidate
    )
