"""Performer against exact attention and plain evaluations of its formula; Linformer; their place
in the models."""

import dataclasses
import functools
import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import jcl
from jcl import InputError
from jcl.models import (
    BertConfig,
    GPT2Config,
    Linformer,
    LlamaConfig,
    Performer,
    Precision,
    bert,
    efficient_attention,
    generate,
    gpt2,
    llama,
    wrapping,
)
from jcl.models.efficient_attention import orthogonal, performer

PERFORMER = Performer(features=32)
SMALL = {"positions": 16, "width": 16, "layers": 1, "heads": 4, "dropout": 0.0}
MODELS = {
    "gpt2": (gpt2, GPT2Config(31, attention=PERFORMER, **SMALL)),
    "llama": (llama, LlamaConfig(31, inner=24, key_value_heads=2, attention=PERFORMER, **SMALL)),
    "bert": (bert, BertConfig(31, inner=24, attention=PERFORMER, **SMALL)),
    "bert linformer": (bert, BertConfig(31, inner=24, attention=Linformer(rank=4), **SMALL)),
}
DECODERS = ["gpt2", "llama"]
TOKENS = jax.random.randint(jax.random.key(0), (3, 16), 1, 31)
every_model = pytest.mark.parametrize("name", MODELS)
both_ways = pytest.mark.parametrize("causal", [False, True])


def made(name, **changes):
    make, config = MODELS[name]
    return make(dataclasses.replace(config, **changes))


@functools.cache
def initial(name):
    """Weights large enough for attention to differ from a mean."""
    params = jax.jit(made(name).init)(jax.random.key(1))
    return jax.tree.map(lambda leaf: leaf * 8 if leaf.ndim > 1 else leaf, params)


@functools.cache
def compiled(name, **changes):
    model = made(name, **changes)
    return jax.jit(lambda params, tokens, key=None, mask=None: model.apply(
        params, tokens, key, attention_mask=mask))  # fmt: skip


def drawn(length, width=8, batch=2, heads=2, size=0.7, seed=0):
    """Queries [..., length, width] divided by the root of the width, keys and values
    [..., width, length]."""
    query, keys, values = size * jax.random.normal(
        jax.random.key(seed), (3, batch, heads, length, width)
    )
    return query / width**0.5, keys.swapaxes(2, 3), values.swapaxes(2, 3)


def naive(weights, values, mask, causal):
    """The weighted mean by all pairs, [batch, heads, length, width]."""
    length = weights.shape[-1]
    if causal:
        weights = weights * jnp.tri(length)
    if mask is not None:
        weights = weights * mask[:, None, None, :]
    out = jnp.einsum("bhqk,bhdk->bhqd", weights, values)
    return out / jnp.maximum(weights.sum(axis=-1, keepdims=True), 1e-18)


def exact(query, keys, values, mask=None, causal=False):
    return naive(jnp.exp(jnp.einsum("bhqd,bhdk->bhqk", query, keys)), values, mask, causal)


def by_all_pairs(query, keys, values, mask, features, causal):
    """The formula as it stands, nothing taken out of the exponents."""
    root = query.shape[-1] ** 0.25

    def mapped(x):
        exponents = jnp.einsum("bhld,md->bhlm", x, features)
        return jnp.exp(exponents - 0.5 * (x**2).sum(axis=-1, keepdims=True)) / len(features) ** 0.5

    weights = jnp.einsum(
        "bhqm,bhkm->bhqk", mapped(query * root), mapped(keys.swapaxes(2, 3) / root)
    )
    return naive(weights, values, mask, causal)


def padded(length, side):
    real = jnp.arange(length) < jnp.array([length, max(length - 5, 1)])[:, None]
    return (real if side == "right" else real[:, ::-1]).astype(jnp.int32)


# The features


def independent(key, features, width):
    return jax.random.normal(key, (features, width))


def kernel_estimates(draw, features, seeds=4000, width=16):
    """Estimates of exp(x . y) by as many draws, and exp(x . y)."""
    x = jax.random.normal(jax.random.key(9), (width,))
    x = y = 0.6 * x / jnp.linalg.norm(x)

    @jax.jit
    @jax.vmap
    def estimate(key):
        w = draw(key, features, width)
        return jnp.mean(jnp.exp(w @ x - x @ x / 2) * jnp.exp(w @ y - y @ y / 2))

    return estimate(jax.random.split(jax.random.key(0), seeds)), jnp.exp(x @ y)


