"""Wrappers of models on a tiny MLP and a tiny GPT-2, and the strategies made for them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from everything import costly

import jcl
from jcl import InputError
from jcl.models import (
    GPT2Config,
    MLPConfig,
    adapters,
    cosine_head,
    gpt2,
    lora,
    merge_lora,
    mlp,
    module_dropout,
    prompts,
    random_features,
)

GPT2 = gpt2(GPT2Config(vocab_size=17, positions=16, width=8, layers=2, heads=2, dropout=0.1))
MLP = mlp(MLPConfig(inputs=6, hidden=(8, 8), classes=3))
TOKENS = jax.random.randint(jax.random.key(0), (3, 6), 0, 17)
POINTS = jax.random.normal(jax.random.key(1), (12, 6))
CASES = [
    pytest.param(GPT2, TOKENS, "*attn*", id="gpt2"),
    pytest.param(MLP, POINTS, "layer_*", id="mlp"),
]
wrapped = pytest.mark.parametrize(("model", "inputs", "where"), CASES)


def noisy(tree, seed=5):
    """The tree with noise on every leaf, so that nothing stays zero."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return structure.unflatten(
        [
            leaf + 0.1 * jax.random.normal(key, leaf.shape)
            for leaf, key in zip(leaves, keys, strict=True)
        ]
    )


def without(params, name):
    return {entry: leaf for entry, leaf in params.items() if entry != name}


@wrapped
def test_lora_begins_as_the_base_model_dropout_included(model, inputs, where):
    adapted = lora(model, rank=2, alpha=4.0, where=where, slots=2)
    params = adapted.init(jax.random.key(2))
    for key in (None, jax.random.key(3)):
        for function, base in ((adapted.apply, model.apply), (adapted.features, model.features)):
            np.testing.assert_array_equal(
                function(params, inputs, key), base(without(params, "lora"), inputs, key)
            )


@wrapped
def test_merged_lora_equals_unmerged(model, inputs, where):
    adapted = lora(model, rank=2, alpha=4.0, where=where, slots=3)
    params = noisy(adapted.init(jax.random.key(2)))
    merged = merge_lora(params, 4.0)
    assert jax.tree.structure(merged) == jax.tree.structure(model.init(jax.random.key(0)))
    expected = model.apply(merged, inputs)
    np.testing.assert_allclose(adapted.apply(params, inputs), expected, atol=1e-5)
    base = model.apply(without(params, "lora"), inputs)
    assert jnp.abs(expected - base).max() > 1e-3


def test_lora_is_its_formula():
    adapted = lora(MLP, rank=2, alpha=3.0, where="head", slots=2)
    params = noisy(adapted.init(jax.random.key(2)))
    x, own = MLP.features(without(params, "lora"), POINTS), params["lora"]["head"]
    expected = x @ params["head"]["kernel"] + params["head"]["bias"]
    for slot in range(2):
        expected += 1.5 * (x @ own["a"][slot]) @ own["b"][slot]
    np.testing.assert_allclose(adapted.apply(params, POINTS), expected, rtol=1e-5, atol=1e-6)


def test_the_gradient_flows_to_b_first_and_only_where_adapters_are():
    adapted = lora(GPT2, rank=2, alpha=4.0, where="h_1/attn/c_attn")
    params = adapted.init(jax.random.key(2))
    assert list(params["lora"]) == ["h_1"]
    gradient = jax.grad(lambda params: adapted.apply(params, TOKENS).var())(params)
    own = gradient["lora"]["h_1"]["attn"]["c_attn"]
    assert not jnp.any(own["a"])  # B is zero
    assert jnp.any(own["b"])


def test_the_optimizer_of_adapters_alone_is_adapter_sized():
    adapted = lora(MLP, rank=2, alpha=4.0, where="layer_*")
    params = adapted.init(jax.random.key(2))
    strategy = jcl.chain(jcl.only("lora/*", optax.adamw(1e-2)), jcl.freeze("*", but="lora/*"))
    learner = jcl.learner(jcl.losses.classify(adapted.apply), strategy)
    batch = {"inputs": POINTS, "targets": jnp.arange(12) % 3}
    state = learner.init(None, params, batch)
    size = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
    assert size(state.strategy) == 1 + 2 * size(params["lora"])
    after = jax.jit(learner.step)(state, batch)[0].params
    same = jax.tree.map(lambda a, b: bool(jnp.all(a == b)), after, params)
    assert all(jax.tree.leaves(without(same, "lora")))
    assert not same["lora"]["layer_0"]["b"]


