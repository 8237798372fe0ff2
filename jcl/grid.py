"""The replicas of one program: every setting of a grid with every seed."""

import dataclasses
import itertools
import math
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcl import space
from jcl.errors import InputError
from jcl.experiment import Experiment

Setting = Mapping[str, float]  # of fields of a config
# The values of every field, of which all combinations are meant, or the settings themselves.
Grid = Mapping[str, Sequence[float]] | Sequence[Setting]


@dataclasses.dataclass(frozen=True)
class Replica:
    """One run among those that share a program: a setting and a seed.

    Attributes:
        experiment: as the config's build makes it of both.
        setting: the fields in which a grid's replicas differ, with its values; {} without a grid.
        remake: the experiment of other values of those fields, which may be traced: so the values
            are data of the program, and one compiled function serves them all.
    """

    experiment: Experiment
    setting: Setting = dataclasses.field(default_factory=dict)
    remake: Callable[[Mapping[str, Any]], Experiment] | None = None

    def __str__(self) -> str:
        return ", ".join(filter(None, (shown(self.setting), f"seed {self.experiment.seed}")))


def read(config: type, texts: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """A grid as the command line gives it.

    Args:
        config: the dataclass whose fields these are.
        texts: such as "rate=1e-3,1e-2", one for each field.

    Raises:
        InputError: a field is unknown, given twice or holds no number, or a value is no number of
            its type, given twice, or missing.

    >>> @dataclasses.dataclass
    ... class Config:
    ...     rate: float = 0.1
    >>> read(Config, ["rate=1e-3,1e-2"])
    {'rate': (0.001, 0.01)}
    """
    hints = typing.get_type_hints(config)
    grid = {}
    for text in texts:
        name, _, values = text.partition("=")
        field = name.strip().replace("-", "_")
        if field in grid:
            raise InputError(f"--grid {text}: {field} is given twice; name all its values at once.")
        kind = _kind(f"--grid {text}", field, hints)
        numbers = tuple(_number(text, kind, each) for each in values.split(","))
        if len(set(np.asarray(numbers, np.int32 if kind is int else np.float32))) < len(numbers):
            raise InputError(f"--grid {text}: a value stands there twice; leave one out.")
        grid[field] = numbers
    return grid


def settings(grid: Grid | None) -> list[dict[str, float]]:
    """Every combination of the grid's values, the last field's changing first, or the settings
    that it names; [{}] without one.

    >>> settings({"rate": (0.1, 0.2), "strength": (1.0,)})
    [{'rate': 0.1, 'strength': 1.0}, {'rate': 0.2, 'strength': 1.0}]
    """
    if not isinstance(grid, Mapping):
        return [dict(setting) for setting in grid or [{}]]
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def stacked(replicas: Sequence[Replica]) -> dict[str, jax.Array]:
    """{field: [replicas]} of all the replicas' settings.

    The numbers promote as Python's own do, so that a traced rate leaves a bfloat16 update as it is.
    """
    return {
        field: jnp.stack([jnp.asarray(replica.setting[field]) for replica in replicas])
        for field in replicas[0].setting
    }


def shown(setting: Setting) -> str:
    """A setting in words.

    >>> shown({"rate": 0.001, "strength": 10.0})
    'rate 0.001, strength 10.0'
    """
    return ", ".join(f"{field} {value}" for field, value in setting.items())


def _kind(where: str, field: str, hints: Mapping[str, Any]) -> type:
    """float or int, as the field is declared."""
    numbers = {name: space.number_type(hint) for name, hint in hints.items()}
    if field == "seed":
        raise InputError(f"{where}: seeds are no setting; give --seeds N beside the grid.")
    if field not in hints:
        known = [name for name, kind in numbers.items() if kind and name != "seed"]
        raise InputError(
            f"{where}: the config has no field {field!r}; its fields of numbers are "
            f"{', '.join(known) or 'none'}."
        )
    kind = numbers[field]
    if kind is None:
        raise InputError(
            f"{where}: {field} is no field of numbers, so it may decide what the program is: run "
            f"each value by itself, with its own --{field.replace('_', '-')} and --out."
        )
    return kind


def _number(text: str, kind: type, word: str) -> float:
    try:
        number = kind(word)
    except ValueError:
        number = math.nan
    limit = np.iinfo(np.int32).max if kind is int else float(np.finfo(np.float32).max)
    if not abs(number) <= limit:
        raise InputError(
            f"--grid {text}: {word.strip() or 'nothing'!r} is no {'whole ' * (kind is int)}number "
            "of 32 bits; give values as in --grid rate=1e-3,1e-2."
        )
    return number
