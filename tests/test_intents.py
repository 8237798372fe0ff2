"""Commands to a home as classes and as languages, from an installed package."""

import importlib.metadata
import json
import subprocess
import sys

import numpy as np
import pytest

import jcl
from jcl.data import ByteTokenizer, intents
from jcl.errors import InputError

pytest.importorskip("home_assistant_intents", reason='needs pip install "jcl[demo]"')

BYTES = ByteTokenizer()
MODULE = sys.modules["jcl.data.intents"]


@pytest.fixture(scope="module")
def english():
    return intents(tokenizer=BYTES)


@pytest.fixture(scope="module")
def languages():
    return intents(tokenizer=BYTES, scenario="domain")


def texts(source):
    held = source.arrays()
    return [
        BYTES.decode(ids[mask > 0])
        for ids, mask in zip(held["inputs"], held["attention_mask"], strict=True)
    ]


def counts(source, classes=30):
    return np.bincount(source.arrays()["targets"], minlength=classes).tolist()


def test_thirty_classes_in_ten_tasks(english):
    assert english.name == "intents, class"
    assert (len(english.tasks), english.classes, len(set(english.labels))) == (10, 30, 30)
    for number, task in enumerate(english.tasks):
        own = [int(label // 3 == number) for label in range(30)]
        assert counts(task.train) == [60 * each for each in own]
        assert counts(task.test) == [20 * each for each in own]
        assert task.name == ", ".join(english.labels[3 * number : 3 * number + 3])


def test_a_task_a_language_with_shared_classes(languages, english):
    names = [task.name for task in languages.tasks]
    assert names == ["en", "de", "nl", "es", "it", "fr", "pl", "hu", "pt-BR", "ro"]
    assert (languages.classes, languages.labels) == (30, english.labels)
    for task in languages.tasks:
        assert counts(task.train) == [60] * 30
        assert counts(task.test) == [20] * 30
    both = [texts(task.train) for task in languages.tasks[:2]]
    assert not {*both[0]} & {*both[1]}
    assert sorted(both[0]) == sorted(t for task in english.tasks for t in texts(task.train))


def test_no_sentence_stands_twice(english, languages):
    for tasks in ([*english.tasks], *([task] for task in languages.tasks)):
        every = [text.casefold() for task in tasks for part in task[1:3] for text in texts(part)]
        assert len(every) == len(set(every)) == 2400


def test_nothing_of_the_grammar_is_left(languages):
    for task in languages.tasks:
        for text in [*texts(task.train), *texts(task.test)]:
            assert not set("[]{}<>|") & set(text), text
            assert text == " ".join(text.split()) != ""


def test_sentences_say_what_their_label_says(english):
    spoken = {
        label: [text for task in english.tasks for text, target in zip(
            texts(task.train), task.train.arrays()["targets"].tolist(), strict=True)
            if target == number]
        for number, label in enumerate(english.labels)
    }  # fmt: skip
    for label, word in {
        "GetWeather": "weather",
        "ShoppingListAddItem": "list",
        "MediaPlayerMute": "mute",
        "PauseTimer": "pause",
        "CancelTimer": "timer",
    }.items():
        assert all(word in text for text in spoken[label]), label
    assert any("Dusty" in text for text in spoken["VacuumStart"])
    assert not any("Dusty" in text for text in spoken["TurnOn"])


def test_the_seed_draws_and_the_process_does_not(english):
    code = (
        "import jcl; s = jcl.data.intents(tokenizer=jcl.data.ByteTokenizer()); "
        "print([task.hash for task in s.tasks])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = [task.hash for task in english.tasks]
    assert done.stdout.strip() == str(here)
    assert [task.hash for task in intents(tokenizer=BYTES, seed=1).tasks] != here


def test_other_numbers_of_tasks():
    stream = intents(tokenizer=BYTES, tasks=5)
    assert [len(task.train) for task in stream.tasks] == [360] * 5
    assert stream.tasks[0].name.endswith("TurnOff, LightSet ...")
    stream = intents(tokenizer=BYTES, scenario="domain", tasks=2)
    assert [task.name for task in stream.tasks] == ["en", "de"]
    assert len(jcl.data.joint(stream).stages[0]) == 3600


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": 7}, "tasks=7.*divisor of the 30"),
        ({"tasks": 0}, "tasks=0"),
        ({"scenario": "domain", "tasks": 11}, "2 to 10"),
        ({"scenario": "domain", "tasks": 1}, "2 to 10"),
        ({"scenario": "task"}, "scenario='task'"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(InputError, match=message):
        intents(tokenizer=BYTES, **options)


def test_a_missing_package_and_another_version_are_named(monkeypatch, tmp_path):
    def fail(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(MODULE.resources, "files", fail)
    with pytest.raises(InputError, match=r'pip install "jcl\[demo\]"'):
        intents(tokenizer=BYTES)
    (tmp_path / "data").mkdir()
    monkeypatch.setattr(MODULE.resources, "files", lambda _: tmp_path)
    few = {name: {"data": [{"sentences": ["do it"]}]} for name in MODULE._INTENTS}
    grammar = {"intents": few, "lists": {}, "expansion_rules": {}}
    (tmp_path / "data" / "en.json").write_text(json.dumps(grammar))
    with pytest.raises(InputError, match="gives 1 sentences of HassTurnOn in 'en', fewer than 80"):
        intents(tokenizer=BYTES)
    few["HassTurnOn"]["data"][0]["sentences"] = ["turn on {gadget}"]
    (tmp_path / "data" / "en.json").write_text(json.dumps(grammar))
    with pytest.raises(InputError, match="uses the list 'gadget'"):
        intents(tokenizer=BYTES)
    (few["HassTurnOn"]["data"]).clear()
    (tmp_path / "data" / "en.json").write_text(json.dumps(grammar))
    with pytest.raises(InputError, match="gives 0 sentences of HassTurnOn in 'en'"):
        intents(tokenizer=BYTES)


def test_the_package_is_the_one_that_the_words_were_written_for():
    wanted = [
        line
        for line in importlib.metadata.requires("jcl") or []
        if "home-assistant-intents" in line
    ]
    version = importlib.metadata.version("home-assistant-intents")
    assert any(f"=={version}" in line for line in wanted)


def test_a_sentence_of_two_intents_is_given_to_one(monkeypatch, tmp_path):
    sentences = ["do {a} and {a}", "Do {a} and {a}"]
    grammar = {
        "intents": {name: {"data": [{"sentences": sentences}]} for name in MODULE._INTENTS},
        "lists": {"a": {"range": {"from": 0, "to": 69}}},
        "expansion_rules": {},
    }
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "en.json").write_text(json.dumps(grammar))
    monkeypatch.setattr(MODULE.resources, "files", lambda _: tmp_path)
    stream = intents(tokenizer=BYTES)
    every = [t.casefold() for task in stream.tasks for part in task[1:3] for t in texts(part)]
    assert len(every) == len(set(every)) == 2400
