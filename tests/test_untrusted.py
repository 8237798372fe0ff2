"""Files from elsewhere: attacks made by hand, and mutated files for every loader.

JCL_ALL_TESTS=1 tries twenty times as many mutations.
"""

import contextlib
import gzip
import hashlib
import io
import json
import os
import struct
import tempfile
import tracemalloc
import warnings
import zipfile
from pathlib import Path
from types import SimpleNamespace

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from reports import a_report
from rich.console import Console
from words import Words

import jcl
from jcl import InputError, answer, checkpoint, folder, report, strict
from jcl.data import text
from jcl.data.tables import Columns, read_table
from jcl.run import _position

EXAMPLES = 500 if os.environ.get("JCL_ALL_TESTS") else 25
BYTES = jcl.data.ByteTokenizer()
SHAPE = jcl.models.GPT2Config(61, positions=8, width=8, layers=1, heads=2, dropout=0.0)


@contextlib.contextmanager
def little_memory(megabytes=64):
    """Fails where numpy or Python take more."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < megabytes * 2**20
    finally:
        tracemalloc.stop()


def refused(match, function, *arguments, **options):
    with little_memory(), pytest.raises(InputError, match=match):
        function(*arguments, **options)


# JSON


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"a": NaN}', "NaN is no number"),
        (b'{"a": [-Infinity]}', "-Infinity is no number"),
        (b'{"a": 1e999}', "number '1e999' is too large"),
        (b'{"a": 1%s}' % (b"0" * 5000), "more than 64 bits"),
        (b'{"a": 18446744073709551616}', "more than 64 bits"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' stands twice"),
        (b'{"a": "\xff"}', "not UTF-8: look at the byte at offset 7"),
        (b'{"a": "\\ud800"}', "half a surrogate pair"),
        (b"[" * 100_000, "too deeply nested"),
        (b"{" + b" " * strict.JSON_BYTES + b"}", "16,777,216 are the most"),
        (b'{"a": 1', "Expecting"),
    ],
)
def test_json_is_read_strictly(content, reason, tmp_path):
    """By all that reads JSON: a config.json of a run, a report, a model and a table alike."""
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        strict.read_json(path)
    for read in (folder.read_config, lambda path: jcl.models.from_pretrained(path.parent)):
        refused(f"config.json.*{reason}", read, path)
    path.rename(tmp_path / "report.json")
    refused(f"report.json is no report.*{reason}", report.read, tmp_path)


def test_json_as_it_should_be(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('\ufeff{"a": ["\\ud83d\\ude00", -9223372036854775808, 1e308, true, null]}')
    assert strict.read_json(path) == {"a": ["😀", -(2**63), 1e308, True, None]}
    with pytest.raises(ValueError, match="no ordinary file"):
        strict.read_json(tmp_path)


@pytest.mark.parametrize(
    ("value", "shape", "reason"),
    [
        (True, int, "it is True, which should be int"),
        ([1, "a"], [strict.NUMBER], r"it\[1\] is 'a', which should be int or float"),
        ({"a": {"b": None}}, {"a": {"b": str}}, "its a.b is None, which should be str"),
        ({"a": {"x": 1}}, {"a": {str: str}}, "its a.x is 1"),
        ({}, {"a": object}, "it lacks a"),
        ([], {"a": object}, "it is a list, which should be dict"),
    ],
)
def test_the_shape_of_json_is_checked(value, shape, reason):
    with pytest.raises(ValueError, match=reason):
        strict.fits(value, shape)


# npz


def npy(declared, dtype="<i4", content=b""):
    """An array whose header declares a shape, whatever the content."""
    buffer = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": declared}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue() + content


def packed(path, parts, method=zipfile.ZIP_DEFLATED):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a name that stands twice
        with zipfile.ZipFile(path, "w", method) as archive:
            for name, content in parts:
                archive.writestr(name, content)


def array_bytes(array):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


ARRAYS = [("seen.npy", array_bytes(np.int32(2))), ("items/a.npy", array_bytes(np.zeros((3, 2))))]


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([("a.npy", array_bytes(np.array([{}])))], "pickle, which can run any program"),
        ([("a.npy", npy((10**12,)))], "declares int32.1000000000000., 4,000,000,000,000 bytes"),
        ([("a.npy", npy((2**30,), content=bytes(8)))], "4,294,967,296 bytes, and holds 8"),
        ([("a.npy", npy((10**12,), "|V0"))], "declares"),
        ([("a.npy", npy((10**12, 0)))], "declares"),
        ([("a.npy", npy((-1,)))], "."),
        ([("a.npy", npy((1,), "<U100000000", bytes(4)))], "400,000,000 bytes, and holds 4"),
        ([("a.npy", b"no array")], "."),
        ([("../../a.npy", array_bytes(np.zeros(2)))], "leads out of the file"),
        ([("/etc/a.npy", array_bytes(np.zeros(2)))], "leads out of the file"),
        ([ARRAYS[0], *ARRAYS], "'seen' is there twice"),
    ],
)
def test_npz_attacks(parts, reason, tmp_path):
    path = tmp_path / "memory.npz"
    packed(path, parts)
    refused(
        f"memory.npz is no memory.*{reason}",
        jcl.memory.starting_from, jcl.memory.reservoir(3), path,
    )  # fmt: skip


def test_npz_bombs(tmp_path, monkeypatch):
    """Packed a thousand times smaller, declared or not, or by a method that unpacks all at once."""
    path = tmp_path / "memory.npz"
    monkeypatch.setattr(strict, "UNPACKED_BYTES", 2**20)
    bomb = npy((2**24,), content=bytes(2**26))
    packed(path, [("a.npy", bomb)])
    start = lambda: jcl.memory.starting_from(jcl.memory.reservoir(3), path)
    refused("unpacks to 67,108,992 bytes", start)
    packed(path, [("a.npy", npy((0,)))], zipfile.ZIP_BZIP2)
    refused("packed in a way that numpy never uses", start)
    # Each part says that it is small.
    monkeypatch.setattr(strict, "UNPACKED_BYTES", 2**28)
    packed(path, [("a.npy", bomb)])
    content = path.read_bytes()
    path.write_bytes(content.replace(struct.pack("<I", len(bomb)), struct.pack("<I", 200)))
    with little_memory(8), pytest.raises(InputError, match="no memory that can be read"):
        start()


def test_a_device_is_not_read(tmp_path):
    path = tmp_path / "memory.npz"
    os.mkfifo(path)
    refused("no ordinary file", jcl.memory.starting_from, jcl.memory.reservoir(3), path)
    os.mkfifo(tmp_path / "a.txt")
    refused("no ordinary file", text.read_utf8, tmp_path / "a.txt")
    (tmp_path / "report.json").symlink_to("/dev/zero")
    refused("no ordinary file", report.read, tmp_path)


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        ({"seen": None}, "seen is no count"),
        ({"seen": np.array([1, 2])}, "seen is no count"),
        ({"seen": np.array(-1)}, "seen is no count"),
        ({"stored": np.array([2**40, 1])}, "counts more than its 6 items"),
        ({"items/inputs": np.zeros((7, 2))}, "not one capacity"),
        ({"items/inputs": np.array(["a"] * 6)}, "its items are no numbers"),
        ({"filled": np.ones(10**6, bool)}, "not of its 6 items"),
        ({"known/labels": np.array(7)}, "known/labels are no words"),
        ({"known/vocabulary": np.array(["a"])}, "known/vocabulary"),
    ],
)
def test_a_memory_of_a_forger(harm, reason, tmp_path):
    policy, batch = jcl.memory.class_balanced(6, 2), memory_batch()
    jcl.memory.save(tmp_path / "m.npz", policy.insert(policy.init(batch), batch, None))
    with np.load(tmp_path / "m.npz") as held:
        arrays = {name: leaf for name, leaf in {**held, **harm}.items() if leaf is not None}
    np.savez(tmp_path / "m.npz", **arrays)
    refused(reason, jcl.memory.starting_from, policy, tmp_path / "m.npz")


def memory_batch():
    return {"inputs": jnp.arange(8.0).reshape(4, 2), "targets": jnp.array([0, 1, 0, 1])}


def test_what_is_written_follows_no_link(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    place = tmp_path / "place"
    place.mkdir()
    (place / ".m.npz.partial").symlink_to(precious)
    policy = jcl.memory.reservoir(3)
    jcl.memory.save(place / "m.npz", policy.init(memory_batch()))
    (place / "model.safetensors").symlink_to(precious)
    model = jcl.models.gpt2(SHAPE)
    params = zeros(model)
    with pytest.raises(InputError, match="holds links"):
        jcl.models.save_pretrained(place, model, params, overwrite=True)
    assert precious.read_text() == "mine"


# Models


def zeros(model):
    """Params, without compiling anything."""
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    model = jcl.models.gpt2(SHAPE)
    jcl.models.save_pretrained(path, model, zeros(model))
    return path


def copied(source, target):
    for path in source.rglob("*"):
        if path.is_file():
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    return target


def with_header(content, change):
    """A file of safetensors with another header."""
    (length,) = struct.unpack("<Q", content[:8])
    header = change(content[8 : 8 + length])
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


@pytest.mark.parametrize("shape", [[10**12], [2**62, 2**62], [-1]])
def test_a_tensor_of_a_huge_shape(shape, model_folder, tmp_path):
    path = copied(model_folder, tmp_path) / "model.safetensors"
    name = b'"transformer.ln_f.bias": {"dtype": "F32", "shape": '
    change = lambda header: header.replace(name + b"[8]", name + json.dumps(shape).encode())
    path.write_bytes(with_header(path.read_bytes(), change))
    refused("is no whole file of safetensors", jcl.models.from_pretrained, tmp_path)
    path.write_bytes(struct.pack("<Q", 2**60) + b"{}")
    refused("is no whole file of safetensors", jcl.models.from_pretrained, tmp_path)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"n_layer": 2000}, "says 2,000 layers, where the files hold 16 tensors"),
        ({"n_layer": 10**9}, "n_layer is 1,000,000,000"),
        ({"n_embd": 2**40}, "width is 1,099,511,627,776"),
        ({"n_embd": "8"}, "field of another kind"),
        ({"n_embd": [[]]}, "."),
        ({"layer_norm_epsilon": "1e-5"}, "epsilon"),
        ({"model_type": ["gpt2"]}, "model_type is"),
        (
            {"model_type": "qwen2", "use_sliding_window": True, "num_hidden_layers": 10**12},
            "num_hidden_layers is 1,000,000,000,000",
        ),
        ({"model_type": "llama", "rope_parameters": [1]}, "field of another kind"),
        ({"model_type": "bert"}, "lacks the field"),
    ],
)
def test_a_config_that_cannot_be_the_files(fields, reason, model_folder, tmp_path):
    path = copied(model_folder, tmp_path) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    refused(reason, jcl.models.from_pretrained, tmp_path)


def test_no_head_of_gigabytes_is_made_afresh(tmp_path):
    shape = jcl.models.BertConfig(40, positions=9, width=8, layers=1, heads=2, inner=12)
    model = jcl.models.bert(shape)
    jcl.models.save_pretrained(tmp_path, model, zeros(model))
    path = tmp_path / "config.json"
    settings = json.loads(path.read_text()) | {
        "architectures": ["BertForSequenceClassification"], "num_labels": 2**24
    }  # fmt: skip
    path.write_text(json.dumps(settings))
    with pytest.raises(InputError, match="asks for classifier.* anew"):
        jcl.models.from_pretrained(tmp_path, key=jax.random.key(0))


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/model.safetensors", "passwd"])
def test_an_index_names_files_of_its_folder_alone(name, model_folder, tmp_path):
    copied(model_folder, tmp_path / "inner")
    (tmp_path / "inner" / "model.safetensors").rename(tmp_path / "model.safetensors")
    index = {"weight_map": {"transformer.wte.weight": name}}
    (tmp_path / "inner" / "model.safetensors.index.json").write_text(json.dumps(index))
    refused("must name files of the folder", jcl.models.from_pretrained, tmp_path / "inner")


def test_a_tokenizer_brings_no_code(tmp_path, monkeypatch):
    """Even where the user would say yes without reading."""
    marker = tmp_path / "executed"
    (tmp_path / "code.py").write_text(
        "from transformers import PreTrainedTokenizerFast\n"
        f"open({str(marker)!r}, 'w')\nclass Mine(PreTrainedTokenizerFast): pass\n"
    )
    settings = {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": [None, "code.Mine"]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(InputError, match="no tokenizer could be read"):
        jcl.models.tokenizer(tmp_path)
    assert not marker.exists()


def tokenizer_files(largest=300):
    words = {f"w{number}": number for number in range(20)} | {"[UNK]": largest}
    model = {"type": "WordLevel", "vocab": words, "unk_token": "[UNK]"}
    whole = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
        "normalizer": None, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None,
        "decoder": None, "model": model,
    }  # fmt: skip
    return {
        "tokenizer.json": json.dumps(whole).encode(),
        "tokenizer_config.json": b'{"tokenizer_class": "PreTrainedTokenizerFast"}',
        "config.json": b'{"model_type": "gpt2"}',
    }


def write(place, files):
    for name, content in files.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return place


def test_a_tokenizer_of_a_huge_id(tmp_path):
    assert jcl.models.tokenizer(write(tmp_path, tokenizer_files())).encode("w3") == [3]
    write(tmp_path, tokenizer_files(largest=4 * 10**9))
    with pytest.raises(InputError, match="21 tokens and among them the id 4,000,000,000"):
        jcl.models.tokenizer(tmp_path)


# Data


def test_lines_of_ten_megabytes(tmp_path):
    line = "x" * 10_000_000
    rows = [{"text": each, "label": "a"} for each in ("short", line)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "a.csv").write_text(f"text,label\n{line},a\n")
    for name in ("a.jsonl", "a.csv"):
        with pytest.raises(InputError, match="line 2 has 10,.* 8,000,000 are the most: divide"):
            read_table(tmp_path / name, Columns("text", "label"), "")
    with pytest.raises(InputError, match="line 2 has 10,"):
        jcl.data.text_files([tmp_path / "a.jsonl"])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"text": "a", "text": "b"}', "the key 'text' stands twice"),
        ('{"text": NaN}', "NaN is no number"),
        ("[" * 10_000, "too deeply nested"),
    ],
)
def test_lines_of_json_are_read_strictly(line, reason, tmp_path):
    (tmp_path / "a.jsonl").write_text(f'{{"text": "a", "label": "b"}}\n{line}\n')
    with pytest.raises(InputError, match=f"a.jsonl, line 2 is not JSON .*{reason}"):
        read_table(tmp_path / "a.jsonl", Columns("text", "label"), "")


def test_a_text_that_unpacks_to_gigabytes(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(bytes(2**26)))
    with pytest.raises(InputError, match="unpacks to more than 16,777,216 bytes"):
        text.read_utf8(tmp_path / "a.txt.gz")


def saved_set():
    """The files of a folder that Hugging Face's save_to_disk wrote."""
    import pyarrow

    table = pyarrow.table({"text": ["good", "bad", "fine", "ill"], "label": [1, 0, 1, 0]})
    buffer = io.BytesIO()
    with pyarrow.ipc.new_stream(buffer, table.schema) as writer:
        writer.write_table(table)
    features = {
        "text": {"dtype": "string", "_type": "Value"},
        "label": {"names": ["no", "yes"], "_type": "ClassLabel"},
    }
    return {
        "data.arrow": buffer.getvalue(),
        "state.json": b'{"_data_files": [{"filename": "data.arrow"}]}',
        "dataset_info.json": json.dumps({"features": features}).encode(),
    }


