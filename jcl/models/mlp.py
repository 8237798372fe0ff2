"""A multilayer perceptron in Flax linen, behind pure functions of params."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import linen as nn

from jcl import checks
from jcl.errors import InputError
from jcl.models.layers import BatchNorm
from jcl.models.model import Model, classifier


@dataclass(frozen=True)
class MLPConfig:
    """The shape of an MLP.

    Attributes:
        inputs: numbers an example, its axes flattened.
        hidden: units of each hidden layer, all with ReLU.
        classes: of the head; classes that come later have their place from the start.
        scale: what inputs are multiplied by, 1 / 255 for bytes.
        shift: what is added then.
        initializer: of the kernels, "glorot" (uniform, Xavier) or "lecun" (uniform within
            1 / sqrt(inputs of the layer), for biases as well: the default of PyTorch's Linear).
        normalization: of the hidden layers before their ReLU, "none" or, as in
            `ConvolutionalConfig`, "batch", which takes the place of their biases.
    """

    inputs: int = 784
    hidden: tuple[int, ...] = (100, 100)
    classes: int = 10
    scale: float = 1.0
    shift: float = 0.0
    initializer: str = "glorot"
    normalization: str = "none"

    def __post_init__(self):
        for field in ("inputs", "classes"):
            checks.whole("MLPConfig", field, getattr(self, field))
        for units in self.hidden:
            checks.whole("MLPConfig", "hidden", units)
        checks.one_of("MLPConfig", "initializer", self.initializer, ("glorot", "lecun"))
        checks.one_of("MLPConfig", "normalization", self.normalization, ("none", "batch"))


def mlp(config: MLPConfig) -> Model:
    """An MLP with random weights: params `layer_0`, `layer_1`, ... and `head`.

    >>> import jax, jax.numpy as jnp, jcl
    >>> model = jcl.models.mlp(jcl.models.MLPConfig(inputs=4, hidden=(8,), classes=3))
    >>> model.apply(model.init(jax.random.key(0)), jnp.zeros((2, 4))).shape
    (2, 3)
    """
    return classifier(MLP(config), config, (config.inputs,))


class MLP(nn.Module):
    """inputs [batch, ...] -> logits [batch, classes]; integer inputs become floats."""

    config: MLPConfig

    @nn.compact
    def __call__(self, inputs, head=True):
        config = self.config
        x = inputs.reshape(inputs.shape[0], -1).astype(jnp.float32)
        if x.shape[-1] != config.inputs:
            raise InputError(
                f"An example has {x.shape[-1]} numbers and the model takes {config.inputs}: give "
                f"MLPConfig(inputs={x.shape[-1]})."
            )
        if (config.scale, config.shift) != (1.0, 0.0):
            x = x * config.scale + config.shift
        for layer, units in enumerate(config.hidden):
            normal = config.normalization == "batch"
            x = _dense(config, units, x.shape[-1], f"layer_{layer}", bias=not normal)(x)
            x = nn.relu(BatchNorm(name=f"norm_{layer}")(x) if normal else x)
        return _dense(config, config.classes, x.shape[-1], "head")(x) if head else x


def _dense(config: MLPConfig, units: int, inputs: int, name: str, bias: bool = True) -> nn.Dense:
    if config.initializer == "glorot":
        glorot = nn.initializers.glorot_uniform()
        return nn.Dense(units, use_bias=bias, kernel_init=glorot, name=name)

    def uniform(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -1.0, 1.0) / inputs**0.5

    return nn.Dense(units, use_bias=bias, kernel_init=uniform, bias_init=uniform, name=name)
