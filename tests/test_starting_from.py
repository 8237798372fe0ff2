"""What one run leaves to another: params, a memory; and what is computed of a stream once."""

import dataclasses
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy
from everything import costly

import jcl
import jcl.run
from jcl.__main__ import load_config, main
from jcl.answer import reopen

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

    wide = {**BATCH, "inputs": jnp.ones((16, 7))}  # no tokens that a mask could leave out
    refused(r"items/inputs is float32\[6, 5\] in the file and float32\[7, 7\] in this run",
            jcl.memory.reservoir(7), wide)  # fmt: skip
    refused("wants features or losses", jcl.memory.priority(6))
    refused("wants features or losses", jcl.memory.herding(6, 3, toy.features))
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
    with pytest.raises(jcl.InputError, match="There is no .*none.npz, with which"):
        jcl.memory.starting_from(policy, tmp_path / "none.npz").init(BATCH)
    path.write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(jcl.InputError, match="no memory that can be read"):
        jcl.memory.starting_from(policy, path)
    np.savez(path, allow_pickle=True, items=np.array([{}], object))
    with pytest.raises(jcl.InputError, match="no memory that can be read"):
        jcl.memory.starting_from(policy, path)


def texts(number, length=4, classes=3, *, first=0):
    """A batch of as many texts, of which each shows its own number."""
    targets = jnp.arange(first, first + number) % classes
    return {
        "inputs": jnp.full((number, length), jnp.arange(first, first + number)[:, None]),
        "attention_mask": jnp.ones((number, length), jnp.int32),
        "targets": targets.astype(jnp.int32),
    }


def shown(memory, policy):
    return np.asarray(memory.items["inputs"][:, 0])[np.asarray(policy.filled(memory))].tolist()


def test_a_memory_of_another_capacity_is_offered_the_examples(tmp_path):
    path, batch = tmp_path / "m.npz", texts(8)

    def imported(old, new, batch=batch, offered=batch):
        jcl.memory.save(path, old.insert(old.init(batch), offered, None))
        policy = jcl.memory.starting_from(new, path)
        memory = jax.jit(lambda: policy.init(batch))()
        return shown(memory, policy), memory

    ring, reservoir, balanced = jcl.memory.ring, jcl.memory.reservoir, jcl.memory.class_balanced
    found, memory = imported(ring(5), ring(3))  # of 3 to 7, which begin at slot 3
    assert (sorted(found), memory.seen) == ([5, 6, 7], 8)
    found, memory = imported(ring(5), ring(9))
    assert (found, memory.seen) == ([3, 4, 5, 6, 7], 5)
    found, memory = imported(reservoir(20), reservoir(10))
    assert (found, memory.seen) == ([*range(8)], 8)
    found, memory = imported(reservoir(8), reservoir(4))
    assert len(set(found)) == 4
    assert memory.seen == 8  # so that the next example enters with the chance of 4 in 9
    found, memory = imported(balanced(8, 3), balanced(6, 3))
    assert memory.stored.tolist() == [2, 2, 2]
    assert memory.offered.tolist() == [3, 3, 2]
    found, memory = imported(reservoir(8), balanced(9, 3))
    assert (found, memory.stored.tolist()) == ([*range(8)], [3, 3, 2])
    found, memory = imported(balanced(9, 3), reservoir(8))
    assert found == [*range(8)]


