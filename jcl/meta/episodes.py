"""An episode: a few examples to adapt to, and queries that show what the adaptation was worth."""

import contextlib
from collections.abc import Callable
from typing import Any, Literal

import jax
from flax import linen as nn

from jcl import sharding
from jcl.errors import InputError
from jcl.models.layers import normalizes_over_batch

SUPPORT = "support_"

Episodes = dict[str, Any]


def divided(episodes: Episodes) -> tuple[dict[str, Any], dict[str, Any]]:
    """The support and the queries of one episode, or of a batch of them, each as a batch.

    What is named support_x is x of the support; all else is the queries', whose targets may be
    absent (predict).

    Raises:
        InputError: there is no support, or it has no targets.
    """
    support = {
        name.removeprefix(SUPPORT): leaf
        for name, leaf in episodes.items()
        if name.startswith(SUPPORT)
    }
    queries = {name: leaf for name, leaf in episodes.items() if not name.startswith(SUPPORT)}
    missing = {"inputs", "targets"} - set(support)
    if missing:
        raise InputError(
            f"a batch of episodes has no {SUPPORT}{min(missing)}, only {', '.join(episodes)}: "
            "give a source of episodes, such as jcl.data.Episodes(source, ways=5, shots=1, ...)."
        )
    return support, queries


def without_batch_statistics(support: Episodes) -> contextlib.AbstractContextManager[None]:
    """While it lasts, a module that normalizes over the batch is refused if the support is padded:
    its means would be those of the padding as well.

    Raises:
        InputError: there is such a module.
    """
    if "mask" not in support:
        return contextlib.nullcontext()

    def intercept(following, arguments, options, context):
        if normalizes_over_batch(context.module):
            path = "/".join(context.module.path)
            raise InputError(
                f"The support has a mask, and the model normalizes over the batch at {path!r}: the "
                "padding would count there. Give the episodes their shots alone (no padded_shots), "
                'or the model another normalization, such as "instance".'
            )
        return following(*arguments, **options)

    return nn.intercept_methods(intercept)


def over_episodes(
    function: Callable[..., Any],
    episodes: Episodes,
    key: jax.Array | None,
    over: Literal["vmap", "map"],
) -> Any:
    """function(episode, key) of every episode of a batch, each with a key of its own.

    "vmap" computes the episodes together, "map" one after the other: a convolution (though not the
    matmuls of patches in `jcl.models.convolutional`) whose gradient is taken under vmap is many
    times slower on a CPU. Where a `jcl.sharding.Placement` splits the batch over devices, each maps
    over its own.
    """
    number, keys = jax.tree.leaves(episodes)[0].shape[0], None
    if key is not None:
        keys = jax.random.split(key, number)

    def one(episode, key):
        with sharding.split_over(1):  # an episode stands on one device
            return function(episode, key)

    def in_turn(given):
        return jax.lax.map(lambda each: one(*each), given)

    parts = sharding.parts()
    if over == "vmap":
        return jax.vmap(one)(episodes, keys)
    if parts == 1 or number % parts:
        return in_turn((episodes, keys))
    cut = jax.tree.map(
        lambda leaf: leaf.reshape(parts, number // parts, *leaf.shape[1:]), (episodes, keys)
    )
    return jax.tree.map(lambda leaf: leaf.reshape(number, *leaf.shape[2:]), jax.vmap(in_turn)(cut))
