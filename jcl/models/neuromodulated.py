"""A convolutional network whose features another one gates (Beaulieu et al. 2020, ANML)."""

import dataclasses
from dataclasses import dataclass

from flax import linen as nn

from jcl import checks
from jcl.errors import InputError
from jcl.models.convolutional import Convolutional, ConvolutionalConfig
from jcl.models.model import Model, classifier


@dataclass(frozen=True)
class NeuromodulatedConfig:
    """The shape of the two networks.

    Attributes:
        prediction: the network that is gated; its classes are the head's.
        filters: of every block of the network that gates.
    """

    prediction: ConvolutionalConfig
    filters: int = 32

    def __post_init__(self):
        checks.whole("NeuromodulatedConfig", "filters", self.filters)
        if not isinstance(self.prediction, ConvolutionalConfig):
            raise InputError(
                f"NeuromodulatedConfig(prediction={self.prediction!r}): give a "
                "jcl.models.ConvolutionalConfig."
            )


def neuromodulated(config: NeuromodulatedConfig) -> Model:
    """A network with gated features: params `prediction`, `modulation`, `gate` and `head`.

    features = prediction(x) * sigmoid(modulation(x) gate), logits = features head.

    Beaulieu et al. 2020, section 3. The inner loop of ANML adapts ["prediction/*", "head/*"]: where
    a gate is shut, nothing passes and nothing is learned, and what gates is learned in the outer
    loop alone. Differs from the paper in: blocks that halve the image by their stride in place of
    pooling.

    >>> import jax, jax.numpy as jnp, jcl
    >>> shape = jcl.models.ConvolutionalConfig(blocks=2, classes=3, normalization="instance")
    >>> model = jcl.models.neuromodulated(jcl.models.NeuromodulatedConfig(shape))
    >>> params = model.init(jax.random.key(0))
    >>> sorted(params), model.apply(params, jnp.zeros((2, 28, 28))).shape
    (['gate', 'head', 'modulation', 'prediction'], (2, 3))
    """
    shape = config.prediction
    example = (shape.height, shape.width, shape.channels)
    return classifier(Neuromodulated(config), config, example)


class Neuromodulated(nn.Module):
    """inputs [batch, height, width(, channels)] -> logits [batch, classes]."""

    config: NeuromodulatedConfig

    @nn.compact
    def __call__(self, inputs, head=True):
        shape = self.config.prediction
        gating = dataclasses.replace(shape, filters=self.config.filters)
        x = Convolutional(shape, name="prediction")(inputs, head=False)
        signal = Convolutional(gating, name="modulation")(inputs, head=False)
        x = x * nn.sigmoid(nn.Dense(x.shape[-1], name="gate")(signal))
        return nn.Dense(shape.classes, name="head")(x) if head else x