def test_a_saved_set_names_files_of_its_folder_alone(tmp_path):
    files = saved_set()
    columns = Columns("text", "label")
    inner = write(tmp_path / "inner", files)
    assert len(read_table(inner, columns, "").rows) == 4
    (tmp_path / "data.arrow").write_bytes(files["data.arrow"])
    for name in ("../data.arrow", str(tmp_path / "data.arrow")):
        state = json.dumps({"_data_files": [{"filename": name}]})
        (inner / "state.json").write_text(state)
        refused("is no name of a file in the folder", read_table, inner, columns, "")


def test_an_arrow_stream_with_places_outside_of_it(tmp_path):
    """The places of the texts in their bytes, which arrow follows without looking."""
    files = saved_set()
    places = struct.pack("<5i", 0, 4, 7, 11, 14)
    assert files["data.arrow"].count(places) == 1
    wrong = struct.pack("<5i", 0, 4, 7, 11, 2**30)
    files["data.arrow"] = files["data.arrow"].replace(places, wrong)
    refused("no arrow stream", read_table, write(tmp_path, files), Columns("text", "label"), "")


def test_arrow_streams_that_unfold(tmp_path):
    import pyarrow

    files, columns = saved_set(), Columns("text", "label")

    def stream(table, **options):
        buffer = io.BytesIO()
        options = pyarrow.ipc.IpcWriteOptions(**options)
        with pyarrow.ipc.new_stream(buffer, table.schema, options=options) as writer:
            writer.write_table(table)
        write(tmp_path, files | {"data.arrow": buffer.getvalue()})

    plain = pyarrow.table({"text": ["a" * 1000] * 4, "label": [0, 1, 0, 1]})
    stream(plain)
    assert len(read_table(tmp_path, columns, "").rows) == 4
    for method in ("lz4", "zstd"):
        stream(plain, compression=method)
        refused("it is packed", read_table, tmp_path, columns, "")
    folded = pyarrow.array(["a"] * 4).dictionary_encode()
    stream(pyarrow.table({"text": folded, "label": [0, 1, 0, 1]}))
    refused("'text' is of the type dictionary", read_table, tmp_path, columns, "")
    stream(pyarrow.table({"text": folded, "label": [0, 1, 0, 1]}), compression="lz4")
    refused("it is packed", read_table, tmp_path, columns, "")
    nothing = pyarrow.nulls(10**7)
    stream(pyarrow.table({"text": nothing, "label": nothing}))
    refused("it says 10,000,000 rows", read_table, tmp_path, columns, "")


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_prepared_set_imports_nothing(depth, tmp_path, monkeypatch):
    from tensorflow_datasets.core.utils import file_utils

    marker = tmp_path / "executed"
    (tmp_path / "evil_features.py").write_text(f"open({str(marker)!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(file_utils, "list_data_dirs", lambda **_: [tmp_path])
    own = "tensorflow_datasets.core.features."
    feature = {"pythonClassName": "evil_features.Feature", "tensor": {}}
    if depth:  # JSON in a string of JSON, as earlier versions wrote it
        inner = {"type": "evil_features.Feature", "content": {}}
        held = json.dumps({"feature": inner, "length": 1})
        if depth == 2:
            inner["content"], inner["type"] = json.dumps(inner), f"{own}features_dict.FeaturesDict"
            inner["proto_cls"] = "tensorflow_datasets.FeaturesDict"
            held = json.dumps({"feature": inner, "length": 1})
        feature = {
            "pythonClassName": f"{own}sequence_feature.Sequence", "jsonFeature": {"json": held}
        }  # fmt: skip
    place = tmp_path / "evil" / "1.0.0"
    place.mkdir(parents=True)
    (place / "features.json").write_text(json.dumps(feature))
    info = {"name": "evil", "version": "1.0.0", "fileFormat": "array_record"}
    (place / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(InputError, match="evil_features.Feature', none of tensorflow-datasets'"):
        read_table("evil", Columns("text", "label"), "train")
    monkeypatch.setenv("JCL_DATA", "")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        ({"x_train": np.zeros((4, 2, 2), np.float32)}, "images are float32"),
        ({"y_train": np.zeros(3, int)}, "labels are int64.3."),
        ({"y_train": np.array([0, 1, 2, 2**40])}, "labels go from 0 to 1099511627776"),
        ({"y_test": np.array([-1, 0, 1, 2])}, "labels go from -1"),
        ({"x_test": np.zeros((4, 3, 3), np.uint8)}, "differ in size"),
        ({"x_test": None}, "lacks the array x_test"),
    ],
)
def test_images_that_are_none(harm, reason, tmp_path):
    arrays = {name: leaf for name, leaf in (images() | harm).items() if leaf is not None}
    np.savez(tmp_path / "mnist.npz", **arrays)
    refused(f"is no npz file with x_train.*{reason}", jcl.data.mnist, tmp_path / "mnist.npz")


