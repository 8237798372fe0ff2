"""Heads computed from features: class means and linear discriminants against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jcl
from jcl import InputError
from jcl.models import MLPConfig, mlp

MODEL = mlp(MLPConfig(inputs=4, hidden=(6,), classes=5))
PARAMS = MODEL.init(jax.random.key(0))
random = np.random.default_rng(0)
TARGETS = random.integers(0, 3, 40)  # classes 3 and 4 are never seen
INPUTS = (random.normal(size=(40, 4)) * [3, 1, 1, 0.3] + TARGETS[:, None]).astype(np.float32)
# Batches of 8; the last is half padding, whose targets must not count.
TARGETS_PADDED = np.where(np.arange(40) < 36, TARGETS, 4)
MASK = (np.arange(40) < 36).astype(np.float32)
X = np.asarray(MODEL.features(PARAMS, jnp.asarray(INPUTS)), np.float64)[:36]
Y = TARGETS[:36]
MEANS = np.stack([X[c == Y].mean(axis=0) for c in range(3)])


def streamed(part, order=range(5)):
    """The logits of all inputs after a stream of batches."""
    learner = jcl.learner(jcl.losses.classify(MODEL.apply), jcl.chain(jcl.freeze("*"), part))
    batches = [
        {
            "inputs": jnp.asarray(INPUTS[8 * n : 8 * n + 8]),
            "targets": jnp.asarray(TARGETS_PADDED[8 * n : 8 * n + 8]),
            "mask": jnp.asarray(MASK[8 * n : 8 * n + 8]),
        }
        for n in order
    ]
    state, step = learner.init(None, PARAMS, batches[0]), jax.jit(learner.step)
    for batch in batches:
        state, _ = step(state, batch)
    jax.tree.map(np.testing.assert_array_equal, state.params, PARAMS)
    return learner.predict(state, {"inputs": jnp.asarray(INPUTS)})["logits"]


def test_nearest_class_mean_is_the_distance_to_the_means_of_all_at_once():
    logits = streamed(jcl.nearest_class_mean(MODEL.features, 5))
    x = np.asarray(MODEL.features(PARAMS, jnp.asarray(INPUTS)), np.float64)
    distance = ((x[:, None] - MEANS) ** 2).sum(axis=-1)
    np.testing.assert_allclose(
        logits[:, :3], (x**2).sum(axis=-1)[:, None] - distance, rtol=1e-4, atol=1e-3
    )
    np.testing.assert_array_equal(np.argmax(logits, axis=1), distance.argmin(axis=1))
    assert np.all(logits[:, 3:] < -1e8)


@pytest.mark.parametrize("shrinkage", [0.01, 1.0])
def test_slda_equals_lda_of_all_at_once(shrinkage):
    within = sum((X[c == Y] - MEANS[c]).T @ (X[c == Y] - MEANS[c]) for c in range(3)) / len(X)
    precision = np.linalg.inv((1 - shrinkage) * within + shrinkage * np.eye(6))
    x = np.asarray(MODEL.features(PARAMS, jnp.asarray(INPUTS)), np.float64)
    bias = 0.5 * np.einsum("ci,ij,cj->c", MEANS, precision, MEANS)
    expected = x @ precision @ MEANS.T - bias
    part = jcl.slda(MODEL.features, 5, shrinkage=shrinkage)
    logits = streamed(part)
    np.testing.assert_allclose(logits[:, :3], expected, rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(streamed(part, [4, 2, 0, 3, 1]), logits, rtol=2e-3, atol=2e-3)
    assert np.all(logits[:, 3:] < -1e8)


def test_slda_solved_at_boundaries_is_the_slda_of_the_last_one():
    def logits(refresh, consolidated):
        part = jcl.slda(MODEL.features, 5, shrinkage=0.1, refresh=refresh)
        learner = jcl.learner(jcl.losses.classify(MODEL.apply), jcl.chain(jcl.freeze("*"), part))
        batch = {"inputs": jnp.asarray(INPUTS), "targets": jnp.asarray(TARGETS)}
        state, _ = learner.step(learner.init(None, PARAMS, batch), batch)
        if consolidated:
            state = learner.consolidate(state, jax.tree.map(lambda leaf: leaf[None], batch))
        return learner.predict(state, batch)["logits"]

    np.testing.assert_allclose(logits("boundary", True), logits("step", True), rtol=1e-5)
    assert np.all(logits("boundary", False) < -1e8)  # nothing was seen at a boundary yet


def test_slda_tells_apart_what_the_means_alone_do_not():
    accuracy = lambda logits: np.mean(np.argmax(logits, axis=1)[:36] == Y)
    discriminant = accuracy(streamed(jcl.slda(MODEL.features, 5, shrinkage=0.01)))
    assert discriminant > accuracy(streamed(jcl.nearest_class_mean(MODEL.features, 5))) + 0.1


@pytest.mark.parametrize(
    "part",
    [
        jcl.nearest_class_mean(MODEL.features, 5),
        jcl.slda(MODEL.features, 5, shrinkage=0.1),
        jcl.slda_replay(MODEL.features, 5, capacity=10, size=4, shrinkage=0.1),
    ],
    ids=["nearest_class_mean", "slda", "slda_replay"],
)
def test_the_first_batch_of_a_class_has_a_loss_of_0(part):
    learner = jcl.learner(jcl.losses.classify(MODEL.apply), jcl.chain(jcl.freeze("*"), part))
    batch = {"inputs": jnp.asarray(INPUTS[:8]), "targets": jnp.asarray(TARGETS[:8] % 2)}
    state, step = learner.init(jax.random.key(0), PARAMS, batch), jax.jit(learner.step)
    state, first = step(state, batch)
    assert first["loss"] == 0
    _, again = step(state, batch)
    assert 0 < again["loss"] < 100
    other = batch | {"targets": batch["targets"].at[0].set(4)}
    assert 0 < step(state, other)[1]["loss"] <= again["loss"]  # one example less has a loss


@pytest.mark.parametrize("make", [jcl.nearest_class_mean, jcl.slda])
def test_heads_that_do_not_fit_are_refused(make):
    batch = {"inputs": jnp.zeros((2, 4)), "targets": jnp.zeros(2, jnp.int32)}
    for part, message in (
        (make(MODEL.features, 4), r"classes=4.*'head/kernel': \(6, 5\)"),
        (make(MODEL.features, 5, head="haed"), "nothing there"),
        (make(lambda *_: jnp.zeros((2, 3, 6)), 5), r"must be \[batch, width\]"),
    ):
        with pytest.raises(InputError, match=message):
            part.init(PARAMS, batch=batch, aux={})


def test_bad_shrinkage():
    with pytest.raises(InputError, match=r"a number in \(0, 1\]"):
        jcl.slda(MODEL.features, 5, shrinkage=0.0)


def test_padding_does_not_count_in_features():
    def features(params, inputs, key=None, *, attention_mask=None):
        real = jnp.ones(inputs.shape) if attention_mask is None else attention_mask
        return jnp.einsum("blw,bl->bw", params["table"][inputs], real)

    def apply(params, inputs, key=None, *, attention_mask=None):
        hidden = features(params, inputs, attention_mask=attention_mask)
        return hidden @ params["head"]["kernel"] + params["head"]["bias"]

    draw = np.random.default_rng(0)
    params = {
        "table": jnp.asarray(draw.normal(size=(9, 4)), jnp.float32),
        "head": {"kernel": jnp.ones((4, 3)), "bias": jnp.zeros(3)},
    }
    inputs, mask = draw.integers(0, 9, (6, 5)), np.arange(5) < draw.integers(1, 5, (6, 1))
    batch = {"inputs": inputs, "targets": np.arange(6) % 3, "attention_mask": mask}
    batch = jax.tree.map(lambda leaf: leaf.astype(np.int32), batch)
    other = batch | {"inputs": np.where(mask, batch["inputs"], 8).astype(np.int32)}
    stacked = lambda batch: jax.tree.map(lambda leaf: leaf[None], batch)
    for part in (
        jcl.nearest_class_mean(features, 3),
        jcl.slda(features, 3),
        jcl.feature_distillation(features, 1.0),
        jcl.replay(jcl.memory.herding(3, 3, features), 2, insert="boundary"),
    ):
        learner = jcl.learner(jcl.losses.classify(apply), jcl.chain(part, optax.sgd(0.1)))
        ends = []
        for given in (batch, other):
            state = learner.init(jax.random.key(0), params, given)
            state = learner.consolidate(learner.step(state, given)[0], stacked(given))
            state, _ = learner.step(state, given)
            ends.append([state.params, jax.tree.map(jnp.sum, learner.predict(state, batch))])
        jax.tree.map(np.testing.assert_array_equal, *ends)


def moving(params, inputs, key=None):
    return inputs + params["moved"]


def test_slda_replay_moves_the_means_as_far_as_the_features_went():
    apply = lambda params, inputs, key=None: (
        moving(params, inputs) @ params["head"]["kernel"] + params["head"]["bias"]
    )
    head = {"kernel": jnp.zeros((4, 5)), "bias": jnp.zeros(5)}
    params = {"moved": jnp.zeros(4), "head": head}
    batch = {"inputs": jnp.asarray(INPUTS), "targets": jnp.asarray(TARGETS)}
    part = jcl.slda_replay(moving, 5, capacity=15, size=4, shrinkage=0.1)
    learner = jcl.learner(jcl.losses.classify(apply), jcl.chain(part, jcl.freeze("*")))
    state = learner.init(jax.random.key(0), params, batch)
    state, first = learner.step(state, batch)
    plain = jcl.learner(
        jcl.losses.classify(apply),
        jcl.chain(jcl.freeze("*"), jcl.slda(moving, 5, shrinkage=0.1)),
    )
    expected, _ = plain.step(plain.init(None, params, batch), batch)
    for one, other in zip(state.strategy[0].discriminant[0], expected.strategy[1][0], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    before = learner.predict(state, {"inputs": batch["inputs"]})["logits"]
    assert first["replay"] == 0
    move = jnp.array([1.0, -2.0, 3.0, 0.5])
    state = state._replace(params={**params, "moved": move})
    lagging = learner.predict(state, {"inputs": batch["inputs"]})["logits"]
    batches = jax.tree.map(lambda leaf: leaf[None], batch)
    for _ in range(2):  # the second boundary finds nothing to move
        state = learner.consolidate(state, batches)
        mean, count = state.strategy[0].discriminant.means
        np.testing.assert_allclose(mean[:3], expected.strategy[1].means.mean[:3] + move, atol=1e-5)
        assert not np.any(mean[3:])
        assert count.tolist() == np.bincount(TARGETS, minlength=5).tolist()
    after = learner.predict(state, {"inputs": batch["inputs"]})["logits"]
    right = lambda logits: np.mean(np.argmax(logits, axis=1) == TARGETS)
    assert right(after) == right(before) > right(lagging) + 0.1
    _, metrics = learner.step(state, batch)
    assert metrics["replay"] > 0


def test_slda_replay_answers_by_a_second_head_that_follows_the_drift():
    expand = jcl.models.random_expansion(6, 12)
    wide = jcl.models.second_head(MODEL, "wide", expand, width=12, classes=5)
    part = jcl.slda_replay(
        MODEL.features, 5, capacity=40, size=4, shrinkage=0.1, answer="wide", expand=expand
    )
    learner = jcl.learner(
        jcl.losses.classify(MODEL.apply, answer=wide.apply),
        jcl.chain(part, jcl.only("layer_*", optax.sgd(0.05)), jcl.freeze("*", but="layer_*")),
    )
    params = {**PARAMS, "wide": wide.init(jax.random.key(0))["wide"]}
    batch = {"inputs": jnp.asarray(INPUTS), "targets": jnp.asarray(TARGETS)}
    state, _ = jax.jit(learner.step)(learner.init(jax.random.key(0), params, batch), batch)
    at_first = np.asarray(expand(MODEL.features(PARAMS, batch["inputs"])), np.float64)
    state, _ = jax.jit(learner.step)(state, batch)  # the features move; the memory holds the old
    stacked = jax.tree.map(lambda leaf: leaf[None], batch)
    before = state.strategy[0]
    after = learner.consolidate(state, stacked).strategy[0]
    now = np.asarray(expand(MODEL.features(state.params, batch["inputs"])), np.float64)
    assert np.abs(now - at_first).max() > 0.01
    memory = before.memory
    kept, labels = memory.items["inputs"], np.asarray(memory.items["targets"])
    filled = np.asarray(jcl.memory.class_balanced(40, 5).filled(memory)) > 0
    moved = np.asarray(expand(MODEL.features(state.params, kept))) - np.asarray(
        expand(memory.items["stored_features"])
    )
    for label in range(3):
        drift = moved[filled & (labels == label)].mean(axis=0)
        found = after.answers.means.mean[label] - before.answers.means.mean[label]
        np.testing.assert_allclose(found, drift, rtol=1e-3, atol=1e-5)
    state = learner.consolidate(state, stacked)
    kernel, bias, _ = state.strategy[0].answers.solved
    logits = learner.predict(state, {"inputs": batch["inputs"]})["logits"]
    expected = np.asarray(expand(MODEL.features(state.params, batch["inputs"]))) @ kernel + bias
    np.testing.assert_allclose(logits[:, :3], expected[:, :3], rtol=1e-4, atol=1e-4)
    assert np.all(logits[:, 3:] < -1e8)
