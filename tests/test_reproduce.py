"""The comparison with published tables: its verdict, and its cells."""

import importlib.util
from pathlib import Path

import pytest

PATH = Path(__file__).parent.parent / "benchmarks" / "reproduce.py"
specification = importlib.util.spec_from_file_location("reproduce", PATH)
reproduce = importlib.util.module_from_spec(specification)
specification.loader.exec_module(reproduce)


@pytest.mark.parametrize(
    ("published", "interval", "mean", "ours", "expected"),
    [
        (80.0, None, 81.9, 0.1, "reproduced"),
        (80.0, None, 78.1, 0.1, "reproduced"),
        (80.0, None, 82.1, 0.1, "differs"),  # better is another result too
        (80.0, None, 77.9, None, "differs"),
        (80.0, None, 83.0, 3.1, "reproduced"),
        (80.0, 2.0, 83.0, 1.1, "reproduced"),
        (80.0, 2.0, 83.2, 1.1, "differs"),
    ],
)
def test_the_verdict_is_two_sided(published, interval, mean, ours, expected):
    assert reproduce.verdict(published, interval, mean, ours) == expected


@pytest.mark.parametrize(
    ("table", "number"),
    [("permuted", 15), ("rotated", 15), ("split", 32), ("mnist_360", 11), ("scenarios", 30)],
)
def test_every_cell_has_a_run_of_its_own(table, number):
    cells = list(reproduce.cells(table))
    assert len(cells) == number
    assert len({tuple(arguments) for _, _, arguments, *_ in cells}) == number
    assert len({reproduce.place(table, name) for name, *_ in cells}) == number
    methods = {method for _, method, *_ in cells}
    assert methods & {"sgd", "adam"}
    assert methods & {"joint", "offline"}
    assert all(0 < chance < published + 5 for *_, published, _, chance in cells)