@pytest.mark.parametrize("features", [5, 16, 40])
def test_the_kernel_is_estimated_without_bias(features):
    estimates, expected = kernel_estimates(orthogonal, features)
    error = estimates.std() / len(estimates) ** 0.5
    assert abs(estimates.mean() - expected) < 3 * error
    assert error < 0.02 * expected  # so that a bias of a tenth would be seen


def test_orthogonal_features_are_better_than_independent_ones():
    ours, expected = kernel_estimates(orthogonal, 16)
    theirs, _ = kernel_estimates(independent, 16)
    ours, theirs = (jnp.mean((found - expected) ** 2) for found in (ours, theirs))
    assert ours < 0.8 * theirs


def test_features_are_orthogonal_in_blocks_and_as_long_as_normal_vectors():
    w = orthogonal(jax.random.key(3), 20, 8)
    assert w.shape == (20, 8)
    direction = w / jnp.linalg.norm(w, axis=1, keepdims=True)
    for start in (0, 8, 16):
        block = direction[start : start + 8]
        np.testing.assert_allclose(block @ block.T, jnp.eye(len(block)), atol=1e-5)
    assert jnp.abs(direction[:8] @ direction[8:16].T).max() > 0.1
    many = orthogonal(jax.random.key(4), 8000, 8)
    np.testing.assert_allclose(many.mean(axis=0), 0, atol=0.05)
    np.testing.assert_allclose(jnp.cov(many.T), jnp.eye(8), atol=0.06)
    # The mean square of a chi-square of 8 degrees is 8 * (8 + 2).
    np.testing.assert_allclose(((many**2).sum(axis=1) ** 2).mean(), 80, rtol=0.05)


# Performer


@functools.cache
def many_features():
    draw = jax.jit(jax.vmap(lambda key: orthogonal(key, 1024, 8)))
    return draw(jax.random.split(jax.random.key(1), 8))


@both_ways
def test_the_error_falls_as_features_grow(causal):
    inputs = drawn(24, size=0.6)
    expected = exact(*inputs, causal=causal)

    def error(features):
        one = functools.partial(performer, *inputs, None, causal=causal)
        found = jax.jit(jax.vmap(one))(many_features()[:, :features])
        return float(jnp.sqrt(jnp.mean((found - expected) ** 2) / jnp.mean(expected**2)))

    errors = [error(features) for features in (16, 64, 256, 1024)]
    # Four times the features halve it; 0.7 leaves room for chance.
    assert all(after < 0.7 * before for before, after in itertools.pairwise(errors)), errors
    assert errors[-1] < 0.15


@pytest.mark.parametrize(
    ("causal", "length", "chunk", "side"),
    [
        (False, 1, 128, None), (False, 23, 128, "left"), (False, 23, 128, "right"),
        (True, 1, 128, None), (True, 24, 8, None), (True, 23, 8, "left"), (True, 17, 8, "right"),
    ],
)  # fmt: skip
def test_it_equals_its_formula_evaluated_by_all_pairs(monkeypatch, causal, length, chunk, side):
    monkeypatch.setattr(efficient_attention, "CHUNK", chunk)
    inputs, w = drawn(length), orthogonal(jax.random.key(1), 20, 8)
    mask = None if side is None else padded(length, side)
    # Where there is padding on the left, the first positions attend to nothing.
    real = jnp.ones((2, length)) if side is None else mask
    probe = jax.random.normal(jax.random.key(5), inputs[0].shape) * real[:, None, :, None]

    def both(function):
        def value(query, keys, values):
            out = function(query, keys, values, mask, w, causal=causal)
            return (out * probe).sum(), out * real[:, None, :, None]

        return jax.jit(jax.value_and_grad(value, argnums=(0, 1, 2), has_aux=True))(*inputs)

    (_, out), gradients = both(performer)
    (_, expected), expected_gradients = both(by_all_pairs)
    assert jnp.abs(expected).max() > 0.1
    np.testing.assert_allclose(out, expected, atol=1e-5)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_no_position_sees_a_later_one_however_large(monkeypatch):
    monkeypatch.setattr(efficient_attention, "CHUNK", 8)
    (query, keys, values), w = drawn(23), orthogonal(jax.random.key(1), 20, 8)
    call = jax.jit(functools.partial(performer, causal=True))
    before = call(query, keys, values, None, w)
    for place in (11, 16):  # within a chunk, and its first
        # So large that, taken out of the exponents, it would leave nothing of the earlier keys.
        after = call(
            query, keys.at[..., place].set(200 * w[0]), values.at[..., place].add(1.0), None, w
        )
        np.testing.assert_array_equal(after[:, :, :place], before[:, :, :place])
    after = call(query, keys, values.at[..., 11].add(1.0), None, w)
    assert jnp.abs(after - before)[:, :, 11:].min(axis=(0, 1, 3)).max() > 1e-3