def images():
    return {
        "x_train": np.zeros((4, 2, 2), np.uint8), "y_train": np.arange(4),
        "x_test": np.zeros((4, 2, 2), np.uint8), "y_test": np.arange(4),
    }  # fmt: skip


def drawings():
    return {
        "images": np.zeros((4, 28, 28), np.uint8), "character": np.array([0, 0, 1, 1]),
        "character_names": np.array(["a/1", "a/2"]),
    }  # fmt: skip


def test_drawings_of_a_million_names(tmp_path):
    arrays = {**drawings(), "character_names": np.array([f"a/{n}" for n in range(10**5)])}
    np.savez_compressed(tmp_path / "omniglot_a.npz", **arrays)
    refused("are not of the same characters", jcl.data.omniglot, tmp_path)


# Runs


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"seeds": ["0"]}, r"seeds\[0\] is '0'"),
        ({"seeds": [0, 1]}, "not one of rows of its tasks for each of its seeds"),
        ({"matrix": [[[0.0], ["a"]]]}, r"matrix\[0\]\[1\]\[0\] is 'a'"),
        ({"matrix": [[[0.0], [None]]]}, r"matrix\[0\] has a null"),
        ({"matrix": [[[0.0], [0.5, 0.5]]]}, "not one of rows of its tasks"),
        ({"matrix": [[[0.0]]]}, "lacks the row"),
        ({"metrics": {}}, "lacks average_accuracy"),
        ({"wall_seconds": "1"}, "wall_seconds is '1'"),
        ({"name": "\x1b]0;title\x07"}, "control character"),
        ({"tasks": ["\x9b2J"]}, "control character"),
        ({"name": "gpj\u202e.exe"}, "control character"),
        ({"measure": "a\u2028b"}, "control character"),
        ({"schema": "1"}, "schema is '1'"),
        ({"schema": 2}, "has schema 2"),
    ],
)
def test_a_report_of_a_forger(change, reason, tmp_path):
    (tmp_path / "report.json").write_text(json.dumps({**a_report(), **change}))
    refused(reason, report.read, tmp_path)


