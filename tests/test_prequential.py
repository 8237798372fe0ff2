"""The measures of a stream that is predicted and then learned."""

import numpy as np
import pytest

import jcl
from jcl import prequential


def test_windowed_is_the_mean_of_every_window():
    values = np.random.default_rng(0).random(40)
    expected = [values[start : start + 7].mean() for start in range(34)]
    np.testing.assert_allclose(prequential.windowed(values, 7), expected, rtol=1e-12)
    with pytest.raises(jcl.InputError, match="longer than the 40 values"):
        prequential.windowed(values, 41)


def test_recovery_is_counted_from_the_drift():
    # Before: 8 of 10. After a drift at 20: 5 wrong, then right; 8 of the last 10 are at 13.
    before = [1, 1, 1, 1, 0] * 4
    correct = [*before, *(5 * [0] + 15 * [1])]
    assert prequential.recovery(correct, [20], window=10, share=1.0) == [13]
    assert prequential.recovery(correct, [20], window=10, share=0.5) == [10]  # 5 of the first 10


def test_without_a_drop_recovery_takes_the_window_itself():
    assert prequential.recovery(40 * [1], [20], window=6) == [6]


def test_a_drift_whose_segment_is_over_first_is_not_recovered():
    correct = 20 * [1] + 20 * [0] + 20 * [1]
    assert prequential.recovery(correct, [20, 40], window=5) == [None, 5]
    assert prequential.recovery(correct[:22], [20], window=5) == [None]
    # The level before the second drift is that of its own segment, 0, reached at once.


def test_of_a_gradual_drift_recovery_counts_from_its_end():
    correct = 20 * [1] + 10 * [0] + 3 * [0] + 17 * [1]
    assert prequential.recovery(correct, [20], window=5, width=10) == [8]


def test_forgetting_is_what_a_concept_lost_while_it_was_away():
    first, other, again = 10 * [1], 10 * [0], [0, 0, 0, 1, *(6 * [1])]
    correct = first + other + again
    lost = prequential.forgetting(correct, [10, 20], (0, 1, 0), window=4)
    assert lost == 1 - 1 / 4
    assert prequential.forgetting(correct, [10, 20], (0, 1, 2), window=4) is None
    # A third visit is compared with the second.
    correct += 10 * [0] + 10 * [1]
    lost = prequential.forgetting(correct, [10, 20, 30, 40], (0, 1, 0, 1, 0), window=4)
    assert lost == pytest.approx((1 - 1 / 4 + 0 + 0) / 3)


def test_summary():
    correct = 10 * [0] + 10 * [1] + 4 * [0] + 16 * [1]
    found = prequential.summary(correct, window=4, drifts=[20], order=(0, 1))
    assert found == {
        "accuracy": 26 / 40,
        "worst_window": 0.0,
        "recovery": [8],
        "recovery_mean": 8.0,
        "recovered": 1,
        "forgetting": None,
    }
    # Of an untrained model's first predictions the worst window knows nothing.
    assert prequential.summary(correct[:10] + 30 * [1], window=4, drifts=[20], order=(0, 1))[
        "worst_window"
    ] == 1.0  # fmt: skip
    never = prequential.summary(20 * [1] + 15 * [0], window=4, drifts=[20], order=(0, 1))
    assert (never["recovered"], never["recovery_mean"]) == (0, 15.0)
    assert prequential.summary(20 * [1], window=4)["recovery_mean"] is None


def test_drifts_that_fit_no_stream_are_refused():
    for drifts, width in (([30], 0), ([5, 5], 0), ([15], 6)):
        with pytest.raises(jcl.InputError, match="every segment must have one"):
            prequential.recovery(20 * [1], drifts, window=2, width=width)
    with pytest.raises(jcl.InputError, match="one drift fewer"):
        prequential.forgetting(20 * [1], [10], (0, 1, 0), window=2)


def test_detection_tells_delays_from_false_alarms():
    found = prequential.detection([5, 100, 110, 250], [90, 180, 240])
    assert found == {"delays": [10, None, 10], "false": 2}
    assert prequential.detection([], [3]) == {"delays": [None], "false": 0}
