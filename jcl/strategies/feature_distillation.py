"""Less-forgetting learning: distillation of features."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jcl import checks
from jcl.core import Params, Strategy, check_complete, kept, strategy
from jcl.losses import outputs
from jcl.strategies.lwf import mean_over_counted


class FeatureTeacher(NamedTuple):
    """The model of the last boundary.

    Attributes:
        params: shaped like params.
        ready: whether there was a boundary (bool).
    """

    params: Params
    ready: jax.Array


def feature_distillation(features: Callable[[Params, Any], jax.Array], strength: float) -> Strategy:
    """Keeps the features of new data near those of the model before the task.

    loss = task loss + strength / 2 * ||features(params, inputs) - features(teacher, inputs)||^2,
    the mean over examples (over counted positions of a language model); nothing before the first
    boundary.

    Jung et al. 2016 ("Less-forgetting learning"), section 3, whose features are what the head
    gets. Differs from the paper in: the mean over the batch instead of the sum; the head is not
    frozen (`jcl.only` and optax can).

    Args:
        features: (params, inputs) -> [batch, ..., width], such as `model.features`. It sees the
            params and the batch's inputs as they are, not through the views of the chain.
        strength: weight of the term; 0 switches it off.

    Raises:
        InputError: at init, inside `jcl.only`, where features would miss the rest of the params.

    Stores: 1 params-sized tree (the teacher).
    Place: anywhere, but not inside only(...).
    Scenario: any.

    >>> import jcl, optax
    >>> model = jcl.models.mlp(jcl.models.MLPConfig(inputs=4, hidden=(8,), classes=3))
    >>> method = jcl.chain(jcl.feature_distillation(model.features, 1.0), optax.adamw(1e-3))
    """
    checks.function("feature_distillation", "features", features, "model.features")
    checks.number("feature_distillation", "strength", strength)

    def init(params, **_):
        check_complete("feature_distillation", params)
        return FeatureTeacher(jax.tree.map(jnp.copy, params), jnp.zeros((), bool))

    def loss(state, params, *, batch, **_):
        teacher = jax.lax.stop_gradient(outputs(features, state.params, batch))
        distance = jnp.sum((outputs(features, params, batch) - teacher) ** 2, axis=-1)
        value = 0.5 * strength * mean_over_counted(distance, batch)
        return {"feature_distillation": jnp.where(state.ready, value, 0.0)}

    def consolidate(state, params, **_):
        return FeatureTeacher(kept(params), jnp.ones_like(state.ready)), params

    return strategy(name="feature_distillation", init=init, loss=loss, consolidate=consolidate)
