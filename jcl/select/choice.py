"""Which candidate to take: what each costs and reaches, a budget, who dominates whom, and why.

Numbers alone: nothing here builds or runs a model.
"""

import dataclasses
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from jcl.errors import InputError

# What counts as equal: latencies of one model differ by as much from one measurement to the next,
# where nothing else runs, and the memory of like programs by how the compiler lays it out.
SAME = {"parameters": 1.0, "latency": 1.05, "memory": 1.01}

# cost: {unit: its size}, the first that shows a number of at least 1
UNITS = {
    "parameters": {"B": 1e9, "M": 1e6, "k": 1e3, "": 1.0},
    "latency": {"s": 1.0, "ms": 1e-3, "us": 1e-6},
    "memory": {"GB": 1e9, "MB": 1e6, "kB": 1e3, "B": 1.0},
}
COSTS = tuple(UNITS)

Budget = Mapping[str, float]


@dataclasses.dataclass
class Candidate:
    """One setting of a config: what it costs, and what it reached.

    Attributes:
        setting: the fields that are chosen, with their values.
        parameters: of the model, their number.
        state: bytes of the learner's state (params, optimizer, memories).
        memory: bytes of a training step on one device: the state, the batch, and the temporaries at
            their peak; None where it was not compiled.
        trained: parameters of the leaves that some training steps have moved.
        latency: median seconds of predicting one example.
        step: median seconds of a training step.
        measured: the average of the last row of the matrix, over seeds; None where it was not
            trained.
        ci95: the half-width of its interval; None with one seed.
        run: the run folder, within that of the selection.
        failed: why it has no measure although it was trained.
    """

    setting: dict[str, Any]
    parameters: int
    state: int
    memory: int | None = None
    trained: int | None = None
    latency: float | None = None
    step: float | None = None
    measured: float | None = None
    ci95: float | None = None
    run: str | None = None
    failed: str | None = None

    def __str__(self) -> str:
        return named(self.setting)

    def cost(self, name: str) -> float | None:
        """What is known of a cost: of the memory the state alone, as long as there is no more."""
        found = getattr(self, name)
        return self.state if name == "memory" and found is None else found


def named(setting: Mapping[str, Any]) -> str:
    """A setting in words, which is its run folder's name as well.

    >>> named({"size": "small", "rank": 8})
    'size=small,rank=8'
    """
    name = ",".join(f"{field}={value}" for field, value in setting.items())
    return name.replace("%", "%25").replace("/", "%2F")  # no two settings share a folder


