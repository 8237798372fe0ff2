"""The report of a finished run, for the tests that need no run."""

from jcl import report


def a_report(seeds=1, matrix=None, metrics=None, settings=(), diverged=(), **fields):
    """As `jcl.report.make` gives it; matrix is [seed][row][task]."""
    matrix = matrix or [[[0.0], [0.5]]] * seeds
    found = report.make(
        name="naive", tasks=[f"task {number}" for number in range(len(matrix[0][0]))],
        measure="accuracy", higher_is_better=True, seeds=list(range(len(matrix))), matrix=matrix,
        wall_seconds=60.0, steps=1, step_seconds_median=None, traces={}, config={}, versions={},
        settings=settings, diverged=diverged,
    )  # fmt: skip
    return {**found, **fields, "metrics": {**found["metrics"], **(metrics or {})}}
