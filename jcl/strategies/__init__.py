"""The methods, one file each."""

from jcl.strategies.ewc import ewc
from jcl.strategies.freeze import freeze
from jcl.strategies.nearest_class_mean import nearest_class_mean
from jcl.strategies.olora import olora
from jcl.strategies.packnet import packnet
from jcl.strategies.progressive_prompts import progressive_prompts
from jcl.strategies.replay import replay
from jcl.strategies.separate import separate
from jcl.strategies.slda import slda

__all__ = [
    "ewc",
    "freeze",
    "nearest_class_mean",
    "olora",
    "packnet",
    "progressive_prompts",
    "replay",
    "separate",
    "slda",
]
