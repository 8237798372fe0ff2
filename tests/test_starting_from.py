"""What one run leaves to another: params, a memory; and what is computed of a stream once."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

import jcl
from jcl.__main__ import main

BATCH = toy.batch(0)
TINY = Path(__file__).parent / "configs" / "tiny.py"


def trained(policy, steps=3, params=None, batches=toy.batch):
    learner = jcl.learner(toy.loss_fn, jcl.chain(jcl.replay(policy, size=4), optax.sgd(0.1)))
    state = learner.init(jax.random.key(0), params or toy.params(), batches(0))
    step, shown = jax.jit(learner.step), []
    for number in range(steps):
        state, metrics = step(state, batches(number))
        shown.append(metrics)
    return state, shown


def constant(number):
    """The batch whose examples are all the same, as its memory's are."""
    return jax.tree.map(lambda leaf: jnp.repeat(leaf[:1], len(leaf), axis=0), toy.batch(number))


@pytest.mark.parametrize(
    "policy",
    [
        jcl.memory.reservoir(6),
        jcl.memory.ring(6),
        jcl.memory.class_balanced(6, 3),
        jcl.memory.priority(6),
    ],
    ids=["reservoir", "ring", "class_balanced", "priority"],
)
def test_a_memory_comes_back_as_it_was(policy, tmp_path):
    state, _ = trained(policy)
    jcl.memory.save(tmp_path / "m.npz", state.strategy[0])
    again = jcl.memory.starting_from(policy, tmp_path / "m.npz").init(toy.batch(0))
    assert type(again) is type(state.strategy[0])
    for one, other in zip(jax.tree.leaves(again), jax.tree.leaves(state.strategy[0]), strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype
    assert [file.name for file in tmp_path.iterdir()] == ["m.npz"]


def test_the_second_run_draws_from_it_in_its_first_step(tmp_path):
    state, _ = trained(jcl.memory.reservoir(6), batches=lambda _: constant(7))
    jcl.memory.save(tmp_path / "m.npz", state.strategy[0])
    policy = jcl.memory.starting_from(jcl.memory.reservoir(6), tmp_path / "m.npz")
    after, metrics = trained(policy, steps=1, params=state.params)
    expected = toy.loss_fn(state.params, constant(7), None)[0]
    deterministic = jcl.learner(toy.loss_fn, jcl.chain(jcl.replay(policy, size=4), optax.sgd(0.1)))
    first = deterministic.init(None, state.params, toy.batch(0))
    _, shown = jax.jit(deterministic.step)(first, toy.batch(0))
    np.testing.assert_allclose(shown["replay"], expected, rtol=1e-5)
    assert metrics[0]["replay"] > 0
    _, empty = trained(jcl.memory.reservoir(6), steps=1, params=state.params)
    assert empty[0]["replay"] == 0
    assert after.strategy[0].seen == state.strategy[0].seen + toy.BATCH


def test_of_bfloat16_and_logits(tmp_path):
    batch = {"inputs": jnp.arange(4.0, dtype=jnp.bfloat16), "targets": jnp.arange(4)}
    policy = jcl.memory.reservoir(4)
    jcl.memory.save(tmp_path / "m.npz", policy.insert(policy.init(batch), batch, None))
    again = jcl.memory.starting_from(policy, tmp_path / "m.npz").init(batch)
    assert again.items["inputs"].dtype == jnp.bfloat16
    assert again.items["inputs"].tolist() == [0, 1, 2, 3]


def test_what_does_not_fit_is_named(tmp_path):
    path = tmp_path / "m.npz"
    policy = jcl.memory.reservoir(6)
    jcl.memory.save(path, trained(policy)[0].strategy[0])

    def refused(message, policy=policy, batch=BATCH):
        with pytest.raises(jcl.InputError, match=message):
            jcl.memory.starting_from(policy, path).init(batch)

    refused(r"items/inputs is float32\[6, 5\] in the file and float32\[7, 5\] in this run",
            jcl.memory.reservoir(7))  # fmt: skip
    refused(r"full is missing in the file and bool\[3\]", jcl.memory.class_balanced(6, 3))
    refused(r"items/mask is missing in the file and float32\[6\]",
            batch={**toy.batch(0), "mask": jnp.ones(toy.BATCH)})  # fmt: skip
    refused("items/targets is int32.* in the file and missing in this run",
            batch={"inputs": toy.batch(0)["inputs"]})  # fmt: skip
    refused(
        "items/inputs is float32.* and int32",
        batch={**toy.batch(0), "inputs": jnp.ones((16, 5), int)},
    )
    with pytest.raises(jcl.InputError, match="give a memory and a file"):
        jcl.memory.starting_from(6, path)
    with pytest.raises(jcl.InputError, match="no memory that can be read"):
        jcl.memory.starting_from(policy, tmp_path / "none.npz")
    path.write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(jcl.InputError, match="no memory that can be read"):
        jcl.memory.starting_from(policy, path)
    np.savez(path, allow_pickle=True, items=np.array([{}], object))
    with pytest.raises(jcl.InputError, match="no memory that can be read"):
        jcl.memory.starting_from(policy, path)


def test_what_is_no_memory_is_not_saved(tmp_path):
    state, _ = trained(jcl.memory.reservoir(6))
    with pytest.raises(jcl.InputError, match="is no memory, which has items and seen"):
        jcl.memory.save(tmp_path / "m.npz", state.strategy)
    seeds = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), state.strategy[0])
    with pytest.raises(jcl.InputError, match="one of 2 seeds"):
        jcl.memory.save(tmp_path / "m.npz", seeds)
    with pytest.raises(jcl.errors.SaveError, match="Make room"):
        jcl.memory.save(tmp_path / "none" / "m.npz", state.strategy[0])
    assert not list(tmp_path.iterdir())


