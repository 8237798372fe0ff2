"""Measures of a stream that is predicted and then learned, one example after another.

`correct` holds for every example in order whether it was predicted right before it was learned
from; where the drifts lie is known, as of `jcl.data.drifting`.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from jcl import checks
from jcl.errors import InputError


def windowed(values: Any, window: int) -> np.ndarray:
    """The mean of every `window` values in a row; entry i begins with value i.

    >>> windowed([1, 0, 1, 1], 2).tolist()
    [0.5, 0.5, 1.0]
    """
    window = checks.whole("windowed", "window", window)
    values = np.asarray(values, np.float64)
    if len(values) < window:
        raise InputError(f"windowed(window={window}): longer than the {len(values)} values.")
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return (sums[window:] - sums[:-window]) / window


def recovery(
    correct: Any, drifts: Sequence[int], *, window: int, width: int = 0, share: float = 0.95
) -> list[int | None]:
    """Examples that each drift's recovery took, None where the next drift or the end came first.

    The level before a drift is the accuracy over the last `window` examples before it begins (those
    since the drift before, where they are fewer). It is recovered after the smallest number k of
    examples, counted from where the drift is complete, such that the accuracy over the last
    `window` of them is at least `share` of that level. So k is at least `window`, which is also
    what a stream without a drop gives.

    Args:
        correct: [examples], 0 or 1.
        drifts: number of the first example of each.
        window: examples.
        width: of every drift, in examples; 0 for abrupt ones.
        share: of the level before.

    >>> correct = 10 * [1] + 4 * [0] + 10 * [1]
    >>> recovery(correct, [10], window=5)
    [9]
    """
    correct, segments = _segments(correct, drifts, width)
    found: list[int | None] = []
    for (start, end), (after, until) in itertools.pairwise(segments):
        level = correct[max(start, end - window) : end].mean()
        if until - after < window:
            found.append(None)
            continue
        reached = np.flatnonzero(windowed(correct[after:until], window) >= share * level - 1e-12)
        found.append(int(reached[0]) + window if len(reached) else None)
    return found


def forgetting(
    correct: Any, drifts: Sequence[int], order: Sequence[int], *, window: int, width: int = 0
) -> float | None:
    """What a concept lost while others were learned: the mean over the segments that bring one
    back of (accuracy over the last `window` examples of its last segment) - (accuracy over the
    first `window` of this one); None where none comes back.

    Args:
        correct: [examples], 0 or 1.
        drifts: number of the first example of each.
        order: the concept of every segment, one more than there are drifts.
        window: examples.
        width: of every drift, in examples; those are of no segment.

    >>> forgetting([0, 1, 0, 0, 0, 1], [2, 4], (0, 1, 0), window=2)
    0.0
    """
    correct, segments = _segments(correct, drifts, width)
    if len(order) != len(segments):
        raise InputError(
            f"forgetting: {len(order)} segments in order and {len(segments)} by the drifts: give "
            "one drift fewer than segments."
        )
    left: dict[int, float] = {}
    losses = []
    for concept, (start, end) in zip(order, segments, strict=True):
        if concept in left:
            losses.append(left[concept] - correct[start:end][:window].mean())
        left[concept] = float(correct[start:end][-window:].mean())
    return float(np.mean(losses)) if losses else None


def detection(alarms: Sequence[int], drifts: Sequence[int]) -> dict[str, Any]:
    """Which drifts a detector found: the first alarm between a drift and the next one finds it.

    Args:
        alarms: number of the example at each.
        drifts: number of the first example of each.

    Returns:
        "delays": of every drift the examples until its alarm, None where there was none; "false":
        how many other alarms there were.

    >>> detection([3, 14, 17, 40], [10, 20, 30])
    {'delays': [4, None, 10], 'false': 2}
    """
    delays: list[int | None] = []
    for start, end in zip(drifts, [*drifts[1:], None], strict=True):
        own = [alarm - start for alarm in alarms if start <= alarm and (end is None or alarm < end)]
        delays.append(min(own, default=None))
    return {"delays": delays, "false": len(alarms) - sum(delay is not None for delay in delays)}


def summary(
    correct: Any,
    *,
    window: int,
    drifts: Sequence[int] = (),
    order: Sequence[int] = (0,),
    width: int = 0,
) -> dict[str, Any]:
    """All measures of one stream.

    Args:
        correct: [examples], 0 or 1.
        window: examples.
        drifts: number of the first example of each.
        order: the concept of every segment.
        width: of every drift, in examples.

    Returns:
        "accuracy" of all predictions; "worst_window", the lowest accuracy over `window` examples in
        a row behind the first drift (in the whole stream, where it has none); "recovery" of each
        drift; "recovery_mean", where a drift that was not recovered from counts with its segment's
        length; "recovered", how many were; "forgetting".
    """
    correct = np.asarray(correct, np.float64)
    times = recovery(correct, drifts, window=window, width=width)
    _, segments = _segments(correct, drifts, width)
    lengths = [end - start for start, end in segments[1:]]
    counted = [
        length if time is None else time for time, length in zip(times, lengths, strict=True)
    ]
    begun = int(drifts[0]) if len(drifts) else 0
    return {
        "accuracy": float(correct.mean()),
        "worst_window": float(windowed(correct[begun:], window).min()),
        "recovery": times,
        "recovery_mean": float(np.mean(counted)) if counted else None,
        "recovered": sum(time is not None for time in times),
        "forgetting": forgetting(correct, drifts, order, window=window, width=width),
    }


def _segments(
    correct: Any, drifts: Sequence[int], width: int
) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """The numbers as an array, and first and one behind the last example of every segment."""
    correct = np.asarray(correct, np.float64)
    starts = [0, *(int(drift) + width for drift in drifts)]
    ends = [*map(int, drifts), len(correct)]
    pairs = list(zip(starts, ends, strict=True))
    if any(start >= end for start, end in pairs):
        raise InputError(
            f"drifts={list(drifts)}, width={width}: of {len(correct)} examples every segment must "
            "have one; give the drifts in order."
        )
    return correct, pairs