def test_longer_texts_and_more_classes_go_on_with_the_counts(tmp_path):
    path, old = tmp_path / "m.npz", jcl.memory.class_balanced(6, 3)
    memory = old.insert(old.init(texts(8)), texts(8), None)
    jcl.memory.save(path, memory)
    policy = jcl.memory.starting_from(jcl.memory.class_balanced(6, 5), path)
    again = policy.init(texts(8, length=7))
    for name in ("inputs", "attention_mask"):
        np.testing.assert_array_equal(again.items[name][:, :4], memory.items[name])
        assert not np.any(again.items[name][:, 4:])
    assert again.stored.tolist() == [*memory.stored.tolist(), 0, 0]
    assert again.offered.tolist() == [3, 3, 2, 0, 0]
    assert (again.seen, again.full.shape) == (8, (5,))
    later = policy.insert(again, texts(8, length=7, classes=5, first=8), None)
    assert later.offered.sum() == 16
    with pytest.raises(jcl.InputError, match=r"offered is int32\[3\] in the file and int32\[2\]"):
        jcl.memory.starting_from(jcl.memory.class_balanced(6, 2), path).init(texts(8))
    with pytest.raises(jcl.InputError, match=r"no shorter \(a stream of texts takes length=4\)"):
        jcl.memory.starting_from(old, path).init(texts(8, length=3))
    blocks = {name: jnp.ones((8, 4), jnp.int32) for name in ("inputs", "targets")}
    ring = jcl.memory.ring(4)
    jcl.memory.save(path, ring.insert(ring.init(blocks), blocks, None))
    longer = {name: jnp.ones((8, 6), jnp.int32) for name in blocks}
    with pytest.raises(jcl.InputError, match="longer ones need a mask"):
        jcl.memory.starting_from(ring, path).init(longer)


def test_a_memory_of_other_classes_or_tokens_is_refused(tmp_path):
    path, policy = tmp_path / "m.npz", jcl.memory.reservoir(8)
    memory = policy.insert(policy.init(texts(8)), texts(8), None)
    jcl.memory.save(path, memory, labels=["p", "q", "r"])

    def start(labels):
        return jcl.memory.starting_from(policy, path, labels=labels).init(texts(8))

    assert start(["p", "q", "r"]).seen == start(("p", "q", "r", "s")).seen == 8
    with pytest.raises(jcl.InputError, match="targets are the classes p, q, r: give .* labels="):
        start(())
    with pytest.raises(jcl.InputError, match="class 0 is 'p' in the file and 'w' in this run"):
        start(["w", "x", "y", "z"])
    with pytest.raises(jcl.InputError, match="class 1 is 'q' in the file and 'r' in this run"):
        start(["p", "r", "q"])
    with pytest.raises(jcl.InputError, match="class 2 is 'r' in the file and missing"):
        start(["p", "q"])

    def begin(logits, **known):
        jcl.memory.save(path, memory, **known)
        part = jcl.replay(jcl.memory.starting_from(policy, path), size=2)
        shape = jax.ShapeDtypeStruct(logits, jnp.float32)
        return part.init({}, batch=texts(8), aux={"logits": shape})

    assert begin((8, 3)).seen == 8
    with pytest.raises(jcl.InputError, match="holds the target 2 and the model gives 2 logits"):
        begin((8, 2))
    assert begin((8, 4, 30), vocabulary=30).seen == 8
    with pytest.raises(jcl.InputError, match="with a vocabulary of 30 and the model's is 31"):
        begin((8, 4, 31), vocabulary=30)


MONTHS = """
from dataclasses import dataclass
import optax, jcl

class Letters:
    pad = 0

    def __init__(self, first):
        self.first = first

    def encode(self, text):
        return [ord(letter) - self.first for letter in text]

@dataclass(frozen=True)
class Config:
    csv: str = ""
    memory: str = ""
    first: int = 1
    vocabulary: int = 130
    length: int = 4
    seed: int = 0

def build(config):
    stream = jcl.data.text_classification(
        config.csv, tokenizer=Letters(config.first), tasks=[["p", "q"], ["r", "s"]],
        test=0.4, length=config.length,
    )
    model = jcl.models.bert(jcl.models.BertConfig(
        config.vocabulary, 8, 8, 1, 2, 8, head="classes", classes=4, dropout=0.0
    ))
    policy = jcl.memory.reservoir(6)
    if config.memory:
        policy = jcl.memory.starting_from(policy, config.memory, labels=stream.labels)
    return jcl.Experiment(
        name="months", model=model, loss_fn=jcl.losses.classify(model.apply),
        strategy=jcl.chain(jcl.replay(policy, 2), optax.sgd(0.1)), stream=stream,
        measure=jcl.losses.accuracy(model.apply), batch_size=8, steps=3, seed=config.seed,
    )
"""


