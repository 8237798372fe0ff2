"""The configs of sinusoids and characters, which train some steps, and the tables' script."""

import functools
import json
import os
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from reports import a_report
from scripts import benchmark

import jcl
from jcl.__main__ import load_config
from jcl.experiment import check

pytestmark = pytest.mark.xdist_group("meta configs")
ROOT = Path(__file__).parent.parent
STEPS = 3


@pytest.fixture(scope="module")
def omniglot():
    """The config, with no more drawings of a glyph than an episode needs."""
    pytest.importorskip("HersheyFonts", reason='needs pip install "jcl[demo]"')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jcl.data, "glyphs", functools.partial(jcl.data.glyphs, drawings=10))
        yield load_config(ROOT / "configs" / "meta" / "omniglot.py")


@pytest.fixture(scope="module")
def sinusoid():
    return load_config(ROOT / "configs" / "meta" / "sinusoid.py")


@pytest.fixture
def shallow(monkeypatch):
    """One block or hidden layer alone: compiling is what these tests cost."""
    convolutional, dense = jcl.models.ConvolutionalConfig, jcl.models.MLPConfig
    monkeypatch.setattr(
        jcl.models, "ConvolutionalConfig", functools.partial(convolutional, blocks=1)
    )
    monkeypatch.setattr(
        jcl.models,
        "MLPConfig",
        lambda inputs, _, *rest, **more: dense(inputs, (32,), *rest, **more),
    )


def test_the_networks_are_those_of_the_paper(omniglot):
    shapes = {}
    for backbone in ("dense", "convolutional"):
        model = omniglot.build(omniglot.Config("maml", backbone, "glyphs")).model
        leaves = jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0)))
        shapes[backbone] = sorted(leaf.shape for leaf in leaves if len(leaf.shape) == 2)
    assert shapes["dense"] == [(64, 5), (64, 64), (128, 64), (256, 128), (784, 256)]
    assert shapes["convolutional"] == [(9, 32), (128, 5), *[(288, 32)] * 3]


def trained(experiment):
    """The params before and after a few steps, and the call that measures the latter."""
    check(experiment)
    learner = jcl.learner(
        experiment.loss_fn, experiment.strategy, measure=experiment.measure.function
    )
    (stage,), (task, *_) = experiment.stream.stages, experiment.stream.tasks
    batches = jcl.data.training_batches(stage, experiment.batch_size, seed=0)
    (test, *_) = jcl.data.evaluation_batches(task.test, experiment.evaluation_batch_size)

    @jax.jit
    def run(key, batches):
        begin = experiment.model.init(key)
        first = jax.tree.map(lambda leaf: leaf[0], batches)
        state = jcl.start_task(learner.init(key, begin, first), STEPS)
        state, metrics = jax.lax.scan(learner.step, state, batches)
        return begin, state, metrics["total"]

    stacked = jcl.data.stack([batches[number] for number in range(STEPS)])
    before, state, losses = run(jax.random.key(0), stacked)
    assert np.isfinite(losses).all()
    return before, state.params, lambda: jax.jit(learner.evaluate)(state, test)


def moved(before, after):
    """The names of the parts whose params are others."""
    return {
        name
        for name in before
        if any(
            np.abs(one - other).max() > 0
            for one, other in zip(
                jax.tree.leaves(before[name]), jax.tree.leaves(after[name]), strict=True
            )
        )
    }


@pytest.mark.parametrize("method", ["maml", "fomaml", "anil", "meta_sgd", "reptile", "joint"])
def test_every_method_on_sinusoids_trains(sinusoid, method):
    config = sinusoid.Config(method=method, meta_steps=STEPS, sines=2)
    before, after, _ = trained(sinusoid.build(config))
    assert moved(before, after) == set(before)
    assert ("rates" in before) == (method == "meta_sgd")


@pytest.mark.parametrize("backbone", ["dense", "convolutional"])
@pytest.mark.parametrize("method", ["maml", "fomaml", "anil", "reptile", "prototypes"])
def test_every_method_on_characters_trains(omniglot, shallow, method, backbone):
    config = omniglot.Config(
        method, backbone, "glyphs", queries=2, tasks=2, meta_steps=STEPS, episodes=20
    )
    before, after, measure = trained(omniglot.build(config))
    untrained = {"head"} if method == "prototypes" else set()
    assert moved(before, after) == set(before) - untrained
    if method == "prototypes":
        right, queries = measure()
        assert queries == 20 * 5 * 2
        assert 0.28 < right / queries <= 1  # of five classes


def test_twenty_ways_and_five_shots_can_be_traced(omniglot):
    for method in ("maml", "prototypes"):
        check(omniglot.build(omniglot.Config(method, source="glyphs", ways=20, shots=5, tasks=2)))


