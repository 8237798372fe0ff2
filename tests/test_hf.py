"""Checkpoints of Hugging Face: what is read, what is written, what is refused."""

import dataclasses
import json
import resource
import sys
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file

import jcl
from jcl import InputError
from jcl.errors import SaveError
from jcl.models import (
    GPT2Config,
    LlamaConfig,
    from_pretrained,
    gpt2,
    llama,
    lora,
    merge_lora,
    save_pretrained,
)

SHAPE = GPT2Config(61, positions=24, width=32, layers=2, heads=4, dropout=0.0)
LLAMA = LlamaConfig(61, positions=24, width=32, inner=48, layers=2, heads=4, key_value_heads=2)
INPUTS = jax.random.randint(jax.random.key(0), (3, 24), 0, 61)


def made(model, seed=1):
    """Params without the zeros and ones of an untrained model."""
    leaves, tree = jax.tree.flatten(jax.eval_shape(model.init, jax.random.key(0)))
    draw = np.random.default_rng(seed)
    leaves = [jnp.asarray(0.3 * draw.standard_normal(leaf.shape, np.float32)) for leaf in leaves]
    return jax.tree.unflatten(tree, leaves)


@pytest.fixture
def saved(tmp_path):
    """(folder, model, params) of a GPT-2."""
    model = gpt2(SHAPE)
    params = made(model)
    save_pretrained(tmp_path / "model", model, params)
    return tmp_path / "model", model, params


def equal(ours, theirs):
    """Bitwise, names and types included."""
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert jax.tree.map(lambda leaf: leaf.dtype, ours) == jax.tree.map(
        lambda leaf: leaf.dtype, theirs
    )


