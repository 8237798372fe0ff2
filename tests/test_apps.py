"""The applications of configs/apps, at a tiny size."""

import re
import runpy
from pathlib import Path

import jax
import pytest

import jcl
from jcl.__main__ import load_config, main
from jcl.experiment import check

APPS = Path(__file__).parent.parent / "configs" / "apps"


def app(name):
    return APPS / name / f"{name}.py"


def test_each_says_what_it_shows_and_its_commands_name_its_file():
    folders = sorted(path for path in APPS.iterdir() if path.is_dir())
    assert len(folders) == 4
    for folder in folders:
        text = (folder / "README.md").read_text()
        assert not re.search("RESULTS|@@", text), folder.name  # to be filled in
        file = folder / f"{folder.name}.py"
        assert f"configs/apps/{folder.name}/{folder.name}.py" in text, folder.name
        module = load_config(file)
        for option in re.findall(r"--(\w+)", " ".join(re.findall(r"jcl run .*", text))):
            assert option in {*module.Config.__dataclass_fields__, "seeds", "out"}, option


def test_no_page_has_a_place_left_to_fill_in():
    docs = APPS.parent.parent / "docs"
    for page in [docs.parent / "README.md", *docs.glob("*.md")]:
        assert not re.search("RESULTS|@@", page.read_text()), page.name


def test_reviews_are_distinct_and_words_change_sides():
    stream = jcl.data.reviews(tokenizer=jcl.data.HashedWords())
    again = jcl.data.reviews(tokenizer=jcl.data.HashedWords())
    assert [task.hash for task in stream.tasks] == [task.hash for task in again.tasks]
    other = jcl.data.reviews(tokenizer=jcl.data.HashedWords(), seed=1)
    assert stream.tasks[0].hash != other.tasks[0].hash
    sides = {}
    for task in stream.tasks:
        targets = jcl.data.held(task.train)["targets"]
        assert len(set(task.train.texts)) == len(targets) == 300
        assert jcl.data.held(task.test)["targets"].tolist().count(1) == 50
        for text, target in zip(task.train.texts, targets, strict=True):
            if found := re.fullmatch(r"After a month the .* is still (\w+)\.", text):
                sides.setdefault(found[1], {})[task.name] = int(target)
    assert sides["unpredictable"]["books"] == 1
    assert sides["unpredictable"]["kitchen"] == 0
    assert sum(len({*each.values()}) == 2 for each in sides.values()) >= 3


def test_hashed_words():
    words = jcl.data.HashedWords(50)
    ids = words.encode("The the card's, CARD")
    assert ids[0] == ids[1]
    assert ids[2] == ids[6]
    assert (ids > 0).all()
    assert (ids < 50).all()
    assert len({*jcl.data.HashedWords().encode(" ".join(map(str, range(100)))).tolist()}) > 90
    with pytest.raises(jcl.InputError, match="at least 2"):
        jcl.data.HashedWords(1)


def test_a_classifier_learns_the_domains():
    module = load_config(app("product_reviews"))
    small = {"width": 8, "layers": 1, "kept": 24}
    experiment = module.build(module.Config(method="replay", **small))
    check(experiment)
    assert "replay" in experiment.strategy.name
    assert experiment.stream.tasks[0].name == "books"
    assert len(module.build(module.Config(method="joint", **small)).stream.stages) == 1


@pytest.mark.skipif(not hasattr(jcl.data, "Lines"), reason="needs jcl online")
def test_messages_are_answered_as_they_come(tmp_path, capsys):
    pytest.importorskip("home_assistant_intents", reason='needs pip install "jcl[demo]"')
    module = load_config(app("customer_service"))
    lines = module.traffic()
    assert len(lines) == len({*lines}) == 1800
    (tmp_path / "traffic.jsonl").write_text("\n".join(lines[:40]) + "\n")
    small = ["--width", "8", "--layers", "1", "--memory", "16", "--replayed", "4"]
    run = ["online", str(app("customer_service")), "--input", str(tmp_path / "traffic.jsonl")]
    assert main([*run, *small, "--out", str(tmp_path / "run")]) == 0
    assert len((tmp_path / "run" / "predictions.jsonl").read_text().splitlines()) == 40


def test_a_manual_answers(tmp_path, capsys):
    run = ["run", str(app("document_questions")), "--out", str(tmp_path / "run")]
    assert main([*run, "--method", "nearest_class_mean"]) == 0
    capsys.readouterr()
    module = load_config(app("document_questions"))
    found = module.documents()
    assert all(len(paragraphs) >= 3 for paragraphs, _ in found.values())
    _, questions = next(iter(found.values()))
    module.main(str(tmp_path / "run"), questions[0])
    assert len(capsys.readouterr().out.splitlines()) == 3
    asked = "An assignment is evaluated from the left hand side of the statement to the right."
    assert module.question(asked).startswith("What is evaluated from the left")
    assert module.question("Nothing of that kind.") is None


@pytest.mark.parametrize("given", [[], ["runs/document_questions/slda"]])
def test_a_manual_says_what_it_needs(given, monkeypatch):
    file = str(app("document_questions"))
    monkeypatch.setattr("sys.argv", [file, *given])
    with pytest.raises(SystemExit, match="Give a run folder and a question: python"):
        runpy.run_path(file, run_name="__main__")


def test_a_style_is_learned_by_adapters_alone(tmp_path, monkeypatch):
    pytest.importorskip("home_assistant_intents", reason='needs pip install "jcl[demo]"')
    text = ["The theme of the day. " * 40]
    general = jcl.data.text_task("general", text, text, jcl.data.ByteTokenizer(), 32)
    stream = jcl.data.Stream("made up", (general,))
    monkeypatch.setattr(jcl.data, "domains", lambda **_: stream)
    module = load_config(app("writer_style"))
    small = {"width": 16, "layers": 1, "length": 32}
    base = module.build(module.Config(**small))
    check(base)
    params = jax.jit(base.model.init)(jax.random.key(0))
    jcl.models.save_pretrained(tmp_path / "base", base.model, params)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "letters.txt").write_text("I remain your servant.\n\n" * 100)
    own = {"checkpoint": str(tmp_path / "base"), "texts": str(tmp_path / "texts")}
    style = module.build(module.Config(part="style", **own, **small))
    check(style)
    params = jax.jit(style.model.init)(jax.random.key(1))
    assert "c_attn" in params["lora"]["h_0"]["attn"]
    learner = jcl.learner(style.loss_fn, style.strategy)
    batch = jcl.data.training_batches(style.stream.stages[0], 4, seed=0)[0]
    state = learner.init(jax.random.key(0), params, batch)
    step, state = jax.jit(learner.step), jcl.start_task(state, 5)
    for _ in range(2):  # the first step's rate is 0
        state, _ = step(state, batch)
    same = jax.tree.map(lambda one, other: bool((one == other).all()), params, state.params)
    assert not all(jax.tree.leaves(same["lora"]))
    assert all(jax.tree.leaves({name: own for name, own in same.items() if name != "lora"}))
    with pytest.raises(jcl.InputError, match="needs --checkpoint"):
        module.build(module.Config(part="style"))
    licences = module.licences()
    assert len(licences) == len({*licences}) > 50
