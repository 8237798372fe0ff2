"""An episode: a few examples to adapt to, and queries that show what the adaptation was worth."""

from collections.abc import Callable
from typing import Any, Literal

import jax

from jcl.errors import InputError

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


def over_episodes(
    function: Callable[..., Any],
    episodes: Episodes,
    key: jax.Array | None,
    over: Literal["vmap", "map"],
) -> Any:
    """function(episode, key) of every episode of a batch, each with a key of its own.

    "vmap" computes the episodes together, "map" one after the other: a convolution (though not the
    matmuls of patches in `jcl.models.convolutional`) whose gradient is taken under vmap is many
    times slower on a CPU.
    """
    keys = None
    if key is not None:
        keys = jax.random.split(key, jax.tree.leaves(episodes)[0].shape[0])
    if over == "vmap":
        return jax.vmap(function)(episodes, keys)
    return jax.lax.map(lambda each: function(*each), (episodes, keys))