def rewrite(folder, change):
    """The weights, changed."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def settings(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


# Parity


GPT2S = {
    "plain": {},
    "no dropout": {
        "n_head": 2, "n_layer": 1, "layer_norm_epsilon": 1e-3,
        "resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0,
        "activation_function": "gelu_pytorch_tanh",
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", GPT2S)
def test_gpt2_equals_hugging_faces_with_padding(kind, tmp_path):
    parity = pytest.importorskip("parity", reason="PyTorch is absent: pip install torch==2.13.0")
    import transformers

    config = transformers.GPT2Config(
        vocab_size=61, n_positions=24, n_embd=32, **{"n_head": 4, "n_layer": 2, **GPT2S[kind]},
        attn_implementation="eager",
    )  # fmt: skip
    theirs = parity.made(transformers.GPT2LMHeadModel(config))
    theirs.save_pretrained(tmp_path)
    model, params = from_pretrained(tmp_path)
    parity.compare_decoders(theirs, model, params, INPUTS)


@pytest.mark.slow
def test_gpt2_small(tmp_path):
    parity = pytest.importorskip("parity", reason="PyTorch is absent: pip install torch==2.13.0")
    import transformers

    theirs = parity.made(
        transformers.GPT2LMHeadModel(transformers.GPT2Config(attn_implementation="eager")),
        spread=0.005,
    )
    theirs.save_pretrained(tmp_path)
    model, params = from_pretrained(tmp_path)
    inputs = jax.random.randint(jax.random.key(0), (3, 16), 0, 50257)
    parity.compare_decoders(theirs, model, params, inputs)


def test_without_a_mask_all_tokens_count():
    model = gpt2(SHAPE)
    params = made(model)
    apply = jax.jit(model.apply)
    masked = apply(params, INPUTS, attention_mask=jnp.ones_like(INPUTS))
    np.testing.assert_allclose(apply(params, INPUTS), masked, atol=1e-5)


def test_what_stands_at_padding_does_not_count():
    model = gpt2(SHAPE)
    params, mask = made(model), jnp.ones_like(INPUTS).at[:, :5].set(0)
    apply = jax.jit(model.apply)
    one = apply(params, INPUTS, attention_mask=mask)
    other = apply(params, INPUTS.at[:, :5].add(1), attention_mask=mask)
    np.testing.assert_allclose(one[:, 5:], other[:, 5:], atol=1e-6)
    assert jnp.abs(one[:, 5:] - apply(params, INPUTS)[:, 5:]).max() > 1e-2
    batch = {"inputs": INPUTS, "targets": INPUTS, "mask": mask, "attention_mask": mask}
    moved = {**batch, "inputs": INPUTS.at[:, :5].add(1)}
    loss_fn = jcl.losses.causal_lm(model.apply)
    for function in (
        lambda params, batch: loss_fn(params, batch, None),
        jcl.losses.bits_per_byte(model.apply, np.ones(61)).function,
    ):
        one, other = (jax.jit(function)(params, each)[0] for each in (batch, moved))
        np.testing.assert_allclose(one, other, rtol=1e-6)


# Reading


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [(SHAPE, "float32"), (SHAPE, "bfloat16"), (LLAMA, "float16"), (LLAMA, "bfloat16")],
    ids=["gpt2-float32", "gpt2-bfloat16", "llama-float16", "llama-bfloat16"],
)
def test_round_trip_is_bitwise_and_hugging_face_reads_it(shape, dtype, tmp_path):
    model = (gpt2 if shape is SHAPE else llama)(shape)
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), made(model))
    save_pretrained(tmp_path, model, params)
    again, found = from_pretrained(tmp_path, dtype="auto")
    assert again.config == shape
    equal(found, params)
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    equal(from_pretrained(tmp_path)[1], wide)  # which Adam can train, as it cannot float16

    parity = pytest.importorskip("parity", reason="PyTorch is absent: pip install torch==2.13.0")
    import transformers

    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(report.values())
    assert str(theirs.dtype) == f"torch.{dtype}"
    theirs.float().save_pretrained(tmp_path / "theirs")
    equal(
        from_pretrained(tmp_path / "theirs")[1],
        jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params),
    )
    exact = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    with parity.torch.no_grad():
        answer = theirs(parity.torch.tensor(np.asarray(INPUTS, np.int64))).logits.numpy()
    np.testing.assert_allclose(jax.jit(model.apply)(exact, INPUTS), answer, atol=1e-4)


def test_shards(saved):
    folder, _, params = saved
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    shards = {name: f"model-{number % 3}.safetensors" for number, name in enumerate(tensors)}
    for shard in set(shards.values()):
        save_file({n: t for n, t in tensors.items() if shards[n] == shard}, folder / shard)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    equal(from_pretrained(folder)[1], params)

    (folder / "model-1.safetensors").rename(folder / "gone")
    with pytest.raises(InputError, match="model-1.safetensors, not there"):
        from_pretrained(folder)
    index.write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))
    with pytest.raises(InputError, match="must name files of the folder.*elsewhere"):
        from_pretrained(folder)


def test_a_checkpoint_of_the_bare_model_with_its_masks(saved):
    """The published GPT-2 has neither prefix nor head, and the causal masks among its tensors."""
    folder, _, params = saved

    def bare(tensors):
        for name in [*tensors]:
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors["h.1.attn.bias"] = np.tri(24, dtype=np.float32)[None, None]

    rewrite(folder, bare)
    equal(from_pretrained(folder)[1], params)


def test_dtype_and_changed_fields(saved):
    folder, _, params = saved
    model, found = from_pretrained(folder, dtype=jnp.bfloat16, dropout=0.25)
    assert model.config.dropout == 0.25
    equal(found, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params))
    with pytest.raises(InputError, match="dtype=int32.*bfloat16"):
        from_pretrained(folder, dtype=jnp.int32)
    with pytest.raises(InputError, match="from_pretrained\\(depth=...\\): GPT2Config has vocab"):
        from_pretrained(folder, depth=3)


def test_a_head_that_is_missing_begins_afresh_on_demand(saved, monkeypatch):
    folder, model, params = saved
    rewrite(folder, lambda tensors: tensors.pop("transformer.wpe.weight"))
    family = sys.modules["jcl.models.gpt2"]
    monkeypatch.setattr(family, "HEAD", ("wpe",), raising=False)
    with pytest.raises(InputError, match="missing: transformer.wpe.weight; give key="):
        from_pretrained(folder)
    _, found = from_pretrained(folder, key=jax.random.key(7), dtype=jnp.bfloat16)
    first = jax.jit(model.init)(jax.random.key(7))
    wanted = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), {**params, "wpe": first["wpe"]})
    equal(found, wanted)


def test_names_of_before(saved, monkeypatch):
    folder, _, params = saved

    def old(tensors):
        tensors["transformer.ln_f.gamma"] = tensors.pop("transformer.ln_f.weight")

    rewrite(folder, old)
    with pytest.raises(InputError, match=r"missing: .*ln_f.weight; left over: .*ln_f.gamma"):
        from_pretrained(folder)
    renamed = ((r"ln_f\.gamma$", "ln_f.weight"),)
    monkeypatch.setattr(sys.modules["jcl.models.gpt2"], "RENAMED", renamed, raising=False)
    equal(from_pretrained(folder)[1], params)


def test_params_land_on_the_mesh(saved):
    folder, model, params = saved
    mesh = jax.make_mesh((8,), ("model",), axis_types=(AxisType.Auto,))
    everywhere = NamedSharding(mesh, PartitionSpec())
    split = NamedSharding(mesh, PartitionSpec(None, "model"))
    _, found = from_pretrained(folder, sharding=everywhere)
    assert {leaf.sharding for leaf in jax.tree.leaves(found)} == {everywhere}

    def place(path):
        return split if path.endswith("kernel") else everywhere

    _, found = from_pretrained(folder, sharding=place)
    equal(found, params)
    kernel = found["h_1"]["mlp"]["c_fc"]["kernel"]
    assert kernel.sharding == split
    assert kernel.addressable_shards[0].data.shape == (32, 16)
    assert found["wte"].sharding == everywhere
    np.testing.assert_allclose(
        jax.jit(model.apply)(found, INPUTS), jax.jit(model.apply)(params, INPUTS), atol=1e-5
    )


def test_the_host_holds_one_tensor_at_a_time(tmp_path):
    """Beside the params themselves, which on a CPU may be the very arrays that were read."""
    model = gpt2(GPT2Config(1000, positions=16, width=128, layers=8, heads=2))
    save_pretrained(tmp_path, model, made(model))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    everywhere = NamedSharding(mesh, PartitionSpec())
    tracemalloc.start()
    try:
        _, params = from_pretrained(tmp_path, sharding=everywhere)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    largest = max(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert peak - held < 3 * largest
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(params)) > 10 * largest


# What is refused


def test_missing_surplus_and_wrong_tensors_are_named(saved):
    folder, _, _ = saved

    def spoil(tensors):
        tensors.pop("transformer.h.0.ln_1.bias")
        tensors["transformer.h.2.ln_1.bias"] = np.zeros(32, np.float32)
        tensors["transformer.wpe.weight"] = np.zeros((25, 32), np.float32)
        tensors["transformer.ln_f.bias"] = np.zeros(32, np.float64)

    rewrite(folder, spoil)
    with pytest.raises(InputError) as caught:
        from_pretrained(folder)
    message = str(caught.value)
    assert "missing: transformer.h.0.ln_1.bias;" in message
    assert "left over: transformer.h.2.ln_1.bias;" in message
    assert "transformer.wpe.weight is [25, 32], and wpe [24, 32]" in message
    assert "transformer.ln_f.bias is F64, none of F32, F16, BF16" in message
    assert "key=" not in message


def test_a_shape_is_told_as_the_checkpoint_has_it(tmp_path):
    model = llama(LLAMA)
    save_pretrained(tmp_path, model, made(model))
    settings(tmp_path, intermediate_size=47)
    with pytest.raises(InputError, match=r"mlp.up_proj.weight is \[48, 32\].*kernel \[32, 47\]"):
        from_pretrained(tmp_path)


def test_an_unknown_family(saved):
    folder = saved[0]
    settings(folder, model_type="rwkv")
    with pytest.raises(InputError, match="model_type is 'rwkv', and jcl knows gpt2, llama"):
        from_pretrained(folder)


@pytest.mark.parametrize(
    "fields",
    [
        {"activation_function": "relu"},
        {"n_inner": 96},
        {"scale_attn_by_inverse_layer_idx": True},
        {"tie_word_embeddings": False},
        {"attn_pdrop": 0.5},
    ],
)
def test_what_gpt2_is_not_made_for(saved, fields):
    folder = saved[0]
    settings(folder, **fields)
    with pytest.raises(InputError, match=f'"{next(iter(fields))}" is .* alone'):
        from_pretrained(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth"])
def test_a_pickle_is_not_read(saved, name):
    folder = saved[0]
    (folder / "model.safetensors").rename(folder / name)
    for source in (folder, folder / name):
        with pytest.raises(InputError, match=f"{name} may be a pickle.*save_pretrained"):
            from_pretrained(source)


def test_files_that_are_no_checkpoint(saved, tmp_path):
    folder = saved[0]
    with pytest.raises(InputError, match="no such folder"):
        from_pretrained(tmp_path / "nowhere")
    with pytest.raises(InputError, match="is a file: give the folder"):
        from_pretrained(folder / "model.safetensors")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-8])
    with pytest.raises(InputError, match="no whole file of safetensors"):
        from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"neither model.safetensors nor .*index.json is there"):
        from_pretrained(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match="config.json is no JSON"):
        from_pretrained(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(InputError, match="holds no JSON object"):
        from_pretrained(folder)
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match="there is no config.json"):
        from_pretrained(folder)


def test_the_hub(saved, monkeypatch):
    """A name that is no folder is fetched, weights and tokenizer alone."""
    import huggingface_hub

    asked = {}

    def fetch(name, **options):
        asked[name] = options
        return str(saved[0])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    equal(from_pretrained("someone/some-model")[1], saved[2])
    assert not any("bin" in pattern for pattern in asked["someone/some-model"]["allow_patterns"])

    def fail(name, **options):
        raise ConnectionError("the cable is cut\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(
        InputError, match=r"some-model' is no folder.*cable is cut\).*give its folder"
    ):
        from_pretrained("someone/some-model")


# Writing


def test_a_model_is_replaced_only_on_demand(saved):
    folder, model, params = saved
    other = jax.tree.map(lambda leaf: leaf + 1, params)
    with pytest.raises(InputError, match="holds a model already.*overwrite=True"):
        save_pretrained(folder, model, other)
    equal(from_pretrained(folder)[1], params)
    for name in ("adapter_config.json", "adapter_model.safetensors", "model-1.safetensors"):
        (folder / name).write_text("{}")
    (folder / "README.md").write_text("mine")
    save_pretrained(folder, model, other, overwrite=True)
    equal(from_pretrained(folder)[1], other)
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md", "config.json", "model.safetensors"
    ]  # fmt: skip


def test_a_full_disk_leaves_the_old_model(saved):
    folder, model, params = saved
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(SaveError, match="Make room"):
            save_pretrained(folder, model, jax.tree.map(jnp.zeros_like, params), overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    equal(from_pretrained(folder)[1], params)
    assert len([*folder.iterdir()]) == 2


def test_params_that_are_not_the_models(tmp_path):
    model = gpt2(SHAPE)
    params = made(model)
    adapted = jcl.models.adapters(model, width=2)
    with pytest.raises(InputError, match="without a place.*adapters/h_0/attn/down"):
        save_pretrained(tmp_path, adapted, made(adapted))
    missing = {name: leaf for name, leaf in params.items() if name != "wpe"}
    with pytest.raises(InputError, match="missing: wpe"):
        save_pretrained(tmp_path, model, missing)
    with pytest.raises(InputError, match=r"wpe is \[23, 32\], not \[24, 32\]"):
        save_pretrained(tmp_path, model, {**params, "wpe": params["wpe"][1:]})
    with pytest.raises(InputError, match="wpe is int32"):
        save_pretrained(tmp_path, model, {**params, "wpe": params["wpe"].astype(int)})
    mlp = jcl.models.mlp(jcl.models.MLPConfig(inputs=4, hidden=(8,), classes=3))
    with pytest.raises(InputError, match="no model of MLPConfig; jcl writes bert, gpt2, llama"):
        save_pretrained(tmp_path, mlp, made(mlp))
    with pytest.raises(InputError, match='lora="merged".*give the model that jcl.models.lora made'):
        save_pretrained(tmp_path, model, params, lora="merged")
    assert not [*tmp_path.iterdir()]


# LoRA


def adapted(shape):
    """(the model before, the model with LoRA, its params)."""
    shape = dataclasses.replace(shape, layers=1)
    base = (gpt2 if isinstance(shape, GPT2Config) else llama)(shape)
    model = lora(base, rank=3, alpha=6.0, where=("*attn*", "*mlp*"), slots=2)
    return base, model, made(model)


@pytest.mark.parametrize("shape", [SHAPE, LLAMA], ids=["gpt2", "llama"])
def test_lora_merged(shape, tmp_path):
    _, model, params = adapted(shape)
    with pytest.raises(InputError, match='say lora="merged"'):
        save_pretrained(tmp_path, model, params)
    save_pretrained(tmp_path, model, params, lora="merged")
    base, found = from_pretrained(tmp_path)
    equal(found, merge_lora(params, 6.0))
    wanted = jax.jit(model.apply)(params, INPUTS)
    np.testing.assert_allclose(
        jax.jit(base.apply)(found, INPUTS), wanted, atol=2e-4 * float(jnp.abs(wanted).max())
    )


@pytest.mark.parametrize("shape", [SHAPE, LLAMA], ids=["gpt2", "llama"])
def test_lora_as_an_adapter_by_hand(shape, tmp_path):
    """W + lora_alpha / r * B A, [out, in], is the merged kernel."""
    _, model, params = adapted(shape)
    save_pretrained(tmp_path, model, params, lora="adapter")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors"
    ]  # fmt: skip
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert config["task_type"] == "CAUSAL_LM"
    assert config["r"] == 6
    assert config["lora_alpha"] == 12.0
    assert config["fan_in_fan_out"] is (shape is SHAPE)  # Conv1D keeps [in, out]
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    module, path = ("transformer.h.0.mlp.c_fc", ("h_0", "mlp", "c_fc"))
    if shape is LLAMA:
        module, path = ("model.layers.0.mlp.up_proj", ("layers_0", "mlp", "up_proj"))
    assert module in config["target_modules"]
    assert len(tensors) == 2 * len(config["target_modules"])
    a, b = (tensors[f"base_model.model.{module}.lora_{name}.weight"] for name in "AB")
    kernel, merged = params, merge_lora(params, 6.0)
    for name in (*path, "kernel"):
        kernel, merged = kernel[name], merged[name]
    delta = config["lora_alpha"] / config["r"] * (b @ a).T
    np.testing.assert_allclose(kernel + delta, merged, atol=1e-5)
    with pytest.raises(InputError, match="holds an adapter and no model"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize("shape", [SHAPE, LLAMA], ids=["gpt2", "llama"])
def test_peft_loads_the_adapter(shape, tmp_path):
    peft = pytest.importorskip("peft", reason="PEFT is absent: pip install peft")
    parity = pytest.importorskip("parity", reason="PyTorch is absent: pip install torch==2.13.0")
    import transformers

    base, model, params = adapted(shape)
    save_pretrained(tmp_path / "base", base, {n: p for n, p in params.items() if n != "lora"})
    save_pretrained(tmp_path / "adapter", model, params, lora="adapter")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    with parity.torch.no_grad():
        answer = theirs(parity.torch.tensor(np.asarray(INPUTS, np.int64))).logits.numpy()
    wanted = jax.jit(model.apply)(params, INPUTS)
    np.testing.assert_allclose(answer, wanted, atol=2e-4 * float(jnp.abs(wanted).max()))


# Tokenizers


@pytest.fixture
def words():
    """A tokenizer of 40 words."""
    tokenizers = pytest.importorskip("tokenizers")
    import transformers

    table = {"<end>": 0, **{f"w{number}": number for number in range(1, 40)}}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(table, unk_token="<end>"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<end>")


def test_the_tokenizer_goes_with_the_model(tmp_path, words):
    model = gpt2(SHAPE)
    save_pretrained(tmp_path, model, made(model), tokenizer=words)
    found = jcl.models.tokenizer(tmp_path)
    assert found.encode("w3 w7 unknown") == [3, 7, 0]
    assert json.loads((tmp_path / "config.json").read_text())["eos_token_id"] == 0
    from_pretrained(tmp_path)

    small = gpt2(GPT2Config(39, positions=24, width=32, layers=2, heads=4))
    with pytest.raises(InputError, match="has 40 tokens and the model 39"):
        save_pretrained(tmp_path / "other", small, made(small), tokenizer=words)
    with pytest.raises(InputError, match="none of transformers' tokenizers"):
        save_pretrained(tmp_path / "other", model, made(model), tokenizer=jcl.data.ByteTokenizer())
    assert not (tmp_path / "other").exists()


def test_an_empty_vocabulary_is_refused(tmp_path, words):
    """transformers makes a GPT-2 tokenizer of one token where the vocabulary is missing."""
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    with pytest.raises(InputError, match="empty but for special tokens.*vocab.json and merges.txt"):
        jcl.models.tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(InputError, match="no tokenizer could be read"):
        jcl.models.tokenizer(tmp_path)
    words.save_pretrained(tmp_path / "full")
    assert len(jcl.models.tokenizer(tmp_path / "full")) == 40
