"""The nearest class mean as a head."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jcl import checks
from jcl.core import Params, Strategy, check_complete, strategy
from jcl.errors import InputError
from jcl.losses import HIDDEN, outputs


class ClassMeans(NamedTuple):
    """Attributes:
    mean: [classes, width] of all features seen; 0 where none was.
    count: [classes], how many were.
    """

    mean: jax.Array
    count: jax.Array


def nearest_class_mean(
    features: Callable[..., jax.Array], classes: int, *, head: str = "head"
) -> Strategy:
    """Replaces the head by the distance to each class's mean of the features, seen in training.

    logit_c = 2 mu_c . x - |mu_c|^2 = |x|^2 - |x - mu_c|^2; -1e9 for a class never seen.

    Mensink et al. 2013, without a learned metric; iCaRL's rule (Rebuffi et al. 2017)
    over all examples in place of exemplars. The model sees the computed head in
    training as well, where the first batch of a class has loss 0 (`jcl.losses.classify`), and the
    params' own head has no gradient. The means are exact only where the
    features stay: freeze the backbone, `chain(freeze("*"), nearest_class_mean(...))`, or let it
    learn with `chain(adamw(...), nearest_class_mean(...))` and the older means lag behind.

    Args:
        features: (params, inputs, key) -> [batch, width], such as `model.features`.
        classes: of the head.
        head: path of the head in the params, {"kernel": [width, classes], "bias": [classes]}.

    Raises:
        InputError: at init, if there is no such head or the features do not fit it.

    Stores: one mean of the features for every class.
    Place: anywhere; right of other views that change the head.
    Scenario: class-incremental.

    >>> import jcl
    >>> model = jcl.models.mlp(jcl.models.MLPConfig(inputs=4, hidden=(8,), classes=3))
    >>> method = jcl.chain(
    ...     jcl.freeze("*"), jcl.nearest_class_mean(model.features, classes=3)
    ... )
    """

    classes = checks.whole("nearest_class_mean", "classes", classes)

    def init(params, *, batch, **_):
        width = check_head("nearest_class_mean", features, classes, head, params, batch)
        return ClassMeans(jnp.zeros((classes, width)), jnp.zeros(classes))

    def view(state, params, batch):
        bias = -jnp.sum(state.mean**2, axis=1)
        return with_head(params, head, 2 * state.mean.T, bias, state.count), batch

    def update(updates, state, params, *, batch, **_):
        return updates, joined(state, *of_batch(features, classes, params, batch)[:2])

    return strategy(name="nearest_class_mean", init=init, view=view, update=update)


def of_batch(
    features: Callable[..., jax.Array], classes: int, params: Params, batch: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of one batch's features: each class's mean [classes, width], its count [classes], and the
    scatter around the means [width, width]. Examples with mask 0 do not count."""
    x = jax.lax.stop_gradient(outputs(features, params, batch, None))
    member = (
        jax.nn.one_hot(batch["targets"], classes) * batch.get("mask", jnp.ones(len(x)))[:, None]
    )
    count = member.sum(axis=0)
    mean = member.T @ x / jnp.maximum(count, 1.0)[:, None]
    centred = x - member @ mean
    return mean, count, (centred * member.sum(axis=1)[:, None]).T @ centred


def joined(means: ClassMeans, mean: jax.Array, count: jax.Array) -> ClassMeans:
    """The means over both."""
    total = means.count + count
    share = (count / jnp.maximum(total, 1.0))[:, None]
    return ClassMeans(means.mean + share * (mean - means.mean), total)


def with_head(
    params: Params, head: str, kernel: jax.Array, bias: jax.Array, count: jax.Array
) -> Params:
    """The params with another head, whose classes of count 0 are never chosen."""
    new = {"kernel": kernel, "bias": jnp.where(count > 0, bias, HIDDEN)}

    def replace(path, leaf):
        *above, last = [part.key for part in path]
        return new[last].astype(leaf.dtype) if "/".join(above) == head else leaf

    return jax.tree_util.tree_map_with_path(replace, params)


def check_head(
    name: str, features: Callable[..., jax.Array], classes: int, head: str, params: Any, batch: Any
) -> int:
    """Refuses a head that cannot be computed; the width of the features."""
    checks.function(name, "features", features, "model.features")
    check_complete(name, params)
    found = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if jax.tree_util.keystr(path[:-1], simple=True, separator="/") == head
    }
    shape = jax.eval_shape(lambda p, b: outputs(features, p, b, None), params, batch).shape
    if len(shape) != 2:
        raise InputError(f"{name}: the features are {list(shape)}, but must be [batch, width].")
    expected = {f"{head}/bias": (classes,), f"{head}/kernel": (shape[1], classes)}
    if found != expected:
        raise InputError(
            f"{name}(classes={classes}, head={head!r}): the params must hold {expected}, and hold "
            f"{found or 'nothing there'}. Give the head's path, and its number of classes."
        )
    return shape[1]
