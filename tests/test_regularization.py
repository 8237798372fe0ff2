"""SI, MAS, RWalk and plain distances against what is computed by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

import jcl
from jcl import InputError

CURVATURE, LOWEST = np.array([1.0, 4.0, 0.0]), np.array([1.0, -1.0, 5.0])
START, RATE = np.array([0.0, 1.0, 2.0]), 0.1
MOVE = np.array([1.0, -2.0, 3.0])


def bowl_loss(params, batch, key):
    """1/2 sum_i curvature_i (w_i - lowest_i)^2, whatever the batch holds."""
    value = 0.5 * jnp.sum(CURVATURE * (params["w"] - LOWEST) ** 2)
    losses = jnp.full(len(batch["inputs"]), value)
    return value, {"logits": losses, "losses": losses}


BATCH = {"inputs": jnp.zeros((2, 1))}
BATCHES = {"inputs": jnp.zeros((1, 2, 1))}


def stepped(strategy, steps=2, state=None):
    learner = jcl.learner(bowl_loss, strategy)
    if state is None:
        state = learner.init(None, {"w": jnp.asarray(START, jnp.float32)}, BATCH)
    for _ in range(steps):
        state, metrics = learner.step(state, BATCH)
    return learner, state, metrics


def by_hand(params, steps=2):
    """Plain gradient descent: the params, and the sum of gradient times step, with its sign."""
    path = 0
    for _ in range(steps):
        gradient = CURVATURE * (params - LOWEST)
        path, params = path + RATE * gradient**2, params - RATE * gradient
    return params, path


def test_si_path_and_importance_over_two_steps():
    learner, state, _ = stepped(jcl.chain(optax.sgd(RATE), jcl.si(3.0, damping=0.1)))
    params, path = by_hand(START)
    np.testing.assert_allclose(state.strategy[1].path["w"], path, rtol=1e-6)
    np.testing.assert_array_equal(state.strategy[1].importance["w"], 0)
    state = learner.consolidate(state, BATCHES)
    importance = path / ((params - START) ** 2 + 0.1)
    np.testing.assert_allclose(state.strategy[1].importance["w"], importance, rtol=1e-6)
    np.testing.assert_allclose(state.strategy[1].anchor["w"], params, rtol=1e-6)
    np.testing.assert_array_equal(state.strategy[1].path["w"], 0)
    moved = state._replace(params={"w": jnp.asarray(params + MOVE, jnp.float32)})
    _, metrics = learner.step(moved, BATCH)
    np.testing.assert_allclose(metrics["si"], 3 * (importance * MOVE**2).sum(), rtol=1e-5)


def test_si_adds_up_over_tasks():
    chain = jcl.chain(optax.sgd(RATE), jcl.si(0.0, damping=0.1))
    learner, state, _ = stepped(chain)
    _, state, _ = stepped(chain, state=learner.consolidate(state, BATCHES))
    state = learner.consolidate(state, BATCHES)
    middle, first = by_hand(START)
    end, second = by_hand(middle)
    expected = first / ((middle - START) ** 2 + 0.1) + second / ((end - middle) ** 2 + 0.1)
    np.testing.assert_allclose(state.strategy[1].importance["w"], expected, rtol=1e-5)


def test_si_path_leaves_its_own_penalty_out():
    """The gradient in the path is the task's, although the step is that of the total loss."""
    chain = jcl.chain(optax.sgd(RATE), jcl.si(3.0, damping=0.1))
    learner, state, _ = stepped(chain)
    state = learner.consolidate(state, BATCHES)
    start = np.asarray(state.params["w"]) + MOVE
    importance = np.asarray(state.strategy[1].importance["w"])
    state, _ = learner.step(state._replace(params={"w": jnp.asarray(start, jnp.float32)}), BATCH)
    task = CURVATURE * (start - LOWEST)
    total = task + 2 * 3.0 * importance * MOVE
    np.testing.assert_allclose(state.strategy[1].path["w"], RATE * task * total, rtol=1e-4)


def test_si_rectified_cuts_what_raised_the_loss():
    for rectify in (False, True):
        chain = jcl.chain(optax.sgd(-RATE), jcl.si(1.0, rectify=rectify))  # ascends
        learner, state, _ = stepped(chain)
        importance = learner.consolidate(state, BATCHES).strategy[1].importance["w"]
        assert float(importance[0]) == 0 if rectify else float(importance[0]) < 0


