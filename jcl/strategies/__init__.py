"""The methods, one file each."""

from jcl.strategies.anchored import l1, l2
from jcl.strategies.ewc import ewc
from jcl.strategies.feature_distillation import feature_distillation
from jcl.strategies.lwf import lwf
from jcl.strategies.mas import mas
from jcl.strategies.replay import replay
from jcl.strategies.rwalk import rwalk
from jcl.strategies.shrink_and_perturb import shrink_and_perturb
from jcl.strategies.si import si

__all__ = [
    "ewc",
    "feature_distillation",
    "l1",
    "l2",
    "lwf",
    "mas",
    "replay",
    "rwalk",
    "shrink_and_perturb",
    "si",
]
