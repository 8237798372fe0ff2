"""The methods, one file each."""

from jcl.strategies.agem import agem
from jcl.strategies.anchored import l1, l2
from jcl.strategies.boost import boost
from jcl.strategies.der import der
from jcl.strategies.ewc import ewc
from jcl.strategies.feature_distillation import feature_distillation
from jcl.strategies.freeze import freeze
from jcl.strategies.gdumb import gdumb
from jcl.strategies.gem import gem
from jcl.strategies.gss import gss
from jcl.strategies.la_maml import la_maml
from jcl.strategies.lwf import lwf
from jcl.strategies.mas import mas
from jcl.strategies.mer import mer
from jcl.strategies.mir import mir
from jcl.strategies.nearest_class_mean import nearest_class_mean
from jcl.strategies.olora import olora
from jcl.strategies.on_drift import on_drift
from jcl.strategies.packnet import packnet
from jcl.strategies.private import private
from jcl.strategies.progressive_prompts import progressive_prompts
from jcl.strategies.replay import replay
from jcl.strategies.restarting import restarting
from jcl.strategies.reweighted import reweighted
from jcl.strategies.rwalk import rwalk
from jcl.strategies.seen_classes import seen_classes
from jcl.strategies.separate import separate
from jcl.strategies.shrink_and_perturb import shrink_and_perturb
from jcl.strategies.si import si
from jcl.strategies.slda import slda
from jcl.strategies.slda_replay import slda_replay

__all__ = [
    "agem",
    "boost",
    "der",
    "ewc",
    "feature_distillation",
    "freeze",
    "gdumb",
    "gem",
    "gss",
    "l1",
    "l2",
    "la_maml",
    "lwf",
    "mas",
    "mer",
    "mir",
    "nearest_class_mean",
    "olora",
    "on_drift",
    "packnet",
    "private",
    "progressive_prompts",
    "replay",
    "restarting",
    "reweighted",
    "rwalk",
    "seen_classes",
    "separate",
    "shrink_and_perturb",
    "si",
    "slda",
    "slda_replay",
]
