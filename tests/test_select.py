"""jcl select: candidates, a budget, who dominates whom, and a selection on a stream of its own."""

import dataclasses
import json
import os
import shlex
from pathlib import Path
from typing import Literal

import jax
import pytest

from jcl import InputError, report
from jcl.__main__ import load_config, main
from jcl.errors import Diverged, Stopped
from jcl.select import candidates as select
from jcl.select import choice, costs
from jcl.select.choice import Candidate, dominates, over, recommend

pytestmark = pytest.mark.xdist_group("select")
HERE = Path(__file__).parent
BUDGET = {"parameters": 100.0, "latency": 0.01}


def candidate(name, parameters=50, memory=1000, latency=0.005, measured=0.5, **others):
    return Candidate(
        {"name": name}, parameters, 500, memory=memory, latency=latency, measured=measured, **others
    )


def test_a_candidate_dominates_where_it_is_worse_in_nothing():
    one = candidate("one")
    for other, better in [
        (candidate("same"), []),
        (candidate("worse", measured=0.4), ["the measure, 0.5 to 0.4"]),
        (candidate("larger", parameters=60), ["parameters, 50 to 60"]),
        (candidate("slower, as it happened", latency=0.0052), []),
        (candidate("slower", latency=0.006), ["latency, 5.00 ms to 6.00 ms"]),
        (candidate("larger, as it was compiled", memory=1005), []),
        (candidate("takes more", memory=1100), ["memory, 1.00 kB to 1.10 kB"]),
        (candidate("larger and better", parameters=60, measured=0.6), []),
        (candidate("worse and smaller", memory=900, measured=0.4), []),
    ]:
        assert dominates(one, other, higher_is_better=True) == better, other
    lower = candidate("lower", measured=0.4)
    assert dominates(lower, one, higher_is_better=False) == ["the measure, 0.4 to 0.5"]
    assert not dominates(lower, one, higher_is_better=True)


def test_the_recommendation_and_its_reasons():
    found = [
        candidate("best", measured=0.8, latency=0.008, ci95=0.02),
        candidate("quick", measured=0.7, latency=0.002, ci95=0.0),
        candidate("bad", measured=0.6, latency=0.009, parameters=60),
        candidate("slow", latency=0.02, measured=None),
        candidate("huge", parameters=1000, memory=None, latency=None, measured=None),
        candidate("gone", measured=None, failed="the loss is no longer finite"),
        candidate("alike", measured=0.79, parameters=40, ci95=0.01),
    ]
    best, reasons = recommend(found, BUDGET, higher_is_better=True)
    assert best == 0
    assert reasons[0] == (
        "the best measure within the budget, 0.8 ± 0.02; it takes 50 % of the parameters, 80 % of "
        "the latency allowed; by these seeds not to be told from name=alike"
    )
    assert reasons[1] == (
        "a cheaper choice: measure 0.7 ± 0 in place of 0.8 ± 0.02, for latency 2.00 ms in place "
        "of 8.00 ms"
    )
    assert reasons[2] == (
        "dominated by name=best: worse in nothing, better in the measure, 0.8 to 0.6 and in "
        "parameters, 50 to 60 and in latency, 8.00 ms to 9.00 ms"
    )
    assert reasons[3] == (
        "over the budget: latency 20.00 ms, 2.00 times the 10.00 ms allowed; not trained"
    )
    assert reasons[4].startswith("over the budget: parameters 1.00 k, 10.00 times the 100 allowed")
    assert reasons[5] == "failed: the loss is no longer finite"
    assert recommend(found, BUDGET, higher_is_better=False)[0] == 2
    assert recommend(found[3:6], BUDGET, higher_is_better=True)[0] is None
    # Of two that are as good the cheaper one, which dominates the other.
    assert recommend([candidate("a"), candidate("b", memory=1)], {}, higher_is_better=True)[0] == 1


def test_a_limit_is_within_the_budget_and_a_state_counts_before_the_step_is_known():
    assert not over(candidate("at", parameters=100, latency=0.01), BUDGET)
    unknown = candidate("unknown", memory=None)
    assert over(unknown, {"memory": 400.0}) == [
        "memory 500 B already for its state, 1.25 times the 400 B allowed"
    ]
    assert not over(unknown, {"memory": 500.0})


