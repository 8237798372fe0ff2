"""What one device does in a compiled program, read from XLA's text of it.

XLA's own cost analysis counts the body of a loop once, whatever its trip count; here every loop's
body counts as often as it runs.
"""

import functools
import math
import re
from typing import NamedTuple

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-permute",
    "reduce-scatter",
)

_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
_BEGIN = re.compile(r"^(ENTRY )?%?([\w.-]+) .*\{$")
_INSTRUCTION = re.compile(
    r"^\s+(?:ROOT )?%?([\w.-]+) = (\((?:[^()]|\([^()]*\))*\)|\S+) ([a-z][\w-]*)\((.*)$"
)


class Work(NamedTuple):
    """Of one device, in one run of the program.

    Attributes:
        flops: of its matmuls and convolutions, a multiplication and an addition each.
        collectives: bytes it takes part in moving, by kind: of every collective operation the
            larger of what goes in and what comes out, an all-reduce counted once.
        unknown: loops with either in them whose length the program does not say, such as one that
            runs until it has converged: they are counted as if they ran once.
    """

    flops: float
    collectives: dict[str, float]
    unknown: int = 0


class _Instruction(NamedTuple):
    name: str
    type: str
    kind: str
    rest: str  # the operands and what follows


def work(text: str) -> Work:
    """The work of a compiled program.

    Of the branches of a conditional the one with the most matmuls counts.

    Args:
        text: from `jax.stages.Compiled.as_text()`.
    """
    computations, entry = _read(text)

    @functools.cache
    def total(name: str) -> Work:
        types = {each.name: each.type for each in computations[name]}
        return _sum([one(each, types) for each in computations[name]])

    def one(each: _Instruction, types: dict[str, str]) -> Work:
        kind = each.kind.removesuffix("-start")
        operands = [types[found] for found in _operands(each.rest) if found in types]
        if kind == "dot":
            return Work(_dot(each, operands[0]), {})
        if kind == "convolution":
            return Work(_convolution(each, operands[1]), {})
        if kind in COLLECTIVES:
            moved = max(_bytes(each.type), sum(map(_bytes, operands)))
            return Work(0.0, {kind: float(moved)})
        if kind == "while":
            trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', each.rest)
            body = total(_named(each.rest, "body")[0])
            if trips:
                return _times(int(trips[1]), body)
            return body._replace(unknown=body.unknown + bool(body.flops or body.collectives))
        if kind == "conditional":
            names = re.search(r"branch_computations=\{([^}]*)\}", each.rest)
            branches = re.findall(r"[\w.-]+", names[1]) if names else []
            branches += _named(each.rest, "true_computation", "false_computation")
            return max(map(total, branches), key=lambda branch: branch.flops)
        if kind in ("fusion", "call"):
            return _sum([total(name) for name in _named(each.rest, "calls", "to_apply")])
        return Work(0.0, {})

    return total(entry)


def _read(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    computations: dict[str, list[_Instruction]] = {}
    current, entry = "", ""
    for line in text.splitlines():
        begin = _BEGIN.match(line)
        if begin and not line.startswith("HloModule"):
            current = begin[2]
            computations[current] = []
            entry = current if begin[1] else entry
        elif current and (found := _INSTRUCTION.match(line)):
            computations[current].append(_Instruction(*found.groups()))
    return computations, entry


def _operands(rest: str) -> list[str]:
    return re.findall(r"%([\w.-]+)", rest.split(")")[0])


def _named(rest: str, *attributes: str) -> list[str]:
    return [name for each in attributes for name in re.findall(rf"\b{each}=%?([\w.-]+)", rest)]


def _shape(array: re.Match[str]) -> list[int]:
    return [int(length) for length in array[3].split(",") if length]


def _bytes(type_: str) -> int:
    """Of an array, or of all in a tuple."""
    return sum(
        math.prod(_shape(array)) * (1 if array[1] == "pred" else -(-int(array[2]) // 8))
        for array in _ARRAY.finditer(type_)
    )


def _dot(each: _Instruction, left: str) -> float:
    result, operand = _ARRAY.search(each.type), _ARRAY.search(left)
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", each.rest)
    assert result is not None
    assert operand is not None
    assert contracted is not None
    axes = [int(axis) for axis in contracted[1].split(",") if axis]
    return 2.0 * math.prod(_shape(result)) * math.prod(_shape(operand)[axis] for axis in axes)


def _convolution(each: _Instruction, kernel: str) -> float:
    """Padding counts as if it were data."""
    result, weights = _ARRAY.search(each.type), _ARRAY.search(kernel)
    labels = re.search(r"dim_labels=\w+_(\w+)->", each.rest)
    assert result is not None
    assert weights is not None
    assert labels is not None
    shape = _shape(weights)
    del shape[labels[1].index("o")]
    return 2.0 * math.prod(_shape(result)) * math.prod(shape)


def _times(number: int, one: Work) -> Work:
    moved = {kind: number * size for kind, size in one.collectives.items()}
    return Work(number * one.flops, moved, one.unknown)


def _sum(parts: list[Work]) -> Work:
    kinds = sorted({kind for part in parts for kind in part.collectives})
    return Work(
        sum(part.flops for part in parts),
        {kind: sum(part.collectives.get(kind, 0.0) for part in parts) for kind in kinds},
        sum(part.unknown for part in parts),
    )
