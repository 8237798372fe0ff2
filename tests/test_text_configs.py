"""The configs of labelled texts, their table, and GPT-2 on two tasks.

Every method is traced on texts that come with the installation, in place of the sets that the
configs read; a small encoder learns four tasks of them.
"""

import dataclasses
import functools
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import jax
import numpy as np
import pytest
from everything import ALL, costly
from reports import a_report
from scripts import benchmark
from words import Words

import jcl
from jcl.__main__ import load_config
from jcl.experiment import check, stage_steps

pytestmark = pytest.mark.xdist_group("text")  # the results are shared
ROOT = Path(__file__).parent.parent
FILES = ("clinc150", "banking77")
DATA = Path(os.environ.get("JCL_DATA", ""))


@functools.cache
def home(tasks=10):
    pytest.importorskip("home_assistant_intents", reason='needs pip install "jcl[demo]"')
    stream = jcl.data.intents(tokenizer=Words())
    return dataclasses.replace(stream, tasks=stream.tasks[:tasks], stages=())


@functools.cache
def small(backbone, classes):
    """A BERT for those texts; as minilm it starts from params and has a head of its own."""
    words = 1 + max(int(task.train.arrays()["inputs"].max()) for task in home().tasks)
    words = max(words, 1 + max(int(task.test.arrays()["inputs"].max()) for task in home().tasks))
    model = jcl.models.bert(
        jcl.models.BertConfig(
            words, 64, 64, 2, 4, 128, head="classes", classes=classes, pooling="mean", dropout=0.0
        )
    )
    if backbone == "small":
        return model
    params = model.init(jax.random.key(3))
    return jcl.models.starting_from(model, params, fresh="classifier/*")


def config(name, monkeypatch, tasks=10):
    module = load_config(ROOT / "configs" / f"{name}.py")
    monkeypatch.setattr(module, "texts", lambda *_: home(tasks))
    monkeypatch.setattr(module, "encoder", small)
    monkeypatch.setattr(module, "tokenizer", lambda: None)
    return module


@pytest.mark.parametrize(
    ("name", "backbone"),
    itertools.product(FILES, ["minilm", "small"])
    if ALL
    else [("clinc150", "minilm"), ("banking77", "small")],
)
def test_every_method_can_be_traced(name, backbone, monkeypatch):
    module = config(name, monkeypatch)
    for method in get_args(get_type_hints(module.Config)["method"]):
        experiment = module.build(module.Config(method=method, backbone=backbone))
        learner = jcl.learner(experiment.loss_fn, experiment.strategy)
        batch = jcl.data.training_batches(
            experiment.stream.stages[0], experiment.batch_size, seed=0
        )[0]
        begin = lambda key: learner.init(key, experiment.model.init(key), batch)
        state = jax.eval_shape(begin, jax.random.key(0))
        after, metrics = jax.eval_shape(learner.step, state, batch)
        assert jax.tree.structure(after) == jax.tree.structure(state), method
        assert metrics["total"].shape == ()
        assert len(experiment.stream.stages) == (1 if method == "joint" else 10)
        frozen = method in module.FROZEN
        assert ("attention_mask" in batch) != frozen
        if frozen:
            assert batch["inputs"].shape == (experiment.batch_size, 64)


@pytest.mark.parametrize("name", FILES)
def test_no_more_examples_are_stored_than_the_table_says(name, monkeypatch):
    text, module = benchmark("text"), config(name, monkeypatch)
    stream = text.STREAMS[name]
    for row in stream.methods:
        method, _, examples = row.partition(", ")
        built = module.Config(method=method, **({"examples": int(examples)} if examples else {}))
        experiment = module.build(built)
        learner = jcl.learner(experiment.loss_fn, experiment.strategy)
        batch = jcl.data.training_batches(experiment.stream.stages[0], 32, seed=0)[0]
        begin = lambda key: learner.init(key, experiment.model.init(key), batch)
        state = jax.eval_shape(begin, jax.random.key(0))
        held = [
            leaf.shape[0]
            for path, leaf in jax.tree_util.tree_leaves_with_path(state.strategy)
            if jax.tree_util.keystr(path, simple=True, separator="/").endswith("items/targets")
        ]
        # The made-up stream has the intents of its own; the capacity is of the table's.
        expected = text.stored(stream, row) * (30 / 77 if name == "banking77" else 1)
        assert held == ([round(expected)] if expected else []), row


