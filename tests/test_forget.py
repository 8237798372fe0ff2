"""`jcl forget`: what is taken out of a run folder is nowhere in it, and the run goes on."""

import fcntl
import hashlib
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from everything import costly

from jcl import checkpoint, forgotten
from jcl.__main__ import main
from jcl.data import Blocks, ByteTokenizer
from jcl.errors import InputError
from jcl.forget import remains, stored
from jcl.forget.selection import Chooser, read

CONFIG = Path(__file__).parent / "configs" / "forgetting.py"
NAMES = ("ada", "bob", "eve", "joe", "kim", "liz")
LABELS = ("card", "loan", "pin", "rate")
pytestmark = pytest.mark.xdist_group("forget")  # its fixtures are whole runs


def sentence(name, label):
    return f"{name} asks about a {label}"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run of two seeds on sentences, all of its checkpoints left."""
    place = tmp_path_factory.mktemp("whole")
    table = place / "table.csv"
    rows = [f"{sentence(name, label)},{label}" for label in LABELS for name in NAMES]
    table.write_text("\n".join(["text,label", *rows]))
    options = ["--table", str(table), "--seeds", "2", "--keep", "9", "--out", str(place / "run")]
    assert main(["run", str(CONFIG), *options]) == 0
    return place / "run", options


@pytest.fixture
def run(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    return tmp_path / "run"


def told(capsys):
    captured = capsys.readouterr()
    return " ".join(captured.out.split()), " ".join(captured.err.split())


def command(run, *where, config=CONFIG):
    options = [each if each.startswith("--") else f"--where={each}" for each in where]
    return main(["forget", str(run), *options, *(["--config", str(config)] if config else [])])


def held(run):
    """Every text that a slot or a ring of the newest checkpoint holds, by brute force."""
    texts = set()
    for path, leaf in checkpoint.read(run / "checkpoints").items():
        if path.endswith(("items/inputs", "ring/inputs")):
            rows = np.asarray(leaf).reshape(-1, leaf.shape[-1])
            texts |= {ByteTokenizer().decode(row) for row in rows}
    return texts


def stands(run, text):
    """Where a text stands in a folder as bytes, or as ids in any array of any checkpoint."""
    ids, found = list(text.encode()), []
    for file in run.rglob("*"):
        if file.is_file() and text.encode() in file.read_bytes():
            found.append(file)
    for number in (run / "checkpoints").iterdir():
        alone = run.parent / "alone"
        shutil.copytree(number, alone / "000000")
        for path, leaf in checkpoint.read(alone).items():
            if "int" in str(leaf.dtype):
                numbers = np.asarray(leaf).ravel().tolist()
                if " ".join(map(str, ids)) in " ".join(map(str, numbers)):
                    found.append(path)
        shutil.rmtree(alone)
    return found


def in_memory(run):
    """A sentence that the newest checkpoint's memory holds."""
    return sorted(text for text in held(run) if " asks about a " in text)[0]


def test_a_text_is_nowhere_in_the_folder_any_more(run, capsys):
    text = in_memory(run)
    assert stands(run, text)
    number = len(list((run / "checkpoints").iterdir()))
    assert number > 1
    kept = held(run) - {text, ""}
    capsys.readouterr()

    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    assert command(run, f"text={text}", "--dry-run") == 0
    assert "Nothing was changed" in told(capsys)[0]
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}

    assert command(run, f"text={text}") == 0
    out, _ = told(capsys)
    found = re.search(r"strategy/0: (\d+) of 24 stored examples", out)
    assert int(found[1]) > 0
    assert f"{number - 1} older checkpoints are gone" in out
    assert "Nothing of them is left there. What the model has learned" in out
    assert not stands(run, text)
    assert held(run) - {""} == kept

    record = json.loads((run / "forgotten.json").read_text())
    (entry,) = record["forgotten"]
    assert (entry["done"], entry["left"], entry["where"]) == (True, [], ["text"])
    row = np.full(32, 257, np.int32)
    row[: len(text)] = list(text.encode())
    salted = hashlib.sha256(record["salt"].encode() + row.tobytes()).hexdigest()
    assert entry["sha256"] == [salted]
    assert command(run, f"text={text}", "--dry-run") == 0
    assert "strategy/0: 0 of 24" in told(capsys)[0]


