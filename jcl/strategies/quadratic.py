"""What the methods share that hold each parameter near an anchor, by its importance."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jcl.core import Batch, Params
from jcl.errors import InputError


class Quadratic(NamedTuple):
    """One quadratic bowl that stands for those of all past tasks.

    Attributes:
        importance: shaped like params; the curvature, zero before the first boundary.
        anchor: shaped like params; where the bowl is lowest.
    """

    importance: Params
    anchor: Params


def flat(params: Params) -> Quadratic:
    """The bowl before any task: no curvature anywhere."""
    return Quadratic(jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.copy, params))


def distance(importance: Params, params: Params, anchor: Params) -> jax.Array:
    """sum_i importance_i (params_i - anchor_i)^2."""
    bowls = jax.tree.map(
        lambda importance, parameter, anchor: jnp.sum(importance * (parameter - anchor) ** 2),
        importance,
        params,
        anchor,
    )
    return jnp.asarray(optax.tree.sum(bowls))


def mean_over_examples(
    function: Callable[[Batch, jax.Array], Params],
    params: Params,
    batches: Batch,
    key: jax.Array | None,
    *,
    chunk: int,
    name: str,
) -> Params:
    """The mean of a params-shaped function over the examples of [number, batch, ...] batches.

    Examples whose `mask` in the batches is all 0 count nowhere.

    A scan over examples holds one params-sized tree at a time (times `chunk`).

    Args:
        function: (batch of one example, key) -> tree shaped like params.
        params: whose shapes count.
        batches: every leaf is [number, batch, ...].
        key: split over the examples; None stands for a fixed key.
        chunk: examples computed at once; it must divide their number.
        name: of the strategy, for the message.
    """
    total, number = sum_over_examples(function, params, batches, key, chunk=chunk, name=name)
    return jax.tree.map(lambda leaf: leaf / number, total)


def sum_over_examples(
    function: Callable[[Batch, jax.Array], Params],
    params: Params,
    batches: Batch,
    key: jax.Array | None,
    *,
    chunk: int,
    name: str,
) -> tuple[Params, jax.Array | int]:
    """The sum, and the number of those that count; arguments as in `mean_over_examples`."""
    number = jax.tree.leaves(batches)[0].shape[0] * jax.tree.leaves(batches)[0].shape[1]
    if number % chunk:
        raise InputError(
            f"{name}(chunk={chunk}) does not divide the {number} examples of a boundary: choose a "
            "chunk that divides boundary_batches * batch_size."
        )
    groups = jax.tree.map(
        lambda leaf: leaf.reshape((number // chunk, chunk, 1, *leaf.shape[2:])), batches
    )
    keys = jax.random.split(jax.random.key(0) if key is None else key, (number // chunk, chunk))

    counts = None
    if "mask" in batches:
        masks = groups["mask"].reshape((number // chunk, chunk, -1))
        counts = jnp.any(masks > 0, axis=-1).astype(jnp.float32)

    def counted(example, key, count):
        new = function(example, key)
        return new if count is None else jax.tree.map(lambda leaf: count * leaf, new)

    def add(total, group):
        if chunk == 1:
            new = counted(*jax.tree.map(lambda leaf: leaf[0], group))
        else:
            new = jax.tree.map(lambda leaf: leaf.sum(axis=0), jax.vmap(counted)(*group))
        return jax.tree.map(jnp.add, total, new), None

    nothing = jax.tree.map(jnp.zeros_like, params)
    total, _ = jax.lax.scan(add, nothing, (groups, keys, counts))
    return total, number if counts is None else jnp.maximum(counts.sum(), 1.0)
