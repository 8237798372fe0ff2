"""A head that compares directions."""

import jax.numpy as jnp

from jcl import checks
from jcl.models import precision, wrapping
from jcl.models.model import Model


def cosine_head(model: Model, where: str = "head", *, scale: float = 16.0) -> Model:
    """The model whose head gives the cosine between the features and each class's column.

    logit_c = scale * x . w_c / (|x| |w_c|).

    Gidaris and Komodakis 2018; as a remedy for heads that favour the latest classes,
    Hou et al. 2019. The head's bias, if it has one, is left out. Differs from the
    papers in: the scale is given rather than learned.

    Args:
        model: any model whose head is a Dense module.
        where: the head's path.
        scale: the largest logit.

    Raises:
        InputError: the path is no Dense module; the message lists the nearest.

    >>> import jcl
    >>> model = jcl.models.mlp(jcl.models.MLPConfig(inputs=4, hidden=(8,), classes=3))
    >>> model = jcl.models.cosine_head(model, scale=10.0)
    """
    checks.number("cosine_head", "scale", scale, "(0, inf)")
    paths = wrapping.chosen("cosine_head", where, list(wrapping.kernels(wrapping.shapes(model))))

    def change(params, path, x, output, key):
        if path not in paths:
            return output
        columns = _direction(wrapping.at(params, path)["kernel"], axis=0)
        return precision.matmul(scale * _direction(x, axis=-1), columns, precision.of(model))

    return wrapping.changed(model, change)


def _direction(x, axis):
    # Inside the root, so that the gradient at zero is a number.
    return x / jnp.sqrt(jnp.sum(x * x, axis=axis, keepdims=True) + 1e-12)
