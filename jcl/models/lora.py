"""Low-rank adapters beside the Dense modules of any model."""

import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jcl import checks
from jcl.errors import InputError
from jcl.models import precision, wrapping
from jcl.models.model import Model


def lora(
    model: Model,
    rank: int,
    alpha: float,
    where: str | Sequence[str] = "*attn*",
    *,
    slots: int = 1,
    dropout: float = 0.0,
) -> Model:
    """The model with x A B beside each chosen Dense, in params["lora"].

    output = x W + bias + alpha / rank * sum over slots (dropout(x) A_slot) B_slot.

    Hu et al. 2021, section 4.1: A is normal with variance 1 / in, B zero, so that the model begins
    as it was. A B is never formed, since its gradient would cost what that of W costs. Pretrained
    params p go in by `{**model.init(key), **p}`. To train the adapters alone:
    `chain(only("lora/*", adamw(...)), freeze("*", but="lora/*"))`. The adapters are float32,
    whatever the model's params are.

    Args:
        model: any model whose params hold 2-dimensional kernels, each under its module's path.
        rank: columns of A.
        alpha: alpha / rank weighs the sum.
        where: patterns of paths of Dense modules, such as "h_*/attn/c_attn".
        slots: adapters beside each Dense, all added up, [slots, in, rank] and [slots, rank, out];
            a slot not yet used has B = 0. See `jcl.olora`.
        dropout: rate on x before A.

    Raises:
        InputError: a pattern matches no Dense module; the message lists the nearest.

    >>> import jax, jcl
    >>> model = jcl.models.mlp(jcl.models.MLPConfig(inputs=4, hidden=(8,), classes=3))
    >>> model = jcl.models.lora(model, rank=2, alpha=4.0, where="layer_*")
    >>> jax.tree.map(lambda leaf: leaf.shape, model.init(jax.random.key(0))["lora"])
    {'layer_0': {'a': (1, 4, 2), 'b': (1, 2, 8)}}
    """
    rank, slots = checks.whole("lora", "rank", rank), checks.whole("lora", "slots", slots)
    checks.number("lora", "alpha", alpha)
    checks.number("lora", "dropout", dropout, "[0, 1)")
    paths = wrapping.chosen("lora", where, list(wrapping.kernels(wrapping.shapes(model))))

    def make(key, params):
        dense = wrapping.kernels(params)

        def one(path, key):
            inputs, outputs = dense[path].shape
            return {
                "a": jax.random.normal(key, (slots, inputs, rank)) / inputs**0.5,
                "b": jnp.zeros((slots, rank, outputs)),
            }

        return wrapping.nested({path: one(path, key) for path, key in wrapping.keys(key, paths)})

    def change(params, path, x, output, key):
        if path not in paths:
            return output
        own = wrapping.at(params["lora"], path)
        x = wrapping.dropout(x, dropout, key, f"lora/{path}")
        types, rows = precision.of(model), x.reshape(-1, x.shape[-1])
        inner = precision.einsum("ni,sir->nsr", rows, own["a"], types)
        outer = precision.einsum("nsr,sro->no", inner, own["b"], types)
        return output + alpha / rank * outer.reshape(output.shape)

    adapted = wrapping.extended(wrapping.changed(model, change, "lora"), "lora", make)
    return adapted._replace(lora_alpha=alpha)


def merge_lora(params: Any, alpha: float) -> Any:
    """The base model's params, W + alpha / rank * sum A B in place of each adapted W.

    Args:
        params: of a model made by `lora`.
        alpha: as it was given to `lora`; the rank is A's.

    The sum is formed in float32 and rounded once, to W's type; where that is narrower a warning
    says that a part of A B is lost.

    Raises:
        InputError: the params hold no adapters.
    """
    if "lora" not in params:
        raise InputError(
            'merge_lora: the params have no entry "lora", so that nothing is to be merged; give '
            "those of the model that jcl.models.lora made, and merge them once."
        )
    narrow = set()
    base = {name: leaf for name, leaf in params.items() if name != "lora"}

    def merge(path, kernel):
        names = [part.key for part in path]
        own = wrapping.at(params["lora"], "/".join(names[:-1])) if names[-1] == "kernel" else None
        if own is None:
            return kernel
        if kernel.dtype.itemsize < 4:
            narrow.add(str(kernel.dtype))
        a, b = (own[name].astype(jnp.float32) for name in "ab")
        product = jnp.einsum("sir,sro->io", a, b)
        wide = kernel.astype(jnp.float32) + alpha / a.shape[-1] * product
        return wide.astype(kernel.dtype)

    merged = jax.tree_util.tree_map_with_path(merge, base)
    if narrow:
        warnings.warn(
            f"merge_lora: the kernels are {', '.join(sorted(narrow))}, to which the sums are "
            "rounded, so that a part of what the adapters learned is lost. Cast the params first: "
            'jax.tree.map(lambda leaf: leaf.astype("float32"), params).',
            stacklevel=2,
        )
    return merged