@pytest.fixture
def page(tmp_path, monkeypatch):
    text = benchmark("text")
    monkeypatch.setattr(text, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(text, "PAGE", tmp_path / "text.md")
    return text


def finish(text, name, row, mean, seeds=3, forgetting=0.125):
    """The folder of a finished run."""
    folder = text.place(name, row)
    folder.mkdir(parents=True)
    metric = lambda mean: {"mean": mean, "ci95": 0.01 if seeds > 1 else None, "values": []}
    found = a_report(
        seeds, metrics={"average_accuracy": metric(mean), "forgetting": metric(forgetting)}
    )
    (folder / "report.json").write_text(json.dumps(found))
    (folder / "config.json").write_text(
        json.dumps({"git_commit": "0123456789", "devices": {"platform": "cpu"}, "threads": 2})
    )
    for file in ("report.md", "matrix.png"):
        (folder / file).write_text("")
    return folder


def row(text, stream, name):
    section = text.PAGE.read_text().split(f"## {text.STREAMS[stream].title}")[1].split("\n## ")[0]
    (found,) = [line for line in section.splitlines() if line.startswith(f"| {name} |")]
    return found


def test_a_row_without_a_folder_keeps_what_the_page_has(page, tmp_path, monkeypatch):
    page.write_page()
    assert row(page, "clinc150", "best") == "| best | not run |  |  |  |  |  |  |  |"
    finish(page, "clinc150", "replay, 2", 0.5)
    costs = page.cost_file("clinc150", "replay, 2")
    costs.parent.mkdir(parents=True)
    costs.write_text('{"step": 0.25, "peak": 2048, "on": "2 cores"}')
    finish(page, "banking77", "joint", 0.75, seeds=1, forgetting=None)
    counts = page.write_page()
    assert counts["clinc150"] == (1, len(page.STREAMS["clinc150"].methods))
    assert counts["clinc150-small"] == (0, 4)
    replay = (
        "| replay, 2 a class | 50.00 ± 1.00 (3) | 12.50 ± 1.00 | 300 | 60 s | 2 cores | 01234567 "
        "| 250 ms, 2 cores | 2048 MiB |"
    )
    assert row(page, "clinc150", "replay, 2 a class") == replay
    assert row(page, "banking77", "joint").startswith("| joint | 75.00 (1) | - | 0 | 60 s |")
    before = page.PAGE.read_text()
    monkeypatch.setattr(page, "RUNS", tmp_path / "elsewhere")
    assert page.write_page() == counts
    assert page.PAGE.read_text() == before
    told = "Rows ran on what their column `on` says; the page itself was written on: "
    assert before.count(told) == 1
    assert "`jcl run configs/clinc150.py --scenario domain --method METHOD --seeds 1`" in before


def test_what_a_row_costs_is_measured_on_the_first_texts_of_two_tasks(tmp_path):
    path = tmp_path / "texts.csv"
    rows = [f"word{n} {n},{'abcd'[n % 4]}" for n in range(1000)]
    path.write_text("text,label\n" + "\n".join(rows))
    stream = jcl.data.text_classification(path, tokenizer=Words(), tasks=4, test=0.5)
    found = benchmark("text_costs").cut(stream)
    assert [task.name for task in found.tasks] == [task.name for task in stream.tasks[:2]]
    assert [len(task.train) for task in found.tasks] == [min(150, len(stream.tasks[0].train))] * 2
    assert len(found.stages) == 2
    assert found.classes == 4
    np.testing.assert_array_equal(
        found.tasks[1].test[3]["inputs"], stream.tasks[1].test[3]["inputs"]
    )


def test_the_command_runs_what_is_left_and_stops_at_its_time(page, monkeypatch):
    finish(page, "banking77", "naive", 0.5, seeds=1)
    started = []

    class Child:
        returncode = 0

        def __init__(self, command, **_):
            started.append(command)

        def poll(self):
            return self.returncode

    monkeypatch.setattr(page.resumable.subprocess, "Popen", Child)
    assert page.main(["banking77"]) == 0
    methods = [command[command.index("--method") + 1] for command in started]
    assert methods == ["joint", "replay", "best"]
    assert started[1][-6:-4] == ["--examples", "10"]
    Child.returncode = 1
    assert page.main(["banking77", "--only", "joint"]) == 1
    del started[:]
    assert page.main(["banking77", "--minutes", "0.1"]) == 0
    assert not started


def test_a_run_is_interrupted_when_the_time_is_over(page, monkeypatch):
    sent = []
    # A process in the background of a shell would inherit that it ignores the signal.
    sleeper = [sys.executable, "-c", "import signal, sys, time\n"
               "signal.signal(signal.SIGINT, lambda *_: sys.exit(130))\n"
               "time.sleep(60)"]  # fmt: skip
    real = subprocess.Popen

    class Child(real):
        def __init__(self, command, **_):
            super().__init__(sleeper)

        def send_signal(self, signal):
            sent.append(signal)
            super().send_signal(signal)

    monkeypatch.setattr(page.resumable.subprocess, "Popen", Child)
    assert page.run("banking77", "best", deadline=page.resumable.time.monotonic() + 0.5)
    assert len(sent) == 1


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("bank", "'bank' is no stream: name some of clinc150"),
        ("banking77 --only lora", "--only lora: known there are naive, joint, replay, best"),
        ("--minutes 0", "--minutes 0.0: a number above 0"),
    ],
)
def test_a_command_that_cannot_be_followed_ends_with_status_2(page, capsys, command, message):
    with pytest.raises(SystemExit) as end:
        page.main(command.split())
    assert end.value.code == 2
    assert message in capsys.readouterr().err
    assert not page.PAGE.exists()


