"""Checks of what a caller gives to a factory, each naming the call, the argument and the remedy."""

import math
import numbers
import operator
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from jcl.errors import InputError


def whole(call: str, field: str, value: Any, *, least: int = 1) -> int:
    """The value as an int.

    Raises:
        InputError: it is no whole number, or below `least`.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or number < least:
        raise InputError(f"{call}({field}={_shown(value)}): a whole number, at least {least}.")
    return number


def number(call: str, field: str, value: Any, within: str = "[0, inf)") -> None:
    """Passes a number in the interval, written as in "(0, 1]", and a traced one, which is data.

    Raises:
        InputError: it is no number or lies outside; not a number (NaN) lies in no interval.
    """
    if isinstance(value, Tracer):
        return
    low, high = (float(end) for end in within[1:-1].split(","))
    array = isinstance(value, np.ndarray | jax.Array) and value.ndim == 0
    found = float(value) if array or isinstance(value, numbers.Real) else math.nan
    above = found >= low if within[0] == "[" else found > low
    below = found <= high if within[-1] == "]" else found < high
    if isinstance(value, bool) or not (above and below):
        raise InputError(f"{call}({field}={_shown(value)}): a number in {within}.")


def floor(call: str, value: Any, peak: Any, least: str = "[0") -> None:
    """Passes the lowest rate of a schedule: a number from `least` up to the peak, where both are
    known.

    Raises:
        InputError: it is no number or lies outside.
    """
    most = "inf)" if isinstance(peak, Tracer) else f"{float(peak)}]"
    number(call, "floor", value, f"{least}, {most}")


def flag(call: str, field: str, value: Any) -> None:
    """Passes True or False; any other value, such as "no", has a truth of its own.

    Raises:
        InputError: it is neither.
    """
    if not isinstance(value, bool | np.bool_):
        raise InputError(f"{call}({field}={_shown(value)}): True or False.")


def one_of(call: str, field: str, value: Any, choices: tuple[str, ...]) -> None:
    """Passes one of the choices.

    Raises:
        InputError: it is none of them.
    """
    if value not in choices:
        shown = ", ".join(f'"{choice}"' for choice in choices)
        raise InputError(f"{call}({field}={_shown(value)}): one of {shown}.")


def function(call: str, field: str, value: Any, such_as: str) -> None:
    """Passes what can be called.

    Raises:
        InputError: it cannot.
    """
    if not callable(value):
        raise InputError(f"{call}({field}={_shown(value)}): give a function, such as {such_as}.")


def _shown(value: Any) -> str:
    """Its repr, or the name of its type where that is long."""
    shown = repr(value)
    return shown if len(shown) <= 40 else f"a {type(value).__name__}"