@costly
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.* were cut to 4 tokens")
def test_next_month_goes_on_with_the_memory_and_then_without_its_file(tmp_path, capsys):
    config, table, file = tmp_path / "months.py", tmp_path / "t.csv", tmp_path / "m.npz"
    config.write_text(MONTHS)
    rows = [f"{word}{word},{word}" for word in "pqrs" for _ in range(8)]
    rows += [f"{word},{word}" for word in "pqrs" for _ in range(8)] + ["pppppp,p"]
    table.write_text("\n".join(["text,label", *rows]))

    def run(out, *options):
        code = main(["run", str(config), "--csv", str(table), "--out", str(tmp_path / out),
                     *map(str, options)])  # fmt: skip
        return code, capsys.readouterr()

    code, told = run("one")
    assert code == 0, told.err
    assert "texts of 4 tokens, the longest had 6; 1 were cut" in told.out
    known = json.loads((tmp_path / "one" / "config.json").read_text())["known"]
    assert known == {
        "labels": ["p", "q", "r", "s"], "classes": 4, "length": 4, "longest": 6, "truncated": 1,
        "vocabulary": 130,
    }  # fmt: skip
    assert main(["memory", str(tmp_path / "one"), str(file)]) == 0
    with np.load(file) as arrays:
        assert arrays["known/labels"].tolist() == known["labels"]
        assert arrays["known/vocabulary"] == 130
    code, told = run("small", "--memory", file, "--first", 110, "--vocabulary", 20)
    assert code == 1
    assert re.search(r"the imported memory has the token 11\d and the model .* of 20", told.err)
    assert not (tmp_path / "small").exists()
    assert run("two", "--memory", file, "--length", 6)[0] == 0
    file.unlink()
    code, told = run("new", "--memory", file)
    assert code == 1
    assert "There is no" in told.err
    assert not (tmp_path / "new").exists()
    for name in ("report.json", "report.md", "matrix.png"):  # it has to read its checkpoint
        (tmp_path / "two" / name).unlink()
    assert run("two", "--memory", file, "--length", 6)[0] == 0
    assert reopen(tmp_path / "two", load_config, config).state.strategy[0].seen > 6


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


def test_a_run_holds_the_hash_of_what_each_seed_begins_with(tmp_path, monkeypatch):
    params = MODEL.init(jax.random.key(5))
    start = lambda params, **more: jcl.models.starting_from(MODEL, params, **more).start()
    moved = {**params, "head": jax.tree.map(lambda leaf: leaf + 1, params["head"])}
    assert start(params) == start(jax.tree.map(np.asarray, params)) != start(moved)
    assert start(params, fresh="head/*") == start(moved, fresh="head/*")  # which is not used
    adapted = jcl.models.lora(jcl.models.starting_from(MODEL, params), 2, 4.0, "layer_*")
    assert adapted.start() == start(params)

    @dataclasses.dataclass(frozen=True)
    class Config:
        seed: int = 0

    def build(config):
        part = jcl.data.Arrays({"inputs": np.zeros((8, 4)), "targets": np.zeros(8, np.int32)})
        model = jcl.models.starting_from(MODEL, [params, moved][config.seed])
        return jcl.Experiment(
            name="on", model=model, loss_fn=jcl.losses.classify(model.apply),
            strategy=optax.sgd(0.1), measure=jcl.losses.accuracy(model.apply), batch_size=8,
            stream=jcl.data.Stream("one", (jcl.data.Task("one", part, part, "1"),)), steps=1,
            seed=config.seed,
        )  # fmt: skip

    held = []

    def opened(path, description, **_):
        held.append(description)
        raise jcl.InputError("seen")

    monkeypatch.setattr(jcl.run.folder, "opened", opened)
    for options, expected in (
        ({}, [start(params)]),
        ({"seeds": 2}, [start(params), start(moved)]),
    ):
        with pytest.raises(jcl.InputError, match="seen"):
            jcl.run.run(build, Config(), config_file=TINY, out=tmp_path / "on", **options)
        assert held[-1]["start"] == expected


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
