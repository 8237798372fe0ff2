"""A head over many random features of a model's few."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jcl import checks
from jcl.models import wrapping
from jcl.models.model import Model


def random_expansion(inputs: int, width: int, *, seed: int = 0) -> Callable[[jax.Array], jax.Array]:
    """x [..., inputs] -> max(0, x / |x| W) [..., width], W standard normal, drawn from the seed."""
    width = checks.whole("random_expansion", "width", width)
    seed = checks.whole("random_expansion", "seed", seed, least=0)
    shape = (checks.whole("random_expansion", "inputs", inputs), width)
    matrix = np.random.default_rng(seed).standard_normal(shape, np.float32)

    def expand(x: jax.Array) -> jax.Array:
        # Inside the root, so that the gradient at zero is a number.
        length = jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)
        return nn.relu(x / length @ matrix)

    return expand


def second_head(
    model: Model,
    name: str,
    expand: Callable[[jax.Array], jax.Array],
    *,
    width: int,
    classes: int,
) -> Model:
    """The model, answering by a second head, over expand(features), beside the one it has.

    params[name] = {"kernel": [width, classes], "bias": [classes]}, zeros: a head that is computed,
    as by `jcl.slda_replay(answer=name, expand=expand)`, while the first one is trained.

    Args:
        model: any model with features.
        name: of the head.
        expand: features [batch, ...] -> [batch, width], such as `random_expansion`.
        width: of what it gives.
        classes: of the head.

    >>> import jax, jcl
    >>> model = jcl.models.mlp(jcl.models.MLPConfig(inputs=4, hidden=(8,), classes=3))
    >>> expand = jcl.models.random_expansion(8, 50)
    >>> wide = jcl.models.second_head(model, "wide", expand, width=50, classes=3)
    >>> sorted(wide.init(jax.random.key(0)))
    ['head', 'layer_0', 'wide']
    """
    narrow: Any = model.features
    checks.function("second_head", "model.features", narrow, "those of jcl.models.mlp(...)")
    shape = checks.whole("second_head", "width", width), classes
    checks.whole("second_head", "classes", classes)

    def zeros(key, params):
        return {"kernel": jnp.zeros(shape), "bias": jnp.zeros(classes)}

    def features(params, inputs, key=None, **rest):
        return expand(narrow(params, inputs, key, **rest))

    def apply(params, inputs, key=None, **rest):
        return features(params, inputs, key, **rest) @ params[name]["kernel"] + params[name]["bias"]

    return wrapping.extended(model, name, zeros)._replace(
        apply=apply, features=features, head=None, decode=None, cache=None
    )


def random_features(model: Model, width: int, where: str = "head", *, seed: int = 0) -> Model:
    """The model whose head sees fixed random features of what it saw before.

    features = max(0, W x / |x|), W standard normal, [width, width of x].

    McDonnell et al. 2023 (RanPAC): classes that overlap along the features of a pretrained encoder
    come apart in some thousands of random ones, where `jcl.slda` or `jcl.nearest_class_mean` needs
    no gradient to tell them. W is drawn once from the seed and is no parameter. Differs from the
    paper in: x has length 1.

    Args:
        model: any model with features and with a Dense module as its head.
        width: of the random features, and of the head.
        where: the head's path.
        seed: of W.

    Raises:
        InputError: the path is no Dense module; the message lists the nearest.

    >>> import jax, jcl
    >>> model = jcl.models.mlp(jcl.models.MLPConfig(inputs=4, hidden=(8,), classes=3))
    >>> model = jcl.models.random_features(model, 50)
    >>> model.init(jax.random.key(0))["head"]["kernel"].shape
    (50, 3)
    """
    narrow: Any = model.features
    checks.function("random_features", "model.features", narrow, "those of jcl.models.mlp(...)")
    dense = wrapping.kernels(wrapping.shapes(model))
    (path,) = wrapping.chosen("random_features", where, list(dense))
    expand = random_expansion(dense[path].shape[0], width, seed=seed)

    def intercept(following, arguments, options, context):
        if context.method_name == "__call__" and "/".join(context.module.path) == path:
            arguments = (expand(arguments[0]), *arguments[1:])
        return following(*arguments, **options)

    def seen(function):
        @functools.wraps(function)
        def call(*arguments: Any, **rest: Any) -> Any:
            with nn.intercept_methods(intercept):
                return function(*arguments, **rest)

        return call

    def features(params, inputs, key=None, **rest):
        return expand(narrow(params, inputs, key, **rest))

    # A model that hands out its features apart from its head would hand out the old ones.
    return model._replace(
        init=seen(model.init), apply=seen(model.apply), features=features,
        head=None, decode=None, cache=None,
    )  # fmt: skip
