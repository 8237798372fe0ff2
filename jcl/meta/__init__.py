"""Meta-learning: losses of batches of episodes, which a learner trains like any other."""

from jcl.meta.adaptation import adaptation
from jcl.meta.fresh import fresh_classes
from jcl.meta.implicit import implicit_maml
from jcl.meta.maml import learned_rates, maml
from jcl.meta.measures import accuracy, deviation, squared_error
from jcl.meta.prototypes import prototypes
from jcl.meta.reptile import reptile

__all__ = [
    "accuracy",
    "adaptation",
    "deviation",
    "fresh_classes",
    "implicit_maml",
    "learned_rates",
    "maml",
    "prototypes",
    "reptile",
    "squared_error",
]
