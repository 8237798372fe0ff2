"""What the wrappers of a model share: sub-trees of its params, and changed outputs of its modules.

A wrapper never edits a model's file. While the model runs, Flax calls an interceptor at every
module's `__call__`; its path there is its path in the params.
"""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from flax import linen as nn

from jcl import paths
from jcl.errors import InputError
from jcl.models.model import Model


def changed(
    model: Model,
    change: Callable[[Any, str, jax.Array, jax.Array, jax.Array | None], jax.Array],
    subtree: str | None = None,
) -> Model:
    """The model, the output of each of whose modules is passed through `change`.

    Args:
        model: any model made of Flax linen modules.
        change: (params, path, input, output, key) -> output, with the path as "h_0/attn", and of
            a module's arguments the first.
        subtree: the wrapper's own entry of the params, hidden from the model.
    """

    def around(function):
        def call(params, inputs, key=None, **rest):
            def intercept(following, arguments, options, context):
                output = following(*arguments, **options)
                path = "/".join(context.module.path)
                if context.method_name != "__call__" or not arguments:
                    return output
                return change(params, path, arguments[0], output, key)

            own = {entry: leaf for entry, leaf in params.items() if entry != subtree}
            with nn.intercept_methods(intercept):
                return function(own, inputs, key, **rest)

        return call

    return model._replace(
        apply=around(model.apply),
        features=around(model.features),
        head=model.head and around(model.head),
        decode=model.decode and around(model.decode),
    )


def extended(model: Model, subtree: str, make: Callable[[jax.Array, Any], Any]) -> Model:
    """The model, whose init adds make(key, params) to the params as an entry of that name."""
    if subtree in shapes(model):
        raise InputError(f"The model's params have an entry {subtree!r} already: wrap it once.")

    def init(key):
        key_model, key_own = jax.random.split(key)
        params = model.init(key_model)
        return {**params, subtree: make(key_own, params)}

    return model._replace(init=init)


def shapes(model: Model) -> Any:
    """The params' shapes."""
    return jax.eval_shape(model.init, jax.random.key(0))


def widths(model: Model) -> dict[str, int]:
    """The width of the output of every module within the model, by path.

    Modules that return no array are left out.
    """
    found = {}

    def intercept(following, arguments, options, context):
        output = following(*arguments, **options)
        inner = context.method_name == "__call__" and context.module.path
        if inner and isinstance(output, jax.Array) and output.ndim:
            found["/".join(context.module.path)] = output.shape[-1]
        return output

    with nn.intercept_methods(intercept):
        # A function of its own, since JAX would not run one again that it has traced before.
        jax.eval_shape(lambda key: model.init(key), jax.random.key(0))
    return found


def kernels(params: Any) -> dict[str, Any]:
    """The kernel [in, out] of every Dense module, by the module's path."""
    leaves = dict(zip(names(params), jax.tree.leaves(params), strict=True))
    return {
        path.removesuffix("/kernel"): leaf
        for path, leaf in leaves.items()
        if path.endswith("/kernel") and len(leaf.shape) == 2
    }


def name(path: Any) -> str:
    """The path of a leaf, written "h_0/attn/c_attn/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def names(params: Any) -> list[str]:
    """The paths of all leaves."""
    return [name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]


def chosen(call: str, where: str | Sequence[str], names: Sequence[str]) -> list[str]:
    """The names, paths in the model, that match a pattern; in their order.

    Raises:
        InputError: a pattern matches none; the message lists the nearest.
    """
    patterns = paths.as_patterns(where)
    paths.check(f"{call}: no path of the model that it can act on matches", patterns, names)
    return [name for name in names if paths.matches(name, patterns)]


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """{"h_0/attn": x} -> {"h_0": {"attn": x}}."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *above, last = path.split("/")
        at = tree
        for name in above:
            at = at.setdefault(name, {})
        at[last] = {**at.get(last, {}), **leaf}
    return tree


def at(tree: Any, path: str) -> Any:
    """The sub-tree at a path, or None."""
    for name in path.split("/"):
        tree = tree.get(name) if isinstance(tree, Mapping) else None
    return tree


def keys(key: jax.Array, paths: Sequence[str]) -> Iterator[tuple[str, jax.Array]]:
    """Every path with a key of its own."""
    return zip(paths, jax.random.split(key, len(paths)), strict=True)


def dropout(x: jax.Array, rate: float, key: jax.Array | None, name: str) -> jax.Array:
    """x with a share of its numbers zero and the others scaled up; x where the key is None.

    The mask's key is of the name alone, so that it depends on no other module.
    """
    if key is None or rate == 0:
        return x
    key = jax.random.fold_in(key, zlib.crc32(name.encode()))
    return jax.numpy.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0.0)
