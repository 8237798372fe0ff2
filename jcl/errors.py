"""The errors whose message the command line prints without a traceback."""


class InputError(ValueError):
    """What the caller gave cannot be used; the message says what, where and the remedy."""


class SaveError(OSError):
    """Something of a run could not be written; what was written before is untouched."""