def a_grid(**change):
    """Two settings, of which the second has diverged."""
    matrix = [[[0.0], [0.5]], [[0.0], [None]]]
    gone = {"task": "a", "step": 2}
    settings = [{"a": 1.0}, {"a": 2.0}]
    return {**a_report(matrix=matrix, settings=settings, diverged=[None, gone]), **change}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"settings": [{"b": 1.0}, {"b": 2.0}]}, "by_setting is not of its settings"),
        ({"settings": [{"a": 1.0}, {"a": 1.0}]}, "by_setting is not of its settings"),
        ({"settings": [{"a": 1.0}, {}]}, "not those of its replicas"),
        ({"settings": [{"a": 1.0}]}, "not those of its replicas"),
        ({"best": 1}, "its best is 1, which is no setting with"),
        ({"best": -1}, "its best is -1"),
        ({"diverged": [None, None]}, r"matrix\[1\] has a null"),
        ({"diverged": [None]}, "diverged is not of its replicas"),
        ({"diverged": [None, {"task": "a"}]}, "lacks step"),
        ({"diverged": [None, {"task": "\x1b", "step": 1}]}, "control character"),
    ],
)
def test_a_report_of_a_grid_of_a_forger(change, reason, tmp_path):
    (tmp_path / "report.json").write_text(json.dumps(a_grid()))
    shown(tmp_path)
    (tmp_path / "report.json").write_text(json.dumps(a_grid(**change)))
    refused(reason, report.read, tmp_path)