@both_ways
@pytest.mark.parametrize("size", [30.0, 300.0])
def test_large_queries_and_keys_give_finite_numbers(causal, size):
    inputs, w = drawn(20, size=size), orthogonal(jax.random.key(1), 20, 8)

    def value(*inputs):
        return performer(*inputs, None, w, causal=causal).sum()

    found = jax.jit(jax.value_and_grad(value, argnums=(0, 1, 2)))(*inputs)
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(found))


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_models_with_many_features_come_near_to_exact_attention(name):
    expected = compiled(name, attention=None)(initial(name), TOKENS)
    few = compiled(name)(initial(name), TOKENS) - expected
    many = compiled(name, attention=Performer(2048))(initial(name), TOKENS) - expected
    assert 0 < jnp.linalg.norm(many) < 0.3 * jnp.linalg.norm(few)
    assert jnp.linalg.norm(many) < 0.1 * jnp.linalg.norm(expected)


def test_the_params_are_those_of_exact_attention():
    for name in ("gpt2", "llama", "bert"):
        own, plain = (
            wrapping.shapes(made(name, **changes)) for changes in ({}, {"attention": None})
        )
        assert own == plain


def test_every_layer_has_features_of_its_own():
    found = []

    def intercept(following, arguments, options, context):
        if context.module.path[-1:] == ("attn",):
            found.append(efficient_attention.features_of(PERFORMER, context.module, 4, None))
        return following(*arguments, **options)

    with nn.intercept_methods(intercept):
        jax.eval_shape(made("gpt2", layers=2).init, jax.random.key(0))
    assert len(found) == 2
    assert jnp.abs(found[0] - found[1]).max() > 0.1


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_features_are_redrawn_from_the_key_where_asked(name):
    params, keys = initial(name), jax.random.split(jax.random.key(2))
    fixed = compiled(name)(params, TOKENS)
    redrawn = compiled(name, attention=Performer(features=32, redraw=True))
    one, two = (redrawn(params, TOKENS, key) for key in keys)
    assert jnp.abs(one - fixed).max() > 1e-2
    assert jnp.abs(one - two).max() > 1e-2
    np.testing.assert_array_equal(redrawn(params, TOKENS, keys[0]), one)
    if name == "gpt2":
        np.testing.assert_array_equal(redrawn(params, TOKENS), fixed)


def test_features_are_those_of_the_seed():
    params = initial("gpt2")
    fixed = compiled("gpt2")(params, TOKENS)
    np.testing.assert_array_equal(compiled("gpt2")(params, TOKENS, jax.random.key(2)), fixed)
    other = compiled("gpt2", attention=Performer(features=32, seed=1))
    assert jnp.abs(other(params, TOKENS) - fixed).max() > 1e-2


@pytest.mark.parametrize("name", DECODERS)
def test_a_later_token_does_not_change_earlier_logits(monkeypatch, name):
    monkeypatch.setattr(efficient_attention, "CHUNK", 4)
    apply = jax.jit(made(name).apply)
    before = apply(initial(name), TOKENS)
    after = apply(initial(name), TOKENS.at[:, 9].set(0))
    np.testing.assert_allclose(after[:, :9], before[:, :9], atol=1e-5)
    assert jnp.abs(after[:, 9:] - before[:, 9:]).max() > 1e-2


