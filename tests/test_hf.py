"""Checkpoints of Hugging Face: what is read, what is written, what is refused."""

import dataclasses
import inspect
import json
import re
import resource
import sys
import tracemalloc
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from everything import ALL
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file

import jcl
from jcl import InputError
from jcl.errors import SaveError
from jcl.models import (
    BertConfig,
    GPT2Config,
    LlamaConfig,
    bert,
    from_pretrained,
    gpt2,
    llama,
    lora,
    merge_lora,
    save_pretrained,
)

SHAPE = GPT2Config(61, positions=24, width=32, layers=2, heads=4, dropout=0.0)
LLAMA = LlamaConfig(61, positions=24, width=32, inner=48, layers=2, heads=4, key_value_heads=2)
BERT = BertConfig(
    40, positions=9, width=8, layers=1, heads=2, inner=12, head="classes", classes=3, padding=1
)
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
    """JCL_ALL_TESTS=1 takes all its layers and its longest input, in some minutes."""
    layers, length = (12, 1024) if ALL else (2, 16)
    parity = pytest.importorskip("parity", reason="PyTorch is absent: pip install torch==2.13.0")
    import transformers

    theirs = parity.made(
        transformers.GPT2LMHeadModel(
            transformers.GPT2Config(n_layer=layers, attn_implementation="eager")
        ),
        spread=0.005,
    )
    theirs.save_pretrained(tmp_path)
    model, params = from_pretrained(tmp_path)
    inputs = jax.random.randint(jax.random.key(0), (3, length), 0, 50257)
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

    # A tensor counts where the index says that it is, and nowhere else.
    first = next(name for name, shard in shards.items() if shard == "model-0.safetensors")
    last = load_file(folder / "model-2.safetensors")
    save_file({**last, first: tensors[first] + 1}, folder / "model-2.safetensors")
    equal(from_pretrained(folder)[1], params)
    index.write_text(json.dumps({"weight_map": {**shards, first: "model-1.safetensors"}}))
    with pytest.raises(InputError, match=f"model-1.safetensors lacks {first}, .*fetch both"):
        from_pretrained(folder)
    index.write_text(json.dumps({"weight_map": shards}))

    (folder / "model-1.safetensors").rename(folder / "gone")
    with pytest.raises(InputError, match="model-1.safetensors, not there"):
        from_pretrained(folder)
    for wrong in ("../elsewhere.safetensors", "README.md"):
        index.write_text(json.dumps({"weight_map": {"a": wrong}}))
        with pytest.raises(InputError, match=f"must name files of the folder.*{wrong}"):
            from_pretrained(folder)