DESCRIPTION = {"schema": 1, "name": "a", "config": {}, "seeds": [0], "known": {"labels": ["a"]}}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"seeds": []}, "its seeds are none"),
        ({"seeds": {"0": 1}}, "its seeds is a dict"),
        ({"known": {"labels": [1]}}, r"its known.labels\[0\] is 1"),
        ({"config": []}, "its config is a list"),
        ({"config_file": 1}, "its config_file is 1"),
    ],
)
def test_a_runs_config_json_of_a_forger(change, reason, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**DESCRIPTION, **change}))
    refused(reason, folder.read_config, tmp_path / "config.json")


@pytest.mark.parametrize("name", ["metrics.jsonl", "report.md", "checkpoints", "lock"])
def test_a_run_writes_through_no_link(name, tmp_path):
    run, precious = tmp_path / "run", tmp_path / "precious"
    run.mkdir()
    (run / "config.json").write_text(json.dumps(DESCRIPTION))
    (run / name).symlink_to(precious)
    match = "cannot be written" if name == "lock" else f"{name} is a link"
    with pytest.raises(InputError, match=match), folder.opened(run, DESCRIPTION, fresh=False):
        pass
    assert not precious.exists()
    assert (run / "config.json").exists()


def test_code_that_a_run_folder_names_is_not_executed(tmp_path, monkeypatch):
    """Only what lies in `configs` here, or is named by the user."""
    monkeypatch.chdir(tmp_path)

    def asked(path, given=None):
        run = tmp_path / "run"
        run.mkdir(exist_ok=True)
        path.parent.mkdir(exist_ok=True)
        if not path.is_symlink():
            path.write_text("print()")
        description = {"config_file": str(path), "config_hash": folder.config_hash(path)}
        (run / "config.json").write_text(json.dumps(DESCRIPTION | description))
        answer.reopen(run, load, given)

    def load(path):
        raise LookupError(path)

    (tmp_path / "configs").mkdir()
    link = tmp_path / "configs" / "link.py"
    evil = tmp_path / "run" / "evil.py"
    for path in (evil, tmp_path / "evil.py", tmp_path / "configs" / ".." / "evil.py", link):
        if path == link:
            link.symlink_to(evil)
        with pytest.raises(InputError, match="That is code.*say so by --config"):
            asked(path)
    with pytest.raises(LookupError):
        asked(evil, evil)
    with pytest.raises(LookupError):
        asked(tmp_path / "configs" / "mine.py")
    monkeypatch.chdir(tmp_path / "run")
    with pytest.raises(InputError, match="That is code"):
        answer.reopen(tmp_path / "run", load)


