"""The one error class of bad input: the command line prints its message without a traceback."""


class InputError(ValueError):
    """What the caller gave cannot be used; the message says what, where and the remedy."""