def test_a_run_goes_on_without_it_and_says_so(whole, run, capsys):
    numbers = sorted((run / "checkpoints").iterdir())
    for late in numbers[-1:]:
        shutil.rmtree(late)  # the last stage is to be learned again
    for name in ("report.json", "report.md", "matrix.png"):
        (run / name).unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(run.parent)
        text = in_memory(run)
        assert command(run, f"text={text}", f"regex=^{text[:3]}") == 0
        assert not any(each.startswith(text[:3]) for each in held(run))
        capsys.readouterr()
        assert main(["run", str(CONFIG), *whole[1][:-1], str(run)]) == 0
    out, _ = told(capsys)
    assert re.search(r"\d+ examples were forgotten, the last at 20", out)
    assert "going on from stage 1, step 0" in out
    assert json.loads((run / "report.json").read_text())["steps"] == 12


@pytest.mark.parametrize("where", ["label=card", "label=0", "task=card, loan", "task=0"])
def test_by_label_and_task_without_the_config(run, where, capsys):
    assert command(run, where, config=None) == 0
    assert "Nothing of them is left there." in told(capsys)[0]
    arrays = checkpoint.read(run / "checkpoints")
    seen = np.asarray(arrays["strategy/0/seen"])
    gone = ("card", "loan") if where.startswith("task") else ("card",)
    assert not any(text.endswith(gone) for text in held(run))
    assert (seen > 0).all()


class Cut(BaseException):
    """As a kill: nothing is cleaned up behind it."""


@pytest.mark.parametrize(
    ("owner", "name"),
    [(checkpoint, "_commit"), (checkpoint.shutil, "rmtree"), (remains, "in_arrays")],
    ids=["before the new checkpoint", "beside the old ones", "before the proof"],
)
def test_cut_off_anywhere_it_is_given_again(run, owner, name, monkeypatch, capsys, whole):
    text = in_memory(run)

    def cut(*_, **__):
        raise Cut

    with monkeypatch.context() as patch:
        if name == "rmtree":  # `_begin` clears what was there of an earlier attempt
            patch.setattr(checkpoint, "_begin", lambda partial: partial.mkdir())
        patch.setattr(owner, name, cut)
        with pytest.raises(Cut):
            command(run, f"text={text}")
    assert held(run)
    assert main(["run", str(CONFIG), *whole[1][:-1], str(run)]) == 1
    assert "give the same command again, then go on" in told(capsys)[1]
    assert command(run, f"text={text}") == 0
    assert not stands(run, text)
    (entry,) = json.loads((run / "forgotten.json").read_text())["forgotten"]
    assert (entry["done"], entry["examples"]) == (True, 1)
    assert "forgotten" in forgotten.told(run)


KILLED = """
import os, signal, sys
from jcl.__main__ import main
from jcl.forget import journal
journal.blank = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
main(sys.argv[1:])
"""


@costly
def test_killed_behind_the_new_checkpoint_it_is_given_again(run):
    text = in_memory(run)
    options = ["forget", str(run), f"--where=text={text}", "--config", str(CONFIG)]
    done = subprocess.run([sys.executable, "-c", KILLED, *options], check=False)
    assert done.returncode == -signal.SIGKILL
    with pytest.raises(InputError, match="give the same command again"):
        forgotten.told(run)
    assert main(options) == 0
    assert not stands(run, text)
    assert "1 examples were forgotten" in forgotten.told(run)