MODEL = jcl.models.mlp(jcl.models.MLPConfig(4, (8,), 3))


def test_a_model_starts_from_params_with_a_fresh_head():
    params = MODEL.init(jax.random.key(5))
    model = jcl.models.starting_from(MODEL, params, fresh="head/*")
    one, other = (jax.jit(model.init)(jax.random.key(seed)) for seed in range(2))
    np.testing.assert_array_equal(one["layer_0"]["kernel"], params["layer_0"]["kernel"])
    np.testing.assert_array_equal(other["layer_0"]["kernel"], params["layer_0"]["kernel"])
    heads = [each["head"]["kernel"] for each in (one, other, params)]
    assert all(np.abs(heads[i] - heads[j]).max() > 0.1 for i, j in ((0, 1), (0, 2), (1, 2)))
    adapted = jcl.models.lora(jcl.models.starting_from(MODEL, params), 2, 4.0, "layer_*")
    inputs = jnp.ones((2, 4))
    np.testing.assert_allclose(
        adapted.apply(adapted.init(jax.random.key(0)), inputs),
        MODEL.apply(params, inputs),
        rtol=1e-6,
    )


def test_params_that_do_not_fit_are_named():
    params = MODEL.init(jax.random.key(5))
    wrong = {
        "layer_0": {"kernel": jnp.zeros((4, 9)), "bias": params["layer_0"]["bias"]},
        "head": {"kernel": params["head"]["kernel"]},
        "extra": {"bias": jnp.zeros(2)},
    }
    with pytest.raises(jcl.InputError) as error:
        jcl.models.starting_from(MODEL, wrong)
    for part in (
        r"extra/bias is [2], and must be left out",
        r"head/bias is missing, and must be [3]",
        r"layer_0/kernel is [4, 9], and must be [4, 8]",
    ):
        assert part in str(error.value)
    with pytest.raises(jcl.InputError, match="fresh|starting_from.*'heads/\\*'"):
        jcl.models.starting_from(MODEL, params, fresh="heads/*")


def small_stream(tests=3):
    draw = np.random.default_rng(0)

    def source(number, task):
        return jcl.data.Arrays(
            {
                "inputs": draw.integers(0, 9, (number, 4)).astype(np.int32),
                "attention_mask": np.ones((number, 4), np.int32),
                "targets": np.arange(number, dtype=np.int32) % 3,
            },
            constants={"task": np.int32(task)},
        )

    return jcl.data.Stream(
        "small",
        tuple(jcl.data.Task(str(t), source(7, t), source(tests, t), f"hash {t}") for t in range(2)),
    )


def test_an_encoded_stream_has_what_encode_made_of_every_example():
    stream, sizes = small_stream(), []

    def encode(batch):
        sizes.append(len(batch["inputs"]))
        return jnp.sum(batch["inputs"] * batch["attention_mask"], axis=1, keepdims=True) / 2

    found = jcl.data.encoded(stream, encode, batch_size=5)
    assert found.name == "small, encoded"
    assert set(sizes) == {5}
    for task, plain in zip(found.tasks, stream.tasks, strict=True):
        assert (task.name, task.hash) == (plain.name, plain.hash)
        for source, before in ((task.train, plain.train), (task.test, plain.test)):
            arrays, old = source.arrays(), before.arrays()
            assert set(arrays) == {"inputs", "targets", "task"}
            expected = old["inputs"].sum(axis=1, keepdims=True) / 2
            np.testing.assert_array_equal(arrays["inputs"], expected)
            np.testing.assert_array_equal(arrays["targets"], old["targets"])
            np.testing.assert_array_equal(arrays["task"], old["task"])
    assert len(jcl.data.joint(found).stages[0]) == 14


