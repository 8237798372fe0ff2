"""Streams, batches, tokenization and text files."""

import gzip
import itertools
import json
from pathlib import Path

import numpy as np
import pytest

import jcl.data
from jcl.data import (
    Blocks,
    ByteTokenizer,
    Concatenated,
    Stream,
    Task,
    cumulative,
    evaluation_batches,
    joint,
    prefetch,
    stack,
    steps_per_epoch,
    text_files,
    text_task,
    training_batches,
)
from jcl.errors import InputError


class Numbers:
    """Examples that are their own number, without `take`."""

    def __init__(self, start, count):
        self.start, self.count = start, count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        assert 0 <= index < self.count
        number = self.start + index
        return {
            "inputs": np.full((2,), number, np.float32),
            "targets": np.array(number, np.int32),
        }


def task(name, start=0, count=5, test=2):
    return Task(name, Numbers(start, count), Numbers(start + 100, test), "0")


def numbers(source):
    return [int(source[index]["targets"]) for index in range(len(source))]


def test_stages_are_the_train_parts_by_default():
    first, second = task("a"), task("b")
    stream = Stream("s", (first, second))
    assert stream.stages == (first.train, second.train)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ((), "'s' has no task"),
        ((task("a"), task("b"), task("a")), "2 tasks named 'a'"),
        ((task("a\x1b[2J"),), r"control character '\\x1b' in its name.*rename it"),
        ((task("a\u202e"),), r"control character '\\u202e'"),
        ((task("a"), task("b", count=0)), "'b' of stream 's' has no train example"),
        ((task("a"), task("b", test=0)), "'b' of stream 's' has no test example"),
    ],
)
def test_a_bad_stream_is_refused(tasks, message):
    with pytest.raises(InputError, match=message):
        Stream("s", tasks)


def test_joint_and_cumulative():
    stream = Stream("s", (task("a", 0, 3), task("b", 10, 2), task("c", 20, 4)))
    everything = joint(stream)
    assert everything.tasks == stream.tasks
    assert [numbers(stage) for stage in everything.stages] == [[0, 1, 2, 10, 11, 20, 21, 22, 23]]
    assert [numbers(stage) for stage in cumulative(stream).stages] == [
        [0, 1, 2],
        [0, 1, 2, 10, 11],
        [0, 1, 2, 10, 11, 20, 21, 22, 23],
    ]


def test_concatenated_takes_in_the_order_asked_for():
    blocks = Blocks(np.arange(100, 113), 3, False)
    other = Blocks(np.arange(200, 210), 3, False)
    source = Concatenated([blocks, other, blocks])
    indices = np.array([10, 0, 5, 4, 5, 6])
    taken = source.take(indices)
    for row, index in enumerate(indices):
        np.testing.assert_array_equal(taken["targets"][row], source[int(index)]["targets"])
    with pytest.raises(IndexError):
        source[len(source)]


def test_concatenated_refuses_examples_of_other_shapes():
    with pytest.raises(InputError, match="same keys, shapes and types"):
        Concatenated([Blocks(np.arange(9), 2, False), Blocks(np.arange(9), 4, False)])
    with pytest.raises(InputError, match="at least one source"):
        Concatenated([])


def targets_of(batches, count):
    return np.concatenate([batches[index]["targets"] for index in range(count)])


def test_each_epoch_holds_each_example_once_and_leftovers_open_the_next():
    batches = training_batches(Numbers(0, 10), 4, seed=3)
    drawn = targets_of(batches, 10)
    assert batches[0]["inputs"].shape == (4, 2)
    epochs = drawn.reshape(4, 10)
    for epoch in epochs:
        assert sorted(epoch) == list(range(10))
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_a_batch_is_a_function_of_its_index():
    source = Numbers(0, 10)
    in_order = [training_batches(source, 4, seed=3)[index]["targets"] for index in range(12)]
    backwards = training_batches(source, 4, seed=3)
    for index in reversed(range(12)):
        np.testing.assert_array_equal(backwards[index]["targets"], in_order[index])
    far = 10**9
    np.testing.assert_array_equal(
        backwards[far]["targets"], training_batches(source, 4, seed=3)[far]["targets"]
    )


def test_the_order_is_the_same_in_every_process_and_differs_by_seed():
    orders = [tuple(targets_of(training_batches(Numbers(0, 10), 5, seed), 4)) for seed in range(6)]
    assert len(set(orders)) == 6
    # With seed + epoch in the place of the pair, seed 1 would be seed 0 an epoch later.
    assert orders[0][10:] != orders[1][:10]
    assert orders[0][:10] == tuple(np.random.default_rng((0, 0)).permutation(10))


