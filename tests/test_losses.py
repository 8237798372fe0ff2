"""Losses and measures against hand-computed numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcl import InputError
from jcl.losses import accuracy, bits_per_byte, causal_lm, classify, masked_lm

LOG = np.log
# Two blocks of two targets over three tokens, as probabilities.
CHANCES = np.array([[[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]], [[0.8, 0.1, 0.1], [0.25, 0.25, 0.5]]])
TARGETS = jnp.array([[0, 2], [1, 2]])
EACH = -LOG(np.array([[0.5, 0.7], [0.1, 0.5]]))


def apply(params, inputs, key=None):
    return params + jnp.log(inputs) + 7.0  # a shift of all logits changes nothing


BATCH = {"inputs": jnp.asarray(CHANCES, jnp.float32), "targets": TARGETS}


def test_causal_lm_is_the_mean_over_counted_targets():
    loss, aux = causal_lm(apply)(0.0, BATCH, None)
    np.testing.assert_allclose(loss, EACH.mean(), rtol=1e-6)
    np.testing.assert_allclose(aux["losses"], EACH.mean(axis=1), rtol=1e-6)
    assert aux["logits"].shape == (2, 2, 3)
    masked = BATCH | {"mask": jnp.array([[1.0, 0.0], [1.0, 1.0]])}
    loss, aux = causal_lm(apply)(0.0, masked, None)
    np.testing.assert_allclose(loss, (EACH[0, 0] + EACH[1].sum()) / 3, rtol=1e-6)
    np.testing.assert_allclose(aux["losses"], [EACH[0, 0], EACH[1].mean()], rtol=1e-6)


def test_masked_lm_counts_the_masked_positions_and_asks_for_them():
    masked = BATCH | {"mask": jnp.array([[0.0, 1.0], [1.0, 1.0]])}
    loss, aux = masked_lm(apply)(0.0, masked, None)
    np.testing.assert_allclose(loss, (EACH[0, 1] + EACH[1].sum()) / 3, rtol=1e-6)
    np.testing.assert_allclose(aux["losses"], [EACH[0, 1], EACH[1].mean()], rtol=1e-6)
    with pytest.raises(InputError, match="masked_lm: the batch has no mask"):
        masked_lm(apply)(0.0, BATCH, None)
    unlabelled = {"inputs": BATCH["inputs"]}
    assert list(masked_lm(apply)(0.0, unlabelled, None)[1]) == ["logits"]


def test_the_attention_mask_reaches_apply_by_name_and_only_where_there_is_one():
    def padded(params, inputs, key=None, *, attention_mask):
        return apply(params, inputs) * attention_mask[..., None]  # padding: equal chances

    batch = BATCH | {"attention_mask": jnp.array([[1, 0], [1, 1]]), "mask": jnp.ones((2, 2))}
    expected = np.where([[False, True], [False, False]], LOG(3), EACH)
    for loss_fn in (causal_lm, masked_lm):
        _, aux = loss_fn(padded)(0.0, batch, None)
        np.testing.assert_allclose(aux["losses"], expected.mean(axis=1), rtol=1e-6)
    bits, _ = bits_per_byte(padded, np.ones(3)).function(0.0, batch)
    np.testing.assert_allclose(bits, expected.sum() / LOG(2), rtol=1e-6)

    rows = {"inputs": BATCH["inputs"][1], "attention_mask": jnp.array([1, 0])}
    rows["targets"] = jnp.array([0, 2])
    _, aux = classify(padded)(0.0, rows, None)
    np.testing.assert_allclose(aux["losses"], [-LOG(0.8), LOG(3)], rtol=1e-6)
    right, _ = accuracy(padded).function(0.0, rows)
    assert float(right) == 1  # all classes are as likely in row 1, and the first is taken
    with pytest.raises(TypeError, match="attention_mask"):
        classify(padded)(0.0, {"inputs": rows["inputs"], "targets": rows["targets"]}, None)


def test_nothing_counted_is_zero_and_not_nan():
    batch = BATCH | {"mask": jnp.zeros((2, 2))}
    loss_fn = causal_lm(apply)
    assert float(loss_fn(0.0, batch, None)[0]) == 0
    assert float(jax.grad(lambda shift: loss_fn(shift * BATCH["inputs"], batch, None)[0])(1.0)) == 0


def test_absent_targets_leave_the_logits():
    for loss_fn, inputs in [(causal_lm(apply), CHANCES), (classify(apply), CHANCES[0])]:
        loss, aux = loss_fn(0.0, {"inputs": jnp.asarray(inputs)}, None)
        assert float(loss) == 0
        assert list(aux) == ["logits"]


def test_classify_and_label_mask():
    batch = {"inputs": BATCH["inputs"][0], "targets": jnp.array([0, 1])}
    loss, aux = classify(apply)(0.0, batch, None)
    np.testing.assert_allclose(aux["losses"], -LOG([0.5, 0.2]), rtol=1e-6)
    np.testing.assert_allclose(loss, -LOG([0.5, 0.2]).mean(), rtol=1e-6)
    masked = batch | {"label_mask": jnp.array([[True, True, False], [True, True, True]])}
    _, aux = classify(apply)(0.0, masked, None)
    np.testing.assert_allclose(aux["losses"], -LOG([0.5 / 0.75, 0.2]), rtol=1e-6)


def test_the_gradient_of_the_cross_entropy_is_softmax_minus_target():
    def loss(logits):
        return causal_lm(lambda params, inputs, key: params)(logits, BATCH, None)[0]

    logits = jnp.log(BATCH["inputs"])
    expected = (CHANCES - np.eye(3)[np.asarray(TARGETS)]) / 4
    np.testing.assert_allclose(jax.grad(loss)(logits), expected, atol=1e-6)


def test_bits_per_byte_divides_by_bytes():
    """Token 0 has one byte, token 1 three, token 2 is a special without any."""
    measure = bits_per_byte(apply, np.array([1, 3, 0]))
    assert (measure.name, measure.higher_is_better) == ("bits_per_byte", False)
    bits, count = measure.function(0.0, BATCH)
    np.testing.assert_allclose(bits, EACH.sum() / LOG(2), rtol=1e-6)
    assert float(count) == 1 + 0 + 3 + 0
    bits, count = measure.function(0.0, BATCH | {"mask": jnp.array([[1.0, 0.0], [0.0, 1.0]])})
    np.testing.assert_allclose(bits, (EACH[0, 0] + EACH[1, 1]) / LOG(2), rtol=1e-6)
    assert float(count) == 1


def test_accuracy_counts_the_masked_in():
    measure = accuracy(apply)
    batch = {"inputs": BATCH["inputs"][:, 0], "targets": jnp.array([0, 1])}
    assert [float(x) for x in measure.function(0.0, batch)] == [1, 2]
    assert [float(x) for x in measure.function(0.0, batch | {"mask": jnp.array([1.0, 0.0])})] == [
        1,
        1,
    ]
    only_one = batch | {"label_mask": jnp.array([[1.0, 1, 1], [0, 1, 1]])}
    assert [float(x) for x in measure.function(0.0, only_one)] == [2, 2]


def test_an_own_target_is_never_masked_in_the_loss():
    logits = jnp.array([[1.0, 2.0, 3.0]])
    loss_fn = classify(lambda params, inputs, key: logits)
    batch = {"inputs": jnp.zeros((1, 1)), "targets": jnp.array([2]),
             "label_mask": jnp.array([[True, True, False]])}  # fmt: skip
    loss, aux = loss_fn({}, batch, None)
    np.testing.assert_allclose(loss, jnp.log(jnp.exp(logits).sum()) - 3.0, rtol=1e-6)
    assert aux["logits"][0, 2] < -1e8
    shown = loss_fn({}, {**batch, "targets": jnp.array([0])}, None)[0]
    np.testing.assert_allclose(shown, jnp.log(jnp.exp(1.0) + jnp.exp(2.0)) - 1.0, rtol=1e-6)