TABLE = "bert.embeddings.word_embeddings.weight"
COPIES = {
    "gpt2": (SHAPE, "lm_head.weight", "transformer.wte.weight", "tied always"),
    "llama": (
        dataclasses.replace(LLAMA, tied=True), "lm_head.weight", "model.embed_tokens.weight",
        "set tie_word_embeddings to false",
    ),
    "bert": (
        dataclasses.replace(BERT, head="masked_lm"), "cls.predictions.decoder.weight", TABLE,
        "tied always",
    ),
    "bias": (
        dataclasses.replace(BERT, head="masked_lm"), "cls.predictions.decoder.bias",
        "cls.predictions.bias", "tied always",
    ),
    "roberta": (
        dataclasses.replace(BERT, head="masked_lm", family="roberta"), "lm_head.decoder.weight",
        TABLE.replace("bert", "roberta"), "tied always",
    ),
    "distilbert": (
        dataclasses.replace(BERT, head="masked_lm", family="distilbert", types=0),
        "vocab_projector.weight", TABLE.replace("bert", "distilbert"), "tied always",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", COPIES)
def test_a_tied_head_that_is_none(kind, tmp_path):
    """The copy of the token table may be in the file, and must be one."""
    shape, copy, table, remedy = COPIES[kind]
    model = {GPT2Config: gpt2, LlamaConfig: llama, BertConfig: bert}[type(shape)](shape)
    params = made(model)
    save_pretrained(tmp_path, model, params)
    rewrite(tmp_path, lambda tensors: tensors.update({copy: tensors[table]}))
    equal(from_pretrained(tmp_path)[1], params)
    rewrite(tmp_path, lambda tensors: tensors.update({copy: tensors[table] + 1}))
    with pytest.raises(InputError, match=f"{copy} differs from {table}; .*{remedy}"):
        from_pretrained(tmp_path)


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
    with pytest.raises(InputError, match="dtype=bf16.*bfloat16"):
        from_pretrained(folder, dtype="bf16")
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


def test_a_head_of_another_shape_begins_afresh_on_demand(tmp_path):
    model = bert(BERT)
    params = made(model)
    save_pretrained(tmp_path, model, params)
    with pytest.raises(InputError, match=r"classifier.weight is \[3, 8\].*; give key="):
        from_pretrained(tmp_path, classes=5)
    new, found = from_pretrained(tmp_path, classes=5, key=jax.random.key(7))
    first = jax.jit(new.init)(jax.random.key(7))
    assert first["classifier"]["kernel"].shape == (8, 5)
    equal(found, {**params, "classifier": first["classifier"]})
    settings(tmp_path, intermediate_size=13)  # what is no head is refused, with a key too
    with pytest.raises(InputError, match=r"intermediate.dense.weight is \[12, 8\]") as caught:
        from_pretrained(tmp_path, key=jax.random.key(7))
    assert "key=" not in str(caught.value)
    settings(tmp_path, intermediate_size=12)
    spoiled = ("bert.embeddings.LayerNorm.weight", "classifier.weight")
    rewrite(tmp_path, lambda tensors: [tensors.pop(name) for name in spoiled])
    with pytest.raises(InputError, match=f"missing: {spoiled[0]}.$"):
        from_pretrained(tmp_path, key=jax.random.key(7))


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


def test_what_does_not_fit_the_sharding(saved):
    folder = saved[0]
    mesh = jax.make_mesh((8,), ("model",), axis_types=(AxisType.Auto,))
    columns = NamedSharding(mesh, PartitionSpec(None, "model"))
    with pytest.raises(InputError, match=r"h_0/attn/c_attn/bias is \[96\].*lambda path"):
        from_pretrained(folder, sharding=columns)
    rows = NamedSharding(mesh, PartitionSpec("model"))
    with pytest.raises(InputError, match=r"wte is \[61, 32\].*lambda path"):
        from_pretrained(folder, sharding=lambda path: rows if path == "wte" else None)
    with pytest.raises(InputError, match=r"sharding=a Mesh\): .*NamedSharding\(mesh"):
        from_pretrained(folder, sharding=mesh)


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


def test_packed_tensors_are_refused(saved):
    settings(saved[0], quantization_config={"bits": 4})
    with pytest.raises(InputError, match="quantization_config.*dequantize"):
        from_pretrained(saved[0])


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth"])
def test_a_pickle_is_not_read(saved, name):
    folder = saved[0]
    (folder / "model.safetensors").rename(folder / name)
    for source in (folder, folder / name):
        with pytest.raises(InputError, match=f"{name} may be a pickle.*save_pretrained"):
            from_pretrained(source)


def test_the_remedy_for_a_pickle_keeps_the_head(tmp_path):
    model = bert(BERT)
    save_pretrained(tmp_path, model, made(model))
    (tmp_path / "model.safetensors").rename(tmp_path / "model.bin")
    with pytest.raises(InputError, match="transformers.BertForSequenceClassification.from_pre"):
        from_pretrained(tmp_path)
    settings(tmp_path, architectures=["os.system(1)"])
    with pytest.raises(InputError, match="transformers.AutoModel.from_pretrained"):
        from_pretrained(tmp_path / "model.bin")


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_tensor_that_is_not_finite_is_named(saved, number):
    def spoil(tensors):
        tensors["transformer.wpe.weight"] = np.full((24, 32), number, np.float32)

    rewrite(saved[0], spoil)
    with pytest.raises(InputError, match="transformer.wpe.weight holds a NaN or an infinity"):
        from_pretrained(saved[0])


def test_nothing_is_no_checkpoint():
    with pytest.raises(InputError, match="None is no checkpoint: give its folder"):
        inspect.unwrap(from_pretrained)(None)


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
    (folder / "model-1.safetensors").write_text("of the old model")
    index = {"weight_map": {"wte": "model-1.safetensors", "wpe": "model-0.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    mine = ["README.md", "adapter_config.json", "adapter_model.safetensors", "mine.safetensors"]
    for name in mine:
        (folder / name).write_text("{}")
    save_pretrained(folder, model, other, overwrite=True)
    equal(from_pretrained(folder)[1], other)
    found = sorted(path.name for path in folder.iterdir())
    assert found == sorted([*mine, "config.json", "model.safetensors"])


def test_an_adapter_takes_the_place_of_an_adapter_alone(saved):
    folder, base, params = saved
    model = lora(base, rank=2, alpha=4.0)
    both = {**made(model), **params}
    with pytest.raises(InputError, match=r"holds a model already \(config.json, model.safet"):
        save_pretrained(folder, model, both, lora="adapter")
    for _ in range(2):
        save_pretrained(folder, model, both, lora="adapter", overwrite=True)
    equal(from_pretrained(folder)[1], params)
    assert len(load_file(folder / "adapter_model.safetensors")) == 8


def test_fields_of_config_json_that_the_model_does_not_know(tmp_path):
    model = bert(BERT)
    params, labels = made(model), {0: "no", 1: "maybe", 2: "yes"}
    own = {"id2label": labels, "problem_type": "single_label_classification", "eos_token_id": 5}
    save_pretrained(tmp_path, model, params, settings=own)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["id2label"] == {"0": "no", "1": "maybe", "2": "yes"}
    assert written["label2id"] == {"no": 0, "maybe": 1, "yes": 2}
    assert (written["problem_type"], written["eos_token_id"]) == (own["problem_type"], 5)
    named = dataclasses.replace(BERT, labels=("no", "maybe", "yes"))
    assert from_pretrained(tmp_path)[0].config == named
    for other in ({"hidden_size": 4}, {"pad_token_id": 0}):
        with pytest.raises(InputError, match=f"{next(iter(other))}.*another shape or padding"):
            save_pretrained(tmp_path / "other", model, params, settings=other)
    adapted = lora(model, rank=2, alpha=4.0)
    with pytest.raises(InputError, match="adapter has no config.json"):
        save_pretrained(tmp_path, adapted, made(adapted), lora="adapter", settings=own)
    assert not (tmp_path / "other").exists()


def test_the_names_of_labels_survive(tmp_path):
    model = bert(BERT)
    params, names = made(model), {0: "no", 1: "maybe", 2: "yes"}
    save_pretrained(tmp_path / "one", model, params, settings={"id2label": names})
    save_pretrained(tmp_path / "two", *from_pretrained(tmp_path / "one"))
    files = [tmp_path / name / "config.json" for name in ("one", "two")]
    one, two = (json.loads(file.read_text()) for file in files)
    assert one == two
    assert two["id2label"] == {"0": "no", "1": "maybe", "2": "yes"}
    other, _ = from_pretrained(tmp_path / "two", classes=5, key=jax.random.key(0))
    assert other.config.labels == ()  # another head's classes are others
    with pytest.raises(InputError, match=r"labels=\('no', 'no', 'yes'\)\): give each class a name"):
        dataclasses.replace(BERT, labels=("no", "no", "yes"))


@pytest.mark.parametrize(
    "labels",
    [
        ["no", "maybe", "yes"],
        {0: "no", 1: "yes"},
        {5: "no", 6: "maybe", 7: "yes"},
        {0: "no", 1: "yes", 2: "yes"},
        {0: "no", 1: "yes", 2: 2},
    ],
)
def test_labels_that_do_not_name_each_class(labels, tmp_path):
    model = bert(BERT)
    with pytest.raises(InputError, match="give each of the 3 classes a name of its own, from 0 on"):
        save_pretrained(tmp_path, model, made(model), settings={"id2label": labels})
    assert not [*tmp_path.iterdir()]


def test_settings_that_are_no_json(saved, tmp_path):
    with pytest.raises(InputError, match=r"\{\"x\": a float32\}\): no JSON .*plain numbers"):
        save_pretrained(tmp_path / "other", *saved[1:], settings={"x": np.float32(1)})


def test_the_mean_has_no_classifier_in_hugging_face(tmp_path):
    model = bert(dataclasses.replace(BERT, pooling="mean"))
    params = made(model)
    with pytest.warns(UserWarning, match='no classifier over the mean.*pooling="first"') as caught:
        save_pretrained(tmp_path / "classes", model, params)
    assert len(caught) == 1
    again, found = from_pretrained(tmp_path / "classes")
    assert again.config == model.config
    equal(found, params)
    model = bert(dataclasses.replace(model.config, head="features"))
    with warnings.catch_warnings(action="error"):
        save_pretrained(tmp_path / "features", model, made(model))


def test_config_json_has_the_widest_type(saved, tmp_path):
    _, model, params = saved
    narrow = {**params, "h_0": jax.tree.map(lambda x: x.astype("bfloat16"), params["h_0"])}
    save_pretrained(tmp_path / "mixed", model, narrow)
    assert json.loads((tmp_path / "mixed" / "config.json").read_text())["dtype"] == "float32"
    equal(from_pretrained(tmp_path / "mixed", dtype="auto")[1], narrow)


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
    with pytest.raises(InputError, match='lora="?\'?mergd.*one of "merged", "adapter"'):
        save_pretrained(tmp_path, model, params, lora="mergd")
    with pytest.raises(InputError, match='no entry "lora"'):
        merge_lora(params, 4.0)
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


def test_lora_merged_into_narrow_kernels(tmp_path):
    """The sum is rounded once, and not without a word."""
    _, model, params = adapted(SHAPE)
    params = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), params)
    wide = jax.tree.map(lambda leaf: leaf.astype("float32"), params)
    wanted = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), merge_lora(wide, 6.0))
    with pytest.warns(UserWarning, match="kernels are bfloat16.*Cast the params first"):
        equal(merge_lora(params, 6.0), wanted)
    with pytest.warns(UserWarning, match="kernels are bfloat16.*Cast the params first"):
        save_pretrained(tmp_path, model, params, lora="merged")
    equal(from_pretrained(tmp_path, dtype="auto")[1], wanted)


