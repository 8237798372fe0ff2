"""BERT, RoBERTa and DistilBERT against Hugging Face's in PyTorch, and their own promises."""

import dataclasses
import functools
import json
import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file, save_file

import jcl
from jcl import InputError, paths
from jcl.models import BertConfig, adapters, bert, cosine_head, lora, merge_lora, prompts, wrapping
from jcl.models.bert import HEAD, IGNORED, PREFIX, RENAMED, from_hf, tensors, to_hf
from jcl.models.layers import gelu

FAMILIES = {"bert": "Bert", "roberta": "Roberta", "distilbert": "DistilBert"}
HEADS = {"masked_lm": "ForMaskedLM", "classes": "ForSequenceClassification", "features": "Model"}

SMALL = BertConfig(
    vocab_size=31, positions=12, width=16, layers=1, heads=2, inner=24, head="classes", classes=3
)
INPUTS = jax.random.randint(jax.random.key(0), (4, 12), 2, 31)
REAL = (jnp.arange(12) < jnp.array([12, 5, 9, 1])[:, None]).astype(jnp.int32)
BATCH = {"inputs": INPUTS * REAL, "attention_mask": REAL, "targets": jnp.array([0, 2, 1, 2])}


def at_random(shapes, seed=1):
    """Params of those shapes, biases and scales as well at random."""
    generator = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(generator.normal(0.0, 0.3, shape.shape), shape.dtype), shapes
    )


def make(config=SMALL):
    model = bert(config)
    return model, at_random(wrapping.shapes(model))


def run(function, *arguments, attention_mask=None):
    """function(params, inputs, ..., attention_mask), compiled: op by op takes longer."""
    return jax.jit(function)(*arguments, attention_mask=attention_mask)


def flat(params):
    return dict(zip(wrapping.names(params), jax.tree.leaves(params), strict=True))


def unflat(like, leaves):
    structure = jax.tree.structure(like)
    return structure.unflatten([jnp.asarray(leaves[path]) for path in wrapping.names(like)])


def shorter(name):
    return re.sub("|".join(f"^{re.escape(prefix)}" for prefix in PREFIX), "", name)


def read(model, found):
    """Tensors by Hugging Face's names -> params, and the names left over."""
    found = {shorter(name): tensor for name, tensor in found.items()}
    leaves = {}
    for path, tensor in tensors(model.config).items():
        leaf = found.pop(shorter(tensor.name))
        leaves[path] = leaf.T if tensor.transpose else leaf
    shapes = wrapping.shapes(model)
    assert {path: leaf.shape for path, leaf in leaves.items()} == {
        path: leaf.shape for path, leaf in flat(shapes).items()
    }
    return unflat(shapes, leaves), list(found)


def write(folder, config, params):
    """A checkpoint as Hugging Face's from_pretrained reads it."""
    leaves = flat(params)
    found = {}
    for path, tensor in tensors(config).items():
        leaf = np.asarray(leaves[path])
        found[tensor.name] = np.ascontiguousarray(leaf.T) if tensor.transpose else leaf
    save_file(found, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(to_hf(config)))


def theirs(family, head, **fields):
    """Their model of random weights, all different."""
    torch = pytest.importorskip("torch", reason="PyTorch is absent: pip install torch==2.13.0")
    import transformers

    torch.manual_seed(0)
    name = FAMILIES[family]
    common = dict(vocab_size=61, pad_token_id=1, num_labels=5)
    if family == "distilbert":
        shape = dict(max_position_embeddings=18, dim=24, n_layers=1, n_heads=3, hidden_dim=40)
    else:
        shape = dict(
            max_position_embeddings=20 if family == "roberta" else 18, hidden_size=24,
            num_hidden_layers=1, num_attention_heads=3, intermediate_size=40,
        )  # fmt: skip
    config = getattr(transformers, f"{name}Config")(**common | shape | fields)
    model = getattr(transformers, f"{name}{HEADS[head]}")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return torch, model


def padded(sides, length=18, padding=1):
    """Inputs of 2 to 60 and their attention_mask, the rows padded left, right or not at all."""
    inputs = np.random.default_rng(0).integers(2, 61, (len(sides), length))
    mask = np.ones_like(inputs)
    for row, side in enumerate(sides):
        if side == "left":
            mask[row, : 7 + row] = 0
        elif side == "right":
            mask[row, 7 - row :] = 0
    return np.where(mask, inputs, padding), mask


