"""The three domains, and the language of their German templates."""

import importlib.util
import os
import random
import re
import subprocess
import sys

import numpy as np
import pytest

from jcl.data import ByteTokenizer, domains
from jcl.data.domains import expand
from jcl.errors import InputError

pytestmark = pytest.mark.xdist_group("domains")  # expanding every template takes seconds


def drawn(template, rules=None, lists=None, draws=300):
    """All sentences that a template gives in `draws` draws."""
    draw = random.Random(0)
    fill = (lists or {}).__getitem__
    return {expand(template, draw, rules=rules or {}, fill=fill) for _ in range(draws)}


@pytest.mark.parametrize(
    ("template", "sentences"),
    [
        ("plain", {"plain"}),
        ("", {""}),
        ("[a]b", {"ab", "b"}),
        ("(a|b|c)", {"a", "b", "c"}),
        ("a|b c", {"a", "b c"}),
        ("x (a|)", {"x a", "x "}),
        ("(a;b)", {"a b", "b a"}),
        ("schalt[e|et]", {"schalt", "schalte", "schaltet"}),
        ("(a|b[c])d", {"ad", "bd", "bcd"}),
        ("[x[y]z]", {"", "xz", "xyz"}),
        ("((a|b);c)", {"a c", "b c", "c a", "c b"}),
        ("<verb> it", {"stop it", "go it"}),
        ("{room:area}!", {"hall!", "big hall!"}),
        ("{room}", {"hall", "big hall"}),
    ],
)
def test_expand_gives_all_sentences_and_no_others(template, sentences):
    assert drawn(template, {"verb": "(stop|<start>)", "start": "go"}, {"room": "[big ]hall"}) == (
        sentences
    )


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("a (b", r"a '\(' is not closed"),
        ("a [b)", r"a '\)' closes no bracket"),
        ("a b]", r"a '\]' closes no bracket"),
        ("a <b", "a '<' stands alone"),
        ("a {b", "a '{' stands alone"),
        ("<nobody>", "the rule 'nobody' is unknown"),
        ("<loop>", "the rule 'loop' refers to itself"),
    ],
)
def test_expand_refuses_what_is_no_template(template, message):
    with pytest.raises(InputError, match=message):
        drawn(template, {"loop": "x <loop>"}, draws=1)


def documents(source):
    """The documents of a source, from the tokens that it predicts."""
    batch = source.take(np.arange(len(source)))
    targets = batch["targets"][batch["mask"] == 1] if "mask" in batch else batch["targets"].ravel()
    tokens = np.concatenate([[256], targets])
    parts = np.split(tokens, np.flatnonzero(tokens == 256))[1:]
    return [ByteTokenizer().decode(part) for part in parts]


@pytest.fixture(scope="module")
def stream():
    pytest.importorskip("home_assistant_intents")
    return domains()


@pytest.fixture(scope="module")
def texts(stream):
    return {task.name: (documents(task.train), documents(task.test)) for task in stream.tasks}


def test_three_domains_of_about_one_size(stream, texts):
    assert stream.name == "domains"
    assert [task.name for task in stream.tasks] == ["python_docs", "python_source", "german_home"]
    for name, (train, test) in texts.items():
        size, held_out = (sum(len(text.encode()) for text in part) for part in (train, test))
        assert 300_000 <= size <= 465_000, name
        assert 0.05 <= held_out / size <= 0.2, name


def test_no_test_document_stands_in_the_train_part(texts):
    for name, (train, test) in texts.items():
        assert not set(test) & set(train), name
    docs = [set(re.split(r"\n\s*\n", "\n\n".join(part))) for part in texts["python_docs"]]
    # The last train block is cut, so its last paragraph is none.
    assert not {text for text in docs[0] & docs[1] if len(text) > 40}


def test_each_domain_is_what_its_name_says(texts):
    assert "expression" in "".join(texts["python_docs"][0])
    code = "".join(texts["python_source"][0])
    assert code.count("\n    def ") > 300
    assert code.count("self") > 1000


def test_german_sentences_read_as_sentences(texts):
    sentences = [
        line for part in texts["german_home"] for text in part for line in text.split("\n")
    ]
    # A cut train block leaves one sentence without its end.
    broken = [line for line in sentences if not re.fullmatch(r"[A-ZÄÖÜ„0-9].*[.?]", line)]
    assert len(broken) <= 1
    marks = [line for line in sentences if re.search(r"[\[\](){}<>|;⟨⟩]|  | [.?]|\b_", line)]
    assert marks == []
    assert not [line for line in sentences if re.search(r"\b(der|die|das) (der|die|das)\b", line)]
    assert sum(line.endswith("?") for line in sentences) > 300
    assert all(
        line.endswith("?") for line in sentences if re.match("(Wie|Wann|Wo|Ist) .+\\.?", line)
    )
    assert len(set(sentences)) == len(sentences)
    assert 20 < np.mean([len(line) for line in sentences]) < 70


def test_articles_agree_with_our_nouns(texts):
    text = "\n".join(texts["german_home"][0])
    assert re.search(r"\bdie Stehlampe\b", text)
    assert re.search(r"\bdas Radio\b", text)
    assert not re.search(r"\b(der|das|den) Stehlampe\b", text.replace("von der Stehlampe", ""))
    assert not re.search(r"\b(die|der|den) (Radio|Rollo|Garagentor)\b", text)


def test_the_seed_decides_and_only_the_seed(stream):
    hashes = [task.hash for task in stream.tasks]
    others = [task.hash for task in domains(seed=1).tasks]
    assert not set(hashes) & set(others)
    # Another process with another hash seed: nothing may hang on the order of a set.
    program = "from jcl.data import domains; print(*[task.hash for task in domains().tasks])"
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={
            **os.environ,
            "PYTHONHASHSEED": "12345",
            "PYTHONPATH": ":".join(path for path in sys.path if path),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.split() == hashes


def test_the_length_is_an_argument():
    pytest.importorskip("home_assistant_intents")
    assert domains(length=64).tasks[0].train[0]["inputs"].shape == (64,)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "home_assistant_intents", None)
    with pytest.raises(InputError, match=r'pip install "jcl\[demo\]"'):
        domains()


def test_a_missing_module_is_named(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "heapq" else find(name)
    )
    with pytest.raises(InputError, match="standard-library module 'heapq' is not installed"):
        domains()
