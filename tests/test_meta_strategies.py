"""La-MAML and MER, each against its algorithm written out in numpy, and against forgetting."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

import jcl
from jcl import InputError


def squared_loss(params, batch, key):
    logits = batch["inputs"] @ params["w"]
    losses = 0.5 * (logits - batch["targets"]) ** 2
    return losses.mean(), {"logits": logits, "losses": losses}


def squares(inputs, targets):
    return {"inputs": jnp.asarray(inputs, jnp.float32), "targets": jnp.asarray(targets)}


def gradient(w, x, y):
    return (x * (x @ w - y)[:, None]).mean(axis=0)


def value(w, x, y):
    return 0.5 * np.mean((x @ w - y) ** 2)


W = np.array([0.3, -0.5, 0.8])
OLD = squares([[1.0, 2.0, -1.0]], [0.5])
NEW = squares(
    [[0.5, -1.0, 0.2], [1.5, 0.3, -0.7], [-0.4, 0.8, 1.1], [0.9, 0.1, 0.6]], [1.0, -0.4, 0.7, 0.2]
)


def arrays(batch):
    return np.float64(batch["inputs"]), np.float64(batch["targets"])


def joined(one, other, times):
    """The arrays of a batch and so many copies of the only example of another."""
    return [
        np.concatenate([a] + [b] * times) for a, b in zip(arrays(one), arrays(other), strict=True)
    ]


def after_two(strategy, first, second):
    """The params' move at the second of two batches, which meets a memory of the first alone."""
    params = {"w": jnp.asarray(W, jnp.float32)}
    state = strategy.init(params, batch=first)
    given = {"loss_fn": squared_loss, "key": None}
    _, before = strategy.update({}, state, params, batch=first, **given)
    updates, state = strategy.update({}, before, params, batch=second, **given)
    return np.asarray(updates["w"]), before, state


def looks(w, rates, parts):
    """(fast params, sum of the gradients so far) after each step."""
    fast, path = w, np.zeros_like(w)
    for x, y in parts:
        step = gradient(fast, x, y)
        fast, path = fast - rates * step, path + step
        yield fast, path


def differences(function, at):
    moves = 1e-5 * np.eye(len(at))
    return np.array([(function(at + move) - function(at - move)) / 2e-5 for move in moves])


def clipped(step, clip):
    return step * min(1.0, clip / np.linalg.norm(step))


@pytest.mark.parametrize(
    ("first_order", "steps", "clip"),
    [(True, None, 100.0), (True, 2, 0.2), (False, None, 100.0), (False, 2, 0.2)],
)
def test_la_maml_by_hand(first_order, steps, clip):
    """First order by its sums, second order by finite differences of the meta-loss."""
    eta, size = 2.0, 3
    strategy = jcl.la_maml(
        1, size, 0.3, eta, steps=steps, first_order=first_order, clip=clip
    )  # fmt: skip
    # The first batch is one example twice: whichever is kept, the memory holds the same.
    first = jax.tree.map(lambda leaf: jnp.repeat(leaf, 2, axis=0), OLD)
    updates, before, after = after_two(strategy, first, NEW)
    rates = np.float64(before.rates["w"])
    assert np.ptp(rates) > 0  # learned from the first batch
    x, y = arrays(NEW)
    each = len(y) // (steps or len(y))
    parts = [(x[i : i + each], y[i : i + each]) for i in range(0, len(y), each)]
    meta = joined(NEW, OLD, size)
    if first_order:
        path_and_meta = [(path, gradient(fast, *meta)) for fast, path in looks(W, rates, parts)]
        by_params = np.mean([g for _, g in path_and_meta], axis=0)
        by_rates = -np.mean([path * g for path, g in path_and_meta], axis=0)
    else:
        meta_loss = lambda w, r: np.mean([value(fast, *meta) for fast, _ in looks(w, r, parts)])
        by_params = differences(lambda w: meta_loss(w, rates), W)
        by_rates = differences(lambda r: meta_loss(W, r), rates)
    expected = rates - eta * clipped(by_rates, clip)
    np.testing.assert_allclose(after.rates["w"], expected, rtol=1e-4)
    step = -np.maximum(expected, 0) * clipped(by_params, clip)
    np.testing.assert_allclose(updates, step, rtol=1e-4, atol=1e-7)