def test_the_page_is_what_its_own_rows_give(page, tmp_path):
    written = (ROOT / "docs" / "text.md").read_text()
    page.PAGE.write_text(written)
    page.write_page()
    assert page.PAGE.read_text() == written, "run: python benchmarks/text.py --report"


@pytest.mark.skipif(not (DATA / "minilm_l6").is_dir(), reason="needs minilm_l6 in JCL_DATA")
@pytest.mark.parametrize("name", FILES)
def test_the_pretrained_encoder_is_what_is_trained(name):
    if not (DATA / name).is_dir():
        pytest.skip(f"needs {name} in the folder that JCL_DATA names")
    module = load_config(ROOT / "configs" / f"{name}.py")
    experiment = module.build(module.Config(method="replay"))
    check(experiment)
    classes = {"clinc150": 150, "banking77": 77}[name]
    assert len(stage_steps(experiment)) == {"clinc150": 10, "banking77": 7}[name]
    one, other = (experiment.model.init(jax.random.key(seed)) for seed in range(2))
    assert one["classifier"]["kernel"].shape == (384, classes)
    assert np.any(one["classifier"]["kernel"] != other["classifier"]["kernel"])
    _, params = jcl.models.from_pretrained(DATA / "minilm_l6")
    for path in ("layer_0", "layer_5"):
        found, expected = (tree[path]["attn"]["query"]["kernel"] for tree in (one, params))
        np.testing.assert_array_equal(found, expected)


def test_without_the_data_the_configs_say_what_they_need(monkeypatch):
    monkeypatch.delenv("JCL_DATA", raising=False)
    for name in FILES:
        module = load_config(ROOT / "configs" / f"{name}.py")
        with pytest.raises(jcl.InputError, match=f"Set JCL_DATA .* {name} and minilm_l6"):
            module.build(module.Config())