@pytest.mark.parametrize("method", [jcl.mas, jcl.ewc])
@pytest.mark.parametrize("chunk", [1, 2])
def test_importance_leaves_padding_rows_out(method, chunk):
    """Rows of mask 0 neither add to the importance nor to the number of examples."""
    real = toy.batch(0, size=4)
    padded = jax.tree.map(lambda leaf: jnp.concatenate([leaf, 50 * leaf[:2], 0 * leaf[:2]]), real)
    found = []
    for batch, mask in ((real, jnp.ones(4)), (padded, jnp.repeat(jnp.array([1.0, 0.0]), 4))):
        batch = {**batch, "targets": batch["targets"] % 2, "mask": mask}
        model = jcl.models.mlp(jcl.models.MLPConfig(inputs=real["inputs"][0].size, classes=2))
        learner = jcl.learner(
            jcl.losses.classify(model.apply), jcl.chain(method(1.0, chunk=chunk), optax.sgd(RATE))
        )
        state = learner.init(None, model.init(jax.random.key(0)), batch)
        state = learner.consolidate(state, jax.tree.map(lambda leaf: leaf[None], batch))
        found.append(jax.tree.leaves(state.strategy[0].importance))
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-7)


def test_si_left_of_the_optimizer_is_refused():
    with pytest.raises(InputError, match="must stand after the optimizer"):
        jcl.chain(jcl.si(1.0), optax.sgd(RATE))


def outputs_loss(params, batch, key):
    logits = batch["inputs"] @ params["w"]
    if "label_mask" in batch:
        logits = jcl.losses.mask_labels(logits, batch["label_mask"])
    return jnp.zeros(()), {"logits": logits}  # no targets anywhere


@pytest.mark.parametrize("chunk", [1, 3])
def test_mas_of_a_linear_model(chunk):
    """d ||x W||^2 / dW = 2 x^T (x W), in absolute value, per example; twice, over two tasks."""
    weights = np.array([[1.0, -1.0], [2.0, 0.5]])
    inputs = np.array(
        [[[1.0, 0.0], [1.0, 1.0], [-1.0, 1.0]], [[0.0, 2.0], [1.0, -2.0], [0.0, 0.0]]]
    )
    examples = inputs.reshape(6, 2)
    expected = np.mean([np.abs(2 * np.outer(x, x @ weights)) for x in examples], axis=0)
    strategy = jcl.mas(2.0, chunk=chunk)
    params = {"w": jnp.asarray(weights, jnp.float32)}
    state = strategy.init(params)
    batches = {"inputs": jnp.asarray(inputs, jnp.float32)}
    for _ in range(2):
        state, _ = strategy.consolidate(
            state, params, batches=batches, loss_fn=outputs_loss, key=None
        )
    np.testing.assert_allclose(state.importance["w"], 2 * expected, rtol=1e-6)
    term = strategy.loss(state, {"w": params["w"] + 1})["mas"]
    np.testing.assert_allclose(term, 2 * (2 * expected).sum(), rtol=1e-6)


def test_mas_where_labels_are_masked():
    """Masked classes have no importance, and nothing is NaN."""
    params = {"w": jnp.ones((2, 3))}
    batches = {
        "inputs": jnp.ones((1, 2, 2)),
        "label_mask": jnp.asarray([[[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]]]),
    }
    strategy = jcl.mas(1.0)
    state, _ = strategy.consolidate(
        strategy.init(params), params, batches=batches, loss_fn=outputs_loss, key=None
    )
    np.testing.assert_allclose(state.importance["w"], [[4, 4, 0], [4, 4, 0]], rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "expected"), [(jcl.l2, 2 * (1 + 4 + 9)), (jcl.l1, 2 * (1 + 2 + 3))]
)
def test_distances(make, expected):
    moved = {"w": jnp.asarray(START + MOVE, jnp.float32)}
    start = {"w": jnp.asarray(START, jnp.float32)}
    name = make.__name__
    anchored, initial = make(2.0), make(2.0, toward="initial")
    np.testing.assert_allclose(initial.loss(initial.init(start), moved)[name], expected)
    state = anchored.init(start)
    assert float(anchored.loss(state, moved)[name]) == 0  # no boundary yet
    state, _ = anchored.consolidate(state, start)
    np.testing.assert_allclose(anchored.loss(state, moved)[name], expected)
    state, _ = anchored.consolidate(state, moved)
    np.testing.assert_allclose(anchored.loss(state, start)[name], expected)
    assert float(anchored.loss(state, moved)[name]) == 0
    state, _ = initial.consolidate(initial.init(start), moved)
    np.testing.assert_allclose(initial.loss(state, moved)[name], expected)


