"""Measures of a network's plasticity, from the activations it has on a batch."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def dormant_units(
    activations: Float[Array, "... units"], threshold: float = 0.025
) -> Float[Array, ""]:
    """The share of a layer's units that hardly ever act.

    mean over units of [mean |unit| <= threshold * mean over the layer's units of mean |unit|].

    A unit's score is its mean absolute activation over all rows divided by the mean of that over
    the layer's units; it is dormant where the score is at most the threshold (Sokar et al. 2023,
    definition 3.1). Where the whole layer is zero every unit is dormant.

    Args:
        activations: of one layer; all axes but the last are rows.
        threshold: the paper's tau.

    >>> import jax.numpy as jnp
    >>> float(dormant_units(jnp.array([[1.0, 0.0], [-3.0, 0.0]])))
    0.5
    """
    strength = jnp.abs(activations).reshape(-1, activations.shape[-1]).mean(axis=0)
    return jnp.mean(strength <= threshold * strength.mean(), dtype=strength.dtype)


def effective_rank(features: Float[Array, "... width"]) -> Float[Array, ""]:
    """How many directions a batch's features use: the exponential of an entropy.

    exp(-sum_i p_i log p_i), p_i = singular value_i / sum of the singular values.

    Roy and Vetterli 2007, section 2: k for k equal singular values, 0 here where all features are
    zero. The features are not centred.

    Args:
        features: all axes but the last are rows.

    >>> import jax.numpy as jnp
    >>> round(float(effective_rank(jnp.eye(3))), 4)
    3.0
    """
    values = jnp.linalg.svd(features.reshape(-1, features.shape[-1]), compute_uv=False)
    total = values.sum()
    shares = values / jnp.where(total > 0, total, 1.0)
    return jnp.where(total > 0, jnp.exp(jax.scipy.special.entr(shares).sum()), 0.0)