def test_what_a_method_has_no_use_for_is_refused_and_nothing_is_obeyed(omniglot, sinusoid):
    for module, fields, message in (
        (omniglot, {"tasks": 0}, "--tasks 0: a meta-step takes at least one"),
        (omniglot, {"seed": 2**31}, "--seed 2147483648 draws the test's episodes"),
        (sinusoid, {"seed": 2**31}, "--seed 2147483648 draws the test's sines"),
        (sinusoid, {"method": "joint", "inner_steps": 1}, "--inner_steps: joint is trained"),
        (sinusoid, {"inner_rate": -1.0}, r"--inner_rate=-1.0\): a number in"),
        (sinusoid, {"rate": float("nan")}, r"--rate=nan\): a number in"),
        (omniglot, {"method": "anil", "inner_rate": 0.1}, "--inner_rate: anil has its own"),
    ):
        source = {"source": "glyphs"} if module is omniglot else {}
        with pytest.raises(jcl.InputError, match=message):
            module.build(module.Config(**source, **fields))
    for module, source in ((omniglot, {"source": "glyphs"}), (sinusoid, {})):
        config = module.Config(method="reptile", rate=0.5, meta_steps=4, **source)
        gradient = {"w": np.float32(1)}
        strategy = module.build(config).strategy
        (update,) = strategy.update(gradient, strategy.init(gradient))[0].values()
        assert update == -0.5
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jcl, "reptile", lambda *_, steps, **__: asked.append(steps))
        for steps in (None, 3):
            sinusoid.build(sinusoid.Config(method="reptile", inner_steps=steps, meta_steps=4))
    assert asked == [5, 3]


def test_one_shot_is_one(omniglot):
    stream = omniglot.build(omniglot.Config(source="glyphs")).stream
    assert [task.name for task in stream.tasks] == ["5 ways, 1 shot"]


def test_no_glyph_that_is_tested_looks_like_one_that_is_trained(omniglot):
    """By the pictures without jitter: one of each pair has a fifth of its ink elsewhere."""
    source, split = omniglot.characters("glyphs")
    glyphs = sys.modules["jcl.data.glyphs"]  # jcl.data.glyphs is the function
    strokes = glyphs._fonts()
    points = [glyphs._points(strokes[name]) for name in source.names]
    pictures = glyphs._plain(points).reshape(source.classes, -1).astype(np.float32)
    ink = pictures.sum(axis=1)
    train, test = split.train, split.test
    apart = np.stack([np.abs(pictures[train] - own).sum(axis=1) for own in pictures[test]])
    assert (apart / np.maximum(ink[test, None], ink[train])).min() >= 0.2
    assert len(test) > 100
    assert {source.alphabets[label] for label in test} == {"japanese"}


@pytest.mark.skipif(
    not (Path(os.environ.get("JCL_DATA", "")) / "omniglot").is_dir(),
    reason="needs omniglot in the folder that JCL_DATA names",
)
def test_no_character_is_trained_and_tested_on(omniglot):
    source, split = omniglot.characters("omniglot")
    train, test = ({source.names[label] for label in part} for part in split[::2])
    assert (len(train), len(split.train)) == (182, 4 * 182)
    assert len(test) == len(split.test) == 60
    assert not train & test
    as_they_are = jcl.data.omniglot().arrays()["inputs"]
    rows = np.flatnonzero(source.arrays()["targets"] == split.test[0])
    drawn = 20 * int(split.test[0])
    np.testing.assert_array_equal(source.arrays()["inputs"][rows], as_they_are[drawn : drawn + 20])


def untrained_sinusoid():
    model = jcl.models.mlp(jcl.models.MLPConfig(inputs=1, hidden=(4,), classes=1))
    state = types.SimpleNamespace(params=model.init(jax.random.key(0)))
    return types.SimpleNamespace(experiment=types.SimpleNamespace(model=model), state=state)