def test_lora_dropout_acts_with_a_key_only():
    adapted = lora(MLP, rank=2, alpha=4.0, where="head", dropout=0.5)
    params = noisy(adapted.init(jax.random.key(2)))
    one, other = (adapted.apply(params, POINTS, jax.random.key(seed)) for seed in (1, 2))
    assert jnp.any(one != other)
    full = lora(MLP, rank=2, alpha=4.0, where="head").apply(params, POINTS)
    np.testing.assert_array_equal(adapted.apply(params, POINTS), full)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: lora(GPT2, 2, 4.0, "h_*/attn/c_atn"), "The nearest are: h_1/attn/c_attn"),
        (lambda: lora(MLP, 2, 4.0), r"'\*attn\*'. The nearest are: .*layer_0"),
        (lambda: lora(MLP, 0, 4.0, "head"), "at least 1"),
        (lambda: lora(MLP, 1, 4.0, "head", slots=0), "at least 1"),
        (lambda: lora(MLP, 1, 4.0, "head", dropout=1.0), r"number in \[0, 1\)"),
        (lambda: adapters(GPT2, 0), "at least 1"),
        (lambda: adapters(GPT2, 2, "*/atn"), "The nearest are: .*h_0/attn"),
        (lambda: module_dropout(MLP, {"head": 1.0}), r"number in \[0, 1\)"),
        (lambda: module_dropout(MLP, {"layer_9": 0.1}), "The nearest are: layer_"),
        (
            lambda: module_dropout(MLP, {"layer_*": 0.1, "layer_1": 0.5}),
            "'layer_1' matches is matched by a pattern before it, and its rate of 0.5 would count",
        ),
        (lambda: random_features(MLP, 50, "heads"), "The nearest are: head"),
        (lambda: random_features(MLP, 0), "at least 1"),
        (lambda: cosine_head(MLP, "heads"), "The nearest are: head"),
        (lambda: cosine_head(MLP, scale=0.0), r"a number in \(0, inf"),
        (lambda: prompts(gpt2, GPT2.config, 0), "at least 1"),
        (lambda: prompts(gpt2, GPT2.config, 4, slots=4), r"4 \* 4 .* need 17 positions.* has 16"),
        (lambda: prompts(gpt2, GPT2.config, 2, table="wet"), "The nearest are: wte"),
        (lambda: jcl.progressive_prompts(0), "a whole number, at least 1"),
        (lambda: jcl.progressive_prompts(2).init(GPT2.init(jax.random.key(0))), "no prompts"),
        (lambda: lora(lora(MLP, 1, 4.0, "head"), 1, 4.0, "head"), "wrap it once"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(InputError, match=message):
        make()


BATCH = {"inputs": POINTS, "targets": jnp.arange(12) % 3}
STACKED = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), BATCH)


def olora_learner(strength, tasks=3, slots=3, optimizer=None):
    adapted = lora(MLP, rank=2, alpha=4.0, where="layer_*", slots=slots)
    strategy = jcl.chain(
        optimizer or optax.sgd(0.1),
        jcl.olora(strength, tasks=tasks),
        jcl.freeze("*", but=["lora/*", "head/*"]),
    )
    return adapted, jcl.learner(jcl.losses.classify(adapted.apply), strategy)


def test_olora_adds_the_overlap_with_all_tasks_before():
    adapted, learner = olora_learner(0.7)
    state = learner.init(None, noisy(adapted.init(jax.random.key(2))), BATCH)
    step, consolidate = jax.jit(learner.step), jax.jit(learner.consolidate)
    for task in range(3):
        expected = 0.0
        for own in state.params["lora"].values():
            a = np.asarray(own["a"])
            expected += 0.7 * sum(np.abs(a[past].T @ a[task]).sum() for past in range(task))
        after, metrics = step(state, BATCH)
        np.testing.assert_allclose(metrics["olora"], expected, rtol=1e-5, atol=1e-7)
        for layer in ("layer_0", "layer_1"):  # its own slot moves, the others and the base do not
            assert jnp.all(after.params[layer]["kernel"] == state.params[layer]["kernel"])
            for name in ("a", "b"):
                own = (tree.params["lora"][layer][name] for tree in (after, state))
                moved = jnp.any(jnp.subtract(*own) != 0, axis=(1, 2))
                np.testing.assert_array_equal(moved, jnp.arange(3) == task)
        assert jnp.any(after.params["head"]["kernel"] != state.params["head"]["kernel"])
        state = consolidate(after, STACKED)
    assert int(state.strategy[1].task) == 2  # it stays in the last slot
    assert step._cache_size() == consolidate._cache_size() == 1


