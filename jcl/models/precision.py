"""The types in which a model keeps its params, multiplies and sums, and its products in them."""

import functools
import re
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jcl import checks
from jcl.errors import InputError

TYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Precision:
    """The types of a model's params and products, forward and backward.

    The rest is float32 whatever they are: what a product hands on, norms, softmax, activations,
    the residual stream and the logits. So are gradients with respect to float32 params. bfloat16
    has the range of float32, so that no loss needs to be scaled.

    Attributes:
        params: what the model's init makes. Params of another type serve as well, since they are
            cast where they are used.
        compute: the operands of every product; float32 or, for speed, bfloat16.
        accumulate: the type of a product's sums, which should stay float32: with bfloat16 a CPU is
            no faster than in float32 throughout, and sums over long inputs lose small terms.

    >>> import jcl
    >>> precision = jcl.models.Precision(compute="bfloat16")
    >>> model = jcl.models.gpt2(jcl.models.GPT2Config(precision=precision))
    """

    params: str = "float32"
    compute: str = "float32"
    accumulate: str = "float32"

    def __post_init__(self):
        for field in ("params", "compute", "accumulate"):
            checks.one_of("Precision", field, getattr(self, field), TYPES)
        if (self.compute, self.accumulate) == ("float32", "bfloat16"):
            raise InputError(
                'Precision(compute="float32", accumulate="bfloat16"): sums cannot be of a narrower '
                'type than what is summed; take compute="bfloat16", or leave accumulate out.'
            )


FLOAT32 = Precision()


def check(call: str, config: Any) -> None:
    """Passes a config whose precision and remat are what they should be.

    Raises:
        InputError: they are not.
    """
    if not isinstance(config.precision, Precision):
        raise InputError(
            f"{call}(precision={config.precision!r}): give a jcl.models.Precision, such as "
            'Precision(compute="bfloat16").'
        )
    checks.flag(call, "remat", config.remat)


def of(model: Any) -> Precision:
    """The model's; float32 throughout where its config has none."""
    return getattr(model.config, "precision", FLOAT32)


def cast(params: Any, precision: Precision) -> Any:
    """Fresh params, as the model keeps them."""
    return jax.tree.map(lambda leaf: leaf.astype(precision.params), params)


def matmul(x: jax.Array, kernel: jax.Array, precision: Precision) -> jax.Array:
    """x kernel, of [..., in] and [in, out], in float32."""
    if precision.compute == "float32":
        return _wide(x) @ _wide(kernel)
    rows = x.reshape(-1, x.shape[-1])
    product: Any = _narrow("ri,io->ro", precision, rows, kernel)
    return product.reshape(*x.shape[:-1], kernel.shape[-1])


def matmul_transposed(x: jax.Array, table: jax.Array, precision: Precision) -> jax.Array:
    """x table^T, of [..., in] and [out, in], in float32."""
    if precision.compute == "float32":
        return _wide(x) @ _wide(table).T
    rows = x.reshape(-1, x.shape[-1])
    product: Any = _narrow("ri,oi->ro", precision, rows, table)
    return product.reshape(*x.shape[:-1], table.shape[0])


def einsum(subscripts: str, x: jax.Array, y: jax.Array, precision: Precision) -> jax.Array:
    """The product of two arrays, of whose indices each stands in two of the three, in float32."""
    if precision.compute == "float32":
        return jnp.einsum(subscripts, _wide(x), _wide(y))
    return _narrow(subscripts, precision, x, y)


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32)


# By hand, since autodiff of a cast and a product would multiply the float32 gradient by what the
# cast gave, which is a float32 product, and round the gradients of the params to bfloat16. An
# operand is kept for the backward pass as it was multiplied, in half the memory.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _narrow(subscripts, precision, x, y):
    return _narrow_forward(subscripts, precision, x, y)[0]


def _narrow_forward(subscripts, precision, x, y):
    narrow = x.astype(precision.compute), y.astype(precision.compute)
    product = jnp.einsum(subscripts, *narrow, preferred_element_type=precision.accumulate)
    # The operands' own types, which the gradients must have, as the types of empty arrays.
    return _wide(product), (*narrow, jnp.zeros(0, x.dtype), jnp.zeros(0, y.dtype))


def _narrow_backward(subscripts, precision, residuals, gradient):
    x, y, like_x, like_y = residuals
    of_x, of_y, of_product = re.split(",|->", subscripts)
    to_x: Any = _narrow(f"{of_product},{of_y}->{of_x}", precision, gradient, y)
    to_y: Any = _narrow(f"{of_x},{of_product}->{of_y}", precision, x, gradient)
    return to_x.astype(like_x.dtype), to_y.astype(like_y.dtype)


_narrow.defvjp(_narrow_forward, _narrow_backward)
