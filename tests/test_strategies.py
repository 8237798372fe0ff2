"""Replay and EWC against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

import jcl
from jcl import InputError
from jcl.strategies.ewc import fisher


def linear_loss(params, batch, key):
    """loss of example e = direction_e . params, so its gradient is the direction."""
    losses = batch["inputs"] @ params["w"]
    return losses.mean(), {"logits": losses, "losses": losses}


def boundary(directions):
    """[1, number, width] batches whose Fisher is the mean of the squared directions."""
    return {"inputs": jnp.asarray(directions, jnp.float32)[None]}


def consolidated(strategy, tasks):
    """The state after a boundary at each (params, directions)."""
    state = strategy.init({"w": jnp.asarray(tasks[0][0])})
    for params, directions in tasks:
        state, _ = strategy.consolidate(
            state, {"w": jnp.asarray(params)}, batches=boundary(directions),
            loss_fn=linear_loss, key=None,
        )  # fmt: skip
    return state


# Two tasks of two parameters; the third parameter is never important, the fourth only later.
FIRST = (np.array([1.0, -2.0, 3.0, 0.5]), np.array([[1.0, 2.0, 0.0, 0.0], [3.0, 0.0, 0.0, 0.0]]))
SECOND = (np.array([2.0, 1.0, -1.0, 0.25]), np.array([[0.0, 1.0, 0.0, 2.0], [1.0, 1.0, 0.0, 0.0]]))
F1, F2 = np.array([5.0, 2.0, 0.0, 0.0]), np.array([0.5, 1.0, 0.0, 2.0])


def test_ewc_equals_the_sum_of_all_tasks_penalties_up_to_a_constant():
    strategy = jcl.ewc(strength=3.0)
    state = consolidated(strategy, [FIRST, SECOND])
    np.testing.assert_allclose(state.importance["w"], F1 + F2, rtol=1e-6)

    def penalty(params):
        return float(strategy.loss(state, {"w": jnp.asarray(params, jnp.float32)})["ewc"])

    def every_task(params):
        return 1.5 * np.sum(F1 * (params - FIRST[0]) ** 2 + F2 * (params - SECOND[0]) ** 2)

    points = np.random.default_rng(0).normal(size=(5, 4))
    differences = [every_task(point) - penalty(point) for point in points]
    np.testing.assert_allclose(differences, differences[0], rtol=1e-4)
    assert differences[0] > 1  # the constant is there, so the test could fail


def test_where_nothing_is_important_the_anchor_follows_and_nothing_is_nan():
    state = consolidated(jcl.ewc(strength=1.0), [FIRST, SECOND])
    expected = np.where(
        F1 + F2 > 0, (F1 * FIRST[0] + F2 * SECOND[0]) / np.maximum(F1 + F2, 1e-9), SECOND[0]
    )
    np.testing.assert_allclose(state.anchor["w"], expected, rtol=1e-6)
    assert float(state.importance["w"][2]) == 0
    gradient = jax.grad(lambda w: jcl.ewc(1.0).loss(state, {"w": w})["ewc"])(jnp.ones(4))
    np.testing.assert_allclose(gradient, (F1 + F2) * (1 - expected), rtol=1e-5)


def test_online_ewc_decays_and_recentres():
    state = consolidated(jcl.ewc(strength=1.0, decay=0.5, recentre=True), [FIRST, SECOND])
    np.testing.assert_allclose(state.importance["w"], 0.5 * F1 + F2, rtol=1e-6)
    np.testing.assert_array_equal(state.anchor["w"], SECOND[0])


def test_decay_without_recentring_weighs_the_anchor_by_the_decayed_importance():
    state = consolidated(jcl.ewc(strength=1.0, decay=0.5), [FIRST, SECOND])
    total = 0.5 * F1 + F2
    expected = (0.5 * F1 * FIRST[0] + F2 * SECOND[0]) / np.maximum(total, 1e-9)
    np.testing.assert_allclose(
        state.anchor["w"], np.where(total > 0, expected, SECOND[0]), rtol=1e-6
    )


def test_no_penalty_before_the_first_boundary():
    strategy = jcl.ewc(strength=10.0)
    state = strategy.init({"w": jnp.ones(3)})
    assert float(strategy.loss(state, {"w": jnp.full(3, 7.0)})["ewc"]) == 0


def logistic_loss(params, batch, key):
    logits = batch["inputs"] @ params["w"]
    aux = {"logits": logits}
    if "targets" not in batch:
        return jnp.zeros(()), aux
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])
    return losses.mean(), aux | {"losses": losses}


def logistic_batches(number):
    inputs = jax.random.normal(jax.random.key(0), (4, number // 4, 3))
    targets = jax.random.randint(jax.random.key(1), (4, number // 4), 0, 2)
    return {"inputs": inputs, "targets": targets}


@pytest.mark.parametrize("chunk", [1, 5, 40])
def test_fisher_of_a_logistic_regression(chunk):
    """Empirical: mean of (x (p - y))^2; squared per example, not of the mean gradient."""
    params, batches = {"w": jax.random.normal(jax.random.key(2), (3, 2))}, logistic_batches(40)
    inputs, targets = batches["inputs"].reshape(40, 3), batches["targets"].reshape(40)
    chance = jax.nn.softmax(inputs @ params["w"])
    error = chance - jax.nn.one_hot(targets, 2)
    expected = jnp.mean((inputs[:, :, None] * error[:, None, :]) ** 2, axis=0)
    found = fisher(logistic_loss, params, batches, chunk=chunk)["w"]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_fisher_does_not_depend_on_how_examples_are_batched():
    params, batches = {"w": jax.random.normal(jax.random.key(2), (3, 2))}, logistic_batches(40)
    other = jax.tree.map(lambda leaf: leaf.reshape((2, 20, *leaf.shape[2:])), batches)
    np.testing.assert_allclose(
        fisher(logistic_loss, params, batches)["w"],
        fisher(logistic_loss, params, other)["w"],
        rtol=1e-5,
    )


def test_sampled_fisher_is_the_true_fisher_information():
    """E_y~p [(x (p - y))^2] = x^2 p (1 - p) for two classes."""
    params, batches = {"w": jax.random.normal(jax.random.key(2), (3, 2))}, logistic_batches(20_000)
    inputs = batches["inputs"].reshape(-1, 3)
    chance = jax.nn.softmax(inputs @ params["w"])
    expected = jnp.mean(inputs[:, :, None] ** 2 * (chance * (1 - chance))[:, None, :], axis=0)
    found = fisher(
        logistic_loss, params, batches, jax.random.key(3), targets="sampled", chunk=1000
    )["w"]
    np.testing.assert_allclose(found, expected, rtol=0.06)
    empirical = fisher(logistic_loss, params, batches, chunk=1000)["w"]
    assert np.abs(empirical / expected - 1).max() > 0.2  # the labels here are not the model's


def test_predicted_fisher_takes_the_likeliest_class_for_the_target():
    params, batches = {"w": jax.random.normal(jax.random.key(2), (3, 2))}, logistic_batches(40)
    likeliest = jnp.argmax(batches["inputs"] @ params["w"], axis=-1)
    np.testing.assert_allclose(
        fisher(logistic_loss, params, batches, targets="predicted")["w"],
        fisher(logistic_loss, params, {**batches, "targets": likeliest})["w"],
        rtol=1e-6,
    )
    assert bool((likeliest != batches["targets"]).any())


def test_replay_adds_the_loss_of_what_it_holds():
    """After one batch, the memory holds exactly it; a draw of one item repeated is its loss."""
    strategy = jcl.replay(capacity=1, size=3, strength=2.0)
    batch = toy.batch(0, size=1)
    state = strategy.init(toy.params(), batch=batch, aux={})
    term = {"batch": batch, "aux": {}, "loss_fn": toy.loss_fn, "key": None}
    assert float(strategy.loss(state, toy.params(), **term)["replay"]) == 0
    _, state = strategy.update({}, state, toy.params(), batch=batch, key=None)
    expected = 2 * toy.loss_fn(toy.params(), batch, None)[0]
    np.testing.assert_allclose(strategy.loss(state, toy.params(), **term)["replay"], expected, 1e-6)


def test_replay_gradient_of_a_full_memory_is_that_of_both_batches():
    strategy = jcl.chain(jcl.replay(capacity=toy.BATCH, size=4000), optax.sgd(1.0))
    learner = jcl.learner(toy.loss_fn, strategy)
    state = learner.init(jax.random.key(0), toy.params(), toy.batch(0))
    state = learner.step(state._replace(params=toy.params()), toy.batch(0))[0]
    state = state._replace(params=toy.params(), key=None)
    after, _ = learner.step(state, toy.batch(1))

    def both(params):
        return sum(toy.loss_fn(params, toy.batch(number), None)[0] for number in (0, 1))

    expected = jax.tree.map(lambda p, g: p - g, toy.params(), jax.grad(both)(toy.params()))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=0.06), after.params, expected)


def test_replay_inserts_where_it_is_told():
    for insert, seen in [
        ("step", (3 * toy.BATCH, 3 * toy.BATCH)),
        ("boundary", (0, 4 * toy.BATCH)),
    ]:
        learner = jcl.learner(
            toy.loss_fn, jcl.chain(jcl.replay(100, 4, insert=insert), optax.sgd(0.1))
        )
        state = learner.init(jax.random.key(0), toy.params(), toy.batch(0))
        for number in range(3):
            state, metrics = learner.step(state, toy.batch(number))
        assert (float(metrics["replay"]) > 0) == (insert == "step")
        assert int(state.strategy[0].seen) == seen[0]
        assert int(learner.consolidate(state, toy.stacked()).strategy[0].seen) == seen[1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: jcl.ewc(-1.0), r"a number in \[0, inf"),
        (lambda: jcl.ewc(1.0, decay=1.5), r"a number in \[0, 1\]"),
        (lambda: jcl.ewc(1.0, targets="guessed"), '"true", "sampled", "predicted"'),
        (lambda: jcl.ewc(1.0, chunk=0), "a whole number, at least 1"),
        (lambda: jcl.replay(10, 0), "a whole number, at least 1"),
        (lambda: jcl.replay(10, 1, strength=-1.0), r"a number in \[0, inf"),
        (lambda: jcl.replay(10, 1, insert="never"), '"step", "boundary"'),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_a_chunk_that_does_not_divide_is_refused():
    with pytest.raises(InputError, match="does not divide the 40 examples"):
        fisher(logistic_loss, {"w": jnp.ones((3, 2))}, logistic_batches(40), chunk=7)