def test_olora_turns_the_new_adapters_away_from_the_old():
    def overlap(strength):
        adapted, learner = olora_learner(strength, optimizer=optax.adam(1e-2))
        state = learner.init(None, adapted.init(jax.random.key(2)), BATCH)
        state, step = learner.consolidate(state, STACKED), jax.jit(learner.step)
        for _ in range(100):
            state, _ = step(state, BATCH)
        a = state.params["lora"]["layer_1"]["a"]
        return jnp.abs(a[0].T @ a[1]).sum()

    assert overlap(1.0) < 0.2 * overlap(0.0)


def test_olora_refuses_more_tasks_than_slots():
    adapted, learner = olora_learner(1.0, tasks=4)
    with pytest.raises(InputError, match="the params have 3 slots.*slots=4"):
        learner.init(None, adapted.init(jax.random.key(0)), BATCH)
    with pytest.raises(InputError, match="no adapters"):
        jcl.olora(1.0, 2).init(MLP.init(jax.random.key(0)))
    with pytest.raises(InputError, match=r"a number in \[0, inf"):
        jcl.olora(-1.0, 2)
    with pytest.raises(InputError, match="a whole number, at least 1"):
        jcl.olora(1.0, 0)


def test_adapters_stand_by_default_in_every_family():
    shape = jcl.models.LlamaConfig(9, positions=8, width=8, inner=8, layers=1, heads=2)
    for model, branches in (
        (GPT2, {"attn", "mlp"}),
        (jcl.models.llama(shape), {"self_attn", "mlp"}),
    ):
        own = jax.eval_shape(adapters(model, width=2).init, jax.random.key(0))["adapters"]
        assert all(set(block) == branches for block in own.values())
    with pytest.raises(InputError, match=r"matches '\*/attn'"):
        adapters(MLP, width=2)


def test_lora_per_task_is_separate_over_the_adapters():
    adapted = lora(MLP, rank=2, alpha=4.0, where="layer_*")
    strategy = jcl.chain(
        jcl.only("lora/*", optax.sgd(1.0)), jcl.freeze("*", but="lora/*"),
        jcl.separate("lora/*", tasks=2),
    )  # fmt: skip
    learner = jcl.learner(jcl.losses.classify(adapted.apply), strategy)
    state = learner.init(None, adapted.init(jax.random.key(2)), BATCH)
    initial = MLP.apply(without(state.params, "lora"), POINTS)
    first, _ = jax.jit(learner.step)(state, BATCH)
    expected = adapted.apply(first.params, POINTS)
    assert jnp.abs(expected - initial).max() > 1e-4
    second = learner.consolidate(first, STACKED)
    logits = lambda task: learner.predict(second, {**BATCH, "task": jnp.full(12, task)})["logits"]
    np.testing.assert_allclose(logits(0), expected, rtol=1e-6)
    np.testing.assert_array_equal(logits(1), initial)


@pytest.mark.parametrize(
    ("model", "inputs", "where"),
    [pytest.param(GPT2, TOKENS, ("*/attn", "*/mlp"), id="gpt2"),
     pytest.param(MLP, POINTS, "layer_*", id="mlp")],
)  # fmt: skip
def test_adapters_begin_as_the_base_model_and_then_act(model, inputs, where):
    adapted = adapters(model, width=3, where=where)
    params = adapted.init(jax.random.key(2))
    for key in (None, jax.random.key(3)):
        for function, base in ((adapted.apply, model.apply), (adapted.features, model.features)):
            np.testing.assert_array_equal(
                function(params, inputs, key), base(without(params, "adapters"), inputs, key)
            )
    gradient = jax.grad(lambda params: adapted.apply(params, inputs).var())(params)["adapters"]
    for own in jax.tree.leaves(gradient, is_leaf=lambda tree: "down" in tree):
        assert jnp.any(own["up"])
        assert not jnp.any(own["down"])  # up is zero
    moved = {**params, "adapters": noisy(params["adapters"])}
    difference = adapted.apply(moved, inputs) - adapted.apply(params, inputs)
    assert jnp.abs(difference).max() > 1e-4


