"""jcl: continual and online learning for language models in JAX."""

from jcl import data, losses, models
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
    freeze,
    nearest_class_mean,
    olora,
    packnet,
    progressive_prompts,
    replay,
    separate,
    slda,
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
    "freeze",
    "learner",
    "lift",
    "losses",
    "models",
    "nearest_class_mean",
    "olora",
    "only",
    "over_seeds",
    "packnet",
    "per_task",
    "periodically",
    "progressive_prompts",
    "replay",
    "scheduled",
    "separate",
    "slda",
    "start_task",
    "strategy",
]
