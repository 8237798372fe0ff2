"""What an episode begins from, where its classes are to be new to the model."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jcl.errors import InputError


def fresh_classes(head: str = "head") -> Callable[..., Any]:
    """The params, with random weights in the head for the classes that the support names.

    kernel_c ~ N(0, 1 / width) and bias_c = 0 for every class c of the support; the others stay.

    For `jcl.maml(start=...)`: else the shared head would come to know every class of the
    meta-training by heart, and there would be nothing to learn in an episode. Javed and White
    2019 and Beaulieu et al. 2020, in their released code. Without a key the weights are always
    the same.

    Args:
        head: the head's entry of the params, {"kernel": [width, classes], "bias": [classes]}.

    Raises:
        InputError: at the call, there is no such head.

    >>> import jcl, optax
    >>> model = jcl.models.convolutional(jcl.models.ConvolutionalConfig(classes=120))
    >>> loss_fn = jcl.losses.classify(model.apply)
    >>> oml = jcl.maml(loss_fn, steps=15, optimizer=optax.sgd(0.03), where="head/*",
    ...                one_by_one=True, start=jcl.meta.fresh_classes())
    """

    def start(params: Any, support: Any, key: jax.Array | None) -> Any:
        own = params.get(head)
        if not isinstance(own, dict) or set(own) != {"kernel", "bias"}:
            raise InputError(
                f"fresh_classes: the params have no head {head!r} of a kernel and a bias, only "
                f"{', '.join(params)}: name the head's entry."
            )
        kernel, bias = own["kernel"], own["bias"]
        targets = support["targets"]
        if "mask" in support:
            targets = jnp.where(support["mask"] > 0, targets, bias.shape[0])  # dropped
        named = jnp.zeros(bias.shape, bool).at[targets].set(True, mode="drop")
        drawn = jax.random.normal(jax.random.key(0) if key is None else key, kernel.shape)
        fresh = {
            "kernel": jnp.where(named, drawn / kernel.shape[0] ** 0.5, kernel),
            "bias": jnp.where(named, 0.0, bias),
        }
        return {**params, head: fresh}

    return start
