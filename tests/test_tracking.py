"""Trackers: they get what metrics.jsonl gets, go on where a run goes on, and never stop one."""

import json
import os
import re
import threading
import time
import warnings
from pathlib import Path

import pytest

from jcl import InputError, folder, tracking
from jcl.__main__ import main

CONFIG = Path(__file__).parent / "configs" / "tiny.py"
DESCRIPTION = {"config": {"rate": 0.1, "method": "naive"}}
EVALUATION = {"kind": "evaluation", "after": "nothing", "task": "de", "accuracy": [0.25, 0.5]}
STEP = {"kind": "step", "task": "de", "loss": [2.0, None]}
PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}


class Listening:
    """What a tracker was told."""

    def __init__(self, folder, description, step):
        self.told = [("open", step)]
        Listening.made.append(self)

    def write(self, scalars, step):
        self.told.append((step, scalars))

    def close(self):
        self.told.append("close")


@pytest.fixture
def listening(monkeypatch):
    Listening.made = []
    monkeypatch.setitem(tracking.TRACKERS, "wandb", Listening)
    return Listening.made


def failing(where):
    """A tracker that raises there; `hang` never returns."""

    class Failing:
        def __init__(self, folder, description, step):
            self.fail("import")
            self.fail("open")

        def write(self, scalars, step):
            self.fail("write")

        def close(self):
            self.fail("close")

        def fail(self, now):
            if now != where:
                return
            if now == "import":
                import no_such_tracker  # noqa: F401
            if now == "close":
                raise SystemExit(3)
            raise RuntimeError("the disk is full")

    return Failing


def some_lines(place, names, *, steps=(5, 10), at=0):
    """As a run writes them: an evaluation, steps of a first stage."""
    lines = folder.MetricsFile(place, (place / "metrics.jsonl").stat().st_size if at else 0)
    tracked = tracking.Tracked(lines, names, place, DESCRIPTION, lambda line: line.get("step", at))
    if not at:
        tracked.write(**EVALUATION)
    for step in steps:
        tracked.write(**STEP, step=step)
    assert tracked.offset() == (place / "metrics.jsonl").stat().st_size
    tracked.close()


def test_a_tracker_gets_the_lines_of_the_file(listening, tmp_path):
    some_lines(tmp_path, ["wandb"])
    assert listening[0].told == [
        ("open", 0),
        (0, {"accuracy/de/replica_0": 0.25, "accuracy/de/replica_1": 0.5}),
        (5, {"train/loss/replica_0": 2.0}),
        (10, {"train/loss/replica_0": 2.0}),
        "close",
    ]


@pytest.mark.parametrize("where", ["import", "open", "write", "close"])
def test_a_failing_tracker_costs_one_warning(where, listening, monkeypatch, tmp_path):
    """The file and the other tracker have all the same."""
    monkeypatch.setitem(tracking.TRACKERS, "mlflow", failing(where))
    with pytest.warns(UserWarning, match="--track") as caught:
        some_lines(tmp_path, ["mlflow", "wandb"], steps=range(1, 30))
    reason = {"import": r"jcl\[tracking\]", "close": "SystemExit: 3"}.get(where, "disk is full")
    assert len(caught) == 1
    assert caught[0].message.args[0].startswith("--track mlflow: ")
    assert re.search(reason, str(caught[0].message))
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 30
    assert len(listening[0].told) == 32


def test_a_tracker_that_hangs_is_left_behind(monkeypatch, tmp_path):
    release = threading.Event()

    class Hanging(Listening):
        def write(self, scalars, step):
            release.wait(60)

    Listening.made = []
    monkeypatch.setitem(tracking.TRACKERS, "mlflow", Hanging)
    monkeypatch.setattr(tracking, "GOODBYE_SECONDS", 0.2)
    began = time.monotonic()
    with pytest.warns(UserWarning, match="does not end within 0 s"):
        some_lines(tmp_path, ["mlflow"])
    monkeypatch.setattr(tracking, "WAITING_LINES", 3)
    with pytest.warns(UserWarning, match="too slowly, 3 wait") as caught:
        some_lines(tmp_path, ["mlflow"], steps=range(1, 30))
    assert len(caught) == 1
    assert time.monotonic() - began < 10
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 30
    release.set()


