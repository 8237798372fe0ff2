"""jcl: continual and online learning for language models in JAX."""

from jcl import data, losses, models, probes
from jcl.core import (
    Strategy,
    chain,
    cosine,
    lift,
    only,
    per_task,
    periodically,
    scheduled,
    strategy,
)
from jcl.errors import InputError
from jcl.experiment import Experiment
from jcl.learner import Learner, LearnerState, learner, over_seeds, start_task
from jcl.strategies import (
    ewc,
    feature_distillation,
    l1,
    l2,
    lwf,
    mas,
    replay,
    rwalk,
    shrink_and_perturb,
    si,
)

__all__ = [
    "Experiment",
    "InputError",
    "Learner",
    "LearnerState",
    "Strategy",
    "chain",
    "cosine",
    "data",
    "ewc",
    "feature_distillation",
    "l1",
    "l2",
    "learner",
    "lift",
    "losses",
    "lwf",
    "mas",
    "models",
    "only",
    "over_seeds",
    "per_task",
    "periodically",
    "probes",
    "replay",
    "rwalk",
    "scheduled",
    "shrink_and_perturb",
    "si",
    "start_task",
    "strategy",
]