CASES = [
    ("bert", "masked_lm", {"num_hidden_layers": 2}),
    ("bert", "masked_lm", {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5, "type_vocab_size": 1}),
    ("bert", "classes", {"hidden_act": "relu", "hidden_size": 20, "num_attention_heads": 1}),
    ("bert", "features", {}),
    ("roberta", "masked_lm", {"hidden_act": "relu", "type_vocab_size": 1, "layer_norm_eps": 1e-5}),
    ("roberta", "classes", {"num_labels": 2, "num_hidden_layers": 2}),
    ("roberta", "features", {}),
    ("distilbert", "masked_lm", {"activation": "relu"}),
    ("distilbert", "classes", {"n_layers": 2}),
    ("distilbert", "features", {"sinusoidal_pos_embds": True}),
]


@pytest.mark.parametrize(("family", "head", "fields"), CASES)
def test_logits_and_gradients_equal_hugging_faces(family, head, fields, tmp_path):
    torch, model = theirs(family, head, **fields)
    model.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    ours = bert(from_hf(settings))
    assert ours.config.positions == 18
    assert ours.config.head == head
    params, rest = read(ours, load_file(tmp_path / "model.safetensors"))
    assert rest == []

    def answer(inputs, mask):
        """Their output for every token or input, and their pooled one if they have it."""
        mask = None if mask is None else torch.tensor(mask)
        found = model(input_ids=torch.tensor(inputs), attention_mask=mask)
        if head != "features":
            return found.logits, None
        return found.last_hidden_state, found.get("pooler_output")

    def check(got, expected):
        np.testing.assert_allclose(got, expected.detach().numpy(), atol=1e-4)
        assert expected.std() > 0.1

    whole, _ = padded(["no"] * 3)  # at the longest input
    check(run(ours.apply, params, jnp.asarray(whole)), answer(whole, None)[0])

    # Padding on the right for the gradient: on the left PyTorch gives the embedding of a padding
    # token none, also where the head reads it.
    inputs, mask = padded(["right", "no", "right"])
    targets = np.random.default_rng(2).integers(0, 2, len(inputs))
    counted, weights = np.ones(len(inputs)), np.random.default_rng(1).normal(size=(*mask.shape, 1))
    if head == "masked_lm":
        targets, counted = whole[::-1], mask * (np.arange(18) % 3 == 0)
    weights = np.asarray(weights * mask[..., None], np.float32)
    output, pooled = answer(inputs, mask)
    if head == "features":
        value = (output * torch.tensor(weights)).square().mean()
        value = value if pooled is None else value + pooled.square().mean()
    else:
        labels = torch.tensor(np.where(counted, targets, -100)).reshape(-1)
        scores = output.reshape(-1, output.shape[-1])
        value = torch.nn.functional.cross_entropy(scores, labels)
    value.backward()

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def differentiated(params, inputs, mask):
        call = dict(inputs=inputs, attention_mask=mask)
        if head == "features":
            output, own = ours.apply(params, **call), ours.features(params, **call)
            loss = jnp.square(output * weights).mean()
            return loss if pooled is None else loss + jnp.square(own).mean(), (output, own)
        task = jcl.losses.masked_lm if head == "masked_lm" else jcl.losses.classify
        batch = call | {"targets": jnp.asarray(targets), "mask": jnp.asarray(counted)}
        loss, aux = task(ours.apply)(params, batch, None)
        return loss, (aux["logits"], None)

    left, left_mask = padded(["left", "no", "left"])
    (_, (got, own)), _ = differentiated(params, jnp.asarray(left), jnp.asarray(left_mask))
    expected, expected_pooled = answer(left, left_mask)
    check(got, expected)
    if own is not None:
        check(own, expected[:, 0] if expected_pooled is None else expected_pooled)

    (loss, (got, _)), gradient = differentiated(params, jnp.asarray(inputs), jnp.asarray(mask))
    check(got, output)
    np.testing.assert_allclose(loss, value.item(), rtol=1e-4)
    theirs_by_name = {shorter(name): leaf for name, leaf in model.named_parameters()}
    gradient, largest = flat(gradient), 0.0
    for path, tensor in tensors(ours.config).items():
        parameter = theirs_by_name[shorter(tensor.name)]
        if not parameter.requires_grad:
            assert "sinusoidal_pos_embds" in fields
            continue
        expected = parameter.grad.numpy().T if tensor.transpose else parameter.grad.numpy()
        np.testing.assert_allclose(gradient[path], expected, atol=1e-3, err_msg=path)
        largest = max(largest, np.abs(expected).max())
    assert largest > 0.05  # the tolerance is small against what it compares


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("head", HEADS)
def test_hugging_face_loads_what_we_write(family, head, tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is absent: pip install torch==2.13.0")
    import transformers

    config = dataclasses.replace(
        SMALL, family=family, head=head, types=0 if family == "distilbert" else 2, padding=1
    )
    model, params = make(config)
    write(tmp_path, config, params)
    kind = getattr(transformers, FAMILIES[family] + HEADS[head])
    loaded, info = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    with torch.no_grad():
        answer = loaded.eval()(
            input_ids=torch.tensor(np.asarray(INPUTS, np.int64)),
            attention_mask=torch.tensor(np.asarray(REAL, np.int64)),
        )
    expected = answer.last_hidden_state if head == "features" else answer.logits
    np.testing.assert_allclose(
        run(model.apply, params, INPUTS, attention_mask=REAL), expected.numpy(), atol=1e-4
    )


@pytest.mark.parametrize("pooling", ["first", "mean"])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_config_survives_its_way_through_config_json(family, head, pooling):
    config = BertConfig(
        vocab_size=40, positions=9, width=12, layers=1, heads=3, inner=10,
        types=0 if family == "distilbert" else 3, dropout=0.25, head=head,
        classes=7 if head == "classes" else 2, pooling="first" if head == "masked_lm" else pooling,
        activation="gelu_new", family=family, padding=3,
    )  # fmt: skip
    assert from_hf(json.loads(json.dumps(to_hf(config)))) == config


@pytest.mark.parametrize("head", ["masked_lm", "classes"])
def test_pairs_of_texts_equal_hugging_faces(head, tmp_path):
    torch, model = theirs("bert", head)
    model.save_pretrained(tmp_path)
    ours, params = jcl.models.from_pretrained(tmp_path)
    inputs, mask = padded(["right", "no", "right"])
    types = np.where(np.arange(18) > 5, mask, 0)
    expected = model(
        **{"input_ids": torch.tensor(inputs), "attention_mask": torch.tensor(mask)},
        token_type_ids=torch.tensor(types),
    ).logits.detach()
    batch = {"inputs": inputs, "attention_mask": mask, "token_types": types}
    predict = jax.jit(lambda params, batch: jcl.losses.outputs(ours.apply, params, batch))
    np.testing.assert_allclose(predict(params, batch), expected, atol=1e-4)
    del batch["token_types"]
    assert np.abs(predict(params, batch) - expected.numpy()).max() > 0.01
    with pytest.raises(InputError, match=r"token_types has the shape \(3, 17\)"):
        jax.eval_shape(predict, params, {**batch, "token_types": types[:, 1:]})


SETTINGS = to_hf(SMALL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "electra"}, "model_type='electra': one of bert, roberta, distilbert"),
        ({"hidden_act": "silu"}, "hidden_act='silu': one of gelu, gelu_new, relu"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key'"),
        ({"is_decoder": True}, "is_decoder=True: only False is known"),
        ({"add_cross_attention": True}, "add_cross_attention=True"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings=False"),
        ({"architectures": ["BertForTokenClassification"]}, "BertForTokenClassification.*BertMod"),
        ({"num_attention_heads": 3}, r"heads=3\): the width must be a multiple"),
    ],
)
def test_what_a_config_json_may_not_hold(change, message):
    with pytest.raises(InputError, match=message):
        from_hf(SETTINGS | change)


