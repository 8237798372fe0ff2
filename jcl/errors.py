"""The errors whose message the command line prints without a traceback."""


class InputError(ValueError):
    """What the caller gave cannot be used; the message says what, where and the remedy."""


class SaveError(OSError):
    """Something of a run could not be written; what was written before is untouched."""


class Diverged(InputError):
    """The loss or the params are no longer finite."""


REMEDY = (
    "lower the learning rate or a strategy's strength, or clip the gradient "
    "(optax.clip_by_global_norm(1.0)). The last good checkpoint stays in the run folder."
)


FIRST_REMEDY = (
    "the untrained model is at fault, or the data: look at its initial weights, and whether every "
    "token and label lies below the model's number of outputs."
)