def test_take_and_single_examples_give_the_same_batches():
    blocks = Blocks(np.arange(60), 4, False)

    class Single:
        def __len__(self):
            return len(blocks)

        def __getitem__(self, index):
            return blocks[index]

    fast, slow = training_batches(blocks, 4, 7), training_batches(Single(), 4, 7)
    for index in range(8):
        for key in ("inputs", "targets"):
            np.testing.assert_array_equal(fast[index][key], slow[index][key])
            assert fast[index][key].dtype == slow[index][key].dtype == np.int32


def test_a_task_shorter_than_a_batch_is_refused():
    assert training_batches(Numbers(0, 4), 4, 0)[0]["targets"].shape == (4,)
    with pytest.raises(InputError, match=r"'poems' has 3 train examples.*4.*smaller batch size"):
        training_batches(Numbers(0, 3), 4, 0, name="poems")
    with pytest.raises(InputError, match="batch_size is 0"):
        training_batches(Numbers(0, 3), 0, 0)
    with pytest.raises(InputError, match="seed is -1"):
        training_batches(Numbers(0, 3), 1, -1)


def test_steps_per_epoch_drops_the_last_remainder_only():
    source = Numbers(0, 10)
    assert [steps_per_epoch(source, 4, epochs) for epochs in (1, 2, 3)] == [2, 5, 7]
    assert steps_per_epoch(source, 4, 0.5) == 1


def test_prefetch_yields_the_same_batches_in_order():
    batches = training_batches(Numbers(0, 10), 4, seed=1)
    drawn = [batch["targets"] for batch in prefetch(batches, 3, 9)]
    assert len(drawn) == 6
    for index, found in enumerate(drawn):
        np.testing.assert_array_equal(found, batches[3 + index]["targets"])
    assert list(prefetch(batches, 5, 5)) == []
    # Left early, as a run does that stops.
    assert len(list(itertools.islice(prefetch(batches, 0, 10**6), 2))) == 2


@pytest.mark.parametrize("error", [ValueError("torn"), OSError(5, "torn"), SystemExit("torn")])
def test_a_thread_that_fails_is_named_with_its_batch(error):
    class Torn(Numbers):
        ordered = True

        def __getitem__(self, index):
            if index == 7:
                raise error
            return super().__getitem__(index)

    batches = prefetch(training_batches(Torn(0, 10), 2, seed=1), 1, 5, name="english")
    assert [batch["targets"].shape for batch in (next(batches), next(batches))] == [(2,)] * 2
    with pytest.raises(InputError, match=r"batch 3 of .english. could not be built: .*torn.*line"):
        next(batches)


def test_evaluation_counts_each_example_once_in_one_shape():
    batches = list(evaluation_batches(Numbers(0, 10), 4))
    assert [batch["mask"].tolist() for batch in batches] == [[1] * 4, [1] * 4, [1, 1, 0, 0]]
    assert all(batch["inputs"].shape == (4, 2) for batch in batches)
    assert batches[0]["mask"].dtype == np.float32
    counted = [batch["targets"][batch["mask"] == 1] for batch in batches]
    assert np.concatenate(counted).tolist() == list(range(10))


def test_evaluation_keeps_the_masks_of_the_examples():
    tokens = np.arange(1, 13)
    batches = list(evaluation_batches(Blocks(tokens, 4, True), 2))
    assert [batch["mask"].shape for batch in batches] == [(2, 4), (2, 4)]
    counted = [batch["targets"][batch["mask"] == 1] for batch in batches]
    assert np.concatenate(counted).tolist() == tokens[1:].tolist()


def test_evaluation_needs_something_to_count():
    class Inputs(Numbers):
        def __getitem__(self, index):
            return {"inputs": np.zeros(2)}

    with pytest.raises(InputError, match=r"\['inputs'\], neither 'mask' nor 'targets'"):
        next(evaluation_batches(Inputs(0, 3), 2))


def test_stack():
    batches = training_batches(Numbers(0, 10), 4, seed=1)
    stacked = stack([batches[0], batches[1], batches[2]])
    assert stacked["inputs"].shape == (3, 4, 2)
    np.testing.assert_array_equal(stacked["targets"][1], batches[1]["targets"])
    with pytest.raises(InputError, match="at least one"):
        stack([])
    with pytest.raises(InputError, match="batch 1"):
        stack([batches[0], {"targets": np.zeros(4, np.int32)}])