def test_la_maml_holds_still_what_has_no_positive_rate():
    """Rates below zero stop the params, but the look ahead still follows them, so they can rise."""
    strategy = jcl.la_maml(1, 1, 0.3, 1.0)
    params = {"w": jnp.asarray(W, jnp.float32)}
    state = strategy.init(params, batch=OLD)
    state = state._replace(rates={"w": jnp.array([-5.0, 0.3, -5.0])})
    given = {"batch": OLD, "loss_fn": squared_loss, "key": None}
    updates, after = strategy.update({}, state, params, **given)
    assert (np.asarray(updates["w"]) == 0).tolist() == [True, False, True]
    assert (np.asarray(after.rates["w"])[[0, 2]] != -5.0).all()


def test_a_meta_learning_rate_of_zero_is_c_maml():
    _, before, after = after_two(jcl.la_maml(1, 1, 0.3, 0.0), OLD, NEW)
    for state in (before, after):
        np.testing.assert_array_equal(state.rates["w"], np.float32([0.3] * 3))


@pytest.mark.parametrize("strategy", [jcl.la_maml(4, 3, 0.1, 0.1), jcl.mer(
    4, 3, 0.1, batches=1, within=1.0)])  # fmt: skip
def test_without_a_memory_the_batch_stands_in(strategy):
    """The first step is that of a memory which holds the batch's only example."""
    first, _, _ = after_two(strategy, OLD, OLD)
    params = {"w": jnp.asarray(W, jnp.float32)}
    state = strategy.init(params, batch=OLD)
    given = {"batch": OLD, "loss_fn": squared_loss, "key": None}
    alone, after = strategy.update({}, state, params, **given)
    if hasattr(state, "rates"):
        after = after._replace(rates=state.rates)
    again, _ = strategy.update({}, after, params, **given)
    np.testing.assert_allclose(alone["w"], again["w"], rtol=1e-6)
    assert np.abs(first).min() > 0


def test_mer_by_hand():
    """The current examples one by one, then the draw, in each of three batches."""
    rate, batches, within, across, size = 0.2, 3, 0.5, 0.7, 2
    strategy = jcl.mer(1, size, rate, batches=batches, within=within, across=across)
    updates, _, _ = after_two(strategy, OLD, NEW)
    x, y = joined(NEW, OLD, size)
    params = W
    for _ in range(batches):
        fast = params
        for row in range(len(y)):
            fast = fast - rate * gradient(fast, x[row : row + 1], y[row : row + 1])
        params = params + within * (fast - params)
    np.testing.assert_allclose(updates, across * (params - W), rtol=1e-5)


def test_mer_draws_anew_for_every_batch_also_without_a_key():
    """Of two stored examples, each draw of one has either: over eight draws both are met."""
    stored = squares(np.eye(3)[:2], [5.0, 5.0])
    still = squares([[0.0, 0.0, 0.0]], [0.0])
    strategy = jcl.mer(2, 1, 0.1, batches=8, within=1.0)
    updates, _, _ = after_two(strategy, stored, still)
    assert (np.abs(updates) > 0).tolist() == [True, True, False]


def clusters(classes, number, seed):
    """Batches [number, 16, ...] of points around a centre for each class, not far from another."""
    key_class, key_noise = jax.random.split(jax.random.key(seed))
    targets = jax.random.choice(key_class, jnp.asarray(classes), (number, 16))
    noise = 0.7 * jax.random.normal(key_noise, (number, 16, toy.INPUTS))
    centres = 1 + 2 * jnp.eye(toy.CLASSES, toy.INPUTS)
    return {"inputs": noise + centres[targets], "targets": targets}