@functools.cache
def accuracy(method, tasks=4):
    """The average accuracy of a small encoder from scratch after four tasks of three intents."""
    with pytest.MonkeyPatch.context() as patch:
        module = config("clinc150", patch, tasks)
        experiment = module.build(
            module.Config(method=method, backbone="small", epochs=6, batch_size=20)
        )
    learner = jcl.learner(
        experiment.loss_fn, experiment.strategy, measure=experiment.measure.function
    )
    train = jax.jit(
        lambda state, batches: jax.lax.scan(learner.step, state, batches)[0], donate_argnums=0
    )
    consolidate, evaluate = jax.jit(learner.consolidate), jax.jit(learner.evaluate)
    state = None
    number = min(stage_steps(experiment))
    for stage, steps in zip(experiment.stream.stages, stage_steps(experiment), strict=True):
        batches = jcl.data.training_batches(stage, experiment.batch_size, seed=0)
        if state is None:
            params = experiment.model.init(jax.random.key(1))
            state = learner.init(jax.random.key(0), params, batches[0])
        state = jcl.start_task(state, steps)
        for first in range(0, steps, number):
            state = train(state, jcl.data.stack([batches[first + n] for n in range(number)]))
        last = [batches[steps + n] for n in range(experiment.boundary_batches)]
        state = consolidate(state, jcl.data.stack(last))
    found = []
    for task in experiment.stream.tasks:
        (batch,) = jcl.data.evaluation_batches(task.test, len(task.test))
        total, count = evaluate(state, batch)
        found.append(float(total / count))
    return float(np.mean(found))


@costly
def test_the_best_method_lies_between_naive_and_joint():
    assert accuracy("naive") < 0.45
    assert accuracy("naive") + 0.3 < accuracy("best") <= accuracy("joint") + 0.03
    assert accuracy("joint") > 0.85


def test_gpt2_mixes_the_second_task_with_ten_blocks_of_the_first(monkeypatch):
    pytest.importorskip("home_assistant_intents", reason='needs pip install "jcl[demo]"')
    once = jcl.data.domains(length=32)
    monkeypatch.setattr(jcl.data, "domains", lambda **_: once)
    module = load_config(ROOT / "configs" / "gpt2_two_tasks.py")
    experiment = module.build(module.Config(length=32))
    assert [task.name for task in experiment.stream.tasks] == ["python_docs", "german_home"]
    check(experiment)
    assert "replay" in experiment.strategy.name
    assert "replay" not in module.build(module.Config(length=32, memory=0)).strategy.name
    assert experiment.tokenizer.encode("für").tolist() == [*"für".encode()]


def test_gpt2_goes_on_from_a_checkpoint(tmp_path, monkeypatch):
    pytest.importorskip("home_assistant_intents", reason='needs pip install "jcl[demo]"')
    from test_starting_from import gpt2_tokenizer

    tokenizer = gpt2_tokenizer()
    shape = jcl.models.GPT2Config(len(tokenizer), 32, 16, 1, 2)
    model = jcl.models.gpt2(shape)
    params = model.init(jax.random.key(4))
    jcl.models.save_pretrained(tmp_path / "gpt2", model, params, tokenizer=tokenizer)
    monkeypatch.setattr(jcl.data, "domains", lambda *, tokenizer, **_: made_up(tokenizer))
    module = load_config(ROOT / "configs" / "gpt2_two_tasks.py")
    experiment = module.build(module.Config(checkpoint=str(tmp_path / "gpt2"), length=32))
    check(experiment)
    found = experiment.model.init(jax.random.key(0))
    np.testing.assert_array_equal(found["wte"], params["wte"])
    assert experiment.tokenizer.decode(experiment.tokenizer.encode("the theme")) == "the theme"


def made_up(tokenizer):
    """Three short tasks: transformers' tokenizer would take seconds over the whole texts."""
    text = ["The theme of the day. " * 40]
    tasks = [jcl.data.text_task(name, text, text, tokenizer, 32) for name in "abc"]
    return jcl.data.Stream("made up", tuple(tasks))
