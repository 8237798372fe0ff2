"""configs/drift.py and the script of its tables, on made-up features in place of a real set's."""

import json
from pathlib import Path
from typing import get_args, get_type_hints

import jax
import numpy as np
import pytest
from scripts import benchmark

import jcl
from jcl.__main__ import load_config

ROOT = Path(__file__).parent.parent
CONFIG = load_config(ROOT / "configs" / "drift.py")
METHODS = get_args(get_type_hints(CONFIG.Config)["method"])


def features(*_):
    """Ten topics of three intents, as an encoder might place them."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(30, 384))

    def part(task, number):
        targets = 3 * task + np.arange(number) % 3
        inputs = centres[targets] + generator.normal(size=(number, 384))
        return jcl.data.Arrays(
            {"inputs": inputs.astype(np.float32), "targets": targets.astype(np.int32)}
        )

    tasks = [jcl.data.Task(str(task), part(task, 30), part(task, 3), "") for task in range(10)]
    return jcl.data.Stream("made up", tuple(tasks)), None


@pytest.fixture
def config(monkeypatch):
    monkeypatch.setattr(CONFIG, "source", features)
    return CONFIG


def test_every_method_can_be_traced(config):
    for method in METHODS:
        built = config.Config(method=method, backbone="minilm", segment=120)
        experiment = config.build(built)
        learner = jcl.learner(experiment.loss_fn, experiment.strategy)
        batch = jcl.data.training_batches(experiment.stream.stages[0], 8, seed=0)[0]
        batch |= {"mask": np.ones(8, np.float32), "drift": np.zeros(8, np.int32)}
        begin = lambda key: learner.init(key, experiment.model.init(key), batch)
        state = jax.eval_shape(begin, jax.random.key(0))
        after, _ = jax.eval_shape(learner.step, state, batch)
        assert jax.tree.structure(after) == jax.tree.structure(state), method


def test_the_small_encoder_reads_lines():
    pytest.importorskip("home_assistant_intents", reason='needs pip install "jcl[demo]"')
    experiment = CONFIG.build(CONFIG.Config(change="domains", drift="gradual", segment=60))
    assert experiment.stream.width == 30
    example = experiment.lines.read(b'{"text": "lamp on", "label": "TurnOn"}')
    assert example.leaves["inputs"].shape == experiment.stream.stages[0][0]["inputs"].shape
    assert CONFIG.build(CONFIG.Config(detector="none", segment=60)).drift is None


@pytest.fixture
def table(config, tmp_path, monkeypatch):
    script = benchmark("drift_table")
    monkeypatch.setattr(script, "CONFIG", config)
    monkeypatch.setattr(script, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(script, "PAGE", tmp_path / "online.md")
    settings = {"texts": "clinc150", "backbone": "minilm", "segment": 120}
    monkeypatch.setattr(script, "SETTINGS", settings)
    script.PAGE.write_text(f"# Online\n\n{script.BEGIN}\n{script.END}\n\nThe end.\n")
    return script


def row(script, method, title="Labels, recurring"):
    after = script.PAGE.read_text().partition(f"### {title}\n")[2]
    return next(line for line in after.splitlines() if line.startswith(f"| {method} |"))


def test_the_page_holds_what_was_run_and_nothing_else(table):
    pytest.importorskip("river", reason='needs the extra: pip install "jcl[drift]"')
    arguments = ["recurring", "--only", "constant", "restarting", "--seeds", "1"]
    assert table.main(arguments) == 0
    path = table.place("recurring", "constant", 0)
    found = json.loads(path.read_text())
    assert found["examples"] == 480
    assert found["truth"] == {"drifts": [120, 240, 360], "order": [0, 1, 0, 1], "width": 0}
    # The centres are far apart: it learns, and a drift makes all wrong what was right.
    assert found["measures"]["accuracy"] > 0.3
    assert found["measures"]["worst_window"] < found["measures"]["accuracy"]
    assert len(found["losses"]) == 480
    # A detector that saw the same losses told of drifts, and of none before the first.
    assert found["alarms"]
    assert min(found["alarms"]) > 120
    shown = row(table, "constant")
    assert f"| {100 * found['measures']['accuracy']:.1f} |" in shown
    assert "not run" in row(table, "replay")
    assert "not run" in row(table, "constant", "Labels, abrupt")
    assert "not run" not in row(table, "adwin", "Detectors on the losses of constant: "
                                "Labels, recurring")  # fmt: skip
    assert table.PAGE.read_text().endswith("\n\nThe end.\n")
    # Going on runs nothing twice; a row whose folder is gone keeps what the page has.
    before = path.stat().st_mtime_ns
    assert table.main(arguments) == 0
    assert path.stat().st_mtime_ns == before
    path.unlink()
    assert table.main(["--report"]) == 0
    assert row(table, "constant") == shown


def test_intervals_over_seeds(table):
    def write(seed, accuracy, forgetting):
        path = table.place("domains", "replay", seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        measures = {
            "accuracy": accuracy, "worst_window": 0.25, "recovery": [], "recovery_mean": 150.0,
            "recovered": 2, "forgetting": forgetting,
        }  # fmt: skip
        truth = {"drifts": [1, 2, 3], "order": [0, 1, 0, 1], "width": 0}
        rest = {"examples_per_second": 100.0 * (seed + 1), "state_bytes": 2**20}
        told = dict.fromkeys(("settings", "on", "commit", "date"), "x")
        path.write_text(json.dumps({"measures": measures, "truth": truth, **rest, **told}))

    write(0, 0.5, 0.25)
    write(1, 0.7, None)
    table.main(["--report"])
    # Student's t for two: 12.706 * 0.1.
    assert row(table, "replay", "Domains, recurring") == (
        "| replay | 60.0 ± 127.1 | 25.0 ± 0.0 | 150.0 ± 0.0 | 4 of 6 | - | 150 | 1.0 MiB |"
    )
    assert "Run on: x; x; commit x; x." in table.PAGE.read_text()


def test_an_unknown_stream_is_refused(table):
    with pytest.raises(SystemExit, match="2"):
        table.main(["sudden"])
