"""The layers that several families share."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jcl.models.precision import FLOAT32, Precision, matmul


class Dense(nn.Module):
    """x kernel + bias on [rows, in]: batch and length are one axis, so that the weight gradient is
    one plain matmul."""

    features: int
    scale: float = 0.02
    precision: Precision = FLOAT32

    @nn.compact
    def __call__(self, x):
        kernel = self.param(
            "kernel", nn.initializers.normal(self.scale), (x.shape[-1], self.features)
        )
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return matmul(x, kernel, self.precision) + bias


class LayerNorm(nn.Module):
    epsilon: float

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        normal: Any = standardize(x, self.epsilon)
        return normal * scale + bias


class BatchNorm(nn.Module):
    """[..., rows, width], normal over the rows of the very batch, in training and in prediction."""

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return over_rows(x, scale, bias)


def normalizes_over_batch(module: nn.Module) -> bool:
    """Whether what the module makes of an example depends on the others of the batch."""
    named = getattr(module, "normalization", None) == "batch"
    return named or isinstance(module, BatchNorm | nn.BatchNorm)


def over_rows(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """[..., rows, width], each column with mean bias and deviation scale over the rows."""
    rows = x.shape[-2]
    centred = x - _spread(_total(x) / rows, rows)
    variance = _total(jnp.square(centred)) / rows
    shift = jnp.broadcast_to(bias, variance.shape)
    return centred * _spread(jax.lax.rsqrt(variance + 1e-3) * scale, rows) + _spread(shift, rows)


# Sums and broadcasts as matmuls by ones, so that their gradients are such again: XLA's CPU
# compiler joins a sum over the rows with what comes before it, and the gradient then takes several
# times as long. By parts, since a matmul adds up one after the other: with thousands of rows in one
# go the rounding errors were up to 5 % of MAML's second-order gradient.
def _total(x: jax.Array) -> jax.Array:
    """[..., rows, width] -> [..., 1, width]."""
    *leading, rows, width = x.shape
    parts = rows // _rows_of_part(rows)
    ones = jnp.ones((*leading, parts, 1, rows // parts), x.dtype)
    x = x.reshape(*leading, parts, rows // parts, width)
    return jnp.matmul(ones, x, precision=jax.lax.Precision.HIGHEST).sum(axis=-3)


def _spread(row: jax.Array, rows: int) -> jax.Array:
    """[..., 1, width] -> [..., rows, width]; its gradient is `_total`."""
    *leading, _, width = row.shape
    parts = rows // _rows_of_part(rows)
    ones = jnp.ones((*leading, parts, rows // parts, 1), row.dtype)
    row = jnp.broadcast_to(row[..., None, :, :], (*leading, parts, 1, width))
    x = jnp.matmul(ones, row, precision=jax.lax.Precision.HIGHEST)
    return x.reshape(*leading, rows, width)


def _rows_of_part(rows: int) -> int:
    """The largest divisor that is not above the root."""
    return next(part for part in range(math.isqrt(rows) or 1, 0, -1) if rows % part == 0)


# Backward passes by hand, since autodiff of the plain formulas keeps and passes over more
# arrays: those of GPT-2 together take 6 % less time and 20 % less scratch memory in a step
# of 4 x 128. The price is that params can be differentiated in reverse only, to any order.
@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def standardize(x, epsilon):
    """(x - mean) / sqrt(variance + epsilon) over the last axis."""
    return _standardize_forward(x, epsilon)[0]


def _standardize_forward(x, epsilon):
    centred = x - x.mean(axis=-1, keepdims=True)
    scale = jax.lax.rsqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + epsilon)
    return centred * scale, (centred * scale, scale)


def _standardize_backward(_, residuals, gradient):
    normal, scale = residuals
    along = (gradient * normal).mean(axis=-1, keepdims=True)
    return (scale * (gradient - gradient.mean(axis=-1, keepdims=True) - normal * along),)


standardize.defvjp(_standardize_forward, _standardize_backward)


@jax.custom_vjp
def gelu_tanh(x):
    """GPT-2's approximation, x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2."""
    return nn.gelu(x, approximate=True)


def _gelu_tanh_backward(x, gradient):
    root = np.float32(np.sqrt(2 / np.pi))
    # Not x**3, as nn.gelu has it: XLA would see the same tanh and keep it from the forward pass.
    tanh = jnp.tanh(root * (x + 0.044715 * x * x * x))
    bend = x * (1 - tanh**2) * root * (1 + 3 * 0.044715 * x * x)
    return (gradient * 0.5 * (1 + tanh + bend),)


gelu_tanh.defvjp(lambda x: (gelu_tanh(x), x), _gelu_tanh_backward)


@jax.custom_vjp
def gelu(x):
    """x Phi(x), with Phi the normal distribution (Hendrycks and Gimpel 2016)."""
    return nn.gelu(x, approximate=False)


def _gelu_backward(x, gradient):
    # Not erfc, as nn.gelu has it: XLA would see the same and keep it from the forward pass.
    chance = 0.5 * (1 + jax.lax.erf(x * np.float32(np.sqrt(0.5))))
    density = jnp.exp(-0.5 * x * x) * np.float32(1 / np.sqrt(2 * np.pi))
    return (gradient * (chance + x * density),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


class Alone(nn.Module):
    """One module without its model, under the name that it has there, by which wrappers know it."""

    make: Callable[[], nn.Module]

    @nn.compact
    def __call__(self, *inputs):
        return self.make()(*inputs)


def run(remat: bool, block: Any, x: jax.Array, *rest: Any) -> jax.Array:
    """block(x, *rest); with remat the backward pass holds x alone and runs the block again."""
    if not remat:
        return block(x, *rest)
    # Not nn.remat(Block), whose class would pass through an interceptor of its calls twice.
    return nn.remat(lambda block, x: block(x, *rest))(block, x)


def split(key: jax.Array | None, number: int) -> list[Any]:
    return [None] * number if key is None else [*jax.random.split(key, number)]


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    if key is None or rate == 0:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0.0)