def test_l2_is_ewc_with_every_importance_one():
    """After one boundary; EWC's penalty has a half."""
    start = {"w": jnp.asarray(START, jnp.float32)}
    moved = {"w": jnp.asarray(START + 1, jnp.float32)}
    ewc = jcl.ewc(2.0)
    l2 = jcl.l2(1.0)
    state, _ = l2.consolidate(l2.init(start), start)
    bowl = ewc.init(start)._replace(importance={"w": jnp.ones(3)})
    np.testing.assert_allclose(l2.loss(state, moved)["l2"], ewc.loss(bowl, moved)["ewc"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: jcl.si(-1.0), r"a number in \[0, inf"),
        (lambda: jcl.si(1.0, damping=0.0), r"a number in \(0, inf"),
        (lambda: jcl.mas(-1.0), r"a number in \[0, inf"),
        (lambda: jcl.mas(1.0, chunk=0), "a whole number, at least 1"),
        (lambda: jcl.l2(-1.0), r"a number in \[0, inf"),
        (lambda: jcl.rwalk(-1.0), r"a number in \[0, inf"),
        (lambda: jcl.rwalk(1.0, rate=0.0), r"a number in \(0, 1\]"),
        (lambda: jcl.rwalk(1.0, every=0), "a whole number, at least 1"),
        (lambda: jcl.rwalk(1.0, damping=0.0), r"a number in \(0, inf"),
        (lambda: jcl.rwalk(1.0, chunk=0), "a whole number, at least 1"),
        (lambda: jcl.l1(1.0, toward="last"), '"anchor", "initial"'),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_a_chunk_that_does_not_divide_is_refused():
    with pytest.raises(InputError, match=r"mas\(chunk=3\) does not divide the 64 examples"):
        jcl.mas(1.0, chunk=3).consolidate(
            jcl.mas(1.0).init(toy.params()), toy.params(), batches=toy.stacked(),
            loss_fn=toy.loss_fn, key=None,
        )  # fmt: skip


def test_rwalk_over_one_interval_and_a_boundary():
    """f is the squared gradient, all examples being alike; the second boundary halves the score."""
    chain = jcl.chain(optax.sgd(RATE), jcl.rwalk(3.0, rate=0.9, every=2, damping=0.1))
    learner, state, _ = stepped(chain, steps=2)
    middle, _ = by_hand(START, 1)
    end, path = by_hand(START, 2)
    fisher = 0.9 * (CURVATURE * (middle - LOWEST)) ** 2
    score = path / (0.5 * fisher * (end - START) ** 2 + 0.1)
    walk = state.strategy[1]
    np.testing.assert_allclose(walk.fisher["w"], fisher, rtol=1e-5)
    np.testing.assert_allclose(walk.score["w"], score, rtol=1e-5)
    np.testing.assert_array_equal(walk.path["w"], 0)
    np.testing.assert_allclose(walk.start["w"], end, rtol=1e-6)

    state = learner.consolidate(state, BATCHES)
    importance = fisher / fisher.max() + score / score.max()
    np.testing.assert_allclose(state.strategy[1].importance["w"], importance, rtol=1e-5)
    _, metrics = learner.step(state._replace(params={"w": state.params["w"] + MOVE}), BATCH)
    np.testing.assert_allclose(metrics["rwalk"], 3 * (importance * MOVE**2).sum(), rtol=1e-5)

    state = learner.consolidate(state, BATCHES)  # a task without a step has the score 0
    np.testing.assert_allclose(state.strategy[1].score["w"], score / 2, rtol=1e-5)


def test_rwalk_scores_what_is_left_of_an_interval_and_cuts_the_negative():
    chain = jcl.chain(optax.sgd(-RATE), jcl.rwalk(1.0, every=100, damping=0.1))  # ascends
    learner, state, _ = stepped(chain)
    walk = learner.consolidate(state, BATCHES).strategy[1]
    assert (np.asarray(walk.score["w"])[:2] < 0).all()
    np.testing.assert_array_equal(walk.importance["w"], 0)