def test_what_a_config_json_must_and_need_not_hold():
    with pytest.raises(InputError, match="lacks the field 'hidden_size'"):
        from_hf({name: value for name, value in SETTINGS.items() if name != "hidden_size"})
    spared = ("architectures", "id2label", "label2id", "pad_token_id", "layer_norm_eps")
    config = from_hf({name: value for name, value in SETTINGS.items() if name not in spared})
    assert config == dataclasses.replace(SMALL, head="features", classes=2)
    assert from_hf(SETTINGS | {"hidden_act": "gelu_pytorch_tanh"}).activation == "gelu_new"
    pretraining = SETTINGS | {"architectures": ["BertForPreTraining"]}
    assert from_hf(pretraining).head == "masked_lm"
    with pytest.raises(InputError, match=r"epsilon=1e-05\).*DistilBERT"):
        to_hf(dataclasses.replace(SMALL, family="distilbert", types=0, epsilon=1e-5))


def test_names_beside_the_params():
    """What BERT base's checkpoint holds beside its masked-LM model, and what other heads leave."""
    known = [
        "bert.embeddings.position_ids", "embeddings.position_ids", "bert.pooler.dense.weight",
        "pooler.dense.bias", "cls.seq_relationship.weight", "cls.predictions.decoder.weight",
        "cls.predictions.decoder.bias", "lm_head.decoder.weight", "lm_head.dense.weight",
        "vocab_projector.weight", "vocab_layer_norm.bias", "classifier.weight",
        "classifier.out_proj.bias", "pre_classifier.weight",
    ]  # fmt: skip
    kept = ["bert.encoder.layer.0.output.dense.weight", "embeddings.word_embeddings.weight"]
    for name in known:
        assert any(re.search(pattern, name) for pattern in IGNORED), name
    for name in kept:
        assert not any(re.search(pattern, name) for pattern in IGNORED), name
    old = "bert.encoder.layer.0.output.LayerNorm.gamma"
    for pattern, new in RENAMED:
        old = re.sub(pattern, new, old)
    assert old == "bert.encoder.layer.0.output.LayerNorm.weight"


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_head_is_not_in_a_bare_encoder(family):
    types = 0 if family == "distilbert" else 2
    name = lambda head, pooling: {
        shorter(tensor.name): path
        for path, tensor in tensors(
            dataclasses.replace(SMALL, family=family, types=types, head=head, pooling=pooling)
        ).items()
    }
    bare = name("features", "mean")
    for head, pooling in [("classes", "first"), ("classes", "mean"), ("masked_lm", "first")]:
        own = name(head, pooling)
        assert set(bare) <= set(own)
        missing = [path for tensor, path in own.items() if tensor not in bare]
        assert missing
        assert all(paths.matches(path, HEAD) for path in missing)
        assert not any(paths.matches(path, HEAD) for path in bare.values())