@every_model
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_does_not_change_real_tokens(name, side):
    if side == "left" and name.startswith("bert"):
        pytest.skip("BERT's positions count the padding on the left")
    apply, params, rows = compiled(name), initial(name), TOKENS[:, :11]
    expected = apply(params, rows)
    start = 5 if side == "left" else 0
    mask = jnp.zeros((3, 16), jnp.int32).at[:, start : start + 11].set(1)
    for filler in (0, 7):
        tokens = jnp.full((3, 16), filler).at[:, start : start + 11].set(rows)
        found = apply(params, tokens, None, mask)[:, start : start + 11]
        np.testing.assert_allclose(found, expected, atol=2e-4)


@every_model
def test_remat_and_bfloat16(name):
    params, plain = initial(name), compiled(name)(initial(name), TOKENS)
    rerun = compiled(name, remat=True)(params, TOKENS)
    np.testing.assert_allclose(rerun, plain, atol=1e-4)
    narrow = made(name, precision=Precision(compute="bfloat16"))
    found = jax.jit(narrow.apply)(params, TOKENS)
    assert found.dtype == jnp.float32
    assert 0 < jnp.linalg.norm(found - plain) / jnp.linalg.norm(plain) < 0.1

    def products(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                yield {str(each.aval.dtype) for each in equation.invars}
            for inner in jax.extend.core.jaxprs_in_params(equation.params):
                yield from products(inner)

    gradient = jax.grad(lambda params: narrow.apply(params, TOKENS).sum())
    assert all(each == {"bfloat16"} for each in products(jax.make_jaxpr(gradient)(params).jaxpr))


@every_model
def test_it_learns(name):
    model = made(name)
    masked = {"mask": jnp.ones(TOKENS.shape)}
    batch = {"inputs": TOKENS, "targets": jnp.roll(TOKENS, -1, axis=1), **masked}
    make = jcl.losses.masked_lm if name.startswith("bert") else jcl.losses.causal_lm
    learner = jcl.learner(make(model.apply), optax.adamw(1e-2))
    params = jax.jit(model.init)(jax.random.key(1))
    state = learner.init(jax.random.key(2), params, batch)
    step, losses = jax.jit(learner.step), []
    for _ in range(20):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert step._cache_size() == 1
    assert losses[-1] < 0.8 * losses[0]
    if name == "bert linformer":
        for table in ("key_projection", "value_projection"):
            before, after = (each["layer_0"]["attn"][table] for each in (params, state.params))
            assert jnp.abs(after - before).max() > 1e-3


def test_redrawn_features_train_in_one_trace_over_seeds():
    model = made("gpt2", attention=Performer(features=16, redraw=True))
    learner = jcl.learner(jcl.losses.causal_lm(model.apply), optax.sgd(0.0))
    batch = {"inputs": TOKENS, "targets": jnp.roll(TOKENS, -1, axis=1)}
    keys = jax.random.split(jax.random.key(2))
    states = jax.vmap(lambda key: learner.init(key, initial("gpt2"), batch))(keys)
    step = jax.jit(jax.vmap(learner.step, in_axes=(0, None)))
    states, first = step(states, batch)
    _, second = step(states, batch)
    assert step._cache_size() == 1
    # The params stay the same: only the features differ, by seed and by step.
    losses = np.asarray([first["loss"], second["loss"]])
    assert len(np.unique(losses)) == 4


@pytest.mark.parametrize("name", DECODERS)
def test_generation_computes_all_tokens_at_every_step(name):
    model, params = made(name), initial(name)
    assert model.decode is None
    found = generate(model, params, TOKENS[:, :5], steps=4).tokens
    tokens = TOKENS.at[:, 5:].set(0)
    for place in range(5, 9):
        logits = compiled(name)(params, tokens)[:, place - 1]
        tokens = tokens.at[:, place].set(logits.argmax(axis=-1))
    np.testing.assert_array_equal(found, tokens[:, 5:9])


# Linformer


def test_linformer_of_full_rank_and_identities_is_exact_attention():
    plain = initial("bert")
    projections = {"key_projection": jnp.eye(16), "value_projection": jnp.eye(16)}
    layer = {**plain["layer_0"], "attn": {**plain["layer_0"]["attn"], **projections}}
    found = compiled("bert", attention=Linformer(rank=16))({**plain, "layer_0": layer}, TOKENS)
    expected = compiled("bert", attention=None)(plain, TOKENS)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    projections["value_projection"] = jnp.eye(16)[::-1]
    layer = {**plain["layer_0"], "attn": {**plain["layer_0"]["attn"], **projections}}
    found = compiled("bert", attention=Linformer(rank=16))({**plain, "layer_0": layer}, TOKENS)
    assert jnp.abs(found - expected).max() > 1e-2


def test_linformers_projections_are_two_of_each_attention():
    attention = made("bert linformer", layers=2).init(jax.random.key(0))
    tables = [
        attention[layer]["attn"][table]
        for layer in ("layer_0", "layer_1")
        for table in ("key_projection", "value_projection")
    ]
    assert {table.shape for table in tables} == {(4, 16)}
    assert all(jnp.abs(one - other).max() > 0.1 for one, other in itertools.combinations(tables, 2))


def test_linformers_dropout_acts_with_a_key():
    apply = compiled("bert linformer", dropout=0.3)
    params = initial("bert linformer")
    one, two = (apply(params, TOKENS, key) for key in jax.random.split(jax.random.key(3)))
    assert jnp.abs(one - two).max() > 1e-2


# Checkpoints and refusals


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_a_checkpoint_of_exact_attention_is_loaded_into_it(tmp_path, name):
    params = initial(name)
    jcl.models.save_pretrained(tmp_path, made(name, attention=None), params)
    model, found = jcl.models.from_pretrained(tmp_path, attention=PERFORMER, dropout=0.0)
    assert model.config == made(name).config
    jax.tree.map(np.testing.assert_array_equal, found, params)
    with pytest.raises(InputError, match="Hugging Face has no model with attention=Performer"):
        jcl.models.save_pretrained(tmp_path / "new", model, found)
    exact = model._replace(config=dataclasses.replace(model.config, attention=None))
    jcl.models.save_pretrained(tmp_path / "new", exact, found)


def test_linformers_projections_begin_afresh_in_a_checkpoint_without(tmp_path):
    plain = made("bert", attention=None)
    params = initial("bert")
    jcl.models.save_pretrained(tmp_path, plain, params)
    attention = Linformer(rank=4)
    with pytest.raises(InputError, match=r"layer_0/attn/key_projection.*; give key="):
        jcl.models.from_pretrained(tmp_path, attention=attention)
    model, found = jcl.models.from_pretrained(tmp_path, attention=attention, key=jax.random.key(2))
    first = jax.jit(model.init)(jax.random.key(2))["layer_0"]["attn"]
    for table in ("key_projection", "value_projection"):
        np.testing.assert_array_equal(found["layer_0"]["attn"].pop(table), first[table])
    jax.tree.map(np.testing.assert_array_equal, found, params)
    with pytest.raises(InputError, match="no place for its projections"):
        jcl.models.save_pretrained(tmp_path / "new", model, found)
    assert not (tmp_path / "new").exists()
    begun = jcl.models.starting_from(model, params, fresh="layer_*/attn/*_projection")
    assert wrapping.names(wrapping.shapes(begun)) == wrapping.names(wrapping.shapes(model))


def test_what_is_refused():
    for config in (GPT2Config, LlamaConfig):
        with pytest.raises(InputError, match="mixes later tokens.*Performer"):
            config(attention=Linformer(rank=4))
    for config in (GPT2Config, LlamaConfig, BertConfig):
        with pytest.raises(InputError, match=r"dropout=0.1.*never computed; give dropout=0.0"):
            config(dropout=0.1, attention=PERFORMER)
    with pytest.raises(InputError, match="attention='performer'"):
        efficient_attention.check("Config", SimpleNamespace(attention="performer"), causal=True)
    with pytest.raises(InputError, match=r"window=8.*give window=None"):
        LlamaConfig(family="mistral", window=8, attention=PERFORMER)
    for wrong in ({"features": 0}, {"features": 4, "seed": -1}):
        with pytest.raises(InputError, match=[*wrong][-1]):
            Performer(**wrong)
    with pytest.raises(InputError, match="rank"):
        Linformer(rank=0)