@dataclasses.dataclass(frozen=True)
class Fields:
    size: Literal["small", "base"] = "small"
    rank: int = 8
    rate: float | None = None
    frozen: bool = False
    name: str = "a"
    shape: tuple[int, ...] = ()
    seed: int = 0


def test_candidates_are_read_by_the_types_of_the_fields():
    texts = ["size=base,small", "rank=4", "rate=None,1e-3", "frozen=True,False", "name=x, y"]
    assert choice.read_candidates(Fields, texts) == {
        "size": ("base", "small"), "rank": (4,), "rate": (None, 1e-3), "frozen": (True, False),
        "name": ("x", "y"),
    }  # fmt: skip
    for text, message in [
        ("size=huge", "'huge' is no value of the field's type, one of small, base"),
        ("rate=fast", "'fast' is no value of the field's type, float or None"),
        ("rank=4.5", "'4.5' is no value of the field's type, int"),
        ("shape=1", "'1' is no value"),
        ("depth=2", "no field 'depth'; write FIELD=VALUE,VALUE with one of size, rank"),
        ("size", "no field 'size'|write FIELD=VALUE"),
        ("seed=1,2", "give --seeds N instead"),
        ("size=small,small", "a value stands there twice"),
        ("rank=", "'nothing'|nothing"),
    ]:
        with pytest.raises(InputError, match=message):
            choice.read_candidates(Fields, [text])
    with pytest.raises(InputError, match="size is given twice"):
        choice.read_candidates(Fields, ["size=small", "size=base"])
    with pytest.raises(InputError, match="--candidate size=small,base"):
        choice.read_candidates(Fields, [])


def test_no_two_candidates_share_a_folder():
    names = [choice.named({"kind": kind}) for kind in ("a/b", "a_b", "a%2Fb")]
    assert len(set(names)) == 3
    assert not any("/" in name for name in names)


@pytest.mark.parametrize(
    "text",
    ["speed=1", "latency=20", "memory=2GiB", "parameters=0", "parameters=-1M", "latency=nan", "x"],
)
def test_a_budget_that_is_none_is_refused(text):
    with pytest.raises(InputError, match="latency=20ms"):
        choice.read_budget([text])


# The perceptron of grid.py, whose test part may not be looked at.
CONFIG = """
import dataclasses
import importlib.util
import sys

import jcl

specification = importlib.util.spec_from_file_location("grid_config", {path!r})
grid = importlib.util.module_from_spec(specification)
sys.modules["grid_config"] = grid
specification.loader.exec_module(grid)
Config = grid.Config


class Forbidden:
    def __len__(self):
        return 16

    def __getitem__(self, index):
        raise AssertionError("a test example was looked at")

    take = arrays = __getitem__


def build(config):
    experiment = grid.build(config)
    tasks = [task._replace(test=Forbidden()) for task in experiment.stream.tasks]
    return dataclasses.replace(experiment, stream=jcl.data.Stream("points", tasks))
"""
FLAGS = ["--candidate", "width=4,400", "--candidate", "method=naive,ewc", "--steps", "5"]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "points.py"
    path.write_text(CONFIG.format(path=str(HERE / "configs" / "grid.py")))
    return path


@pytest.fixture(scope="module")
def one_device():
    devices = jax.devices()[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *_: devices)
        yield


@pytest.fixture(scope="module")
def chosen(config, one_device, tmp_path_factory):
    """Two candidates of four within the budget; the first call is stopped before the second."""
    place = tmp_path_factory.mktemp("select") / "out"
    command = ["select", str(config), *FLAGS, "--out", str(place), "--budget", "parameters=1k"]
    runs = []

    def run(*arguments, **options):
        if len(runs) == 1:
            runs.append("stopped")
            raise Stopped("stopped by SIGTERM at stage 0, step 1; the same command goes on")
        runs.append(options["out"].name)
        return select_run(*arguments, **options)

    select_run = select.run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(select, "run", run)
        assert main(command) == os.EX_TEMPFAIL
        assert main(command) == 0
    assert runs == ["width=4,method=naive", "stopped", "width=4,method=ewc"]
    return place, command


