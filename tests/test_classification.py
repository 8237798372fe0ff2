"""Streams of labelled texts: from files, saved sets and prepared sets, and as a run sees them."""

import csv
import json
import os
import re
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jcl
from jcl.data import ByteTokenizer, banking77, clinc150, text_classification
from jcl.errors import InputError

BYTES = ByteTokenizer()
DATA = os.environ.get("JCL_DATA")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "blue", "one", "two", "three", "four"]


def published(name):
    if not DATA or not (Path(DATA) / name).is_dir():
        pytest.skip(f"needs {name} in the folder that JCL_DATA names")
    return Path(DATA) / name


def bert(vocabulary=None):
    transformers = pytest.importorskip("transformers")
    words = vocabulary or {word: index for index, word in enumerate(WORDS)}
    return transformers.BertTokenizer(vocab=words)


def table(labels="abcd", each=3, tests=2):
    """Rows of (text, label, part): "a 0", "a 1", ..."""
    return [
        (f"{label} {number}", label, "train" if number < each else "test")
        for number in range(each + tests)
        for label in labels
    ]


def write_csv(path, rows, header=("text", "label", "split")):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def write_jsonl(path, rows, keys=("text", "label", "split")):
    lines = [json.dumps(dict(zip(keys, row, strict=False))) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def stream_of(path, **options):
    return text_classification(path, **{"tokenizer": BYTES, "tasks": 2, **options})


def texts(source):
    """The texts of a source tokenized by bytes, read through its mask."""
    held = source.arrays()
    return [
        BYTES.decode(ids[mask > 0])
        for ids, mask in zip(held["inputs"], held["attention_mask"], strict=True)
    ]


def targets(source):
    return source.arrays()["targets"].tolist()


def test_a_csv_with_a_split_column(tmp_path):
    rows = [("d, longest", "d", "train"), *table(), ("b x", "b", "validation")]
    stream = stream_of(write_csv(tmp_path / "t.csv", rows))
    assert [task.name for task in stream.tasks] == ["a, b", "c, d"]
    assert stream.name == "text classification, class"
    assert (stream.labels, stream.classes) == (("a", "b", "c", "d"), 4)
    assert (stream.length, stream.longest, stream.truncated) == (10, 10, 0)
    first, second = stream.tasks
    assert texts(first.train) == ["a 0", "b 0", "a 1", "b 1", "a 2", "b 2"]
    assert texts(first.test) == ["a 3", "b 3", "a 4", "b 4"]
    assert targets(first.train) == [0, 1] * 3
    assert texts(second.train)[0] == "d, longest"
    assert targets(second.train) == [3, *[2, 3] * 3]
    batch = second.train.take(np.array([1, 0]))
    assert {key: (leaf.dtype.name, leaf.shape) for key, leaf in batch.items()} == {
        "inputs": ("int32", (2, 10)),
        "attention_mask": ("int32", (2, 10)),
        "targets": ("int32", (2,)),
    }
    assert batch["inputs"][0].tolist() == [*b"c 0", *[BYTES.pad] * 7]
    assert batch["attention_mask"].tolist() == [[1] * 3 + [0] * 7, [1] * 10]


def test_texts_keep_what_csv_and_json_quote(tmp_path):
    odd = ['a, "b"\nsecond line', "tab\there", "Größe \u2028 日本"]
    rows = [(text, label, part) for text in odd for label in "xy" for part in ("train", "test")]
    for path in (write_csv(tmp_path / "t.csv", rows), write_jsonl(tmp_path / "t.jsonl", rows)):
        stream = stream_of(path)
        assert texts(stream.tasks[0].train) == odd
    path = tmp_path / "t.tsv"
    path.write_text("text\tlabel\tsplit\nu, v\tx\ttrain\nu\ty\ttrain\nu\tx\ttest\nu\ty\ttest\n")
    assert texts(stream_of(path).tasks[0].train) == ["u, v"]


def test_a_quotation_mark_in_a_tsv_is_a_letter(tmp_path):
    path, odd = tmp_path / "t.tsv", ['"it begins', "middle", 'the "end"', '"whole"']
    rows = [f"{text}\t{label}\t{part}" for text in odd for label in "xy" for part in
            ("train", "test")]  # fmt: skip
    path.write_text("\n".join(["text\tlabel\tsplit", *rows]))
    stream = stream_of(path)
    assert texts(stream.tasks[0].train) == texts(stream.tasks[1].test) == odd
    path.write_text('text\tlabel\tsplit\n"a\tb"\tx\ttrain\n')
    with pytest.raises(InputError, match="line 2 has 4 fields, .* must not hold a tab"):
        stream_of(path)


@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_a_field_may_be_as_long_as_the_file(tmp_path, ending):
    long, comma = "a" * 200_000, {"csv": ",", "tsv": "\t"}[ending]
    path = tmp_path / f"t.{ending}"
    lines = ["text,label,split", *(f"{long},{label},{part}" for label in "xy" for part in
                                   ("train", "test"))]  # fmt: skip
    path.write_text("\n".join(lines).replace(",", comma))
    limit = csv.field_size_limit(131_072)
    try:
        assert stream_of(path).length == 200_000
    finally:
        csv.field_size_limit(limit)


def test_whole_numbers_are_ordered_as_numbers(tmp_path):
    rows = [(f"t {label}", label, part) for label in (10, 2, 1, 0) for part in ("train", "test")]
    for path in (write_csv(tmp_path / "t.csv", rows), write_jsonl(tmp_path / "t.jsonl", rows)):
        assert stream_of(path).labels == ("0", "1", "2", "10")


@pytest.mark.parametrize(
    ("labels", "order"),
    [
        (["--1", "2", "10"], ("--1", "10", "2")),
        (["-1", "2", "10"], ("-1", "2", "10")),
        (["01", "1", "0"], ("0", "01", "1")),
        (["9" * 5000, "1", "-"], ("-", "1", "9" * 5000)),
    ],
)
def test_labels_that_look_like_numbers(tmp_path, labels, order):
    rows = [("t", label, part) for label in labels for part in ("train", "test")]
    assert stream_of(write_csv(tmp_path / "t.csv", rows), tasks=1).labels == order


def test_groups_of_labels_give_order_and_names(tmp_path):
    path = write_csv(tmp_path / "t.csv", table("abcde"))
    stream = stream_of(path, tasks=[["d", "a"], ["c", "b", "e"]])
    assert stream.labels == ("d", "a", "c", "b", "e")
    assert [task.name for task in stream.tasks] == ["d, a", "c, b, e"]
    assert targets(stream.tasks[0].train) == [1, 0] * 3
    stream = stream_of(path, tasks={"late": ["e"], "early": ["a", "b", "c", "d"]})
    assert [task.name for task in stream.tasks] == ["late", "early"]
    assert stream.labels == ("e", "a", "b", "c", "d")
    numbers = [("t", label, part) for label in (0, 1) for part in ("train", "test")]
    stream = stream_of(write_jsonl(tmp_path / "n.jsonl", numbers), tasks=[[1], [0]])
    assert stream.labels == ("1", "0")


def test_the_three_scenarios(tmp_path):
    path = write_csv(tmp_path / "t.csv", table("abcdef"))
    groups = [["a", "b"], ["c", "d", "e", "f"]]
    domain = stream_of(path, tasks=groups, scenario="domain")
    assert domain.classes == 4
    assert targets(domain.tasks[1].train) == [0, 1, 2, 3] * 3
    assert targets(domain.tasks[0].test) == [0, 1] * 2
    task = stream_of(path, tasks=groups, scenario="task")
    for source in (task.tasks[1].train, task.tasks[1].test):
        batch = source.take(np.array([0, 3]))
        assert batch["targets"].tolist() == [2, 5]
        assert batch["task"].tolist() == [1, 1]
        assert batch["label_mask"].tolist() == [[False] * 2 + [True] * 4] * 2
    assert "label_mask" not in stream_of(path, tasks=groups).tasks[0].test[0]


def test_a_column_of_domains(tmp_path):
    rows = [
        (f"{domain} {label} {part}", label, part, domain)
        for domain in ("shop", "film")
        for label in ("good", "bad")
        for part in ("train", "test")
    ]
    rows.append(("shop only", "mixed", "train", "shop"))
    path = write_jsonl(tmp_path / "t.jsonl", rows, ("text", "label", "split", "place"))
    stream = stream_of(path, by="place", tasks=None, scenario="domain")
    assert [task.name for task in stream.tasks] == ["shop", "film"]
    assert stream.labels == ("bad", "good", "mixed")
    assert targets(stream.tasks[1].train) == [1, 0]
    assert texts(stream.tasks[0].test) == ["shop good test", "shop bad test"]
    stream = stream_of(path, by="place", tasks=["film", "shop"], scenario="task")
    assert [task.name for task in stream.tasks] == ["film", "shop"]
    assert stream.tasks[0].train[0]["label_mask"].tolist() == [True, True, False]
    with pytest.raises(InputError, match="'toys' is in one of tasks and the column 'place' only"):
        stream_of(path, by="place", tasks=["film", "shop", "toys"])
    with pytest.raises(InputError, match="'film' is in one of tasks"):
        stream_of(path, by="place", tasks=["shop"])
    with pytest.raises(InputError, match="names a domain twice"):
        stream_of(path, by="place", tasks=["shop", "film", "shop"])


def test_a_file_a_task(tmp_path):
    paths = [write_csv(tmp_path / f"{name}.csv", table("ab")) for name in ("uno", "due")]
    stream = stream_of(paths, by="file", tasks=None)
    assert [task.name for task in stream.tasks] == ["uno", "due"]
    assert targets(stream.tasks[1].train) == [0, 1] * 3
    trains = {"x": paths[0], "y": paths[1]}
    tests = {"y": write_csv(tmp_path / "y.csv", [("b 9", "b")], ("text", "label")), "x": paths[0]}
    stream = stream_of(trains, test=tests, by="file", tasks=None)
    assert [task.name for task in stream.tasks] == ["x", "y"]
    assert texts(stream.tasks[1].test) == ["b 9"]
    assert len(stream.tasks[1].train) == 10  # with test files, a split column is not asked for
    assert len(stream_of(paths, test=list(paths), by="file", tasks=None).tasks[0].test) == 10
    both = stream_of(paths)  # several files, and labels make the tasks
    assert [len(task.train) for task in both.tasks] == [6, 6]
    with pytest.raises(InputError, match="a list of at least two files"):
        stream_of(paths[0], by="file", tasks=None)
    with pytest.raises(InputError, match="both give a task named 'uno'"):
        stream_of([paths[0], paths[0]], by="file", tasks=None)
    with pytest.raises(InputError, match="one test source for each of 2"):
        stream_of(paths, test=paths[0], by="file", tasks=None)
    with pytest.raises(InputError, match="use the same"):
        stream_of(trains, test={"x": paths[0]}, by="file", tasks=None)
    with pytest.raises(InputError, match="leave tasks out"):
        stream_of(paths, by="file", tasks=2)


def test_a_share_to_test_is_drawn_of_every_label(tmp_path):
    rows = [(f"{label} {number // 2}", label) for number in range(20) for label in "abcd"]
    rows.append(("only one", "e"))
    path = write_csv(tmp_path / "t.csv", rows, ("text", "label"))
    groups = [["a", "b"], ["e", "c", "d"]]
    one, two, other = (stream_of(path, tasks=groups, test=0.3, seed=seed) for seed in (1, 1, 2))
    assert texts(one.tasks[1].train)[-1] == "only one"  # what cannot be divided is learned
    for task in one.tasks:
        train, test = texts(task.train), texts(task.test)
        assert not set(train) & set(test)
        assert sorted([*train, *test]) == sorted(
            text for text, label in rows if label in task.name.split(", ")
        )
        assert np.bincount(targets(task.test)).tolist()[-2:] == [6, 6]  # 3 texts, twice each
    assert [task.hash for task in one.tasks] == [task.hash for task in two.tasks]
    assert [task.hash for task in one.tasks] != [task.hash for task in other.tasks]


def test_a_length_cuts_and_says_so(tmp_path):
    rows = [*table(), ("a very long text", "a", "train"), ("b long test", "b", "test")]
    path = write_csv(tmp_path / "t.csv", rows)
    with pytest.warns(UserWarning, match="2 of 22 texts were cut to 4 tokens; the longest has 16"):
        stream = stream_of(path, length=4)
    assert (stream.length, stream.longest, stream.truncated) == (4, 16, 2)
    assert texts(stream.tasks[0].train)[-1] == "a ve"
    assert stream_of(path, length=30).tasks[0].train[0]["inputs"].shape == (30,)
    assert stream_of(path).length == 16


def test_tokens_are_those_of_transformers(tmp_path):
    rows = [(text, label, part) for label in "xy" for part in ("train", "test")
            for text in ("red blue", "one two three four", "red purple one")]  # fmt: skip
    path, tokenizer = write_csv(tmp_path / "t.csv", rows), bert()
    stream = stream_of(path, tokenizer=tokenizer)
    assert stream.length == 6
    theirs = tokenizer([row[0] for row in rows[:3]], padding="max_length", max_length=6)
    ours = stream.tasks[0].train.arrays()
    np.testing.assert_array_equal(ours["inputs"], theirs["input_ids"])
    np.testing.assert_array_equal(ours["attention_mask"], theirs["attention_mask"])
    with pytest.warns(UserWarning, match="8 of 12 texts were cut to 4 tokens"):
        stream = stream_of(path, tokenizer=tokenizer, length=4)
    ours = stream.tasks[0].train.arrays()["inputs"]
    assert set(ours[:, 0]) == {tokenizer.cls_token_id}
    assert set(ours[:, -1]) == {tokenizer.sep_token_id}  # it stands behind a cut text too
    with pytest.raises(InputError, match="adds 2 special tokens to every text, so give at least 3"):
        stream_of(path, tokenizer=tokenizer, length=2)


def test_tokenizers_that_cannot_serve_are_refused(tmp_path):
    path = write_csv(tmp_path / "t.csv", table())
    empty = bert({"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3})
    with pytest.raises(InputError, match="the same id: its vocabulary is empty"):
        stream_of(path, tokenizer=empty)
    transformers = pytest.importorskip("transformers")
    with pytest.raises(InputError, match="no token for any of 20 texts: its vocabulary is empty"):
        stream_of(path, tokenizer=transformers.GPT2Tokenizer(vocab_file="v.json"))
    tokenizer = bert({word: index for index, word in enumerate([*WORDS, *"abcd0123"])})
    tokenizer.pad_token = None
    with pytest.raises(InputError, match="without an id for padding"):
        stream_of(path, tokenizer=tokenizer)
    with pytest.raises(InputError, match="line 2: tokenizer.encode gives object"):
        stream_of(path, tokenizer=Unlisted())


class Unlisted:
    """Gives an object, as the package tokenizers does."""

    pad = 0

    def encode(self, text):
        return object() if text else []


def test_examples_by_index_at_once_and_all(tmp_path):
    stream = stream_of(write_csv(tmp_path / "t.csv", table()), scenario="task")
    source = stream.tasks[1].train
    everything = source.arrays()
    taken = source.take(np.array([4, 0, 4]))
    for key, leaf in everything.items():
        np.testing.assert_array_equal(taken[key], leaf[[4, 0, 4]])
        np.testing.assert_array_equal(source[2][key], leaf[2])


def test_the_hash_follows_text_label_tokens_and_length(tmp_path):
    def hashes(rows, **options):
        stream = stream_of(write_csv(tmp_path / "t.csv", rows), **options)
        return [task.hash for task in stream.tasks]

    rows = table()
    base = hashes(rows)
    assert hashes(rows) == base
    assert hashes([("a !", "a", "train"), *rows[1:]])[0] != base[0]
    assert hashes([("a !", "a", "train"), *rows[1:]])[1] == base[1]
    assert hashes([("a 0", "b", "train"), *rows[1:]])[0] != base[0]
    assert hashes(rows, length=5) != base
    words = {word: index for index, word in enumerate([*WORDS, *"abcd0123"])}
    assert hashes(rows, tokenizer=bert(words)) != base
    assert hashes(rows, scenario="task") != base


def test_the_other_stream_functions_take_it(tmp_path):
    stream = stream_of(write_csv(tmp_path / "t.csv", table(each=10)))
    assert len(jcl.data.joint(stream).stages[0]) == 40
    assert [len(stage) for stage in jcl.data.cumulative(stream).stages] == [20, 40]
    assert jcl.data.labelled(stream).tasks[1].test.take(np.array([0]))["task"].tolist() == [1]
    blurred = jcl.data.blurry(stream, 0.2)
    assert sorted(set(targets(blurred.stages[0]))) == [0, 1, 2, 3]
    assert len(jcl.data.fuzzy(stream, 0.5).stages[0]) == 40
    for other in (jcl.data.joint, jcl.data.cumulative, jcl.data.labelled):
        assert (other(stream).length, other(stream).labels) == (4, ("a", "b", "c", "d"))
    assert (blurred.name, blurred.longest) == ("text classification, class, blurry 0.2", 4)
    assert jcl.data.fuzzy(stream, 0.5).truncated == 0
    batches = list(jcl.data.evaluation_batches(stream.tasks[0].test, 3))
    assert np.concatenate([batch["mask"] for batch in batches]).tolist() == [1, 1, 1, 1, 0, 0]


def rows_with(line, row):
    rows = table()
    rows[line - 2] = row
    return rows


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (table(), {"text": "body"}, "line 2 has no column 'body', but 'text', 'label', 'split'"),
        (table(), {"label": "intent"}, "line 2 has no column 'intent'"),
        (table(), {"split": "fold"}, "no column 'fold'.*give test= a file or a share"),
        (table(), {"by": "domain"}, "line 2 has no column 'domain'"),
        (table(), {"parts": ("train", "dev")}, "holds test, train, and no 'dev'"),
        (table(), {"parts": ("train", "train")}, "parts="),
        ([], {}, "t.csv holds no row"),
        (rows_with(4, (" ", "a", "train")), {}, "line 4: 'text' is blank"),
        (rows_with(4, ("t", "", "train")), {}, "line 4: 'label' is ''"),
        (rows_with(5, ("t", "a")), {}, "line 5 has 2 fields, the header 3"),
        (rows_with(20, ("t", "z", "test")), {}, "line 20: the label 'z' occurs in no train row"),
        (table("a"), {"tasks": 1}, "every train row has the label 'a'"),
        (table(), {"tasks": None}, "how the 4 labels make tasks"),
        (table(), {"tasks": 3}, "4 labels do not fall into that many equal groups"),
        (table(), {"tasks": 0}, "tasks=0"),
        (table(), {"tasks": ["ab", "cd"]}, "give every task a list of labels"),
        (table(), {"tasks": [["a", "b"], ["b", "c", "d"]]}, "'b' stands in two places"),
        (table(), {"tasks": [["a", "b"], ["c"]]}, "'d' is in no group"),
        (table(), {"tasks": [["a", "b"], ["c", "d", "e"]]}, "'e' of tasks occurs in no train row"),
        (table(), {"scenario": "online"}, "scenario='online'"),
        (table(), {"length": 0}, "length=0"),
        (table(), {"test": 1.5}, "test=1.5"),
        (table(), {"test": 3}, "test=3"),
        (table(), {"test": 0.5, "seed": -1}, "seed=-1"),
        ([r for r in table() if r[1:] != ("a", "test")], {"tasks": 4}, "'a' .* no test example"),
        (table(each=1, tests=0), {"test": 0.2}, "'a, b' .* test=0.2 never draws a label's only"),
    ],
)  # fmt: skip
def test_bad_input_is_named(tmp_path, rows, options, message):
    path = write_csv(tmp_path / "t.csv", rows)
    with pytest.raises(InputError, match=message):
        stream_of(path, **options)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.jsonl", '{"text": "a", "label": "x", "split": "train"}\nno', "t.jsonl, line 2 is not"),
        ("t.jsonl", "[1]", "line 1 is no JSON object"),
        ("t.jsonl", '{"text": 3, "label": "x", "split": "train"}', "line 1: 'text' is 3, no text"),
        ("t.jsonl", '{"text": null, "label": "x", "split": "train"}', "'text' is None, no text"),
        ("t.jsonl", '{"text": "a", "label": 1.5, "split": "train"}', "line 1: 'label' is 1.5"),
        ("t.jsonl", '{"text": "a", "label": true, "split": "train"}', "line 1: 'label' is True"),
        ("t.jsonl", '{"text": "\\ud800", "label": "x", "split": "train"}', "half a surrogate"),
        ("t.jsonl", "", "t.jsonl holds no row"),
        ("t.csv", "", "t.csv holds no row"),
        ("t.csv", "text,text\n", "line 1 names a column twice"),
        ("t.csv", 'text,label,split\nx,"a\n\nb",train,1\n', "line 2 has 4 fields"),
        ("t.csv", "text,label,split\nx\n", "line 2 has 1 fields"),
        ("t.csv", b"text,label\n\xff,a\n", "not UTF-8: the byte at offset 11"),
        ("t.parquet", "", "does not end in .csv, .tsv, .jsonl"),
        ("t.csv", None, "t.csv does not exist"),
    ],
)  # fmt: skip
def test_a_bad_file_is_named(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        stream_of(path)


def test_lines_are_counted_through_quoted_line_ends(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('text,label,split\n"a\nb\nc",x,train\n\n ,x,train\n')
    with pytest.raises(InputError, match=re.escape("t.csv, line 6: 'text' is blank")):
        stream_of(path)


def save(folder, part, rows, files=1, names=("neg", "pos")):
    """A folder as save_to_disk of Hugging Face's datasets 2 to 4 writes it."""
    pyarrow = pytest.importorskip("pyarrow")
    folder.mkdir(parents=True)
    named = []
    for index in range(files):
        some = rows[index::files]
        columns = {
            "sentence": [text for text, _ in some],
            "label": pyarrow.array([label for _, label in some], pyarrow.int64()),
            "id": list(range(len(some))),
        }
        data, name = pyarrow.table(columns), f"data-{index:05d}-of-{files:05d}.arrow"
        with pyarrow.ipc.new_stream(str(folder / name), data.schema) as writer:
            writer.write_table(data, max_chunksize=2)
        named.append({"filename": name})
    features = {
        "sentence": {"dtype": "string", "_type": "Value"},
        "label": {"names": list(names), "_type": "ClassLabel"},
        "id": {"dtype": "int32", "_type": "Value"},
    }
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    (folder / "state.json").write_text(json.dumps({"_data_files": named, "_split": part}))
    return folder


def test_a_folder_saved_by_hugging_face(tmp_path):
    rows = [("fine", 1), ("bad", 0), ("great", 1), ("awful", 0), ("nice", 1)]
    both = tmp_path / "both"
    save(both / "train", "train", rows, files=2)
    save(both / "validation", "validation", rows[:2])
    save(both / "test", "test", [(text, -1) for text, _ in rows])
    (both / "dataset_dict.json").write_text('{"splits": ["train", "validation", "test"]}')
    options = {"text": "sentence", "parts": ("train", "validation")}
    stream = stream_of(both, **options)
    assert [task.name for task in stream.tasks] == ["neg", "pos"]
    assert texts(stream.tasks[1].train) == ["fine", "great", "nice"]
    assert texts(stream.tasks[0].test) == ["bad"]
    single = stream_of(both / "train", test=both / "validation", text="sentence")
    assert [task.hash for task in single.tasks] == [task.hash for task in stream.tasks]
    with pytest.raises(InputError, match="test, example 0: 'label' is -1, .*parts="):
        stream_of(both, text="sentence")
    with pytest.raises(InputError, match="has the parts train, validation, test, not 'dev'"):
        stream_of(both, text="sentence", parts=("train", "dev"))
    with pytest.raises(InputError, match="no column 'text', but 'sentence', 'label', 'id'"):
        stream_of(both)
    # The set's own order of its labels is kept, not the alphabet's.
    other = save(tmp_path / "other", "train", rows, names=("pos", "neg"))
    assert stream_of(other, text="sentence", test=0.4).labels == ("pos", "neg")
    (other / "data-00000-of-00001.arrow").write_bytes(b"ARROW1")
    with pytest.raises(InputError, match="is no arrow stream"):
        stream_of(other, text="sentence", test=0.4)
    (tmp_path / "bare").mkdir()
    with pytest.raises(InputError, match="save_to_disk wrote"):
        stream_of(tmp_path / "bare", test=0.4)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A prepared tensorflow-datasets set, made without TensorFlow and found by its name."""
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("array_record")
    folder = tmp_path_factory.mktemp("tfds")

    class JclTinyTexts(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = folder

        def _info(self):
            features = {
                "text": tfds.features.Text(),
                "label": tfds.features.ClassLabel(names=["sport", "art", "war"]),
                "kind": tfds.features.Text(),
            }
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                disable_shuffling=True,
            )

        def _split_generators(self, manager):
            return {"train": self._generate_examples(9), "test": self._generate_examples(3)}

        def _generate_examples(self, number):
            for index in range(number):
                kind = "odd" if index % 2 else "even"
                yield index, {"text": f"ä {index}", "label": index % 3, "kind": kind}

    JclTinyTexts(data_dir=folder, file_format="array_record").download_and_prepare()
    tfds.core.add_data_dir(folder)
    return folder


def test_a_prepared_set_of_tensorflow_datasets(prepared):
    stream = stream_of("jcl_tiny_texts", tasks=3)
    assert [task.name for task in stream.tasks] == ["sport", "art", "war"]
    assert texts(stream.tasks[1].train) == ["ä 1", "ä 4", "ä 7"]
    assert texts(stream.tasks[2].test) == ["ä 2"]
    stream = stream_of("jcl_tiny_texts", tasks=None, by="kind", scenario="domain")
    assert [(task.name, len(task.train)) for task in stream.tasks] == [("even", 5), ("odd", 4)]
    with pytest.raises(InputError, match="has the parts train, test, not 'validation'"):
        stream_of("jcl_tiny_texts", parts=("train", "validation"))
    with pytest.raises(InputError, match="no column 'sentence', but 'kind', 'label', 'text'"):
        stream_of("jcl_tiny_texts", text="sentence")


def test_a_set_in_the_wrong_format_says_what_to_do(prepared):
    [path] = prepared.glob("jcl_tiny_texts/*/dataset_info.json")
    info = path.read_text()
    assert '"array_record"' in info
    path.write_text(info.replace('"array_record"', '"tfrecord"'))
    try:
        with pytest.raises(InputError, match="array_record.*download_and_prepare"):
            stream_of("jcl_tiny_texts")
    finally:
        path.write_text(info)


@pytest.mark.parametrize("name", ["ag_news_subset", "glue/sst2", "imdb_reviews", "no_such_set"])
def test_an_unprepared_set_says_how_to_prepare_it(prepared, monkeypatch, tmp_path, name):
    from tensorflow_datasets.core.utils import file_utils

    monkeypatch.setattr(file_utils, "list_data_dirs", lambda **_: [tmp_path])
    start = time.monotonic()
    with pytest.raises(InputError, match=rf'tfds.builder\("{name}", file_format="array_record"\)'):
        stream_of(name)
    assert time.monotonic() - start < 10  # nothing asks the network


def test_clinc150_made_small(tmp_path):
    (tmp_path / "domains.json").write_text('{"bank": ["pay", "save"], "home": ["light", "play"]}')
    data = {
        part: [[f"{intent} {part}", intent] for intent in ("play", "save", "light", "pay")]
        for part in ("train", "val", "test")
    }
    data["oos_train"] = [["what", "oos"]]
    (tmp_path / "data_full.json").write_text(json.dumps(data))
    stream = clinc150(tmp_path, tokenizer=BYTES)
    assert [task.name for task in stream.tasks] == ["bank", "home"]
    assert stream.labels == ("pay", "save", "light", "play")
    assert texts(stream.tasks[1].train) == ["play train", "light train"]
    assert targets(stream.tasks[1].train) == [3, 2]
    stream = clinc150(tmp_path, tokenizer=BYTES, scenario="domain")
    assert (stream.classes, targets(stream.tasks[1].test)) == (2, [1, 0])
    data["test"].append(["what", "oos"])
    (tmp_path / "data_full.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match=r"test, entry 4 is no \[text, intent\]"):
        clinc150(tmp_path, tokenizer=BYTES)


@pytest.mark.parametrize("reader", [clinc150, banking77])
def test_a_set_that_is_not_there(reader, monkeypatch, tmp_path):
    monkeypatch.delenv("JCL_DATA", raising=False)
    with pytest.raises(InputError, match="JCL_DATA is unset.*text_classification"):
        reader(tokenizer=BYTES)
    monkeypatch.setenv("JCL_DATA", str(tmp_path))
    with pytest.raises(InputError, match=f"There is no {tmp_path}/{reader.__name__}/"):
        reader(tokenizer=BYTES)


def test_clinc150_as_published():
    path = published("clinc150")
    tokenizer = bert_uncased()
    stream = clinc150(path, tokenizer=tokenizer)
    assert (stream.length, stream.truncated, stream.classes) == (33, 0, 150)
    assert [len(task.train) for task in stream.tasks] == [1500] * 10
    assert [len(task.test) for task in stream.tasks] == [450] * 10
    for number, task in enumerate(stream.tasks):
        assert sorted(set(targets(task.train))) == list(range(15 * number, 15 * number + 15))
    assert clinc150(path, tokenizer=BYTES, scenario="domain").classes == 15


def test_banking77_as_published():
    path = published("banking77")
    tokenizer = bert_uncased()
    stream = banking77(path, tokenizer=tokenizer)
    assert (stream.length, stream.truncated, stream.classes) == (98, 0, 77)
    assert sum(len(task.train) for task in stream.tasks) == 10_003
    assert [len(task.test) for task in stream.tasks] == [440] * 7
    assert stream.labels[0] == "card_arrival"
    with pytest.raises(InputError, match="77 labels do not fall"):
        banking77(path, tokenizer=BYTES, tasks=10)


def bert_uncased():
    return bert(str(published("tokenizers") / "bert-base-uncased" / "vocab.txt"))


def bag_of_tokens(classes, width=16):
    """The mean of the counted tokens' vectors, and a linear head."""

    def init(key):
        key_table, key_out = jax.random.split(key)
        return {
            "table": jax.random.normal(key_table, (258, width)),
            "out": 0.1 * jax.random.normal(key_out, (width, classes)),
        }

    def apply(params, inputs, key=None, *, attention_mask=None):
        counted = (inputs != BYTES.pad)[..., None]
        vectors = jnp.where(counted, params["table"][inputs], 0)
        return (vectors.sum(axis=1) / counted.sum(axis=1)) @ params["out"]

    return jcl.models.Model(init, apply, None)


def test_a_learner_learns_it(tmp_path):
    rows = [(f"{label * 3} {number}", label, part) for part, last in (("train", 16), ("test", 4))
            for number in range(last) for label in "abcd"]  # fmt: skip
    stream = stream_of(write_csv(tmp_path / "t.csv", rows))
    net = bag_of_tokens(stream.classes)
    strategy = jcl.chain(jcl.replay(capacity=20, size=8), optax.adam(0.03))
    learner = jcl.learner(jcl.losses.classify(net.apply), strategy)
    batches = [jcl.data.training_batches(task.train, 8, seed=0) for task in stream.tasks]
    params = jax.jit(net.init)(jax.random.key(1))
    state = jax.jit(learner.init)(jax.random.key(0), params, batches[0][0])
    step = jax.jit(learner.step)
    for task in batches:
        for index in range(30):
            state, _ = step(state, task[index])
    measure = jcl.losses.accuracy(net.apply)
    for task in stream.tasks:
        right, counted = jax.jit(measure.function)(state.params, task.test.arrays())
        assert (right, counted) == (8, 8)


def test_batches_on_the_host_are_those_held_on_the_device(tmp_path):
    source = stream_of(write_csv(tmp_path / "t.csv", table(each=9))).tasks[0].train
    held, order = jcl.data.held(source), jcl.data.walk(source, 4, 3)
    for index in range(6):
        batch = jcl.data.training_batches(source, 4, seed=3)[index]
        for key, leaf in batch.items():
            np.testing.assert_array_equal(leaf, held[key][order[index]])


LINES = ["text,label,split", *(f"text {number},{label},{part}" for number in range(5)
                               for label in "ab" for part in ("train", "test"))]  # fmt: skip


@pytest.mark.parametrize(
    ("marks", "message"),
    [
        ({3: "begin"}, "line 4 to 22: unexpected end of data: where a quotation mark opens"),
        ({3: "begin", 9: "begin"}, "line 4 to 10: .*is a letter is written twice"),
        ({3: "begin", 9: "end"}, "line 4 to 10: between two quotation marks, as one text"),
        ({3: "begin", 4: "end"}, "line 4 to 5: between two quotation marks, as one text"),
    ],
)
def test_a_quotation_mark_that_swallows_rows(marks, message, tmp_path):
    """Each opens a text that another line closes, where it begins or where its text ends."""
    lines = [*LINES]
    for row, where in marks.items():
        lines[row] = f'"{lines[row]}' if where == "begin" else lines[row].replace(",", '",', 1)
    path = tmp_path / "t.csv"
    path.write_text("\n".join([*lines, ""]))
    with pytest.raises(InputError, match=message):
        stream_of(path)


def test_a_quotation_mark_that_swallows_rows_whose_text_is_last(tmp_path):
    path, others = tmp_path / "t.csv", [f"{label},t" for label in "abab"]
    path.write_text("\n".join(["label,text", 'a,"x', "b,y", 'a,z"', *others]))
    with pytest.raises(InputError, match="line 2 to 4: between two quotation marks"):
        stream_of(path, test=0.5)


def test_texts_of_several_lines_stay_whole(tmp_path):
    odd = ["Dear all,\nsee you, then", "one\n\nthree, a\nfour", 'he said "a"\nand, "b"', "a\nb"]
    rows = [(text, label, part) for text in odd for label in "ab" for part in ("train", "test")]
    stream = stream_of(write_csv(tmp_path / "t.csv", rows + table("ab")))
    assert texts(stream.tasks[0].train)[:4] == odd


def test_space_around_a_label_is_none_of_it(tmp_path):
    rows = [("t", label, part) for label in ("a", "a ", " b") for part in ("train", "test")]
    assert stream_of(write_csv(tmp_path / "t.csv", rows)).labels == ("a", "b")


def test_endings_of_files(tmp_path, monkeypatch):
    for name in ("t.CSV", "t.Jsonl"):
        write = write_csv if "CSV" in name else write_jsonl
        assert stream_of(write(tmp_path / name, table())).labels == ("a", "b", "c", "d")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for name in ("data/t.json", "data/t.csv.gz"):  # the names of no sets: there are such files
        (tmp_path / name).write_text("[]")
        with pytest.raises(InputError, match="does not end in .csv, .tsv, .jsonl: .*unpacked"):
            stream_of(name)


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        ("bert-base-uncased", r'jcl.models.tokenizer\("bert-base-uncased"\)'),
        (object(), r"jcl.models.tokenizer\(folder\)"),
    ],
)
def test_what_is_no_tokenizer(tokenizer, message, tmp_path):
    with pytest.raises(InputError, match=message):
        stream_of(write_csv(tmp_path / "t.csv", table()), tokenizer=tokenizer)