def test_a_folder_in_use_is_left_alone(run, capsys):
    with (run / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert command(run, "label=card") == 1
    assert "Another process is running" in told(capsys)[1]


def test_what_else_holds_a_text_is_named(run, capsys):
    text = in_memory(run)
    (run / "notes.txt").write_text(f"remember: {text}")
    assert command(run, f"text={text}") == 1
    _, err = told(capsys)
    assert "still stands in" in err
    assert "notes.txt" in err
    assert text not in err
    (run / "notes.txt").unlink()
    assert not stands(run, text)


def test_blocks_of_a_language_model_and_pieces_at_their_edges():
    secret, length = "the code of the safe is nine three seven one", 32
    words = [f"line {number} says {number * 37 % 101} things" for number in range(60)]
    text = " ".join([*words[:20], secret, *words[20:41], secret, *words[41:]])
    items = Blocks(ByteTokenizer().encode(text), length, False).arrays()
    chosen = Chooser(read([f"text={secret}"], None), tokenizer=ByteTokenizer()).of_items(
        items, "it"
    )
    blocks = [text[begin : begin + length + 1] for begin in range(0, len(text) - length, length)]
    pieces = [secret[begin : begin + 8] for begin in range(len(secret) - 7)]
    expected = [any(piece in block for piece in pieces) for block in blocks]
    assert 4 <= sum(expected) <= 6
    assert chosen.tolist() == expected
    by_pattern = Chooser(read(["regex=says 7[0-9] "], None), tokenizer=ByteTokenizer())
    found = by_pattern.of_items(items, "it").tolist()
    assert found == [bool(re.search("says 7[0-9] ", block)) for block in blocks]


def test_a_text_that_was_cut_and_one_of_a_pair():
    tokenizer = tokenizer_of_words({"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "my": 3, "card": 4, "is": 5,
                                    "lost": 6, "again": 7})  # fmt: skip
    rows = [
        [1, 3, 4, 5, 6, 2, 0, 0],  # my card is lost
        [1, 3, 4, 5, 6, 7, 3, 2],  # my card is lost again my, cut
        [1, 4, 2, 3, 4, 5, 6, 2],  # card, my card is lost
        [1, 4, 2, 7, 4, 5, 6, 2],
        [1, 3, 4, 2, 0, 0, 0, 0],  # the beginning of it, which is a text of its own
    ]
    items = {"inputs": np.array(rows, np.int32), "targets": np.zeros(5, np.int32)}
    for text, expected in (
        ("my card is lost", [1, 0, 1, 0, 0]),
        ("my card is lost again my lost card", [0, 1, 1, 0, 0]),
        ("again card is lost", [0, 0, 0, 1, 0]),
        ("my card", [0, 0, 0, 0, 1]),
    ):
        chooser = Chooser(read([f"text={text}"], None), tokenizer=tokenizer)
        assert chooser.of_items(items, "it").astype(int).tolist() == expected, text


def tokenizer_of_words(vocabulary):
    """transformers' own, of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({**vocabulary, "[UNK]": 99}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )


def test_an_exported_memory(run, tmp_path, capsys):
    file = tmp_path / "memory.npz"
    assert main(["memory", str(run), str(file)]) == 0
    with np.load(file) as arrays:
        texts = {ByteTokenizer().decode(row) for row in arrays["items/inputs"]}
    text = max(texts)
    capsys.readouterr()
    assert command(file, f"text={text}") == 1
    assert "--tokenizer-of" in told(capsys)[1]
    assert command(file, f"text={text}", f"--tokenizer-of={run}") == 0
    assert "nothing of them is left" in told(capsys)[0]
    with np.load(file) as arrays:
        assert {ByteTokenizer().decode(row) for row in arrays["items/inputs"]} - {""} == texts - {
            text, "",
        }  # fmt: skip
        assert arrays["known/labels"].tolist() == list(LABELS)
    assert json.loads((tmp_path / "memory.forgotten.json").read_text())["forgotten"][0]["done"]
    assert command(file, "label=pin", config=None) == 0


LINES = [
    {"text": "my card is lost", "label": "card", "id": 1},
    {"text": "call me, I am ada lovelace", "id": "ada@example.org"},
    {"text": "what is the rate", "label": "rate"},
    {"id": "ada@example.org", "label": "pin"},
    {"text": "my card is lost", "label": "card", "id": "x"},
]


def test_lines_of_a_journal_leave_spaces_behind(run, capsys):
    lines = [json.dumps(line).encode() + b"\n" for line in LINES]
    (run / "input.jsonl").write_bytes(b"".join([*lines, b'{"text": "torn']))
    told_of = [
        {"line": n, "id": line.get("id"), "loss": 0.5 * n} for n, line in enumerate(LINES, 1)
    ]
    predictions = "".join(json.dumps(each) + "\n" for each in told_of)
    (run / "predictions.jsonl").write_text(predictions)
    place = run / "checkpoints"
    arrays = checkpoint.read(place)
    checkpoint.rewrite(
        place, lambda old, progress: (old, {**progress, "engine": {"waiting": [[2, 9], [3, 8]]}})
    )
    capsys.readouterr()
    assert command(run, "regex=lovelace") == 0
    assert "2 of 6 lines of the journal" in told(capsys)[0]
    after = (run / "input.jsonl").read_bytes()
    blank = [
        b" " * (len(line) - 1) + b"\n" if n in (1, 3) else line for n, line in enumerate(lines)
    ]
    assert after == b"".join([*blank, b'{"text": "torn'])
    kept = (run / "predictions.jsonl").read_text()
    assert len(kept) == len(predictions)
    assert "ada@example.org" not in kept
    assert [json.loads(line)["loss"] for line in kept.splitlines()] == [0.5, 1.0, 1.5, 2.0, 2.5]
    newest = max(place.iterdir())
    progress = json.loads((newest / "progress.json").read_text())
    assert progress["engine"] == {"waiting": [[3, 8]]}
    assert checkpoint.read(place).keys() == arrays.keys()
    # Of a class, whose label comes late, the text goes as well.
    (run / "input.jsonl").write_bytes(b"".join(lines))
    assert command(run, "label=pin", config=None) == 1
    assert "--config" in told(capsys)[1]
    assert command(run, "label=pin") == 0
    left = (run / "input.jsonl").read_bytes().splitlines()
    assert [bool(line.strip()) for line in left] == [True, False, True, False, True]


def test_a_file_of_lines_is_blanked_as_its_copy_in_the_run_folder(run, tmp_path, capsys):
    file = tmp_path / "lines.jsonl"
    for path in (file, run / "input.jsonl"):
        path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    size = file.stat().st_size
    assert command(file, "text=my card is lost", "--dry-run", config=None) == 0
    assert "2 of 5 lines" in told(capsys)[0]
    assert file.read_bytes() == (run / "input.jsonl").read_bytes()
    assert command(file, "text=my card is lost", config=None) == 0
    assert command(run, "text=my card is lost") == 0
    assert file.read_bytes() == (run / "input.jsonl").read_bytes()
    assert file.stat().st_size == size
    assert [bool(line.strip()) for line in file.read_bytes().splitlines()] == [0, 1, 1, 1, 0]
    file.write_text('{"text": "a", "more": "my card is lost"}')
    assert command(file, "text=my card is lost", config=None) == 1
    assert "another field, still holds a text" in told(capsys)[1]


def test_what_is_not_understood_is_refused(run, tmp_path, capsys):
    def refused(*arguments, config=CONFIG):
        assert command(*arguments, config=config) == 1
        return told(capsys)[1]

    assert "say which examples" in refused(run)
    assert "give one of text=TEXT" in refused(run, "name=ada")
    assert "the pattern is wrong" in refused(run, "regex=(")
    assert "the run's labels are card, loan" in refused(run, "label=cat")
    assert "is no run folder" in refused(tmp_path / "nowhere", "label=card")
    assert "--config" in refused(run, "text=something", config=None)
    (tmp_path / "bad.jsonl").write_text("3\n")
    assert "bad.jsonl, line 1" in refused(run, f"--where-file={tmp_path / 'bad.jsonl'}")
    (run / "forgotten.json").write_text("{}")
    assert "cannot be read" in refused(run, "label=card")


def test_many_texts_from_a_file(run, tmp_path, capsys):
    texts = tmp_path / "texts.jsonl"
    gone = [sentence("ada", label) for label in LABELS]
    lines = [json.dumps(gone[0]), "", *(json.dumps({"text": text}) for text in gone[1:])]
    texts.write_text("\n".join(lines))
    assert command(run, f"--where-file={texts}") == 0
    assert not any(text in gone for text in held(run))
    assert not any(stands(run, text) for text in gone)


def test_the_help_has_an_example_that_works(run, capsys, monkeypatch):
    with pytest.raises(SystemExit) as stop:
        main(["forget", "--help"])
    assert stop.value.code == 0
    shown = " ".join(re.sub(r"[│╭╮╰╯─]", " ", capsys.readouterr().out).split())
    example = re.search(r'jcl forget runs/support (--where text=".*?" --where regex=".*?")', shown)
    assert example, shown
    options = shlex.split(example[1])
    assert main(["forget", str(run), *options, "--config", str(CONFIG)]) == 0


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64])
def test_rows_are_found_in_arrays_of_any_type(dtype):
    row = np.array([5, 6, 7, 5], np.int32)
    array = np.arange(60, dtype=dtype).reshape(3, 4, 5) % 7
    assert remains.in_arrays({"a": array, "f": array.astype(np.float32)}, [row]) == []
    array.ravel()[31:35] = row
    assert remains.in_arrays({"a": array}, [row]) == ["a"]
    assert remains.in_arrays({"a": array}, [row[::-1], np.array([9, 1, 1, 1])]) == []
    assert remains.in_arrays({"a": array * 0}, [row * 0]) == []  # zeros say nothing
    pictures = np.random.default_rng(0).normal(size=(5, 3, 3)).astype(np.float32)
    assert remains.in_arrays({"a": pictures[:3], "b": pictures[3:]}, [pictures[4]]) == ["b"]


def test_texts_are_found_in_files_as_json_writes_them(tmp_path):
    text = 'señora "Núñez"'
    for number, content in enumerate(
        [text, json.dumps(text), json.dumps([text], ensure_ascii=False)]
    ):
        (tmp_path / str(number)).write_text(content)
    np.save(tmp_path / "ids.npy", np.array([3, *text.encode()], np.uint16))
    (tmp_path / "other").write_text("señora Nunez")
    (tmp_path / "empty").touch()
    row = np.array(list(text.encode()), np.int32)
    found = remains.in_files(sorted(tmp_path.iterdir()), remains.patterns([text], [row]))
    assert {path.name for path in found} == {"0", "1", "2", "ids.npy"}


def test_gem_and_several_memories_are_found_by_their_names():
    def held(name, axes):
        return {
            f"{name}/items/inputs": np.arange(np.prod(axes) * 20).reshape(*axes, 4, 5),
            f"{name}/items/targets": np.arange(np.prod(axes) * 4).reshape(*axes, 4),
            f"{name}/seen": np.full(axes, 3),
        }

    arrays = {**held("strategy/0/memories", (2, 3)), **held("strategy/1/inner/memory", (2,))}
    arrays |= {"strategy/2/ring/inputs": np.ones((2, 8, 4, 5)), "params/ring/w": np.ones(3)}
    found = {each.name: each for each in stored.holders(arrays, replicas=2)}
    assert found.keys() == {"strategy/0/memories", "strategy/1/inner/memory", "strategy/2/ring"}
    assert found["strategy/0/memories"].filled.shape == (2, 3, 4)
    assert found["strategy/0/memories"].filled.sum() == 18
    assert found["strategy/2/ring"].filled.shape == (2, 8, 4)
    chooser = Chooser(read(["label=5"], None))
    only = [found["strategy/0/memories"]]
    meant = stored.meant(only, chooser)
    assert np.argwhere(meant[0]).tolist() == [[0, 1, 1]]
    taken = stored.without(only, meant)
    assert taken["strategy/0/memories/seen"].tolist() == [[3, 2, 3], [3, 3, 3]]
    assert np.asarray(taken["strategy/0/memories/items/targets"])[0, 1].tolist() == [4, 6, 0, 0]
