"""Streaming linear discriminant analysis as a head."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jcl import checks
from jcl.core import Strategy, strategy
from jcl.strategies.nearest_class_mean import ClassMeans, check_head, joined, of_batch, with_head


class Discriminant(NamedTuple):
    """Attributes:
    means: of every class.
    scatter: [width, width], the sum over all examples of (x - mu_c)(x - mu_c)^T.
    solved: the kernel, the bias and the classes' counts of the last boundary; () where every step
        solves for its own.
    """

    means: ClassMeans
    scatter: jax.Array
    solved: Any = ()


def slda(
    features: Callable[..., jax.Array],
    classes: int,
    *,
    shrinkage: float = 1e-4,
    head: str = "head",
    refresh: Literal["step", "boundary"] = "step",
) -> Strategy:
    """Replaces the head by linear discriminant analysis of the features seen in training.

    logit_c = (Lambda mu_c) . x - mu_c . Lambda mu_c / 2,
    Lambda = ((1 - shrinkage) Sigma + shrinkage I)^-1, Sigma = scatter / examples;
    -1e9 for a class never seen.

    Hayes and Kanan 2020, for a frozen backbone: `chain(freeze("*"), slda(...))`. Means and scatter
    are those of all examples at once, in whatever batches they came: two batches' scatters of one
    class add up with n m / (n + m) d d^T, d the difference of their means. Differs from the paper
    in: the scatter within classes is exact, where the paper weighs an example by all examples
    before it; no phase of its own begins it. The first batch of a class has loss 0
    (`jcl.losses.classify`). Every step solves a system of the features' width, which for
    some thousands of features takes longer than the model; `refresh="boundary"` solves it at
    boundaries alone, and until then the head is that of the last one.

    Args:
        features: (params, inputs, key) -> [batch, width], such as `model.features`.
        classes: of the head.
        shrinkage: in (0, 1], how far the covariance is drawn to the identity.
        head: path of the head in the params, {"kernel": [width, classes], "bias": [classes]}.
        refresh: when the head is computed anew.

    Raises:
        InputError: at init, if there is no such head or the features do not fit it.

    Stores: one mean of the features for every class and a [width, width] covariance.
    Place: anywhere; right of other views that change the head.
    Scenario: class-incremental.

    >>> import jcl
    >>> model = jcl.models.mlp(jcl.models.MLPConfig(inputs=4, hidden=(8,), classes=3))
    >>> method = jcl.chain(jcl.freeze("*"), jcl.slda(model.features, classes=3))
    """
    classes = checks.whole("slda", "classes", classes)
    checks.number("slda", "shrinkage", shrinkage, "(0, 1]")

    checks.one_of("slda", "refresh", refresh, ("step", "boundary"))

    def init(params, *, batch, **_):
        width = check_head("slda", features, classes, head, params, batch)
        means = ClassMeans(jnp.zeros((classes, width)), jnp.zeros(classes))
        state = Discriminant(means, jnp.zeros((width, width)))
        return state if refresh == "step" else state._replace(solved=solve(state))

    def solve(state):
        mean, count = state.means
        covariance = state.scatter / jnp.maximum(count.sum(), 1.0)
        drawn = (1 - shrinkage) * covariance + shrinkage * jnp.eye(mean.shape[1])
        weights = jax.scipy.linalg.solve(drawn, mean.T, assume_a="pos")
        return weights, -0.5 * jnp.sum(mean.T * weights, axis=0), jnp.copy(count)

    def view(state, params, batch):
        return with_head(params, head, *(state.solved or solve(state))), batch

    def update(updates, state, params, *, batch, **_):
        mean, count, scatter = of_batch(features, classes, params, batch)
        before = state.means
        between = before.count * count / jnp.maximum(before.count + count, 1.0)
        apart = mean - before.mean
        scatter = state.scatter + scatter + (between[:, None] * apart).T @ apart
        return updates, state._replace(means=joined(before, mean, count), scatter=scatter)

    def consolidate(state, params, **_):
        return state if refresh == "step" else state._replace(solved=solve(state)), params

    return strategy(name="slda", init=init, view=view, update=update, consolidate=consolidate)
