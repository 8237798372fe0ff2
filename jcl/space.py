"""What a search may choose for the fields of a config.

A config says so beside a field's type, `rate: Annotated[float, jcl.space.log_uniform(1e-4, 1e-2)]`,
or the command line does, `--space rate=1e-4..1e-2:log`.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Sequence
from typing import Any

import numpy as np

from jcl.errors import InputError

_SMALLEST, _LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
_EXAMPLES = "rate=1e-4..1e-2:log, layers=2..6 or method=naive,replay"


@dataclasses.dataclass(frozen=True)
class Space:
    """A range, both ends included, or some values.

    Attributes:
        low: the lower end; None where there are values.
        high: the upper end.
        log: whether the logarithm is drawn evenly.
        values: to choose from; of an annotation (), for all that the field's type allows.
    """

    low: float | None = None
    high: float | None = None
    log: bool = False
    values: tuple[Any, ...] = ()

    @property
    def number(self) -> bool:
        """Whether these are fractions, which a compiled step takes as data; whole numbers and names
        decide what the step is."""
        return all(type(each) is float for each in self.values or (self.low, self.high))

    def __str__(self) -> str:
        if self.values:
            return ",".join(map(str, self.values))
        return f"{self.low}..{self.high}{':log' if self.log else ''}"


def uniform(low: float, high: float) -> Space:
    """Numbers from low to high, both included; of a field of whole numbers, whole ones.

    Raises:
        InputError: low is not below high, or one is no finite number.

    >>> str(uniform(0, 1))
    '0..1'
    """
    return _range("uniform", low, high)


def log_uniform(low: float, high: float) -> Space:
    """As `uniform`, with logarithms drawn evenly, for rates and strengths.

    Raises:
        InputError: as of `uniform`, or low is not above 0.

    >>> str(log_uniform(1e-4, 1e-2))
    '0.0001..0.01:log'
    """
    return _range("log_uniform", low, high, log=True)


def choices(*values: Any) -> Space:
    """One of the values; without any, all that a field's Literal names, or True and False.

    >>> str(choices("naive", "replay"))
    'naive,replay'
    """
    return Space(values=values)


def read(config: type, texts: Sequence[str] = ()) -> dict[str, Space]:
    """The fields that a search chooses, and from what.

    Args:
        config: the dataclass whose fields these are.
        texts: of the command line, one for each field, such as "rate=1e-4..1e-2:log",
            "method=naive,replay" or the name alone of a field that says itself what may be chosen.
            Without any it is all fields of the config that are annotated.

    Raises:
        InputError: a field is unknown, given twice or no setting, or what is to be chosen from does
            not fit its type; or there is nothing to choose.

    >>> @dataclasses.dataclass
    ... class Config:
    ...     rate: typing.Annotated[float, log_uniform(1e-4, 1e-2)] = 1e-3
    ...     layers: int = 2
    >>> print(*read(Config).items())
    ('rate', Space(low=0.0001, high=0.01, log=True, values=()))
    >>> print(*read(Config, ["layers=2..6"]).items())
    ('layers', Space(low=2, high=6, log=False, values=()))
    """
    hints = typing.get_type_hints(config, include_extras=True)
    if not texts:
        annotated = {field: found for field, hint in hints.items() if (found := _annotation(hint))}
        if not annotated:
            raise InputError(
                f"there is nothing to search: give --space, such as {_EXAMPLES}, or annotate "
                "fields of Config, rate: Annotated[float, jcl.space.log_uniform(1e-4, 1e-2)]."
            )
        return {
            field: _fitted(f"Config.{field}", found, hints[field])
            for field, found in annotated.items()
        }
    spaces: dict[str, Space] = {}
    for text in texts:
        name, given, definition = text.partition("=")
        field, where = name.strip().replace("-", "_"), f"--space {text}"
        if field not in hints:
            raise InputError(
                f"{where}: the config has no field {field!r}; its fields are {', '.join(hints)}."
            )
        if field == "seed":
            raise InputError(f"{where}: seeds are no setting; a search has the one of --seed.")
        if field in spaces:
            raise InputError(f"{where}: {field} is given twice.")
        hint = hints[field]
        found = _parsed(where, definition, hint) if given else _annotation(hint) or choices()
        spaces[field] = _fitted(where, found, hint)
    return spaces


def _range(call: str, low: Any, high: Any, *, log: bool = False) -> Space:
    for name, value in (("low", low), ("high", high)):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"{call}({name}={value!r}): a number.")
    if not (low < high and _single(low) and _single(high)):
        raise InputError(
            f"{call}({low}, {high}): two numbers of 32 bits, from {_SMALLEST:.3g} to "
            f"{_LARGEST:.3g} or 0, the lower one first."
        )
    if log and low <= 0:
        raise InputError(f"{call}({low}, {high}): a logarithm is of numbers above 0.")
    return Space(low, high, log)


def _single(value: float) -> bool:
    """Whether a float of 32 bits can hold it, and not as one of the few below its normal ones,
    which a device may take for 0."""
    return value == 0 or _SMALLEST <= abs(value) <= _LARGEST


def _parsed(where: str, definition: str, hint: Any) -> Space:
    """A range, or values, as the command line writes them."""
    if ".." in definition and "," not in definition:
        ends, _, scale = definition.strip().partition(":")
        low, _, high = ends.partition("..")
        if scale not in ("", "log"):
            raise InputError(f"{where}: behind a range may stand :log; write {_EXAMPLES}.")
        kind = number_type(hint)
        if kind is None:
            raise InputError(f"{where}: it is no field of numbers; write {_EXAMPLES}.")
        low, high = _number(where, kind, low), _number(where, kind, high)
        return _range(where, low, high, log=bool(scale))
    words = [word.strip() for word in definition.split(",")]
    allowed = {str(value): value for value in _allowed(hint)}
    if allowed:
        unknown = [word for word in words if word not in allowed]
        if unknown:
            raise InputError(
                f"{where}: {unknown[0]!r} is none of the field's values, {', '.join(allowed)}."
            )
        return choices(*map(allowed.__getitem__, words))
    kind = number_type(hint)
    return choices(*(word if kind is None else _number(where, kind, word) for word in words))


def _number(where: str, kind: type, word: str) -> Any:
    try:
        number = kind(word)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        whole = "whole " * (kind is int)
        raise InputError(f"{where}: {word.strip()!r} is no {whole}number; write {_EXAMPLES}.")
    return number


def _fitted(where: str, space: Space, hint: Any) -> Space:
    """The space in the type of the field."""
    kind, allowed = number_type(hint), _allowed(hint)
    if space.low is not None and space.high is not None:
        if kind is None:
            raise InputError(f"{where}: a range is for a field of numbers.")
        if kind is int and (int(space.low), int(space.high)) != (space.low, space.high):
            raise InputError(f"{where}: a field of whole numbers has a range of whole numbers.")
        return dataclasses.replace(space, low=kind(space.low), high=kind(space.high))
    values = space.values or allowed
    if len(values) < 2 or len(set(values)) < len(values):
        raise InputError(
            f"{where}: give at least two values to choose from, each once, as in {_EXAMPLES}."
        )
    if allowed:
        fits = all(value in allowed for value in values)
    elif kind is not None:
        fits = all(isinstance(value, int | float) and _single(value) for value in values)
    else:
        fits = str in _parts(hint) and all(isinstance(value, str) for value in values)
    if not fits:
        raise InputError(
            f"{where}: one of the values is not of the field's type. Fields with a Literal, a "
            "number of 32 bits, a bool or a str can be searched."
        )
    if kind is not None and not allowed:
        values = tuple(map(kind, values))
    return dataclasses.replace(space, values=tuple(values))


def _annotation(hint: Any) -> Space | None:
    found = [each for each in getattr(hint, "__metadata__", ()) if isinstance(each, Space)]
    return found[0] if found else None


def _parts(hint: Any) -> list[Any]:
    """The types of a union, without what stands beside them."""
    if hasattr(hint, "__metadata__"):
        return _parts(hint.__origin__)
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return [hint]  # of a tuple too, which is no number though it holds some
    return [part for each in typing.get_args(hint) for part in _parts(each)]


def number_type(hint: Any) -> type | None:
    """float or int, where a field of that type may be such a number; else None."""
    parts = _parts(hint)
    return next((kind for kind in (float, int) if kind in parts), None)


def _allowed(hint: Any) -> tuple[Any, ...]:
    """All values of a Literal or of bool; () of any other type."""
    found: list[Any] = []
    for part in _parts(hint):
        if typing.get_origin(part) is typing.Literal:
            found += typing.get_args(part)
        elif part is bool:
            found += [True, False]
    return tuple(found)