def test_a_run_and_its_end_do_not_hang_on_trackers(listening, monkeypatch, tmp_path, capsys):
    """The steps that trackers get count over the stages; the run's files are as without them."""
    monkeypatch.setitem(tracking.TRACKERS, "mlflow", failing("write"))
    command = ["run", str(CONFIG), "--method", "naive", "--steps", "7", "--seeds", "1"]
    out = tmp_path / "run"
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        trackers = ["--track", "wandb", "--track", "mlflow"]
        assert main([*command, "--out", str(out), *trackers]) == 0
    errors = capsys.readouterr().err
    assert "--track mlflow" in errors, errors
    told = listening[0].told
    steps = [each[0] for each in told[1:-1]]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert len(steps) == len(lines)
    assert steps == sorted(steps)
    assert steps[-1] == 21
    at = {
        each["task"]: step
        for each, step in zip(lines, steps, strict=True)
        if each["kind"] == "step"
    }
    assert at == {"vowels": 5, "digits": 12, "signs": 19}


def test_unknown_trackers_are_refused():
    for names in (["other"], ["mlflow", "mlflow"]):
        with pytest.raises(InputError, match="name each of tensorboard, wandb, mlflow at most"):
            tracking.check(names)


# The trackers themselves


@pytest.fixture
def followed(request, monkeypatch, tmp_path):
    """A run folder in which a run was killed behind its tenth step, and went on from there."""
    name = request.param
    pytest.importorskip(PACKAGES[name], reason=f"needs {PACKAGES[name]}: jcl[tracking]")
    for variable in ("WANDB_MODE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    place = tmp_path / "runs" / "naive"
    place.mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "--track")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        some_lines(place, [name], steps=(5, 10, 15))
        some_lines(place, [name], steps=(15, 20), at=10)
    folder._refuse_links(place)  # or the run could not go on
    assert {path.name for path in place.iterdir()} - {"metrics.jsonl"} <= set(folder.CONTENTS)
    return place


@pytest.mark.parametrize("followed", ["tensorboard"], indirect=True)
def test_tensorboard(followed):
    """The new writer tells TensorBoard to hide what lies behind step 10."""
    from tensorboardX.proto.event_pb2 import Event

    events = []
    for path in sorted((followed / "tensorboard").iterdir()):
        content = path.read_bytes()
        while content:
            length = int.from_bytes(content[:8], "little")
            events.append(Event.FromString(content[12 : 12 + length]))
            content = content[16 + length :]
    # By their times: the files' names say no more than the second.
    events.sort(key=lambda event: event.wall_time)
    scalars = [
        (event.step, value.tag, value.simple_value)
        for event in events
        for value in event.summary.value
        if value.WhichOneof("value") == "simple_value"
    ]
    assert (0, "accuracy/de/replica_1", 0.5) in scalars
    assert [step for step, tag, _ in scalars if "loss" in tag] == [5, 10, 15, 15, 20]
    starts = [event.step for event in events if event.session_log.status == 1]
    assert starts[-1] == 11


@pytest.mark.parametrize("followed", ["wandb"], indirect=True)
def test_wandb(followed):
    """Two sessions of one id, offline."""
    sessions = list((followed / "wandb").glob("offline-run-*"))
    assert len({path.name.rsplit("-", 1)[1] for path in sessions}) == 1
    assert sum(path.stat().st_size for path in followed.rglob("*.wandb")) > 100


@pytest.mark.parametrize("followed", ["mlflow"], indirect=True)
def test_mlflow(followed):
    import mlflow

    client = mlflow.MlflowClient((followed / "mlflow" / "runs").as_uri())
    experiment = client.get_experiment_by_name("jcl")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.params == {"rate": "0.1", "method": "naive"}
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "train/loss/replica_0")
    assert sorted(each.step for each in history) == [5, 10, 15, 15, 20]
    assert os.environ.get("MLFLOW_TRACKING_URI") is None
