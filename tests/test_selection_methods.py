"""MIR, GSS and GDumb, each by what its paper promises."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

import jcl
from jcl import InputError
from jcl.strategies.gss import cosine_similarity, least_similar


def squared_loss(params, batch, key):
    logits = batch["inputs"] @ params["w"]
    losses = 0.5 * (logits - batch["targets"]) ** 2
    return losses.mean(), {"logits": logits, "losses": losses}


def squares(inputs, targets):
    return {"inputs": jnp.asarray(inputs, jnp.float32), "targets": jnp.asarray(targets)}


STORED = squares([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], [1.0, -1.0, 0.5])
PARAMS = {"w": jnp.array([0.3, 0.2])}


def test_mir_replays_what_the_virtual_step_makes_worst():
    """Toward 2 on the first axis: of the three, (1, 1) with target 0.5 rises, (1, 0) falls."""
    strategy = jcl.mir(3, size=4, candidates=64, learning_rate=0.5, strength=2.0)
    state = strategy.init(PARAMS, batch=STORED, aux={"logits": STORED["targets"]})
    _, state = strategy.update({}, state, PARAMS, batch=STORED, key=None)
    current = squares([[1.0, 0.0]], [2.0])
    gradient = jax.grad(lambda params: squared_loss(params, current, None)[0])(PARAMS)
    moved = {"w": PARAMS["w"] - 0.5 * gradient["w"]}
    rise = [squared_loss(params, STORED, None)[1]["losses"] for params in (moved, PARAMS)]
    rise = np.asarray(rise[0] - rise[1])
    worst = int(np.argmax(rise))
    assert worst == 2
    assert rise.min() < 0

    def term(params):
        given = {"batch": current, "loss_fn": squared_loss, "key": jax.random.key(0)}
        return strategy.loss(state, params, **given)["mir"]

    one = jax.tree.map(lambda leaf: leaf[worst : worst + 1], STORED)
    expected = jax.value_and_grad(lambda params: 2 * squared_loss(params, one, None)[0])(PARAMS)
    found = jax.value_and_grad(term)(PARAMS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)


def test_mir_of_all_candidates_is_replay():
    strategies = [jcl.mir(3, 5, 5, learning_rate=1.0), jcl.replay(3, 5)]
    given = {"batch": STORED, "loss_fn": squared_loss, "key": jax.random.key(0)}
    values = []
    for strategy in strategies:
        state = strategy.init(PARAMS, batch=STORED, aux={"logits": STORED["targets"]})
        assert set(jax.tree.map(float, strategy.loss(state, PARAMS, **given)).values()) == {0.0}
        _, state = strategy.update({}, state, PARAMS, batch=STORED, key=None)
        values += strategy.loss(state, PARAMS, **given).values()
    np.testing.assert_allclose(*values, rtol=1e-6)


def linear_loss(params, batch, key):
    losses = batch["inputs"] @ params["w"]
    return losses.mean(), {"logits": losses, "losses": losses}


def test_gss_scores_by_the_largest_cosine():
    """The memory's gradients are (1, 0) and (0, -2); a cosine does not mind their length."""
    strategy = jcl.gss(20, 1, references=40)
    first = {"inputs": jnp.array([[1.0, 0.0], [0.0, -2.0]] * 2)}
    second = {"inputs": jnp.array([[3.0, 0.0], [-1.0, 0.0], [-1.0, 1.0], [0.0, 0.0]])}
    state = strategy.init(PARAMS, batch=first)
    for batch in (first, second):
        _, state = strategy.update({}, state, PARAMS, batch=batch, loss_fn=linear_loss, key=None)
    np.testing.assert_array_equal(state.scores[:4], 1.0)
    expected = [2.0, 1.0, 1 - np.sqrt(0.5), 1.0]
    np.testing.assert_allclose(state.scores[4:8], expected, rtol=1e-5)


def test_gss_groups_share_the_score_of_their_mean_gradient():
    strategy = jcl.gss(20, 1, references=9, group=2)
    first = {"inputs": jnp.array([[1.0, 0.0]] * 4)}
    second = {"inputs": jnp.array([[3.0, 0.0], [-1.0, 2.0], [-1.0, 1.0], [0.0, -1.0]])}
    state = strategy.init(PARAMS, batch=first)
    for batch in (first, second):
        _, state = strategy.update({}, state, PARAMS, batch=batch, loss_fn=linear_loss, key=None)
    np.testing.assert_allclose(state.scores[4:8], [1 + np.sqrt(0.5)] * 2 + [0.0] * 2, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 8, 24])