def test_the_pretrained_encoder_equals_hugging_faces():
    folder = Path(os.environ.get("JCL_DATA", "absent")) / "minilm_l6"
    if not (folder / "model.safetensors").exists():
        pytest.skip("minilm_l6/model.safetensors is absent: set JCL_DATA to the folder it lies in")
    torch = pytest.importorskip("torch", reason="PyTorch is absent: pip install torch==2.13.0")
    import transformers

    config = from_hf(json.loads((folder / "config.json").read_text()))
    assert (config.head, config.layers, config.width) == ("features", 6, 384)
    found = load_file(folder / "model.safetensors")
    model = bert(config)
    params, rest = read(model, found)
    assert rest == ["embeddings.position_ids"]
    assert all(re.search(IGNORED[0], name) for name in rest)

    generator = np.random.default_rng(0)
    inputs = generator.integers(1000, 30000, (3, 40))
    mask = (np.arange(40) < np.array([40, 9, 23])[:, None]).astype(np.int64)
    inputs = np.where(mask, inputs, 0)
    inputs[:, 0] = 101
    with torch.no_grad():
        answer = transformers.BertModel.from_pretrained(folder).eval()(
            torch.tensor(inputs), attention_mask=torch.tensor(mask)
        )
    hidden = answer.last_hidden_state.numpy()
    real = jnp.asarray(mask)
    tokens = jnp.asarray(inputs)
    np.testing.assert_allclose(
        run(model.apply, params, tokens, attention_mask=real), hidden, atol=1e-5
    )
    mean = bert(dataclasses.replace(config, pooling="mean"))
    params, rest = read(mean, found)
    assert rest == ["embeddings.position_ids", "pooler.dense.bias", "pooler.dense.weight"]
    expected = (hidden * mask[..., None]).sum(axis=1) / mask.sum(axis=1)[:, None]
    np.testing.assert_allclose(
        run(mean.features, params, tokens, attention_mask=real), expected, atol=1e-5
    )


