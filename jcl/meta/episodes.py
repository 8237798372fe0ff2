"""An episode: a few examples to adapt to, and queries that show what the adaptation was worth."""

import contextlib
from collections.abc import Callable
from typing import Any, Literal

import jax
from flax import linen as nn

from jcl import sharding
from jcl.errors import InputError
from jcl.models.layers import BatchNorm, normalizes_over_batch

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


def without_batch_statistics(
    support: Episodes, one_by_one: bool = False
) -> contextlib.AbstractContextManager[None]:
    """While it lasts, a module that normalizes over the batch is refused where that is wrong: if
    the support is padded, whose means would be those of the padding as well, or learned from one
    by one, if a single example is a single row, whose normal is 0 whatever it is.

    Raises:
        InputError: there is such a module.
    """
    if "mask" not in support and not one_by_one:
        return contextlib.nullcontext()

    def intercept(following, arguments, options, context):
        path = "/".join(context.module.path)
        if one_by_one:
            if isinstance(context.module, BatchNorm | nn.BatchNorm):
                raise InputError(
                    f"one_by_one: the model normalizes over the batch at {path!r}, and one example "
                    "by itself is 0 there: take a model without it."
                )
        elif normalizes_over_batch(context.module):
            raise InputError(
                f"The support has a mask, and the model normalizes over the batch at {path!r}: the "
                "padding would count there. Give the episodes their shots alone (no padded_shots), "
                'or the model another normalization, such as "instance".'
            )
        return following(*arguments, **options)

    return nn.intercept_methods(intercept)


def check_episodes(episodes: Episodes) -> None:
    """Passes a batch whose arrays all begin with the axis of episodes.

    Raises:
        InputError: they do not, or a mask is of episodes and not of their queries or examples.
    """
    shapes = {name: list(jax.numpy.shape(leaf)) for name, leaf in episodes.items()}
    if len({tuple(shape[:1]) for shape in shapes.values()}) != 1 or [] in shapes.values():
        shown = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise InputError(
            f"a batch of episodes has arrays of different numbers of them ({shown}): all begin "
            "with the axis of episodes, inputs as [episodes, queries, ...]; one episode is a batch "
            "of 1."
        )
    for name in ("mask", f"{SUPPORT}mask"):
        if len(shapes.get(name, [0, 0])) < 2:
            raise InputError(
                f"{name} {shapes[name]}: give one number for every query or example of an episode, "
                "[episodes, queries]."
            )


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

    Raises:
        InputError: the arrays are not of one number of episodes, or a mask has no queries.
    """
    check_episodes(episodes)
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