def test_what_cannot_be_encoded_is_refused():
    stream = small_stream()
    with pytest.raises(jcl.InputError, match="encode the stream first"):
        jcl.data.encoded(jcl.data.joint(stream), lambda batch: batch["inputs"])
    with pytest.raises(jcl.InputError, match=r"\[2, 4\] for 5 examples: it must give \[5, ...\]"):
        jcl.data.encoded(stream, lambda batch: batch["inputs"][:2], batch_size=5)
    with pytest.raises(jcl.InputError, match=r"encoded\(batch_size=0\)"):
        jcl.data.encoded(stream, lambda batch: batch["inputs"], batch_size=0)


def test_the_command_writes_one_seeds_memory(tmp_path, capsys):
    run, file = tmp_path / "run", tmp_path / "m.npz"
    assert main(["run", str(TINY), "--steps", "4", "--seeds", "2", "--out", str(run)]) == 0
    policy = jcl.memory.starting_from
    held = []
    for seed in ("0", "1"):
        assert main(["memory", str(run), str(file), "--seed", seed]) == 0
        batch = {"inputs": jnp.zeros((8, 16), jnp.int32), "targets": jnp.zeros((8, 16), jnp.int32)}
        held.append(policy(jcl.memory.reservoir(20), file).init(batch))
        assert held[-1].seen == 3 * 4 * 8
    assert f"{file}: strategy/0 of seed 1, 96 examples offered" in capsys.readouterr().out
    assert np.any(held[0].items["inputs"] != held[1].items["inputs"])
    inputs, targets = (np.asarray(held[0].items[name]) for name in ("inputs", "targets"))
    np.testing.assert_array_equal(inputs[:, 1:], targets[:, :-1])  # blocks of the texts
    assert np.all(inputs > 0)
    assert main(["memory", str(run), str(file), "--seed", "2"]) == 1
    assert "--seed 2: the run has the seeds 0, 1" in capsys.readouterr().err
    assert main(["memory", str(run), str(file), "--part", "strategy/1"]) == 1
    assert "keeps 1 memories (strategy/0): name one with --part" in capsys.readouterr().err
    assert main(["memory", str(tmp_path), str(file)]) == 1
    assert "no intact checkpoint" in capsys.readouterr().err


def gpt2_tokenizer():
    """transformers' own, of a byte-level vocabulary with three words."""
    transformers = pytest.importorskip("transformers")
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    words = [*letters, "th", "the", "\u0120the", "<|endoftext|>"]
    merges = [("t", "h"), ("th", "e"), ("\u0120", "the")]
    return transformers.GPT2Tokenizer(
        vocab={word: index for index, word in enumerate(words)}, merges=merges
    )


def test_a_pretrained_tokenizer_counts_bytes():
    tokenizer = jcl.data.PretrainedTokenizer(gpt2_tokenizer())
    text = "the theme über\n alle €"
    ids = tokenizer.encode(text)
    assert len(ids) < len(text.encode())
    assert ids.dtype == np.int32
    assert tokenizer.decode(ids) == text
    assert tokenizer.bytes_per_token[ids].sum() == len(text.encode())
    assert (tokenizer.vocab_size, tokenizer.separator, tokenizer.pad) == (260, 259, 259)
    assert tokenizer.bytes_per_token[259] == 0
    assert tokenizer.decode([259, *ids]) == text


def test_sentencepiece_counts_bytes_as_well():
    class Pieces:
        eos_token_id, bos_token_id, pad_token_id = None, 1, None
        all_special_tokens = ("<s>",)

        def get_vocab(self):
            return {"<unk>": 0, "<s>": 1, "<0x0A>": 2, "\u2581the": 3, "ü": 4}

        def get_added_vocab(self):
            return {"<unk>": 0}

    tokenizer = jcl.data.PretrainedTokenizer(Pieces())
    assert tokenizer.bytes_per_token.tolist() == [0, 0, 1, 4, 2]
    assert (tokenizer.separator, tokenizer.pad) == (1, 1)
    Pieces.bos_token_id = None
    with pytest.raises(jcl.InputError, match="neither eos_token nor bos_token"):
        jcl.data.PretrainedTokenizer(Pieces())