POSITION = {
    "stage": 1, "step": 2, "matrix": 2 * [2 * [[0.5, 1]]], "offset": 3, "wall_seconds": 1.0,
    "step_seconds": [0.1], "traces": {"step": 1},
}  # fmt: skip
GONE = {"task": "a", "step": 2}


def position(path, found, step=7, task_step=2, evaluate="boundaries", setting=(1,)):
    """Of two replicas in a run of two stages, of 5 steps each, and two tasks."""
    stream = SimpleNamespace(stages=[0, 0], tasks=[0, 0])
    experiment = SimpleNamespace(stream=stream, epochs=None, steps=5, evaluate=evaluate, name="a")
    program = SimpleNamespace(
        experiments=[experiment], replicas=2 * [SimpleNamespace(setting=setting)]
    )
    state = SimpleNamespace(step=np.int32(step), task_step=np.int32(task_step))
    return _position(path, found, state, program, "own")


def test_where_a_run_stands_is_checked(tmp_path):
    lost = [*POSITION["matrix"][:1], [[0.5, 1], [None, None]]]
    ended = {**POSITION, "stage": 2, "step": 0, "matrix": 3 * POSITION["matrix"][:1]}
    assert position(tmp_path, POSITION).step == 2
    assert position(tmp_path, ended, 10, 0).stage == 2
    assert position(tmp_path, {**POSITION, "matrix": lost, "diverged": [None, GONE]}).stage == 1
    few = {**POSITION, "matrix": POSITION["matrix"][:1]}
    assert position(tmp_path, few, evaluate="end").step == 2
    for change in (
        {"stage": 2}, {"stage": 10**9, "step": 0}, {"stage": -1}, {"step": 6}, {"offset": -1},
        {"matrix": [[["a"]]]}, {"more": 1}, {"traces": {"step": None}},
        # which fit neither the state nor the run
        {"step": 3}, {"stage": 0}, {"matrix": POSITION["matrix"][:1]},
        {"matrix": 3 * POSITION["matrix"][:1]}, {"matrix": 2 * [[[0.5, 1]]]},
        {"matrix": 2 * [2 * [[0.5]]]}, {"matrix": lost}, {"diverged": [None, GONE, None]},
        {"diverged": [None, {"task": "a"}]}, {"diverged": [None, 1]}, {"diverged": 1},
    ):  # fmt: skip
        refused("progress.json", position, tmp_path, {**POSITION, **change})
    refused("progress.json", position, tmp_path, ended, 10, 0, "end")
    gone = {**POSITION, "diverged": [None, GONE]}
    refused("are no grid", position, tmp_path, gone, setting=())
    refused("are no grid", position, tmp_path, {**gone, "diverged": [GONE, GONE]})


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    assert position(tmp_path, {**POSITION, "run": "own"}).step == 2
    refused("is of another run.*--fresh", position, tmp_path, {**POSITION, "run": "other"})
    description = {"name": "a", "config": {}, "config_hash": "c", "data": {}, "seeds": [0]}
    own = folder.fingerprint(description)
    for change in (
        {"config": {"a": 1}},
        {"config_hash": "d"},
        {"data": {"a": "1"}},
        {"seeds": [1]},
    ):
        assert folder.fingerprint({**description, **change}) != own
    assert folder.fingerprint({**description, "grid": None, "versions": {"jax": "1"}}) == own


# Checkpoints


STATE = {"a/b": jnp.arange(300.0), "c": [jnp.int32(3), jax.random.key(1)]}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoints")
    checkpoint.save(path, STATE, {"number": 0})
    return path