def test_bytes_survive_the_round_trip():
    tokenizer = ByteTokenizer()
    text = "Grüße, 世界 🙂\n"
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    assert ids.tolist() == list(text.encode("utf-8"))
    assert tokenizer.decode(ids) == text


def test_special_ids_have_no_bytes_and_no_text():
    tokenizer = ByteTokenizer()
    assert (tokenizer.separator, tokenizer.pad, tokenizer.vocab_size) == (256, 257, 258)
    assert tokenizer.bytes_per_token.tolist() == [1] * 256 + [0, 0]
    assert tokenizer.decode(np.array([256, 104, 105, 257])) == "hi"
    assert tokenizer.decode(np.array([0xFF, 104])) == "\ufffdh"


@pytest.mark.parametrize("count", range(1, 12))
def test_blocks_predict_every_token_but_the_first_once(count):
    tokens = np.arange(50, 50 + count)
    train, test = Blocks(tokens, 3, False), Blocks(tokens, 3, True, pad=7)
    predicted = [number for block in train for number in block["targets"]]
    assert predicted == tokens[1 : len(predicted) + 1].tolist()
    assert count - 1 - len(predicted) < 3
    predicted = [number for b in test for number in b["targets"][b["mask"] == 1]]
    assert predicted == tokens[1:].tolist()
    for block in [*train, *test]:
        assert block["inputs"].shape == block["targets"].shape == (3,)
        assert block["inputs"].dtype == block["targets"].dtype == np.int32
        np.testing.assert_array_equal(block["inputs"][1:], block["targets"][:-1])
    for block in test:
        assert block["mask"].dtype == np.float32
        assert (block["targets"][block["mask"] == 0] == 7).all()
    assert not any("mask" in block for block in train)


def test_blocks_refuse_what_is_no_token_array():
    with pytest.raises(InputError, match="length is 0"):
        Blocks(np.arange(5), 0, False)
    with pytest.raises(InputError, match=r"float64\[5\]"):
        Blocks(np.zeros(5), 2, False)


def test_text_task_predicts_the_first_byte_and_separates_documents():
    made = text_task("t", ["abc", "de"], ["xy"], ByteTokenizer(), 3)
    assert [block["inputs"].tolist() for block in made.train] == [[256, 97, 98], [99, 256, 100]]
    assert made.test[0]["inputs"].tolist() == [256, 120, 121]
    assert made.test[0]["mask"].tolist() == [1, 1, 0]


def test_the_hash_follows_the_content():
    def hash_of(train=("abcd",), test=("xy",), length=3):
        return text_task("t", train, test, ByteTokenizer(), length).hash

    assert hash_of() == hash_of()
    changed = {
        hash_of(),
        hash_of(train=("abce",)),
        hash_of(train=("ab", "cd")),
        hash_of(test=("xz",)),
        hash_of(length=2),
    }
    assert len(changed) == 5
    assert len(hash_of()) == 64


def test_too_short_a_text_is_refused():
    with pytest.raises(InputError, match=r"train text of task 't' is too short.*smaller length"):
        text_task("t", ["ab"], ["x"], ByteTokenizer(), 3)
    with pytest.raises(InputError, match="test text of task 't'"):
        text_task("t", ["abc"], [], ByteTokenizer(), 3)


def written(source):
    """The text of a source's targets; a block of a train part may end inside a document."""
    targets = np.concatenate([block["targets"] for block in source])
    return ByteTokenizer().decode(targets)


def test_one_document_is_cut_at_its_end(tmp_path):
    path = tmp_path / "poem.txt"
    path.write_text("".join(f"line {number:03};" for number in range(100)))
    stream = text_files([path], length=9, test_fraction=0.2)
    assert [made.name for made in stream.tasks] == ["poem"]
    assert written(stream.tasks[0].train).startswith("line 000;")
    assert written(stream.tasks[0].train).endswith("line 079;")
    assert written(stream.tasks[0].test).startswith("line 080;")
    assert written(stream.tasks[0].test).endswith("line 099;")


def test_documents_of_a_text_file_are_groups_of_paragraphs(tmp_path):
    path = tmp_path / "book.txt"
    texts = [f"paragraph {number} " + "x" * 500 for number in range(200)]
    path.write_text("\r\n\r\n".join(texts), newline="")
    train, test = (written(part) for part in text_files([path], length=16).tasks[0][1:3])
    inside_test = [number for number in range(200) if f"paragraph {number} " in test]
    # Four paragraphs a document, five of fifty documents.
    assert len(inside_test) == 20
    assert inside_test[0] % 4 == 0
    assert all(f"paragraph {number} " not in train for number in inside_test)
    assert "\r" not in train


