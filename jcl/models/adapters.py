"""Bottleneck adapters behind the modules of any model."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jcl import checks
from jcl.models import precision, wrapping
from jcl.models.model import Model


def adapters(model: Model, width: int, where: str | Sequence[str] | None = None) -> Model:
    """The model with a small network behind each chosen module, in params["adapters"].

    output = y + gelu(y down + down_bias) up + up_bias, with y what the module returned.

    Houlsby et al. 2019, section 2.1: one adapter behind each of a block's two branches, before the
    residual sum. Differs from the paper in: `up` starts at exactly zero, so that the model begins
    as it was; the layer norms stay frozen unless they are chosen as well. To train the adapters
    alone: `chain(only("adapters/*", adamw(...)), freeze("*", but="adapters/*"))`; one set for
    every task: `jcl.separate("adapters/*", tasks=...)`. Pretrained params p go in by
    `{**model.init(key), **p}`.

    Args:
        model: any model made of Flax linen modules.
        width: of the bottleneck.
        where: patterns of paths of modules, such as "h_*/mlp"; each must return one array. None
            is all that are called "attn", "self_attn" or "mlp".

    Raises:
        InputError: a pattern matches no such module; the message lists the nearest.

    >>> import jax, jcl
    >>> config = jcl.models.GPT2Config(258, positions=8, width=4, layers=1, heads=2)
    >>> model = jcl.models.adapters(jcl.models.gpt2(config), width=2, where="h_*/mlp")
    >>> list(model.init(jax.random.key(0))["adapters"]["h_0"]["mlp"])
    ['down', 'down_bias', 'up', 'up_bias']
    """
    width = checks.whole("adapters", "width", width)
    outer = wrapping.widths(model)
    if where is None:
        branches = ("attn", "self_attn", "mlp")
        where = [path for path in outer if path.rpartition("/")[2] in branches] or "*/attn"
    paths = wrapping.chosen("adapters", where, list(outer))

    def make(key, _):
        def one(path, key):
            return {
                "down": jax.random.normal(key, (outer[path], width)) / outer[path] ** 0.5,
                "down_bias": jnp.zeros(width),
                "up": jnp.zeros((width, outer[path])),
                "up_bias": jnp.zeros(outer[path]),
            }

        return wrapping.nested({path: one(path, key) for path, key in wrapping.keys(key, paths)})

    def change(params, path, x, output, key):
        if path not in paths:
            return output
        own, types = wrapping.at(params["adapters"], path), precision.of(model)
        hidden = precision.matmul(output, own["down"], types) + own["down_bias"]
        return output + precision.matmul(jax.nn.gelu(hidden), own["up"], types) + own["up_bias"]

    return wrapping.extended(wrapping.changed(model, change, "adapters"), "adapters", make)