def read(place):
    return json.loads((place / "select.json").read_text())


def test_a_selection(chosen, config):
    place, _ = chosen
    found = read(place)
    naive, ewc, *large = found["candidates"]
    assert [each["parameters"] for each in found["candidates"]] == [28, 28, 2800, 2800]
    assert naive["state"] == 4 * (3 * 28 + 1)  # params, two moments and their counter
    assert naive["trained"] == 28
    assert ewc["state"] > naive["state"] < naive["memory"] < ewc["memory"]
    for each in (naive, ewc):
        finished = report.read(place / each["run"])
        assert finished["seeds"] == [0]
        assert each["measured"] == finished["metrics"]["average_accuracy"]["mean"]
        assert 0 < each["latency"] < each["step"] * 100
        assert finished["matrix"][0][2][0] * 8 == round(finished["matrix"][0][2][0] * 8)  # of 8
    for each in large:
        assert each["latency"] is each["memory"] is each["measured"] is each["run"] is None
        assert each["reason"] == (
            "over the budget: parameters 2.80 k, 2.80 times the 1.00 k allowed; not trained"
        )
    best = max((naive, ewc), key=lambda each: (each["measured"], -each["latency"]))
    assert found["recommended"] == best["name"]
    assert best["reason"].startswith("the best measure within the budget")
    assert {path.name for path in (place / "candidates").iterdir()} == {naive["name"], ewc["name"]}
    text = (place / "select.md").read_text()
    assert found["command"] in text
    assert all(each["reason"] in text for each in found["candidates"])
    assert (place / "pareto.png").read_bytes().startswith(b"\x89PNG")
    module = load_config(config)
    assert select.command(config, module.Config(width=4, device_data=True)) == (
        f"jcl run {config} --width 4 --device-data"
    )
    assert select.command(config, Fields(shape=(8, 8))) == f"jcl run {config} --shape 8 8"


def test_nothing_finished_is_run_or_measured_again(chosen, monkeypatch, capsys):
    place, command = chosen
    before = read(place)

    def none(*_, **__):
        raise AssertionError("it is finished")

    monkeypatch.setattr(select, "run", none)
    monkeypatch.setattr(select, "measure", none)
    assert main(command) == 0
    assert read(place) == before
    # Another budget is another recommendation, of what was measured.
    assert main([*command[:-1], "parameters=20"]) == 0
    assert "No candidate is within the budget" in capsys.readouterr().out
    strict = read(place)
    assert strict["recommended"] is strict["command"] is None
    assert [each["measured"] for each in strict["candidates"]] == [
        each["measured"] for each in before["candidates"]
    ]
    assert main(command) == 0
    assert read(place) == before
    for flags, message in [
        (["--limit-steps", "3"], "limit_steps was None and is now 3"),
        (["--rate", "0.5"], "config.rate was 0.1 and is now 0.5"),
        (["--validation", "0.3"], "validation was 0.2 and is now 0.3"),
    ]:
        assert main([*command, *flags]) == 1
        assert message in capsys.readouterr().err
    (place / "select.json").write_text("{}")
    assert main(command) == 1
    assert "is not of a selection" in capsys.readouterr().err


def fake(monkeypatch, outcomes):
    """Measures and runs that take no time; an outcome is an average accuracy or an error."""

    def measure(each, experiment, budget):
        each.memory, each.trained, each.latency, each.step = 2 * each.state, 1, 1e-3, 1e-2

    def run(build, config, *, out, **_):
        outcome = outcomes[out.name]
        if isinstance(outcome, Exception):
            raise outcome
        steps.append((build(config).steps, build(config).epochs))
        return {"metrics": {"average_accuracy": {"mean": outcome, "ci95": None}}}, out

    steps = []
    monkeypatch.setattr(select, "measure", measure)
    monkeypatch.setattr(select, "run", run)
    return steps


