"""Generation: the cache, the draws, Hugging Face's tokens, and `jcl generate`."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from everything import ALL, costly

import jcl
from jcl import InputError
from jcl.__main__ import main
from jcl.answer import learned_params
from jcl.models import GPT2Config, LlamaConfig, Rope, generate, gpt2, llama, probabilities

TINY = Path(__file__).parent / "configs" / "tiny.py"
LENGTH, VOCAB = 12, 61
INPUTS = jax.random.randint(jax.random.key(0), (3, LENGTH), 0, VOCAB)
LEFT = (np.arange(LENGTH) >= np.array([[0], [3], [10]])).astype(np.int32)
CONFIG = LlamaConfig(VOCAB, positions=24, width=16, inner=24, layers=2, heads=4, key_value_heads=2)
GPT2 = gpt2(GPT2Config(VOCAB, positions=24, width=16, layers=2, heads=4))
MODELS = {
    "gpt2": GPT2,
    "llama": llama(CONFIG),
    "window": llama(
        dataclasses.replace(
            CONFIG, family="qwen2", window=4, whole_layers=1, tied=True,
            rope=Rope("yarn", factor=4.0, original=8),
        )
    ),
    "lora": jcl.models.lora(llama(CONFIG), rank=2, alpha=4.0),
    "adapters": jcl.models.adapters(GPT2, width=3),
}  # fmt: skip


def made(model, seed=1):
    """Params large enough to tell errors by, adapters that act included."""
    params = jax.jit(model.init)(jax.random.key(seed))
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    return jax.tree.unflatten(
        structure,
        [
            leaf + 0.3 * jax.random.normal(key, leaf.shape)
            for leaf, key in zip(leaves, keys, strict=True)
        ],
    )


@pytest.mark.parametrize("mask", [None, LEFT], ids=["whole", "left padding"])
@pytest.mark.parametrize("name", MODELS)
def test_cached_logits_equal_the_uncached(name, mask):
    """Prefilled by five and by two tokens, then one by one, in a cache with room to spare."""
    model, options = MODELS[name], {} if mask is None else {"attention_mask": mask}
    params = made(model)
    whole = jax.jit(model.apply)(params, INPUTS, **options)
    decode = jax.jit(model.decode)
    cache = model.cache(params, 3, LENGTH + 4)
    for start, stop in [(0, 5), (5, 7), *((at, at + 1) for at in range(7, LENGTH))]:
        part = {name: leaf[:, start:stop] for name, leaf in options.items()}
        logits, cache = decode(params, INPUTS[:, start:stop], cache=cache, **part)
        real = np.ones(3, bool) if mask is None else mask[:, stop - 1] > 0
        np.testing.assert_allclose(
            logits[real], whole[real, stop - 1], atol=1e-5 * float(jnp.abs(whole).max())
        )
    assert cache["filled"] == LENGTH
    assert jnp.abs(whole).max() > 1


def test_the_cache_is_of_the_heads_of_the_keys_and_of_the_products_type():
    """Narrow params are multiplied in float32, and then cached logits equal the uncached."""
    model = MODELS["llama"]
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), made(model))
    cache = model.cache(params, 3, 9)
    assert cache["layers_0"]["self_attn"]["keys"].shape == (3, 2, 9, 4)
    whole = jax.jit(model.apply)(params, INPUTS[:, :6])
    _, cache = model.decode(params, INPUTS[:, :5], cache=cache)
    assert cache["layers_1"]["self_attn"]["values"].dtype == jnp.float32
    logits, _ = model.decode(params, INPUTS[:, 5:6], cache=cache)
    np.testing.assert_allclose(logits, whole[:, 5], atol=1e-5 * float(jnp.abs(whole).max()))
    narrow = jcl.models.Precision(compute="bfloat16")
    model = llama(dataclasses.replace(CONFIG, precision=narrow))
    assert model.cache(params, 3, 9)["layers_0"]["self_attn"]["keys"].dtype == jnp.bfloat16


def test_a_cache_that_is_too_long_or_too_short_is_refused():
    params = made(GPT2)
    with pytest.raises(InputError, match="25 tokens, and the model has 24"):
        GPT2.cache(params, 1, 25)
    with pytest.raises(InputError, match="12 tokens do not fit a cache of 11"):
        GPT2.decode(params, INPUTS, cache=GPT2.cache(params, 3, 11))


def one_by_one(model, params, steps):
    """The likeliest tokens behind the first input, each by the whole model; what stands behind a
    token does not matter to it, so that one length serves for all."""
    tokens = np.zeros((1, LENGTH + steps), np.int32)
    tokens[:, :LENGTH] = INPUTS[:1]
    apply = jax.jit(model.apply)
    for end in range(LENGTH, LENGTH + steps):
        tokens[0, end] = np.argmax(apply(params, jnp.asarray(tokens))[0, end - 1])
    return tokens[0, LENGTH:]


@pytest.mark.parametrize("name", ["gpt2", "window"] if ALL else ["window"])
def test_greedy_tokens_are_those_of_every_model_run_anew(name):
    """The loop with the cache against the one without."""
    model = MODELS[name]
    params = made(model)
    cached = generate(model, params, INPUTS, steps=8, attention_mask=LEFT)
    plain = model._replace(decode=None, cache=None)
    np.testing.assert_array_equal(
        generate(plain, params, INPUTS, steps=8, attention_mask=LEFT).tokens, cached.tokens
    )
    np.testing.assert_array_equal(cached.tokens[0], one_by_one(model, params, 8))


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral"])
def test_greedy_equals_hugging_faces_token_for_token(family, tmp_path):
    parity = pytest.importorskip("parity", reason="PyTorch is absent: pip install torch==2.13.0")
    import torch
    import transformers

    changes = {
        "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
        "llama": {
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
        },
    }  # fmt: skip
    changes["mistral"] = {**changes["llama"], "sliding_window": 6}
    config = transformers.AutoConfig.for_model(family, vocab_size=VOCAB, **changes[family])
    theirs = parity.made(
        transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    )
    theirs.save_pretrained(tmp_path)
    model, params = jcl.models.from_pretrained(tmp_path)

    def expected(stop):
        settings = theirs.generation_config
        settings.bos_token_id, settings.eos_token_id, settings.pad_token_id = None, stop, stop
        with torch.no_grad():
            found = theirs.generate(
                torch.tensor(np.asarray(INPUTS, np.int64)),
                attention_mask=torch.tensor(LEFT.astype(np.int64)),
                max_new_tokens=40, do_sample=False,
            )  # fmt: skip
        return found[:, LENGTH:].numpy()

    free = expected(None)
    assert free.shape == (3, 40)
    assert len(np.unique(free)) > 5
    found = generate(model, params, INPUTS, steps=40, attention_mask=LEFT)
    np.testing.assert_array_equal(found.tokens, free)
    assert found.lengths.tolist() == [40] * 3
    stop = int(free[1, 5])  # a token that one row meets early
    stopped = expected(stop)
    found = generate(model, params, INPUTS, steps=40, attention_mask=LEFT, stop=[stop])
    np.testing.assert_array_equal(found.tokens[:, : stopped.shape[1]], stopped)
    ends = [int(np.flatnonzero(row == stop)[0]) + 1 if stop in row else 40 for row in free]
    assert found.lengths.tolist() == ends
    assert min(ends) < 40


LOGITS = np.array([[2.0, 0.5, 1.0, 1.0, -1.0, 3.0], [0.0, 0.0, 4.0, 0.0, 0.0, -2.0]], np.float32)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [
        (1.0, None, None), (0.5, None, None), (1.0, 3, None), (2.0, 99, None), (1.0, 1, None),
        (1.0, None, 0.8), (1.0, None, 1e-6), (1.0, None, 1.0), (0.7, 4, 0.9), (3.0, 2, 0.6),
    ],
)  # fmt: skip
def test_probabilities_by_hand(temperature, top_k, top_p):
    found = probabilities(jnp.asarray(LOGITS), temperature, top_k, top_p)
    for row, logits in zip(np.asarray(found), LOGITS.astype(np.float64), strict=True):
        chances = np.exp(logits / temperature)
        if top_k is not None:
            chances *= logits >= sorted(logits)[-min(top_k, len(logits))]
        chances /= chances.sum()
        if top_p is not None:
            likeliest = np.argsort(chances, kind="stable")[::-1]
            before = np.cumsum(chances[likeliest]) - chances[likeliest]
            chances[likeliest[before >= top_p - 1e-7]] = 0
        np.testing.assert_allclose(row, chances / chances.sum(), atol=1e-6)


@pytest.mark.parametrize(("top_k", "top_p"), [(3, None), (None, 0.7), (20, 0.5), (1, 1.0)])
def test_probabilities_equal_hugging_faces(top_k, top_p):
    torch = pytest.importorskip("torch", reason="PyTorch is absent: pip install torch==2.13.0")
    from transformers.generation import logits_process as theirs

    # Rounded to fifths, so that many are equal: at the border of top_k all of these are kept.
    logits = np.round(np.random.default_rng(0).normal(size=(50, 40)) * 5).astype(np.float32) / 5
    if top_p is not None:
        logits += np.random.default_rng(1).normal(size=(50, 40)).astype(np.float32)
    filtered = theirs.TemperatureLogitsWarper(0.8)(None, torch.tensor(logits))
    if top_k is not None:
        filtered = theirs.TopKLogitsWarper(top_k)(None, filtered)
    if top_p is not None:
        filtered = theirs.TopPLogitsWarper(top_p)(None, filtered)
    expected = torch.softmax(filtered, dim=-1).numpy()
    found = probabilities(jnp.asarray(logits), 0.8, top_k, top_p)
    np.testing.assert_array_equal(np.asarray(found) > 0, expected > 0)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    if top_p is None:
        assert np.any((expected > 0).sum(axis=1) > top_k)


def test_draws_follow_the_probabilities():
    params, rows = made(GPT2), 4000
    inputs = jnp.broadcast_to(INPUTS[:1], (rows, LENGTH))
    options = {"temperature": 0.8, "top_k": 12, "top_p": 0.9}
    found = generate(GPT2, params, inputs, steps=2, key=jax.random.key(3), **options)
    first = GPT2.apply(params, INPUTS[:1])[:, -1]
    _chi_square(found.tokens[:, 0], probabilities(first, *options.values())[0])
    likeliest = np.bincount(found.tokens[:, 0]).argmax()
    after = jnp.concatenate([INPUTS[:1], jnp.full((1, 1), likeliest, jnp.int32)], axis=1)
    second = GPT2.apply(params, after)[:, -1]
    chosen = found.tokens[np.asarray(found.tokens[:, 0]) == likeliest, 1]
    _chi_square(chosen, probabilities(second, *options.values())[0])


def _chi_square(tokens, chances):
    counts = np.bincount(tokens, minlength=VOCAB)
    drawn = np.asarray(chances, np.float64) > 0
    assert drawn.sum() > 2
    assert counts[~drawn].sum() == 0
    expected = np.asarray(chances, np.float64)[drawn]
    expected *= counts.sum() / expected.sum()
    assert scipy.stats.chisquare(counts[drawn], expected).pvalue > 1e-3


def test_key_temperature_and_rows():
    params = made(GPT2)
    greedy = generate(GPT2, params, INPUTS, steps=5)
    cold = generate(GPT2, params, INPUTS, steps=5, key=jax.random.key(0), temperature=0, top_k=7)
    np.testing.assert_array_equal(cold.tokens, greedy.tokens)
    one, same, other = (
        generate(GPT2, params, INPUTS, steps=5, key=jax.random.key(seed)) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one.tokens, same.tokens)
    assert np.any(np.asarray(one.tokens) != np.asarray(other.tokens))
    twins = generate(GPT2, params, INPUTS[:1].repeat(8, 0), steps=5, key=jax.random.key(0))
    assert len(np.unique(twins.tokens, axis=0)) > 1


def test_one_trace_for_several_calls():
    traces = []

    def decode(*arguments, **options):
        traces.append(arguments[1].shape)
        return GPT2.decode(*arguments, **options)

    model = GPT2._replace(decode=decode)
    for seed in range(3):
        generate(
            model, made(GPT2, seed), INPUTS, steps=6, key=jax.random.key(seed),
            temperature=1 + seed, top_p=0.5 + 0.1 * seed, stop=[seed],
        )  # fmt: skip
    assert sorted(set(traces)) == [(3, 1), (3, LENGTH)]
    assert len(traces) <= 3  # a loop's body may be traced twice for its types
    count = len(traces)
    generate(model, made(GPT2), INPUTS, steps=7, key=jax.random.key(0), top_p=0.5, stop=[0])
    assert len(traces) > count


def test_it_stops_early_and_fills_up():
    """Steps are counted by a callback from the device."""
    params, calls = made(GPT2), []

    def decode(params, inputs, key=None, **options):
        jax.debug.callback(lambda: calls.append(inputs.shape[1]))
        return GPT2.decode(params, inputs, key, **options)

    free = np.asarray(generate(GPT2, params, INPUTS, steps=10).tokens)
    ends = sorted({int(token) for token in free[:, 2]})  # every row meets one by the third token
    found = generate(GPT2._replace(decode=decode), params, INPUTS, steps=10, stop=ends)
    jax.effects_barrier()
    for row, tokens, length in zip(free, np.asarray(found.tokens), found.lengths, strict=True):
        assert length == np.flatnonzero(np.isin(row, ends))[0] + 1
        np.testing.assert_array_equal(tokens[:length], row[:length])
        assert set(tokens[length:]) <= {ends[0]}
    assert sorted(calls) == [1] * (int(found.lengths.max()) - 1) + [LENGTH]


def test_prompts_answer_without_a_cache():
    config = GPT2Config(VOCAB, positions=30, width=16, layers=1, heads=2)
    model = jcl.models.prompts(gpt2, config, length=3, slots=2)
    assert model.decode is None
    params = {**made(model), "prompts_used": 1}
    found = generate(model, params, INPUTS, steps=4, attention_mask=LEFT)
    np.testing.assert_array_equal(found.tokens[0], one_by_one(model, params, 4))
    with pytest.raises(InputError, match="prompt tokens"):
        generate(model, params, INPUTS, steps=16)


def test_training_is_not_touched():
    """No trace of the cache in the program of `apply`."""
    for model in (GPT2, MODELS["window"]):
        params = jax.eval_shape(model.init, jax.random.key(0))
        assert set(params) == set(made(model))
        text = jax.jit(model.apply).lower(params, INPUTS).as_text()
        assert "dynamic_update_slice" not in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps=0"),
        ({"steps": 13}, "12 tokens of the prompt and 13 steps need 25 positions.* has 24"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_k": 0}, "top_k=0"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"top_k": 3, "key": None}, "need a key"),
        ({"temperature": 0.7, "key": None}, "need a key"),
        ({"inputs": INPUTS.tolist()}, r"inputs are list; give an array of whole numbers"),
        ({"inputs": INPUTS[0]}, r"int32 \[12\]; give .* \[batch, length\]"),
        ({"inputs": INPUTS + 0.5}, r"float32 \[3, 12\]; give an array of whole numbers"),
        ({"stop": [61]}, "61 is none of the model's 61 tokens"),
        ({"stop": [-1]}, "stop=-1"),
        ({"inputs": INPUTS.at[0, 0].set(61)}, "tokens from .* to 61"),
        ({"inputs": INPUTS[:, :0]}, "inputs are empty"),
        ({"attention_mask": LEFT[:, ::-1]}, "pad on the left"),
        ({"attention_mask": LEFT[:, 1:]}, r"\[3, 11\] and the inputs \[3, 12\]"),
    ],
)
def test_what_is_refused(options, message):
    options = {"inputs": INPUTS, "steps": 4, "key": jax.random.key(0), **options}
    with pytest.raises(InputError, match=message):
        generate(GPT2, None, **options)


def test_models_that_are_no_causal_language_models_are_refused():
    bert = jcl.models.bert(jcl.models.BertConfig(VOCAB, 24, 8, 1, 2, 8))
    with pytest.raises(InputError, match="BERT sees both sides"):
        generate(bert, None, INPUTS, steps=2)
    mlp = jcl.models.mlp(jcl.models.MLPConfig(inputs=LENGTH, hidden=(4,), classes=3))
    with pytest.raises(InputError, match=r"shape \[3, 3\]"):
        generate(mlp, jax.eval_shape(mlp.init, jax.random.key(0)), INPUTS, steps=2)


WRITER = '''
"""A GPT-2 that learns to repeat one letter after the other."""
import dataclasses
from pathlib import Path
from typing import Literal

import optax

import jcl


@dataclasses.dataclass(frozen=True)
class Config:
    method: Literal["naive", "lora", "prompts", "unread"] = "naive"
    tasks: tuple[str, ...] = ("ab", "cd")
    rate: float = 3e-2
    clip: float = float("inf")
    notes: Path | None = None
    seed: int = 0


def build(config):
    tokenizer = jcl.data.ByteTokenizer()
    tasks = [
        jcl.data.text_task(name, [name * 300], [name * 40], tokenizer, 16) for name in config.tasks
    ]
    stream = jcl.data.labelled(jcl.data.Stream("letters", tuple(tasks)))
    shape = jcl.models.GPT2Config(258, positions=32, width=16, layers=1, heads=2, dropout=0.0)
    model, parts = jcl.models.gpt2(shape), [jcl.per_task(optax.adam(config.rate))]
    count = len(tasks)
    if config.method == "lora":
        model = jcl.models.lora(model, rank=2, alpha=4.0)
        parts = [jcl.separate("*", tasks=count), *parts]
    if config.method == "prompts":
        model = jcl.models.prompts(jcl.models.gpt2, shape, 2, slots=count)
        parts = [*parts, jcl.progressive_prompts(tasks=count)]
    return jcl.Experiment(
        name=config.method, model=model, loss_fn=jcl.losses.causal_lm(model.apply),
        strategy=jcl.chain(*parts), stream=stream,
        measure=jcl.losses.bits_per_byte(model.apply, tokenizer.bytes_per_token),
        batch_size=8, steps=120, seed=config.seed, boundary_batches=1,
        tokenizer=None if config.method == "unread" else tokenizer,
    )
'''


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    """In the configs of the working directory, where `jcl generate` executes it unasked."""
    place = tmp_path_factory.mktemp("writer")
    path = place / "configs" / "writer.py"
    path.parent.mkdir()
    path.write_text(WRITER)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        yield path


@pytest.fixture(scope="module")
def naive(config_file):
    return trained(config_file, "naive", "--seeds", "2")


def trained(config_file, method, *arguments):
    out = config_file.parent.parent / method
    assert main(["run", str(config_file), "--method", method, "--out", str(out), *arguments]) == 0
    return out


def written(capsys, *arguments):
    capsys.readouterr()
    assert main(["generate", *map(str, arguments)]) == 0, capsys.readouterr().err
    return capsys.readouterr()


def test_a_run_goes_on_with_a_text(naive, capsys):
    """Of two seeds, from a config with a tuple, an infinity and a path."""
    shown = written(
        capsys, naive, "--prompt", "c", "--prompt", "cdc", "--steps", "9", "--temperature", "0"
    )
    assert shown.out == "cdcdcdcdcd\n\ncdcdcdcdcdcd\n"
    assert shown.err == f"{naive} after cd, seed 0\n"
    drawn = [
        written(
            capsys, naive, "--prompt", "x", "--temperature", "30", "--steps", "20", "--seed", seed
        ).out
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    narrow = ["--temperature", "30", "--top-k", "1", "--top-p", "0.9"]
    assert written(capsys, naive, "--prompt", "c", "--steps", "9", *narrow).out == "cdcdcdcdcd\n"


def test_a_run_becomes_a_model_of_hugging_faces(naive, tmp_path, capsys):
    """Of its second seed; its own tokenizer is of bytes."""
    assert main(["export", str(naive), str(tmp_path), "--seed", "1"]) == 0
    shown = capsys.readouterr().out
    assert "after cd, seed 1, without a tokenizer: a ByteTokenizer is none of Hugging Face" in shown
    _, found = jcl.models.from_pretrained(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, found, learned_params(naive, 1))
    assert np.any(found["wte"] != learned_params(naive, 0)["wte"])


@costly
@pytest.mark.parametrize("method", ["lora", "prompts"] if ALL else ["prompts"])
def test_the_view_of_the_strategy_is_what_answers(method, config_file, capsys):
    """At the end, and after the first task, where `separate` begins again with the first params."""
    run = trained(config_file, method)
    greedy = ["--steps", "6", "--temperature", "0"]
    assert written(capsys, run, "--prompt", "cdc", *greedy).out == "cdcdcdcdc\n"
    newest = sorted((run / "checkpoints").iterdir())[-1]
    newest.rename(run / "set_aside")
    shown = written(capsys, run, "--prompt", "aba", *greedy)
    assert "after ab, seed 0" in shown.err
    assert shown.out == "ababababa\n"


@costly
@pytest.mark.filterwarnings("always")
def test_a_damaged_checkpoint_is_passed_over(naive, capsys):
    newest = sorted((naive / "checkpoints").glob("[0-9]*"))[-1]
    (newest / "manifest.sha256").write_text("damaged")
    shown = written(capsys, naive, "--prompt", "a", "--steps", "5", "--temperature", "0")
    assert "is damaged" in shown.err
    assert "after ab" in shown.err
    assert shown.out == "ababab\n"


def refused(capsys, *arguments):
    capsys.readouterr()
    assert main(["generate", *map(str, arguments)]) == 1
    return capsys.readouterr().err


def test_what_the_command_refuses(naive, config_file, tmp_path, capsys):
    assert "--prompt" in refused(capsys, naive)
    assert "name a run folder" in refused(capsys)
    assert "is no run folder" in refused(capsys, tmp_path, "--prompt", "a")
    assert "need 42 positions" in refused(capsys, naive, "--prompt", "a", "--steps", "40")
    moved = config_file.with_name("moved.py")
    config_file.rename(moved)
    try:
        error = refused(capsys, naive, "--prompt", "a")
        assert "writer.py is not there: give --config PATH" in error
        asked = ["--prompt", "a", "--steps", "3", "--config", moved]
        assert written(capsys, naive, *asked).out
        other = tmp_path / "other.py"
        other.write_text(WRITER.replace("width=16", "width=18"))
        error = refused(capsys, naive, "--prompt", "a", "--config", other)
        assert "is not the config file" in error
    finally:
        moved.rename(config_file)
    description = json.loads((naive / "config.json").read_text())
    old = tmp_path / "old"
    old.mkdir()
    del description["config_file"]
    (old / "config.json").write_text(json.dumps(description))
    assert "does not say where it is" in refused(capsys, old, "--prompt", "a")
    asked = ["--prompt", "a", "--config", config_file]
    assert "holds no checkpoint yet" in refused(capsys, old, *asked)


def test_an_experiment_without_a_tokenizer_is_refused(tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["run", str(TINY), "--epochs", "0.5", "--method", "naive", "--out", str(run)]) == 0
    assert "jcl.Experiment(tokenizer=...)" in refused(
        capsys, run, "--prompt", "a", "--config", TINY
    )


class Words:
    """What `jcl generate` asks of transformers' tokenizers."""

    bos_token_id, eos_token_id, pad_token_id = 1, 2, 0

    def encode(self, text):
        return [1, *(ord(letter) % 50 + 3 for letter in text)]

    def decode(self, ids, skip_special_tokens):
        assert skip_special_tokens
        return "".join(chr(96 + number) for number in ids if number > 2)


def test_a_tokenizer_of_transformers_kind():
    from jcl.answer import _ids, _stop, _text

    assert _ids(Words(), "ab").tolist() == [1, 50, 51]
    assert _stop(Words()) == (2,)
    assert _text(Words(), np.array([1, 3, 4, 2])) == "cd"
    assert _ids(jcl.data.ByteTokenizer(), "").tolist() == [256]