def test_the_split_follows_the_seed_and_only_the_seed(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"document {n} é"}) for n in range(40)) + "\n\n")

    def hash_of(seed):
        return text_files([path], length=8, seed=seed).tasks[0].hash

    assert hash_of(0) == hash_of(0)
    assert len({hash_of(seed) for seed in range(5)}) > 1
    test = text_files([path], length=8).tasks[0].test
    assert sum(np.sum(block["targets"] == 256) for block in test) == 3  # four documents


def test_tasks_by_name_with_several_files(tmp_path):
    (tmp_path / "a.txt").write_text("first file " * 30)
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(("\ufeffsecond file " * 30).encode()))
    files = {"both": [tmp_path / "a.txt", tmp_path / "b.txt.gz"], "one": str(tmp_path / "a.txt")}
    stream = text_files(files, length=16)
    assert [made.name for made in stream.tasks] == ["both", "one"]
    both = written(stream.tasks[0].train) + written(stream.tasks[0].test)
    assert "first file" in both
    assert "second file" in both
    assert text_files([tmp_path / "b.txt.gz"], length=16).tasks[0].name == "b"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.txt", None, "missing.txt does not exist"),
        ("empty.txt", b"", "empty.txt holds no text"),
        ("white.txt", b" \n\n \t\n", "white.txt holds no text"),
        ("white.jsonl", b'{"text": " "}\n', "white.jsonl holds no text"),
        ("latin.txt", b"caf\xe9 au lait", "latin.txt is not UTF-8.*offset 3 is 0xe9.*iconv"),
        ("table.csv", b"a,b", "table.csv does not end in .txt.gz, .txt, .jsonl"),
        ("broken.txt.gz", b"no gzip", "broken.txt.gz is not a whole gzip file"),
        (
            "cut.txt.gz",
            gzip.compress(b"x" * 999, mtime=0)[:-9],
            "cut.txt.gz is not a whole gzip file",
        ),
        ("bad.jsonl", b'{"text": "a"}\n\n{"text": \n', "bad.jsonl, line 3 is not JSON"),
        ("none.jsonl", b'{"text": "a"}\n{"words": "b"}', "none.jsonl, line 2 has no string"),
        ("number.jsonl", b'{"text": 5}', "number.jsonl, line 1 has no string under the key 'text'"),
        ("list.jsonl", b"[1]", "list.jsonl, line 1 has no string"),
        ("half.jsonl", b'{"text": "ab\\ud800"}', "half.jsonl, line 1 .* character 2"),
        ("short.txt", b"too short", "train text of task 'short' is too short"),
    ],
)
def test_a_bad_file_is_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        text_files([tmp_path / name])


def test_bad_arguments_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("words " * 99)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.txt").write_text("words " * 99)
    (tmp_path / "folder.txt").mkdir()
    path = tmp_path / "a.txt"
    with pytest.raises(InputError, match="both give a task named 'a'"):
        text_files([path, tmp_path / "deep" / "a.txt"])
    with pytest.raises(InputError, match=r"folder\.txt is a directory"):
        text_files([tmp_path / "folder.txt"])
    for fraction in (0, 1, -0.1, float("nan")):
        with pytest.raises(InputError, match="test_fraction is"):
            text_files([path], test_fraction=fraction)
    with pytest.raises(InputError, match="length is 0"):
        text_files([path], length=0)
    for files in ([], {}, str(path)):
        with pytest.raises(InputError, match="give a list of paths"):
            text_files(files)
    with pytest.raises(InputError, match="task 'a' has no file"):
        text_files({"a": []})


def test_data_has_no_jax():
    # grain imports jax where it is installed, so the sources are read and not sys.modules.
    for path in Path(jcl.data.__file__).parent.glob("*.py"):
        imports = [
            line
            for line in path.read_text().splitlines()
            if line.strip().startswith(("import jax", "from jax"))
        ]
        assert imports == [], path


def test_all_names_the_exports():
    assert all(hasattr(jcl.data, name) for name in jcl.data.__all__)
    assert sorted(jcl.data.__all__) == jcl.data.__all__


@pytest.mark.parametrize("files", [[None], {"a": None}, {"a": ["b.txt", 3]}])
def test_what_is_no_path_is_named(files):
    with pytest.raises(InputError, match=r"files holds (None|3): give paths"):
        text_files(files)


def test_a_fractional_length_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("words " * 50)
    with pytest.raises(InputError, match=r"length is 2\.5"):
        text_files([tmp_path / "a.txt"], length=2.5)
