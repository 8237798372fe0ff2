"""jcl: continual and online learning for language models in JAX."""

from jcl import data, losses, memory, models
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
from jcl.strategies import agem, der, ewc, gdumb, gem, gss, mir, replay

__all__ = [
    "Experiment",
    "InputError",
    "Learner",
    "LearnerState",
    "Strategy",
    "agem",
    "chain",
    "cosine",
    "data",
    "der",
    "ewc",
    "gdumb",
    "gem",
    "gss",
    "learner",
    "lift",
    "losses",
    "memory",
    "mir",
    "models",
    "only",
    "over_seeds",
    "per_task",
    "periodically",
    "replay",
    "scheduled",
    "start_task",
    "strategy",
]
