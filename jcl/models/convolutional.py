"""A small convolutional network for images in Flax linen, behind pure functions of params."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import linen as nn

from jcl import checks
from jcl.errors import InputError
from jcl.models.layers import over_rows
from jcl.models.model import Model, classifier


@dataclass(frozen=True)
class ConvolutionalConfig:
    """The shape of a convolutional network.

    Attributes:
        height: of an image.
        width: of an image.
        channels: of an image; 1 may be left out of the inputs' shape.
        filters: of every block.
        blocks: each a 3 x 3 convolution that halves height and width, normalization, ReLU.
        classes: of the head.
        normalization: "batch", by the mean and variance of the very batch, in training and in
            prediction (so a prediction depends on the batch it stands in, which the field calls
            transductive), "instance", by those of each example alone, or "none".
        scale: what inputs are multiplied by, 1 / 255 for bytes.
    """

    height: int = 28
    width: int = 28
    channels: int = 1
    filters: int = 32
    blocks: int = 4
    classes: int = 5
    normalization: str = "batch"
    scale: float = 1.0

    def __post_init__(self):
        for field in ("height", "width", "channels", "filters", "blocks", "classes"):
            checks.whole("ConvolutionalConfig", field, getattr(self, field))
        known = ("batch", "instance", "none")
        checks.one_of("ConvolutionalConfig", "normalization", self.normalization, known)
        if self.normalization == "instance" and max(self.height, self.width) <= 2**self.blocks:
            raise InputError(
                f"ConvolutionalConfig: {self.blocks} blocks make one pixel of {self.height} x "
                f'{self.width}, whose normalization by "instance" is 0 whatever it is: take fewer '
                "blocks, or another normalization."
            )


def convolutional(config: ConvolutionalConfig) -> Model:
    """A convolutional network with random weights: params `block_0`, `block_1`, ... and `head`.

    Its convolutions are matmuls of 3 x 3 patches, since the gradient of a convolution whose weights
    differ over a batch axis, as those adapted to several tasks do, is many times slower on a CPU.

    >>> import jax, jax.numpy as jnp, jcl
    >>> model = jcl.models.convolutional(jcl.models.ConvolutionalConfig(classes=3))
    >>> model.apply(model.init(jax.random.key(0)), jnp.zeros((2, 28, 28))).shape
    (2, 3)
    """
    return classifier(Convolutional(config), config, (config.height, config.width, config.channels))


class Convolutional(nn.Module):
    """inputs [batch, height, width(, channels)] -> logits [batch, classes]."""

    config: ConvolutionalConfig

    @nn.compact
    def __call__(self, inputs, head=True):
        config = self.config
        shape = (inputs.shape[0], config.height, config.width, config.channels)
        x = inputs.reshape(shape).astype(jnp.float32) * config.scale
        for number in range(config.blocks):
            x = Block(config.filters, config.normalization, name=f"block_{number}")(x)
        x = x.reshape(x.shape[0], -1)
        return nn.Dense(config.classes, name="head")(x) if head else x


class Block(nn.Module):
    """[batch, height, width, channels] -> [batch, height / 2, width / 2, filters], rounded up."""

    filters: int
    normalization: str

    @nn.compact
    def __call__(self, x):
        patches = _patches(x)
        shape = (*patches.shape[:3], self.filters)
        x = nn.Dense(
            self.filters,
            use_bias=self.normalization == "none",
            kernel_init=nn.initializers.glorot_uniform(),
            name="convolution",
        )(patches.reshape(-1, patches.shape[-1]))
        if self.normalization != "none":
            scale = self.param("scale", nn.initializers.ones, (self.filters,))
            bias = self.param("bias", nn.initializers.zeros, (self.filters,))
            x = x.reshape(1 if self.normalization == "batch" else shape[0], -1, self.filters)
            x = over_rows(x, scale, bias)
        return nn.relu(x).reshape(shape)


def _patches(x: jax.Array) -> jax.Array:
    """Every second 3 x 3 patch, its pixels and channels side by side, zeros around the image."""
    # Axis by axis: a pair of pixels, and before it the second of the pair before. The gradient is
    # then twice a sum of three terms, which compiles and runs faster than one of nine.
    for axis in (2, 1):
        x = _pad(x, axis, 0, x.shape[axis] % 2)
        half = x.shape[axis] // 2
        pairs = x.reshape(*x.shape[:axis], half, 2, *x.shape[axis + 1 :])
        first, second = (
            jax.lax.index_in_dim(pairs, place, axis + 1, keepdims=False) for place in (0, 1)
        )
        before = jax.lax.slice_in_dim(_pad(second, axis, 1, 0), 0, half, axis=axis)
        x = jnp.concatenate([before, first, second], axis=-1)
    return x


def _pad(x: jax.Array, axis: int, before: int, after: int) -> jax.Array:
    return jnp.pad(x, [(before, after) if each == axis else (0, 0) for each in range(x.ndim)])
