"""From a matrix of results to the measures of continual learning.

matrix[i][j] is the measure on task j after training on the first i tasks; row 0 is before any
training. Where the measure is better when lower (a loss, bits per byte) the sign of every
difference is turned, so that positive transfer is good and positive forgetting is bad.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy import stats

METRICS = (
    "average_accuracy",
    "learning_accuracy",
    "backward_transfer",
    "forward_transfer",
    "forgetting",
    "forgetting_last",
    "average_incremental",
)


def metrics(
    matrix: Float[np.ndarray, "rows tasks"], *, higher_is_better: bool
) -> dict[str, float | None]:
    """The metrics of one seed's matrix, named as in METRICS; None where undefined.

    With R[i][j] the measure on task j = 1..T after task i = 0..T:
    average_accuracy: mean_j R[T][j]. learning_accuracy: mean_j R[j][j].
    backward_transfer: mean_{j<T} R[T][j] - R[j][j] (Lopez-Paz and Ranzato 2017).
    forward_transfer: mean_{j>1} R[j-1][j] - R[0][j] (the same).
    forgetting: mean_{j<T} max_{j<=i<T} R[i][j] - R[T][j] (Chaudhry et al. 2018).
    forgetting_last: mean_{j<T} R[j][j] - R[T][j].
    average_incremental: mean_i mean_{j<=i} R[i][j].

    A matrix with fewer than T + 1 rows (joint training has two) defines only the first, and one
    with numbers that are not finite, such as those of a run that has diverged, none.

    Args:
        matrix: rows 0 to T by tasks 1 to T; in the unit of the measure.
        higher_is_better: the direction of the measure.
    """
    matrix = np.asarray(matrix, np.float64)
    rows, tasks = matrix.shape
    values: dict[str, float | None] = dict.fromkeys(METRICS)
    if rows < 2 or not np.isfinite(matrix).all():
        return values
    values["average_accuracy"] = float(matrix[-1].mean())
    if rows != tasks + 1:
        return values

    after = matrix[1:]
    sign = 1.0 if higher_is_better else -1.0
    learned = np.diagonal(after)
    values["learning_accuracy"] = float(learned.mean())
    values["average_incremental"] = float(
        np.mean([after[task, : task + 1].mean() for task in range(tasks)])
    )
    if tasks == 1:
        return values

    change = sign * (after[-1] - learned)[:-1]
    best = [(sign * after[task:-1, task]).max() for task in range(tasks - 1)]
    before = np.array([matrix[task, task] for task in range(1, tasks)])
    values["backward_transfer"] = float(change.mean())
    values["forgetting_last"] = float(-change.mean())
    values["forgetting"] = float(np.mean(best - sign * after[-1, :-1]))
    values["forward_transfer"] = float(np.mean(sign * (before - matrix[0, 1:])))
    return values


def summary(
    matrices: Float[np.ndarray, "seeds rows tasks"], *, higher_is_better: bool
) -> dict[str, dict[str, float | list[float | None] | None]]:
    """Every metric over seeds: {name: {"mean", "ci95", "values"}}.

    ci95 is the half-width of the 95 % interval of the mean by Student's t; None for one seed.
    """
    each = [metrics(matrix, higher_is_better=higher_is_better) for matrix in matrices]
    return {name: _mean_and_interval([one[name] for one in each]) for name in METRICS}


def _mean_and_interval(
    values: Sequence[float | None],
) -> dict[str, float | list[float | None] | None]:
    if any(value is None for value in values):
        return {"mean": None, "ci95": None, "values": list(values)}
    numbers = np.asarray(values, np.float64)
    return {"mean": float(numbers.mean()), "ci95": interval(numbers), "values": list(values)}


def interval(values: Sequence[float] | np.ndarray) -> float | None:
    """The half-width of the 95 % interval of a mean by Student's t; None for one value.

    >>> round(interval([1.0, 2.0, 3.0]), 3)
    2.484
    """
    numbers = np.asarray(values, np.float64)
    if len(numbers) < 2:
        return None
    error = numbers.std(ddof=1) / np.sqrt(len(numbers))
    return float(stats.t.ppf(0.975, len(numbers) - 1) * error)