def test_a_candidate_that_diverges_is_left_and_the_others_go_on(
    config, one_device, monkeypatch, tmp_path
):
    outcomes = {"rate=0.1": 0.5, "rate=1000000000.0": Diverged("the loss is no longer finite")}
    steps = fake(monkeypatch, outcomes)
    command = ["select", str(config), "--candidate", "rate=1e9,0.1", "--limit-steps", "3"]
    assert main([*command, "--out", str(tmp_path)]) == 0
    found = read(tmp_path)
    assert [each["failed"] for each in found["candidates"]] == [
        "the loss is no longer finite",
        None,
    ]
    assert found["recommended"] == "rate=0.1"
    assert steps == [([3, 3], None)]
    outcomes["rate=1000000000.0"] = AssertionError("it has failed already")
    assert main([*command, "--out", str(tmp_path)]) == 0


def test_a_candidate_for_which_there_is_no_memory_has_failed(config, one_device, monkeypatch):
    def full(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    module = load_config(config)
    experiment = select._judged(module.build, 0.2, None, seed=0)(module.Config(width=4))
    each = costs.counted(experiment, {"width": 4})
    monkeypatch.setattr(costs, "_take_steps", full)
    costs.measure(each, experiment, {})
    assert "ran out of memory" in each.failed
    assert each.memory > each.state
    assert recommend([each], {}, higher_is_better=True)[1][0].startswith("failed: A device")


def test_what_is_refused_before_anything_is_written(config, one_device, tmp_path, capsys):
    for flags, message in [
        ([], "--candidate size=small,base"),
        (["--candidate", "width=4", "--budget", "speed=3"], "latency=20ms"),
        (["--candidate", "width=4", "--validation", "1"], "--validation=1.0"),
        (["--candidate", "warmup=0,1"], "candidate warmup=1.0: cosine(warmup=1.0): a number"),
        (["--candidate", "width=4", "--limit-steps", "0"], "--limit-steps=0"),
    ]:
        assert main(["select", str(config), *flags, "--out", str(tmp_path / "out")]) == 1
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
    taken = tmp_path / "taken.py"
    taken.write_text(
        "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Config:\n"
        "    budget: int = 1\ndef build(config): pass\n"
    )
    assert main(["select", str(taken), "--candidate", "budget=1"]) == 1
    assert "'budget', which is an option of `jcl select`" in capsys.readouterr().err


def test_the_help_and_its_example(monkeypatch, tmp_path, capsys, one_device):
    monkeypatch.chdir(HERE.parent)
    assert main(["select", "--help"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "configs/" in line)
    fake(monkeypatch, {"adaptation=full": 0.6, "adaptation=head": 0.4})
    assert main([*shlex.split(line)[1:], "--out", str(tmp_path)]) == 0
    full, head = read(tmp_path)["candidates"]
    assert full["parameters"] == head["parameters"]
    assert full["state"] > head["state"]
    assert read(tmp_path)["recommended"] == "adaptation=full"
    with pytest.raises(SystemExit):
        main(["select", "configs/select.py", "--help"])
    shown = capsys.readouterr().out
    assert "--candidate" in shown
    assert "--adaptation" in shown


def test_the_candidates_of_the_config(monkeypatch, tmp_path, one_device):
    """Counted on shapes, and all over the budget, so that none is compiled."""
    monkeypatch.chdir(HERE.parent)
    axes = ["attention=exact,performer", "adaptation=full,lora,head"]
    flags = [word for axis in axes for word in ("--candidate", axis)]
    command = ["select", "configs/select.py", *flags, "--budget", "parameters=1", "memory=2GB"]
    assert main([*command, "--budget", "latency=1s", "--out", str(tmp_path)]) == 0
    assert read(tmp_path)["budget"] == {"parameters": 1.0, "memory": 2e9, "latency": 1.0}
    found = {tuple(each["setting"].values()): each for each in read(tmp_path)["candidates"]}
    assert len(found) == 6
    of = {key: (each["parameters"], each["state"]) for key, each in found.items()}
    full, lora, head = (of["exact", kind] for kind in ("full", "lora", "head"))
    assert lora[0] > full[0] == head[0]
    assert full[1] > lora[1] > head[1]
    assert of["performer", "full"] == full  # its features are no params
    assert not list(tmp_path.glob("candidates"))
    assert {*os.listdir(tmp_path)} == {"select.json", "select.md", "pareto.png"}