@pytest.mark.parametrize(
    ("head", "pooling"), [("features", "first"), ("features", "mean"), ("classes", "mean")]
)
@pytest.mark.filterwarnings("ignore:.*no classifier over the mean")
def test_a_bare_bert_has_no_prefix(head, pooling, tmp_path):
    """As BertModel, which Hugging Face makes of it, and on which PEFT looks for the modules."""
    base = bert(dataclasses.replace(BERT, head=head, pooling=pooling))
    model = lora(base, rank=2, alpha=4.0, where="*/query")
    params = made(model)
    save_pretrained(tmp_path / "adapter", model, params, lora="adapter")
    save_pretrained(tmp_path / "base", base, {n: p for n, p in params.items() if n != "lora"})
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["encoder.layer.0.attention.self.query"]
    adapter = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    query = "encoder.layer.0.attention.self.query"
    assert f"base_model.model.{query}.lora_A.weight" in adapter
    assert f"{query}.weight" in load_file(tmp_path / "base" / "model.safetensors")


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
    peft = pytest.importorskip("peft", reason="PEFT is absent: pip install peft==0.21.2")
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


FAMILIES = {"bert": 2, "roberta": 2, "distilbert": 0}  # the token types of each
SAVED = {
    "bert": ["bert.pooler.dense", "classifier"],
    "roberta": ["classifier"],
    "distilbert": ["classifier", "pre_classifier"],
}
HEADS = {
    "bert": ("bert.pooler.dense", "classifier"),
    "roberta": ("classifier.dense", "classifier.out_proj"),
    "distilbert": ("pre_classifier", "classifier"),
}