def test_an_adapter_is_its_formula():
    adapted = adapters(MLP, width=3, where="layer_1")
    params = noisy(adapted.init(jax.random.key(2)))
    own = params["adapters"]["layer_1"]
    x = jax.nn.relu(POINTS @ params["layer_0"]["kernel"] + params["layer_0"]["bias"])
    y = x @ params["layer_1"]["kernel"] + params["layer_1"]["bias"]
    y += jax.nn.gelu(y @ own["down"] + own["down_bias"]) @ own["up"] + own["up_bias"]
    np.testing.assert_allclose(adapted.features(params, POINTS), jax.nn.relu(y), rtol=1e-5)


def test_wrappers_nest():
    model = lora(adapters(GPT2, width=3, where="*/attn"), rank=2, alpha=4.0, where="*/attn/*")
    params = noisy(model.init(jax.random.key(2)))
    assert set(params) == {*GPT2.init(jax.random.key(0)), "adapters", "lora"}
    merged = merge_lora(params, 4.0)
    expected = adapters(GPT2, width=3, where="*/attn").apply(merged, TOKENS)
    np.testing.assert_allclose(model.apply(params, TOKENS), expected, atol=1e-5)
    base = GPT2.apply(without(merged, "adapters"), TOKENS)
    assert jnp.abs(expected - base).max() > 1e-3


def test_module_dropout_drops_its_share_of_its_module_and_needs_a_key():
    model = module_dropout(MLP, {"layer_1": 0.75, "layer_*": 0.0})
    params, points = MLP.init(jax.random.key(2)), jnp.tile(POINTS, (100, 1))
    np.testing.assert_array_equal(model.apply(params, points), MLP.apply(params, points))
    plain = MLP.features(params, points)
    dropped = model.features(params, points, jax.random.key(3))
    share = jnp.mean(dropped[plain > 0] == 0)
    assert abs(share - 0.75) < 0.02
    kept = dropped > 0
    np.testing.assert_allclose(dropped[kept], 4 * plain[kept], rtol=1e-5)
    alone = module_dropout(MLP, {"layer_1": 0.75})
    np.testing.assert_array_equal(dropped, alone.features(params, points, jax.random.key(3)))
    both = module_dropout(GPT2, {"h_0": 0.5, "h_1": 0.5})
    one, other = (
        both.apply(GPT2.init(jax.random.key(2)), TOKENS, jax.random.key(s)) for s in (1, 2)
    )
    assert jnp.any(one != other)


def test_cosine_head_is_the_cosine():
    model = cosine_head(MLP, scale=10.0)
    params = noisy(model.init(jax.random.key(2)))
    x, kernel = np.asarray(MLP.features(params, POINTS)), np.asarray(params["head"]["kernel"])
    expected = 10 * x @ kernel / np.linalg.norm(x, axis=1)[:, None] / np.linalg.norm(kernel, axis=0)
    np.testing.assert_allclose(model.apply(params, POINTS), expected, rtol=1e-5, atol=1e-5)
    zero = jax.grad(lambda params: model.apply(params, POINTS).sum())(
        jax.tree.map(jnp.zeros_like, params)
    )
    assert jax.tree.all(jax.tree.map(lambda leaf: jnp.all(jnp.isfinite(leaf)), zero))


def test_a_head_over_random_features():
    model = random_features(MLP, 50, seed=3)
    params = noisy(model.init(jax.random.key(2)))
    assert params["head"]["kernel"].shape == (50, MLP.config.classes)
    x = np.asarray(MLP.features(params, POINTS))
    matrix = np.random.default_rng(3).standard_normal((x.shape[1], 50), np.float32)
    wide = np.maximum(x / np.linalg.norm(x, axis=1, keepdims=True) @ matrix, 0.0)
    np.testing.assert_allclose(model.features(params, POINTS), wide, rtol=1e-4, atol=1e-5)
    expected = wide @ np.asarray(params["head"]["kernel"]) + np.asarray(params["head"]["bias"])
    np.testing.assert_allclose(jax.jit(model.apply)(params, POINTS), expected, rtol=1e-4, atol=1e-5)
    batch = {"inputs": POINTS, "targets": jnp.arange(len(POINTS)) % MLP.config.classes}
    learner = jcl.learner(
        jcl.losses.classify(model.apply),
        jcl.chain(jcl.freeze("*"), jcl.slda(model.features, MLP.config.classes)),
    )
    state, _ = learner.step(learner.init(None, params, batch), batch)
    # As many points as the features tell apart: all are where they belong.
    logits = learner.predict(state, batch)["logits"]
    np.testing.assert_array_equal(jnp.argmax(logits, axis=1), batch["targets"])
    zero = jax.tree.map(jnp.zeros_like, params)
    slope = jax.grad(lambda params: model.apply(params, POINTS).sum())(zero)
    assert jax.tree.all(jax.tree.map(lambda leaf: jnp.all(jnp.isfinite(leaf)), slope))


