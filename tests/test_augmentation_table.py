"""The config of augmented few-shot intents, and its table."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reports import a_report
from scripts import benchmark

import jcl
from jcl.__main__ import load_config
from jcl.experiment import check

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def module():
    pytest.importorskip("home_assistant_intents", reason='needs pip install "jcl[demo]"')
    module = load_config(ROOT / "configs" / "augmentation.py")
    stream = jcl.data.intents(tokenizer=jcl.data.HashedWords(300))
    config = jcl.models.BertConfig(
        300, stream.length, 8, 2, 2, 8, head="classes", classes=30, pooling="mean", dropout=0.0
    )
    model = jcl.models.bert(config)
    params = jax.jit(model.init)(jax.random.key(0))
    module.intents = lambda *_: stream
    module.encoder = lambda _: (model, params)
    module.neighbours = lambda *_: {"the": ("a",), "light": ("lamp",)}
    module.tokenizer = lambda: None
    return module


def experiment(module, method, **fields):
    return module.build(module.Config(method=method, trained=1, **fields))


def test_every_class_has_its_shots_and_every_seed_the_same_tests(module):
    one, other = (experiment(module, "swap", seed=seed) for seed in (0, 1))
    found = []
    for each in (one, other):
        (task,) = each.stream.tasks
        batch = task.train.take(np.arange(len(task.train)))
        assert np.bincount(batch["targets"]).tolist() == [5] * 30
        found.append(batch["inputs"])
        tests = jcl.data.held(task.test)
        assert np.bincount(tests["targets"]).tolist() == [5] * 30
    assert (found[0] != found[1]).any()
    np.testing.assert_array_equal(
        jcl.data.held(one.stream.tasks[0].test)["inputs"], tests["inputs"]
    )
    names = {each.stream.tasks[0].hash for each in (one, other)}
    assert len(names) == 2


def test_the_methods_learn_from_what_they_say(module):
    check(experiment(module, "none"))
    batch = lambda method: jcl.data.training_batches(
        experiment(module, method, probability=1.0, strength=1.0).stream.stages[0], 32, seed=0
    )[0]
    plain = batch("none")
    for method in ("synonyms", "insertion", "deletion", "swap", "local_shuffle", "mixup"):
        same = (batch(method)["inputs"] == plain["inputs"]).all()
        assert same == (method == "mixup"), method
    mixed, pure = (experiment(module, method) for method in ("mixup", "none"))
    params = module.encoder("banking77")[1]
    given = jax.tree.map(jnp.asarray, plain)
    losses = [
        float(jax.jit(each.loss_fn)(params, given, jax.random.key(1))[0]) for each in (mixed, pure)
    ]
    assert losses[0] != losses[1]
    for method, match in (("masked_lm", "--checkpoint"), ("back_translation", "--there and")):
        with pytest.raises(jcl.InputError, match=match):
            experiment(module, method)


def test_back_translations_come_from_a_file(module, tmp_path):
    path = tmp_path / "translations.json"
    texts = [text for task in module.intents().tasks for text in task.train.texts]
    path.write_text(json.dumps({text: "turn the lamp" for text in texts}))
    one = experiment(module, "back_translation", translations=str(path), probability=1.0)
    batch = jcl.data.training_batches(one.stream.stages[0], 32, seed=0)[0]
    assert (batch["inputs"] == batch["inputs"][0]).all()
    path.write_text(json.dumps({text: "turn the light" for text in texts}))
    module.translator.cache_clear()
    other = experiment(module, "back_translation", translations=str(path), probability=1.0)
    assert other.stream.tasks[0].hash != one.stream.tasks[0].hash
    path.write_text("{}")
    module.translator.cache_clear()
    lacking = experiment(module, "back_translation", translations=str(path), probability=1.0)
    with pytest.raises(jcl.InputError, match="has no translation of"):
        jcl.data.training_batches(lacking.stream.stages[0], 32, seed=0)[0]
    path.write_text('{"a": 1}')
    for bad in (path, tmp_path / "absent.json"):
        module.translator.cache_clear()
        with pytest.raises(jcl.InputError, match=f"--translations .*{bad.name}"):
            experiment(module, "back_translation", translations=str(bad))


def test_the_texts_are_translated_that_the_runs_learn_from(module, page, tmp_path, monkeypatch):
    made = benchmark("back_translations")
    monkeypatch.setattr(made, "table", page)
    monkeypatch.setattr(made, "load_config", lambda _: module)
    monkeypatch.setattr(made, "translated", lambda pair, lines: [f"{pair} {x}" for x in lines])
    with pytest.raises(SystemExit):
        made.main(["bank"])
    made.main(["banking77"])
    path = str(page.needed("banking77", "back_translation")[1])
    found = json.loads(Path(path).read_text())
    assert all(new == f"cat-eng eng-cat {' '.join(text.split())}" for text, new in found.items())
    for seed in range(page.SEEDS):
        one = experiment(module, "back_translation", translations=path, probability=1.0, seed=seed)
        source = one.stream.stages[0]
        source.take(np.arange(len(source)))


def test_hidden_words_are_a_share_of_each_text_and_drawn_anew(module, monkeypatch):
    masked = load_config(ROOT / "configs" / "masked_lm.py")
    stream = module.intents()
    monkeypatch.setattr(masked.jcl.data, "banking77", lambda **_: stream)
    tokenizer = SimpleNamespace(all_special_ids=[0, 3], mask_token_id=3)
    shape = jcl.models.BertConfig(300, stream.length, 8, 2, 2, 8, dropout=0.0)
    model = jcl.models.bert(shape)
    params = jax.jit(model.init)(jax.random.key(0))
    monkeypatch.setattr(masked, "pretrained", lambda seed: (tokenizer, model, params))
    one = masked.build(masked.Config(length=stream.length, versions=3))
    check(one)
    (task,) = one.stream.tasks
    train, test = task.train.arrays(), task.test.arrays()
    number = sum(len(part.train) for part in stream.tasks)
    assert len(test["inputs"]) == round(0.05 * number)
    assert len(train["inputs"]) == 3 * (number - len(test["inputs"]))
    for part in (train, test):
        mask, words = part["mask"] > 0, (part["attention_mask"] > 0) & (part["targets"] > 3)
        assert (part["inputs"][mask] == 3).all()
        assert (part["inputs"] == part["targets"])[~mask].all()
        assert not (mask & (part["attention_mask"] == 0)).any()
        share = np.maximum(1, np.round(0.15 * words.sum(axis=1)))
        assert (np.abs(mask.sum(axis=1) - share) <= 1).all()  # two words may have a special id
        assert (mask.sum(axis=1) >= 1).all()
    first, second = np.split(train["mask"], 3)[:2]
    assert (first != second).any()
    np.testing.assert_array_equal(*np.split(train["targets"], 3)[:2])


def test_only_the_upper_layers_and_the_head_are_trained(module):
    one = experiment(module, "none")
    learner = jcl.learner(one.loss_fn, one.strategy)
    batch = jcl.data.training_batches(one.stream.stages[0], 8, seed=0)[0]
    state = learner.init(jax.random.key(0), module.encoder("banking77")[1], batch)
    step = jax.jit(learner.step)
    after = step(step(jcl.start_task(state, 5), batch)[0], batch)[0]
    same = {
        name: all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), old, new)))
        for (name, old), new in zip(state.params.items(), after.params.values(), strict=True)
    }
    assert {name for name, held in same.items() if not held} == {"layer_1", "classifier"}


@pytest.fixture
def page(tmp_path, monkeypatch):
    table = benchmark("augmentation")
    monkeypatch.setattr(table, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(table, "PAGE", tmp_path / "augmentation.md")
    table.PAGE.write_text(f"# Before\n\n| swap | stays |\n\n{table.BEGIN}\n{table.END}\nbehind\n")
    return table


def finish(table, name, method, values):
    folder = table.place(name, method)
    folder.mkdir(parents=True)
    found = a_report(matrix=[[[0.0], [value]] for value in values])
    (folder / "report.json").write_text(json.dumps(found))
    began = {"git_commit": "0123456789", "devices": {"platform": "cpu"}}
    (folder / "config.json").write_text(json.dumps(began))
    for file in ("report.md", "matrix.png"):
        (folder / file).write_text("")


def test_the_table_compares_seed_by_seed_and_keeps_rows(page, tmp_path, monkeypatch):
    counts = page.write_page()
    assert counts == {"banking77": (0, 10), "clinc150": (0, 10)}
    assert "| swap | not run |" in page.PAGE.read_text()
    finish(page, "banking77", "none", [0.5, 0.6, 0.7])
    finish(page, "banking77", "swap", [0.52, 0.62, 0.72])
    finish(page, "banking77", "mixup", [0.5, 0.5, 0.9])
    finish(page, "banking77", "deletion", [0.4, 0.51, 0.61])
    page.write_page()
    text = page.PAGE.read_text()
    assert text.startswith("# Before\n\n| swap | stays |\n")
    assert text.endswith(f"{page.END}\nbehind\n")
    section = text.split("### CLINC150")[0]
    assert "| none | 60.00 ± 24.84 (3) | - | - | 60 s | 01234567 |" in section
    assert "| swap | 62.00 ± 24.84 (3) | +2.00 ± 0.00 | helps | 60 s | 01234567 |" in section
    assert "| mixup | 63.33 ± 57.37 (3) | +3.33 ± 37.95 | undecided | 60 s | 01234567 |" in section
    assert "harms" in section.split("| deletion |")[1].splitlines()[0]
    assert "| masked_lm | not run |" in section
    monkeypatch.setattr(page, "RUNS", tmp_path / "elsewhere")
    assert page.write_page()["banking77"] == (4, 10)
    assert page.PAGE.read_text() == text


def test_the_rows_are_methods_of_the_config(page):
    module = load_config(ROOT / "configs" / "augmentation.py")
    methods = get_args(get_type_hints(module.Config)["method"])
    assert methods == page.METHODS
    assert set(page.NEEDED) <= set(methods)
    assert page.run("banking77", "masked_lm", 0.0), "without what it needs it does not begin"
    assert not page.place("banking77", "masked_lm").exists()
    assert set(page.TEXTS) == set(get_args(get_type_hints(module.Config)["texts"]))
    assert page.compared({0: 1.0}, {0: 0.5}) == ("+0.50", "one seed says nothing")
    assert page.compared({0: 1.0}, {1: 0.5}) == ("-", "-")


def test_the_page_is_what_its_own_rows_give(page):
    written = (ROOT / "docs" / "augmentation.md").read_text()
    page.PAGE.write_text(written)
    page.write_page()
    assert page.PAGE.read_text() == written, "run: python benchmarks/augmentation.py --report"
