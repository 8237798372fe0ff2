"""The errors whose message the command line prints without a traceback."""


class InputError(ValueError):
    """What the caller gave cannot be used; the message says what, where and the remedy."""


class SaveError(OSError):
    """Something of a run could not be written; what was written before is untouched."""


class Diverged(InputError):
    """The loss or the params are no longer finite."""


class OutOfMemory(InputError):
    """A device has too little memory for the run; the message names the largest arrays."""


class Stopped(Exception):
    """A signal asked for the end of a run, which has a checkpoint of that moment."""


REMEDY = (
    "lower the learning rate or a strategy's strength, clip the gradient "
    "(optax.clip_by_global_norm(1.0)), or leave single such steps out (jcl.skip_nonfinite). The "
    "last good checkpoint stays in the run folder."
)


FIRST_REMEDY = (
    "the untrained model is at fault, or the data: look at its initial weights, and whether every "
    "token and label lies below the model's number of outputs."
)