def forged(place, change=lambda manifest: None):
    """A checkpoint whose sums are right, whatever was changed."""
    path = place / "000000" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["sha256"] = {
        file.relative_to(path.parent).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in path.parent.rglob("*")
        if file.is_file() and file.name not in ("manifest.json", "manifest.sha256")
    }
    change(manifest)
    path.write_text(json.dumps(manifest))
    path.with_name("manifest.sha256").write_text(hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.mark.parametrize(
    ("leaf", "reason"),
    [
        ({"shape": [10**12]}, "declares 4,000,000,000,0.. bytes of arrays, where its files hold"),
        ({"shape": [10**7]}, "state cannot be read"),
        ({"shape": [-1]}, "no number, no shape or no type"),
        ({"dtype": "object"}, "no number, no shape or no type"),
        ({"dtype": "wide"}, "manifest.json cannot be read"),
        ({"shape": 300}, "which should be list"),
    ],
)
def test_a_checkpoint_of_a_forger(leaf, reason, checkpoints, tmp_path):
    copied(checkpoints, tmp_path)
    forged(tmp_path)
    assert checkpoint.read(tmp_path)["a/b"].shape == (300,)
    forged(tmp_path, lambda manifest: manifest["leaves"]["00000"].update(leaf))
    refused(reason, checkpoint.read, tmp_path)


def test_names_of_a_manifest_lead_nowhere(checkpoints, tmp_path):
    copied(checkpoints, tmp_path / "run")
    (tmp_path / "run" / "secret").write_text("secret")
    total = hashlib.sha256(b"secret").hexdigest()
    for name in ("../secret", str(tmp_path / "run" / "secret")):
        forged(tmp_path / "run", lambda manifest: manifest["sha256"].update({name: total}))
        assert "is missing" in checkpoint._damage(tmp_path / "run" / "000000")
    leaf = {"path": "x", "shape": [], "dtype": "int32"}
    forged(tmp_path / "run", lambda manifest: manifest["leaves"].update({"../x": leaf}))
    refused("its leaf '../x' has no number", checkpoint.read, tmp_path / "run")


def test_links_among_checkpoints(checkpoints, tmp_path):
    copied(checkpoints, tmp_path / "run")
    metadata = tmp_path / "run" / "000000" / "state" / "_METADATA"
    metadata.rename(tmp_path / "metadata")
    metadata.symlink_to(tmp_path / "metadata")
    assert "_METADATA is a link" in checkpoint._damage(tmp_path / "run" / "000000")
    (tmp_path / "link").symlink_to(tmp_path / "run")
    refused("is a link", checkpoint.restore, tmp_path / "link", {})
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["000000"]  # not renamed


# Mutations


SIMPLE = st.sampled_from(
    [
        None, True, 0, 1, -1, 0.5, 2**31, 2**62, 10**30, float("nan"), float("inf"), 1e308, "",
        "..", "../x", "/etc/passwd", "\ud800", "\x1b[2J", "a" * 100, "float32", [], {}, [[]],
        {"": 0},
    ]
)  # fmt: skip
VALUES = st.recursive(
    SIMPLE,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=4,
)
LEAVES = [
    np.array(5), np.array(-1), np.array(2**40), np.array([1, 2]), np.zeros((0, 10)),
    np.array(["a"]), np.array([{}]), np.zeros((2, 28, 28), np.uint8), np.zeros(3, complex),
    np.array(["2020-01-01"], "datetime64[D]"), np.zeros(2, [("a", "<i4"), ("b", "<f8")]),
    np.full(4, np.nan), np.asfortranarray(np.zeros((3, 2))), np.zeros(4, "V2"), None,
]  # fmt: skip


def harmed_json(draw, content):
    """One value somewhere in it is another or is gone."""
    whole = {"whole": json.loads(content)}
    holder, key = whole, "whole"
    while isinstance(holder[key], dict | list) and holder[key] and draw(st.integers(0, 4)):
        holder = holder[key]
        keys = sorted(holder) if isinstance(holder, dict) else range(len(holder))
        key = draw(st.sampled_from(keys))
    if draw(st.integers(0, 5)) or holder is whole:
        holder[key] = draw(VALUES)
    else:
        del holder[key]
    return json.dumps(whole["whole"]).encode()


def harmed_arrays(draw, content):
    with np.load(io.BytesIO(content)) as held:
        arrays = dict(held)
    arrays[draw(st.sampled_from(sorted(arrays)))] = draw(st.sampled_from(LEAVES))
    buffer = io.BytesIO()
    np.savez(buffer, **{name: leaf for name, leaf in arrays.items() if leaf is not None})
    return buffer.getvalue()


def harmed(draw, name, content):
    """The content of a file, changed as its kind allows or somewhere in its bytes."""
    kinds = ["random", "cut", "splice", "flip"]
    if name.endswith(".json"):
        kinds += ["inner"] * 8
        inner = harmed_json
    elif name.endswith(".npz"):
        kinds += ["inner"] * 4
        inner = harmed_arrays
    elif name.endswith(".safetensors"):
        kinds += ["inner"] * 4
        inner = lambda draw, content: with_header(content, lambda head: harmed_json(draw, head))
    kind = draw(st.sampled_from(kinds))
    place = draw(st.integers(0, max(0, len(content) - 1)))
    if kind == "random":
        return draw(st.binary(max_size=64))
    if kind == "cut":
        return content[:place]
    if kind == "splice":
        rest = content[place + draw(st.integers(0, 8)) :]
        return content[:place] + draw(st.binary(max_size=8)) + rest
    if kind == "flip":
        flipped = bytearray(content or b" ")
        flipped[min(place, len(flipped) - 1)] ^= 1 << draw(st.integers(0, 7))
        return bytes(flipped)
    return inner(draw, content)


def npz_bytes(**arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def memory_files():
    items = {"items/inputs": np.zeros((3, 2), np.float32), "items/targets": np.zeros(3, np.int32)}
    return {"m.npz": npz_bytes(**items, seen=np.array(2, np.int32))}


def checkpoint_files():
    with tempfile.TemporaryDirectory() as place:
        checkpoint.save(Path(place), STATE, {"number": 0})
        return {
            path.relative_to(place).as_posix(): path.read_bytes()
            for path in sorted(Path(place).rglob("*"))
            if path.is_file()
        }


def model_files():
    with tempfile.TemporaryDirectory() as place:
        model = jcl.models.gpt2(SHAPE)
        jcl.models.save_pretrained(place, model, zeros(model))
        return {path.name: path.read_bytes() for path in sorted(Path(place).iterdir())}


def clinc_files():
    both = [["pay it", "pay"], ["save it", "save"], ["light up", "light"], ["play on", "play"]]
    return {
        "domains.json": b'{"bank": ["pay", "save"], "home": ["light", "play"]}',
        "data_full.json": json.dumps({"train": both, "test": both}).encode(),
    }


ROWS = [("good", "a"), ("bad", "b"), ("fine", "a"), ("ill", "b")]
TABLE = "".join(f"{each},{label}\n" for each, label in [("text", "label"), *ROWS]).encode()
LINES = "".join(json.dumps({"text": each, "label": label}) + "\n" for each, label in ROWS).encode()


def classified(path):
    return jcl.data.text_classification(path, tokenizer=BYTES, tasks=2, test=0.5)


def shown(place):
    report.show([report.read(place)], Console(file=io.StringIO(), width=100))


def read_forged(place):
    """Of a checkpoint whose sums its forger has made right."""
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError, KeyError):
        forged(place)
    checkpoint.read(place)


# name: (the files, what reads them)
LOADERS = {
    "report": (lambda: {"report.json": json.dumps(a_report(2)).encode()}, shown),
    "config": (
        lambda: {"config.json": json.dumps(DESCRIPTION).encode()},
        lambda place: folder.read_config(place / "config.json"),
    ),
    "checkpoint": (checkpoint_files, checkpoint.read),
    "forged checkpoint": (checkpoint_files, read_forged),
    "memory": (
        memory_files,
        lambda place: jcl.memory.starting_from(jcl.memory.reservoir(3), place / "m.npz").init(
            {"inputs": jnp.zeros((1, 2)), "targets": jnp.zeros(1, jnp.int32)}
        ),
    ),
    "model": (model_files, jcl.models.from_pretrained),
    "tokenizer": (tokenizer_files, jcl.models.tokenizer),
    "mnist": (
        lambda: {"mnist.npz": npz_bytes(**images())},
        lambda place: jcl.data.split(jcl.data.mnist(place / "mnist.npz"), "task"),
    ),
    "omniglot": (lambda: {"omniglot_a.npz": npz_bytes(**drawings())}, jcl.data.omniglot),
    "csv": (lambda: {"a.csv": TABLE}, lambda place: classified(place / "a.csv")),
    "tsv": (
        lambda: {"a.tsv": TABLE.replace(b",", b"\t")},
        lambda place: classified(place / "a.tsv"),
    ),
    "jsonl": (lambda: {"a.jsonl": LINES}, lambda place: classified(place / "a.jsonl")),
    "lines of text": (
        lambda: {"a.jsonl": LINES},
        lambda place: jcl.data.text_files([place / "a.jsonl"], length=4),
    ),
    "packed text": (
        lambda: {"a.txt.gz": gzip.compress(b"some words of a text\n\n" * 9)},
        lambda place: jcl.data.text_files([place / "a.txt.gz"], length=4),
    ),
    "saved set": (saved_set, classified),
    "clinc150": (clinc_files, lambda place: jcl.data.clinc150(place, tokenizer=Words())),
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax's
@pytest.mark.parametrize("name", LOADERS)
def test_mutated_files_are_read_or_refused(name, tmp_path):
    """Nothing but a result or an InputError comes of them."""
    make, read = LOADERS[name]
    files = make()
    write(tmp_path, files)
    read(tmp_path)

    @hypothesis.settings(
        max_examples=EXAMPLES, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    @hypothesis.given(st.data())
    def mutate(data):
        changed = data.draw(st.sampled_from(sorted(files)))
        content = harmed(data.draw, changed, files[changed])
        write(tmp_path, files | {changed: content})
        with warnings.catch_warnings(), contextlib.suppress(InputError):
            warnings.simplefilter("ignore")
            read(tmp_path)

    mutate()
