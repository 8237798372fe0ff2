"""Losses and measures against hand-computed numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from everything import ALL

import jcl
from jcl import InputError
from jcl.losses import accuracy, bits_per_byte, causal_lm, classify, masked_lm
from jcl.models import (
    BertConfig,
    GPT2Config,
    LlamaConfig,
    Precision,
    bert,
    gpt2,
    llama,
    lora,
    module_dropout,
    prompts,
)

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
    right, counted = accuracy(apply).function(0.0, masked)
    assert (right, counted) == (2, 3)
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


@pytest.mark.parametrize("target", [-100, -1, 3, 255])
def test_a_target_that_does_not_count_may_be_any_number(target):
    mask = jnp.array([[1.0, 0.0], [1.0, 1.0]])
    plain = BATCH | {"mask": mask}
    odd = plain | {"targets": jnp.where(mask > 0, TARGETS, target)}
    for loss_fn in (causal_lm(apply), masked_lm(apply), causal_lm(HEADED, chunk=2)):
        (loss, aux), slope = jax.value_and_grad(loss_fn, has_aux=True)(1.0, odd, None)
        (expected, known), right = jax.value_and_grad(loss_fn, has_aux=True)(1.0, plain, None)
        np.testing.assert_array_equal([loss, slope], [expected, right])
        np.testing.assert_array_equal(aux["losses"], known["losses"])
        assert np.isfinite(loss)
    for measure in (bits_per_byte(apply, np.array([1, 2, 4])),
                    bits_per_byte(HEADED, np.array([1, 2, 4]), chunk=2)):  # fmt: skip
        found, expected = measure.function(1.0, odd), measure.function(1.0, plain)
        np.testing.assert_array_equal(found, expected)
    rows = {"inputs": BATCH["inputs"][0], "targets": jnp.array([0, target]), "mask": mask[0]}
    loss, aux = classify(apply)(0.0, rows, None)
    np.testing.assert_allclose([loss, *aux["losses"]], [-LOG(0.5), -LOG(0.5), 0], rtol=1e-6)
    assert accuracy(apply).function(0.0, rows)[1] == 1


HEADED = jcl.models.Model(
    None, apply, None, features=lambda params, inputs, key=None: jnp.log(inputs),
    head=lambda params, hidden, key=None: params + hidden,
)  # fmt: skip


def test_a_class_that_the_model_hides_has_no_loss():
    logits = jnp.array([[2.0, 0.0, jcl.losses.HIDDEN], [0.0, 1.0, jcl.losses.HIDDEN]])
    loss_fn = classify(lambda params, inputs, key=None: params * inputs)
    batch = {"inputs": logits, "targets": jnp.array([1, 2])}
    (loss, aux), slope = jax.value_and_grad(loss_fn, has_aux=True)(1.0, batch, None)
    expected = LOG(1 + np.exp(2))
    np.testing.assert_allclose(aux["losses"], [expected, 0], rtol=1e-6)
    np.testing.assert_allclose(loss, expected / 2, rtol=1e-6)
    np.testing.assert_allclose(slope, 0.5 * 2 / (1 + np.exp(-2)), rtol=1e-6)
    half = classify(lambda params, inputs, key=None: inputs.astype(jnp.bfloat16))
    assert half(1.0, batch, None)[1]["losses"][1] == 0


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


TOKENS = jax.random.randint(jax.random.key(0), (3, 11), 1, 61)
SMALL = {"positions": 16, "width": 8, "layers": 1, "heads": 2}
LANGUAGE_MODELS = {
    "gpt2": lambda: gpt2(GPT2Config(61, dropout=0.5, **SMALL)),
    "llama": lambda: llama(LlamaConfig(61, inner=8, **SMALL)),
    "llama tied": lambda: llama(LlamaConfig(61, inner=8, tied=True, **SMALL)),
    "bert": lambda: bert(BertConfig(61, inner=8, **SMALL)),
    "lora": lambda: lora(
        llama(LlamaConfig(61, inner=8, **SMALL)), rank=2, alpha=2.0, where=("*attn*", "lm_head")
    ),
    "prompts": lambda: prompts(gpt2, GPT2Config(61, dropout=0.5, **SMALL), length=3),
    "module dropout": lambda: module_dropout(gpt2(GPT2Config(61, **SMALL)), {"h_0/*": 0.5}),
    "bfloat16": lambda: gpt2(
        GPT2Config(61, precision=Precision("bfloat16", "bfloat16"), remat=True, **SMALL)
    ),
}


def language_batch(**more):
    mask = jax.random.bernoulli(jax.random.key(3), 0.6, TOKENS.shape)
    attention_mask = jnp.ones(TOKENS.shape).at[0, 8:].set(0)
    return {"inputs": TOKENS, "targets": jnp.roll(TOKENS, -1, axis=1), "mask": mask,
            "attention_mask": attention_mask, **more}  # fmt: skip


def perturbed(model):
    leaves, tree = jax.tree.flatten(jax.jit(model.init)(jax.random.key(1)))
    random = np.random.default_rng(0)
    noise = [
        leaf + jnp.asarray(0.3 * random.standard_normal(leaf.shape), leaf.dtype) for leaf in leaves
    ]
    return tree.unflatten(noise)


@pytest.mark.parametrize(
    ("name", "chunk"),
    [
        *((name, 12) for name in (LANGUAGE_MODELS if ALL else ("gpt2", "bert", "lora"))),
        ("gpt2", 1),
        ("gpt2", 1000),
    ],
)
def test_a_loss_in_chunks_is_the_loss(name, chunk):
    model = LANGUAGE_MODELS[name]()
    params, batch, key = perturbed(model), language_batch(), jax.random.key(2)
    tolerance = 1e-2 if name == "bfloat16" else 1e-5
    for make in (causal_lm, masked_lm) if (name, chunk) == ("gpt2", 12) else (causal_lm,):
        whole, chunked = (
            jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(params, batch, key)
            for loss_fn in (make(model.apply), make(model, chunk=chunk))
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(
                a.astype(jnp.float32), b.astype(jnp.float32), rtol=tolerance, atol=tolerance
            ),
            chunked, whole,
        )  # fmt: skip
        if make is causal_lm:
            unlabelled = {name: leaf for name, leaf in batch.items() if name != "targets"}
            loss, aux = jax.jit(make(model, chunk=chunk))(params, unlabelled, None)
            assert float(loss) == 0
            assert list(aux) == ["logits"]
    measures = [
        jax.jit(bits_per_byte(given, np.ones(61), chunk=size).function)(params, batch)
        for given, size in ((model.apply, None), (model, chunk))
    ]
    np.testing.assert_allclose(*measures, rtol=tolerance)


def test_a_model_may_stand_for_its_apply():
    model = LANGUAGE_MODELS["gpt2"]()
    losses = [
        make(given)(perturbed(model), language_batch(), None)[0]
        for make in (causal_lm, masked_lm)
        for given in (model, model.apply)
    ]
    assert len(set(map(float, losses))) == 1


def temporary(step, *arguments):
    return jax.jit(step).lower(*arguments).compile().memory_analysis().temp_size_in_bytes


def test_logits_never_stand_whole_in_memory():
    """Unless a strategy reads them: here DER's memory of the largest."""
    vocab, tokens = 20_000, jnp.zeros((2, 64), jnp.int32)
    logits = 4 * tokens.size * vocab
    model = gpt2(GPT2Config(vocab, positions=64, width=8, layers=1, heads=2, dropout=0.0))
    batch = {"inputs": tokens, "targets": tokens}
    params = jax.jit(model.init)(jax.random.key(0))

    def needed(loss_fn, *parts):
        learner = jcl.learner(loss_fn, jcl.chain(*parts, optax.sgd(0.1)))
        return temporary(learner.step, learner.init(jax.random.key(1), params, batch), batch)

    chunked = causal_lm(model, chunk=8)
    assert needed(causal_lm(model.apply)) > logits
    assert needed(chunked) < 0.8 * logits
    assert needed(chunked, jcl.der(4, 2, 0.5, top=4)) > logits
    measure = bits_per_byte(model, np.ones(vocab), chunk=8)
    assert temporary(measure.function, params, batch) < 0.3 * logits
    learner = jcl.learner(chunked, optax.sgd(0.1))
    state = learner.init(None, params, batch)
    assert temporary(learner.evaluate, state, batch) < 0.3 * logits