@pytest.mark.parametrize(
    ("head", "pooling"), [("masked_lm", "first"), ("classes", "first"), ("features", "mean")]
)
def test_what_stands_in_the_padding_does_not_act(head, pooling):
    model, params = make(dataclasses.replace(SMALL, head=head, pooling=pooling))
    function = model.features if head == "features" else model.apply
    other = jnp.where(REAL, INPUTS, 7)
    one, two = (run(function, params, tokens, attention_mask=REAL) for tokens in (INPUTS, other))
    real = REAL[..., None] if head == "masked_lm" else 1
    np.testing.assert_allclose(one * real, two * real, atol=1e-6)
    assert jnp.abs(run(function, params, INPUTS) - run(function, params, other)).max() > 1e-3
    short = run(function, params, INPUTS[1:2, :5])
    np.testing.assert_allclose(one[1:2, :5] if one.ndim == 3 else one[1:2], short, atol=1e-5)


def test_an_example_of_padding_alone_stays_finite():
    model, params = make(dataclasses.replace(SMALL, pooling="mean"))
    batch = {**BATCH, "attention_mask": jnp.zeros_like(REAL), "mask": jnp.zeros(4)}
    loss_fn = jcl.losses.classify(model.apply)
    differentiated = jax.jit(jax.value_and_grad(loss_fn, has_aux=True), static_argnums=2)
    (value, aux), gradient = differentiated(params, batch, None)
    assert float(value) == 0
    assert not any(jnp.any(leaf != 0) for leaf in jax.tree.leaves(gradient))  # nor NaN
    assert jnp.all(jnp.isfinite(aux["logits"]))


def test_dropout_acts_only_with_a_key():
    config = dataclasses.replace(SMALL, dropout=0.3)
    (model, params), (without, _) = make(config), make(dataclasses.replace(config, dropout=0.0))
    apply = jax.jit(model.apply)
    expected = jax.jit(without.apply)(params, INPUTS, jax.random.key(3))
    np.testing.assert_array_equal(apply(params, INPUTS), expected)
    one, two = (apply(params, INPUTS, jax.random.key(seed)) for seed in (3, 4))
    np.testing.assert_array_equal(apply(params, INPUTS, jax.random.key(3)), one)
    assert jnp.abs(one - expected).max() > 1e-3
    assert jnp.abs(one - two).max() > 1e-3


def test_the_scale_of_the_first_weights():
    config = dataclasses.replace(SMALL, vocab_size=200, width=64, inner=64)
    params = flat(jax.jit(bert(config).init)(jax.random.key(0)))
    for path, leaf in params.items():
        name = path.rpartition("/")[2]
        if name in ("scale", "bias"):
            assert jnp.all(leaf == (name == "scale")), path
        elif leaf.size > 1000:
            np.testing.assert_allclose(jnp.std(leaf), 0.02, rtol=0.1, err_msg=path)


def test_bert_base_has_its_published_size():
    shapes = wrapping.shapes(bert(BertConfig(head="features")))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 109_482_240


def test_what_is_refused():
    model, params = make()
    with pytest.raises(InputError, match="13 tokens long and the model has 12"):
        model.apply(params, jnp.zeros((1, 13), jnp.int32))
    with pytest.raises(InputError, match=r"shape \(4, 1\) and the inputs \(4, 12\)"):
        model.apply(params, INPUTS, attention_mask=REAL[:, :1])
    for field, value in [
        ("heads", 5), ("layers", 0), ("dropout", 1.0), ("vocab_size", 0), ("inner", 0),
        ("epsilon", 0.0), ("head", "lm"), ("pooling", "last"), ("activation", "silu"),
        ("family", "albert"), ("types", 0), ("padding", -1), ("classes", 0),
    ]:  # fmt: skip
        with pytest.raises(InputError, match=field):
            dataclasses.replace(SMALL, **{field: value})
    with pytest.raises(InputError, match="DistilBERT has no token types"):
        dataclasses.replace(SMALL, family="distilbert")


