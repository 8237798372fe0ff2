"""A model that begins with weights at hand."""

import functools
import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jcl.errors import InputError
from jcl.models import wrapping
from jcl.models.model import Model


def starting_from(model: Model, params: Any, *, fresh: str | Sequence[str] = ()) -> Model:
    """The model whose init gives these params, but for the fresh ones, drawn anew of the key.

    init(key)[path] = params[path], or what the model's own init makes there where fresh matches.

    So a run begins with a checkpoint, and each seed with a head of its own:
    `starting_from(*from_pretrained(folder, head="classes", key=key), fresh="classifier/*")`.
    Wrap it afterwards (`lora`, `adapters`), so that what a wrapper adds is made by its own init. A
    run that goes on is refused where the params are no longer those that it began with.

    Args:
        model: any model.
        params: of its shapes; its own types stay as they are given.
        fresh: patterns of paths that keep the model's own init.

    Raises:
        InputError: params lack a parameter, hold one too many, or one of another shape, each by
            name; a pattern matches no path.

    >>> import jax, jcl
    >>> model = jcl.models.mlp(jcl.models.MLPConfig(inputs=4, hidden=(8,), classes=3))
    >>> params = model.init(jax.random.key(0))
    >>> model = jcl.models.starting_from(model, params, fresh="head/*")
    >>> again = model.init(jax.random.key(1))
    >>> bool((again["layer_0"]["kernel"] == params["layer_0"]["kernel"]).all())
    True
    """
    shapes = wrapping.shapes(model)
    wanted = dict(zip(wrapping.names(shapes), jax.tree.leaves(shapes), strict=True))
    given = dict(zip(wrapping.names(params), jax.tree.leaves(params), strict=True))
    drawn = set(wrapping.chosen("starting_from", fresh, list(wanted))) if fresh else set()
    wrong = [
        f"{name} is {list(given[name].shape) if name in given else 'missing'}, and must be "
        f"{list(wanted[name].shape) if name in wanted else 'left out'}"
        for name in sorted(wanted.keys() | given.keys())
        if name not in drawn
        and (
            name not in wanted
            or name not in given
            or tuple(wanted[name].shape) != tuple(given[name].shape)
        )
    ]
    if wrong:
        raise InputError(f"starting_from: {'; '.join(wrong[:10])}.")

    def init(key):
        def choose(path, own):
            name = wrapping.name(path)
            return own if name in drawn else given[name]

        return jax.tree_util.tree_map_with_path(choose, model.init(key))

    @functools.cache
    def start():
        digest = hashlib.sha256()
        for name in sorted(wanted.keys() - drawn):
            leaf = given[name]
            digest.update(f"{name} {leaf.dtype}{list(leaf.shape)}".encode())
            digest.update(np.ascontiguousarray(leaf).view(np.uint8).data)
        return digest.hexdigest()

    return model._replace(init=init, start=start)
