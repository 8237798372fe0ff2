"""`jcl forget` where lines are: the journal of an online run, and a file that one was given."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from jcl import checkpoint, folder
from jcl.__main__ import main
from jcl.data import ByteTokenizer, HashedWords, Lines
from jcl.forget import journal

CONFIG = """
from dataclasses import dataclass
from types import SimpleNamespace
import jcl

class Small(jcl.data.ByteTokenizer):
    def encode(self, text):
        return super().encode(text.lower())

@dataclass(frozen=True)
class Config:
    pass

def build(config):
    lines = jcl.data.Lines({})
    return SimpleNamespace(tokenizer=lines.tokenizer, lines=lines)
"""
FIELDS = {"text": "msg", "label": "intent", "identity": "of"}


class Online:
    """The folder of an online run that stored each of its lines, and nothing else."""

    def __init__(self, place, records, *, tokenizer="jcl.data.ByteTokenizer()", length=24,
                 labels=("card", "loan"), fields=None):  # fmt: skip
        given = f"tokenizer={tokenizer}, length={length}, labels={labels!r}"
        given += "".join(f", {name}={value!r}" for name, value in (fields or {}).items())
        self.path, self.config = place / "run", place / "config.py"
        self.path.mkdir()
        self.config.write_text(CONFIG.format(given))
        names = {}
        exec(self.config.read_text(), names)  # the config of above
        lines = names["build"](None).lines
        raw = [each if isinstance(each, bytes) else json.dumps(each).encode() for each in records]
        (self.path / "input.jsonl").write_bytes(b"".join(line + b"\n" for line in raw))
        examples, told = [], []
        for number, line in enumerate(raw, 1):
            told.append({"line": number})
            try:
                said = lines.read(line)
            except ValueError as error:
                told[-1]["skipped"] = str(error)
            else:
                told[-1] |= {"id": said.identity, "loss": 0.5}
                examples += [said.leaves] if hasattr(said, "leaves") else []
        (self.path / "predictions.jsonl").write_text(
            "".join(json.dumps(each) + "\n" for each in told)
        )
        self._save(examples)
        known = {"labels": list(labels or ()), **({"fields": fields} if fields else {})}
        described = folder.describe(
            name="online", config={}, config_file=self.config, hashes={"input": "-"}, seeds=[0],
            known=known,
        )  # fmt: skip
        folder.write_json(self.path / "config.json", described)

    def _save(self, examples):
        names = examples[0] if examples else ()
        items = {name: jnp.stack([each[name] for each in examples]) for name in names}
        state = {"strategy": [{"items": items, "seen": jnp.int32(len(examples))}]}
        with checkpoint.Saver(self.path / "checkpoints") as saver:
            saver.save(state, {"lines": 1})

    def forget(self, *where, config=True, place=None):
        options = [each if each.startswith("--") else f"--where={each}" for each in where]
        options += ["--config", str(self.config)] if config else []
        return main(["forget", str(place or self.path), *options])

    def stored(self):
        arrays = checkpoint.read(self.path / "checkpoints")
        return np.asarray(arrays["strategy/0/items/inputs"]), int(arrays["strategy/0/seen"])

    def left(self):
        """Which lines of the journal still say something."""
        lines = (self.path / "input.jsonl").read_bytes().splitlines()
        return [number for number, line in enumerate(lines, 1) if line.strip()]


def told(capsys):
    captured = capsys.readouterr()
    return " ".join(captured.out.split()), " ".join(captured.err.split())


RENAMED = [
    {"msg": "my card is 4929", "intent": "card", "of": 1},
    {"msg": "a loan please", "intent": "loan", "of": 2},
]


def test_the_fields_of_a_run_are_known_by_its_folder_or_asked_for(tmp_path, capsys):
    (tmp_path / "new").mkdir()
    run = Online(tmp_path / "new", RENAMED, fields=FIELDS)
    assert run.forget("label=card", config=False) == 0
    assert run.left() == [2]
    assert run.stored()[1] == 1
    # Of a run that has not noted them.
    run = Online(tmp_path, RENAMED, fields=FIELDS)
    described = json.loads((run.path / "config.json").read_text())
    del described["known"]["fields"]
    folder.write_json(run.path / "config.json", described)
    run.config = run.config.rename(tmp_path / "moved.py")
    capsys.readouterr()
    assert run.forget("label=card", config=False) == 1
    assert "--config" in told(capsys)[1]
    assert run.forget("label=card") == 0
    assert run.left() == [2]


def test_a_text_that_was_cut_goes_from_the_memory_as_from_the_journal(tmp_path):
    text = "hello there, my long story ends in card 4929"
    records = [{"text": text, "label": "card"}, {"text": "a loan please", "label": "loan"}]
    run = Online(tmp_path, records)
    assert run.forget("regex=4929") == 0
    assert run.left() == [2]
    rows, seen = run.stored()
    assert seen == 1
    assert not (rows == ord("h")).any()


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("where", ["regex=my card is blue", "text=my card is blue"])
def test_a_line_goes_by_what_its_ids_say_though_it_is_stored_no_longer(tmp_path, where, stored):
    records = [{"text": "My Card Is Blue", "label": "card"}, {"text": "Loan", "label": "loan"}]
    run = Online(tmp_path, records, tokenizer="Small()")
    if not stored:
        shutil.rmtree(run.path / "checkpoints")
        lines = Lines(tokenizer=ByteTokenizer(), length=24, labels=("card", "loan"))
        run._save([lines.read(b'{"text": "loan"}').leaves])
    assert run.forget(where) == 0
    assert run.left() == [2]
    assert run.stored()[1] == 1


def test_hashed_words_are_found_by_their_ids_and_patterns_by_the_lines(tmp_path, capsys):
    records = [{"text": text, "label": "card"} for text in ("My card is 4929!", "blue", "a loan")]
    run = Online(tmp_path, records, tokenizer="jcl.data.HashedWords()")
    assert run.forget("text=my card is 4929!") == 0
    assert run.left() == [2, 3]
    assert run.forget("regex=^bl") == 0
    assert run.left() == [3]
    rows, seen = run.stored()
    assert seen == 1
    assert rows[0][:2].tolist() == HashedWords().encode("a loan").tolist()
    (run.path / "input.jsonl").unlink()
    capsys.readouterr()
    assert run.forget("regex=loan") == 1
    assert "no decode" in told(capsys)[1]


def test_cut_off_between_predictions_and_input_the_ids_go_as_well(tmp_path, monkeypatch):
    run = Online(tmp_path, [RENAMED[0], {**RENAMED[1], "of": "ada@example.org"}], fields=FIELDS)
    blank, called = journal.blank, []

    def cut(*arguments):
        if called:
            raise KeyboardInterrupt
        called.append(blank(*arguments))

    with monkeypatch.context() as patch:
        patch.setattr(journal, "blank", cut)
        with pytest.raises(KeyboardInterrupt):
            run.forget("regex=loan")
    assert run.forget("regex=loan") == 0
    assert "ada@example.org" not in (run.path / "predictions.jsonl").read_text()
    assert run.left() == [1]
    assert json.loads((run.path / "forgotten.json").read_text())["forgotten"][0]["done"]


def test_lines_that_the_run_left_out_are_searched_as_they_stand(tmp_path):
    records = [
        {"text": "a loan", "label": "loan"},
        b'{"id": 9, "text": "broken 5555',
        {"text": "fine", "label": "secret 6666 label"},
    ]
    run = Online(tmp_path, records)
    assert "6666" not in (run.path / "predictions.jsonl").read_text()
    assert run.forget("regex=5555") == 0
    assert run.left() == [1, 3]
    assert run.forget("regex=6666") == 0
    assert run.left() == [1]
    assert "skipped" not in (run.path / "predictions.jsonl").read_text()


def test_a_line_of_a_language_model_goes_that_holds_the_text(tmp_path):
    records = [{"text": "hello my card is 4929 bye"}, {"text": "x" * 40 + " my card is 4929"},
               {"text": "good day to you"}]  # fmt: skip
    run = Online(
        tmp_path, records, labels=None, fields={"text": "text", "label": "label", "identity": "id"}
    )
    assert run.forget("text=my card is 4929") == 0
    assert run.left() == [3]
    assert run.stored()[1] == 1


def test_a_file_of_lines_has_the_fields_and_labels_of_its_run(tmp_path, capsys):
    run, file = Online(tmp_path, RENAMED, fields=FIELDS), tmp_path / "lines.jsonl"
    before = (run.path / "input.jsonl").read_bytes()
    file.write_bytes(before)
    assert run.forget("regex=4929", config=False, place=file) == 1
    assert "no line has the field text" in told(capsys)[1]
    for where in ("regex=4929", "label=card"):
        file.write_bytes(before)
        assert run.forget(where, f"--tokenizer-of={run.path}", place=file) == 0
        assert [bool(line.strip()) for line in file.read_bytes().splitlines()] == [False, True]
    # Without a run the labels are what the lines call them.
    file.write_text('{"text": "lights", "label": "TurnOn"}\n')
    capsys.readouterr()
    assert run.forget("label=TurnOff", config=False, place=file) == 0
    assert "no line is meant; nothing was changed" in told(capsys)[0]
    assert run.forget("label=TurnOn", config=False, place=file) == 0
    assert not file.read_bytes().strip()


def test_where_nothing_is_meant_nothing_is_changed(tmp_path, capsys):
    run = Online(tmp_path, RENAMED, fields=FIELDS)
    run._save([])
    run._save(examples := [Lines(tokenizer=ByteTokenizer(), length=24, labels=("a", "b")).read(
        b'{"text": "else"}').leaves])  # fmt: skip
    run._save(examples)
    places = sorted((run.path / "checkpoints").iterdir())
    capsys.readouterr()
    assert run.forget("regex=nowhere") == 0
    assert "Nothing was meant; nothing was changed." in told(capsys)[0]
    assert sorted((run.path / "checkpoints").iterdir()) == places
    assert not (run.path / "forgotten.json").exists()
    # An older checkpoint may hold what the newest no longer does.
    (run.path / "input.jsonl").write_text("")
    run._save([examples[0] | {"inputs": examples[0]["inputs"] + 1}])
    assert run.forget("regex=else") == 0
    assert "older checkpoints hold some" in told(capsys)[0]
    assert len(list((run.path / "checkpoints").iterdir())) == 1