def test_pairs_of_texts(tmp_path):
    pairs = [("red blue", "one"), ("red", "one two three four"), ("two", "two")]
    rows = [(*pair, label, part) for label in "xy" for part in ("train", "test") for pair in pairs]
    path = write_csv(tmp_path / "t.csv", rows, ("first", "second", "label", "split"))
    tokenizer, options = bert(), {"text": ("first", "second")}
    stream = stream_of(path, tokenizer=tokenizer, **options)
    assert stream.length == 8
    with pytest.warns(UserWarning, match="4 of 12 texts were cut to 7 tokens"):
        short = stream_of(path, tokenizer=tokenizer, length=7, **options)
    for found, length in ((stream, 8), (short, 7)):
        expected = tokenizer(
            *map(list, zip(*pairs, strict=True)),
            padding="max_length", truncation="longest_first", max_length=length,
        )  # fmt: skip
        ours = found.tasks[0].train.arrays()
        np.testing.assert_array_equal(ours["inputs"], expected["input_ids"])
        np.testing.assert_array_equal(ours["attention_mask"], expected["attention_mask"])
        np.testing.assert_array_equal(ours["token_types"], expected["token_type_ids"])
    share = stream_of(path, tokenizer=tokenizer, test=0.4, **options)
    assert [len(task.train) for task in share.tasks] == [4, 4]
    with pytest.raises(InputError, match="a ByteTokenizer encodes no pairs"):
        stream_of(path, **options)
    with pytest.raises(InputError, match="3 special tokens to every pair, so give at least 5"):
        stream_of(path, tokenizer=tokenizer, length=4, **options)
    with pytest.raises(InputError, match="no column 'third'"):
        stream_of(path, tokenizer=tokenizer, text=("first", "third"))
    with pytest.raises(InputError, match="the name of a column, or of the two of a pair"):
        stream_of(path, tokenizer=tokenizer, text=())
