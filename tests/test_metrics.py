"""The metrics on hand-made matrices, in both directions of "better"."""

import numpy as np
import pytest

from jcl.metrics import METRICS, metrics, summary

# Three tasks; rows: before, after 1, 2, 3.
ACCURACY = np.array([[10, 20, 30], [80, 25, 35], [90, 70, 31], [60, 50, 90]], float)
EXPECTED = {
    "average_accuracy": (60 + 50 + 90) / 3,
    "learning_accuracy": (80 + 70 + 90) / 3,
    "backward_transfer": ((60 - 80) + (50 - 70)) / 2,
    "forward_transfer": ((25 - 20) + (31 - 30)) / 2,
    "forgetting": ((90 - 60) + (70 - 50)) / 2,
    "forgetting_last": ((80 - 60) + (70 - 50)) / 2,
    "average_incremental": (80 + (90 + 70) / 2 + (60 + 50 + 90) / 3) / 3,
}


def test_higher_is_better():
    found = metrics(ACCURACY, higher_is_better=True)
    assert list(found) == list(METRICS) == list(EXPECTED)
    for name, value in EXPECTED.items():
        assert found[name] == pytest.approx(value), name


def test_lower_is_better_turns_the_differences():
    """The same history as a loss of 100 - accuracy: averages mirrored, differences equal."""
    found = metrics(100 - ACCURACY, higher_is_better=False)
    for name in ("average_accuracy", "learning_accuracy", "average_incremental"):
        assert found[name] == pytest.approx(100 - EXPECTED[name]), name
    for name in ("backward_transfer", "forward_transfer", "forgetting", "forgetting_last"):
        assert found[name] == pytest.approx(EXPECTED[name]), name


def test_chaudhry_takes_the_best_before_the_last_task_only():
    """A task that the last stage improves has negative forgetting."""
    found = metrics(np.array([[0, 0], [50, 0], [70, 60]], float), higher_is_better=True)
    assert found["forgetting"] == -20
    assert found["backward_transfer"] == 20


def test_results_before_a_task_was_trained_do_not_count_as_forgotten():
    """Task 2 was at 99 before its own training: forgetting looks at rows 2 and later only."""
    history = np.array([[0, 99, 0], [50, 98, 0], [40, 70, 0], [40, 60, 80]], float)
    found = metrics(history, higher_is_better=True)
    assert found["forgetting"] == ((50 - 40) + (70 - 60)) / 2


def test_what_is_undefined_is_none():
    joint = metrics(np.array([[10, 20, 30], [80, 70, 60]], float), higher_is_better=True)
    assert joint["average_accuracy"] == 70
    assert all(value is None for name, value in joint.items() if name != "average_accuracy")
    single = metrics(np.array([[10], [80]], float), higher_is_better=True)
    assert single["learning_accuracy"] == single["average_incremental"] == 80
    assert single["forgetting"] is None
    assert all(v is None for v in metrics(np.ones((1, 3)), higher_is_better=True).values())


def test_intervals_are_students():
    """Values 1, 2, 3: standard error 1/sqrt(3), t(0.975, 2) = 4.302653."""
    matrices = np.stack([np.full((2, 1), value) for value in (1.0, 2.0, 3.0)])
    found = summary(matrices, higher_is_better=True)["average_accuracy"]
    assert found["mean"] == 2
    assert found["values"] == [1, 2, 3]
    assert found["ci95"] == pytest.approx(4.302653 / np.sqrt(3), rel=1e-6)
    assert summary(matrices[:1], higher_is_better=True)["average_accuracy"]["ci95"] is None
    assert summary(matrices, higher_is_better=True)["forgetting"]["mean"] is None