@pytest.fixture
def page(tmp_path, monkeypatch):
    tables = benchmark("meta_tables")
    monkeypatch.setattr(tables, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(tables, "PAGE", tmp_path / "meta.md")
    monkeypatch.setattr(tables.answer, "reopen", lambda *_: untrained_sinusoid())
    return tables


def finish(tables, name, label, matrix, deviations=()):
    """The folder of a finished run; matrix is [seed][row][task]."""
    (row,) = [row for row in tables.TABLES[name].rows if row.label == label]
    folder = tables.place(name, row)
    folder.mkdir(parents=True)
    metric = {"mean": None, "ci95": None, "values": []}
    found = a_report(
        matrix=matrix, metrics={"average_accuracy": metric},
        higher_is_better=name != "sinusoid", config={"episodes": 1000},
    )  # fmt: skip
    (folder / "report.json").write_text(json.dumps(found))
    began = {"git_commit": "0123456789", "devices": {"platform": "cpu"}}
    (folder / "config.json").write_text(json.dumps(began))
    lines = [json.dumps({"kind": "probe", "deviation": [each]}) for each in deviations]
    (folder / "metrics.jsonl").write_text("\n".join([json.dumps({"kind": "step"}), *lines]))
    for file in ("report.md", "matrix.png"):
        (folder / file).write_text("")


def lines_of(tables, name):
    section = tables.PAGE.read_text().split(f"## {tables.TABLES[name].title}")[1]
    return section.split("\n## ")[0].splitlines()


def test_the_page_has_what_was_run_and_keeps_it(page, tmp_path, monkeypatch):
    page.write_page()
    label = "5 ways, 1 shot, convolutional, maml"
    assert f"| {label} | not run |  |  |  |" in lines_of(page, "glyphs")
    finish(page, "glyphs", label, [[[0.25], [0.75]]], [0.1, 0.2])
    good = list(page.STATED.values())
    scratch = [[4.0] * 9, [3.0] * 9, [5.0] * 9]
    matrix = [[row, [1.2 * good[0], *good[1:]]] for row in scratch]
    finish(page, "sinusoid", "maml", matrix)
    finish(page, "continual", "oml, meta-training", [[[0.1], [0.9]]] * 3)
    curve = np.tril(np.full((11, 10), 0.5), -1)  # half of what was seen, none of what was not
    finish(page, "continual", "oml", [curve.tolist()] * 3)
    drawn = []
    draw = page.draw_curves
    monkeypatch.setattr(page, "draw_curves", lambda *given: drawn.append(given) or draw(*given))
    counts = page.write_page()
    ((curves, _),) = drawn
    assert list(curves) == ["oml"]
    np.testing.assert_array_equal(curves["oml"], np.full((3, 10), 0.5))
    assert counts == {
        "sinusoid": (2, 7), "omniglot": (0, 24), "glyphs": (1, 4), "intents": (0, 7),
        "continual": (2, 9),
    }  # fmt: skip
    expected = f"| {label} | 75.00 ± 1.24 | 25.00 ± 0.62 | 60 s | 01234567 |"
    assert expected in lines_of(page, "glyphs")
    found = lines_of(page, "continual")
    assert "| oml, meta-training | - | - | - | 60 s | 01234567 |" in found
    assert "| oml |" + " 50.00 ± 0.00 |" * 3 + " 60 s | 01234567 |" in found
    found = lines_of(page, "sinusoid")
    assert "| from scratch |" + " 4.000 ± 2.484 |" * 9 + "  |  |" in found
    assert "| 5/1 | 0.591 | 0.709 ± 0.000 | +20 % | differs |" in found
    assert "| 20/10 | 0.048 | 0.048 ± 0.000 | +0 % | within 15 % |" in found
    assert any("(sinusoid.png)" in line for line in found)
    assert any("a point counting at most 100" in line for line in found)
    assert any("(continual.png)" in line for line in lines_of(page, "continual"))
    for picture in ("sinusoid.png", "continual.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    before = page.PAGE.read_text()
    monkeypatch.setattr(page, "RUNS", tmp_path / "elsewhere")
    assert page.write_page() == counts
    assert page.PAGE.read_text() == before
    # A picture stays where one of its curves is not here.
    finish(page, "continual", "er", [curve.tolist()] * 3)
    page.write_page()
    assert len(drawn) == 1


def test_every_row_is_a_command_that_its_config_takes(page, omniglot, sinusoid, monkeypatch):
    import tyro

    started = []
    monkeypatch.setattr(
        page.resumable, "run", lambda folder, *command: bool(started.append((folder, command))) or 1
    )
    assert page.main(["sinusoid", "omniglot", "glyphs"]) == 0
    assert len(started) == len({folder for folder, _ in started}) == 6 + 24 + 4
    modules = {"meta/sinusoid": sinusoid, "meta/omniglot": omniglot}
    for _, (config, arguments, _) in started:
        seeds = arguments.index("--seeds")
        tyro.cli(modules[config].Config, args=arguments[:seeds])
        assert arguments[seeds + 1] == ("3" if config == "meta/sinusoid" else "1")
    del started[:]
    assert page.main(["glyphs", "--only", "prototypes"]) == 0
    assert len(started) == 2
    with pytest.raises(SystemExit) as end:
        page.main(["omniglot", "--only", "oml"])
    assert end.value.code == 2


def test_the_page_is_what_its_own_rows_give(page):
    written = (ROOT / "docs" / "meta.md").read_text()
    page.PAGE.write_text(written)
    for picture, _ in page.PICTURES.values():
        if (ROOT / "docs" / picture).exists():
            (page.PAGE.parent / picture).write_bytes(b"")
    page.write_page()
    assert page.PAGE.read_text() == written, "run: python benchmarks/meta_tables.py --report"