def test_logits_read_by_a_strategy_are_those_of_the_model():
    model = LANGUAGE_MODELS["gpt2"]()
    params, results = perturbed(model), []
    for loss_fn in (causal_lm(model.apply), causal_lm(model, chunk=4)):
        learner = jcl.learner(loss_fn, jcl.chain(jcl.lwf(1.0), jcl.ewc(1.0), optax.sgd(0.1)))
        state = learner.init(None, params, language_batch())
        stacked = jax.tree.map(lambda leaf: leaf[None], language_batch())
        state = jax.jit(learner.consolidate)(jax.jit(learner.step)(state, language_batch())[0],
                                             stacked)  # fmt: skip
        results.append(jax.jit(learner.step)(state, language_batch())[0].params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), *results)


def test_what_a_chunk_needs():
    model = LANGUAGE_MODELS["gpt2"]()
    for make in (
        causal_lm,
        masked_lm,
        lambda given, chunk: bits_per_byte(given, np.ones(61), chunk=chunk),
    ):
        with pytest.raises(InputError, match=r"chunk=8.*give the model itself"):
            make(model.apply, chunk=8)
        with pytest.raises(InputError, match="chunk=0"):
            make(model, chunk=0)
    with pytest.raises(InputError, match="without a head of tokens"):
        causal_lm(bert(BertConfig(61, inner=8, head="features", **SMALL)), chunk=8)