def test_gss_replaces_as_one_at_a_time(batch):
    capacity, total = 6, 48
    scores = np.random.default_rng(0).uniform(0, 2, total).astype(np.float32)
    policy, items, kept = least_similar(capacity), [], []
    memory = policy.init({"x": jnp.zeros(batch, jnp.int32)})
    replaced = 0
    for start, key in zip(
        range(0, total, batch), jax.random.split(jax.random.key(0), total // batch), strict=True
    ):
        some = slice(start, start + batch)
        memory = policy.insert(
            memory, {"x": jnp.arange(total)[some]}, key, jnp.asarray(scores[some])
        )
        chances = np.asarray(jax.random.uniform(key, (batch, 2)))
        for item, (which, chance) in zip(range(total)[some], chances, strict=True):
            if len(items) < capacity:
                items.append(item)
                kept.append(scores[item])
            elif scores[item] < 1:
                chosen = np.searchsorted(np.cumsum(kept), which * np.sum(kept), side="right")
                if chance < kept[chosen] / (kept[chosen] + scores[item]):
                    items[chosen], kept[chosen] = item, scores[item]
                    replaced += 1
    assert replaced > 5
    assert memory.items["x"].tolist() == items
    np.testing.assert_array_equal(memory.scores, kept)


def test_cosine_similarity_of_nothing_is_zero():
    one, none = {"a": jnp.ones(2), "b": jnp.ones(())}, {"a": jnp.zeros(2), "b": jnp.zeros(())}
    assert float(cosine_similarity(one, none)) == 0
    np.testing.assert_allclose(
        cosine_similarity(one, jax.tree.map(lambda x: -3 * x, one)), -1.0, 1e-6
    )


def test_gdumb_trains_afresh_on_its_memory_alone():
    """One example counts and is kept: every draw is it, so training is plain descent."""
    strategy = jcl.gdumb(3, classes=3, steps=7, size=3, optimizer=optax.sgd(0.1, momentum=0.9))
    learner = jcl.learner(toy.loss_fn, strategy)
    batch = {**toy.batch(0), "mask": (jnp.arange(toy.BATCH) == 0).astype(jnp.float32)}
    state = learner.init(None, toy.params(), batch)
    before = jax.tree.map(np.asarray, state.params)
    state, _ = learner.step(state, batch)
    jax.tree.map(np.testing.assert_array_equal, state.params, before)

    one = jax.tree.map(lambda leaf: leaf[:1], batch)
    params, optimizer = toy.params(), optax.sgd(0.1, momentum=0.9)
    moments = optimizer.init(params)
    for _ in range(7):
        gradient = jax.grad(lambda params: toy.loss_fn(params, one, None)[0])(params)
        updates, moments = optimizer.update(gradient, moments)
        params = optax.apply_updates(params, updates)
    for _ in range(2):  # the second training begins afresh as well
        state = learner.consolidate(state, jax.tree.map(lambda leaf: leaf[None], batch))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-6), state.params, params
        )


def test_gdumb_draws_differ_without_a_key_and_init_is_used():
    """Trained on all of a memory of 16 the loss falls; `init` leaves no params in the state."""
    fresh = toy.params(5)
    strategy = jcl.gdumb(
        16, classes=3, steps=60, size=4, optimizer=optax.adam(0.05), init=lambda key: toy.params(5)
    )
    learner = jcl.learner(toy.loss_fn, strategy)
    state = learner.init(None, toy.params(), toy.batch(0))
    assert state.strategy.start == ()
    state, _ = learner.step(state, toy.batch(0))
    state = jax.jit(learner.consolidate)(state, toy.stacked())
    memory = state.strategy.memory
    number = int(memory.stored.sum())
    kept = jax.tree.map(lambda leaf: leaf[:number], memory.items)
    losses = [float(toy.loss_fn(params, kept, None)[0]) for params in (fresh, state.params)]
    assert losses[1] < 0.2 * losses[0]


def test_gdumb_stands_right_of_the_optimizer():
    gdumb = jcl.gdumb(10, classes=2, steps=1, size=1, optimizer=optax.sgd(0.1))
    with pytest.raises(InputError, match="must stand after the optimizer"):
        jcl.chain(gdumb, optax.adam(0.1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: jcl.mir(10, 4, 3, learning_rate=0.1), "at least as many"),
        (lambda: jcl.mir(10, 4, 4, learning_rate=0.0), r"a number in \(0, inf"),
        (lambda: jcl.mir(10, 0, 4, learning_rate=0.1), "a whole number, at least 1"),
        (lambda: jcl.mir(10, 1, 4, learning_rate=0.1, strength=-1.0), r"a number in \[0, inf"),
        (lambda: jcl.gss(10, 4, references=0), r"gss\(references=0\)"),
        (lambda: jcl.gss(10, 4, reference_size=0), r"gss\(reference_size=0\)"),
        (lambda: jcl.gss(10, 4, group=0), r"gss\(group=0\)"),
        (lambda: jcl.gss(0, 4), "a whole number, at least 1"),
        (lambda: jcl.gss(10, 4, group=3).init({}, batch=toy.batch(0)), "divide the batch of 16"),
        (lambda: jcl.gdumb(10, 2, steps=0, size=1, optimizer=optax.sgd(0.1)), r"gdumb\(steps=0\)"),
        (lambda: jcl.gdumb(10, 2, steps=1, size=1, optimizer=optax.sgd), "optax transformation"),
        (
            lambda: jcl.replay(jcl.memory.herding(9, 3, lambda params, inputs: inputs), 4),
            'give insert="boundary"',
        ),
        (lambda: jcl.replay(10, 4, draw="newest"), '"uniform", "balanced"'),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(InputError, match=message):
        make()