def accuracies(strategy):
    """Of both tasks after two classes, then the third."""
    learner = jcl.learner(toy.loss_fn, strategy)
    scan = jax.jit(lambda state, batches: jax.lax.scan(learner.step, state, batches)[0])
    tasks = ((0, 1), (2, 2))
    first = jax.tree.map(lambda leaf: leaf[0], clusters(tasks[0], 1, 0))
    state = learner.init(jax.random.key(0), toy.params(), first)
    for seed, classes in enumerate(tasks):
        state = scan(state, clusters(classes, 40, seed))
    found = []
    for classes in tasks:
        batch = jax.tree.map(lambda leaf: leaf.reshape((-1, *leaf.shape[2:])),
                             clusters(classes, 30, 9))  # fmt: skip
        logits = learner.predict(state, batch)["logits"]
        found.append(float((logits.argmax(axis=1) == batch["targets"]).mean()))
    return found


@pytest.fixture(scope="module")
def naive():
    return accuracies(optax.sgd(0.3))


@pytest.mark.parametrize("strategy", [
    jcl.la_maml(50, 16, 0.1, 0.1, steps=4), jcl.mer(50, 16, 0.1, batches=1, within=0.5),
])  # fmt: skip
def test_both_forget_less_than_naive(strategy, naive):
    old, new = accuracies(strategy)
    assert naive[1] > 0.95
    assert old > naive[0] + 0.5
    assert new > 0.8


def test_they_stand_in_the_optimizer_s_place():
    for part in (jcl.la_maml(9, 4, 0.1, 0.1), jcl.mer(9, 4, 0.1, batches=1, within=1.0)):
        with pytest.raises(InputError, match="must stand after the optimizer"):
            jcl.chain(part, optax.adamw(1e-3))
        with pytest.raises(InputError, match="would forget at every boundary"):
            jcl.per_task(part)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: jcl.la_maml(0, 4, 0.1, 0.1), r"la_maml\(capacity=0\): a whole number"),
        (lambda: jcl.la_maml(9, 0, 0.1, 0.1), r"la_maml\(size=0\)"),
        (lambda: jcl.la_maml(9, 4, 0.0, 0.1), r"la_maml\(learning_rate=0.0\)"),
        (lambda: jcl.la_maml(9, 4, 0.1, -1), r"la_maml\(meta_learning_rate=-1\)"),
        (lambda: jcl.la_maml(9, 4, 0.1, 0.1, steps=0), r"la_maml\(steps=0\)"),
        (lambda: jcl.la_maml(9, 4, 0.1, 0.1, first_order="no"), r"first_order='no'\): True"),
        (lambda: jcl.la_maml(9, 4, 0.1, 0.1, clip=0), r"la_maml\(clip=0\)"),
        (
            lambda: jcl.la_maml(9, 4, 0.1, 0.1, steps=3).init({}, batch=NEW),
            r"la_maml\(steps=3\) does not divide the batch of 4: give a divisor",
        ),
        (lambda: jcl.mer(0, 4, 0.1, batches=1, within=1.0), r"mer\(capacity=0\)"),
        (lambda: jcl.mer(9, 0, 0.1, batches=1, within=1.0), r"mer\(size=0\)"),
        (lambda: jcl.mer(9, 4, 0.0, batches=1, within=1.0), r"mer\(learning_rate=0.0\)"),
        (lambda: jcl.mer(9, 4, 0.1, batches=0, within=1.0), r"mer\(batches=0\)"),
        (lambda: jcl.mer(9, 4, 0.1, batches=1, within=0.0), r"mer\(within=0.0\)"),
        (lambda: jcl.mer(9, 4, 0.1, batches=1, within=1.0, across=0.0), r"mer\(across=0.0\)"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(InputError, match=message):
        make()
