"""GEM: its quadratic programme against brute force, its projection by hand, its task slots."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

import jcl
from jcl import InputError
from jcl.strategies.gem import RIDGE, dual

SLOTS = 6


def brute_force(matrix, linear):
    """argmin_{w >= 0} by trying every set of positive entries."""
    found = []
    for number in range(len(linear) + 1):
        for chosen in itertools.combinations(range(len(linear)), number):
            w = np.zeros(len(linear))
            if chosen:
                w[list(chosen)] = np.linalg.solve(
                    matrix[np.ix_(chosen, chosen)], -linear[list(chosen)]
                )
            if (w >= -1e-12).all():
                found.append((0.5 * w @ matrix @ w + linear @ w, tuple(w)))
    return np.array(min(found)[1])


def problems(kind, number=40):
    """References [slots, width], gradient, margin, past slots."""
    random = np.random.default_rng(0)
    for _ in range(number):
        references = random.normal(size=(SLOTS, 40))
        if kind == "parallel":
            references = np.outer(random.uniform(0.5, 2, SLOTS), references[0])
        if kind == "nearly parallel":
            references = references[0] + 1e-3 * references
        if kind == "opposite":
            references = np.outer(random.choice([-1, 1], SLOTS), references[0]) + 0.01 * references
        if kind == "of all sizes":
            references = references * 10.0 ** random.uniform(-3, 3, (SLOTS, 1))
        references = references.astype(np.float32).astype(np.float64)
        gradient = random.normal(size=40) - random.uniform(0, 2, SLOTS) @ references
        yield references, gradient, random.choice([0.0, 0.05, 0.5]), random.integers(1, SLOTS)


@pytest.mark.parametrize(
    "kind", ["random", "parallel", "nearly parallel", "opposite", "of all sizes"]
)
def test_the_programme_against_brute_force(kind):
    """The KKT residual min(v - margin, P v + q), each in the units of its slot, and the x found."""
    solve, moved = jax.jit(dual), 0
    for references, gradient, margin, past in problems(kind):
        gram, along = references @ references.T, references @ gradient
        found = solve(*(jnp.asarray(array, jnp.float32) for array in (gram, along)),
                      jnp.arange(SLOTS) < past, margin)  # fmt: skip
        found = np.asarray(found, np.float64)
        assert (found[past:] == 0).all()
        found, along = found[:past], along[:past]
        matrix = gram[:past, :past]
        matrix = matrix + np.diag(RIDGE + 1e-6 * np.diag(matrix))
        above = brute_force(matrix, along + matrix @ np.full(past, margin))
        length = np.sqrt(np.diag(matrix))
        height = np.abs((along + matrix @ np.full(past, margin)) / length).max()
        residual = np.minimum(
            (matrix @ found + along) / length / height, (found - margin) * length / height
        )
        assert np.abs(residual).max() < 1e-4
        x, expected = (gradient + references[:past].T @ v for v in (found, margin + above))
        assert np.abs(x - expected).max() < 2e-3 * np.abs(expected).max()
        moved += (above > 1e-6).any()
    assert moved > 10


def linear_loss(params, batch, key):
    losses = batch["inputs"] @ params["w"]
    return losses.mean(), {"logits": losses, "losses": losses}


def step(strategy, state, gradient, example):
    batch = {"inputs": jnp.asarray([example], jnp.float32)}
    updates, state = strategy.update(
        {"w": jnp.asarray(gradient)}, state, {"w": jnp.zeros(3)},
        batch=batch, loss_fn=linear_loss, key=None,
    )  # fmt: skip
    return np.asarray(updates["w"]), state


def after_two_tasks(strategy):
    """Task 1 has the gradient (1, 0, 0) and task 2 (0, 1, 0)."""
    state = strategy.init({"w": jnp.zeros(3)}, batch={"inputs": jnp.zeros((1, 3))})
    for example in ([1.0, 0.0, 0.0], [0.0, 1.0, 0.0]):
        updates, state = step(strategy, state, [-1.0, 2.0, -3.0], example)
        state, _ = strategy.consolidate(state, {})
    return state, updates


def test_by_hand():
    """Orthogonal references, margin 0: each violated one loses its part, the other keeps it."""
    strategy = jcl.gem(4, tasks=4, margin=0.0)
    state, at_second_task = after_two_tasks(strategy)
    np.testing.assert_allclose(at_second_task, [0.0, 2.0, -3.0], atol=2e-3)
    for gradient, expected in [
        ([-1.0, 2.0, 3.0], [0.0, 2.0, 3.0]),
        ([-1.0, -2.0, 3.0], [0.0, 0.0, 3.0]),
    ]:
        np.testing.assert_allclose(
            step(strategy, state, gradient, np.zeros(3))[0], expected, atol=3e-3
        )
    np.testing.assert_array_equal(step(strategy, state, [1.0, 2.0, 3.0], np.zeros(3))[0], [1, 2, 3])


def test_a_margin_pulls_toward_every_past_task():
    """v >= 0.5: the first task's own solution is 1, the second's bound is active."""
    strategy = jcl.gem(4, tasks=4, margin=0.5)
    state, _ = after_two_tasks(strategy)
    updates, _ = step(strategy, state, [-1.0, 2.0, 3.0], np.zeros(3))
    np.testing.assert_allclose(updates, [0.0, 2.5, 3.0], atol=3e-3)
    updates, _ = step(strategy, state, [-0.2, 2.0, 3.0], np.zeros(3))
    np.testing.assert_allclose(updates, [0.3, 2.5, 3.0], atol=3e-3)


def test_a_half_filled_memory_counts_what_it_holds():
    strategy = jcl.gem(20, tasks=2, margin=0.0)
    state = strategy.init({"w": jnp.zeros(3)}, batch={"inputs": jnp.zeros((1, 3))})
    for example in ([3.0, 0.0, 0.0], [0.0, 3.0, 0.0]):
        _, state = step(strategy, state, [0.0, 0.0, 0.0], example)
    state, _ = strategy.consolidate(state, {})
    updates, _ = step(strategy, state, [-2.0, 0.0, 0.0], np.zeros(3))
    np.testing.assert_allclose(updates, [-1.0, 1.0, 0.0], atol=1e-3)  # the reference: (1.5, 1.5, 0)


def test_slots_move_at_boundaries_and_the_last_is_reused():
    learner = jcl.learner(toy.loss_fn, jcl.chain(jcl.gem(20, tasks=2), optax.sgd(0.1)))
    state = learner.init(jax.random.key(0), toy.params(), toy.batch(0))
    kept = []
    for task in range(4):
        for number in range(2):
            state, _ = learner.step(state, toy.batch(number, task))
        gem = state.strategy[0]
        kept.append(np.asarray(gem.memories.items["inputs"]))
        assert int(gem.task) == min(task, 1)
        state = learner.consolidate(state, toy.stacked(task))
    last = [np.asarray(toy.batch(1, task)["inputs"])[-10:] for task in range(4)]
    as_set = lambda rows: {tuple(row) for row in rows.tolist()}
    assert as_set(kept[0][0]) == as_set(last[0])
    assert all(as_set(kept[task][1]) == as_set(last[task]) for task in (1, 2, 3))
    np.testing.assert_array_equal(kept[3][0], kept[0][0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: jcl.gem(10, tasks=1), "a whole number, at least 2"),
        (lambda: jcl.gem(3, tasks=4), "at least one example of each"),
        (lambda: jcl.gem(10, tasks=2, margin=-1.0), r"a number in \[0, inf"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(InputError, match=message):
        make()
