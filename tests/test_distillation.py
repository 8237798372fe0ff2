"""LwF and feature distillation against what is computed by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

import jcl
from jcl import InputError
from jcl.strategies.lwf import mean_over_counted


def chances(logits, temperature):
    powers = np.exp(np.asarray(logits, np.float64) / temperature)
    return powers / powers.sum(axis=-1, keepdims=True)


def taught(strategy, loss_fn, params, batch, old):
    """The state after a task with those targets, and a function of new params to the term."""
    _, aux = loss_fn(params, batch, None)
    state = strategy.init(params, batch=batch, aux=aux)
    _, state = strategy.update({}, state, params, batch={"targets": jnp.asarray(old)})

    def term(state, params, batch=batch):
        _, aux = loss_fn(params, batch, None)
        terms = strategy.loss(state, params, batch=batch, aux=aux, loss_fn=loss_fn, key=None)
        return next(iter(terms.values()))

    return state, strategy.consolidate(state, params)[0], term


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_lwf_is_the_scaled_divergence(temperature):
    teacher, student, batch = toy.params(0), toy.params(1), toy.batch(0)
    before, after, term = taught(
        jcl.lwf(3.0, temperature=temperature), toy.loss_fn, teacher, batch, [0, 1, 2]
    )
    assert float(term(before, student)) == 0  # no boundary yet
    p, q = (
        chances(toy.loss_fn(params, batch, None)[1]["logits"], temperature)
        for params in (teacher, student)
    )
    expected = 3 * temperature**2 * np.mean((p * np.log(p / q)).sum(axis=1))
    np.testing.assert_allclose(term(after, student), expected, rtol=1e-5)
    np.testing.assert_allclose(term(after, teacher), 0, atol=1e-6)

    def cross_entropy(params):
        logits = toy.loss_fn(params, batch, None)[1]["logits"] / temperature
        return -3 * temperature**2 * jnp.mean((p * jax.nn.log_softmax(logits)).sum(axis=1))

    jax.tree.map(
        lambda found, wanted: np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5),
        jax.grad(lambda params: term(after, params))(student),
        jax.grad(cross_entropy)(student),
    )


def test_lwf_distils_the_old_classes_only():
    teacher, student, batch = toy.params(0), toy.params(1), toy.batch(0)
    _, after, term = taught(jcl.lwf(1.0), toy.loss_fn, teacher, batch, [0, 2])
    np.testing.assert_array_equal(after.old, [True, False, True])
    p, q = (
        chances(toy.loss_fn(params, batch, None)[1]["logits"][:, jnp.array([0, 2])], 2.0)
        for params in (teacher, student)
    )
    expected = 4 * np.mean((p * np.log(p / q)).sum(axis=1))
    np.testing.assert_allclose(term(after, student), expected, rtol=1e-5)


def masked_loss(params, batch, key):
    return jcl.losses.classify(lambda params, inputs, key: inputs @ params["w"])(params, batch, key)


def test_lwf_lifts_the_label_mask_of_the_new_task():
    """The old classes, 0 and 1, are hidden in a batch of class 2 but distilled; nothing is NaN."""
    teacher = {"w": jax.random.normal(jax.random.key(0), (5, 3))}
    student = {"w": jax.random.normal(jax.random.key(1), (5, 3))}
    batch = {"inputs": toy.batch(0)["inputs"], "targets": jnp.full(16, 2)}
    masked = {**batch, "label_mask": jnp.tile(jnp.array([0.0, 0.0, 1.0]), (16, 1))}
    _, after, term = taught(jcl.lwf(1.0), masked_loss, teacher, batch, [0, 1])
    value, gradient = jax.value_and_grad(lambda params: term(after, params, masked))(student)
    np.testing.assert_allclose(value, term(after, student), rtol=1e-6)
    assert float(value) > 0.01
    assert np.isfinite(gradient["w"]).all()
    np.testing.assert_array_equal(gradient["w"][:, 2], 0)
    assert np.abs(gradient["w"][:, :2]).min() > 0


def test_lwf_where_a_view_masks_labels_is_finite():
    """A mask that the strategy cannot lift, of an old class even: no NaN."""

    def view(state, params, batch):
        return params, {**batch, "label_mask": jnp.tile(jnp.array([0.0, 1.0, 1.0]), (16, 1))}

    learner = jcl.learner(
        masked_loss, jcl.chain(jcl.strategy(name="mask", view=view), jcl.lwf(1.0), optax.sgd(0.1))
    )
    batch = {"inputs": toy.batch(0)["inputs"], "targets": jnp.arange(16) % 3}
    state = learner.init(None, {"w": jnp.ones((5, 3))}, batch)
    state, _ = learner.step(state, batch)
    state = learner.consolidate(state, jax.tree.map(lambda leaf: leaf[None], batch))
    for _ in range(2):
        state, metrics = learner.step(state, batch)
        assert np.isfinite(metrics["lwf"])
    assert np.isfinite(state.params["w"]).all()


def test_feature_distillation_is_half_the_squared_distance():
    teacher, student, batch = toy.params(0), toy.params(1), toy.batch(0)
    strategy = jcl.feature_distillation(toy.features, 3.0)
    before, after, term = taught(strategy, toy.loss_fn, teacher, batch, [0])
    assert float(term(before, student)) == 0
    distance = toy.features(student, batch["inputs"]) - toy.features(teacher, batch["inputs"])
    np.testing.assert_allclose(
        term(after, student), 1.5 * np.mean((np.asarray(distance) ** 2).sum(axis=1)), rtol=1e-5
    )
    gradient = jax.grad(lambda params: term(after, params))(student)
    assert np.abs(gradient["body"]["kernel"]).max() > 0
    np.testing.assert_array_equal(gradient["head"]["kernel"], 0)


def test_only_counted_rows_count():
    rows = jnp.array([[1.0, 2.0], [3.0, 5.0]])
    np.testing.assert_allclose(mean_over_counted(rows, {}), 11 / 4)
    np.testing.assert_allclose(mean_over_counted(rows, {"mask": jnp.array([0, 1])}), 4)
    mask = jnp.array([[1, 0], [1, 1]])
    np.testing.assert_allclose(mean_over_counted(rows, {"mask": mask}), 3)
    np.testing.assert_allclose(mean_over_counted(rows, {"mask": 0 * mask}), 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: jcl.lwf(-1.0), r"a number in \[0, inf"),
        (lambda: jcl.lwf(1.0, temperature=0.0), r"a number in \(0, inf"),
        (lambda: jcl.feature_distillation(toy.features, -1.0), r"a number in \[0, inf"),
        (lambda: jcl.feature_distillation(2.0, 1.0), "such as model.features"),
        (
            lambda: jcl.learner(
                toy.loss_fn,
                jcl.chain(
                    jcl.only("body/*", jcl.feature_distillation(toy.features, 1.0)), optax.sgd(0.1)
                ),
            ).init(None, toy.params(), toy.batch(0)),
            "cannot stand in only",
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(InputError, match=message):
        make()
