"""The Llama family against Hugging Face's in PyTorch, and its own promises."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from everything import costly

import jcl
from jcl import InputError
from jcl.models import LlamaConfig, Rope, llama
from jcl.models.llama import from_hf, to_hf

SHAPE = {
    "vocab_size": 61, "max_position_embeddings": 20, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
}  # fmt: skip
SCALED = {"rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 8}
# model_type and what differs from SHAPE: the forms in which published checkpoints come
KINDS = {
    "Llama 2": ("llama", {"num_key_value_heads": 4, "num_hidden_layers": 2}),
    "SmolLM": ("llama", {"tie_word_embeddings": True, "rope_theta": 5000.0}),
    "Llama 3.2": (
        "llama",
        {
            "rope_parameters": {
                **SCALED, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0
            },
            "tie_word_embeddings": True,
            "head_dim": 16,
        },
    ),
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "linear": ("llama", {"rope_scaling": {"type": "linear", "factor": 3}, "rope_theta": 100}),
    "dynamic": (
        "llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0},
                  "max_position_embeddings": 12},
    ),
    "yarn": ("llama", {"rope_parameters": {**SCALED, "rope_type": "yarn"}}),
    "Mistral": ("mistral", {"sliding_window": 6}),
    "Mistral 0.3": ("mistral", {"sliding_window": None, "head_dim": 12}),
    "Qwen2": ("qwen2", {"rope_theta": 1e6, "tie_word_embeddings": True}),
    "Qwen2, window": (
        "qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1,
                  "num_hidden_layers": 2}
    ),
}  # fmt: skip
INPUTS = jax.random.randint(jax.random.key(0), (3, 20), 0, 61)
CONFIG = LlamaConfig(61, positions=20, width=32, inner=48, layers=1, heads=4, key_value_heads=2)


def made(config):
    model = llama(config)
    return jax.jit(model.apply), jax.jit(model.init)(jax.random.key(1))


@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_gradients_equal_hugging_faces(kind, tmp_path):
    parity = pytest.importorskip("parity", reason="PyTorch is absent: pip install torch==2.13.0")
    import transformers

    family, changes = KINDS[kind]
    config = transformers.AutoConfig.for_model(family, **{**SHAPE, **changes})
    theirs = parity.made(
        transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    )
    theirs.save_pretrained(tmp_path)
    model, params = jcl.models.from_pretrained(tmp_path)
    assert model.config.family == family
    parity.compare_decoders(theirs, model, params, INPUTS)


@pytest.mark.parametrize("kind", KINDS)
def test_config_json_round_trip(kind):
    family, changes = KINDS[kind]
    config = from_hf({"model_type": family, **SHAPE, **changes})
    assert from_hf(to_hf(config)) == config


def test_config_json_of_before():
    """rope_theta and rope_scaling stood outside rope_parameters."""
    old = {"rope_theta": 500000.0, "rope_scaling": {
        "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3",
    }}  # fmt: skip
    rope = from_hf({"model_type": "llama", **SHAPE, **old}).rope
    assert rope == Rope("llama3", base=500000.0, factor=32.0, original=8192)
    yarn = {"rope_scaling": {"type": "yarn", "factor": 4.0}}
    assert from_hf({"model_type": "qwen2", **SHAPE, **yarn}).rope.original == 20


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        ("llama", {"hidden_act": "gelu"}, '"hidden_act" is "gelu"'),
        ("llama", {"rope_scaling": {"rope_type": "longrope"}}, '"rope_type" is "longrope".*yarn'),
        ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ("llama", {"rope_scaling": {"type": "yarn", "factor": 2.0, "mscale": 1.0}}, "mscale"),
        ("qwen2", {"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "by layer"),
        ("llama", {"num_key_value_heads": 3}, "heads=4 is no multiple of key_value_heads=3"),
        ("llama", {"hidden_size": 34}, "width=34 is no multiple of heads=4"),
        ("llama", {"head_dim": 5}, "must be even"),
        (
            "qwen2",
            {"use_sliding_window": True, "max_window_layers": 1, "num_hidden_layers": 2,
             "layer_types": ["sliding_attention", "full_attention"]},
            "layer_types",
        ),
    ],
)  # fmt: skip
def test_what_config_json_may_not_ask_for(family, settings, message):
    with pytest.raises(InputError, match=message):
        from_hf({"model_type": family, **SHAPE, **settings})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 0}, "layers=0"),
        ({"family": "gemma"}, "llama.*mistral.*qwen2"),
        ({"family": "qwen2", "bias": True}, "only Llama"),
        ({"window": 3}, "Llama has no window"),
        ({"whole_layers": 1}, "whole_layers is for Qwen2"),
        ({"dropout": 1.0}, "dropout=1.0"),
    ],
)
def test_shapes_that_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(CONFIG, **changes)


def test_rotations_that_are_refused():
    with pytest.raises(InputError, match="kind='spiral'"):
        Rope("spiral")
    with pytest.raises(InputError, match="original=0"):
        Rope("yarn", factor=2.0)
    with pytest.raises(InputError, match="factor=0.5"):
        Rope("linear", factor=0.5)


def test_an_input_longer_than_the_positions():
    apply, params = made(CONFIG)
    with pytest.raises(InputError, match="21 tokens long and the model has 20"):
        apply(params, jnp.zeros((1, 21), jnp.int32))


def test_only_earlier_tokens_within_the_window_count():
    apply, params = made(dataclasses.replace(CONFIG, family="mistral", window=4, layers=1))
    before, after = apply(params, INPUTS), apply(params, INPUTS.at[:, 8].add(1))
    changed = jnp.abs(after - before).max(axis=(0, 2)) > 1e-6
    assert np.flatnonzero(changed).tolist() == [8, 9, 10, 11]


def test_dropout_acts_only_with_a_key():
    apply, params = made(dataclasses.replace(CONFIG, dropout=0.5))
    one = apply(params, INPUTS, jax.random.key(3))
    np.testing.assert_array_equal(apply(params, INPUTS, jax.random.key(3)), one)
    assert jnp.abs(one - apply(params, INPUTS)).max() > 1e-4


def test_bfloat16_params():
    apply, params = made(CONFIG)
    rough = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    logits, exact = apply(rough, INPUTS), apply(params, INPUTS)
    assert logits.dtype == jnp.float32  # of rounded params, but not rounded themselves
    widened = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), rough)
    np.testing.assert_array_equal(logits, apply(widened, INPUTS))
    assert 1e-4 < jnp.abs(logits - exact).max() / jnp.abs(exact).max() < 0.05


@costly
def test_wrappers_and_strategies_act_on_it():
    """LoRA trained alone, with replay, on padded batches."""
    model = jcl.models.lora(llama(CONFIG), rank=2, alpha=4.0)
    params = jax.jit(model.init)(jax.random.key(1))
    assert set(params["lora"]["layers_0"]["self_attn"]) == {"q_proj", "k_proj", "v_proj", "o_proj"}
    strategy = jcl.chain(
        jcl.replay(capacity=8, size=2),
        jcl.only("lora/*", optax.adamw(1e-2)),
        jcl.freeze("*", but="lora/*"),
    )
    batch = {
        "inputs": INPUTS,
        "targets": INPUTS,
        "attention_mask": jnp.ones_like(INPUTS).at[:, 15:].set(0),
    }
    learner = jcl.learner(jcl.losses.causal_lm(model.apply), strategy)
    state = learner.init(jax.random.key(0), params, batch)
    state, metrics = jax.jit(learner.step)(state, batch)
    assert jnp.isfinite(metrics["loss"])
    moved = jax.tree.map(lambda old, new: bool(jnp.any(old != new)), params, state.params)
    assert any(jax.tree.leaves(moved.pop("lora")))
    assert not any(jax.tree.leaves(moved))


def test_prompts_in_front_of_padded_inputs():
    """Left padding between the prompt and the text changes nothing."""
    model = jcl.models.prompts(
        llama, dataclasses.replace(CONFIG, positions=30), length=3, table="embed_tokens"
    )
    params = jax.jit(model.init)(jax.random.key(1))
    apply = jax.jit(model.apply)
    short = apply(params, INPUTS[:, :6])
    padded = jnp.pad(INPUTS[:, :6], ((0, 0), (4, 0)))
    mask = jnp.pad(jnp.ones((3, 6), jnp.int32), ((0, 0), (4, 0)))
    found = apply(params, padded, attention_mask=mask)
    np.testing.assert_allclose(found[:, 4:], short, atol=1e-6)
    assert jnp.abs(apply(params, padded)[:, 4:] - short).max() > 1e-4