def read_candidates(config: type, texts: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """The fields to choose and their values, as the command line gives them.

    Args:
        config: the dataclass whose fields these are.
        texts: such as "size=small,base", one for each field.

    Raises:
        InputError: there is none; a field is unknown or given twice; or a value is none of its.

    >>> @dataclasses.dataclass
    ... class Config:
    ...     size: typing.Literal["small", "base"] = "small"
    ...     rank: int | None = None
    >>> read_candidates(Config, ["size=small,base", "rank=4,8"])
    {'size': ('small', 'base'), 'rank': (4, 8)}
    """
    if not texts:
        raise InputError("name what to choose among, such as --candidate size=small,base.")
    hints, found = typing.get_type_hints(config), {}
    for text in texts:
        name, equals, values = text.partition("=")
        field, where = name.strip().replace("-", "_"), f"--candidate {text}"
        if field not in hints or not equals:
            raise InputError(
                f"{where}: the config has no field {field!r}; write FIELD=VALUE,VALUE with one of "
                f"{', '.join(name for name in hints if name != 'seed')}."
            )
        if field == "seed":
            raise InputError(f"{where}: a seed is no candidate; give --seeds N instead.")
        if field in found:
            raise InputError(f"{where}: {field} is given twice; name all its values at once.")
        found[field] = tuple(_value(where, hints[field], word) for word in values.split(","))
        if len(set(found[field])) < len(found[field]):
            raise InputError(f"{where}: a value stands there twice; leave one out.")
    return found


def read_budget(texts: Sequence[str]) -> dict[str, float]:
    """What a candidate may take at most, as the command line gives it.

    Raises:
        InputError: a cost is unknown or given twice, or has no number above 0 with a unit.

    >>> read_budget(["parameters=10M", "latency=20ms", "memory=2GB"])
    {'parameters': 10000000.0, 'latency': 0.02, 'memory': 2000000000.0}
    """
    budget = {}
    for text in texts:
        name, _, value = text.partition("=")
        parts = re.fullmatch(r"\s*(\d+\.?\d*(?:[eE][+-]?\d+)?)\s*([A-Za-z]*)\s*", value)
        units = UNITS.get(name, {})
        if name in budget or not parts or parts[2] not in units or not float(parts[1]):
            raise InputError(
                f"--budget {text}: give each of parameters=10M (k, M, B or no unit), latency=20ms "
                "(us, ms, s) and memory=2GB (B, kB, MB, GB) at most once, above 0."
            )
        budget[name] = float(parts[1]) * units[parts[2]]
    return budget


def shown(cost: str, value: float | None) -> str:
    """A cost with its unit.

    >>> shown("latency", 0.0031), shown("parameters", 1_250_000), shown("memory", None)
    ('3.10 ms', '1.25 M', '-')
    """
    if value is None:
        return "-"
    sizes = UNITS[cost]
    unit = next((unit for unit, size in sizes.items() if value >= size), list(sizes)[-1])
    digits = 0 if unit in ("", "B") and sizes[unit] == 1 else 2
    return f"{value / sizes[unit]:.{digits}f} {unit}".strip()


def over(candidate: Candidate, budget: Budget) -> list[str]:
    """By how much it goes beyond the budget, for each cost that does; a limit itself is within."""
    told = []
    for name, limit in budget.items():
        cost = candidate.cost(name)
        if cost is not None and cost > limit:
            least = " already for its state" if name == "memory" and not candidate.memory else ""
            told.append(
                f"{name} {shown(name, cost)}{least}, {cost / limit:.2f} times the "
                f"{shown(name, limit)} allowed"
            )
    return told


def dominates(one: Candidate, other: Candidate, *, higher_is_better: bool) -> list[str]:
    """In what the one is better, where it is worse in nothing; else []. Both are measured."""
    better = []
    gain = (_measured(one) - _measured(other)) * (1 if higher_is_better else -1)
    if gain < 0:
        return []
    if gain > 0:
        better.append(f"the measure, {_measured(one):.4g} to {_measured(other):.4g}")
    for name in COSTS:
        own, its = (each.cost(name) or 0.0 for each in (one, other))
        if own > its * SAME[name]:
            return []
        if own * SAME[name] < its:
            better.append(f"{name}, {shown(name, own)} to {shown(name, its)}")
    return better


def recommend(
    candidates: Sequence[Candidate], budget: Budget, *, higher_is_better: bool
) -> tuple[int | None, list[str]]:
    """The candidate to take, and of each why it is or is not taken.

    Taken is the best measure within the budget of what no other dominates; where several reach it
    the quickest of them.

    Returns:
        Its number, None where none is within the budget and measured; and a reason for each.
    """
    sign = 1 if higher_is_better else -1
    within = [
        number
        for number, each in enumerate(candidates)
        if each.measured is not None and not over(each, budget)
    ]

    def by(number: int) -> tuple[int, list[str]] | None:
        """Who dominates it, the best such."""
        found = []
        for other in within:
            better = dominates(
                candidates[other], candidates[number], higher_is_better=higher_is_better
            )
            if better:
                found.append((sign * _measured(candidates[other]), -other, better))
        return (-max(found)[1], max(found)[2]) if found else None

    front = [number for number in within if by(number) is None]
    best = min(
        front,
        key=lambda number: (
            -sign * _measured(candidates[number]),
            *(candidates[number].cost(name) or 0.0 for name in ("latency", "memory", "parameters")),
        ),
        default=None,
    )
    reasons = []
    for number, each in enumerate(candidates):
        beyond, dominated = over(each, budget), number in within and by(number)
        if beyond:
            untrained = "" if each.measured is not None else "; not trained"
            reasons.append(f"over the budget: {' and '.join(beyond)}{untrained}")
        elif each.failed:
            reasons.append(f"failed: {each.failed}")
        elif each.measured is None:
            reasons.append("not measured yet")
        elif number == best:
            reasons.append(_why(each, [candidates[other] for other in front], budget))
        elif dominated:
            other, better = dominated
            reasons.append(
                f"dominated by {candidates[other]}: worse in nothing, better in "
                f"{' and in '.join(better)}"
            )
        else:
            assert best is not None  # some of the front is
            reasons.append(_trade(each, candidates[best]))
    return best, reasons


def _value(where: str, hint: Any, word: str) -> Any:
    """The word as the field's type has it."""
    hint = typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Annotated else hint
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    kinds = typing.get_args(hint) if union else [hint]
    for kind in kinds:
        if typing.get_origin(kind) is typing.Literal:
            for choice in typing.get_args(kind):
                if str(choice) == word.strip():
                    return choice
        elif kind is bool and word.strip() in ("True", "False"):
            return word.strip() == "True"
        elif kind is type(None) and word.strip() == "None":
            return None
        elif kind in (int, float):
            try:
                return kind(word)
            except ValueError:
                continue
        elif kind is str:
            return word.strip()
    raise InputError(
        f"{where}: {word.strip() or 'nothing'!r} is no value of the field's type, "
        f"{' or '.join(map(_described, kinds))}. Fields with a Literal, a number, a bool or a str "
        "can be chosen."
    )


def _described(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Literal:
        return f"one of {', '.join(map(str, typing.get_args(kind)))}"
    return "None" if kind is type(None) else getattr(kind, "__name__", str(kind))


def _why(each: Candidate, front: Sequence[Candidate], budget: Budget) -> str:
    told = f"the best measure within the budget, {_with_interval(each)}"
    shares = [
        f"{100 * (each.cost(name) or 0.0) / limit:.0f} % of the {name}"
        for name, limit in budget.items()
    ]
    told += f"; it takes {', '.join(shares)} allowed" if shares else ""
    if each.ci95 is not None:
        close = [
            str(other)
            for other in front
            if other is not each
            and abs(_measured(other) - _measured(each)) <= each.ci95 + (other.ci95 or 0.0)
        ]
        told += f"; by these seeds not to be told from {', '.join(close)}" if close else ""
    return told


def _trade(each: Candidate, best: Candidate) -> str:
    """What it would save against the best, and lose; it is dominated by none."""
    saved = [
        f"{name} {shown(name, own)} in place of {shown(name, its)}"
        for name in COSTS
        if (own := each.cost(name) or 0.0) < (its := best.cost(name) or 0.0)
    ]
    if not saved:
        return f"in nothing better than {best}"
    return (
        f"a cheaper choice: measure {_with_interval(each)} in place of {_with_interval(best)}, for "
        f"{' and '.join(saved)}"
    )


def _with_interval(each: Candidate) -> str:
    return f"{_measured(each):.4g}" + ("" if each.ci95 is None else f" ± {each.ci95:.2g}")


def _measured(each: Candidate) -> float:
    assert each.measured is not None
    return each.measured