def test_the_backward_pass_of_gelu_by_hand():
    x, weights = jax.random.normal(jax.random.key(5), (2, 6, 16)) * 2
    plain = lambda x: jax.nn.gelu(x, approximate=False)

    def loss(function):
        return lambda x: jnp.sum(weights * function(x) ** 2)

    def curvature(function):
        return jax.grad(lambda x: jnp.sum(weights * jax.grad(loss(function))(x)))

    def results(function):
        return jax.jit(lambda x: (function(x), jax.grad(loss(function))(x), curvature(function)(x)))

    for ours, theirs in zip(results(gelu)(x), results(plain)(x), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
        assert jnp.abs(theirs).max() > 1


def test_lora_adapts_it_by_path_and_merges():
    model, _ = make()
    adapted = lora(model, rank=2, alpha=4.0, where=["layer_*/attn/query", "layer_*/attn/value"])
    params = at_random(wrapping.shapes(adapted))
    assert set(params["lora"]["layer_0"]["attn"]) == {"query", "value"}
    plain = jax.jit(model.apply)
    merged = plain(merge_lora(params, 4.0), INPUTS, attention_mask=REAL)
    got = run(adapted.apply, params, INPUTS, attention_mask=REAL)
    np.testing.assert_allclose(got, merged, atol=1e-5)
    base = {name: leaf for name, leaf in params.items() if name != "lora"}
    assert jnp.abs(merged - plain(base, INPUTS, attention_mask=REAL)).max() > 1e-3
    by_default = wrapping.shapes(lora(model, 1, 1.0))["lora"]["layer_0"]["attn"]
    assert set(by_default) == {"query", "key", "value", "output"}


def test_adapters_stand_behind_attention_and_mlp():
    """With `up` zero an adapter adds its bias, as the module's last Dense does."""
    model, base = make()
    adapted = adapters(model, width=3)
    own = jax.tree.map(jnp.zeros_like, wrapping.shapes(adapted)["adapters"])
    assert set(own["layer_0"]) == {"attn", "mlp"}
    moved = jax.tree.map(lambda leaf: leaf, base)
    for module in ("attn", "mlp"):
        own["layer_0"][module]["up_bias"] += jnp.arange(16.0)
        moved["layer_0"][module]["output"]["bias"] += jnp.arange(16.0)
    np.testing.assert_allclose(
        run(adapted.apply, {**base, "adapters": own}, INPUTS, attention_mask=REAL),
        run(model.apply, moved, INPUTS, attention_mask=REAL),
        atol=1e-5,
    )


def test_the_cosine_head_takes_the_place_of_its_classifier():
    model, params = make()
    x, kernel = run(model.features, params, INPUTS, attention_mask=REAL), params["classifier"]
    kernel = kernel["kernel"]
    x = x / jnp.linalg.norm(x, axis=1, keepdims=True)
    expected = 7.0 * x @ (kernel / jnp.linalg.norm(kernel, axis=0))
    headed = cosine_head(model, "classifier", scale=7.0)
    np.testing.assert_allclose(
        run(headed.apply, params, INPUTS, attention_mask=REAL), expected, atol=1e-5
    )


def test_a_prompt_of_token_rows_equals_those_tokens_in_front():
    config = dataclasses.replace(SMALL, head="masked_lm", positions=18)
    base, rows = make(config)[1], jnp.array([[4, 9, 1], [16, 0, 7]])
    model = prompts(bert, config, length=3, slots=2, table="embeddings/word_embeddings")
    params = {**base, "prompt": base["embeddings"]["word_embeddings"][rows]}
    front = jnp.tile(rows[::-1].reshape(1, 6), (4, 1))
    tokens = jnp.concatenate([front, INPUTS], axis=1)
    mask = jnp.concatenate([jnp.ones_like(front), REAL], axis=1)
    plain, wrapped = jax.jit(bert(config).apply), jax.jit(model.apply)
    np.testing.assert_allclose(wrapped(params, INPUTS), plain(base, tokens)[:, 6:], atol=1e-5)
    expected = plain(base, tokens, attention_mask=mask)[:, 6:]
    got = wrapped(params, INPUTS, attention_mask=REAL)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    # A slot that is not used yet stands behind the inputs as padding.
    params["prompts_used"] = jnp.ones((), jnp.int32)
    expected = plain(base, tokens[:, 3:], attention_mask=mask[:, 3:])[:, 3:]
    got = wrapped(params, INPUTS, attention_mask=REAL)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    expected = plain(base, tokens[:, 3:])[:, 3:]
    np.testing.assert_allclose(wrapped(params, INPUTS), expected, atol=1e-5)


@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_a_classifier_reads_prompts_as_tokens_in_front(pooling):
    config = dataclasses.replace(SMALL, positions=18, pooling=pooling)
    base, rows = make(config)[1], jnp.array([[4, 9, 1], [16, 0, 7]])
    model = prompts(bert, config, length=3, slots=2, table="embeddings/word_embeddings")
    params = {**base, "prompt": base["embeddings"]["word_embeddings"][rows]}
    types = jnp.tile((jnp.arange(12) > 6).astype(jnp.int32), (4, 1))
    plain, wrapped = jax.jit(bert(config).apply), jax.jit(model.apply)
    for used, front in ((2, rows[::-1].reshape(6)), (1, rows[0])):  # the rest stands behind
        front = jnp.tile(front, (4, 1))
        tokens = jnp.concatenate([front, INPUTS], axis=1)
        mask = jnp.concatenate([jnp.ones_like(front), REAL], axis=1)
        both = jnp.concatenate([jnp.zeros_like(front), types], axis=1)
        expected = plain(base, tokens, attention_mask=mask, token_types=both)
        prompted = {**params, "prompts_used": jnp.array(used)}
        got = wrapped(prompted, INPUTS, attention_mask=REAL, token_types=types)
        np.testing.assert_allclose(got, expected, atol=1e-5)
        np.testing.assert_allclose(wrapped(prompted, INPUTS), plain(base, tokens), atol=1e-5)
        assert jnp.abs(got - plain(base, INPUTS, attention_mask=REAL)).max() > 1e-2


def learning(strategy, config=SMALL, key=None):
    model, params = make(config)
    learner = jcl.learner(jcl.losses.classify(model.apply), strategy)
    return learner, learner.init(key, params, BATCH)


def test_freeze_and_only_act_by_path():
    strategy = jcl.chain(
        jcl.only(["classifier/*", "layer_*"], optax.sgd(1e-2)),
        jcl.freeze(["embeddings/*", "layer_0/*", "*attn*", "pooler/*"]),
    )
    learner, state = learning(strategy, dataclasses.replace(SMALL, layers=2))
    before, after = flat(state.params), flat(jax.jit(learner.step)(state, BATCH)[0].params)
    moved = {path for path, leaf in before.items() if jnp.any(leaf != after[path])}
    layer = {path for path in before if path.startswith("layer_1/mlp")}
    assert moved == layer | {"classifier/kernel", "classifier/bias"}


def test_strategies_learn_on_it_with_padding_in_the_memory():
    strategy = jcl.chain(jcl.replay(capacity=6, size=4), jcl.ewc(strength=1e-3), optax.adamw(1e-2))
    learner, state = learning(strategy, key=jax.random.key(0))
    step, consolidate = jax.jit(learner.step), jax.jit(learner.consolidate)
    state, first = step(state, BATCH)
    memory = state.strategy[0]
    np.testing.assert_array_equal(memory.items["attention_mask"][:4], REAL)
    state = consolidate(state, jax.tree.map(lambda leaf: leaf[None], BATCH))
    for _ in range(20):
        state, metrics = step(state, BATCH)
    assert metrics["ewc"] > 0
    assert metrics["loss"] < 0.8 * first["loss"]
    assert step._cache_size() == 1


def test_a_draw_of_the_memory_is_padded_as_it_was_stored():
    """Replay of the stored batch costs what the batch itself costs, padding included."""
    model, params = make(SMALL)
    loss_fn = jax.jit(jcl.losses.classify(model.apply), static_argnums=2)
    policy = jcl.memory.reservoir(4)
    memory = policy.insert(policy.init(BATCH), BATCH, jax.random.key(0))
    drawn = policy.draw(memory, 32, jax.random.key(1))
    each = loss_fn(params, BATCH, None)[1]["losses"]
    again = loss_fn(params, drawn, None)[1]["losses"]
    rows = jnp.argmin(jnp.abs(drawn["attention_mask"].sum(axis=1)[:, None] - REAL.sum(axis=1)), 1)
    np.testing.assert_allclose(again, each[rows], rtol=1e-5)
    assert len(set(rows.tolist())) == 4