def test_a_prompt_of_token_rows_equals_those_tokens_in_front():
    model = prompts(gpt2, GPT2.config, length=3, slots=2)
    params = model.init(jax.random.key(2))
    rows = jnp.array([[4, 9, 1], [16, 0, 7]])  # slot 1, the later one, stands first
    params["prompt"] = params["wte"][rows]
    tokens = jnp.concatenate([jnp.tile(rows[::-1].reshape(1, 6), (3, 1)), TOKENS], axis=1)
    base = without(params, "prompt")
    np.testing.assert_allclose(
        model.apply(params, TOKENS), GPT2.apply(base, tokens)[:, 6:], atol=1e-6
    )
    np.testing.assert_allclose(
        model.features(params, TOKENS), GPT2.features(base, tokens)[:, 6:], atol=1e-6
    )
    with pytest.raises(InputError, match="need 17 positions, and the model has 16"):
        model.apply(params, jnp.zeros((1, 11), jnp.int32))


def test_a_prompt_begins_as_rows_of_the_table_and_wraps_a_wrapped_model():
    model = prompts(lambda config: lora(gpt2(config), 2, 4.0), GPT2.config, length=3)
    params = model.init(jax.random.key(2))
    distance = jnp.abs(params["prompt"][0][:, None] - params["wte"][None]).max(axis=-1)
    assert jnp.all(distance.min(axis=1) == 0)
    plain = prompts(gpt2, GPT2.config, length=3)
    np.testing.assert_array_equal(
        model.apply(params, TOKENS), plain.apply(without(params, "lora"), TOKENS)
    )


@costly
def test_progressive_prompts_learn_one_slot_a_task_and_unused_slots_do_not_act():
    model = prompts(gpt2, GPT2.config, length=2, slots=3)
    params = noisy(model.init(jax.random.key(2)))
    strategy = jcl.chain(
        jcl.only("prompt", optax.adamw(1e-1)), jcl.progressive_prompts(tasks=3),
        jcl.freeze("*", but="prompt"),
    )  # fmt: skip
    learner = jcl.learner(jcl.losses.causal_lm(model.apply), strategy)
    batch = {"inputs": TOKENS, "targets": jnp.roll(TOKENS, -1, axis=1)}
    state, step = learner.init(None, params, batch), jax.jit(learner.step)
    consolidate, ended = jax.jit(learner.consolidate), []
    logits = lambda state, **task: learner.predict(state, {**batch, **task})["logits"]
    for task in range(3):
        seen = logits(state)
        spoiled = {**state.params, "prompt": state.params["prompt"].at[task + 1 :].set(9.0)}
        np.testing.assert_array_equal(logits(state._replace(params=spoiled)), seen)
        fewer = prompts(gpt2, GPT2.config, length=2, slots=task + 1)
        part = {**state.params, "prompt": state.params["prompt"][: task + 1]}
        np.testing.assert_allclose(fewer.apply(part, TOKENS), seen, atol=1e-6)
        for past in range(task):
            same = logits(state, task=jnp.full(3, past))
            np.testing.assert_allclose(same, ended[past], atol=1e-6)
        after, metrics = step(state, batch)
        moved = jnp.any(after.params["prompt"] != state.params["prompt"], axis=(1, 2))
        np.testing.assert_array_equal(moved, jnp.arange(3) == task)
        assert jnp.all(after.params["wte"] == state.params["wte"])
        assert step(after, batch)[1]["loss"] < metrics["loss"]
        ended.append(logits(after))
        state = consolidate(after, jax.tree.map(lambda leaf: leaf[None], batch))
    assert int(state.strategy[1].task) == 2
    assert step._cache_size() == consolidate._cache_size() == 1
    with pytest.raises(InputError, match="the params have 3 prompts.*slots=4"):
        jcl.progressive_prompts(4).init(params)