def classifier(family):
    """(the model before, the model with LoRA also of its head, its params)."""
    base = bert(dataclasses.replace(BERT, family=family, types=FAMILIES[family]))
    model = lora(base, rank=2, alpha=4.0, where=("*/query", "classifier"))
    return base, model, made(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_holds_the_head_of_a_classifier(family, tmp_path):
    _, model, params = classifier(family)
    save_pretrained(tmp_path, model, params, lora="adapter")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["task_type"] == "SEQ_CLS"
    assert sorted(config["modules_to_save"]) == SAVED[family]
    assert len(config["target_modules"]) == 1  # the query; the head is whole
    tensors, merged = load_file(tmp_path / "adapter_model.safetensors"), merge_lora(params, 4.0)
    for name, path in zip(HEADS[family], ("pooler", "classifier"), strict=True):
        kernel = tensors.pop(f"base_model.model.{name}.weight")
        np.testing.assert_allclose(kernel.T, merged[path]["kernel"], atol=1e-6)
        bias = tensors.pop(f"base_model.model.{name}.bias")
        np.testing.assert_array_equal(bias, params[path]["bias"])
    assert {name.split(".")[-2] for name in tensors} == {"lora_A", "lora_B"}
    head = lora(bert(BERT), rank=2, alpha=4.0, where="classifier")
    with pytest.raises(InputError, match='beside the head alone.*lora="merged"'):
        save_pretrained(tmp_path / "head", head, made(head), lora="adapter")


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_loads_the_adapter_of_a_classifier(family, tmp_path):
    peft = pytest.importorskip("peft", reason="PEFT is absent: pip install peft==0.21.2")
    parity = pytest.importorskip("parity", reason="PyTorch is absent: pip install torch==2.13.0")
    import transformers

    base, model, params = classifier(family)
    save_pretrained(tmp_path / "adapter", model, params, lora="adapter")
    # The head that PEFT finds there is another.
    before = {name: leaf for name, leaf in params.items() if name != "lora"}
    before |= {name: made(base, seed=2)[name] for name in ("pooler", "classifier")}
    save_pretrained(tmp_path / "base", base, before)
    auto = transformers.AutoModelForSequenceClassification
    theirs = auto.from_pretrained(tmp_path / "base")
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    inputs = np.asarray(INPUTS[:, :9] % 38 + 2)
    with parity.torch.no_grad():
        answer = theirs(parity.torch.tensor(inputs.astype(np.int64))).logits.numpy()
    np.testing.assert_allclose(answer, jax.jit(model.apply)(params, inputs), atol=1e-4)


def test_what_was_trained_beside_the_adapter_is_named(tmp_path):
    base = bert(BERT)
    save_pretrained(tmp_path / "base", base, made(base))
    base, params = from_pretrained(tmp_path / "base")
    model = lora(jcl.models.starting_from(base, params), rank=2, alpha=4.0)
    params = {**jax.jit(model.init)(jax.random.key(0)), "classifier": made(base, 2)["classifier"]}
    with warnings.catch_warnings(action="error"):
        save_pretrained(tmp_path / "one", model, params, lora="adapter")
    config = json.loads((tmp_path / "one" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "base")
    params["embeddings"] = made(base, 2)["embeddings"]
    with pytest.warns(UserWarning, match="without what was trained beside it, embeddings/Layer"):
        save_pretrained(tmp_path / "two", model, params, lora="adapter")
    mean = lora(bert(dataclasses.replace(BERT, pooling="mean")), rank=2, alpha=4.0)
    with pytest.warns(UserWarning, match="no classifier over the mean, so that the adapter"):
        save_pretrained(tmp_path / "mean", mean, made(mean), lora="adapter")


def test_make_parity_runs_all_that_compares_with_pytorch():
    tests = Path(__file__).parent
    torch = re.compile(r'importorskip\(\s*"(torch|parity)"')
    compare = {path.stem for path in tests.glob("test_*.py") if torch.search(path.read_text())}
    (named,) = re.findall(r"^PARITY := .*,(.*)\)", (tests.parent / "Makefile").read_text(), re.M)
    assert compare == {f"test_{name}" for name in named.split()}


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
    roberta = bert(dataclasses.replace(BERT, family="roberta", padding=1))
    words.pad_token = "w5"
    with pytest.raises(InputError, match="pads with token 5 and the RoBERTa with 1"):
        save_pretrained(tmp_path / "other", roberta, made(roberta), tokenizer=words)
    assert not (tmp_path / "other").exists()
    words.pad_token = "w1"
    save_pretrained(tmp_path / "roberta", roberta, made(roberta), tokenizer=words)


def test_an_empty_vocabulary_is_refused(tmp_path, words):
    """transformers makes a GPT-2 tokenizer of one token where the vocabulary is missing."""
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    with pytest.raises(InputError, match="empty but for special tokens.*vocab.json and merges.txt"):
        jcl.models.tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1, "ab": 2}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    with pytest.raises(
        InputError, match="(?s)no tokenizer could be read.*beside them a config.json"
    ):
        jcl.models.tokenizer(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')  # the remedy
    assert jcl.models.tokenizer(tmp_path).encode("aba") == [2, 0]
    words.save_pretrained(tmp_path / "full")
    assert len(jcl.models.tokenizer(tmp_path / "full")) == 40
