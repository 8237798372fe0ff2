"""jcl search: no test set takes part, and a search ends as if it had never been stopped."""

import dataclasses
import json
import re
import shlex
from pathlib import Path
from typing import Annotated, Literal

import jax
import numpy as np
import pytest

import jcl
from jcl import InputError, space
from jcl.__main__ import load_config, main
from jcl.errors import Stopped

pytest.importorskip("optuna", reason="the extra `search` is not installed")

from jcl.search import report as study_report
from jcl.search import trials as searching
from jcl.search.command import DESCRIPTION
from jcl.search.study import Study

HERE = Path(__file__).parent
CONFIG = HERE / "configs" / "search.py"
pytestmark = pytest.mark.xdist_group("search")  # its fixtures are whole searches
# The last of the rates is too much for float32.
TOGETHER = ["rate=0.05,0.5,1e38", "strength=1e-2..1:log"]


@pytest.fixture(scope="module", autouse=True)
def one_device():
    devices = jax.devices()[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *_: devices)
        yield


@pytest.fixture(scope="module")
def module():
    return load_config(CONFIG)


def searched(module, out, texts=TOGETHER, config=None, **options):
    options = {"trials": 8, "population": 4, **options}
    config = config or module.Config()
    spaces = space.read(module.Config, texts)
    return searching.search(module.build, config, spaces, config_file=CONFIG, out=out, **options)


@pytest.fixture(scope="module")
def made():
    """The programs of `found`, by how many replicas they have."""
    return []


@pytest.fixture(scope="module")
def found(module, made, tmp_path_factory):
    """Two populations of four."""

    class Counted(searching.Program):
        def __init__(self, replicas, *arguments, **options):
            made.append(len(replicas))
            super().__init__(replicas, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(searching, "Program", Counted)
        return searched(module, tmp_path_factory.mktemp("search"))


def test_what_a_search_leaves(found):
    report, place = found
    assert json.loads((place / "study.json").read_text()) == report
    trials = report["trials"]
    assert [trial["number"] for trial in trials] == list(range(8))
    assert [trial["run"] for trial in trials] == ["0000"] * 4 + ["0004"] * 4
    assert [trial["replica"] for trial in trials] == [0, 1, 2, 3] * 2
    for label in ("0000", "0004"):
        of_run = json.loads((place / label / "report.json").read_text())
        own = [trial for trial in trials if trial["run"] == label]
        assert of_run["settings"] == [trial["params"] for trial in own]
        for trial, rows in zip(own, of_run["matrix"], strict=True):
            assert 1e-2 <= trial["params"]["strength"] <= 1
            if trial["params"]["rate"] > 1:
                assert trial["state"] == "diverged"
                assert "task left, step" in trial["diverged"]
            elif trial["state"] == "finished":
                assert trial["value"] == pytest.approx(np.mean(rows[-1]))
            else:
                assert trial["state"] == "pruned"
            for stage, value in enumerate(trial["stages"], 1):
                assert value == pytest.approx(np.mean(rows[stage][:stage]))
        assert not (place / label / "checkpoints").exists()
    values = {trial["number"]: trial["value"] for trial in trials if trial["value"] is not None}
    assert values[report["best"]] == max(values.values())
    assert {"finished", "diverged"} <= {trial["state"] for trial in trials}
    assert (place / "study.png").stat().st_size > 10_000
    page = (place / "study.md").read_text()
    assert "Protocol offline: chosen by validation over the whole stream, all 3 tasks" in page
    assert report["command"] in page
    assert page.count("| diverged |") == sum(trial["state"] == "diverged" for trial in trials)


def test_the_second_population_compiles_nothing(found, made):
    _, place = found
    assert made == [4, 4]  # the check of the shapes, and one for both populations
    for label in ("0000", "0004"):  # the counts are of the program, which has served both
        of_run = json.loads((place / label / "report.json").read_text())
        assert of_run["traces"] == {"step": 1, "consolidate": 1, "evaluate": 1}
    first, second = (
        json.loads((place / label / "report.json").read_text())["matrix"]
        for label in ("0000", "0004")
    )
    assert first != second  # and yet it has trained other settings


def test_a_trial_of_a_population_equals_a_run_of_its_own(found, module, tmp_path):
    report, place = found
    trial = next(each for each in report["trials"] if each["run"] == "0004" and each["value"])
    alone, _ = jcl.run.run(
        lambda config: searching._validated(module.build, None, 0, config),
        dataclasses.replace(module.Config(), **trial["params"]),
        config_file=CONFIG, out=tmp_path / "alone",
    )  # fmt: skip
    matrix = json.loads((place / "0004" / "report.json").read_text())["matrix"]
    np.testing.assert_allclose(alone["matrix"][0], matrix[trial["replica"]], atol=1e-6)


def test_no_test_set_takes_part(found, module, tmp_path, monkeypatch):
    """Other tests, which cannot be read, make the same study to the bit; so does another process's
    random state, since nothing else than the seed draws."""
    monkeypatch.setattr(module, "TESTS", "others")
    np.random.seed(3)
    with pytest.raises(AssertionError, match="a test example was asked for"):
        module.stream().tasks[0].test[0]
    _, place = searched(module, tmp_path)
    assert (place / "study.json").read_bytes() == (found[1] / "study.json").read_bytes()


def test_killed_it_goes_on_as_if_nothing_had_happened(found, module, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    watch, restore, starts = searching._Trainer._watch, jcl.checkpoint.restore, []

    def killed(self, group, position):
        watch(self, group, position)
        if group.label == "0004" and position.stage == 1:
            raise Killed

    def restored(*arguments):
        found = restore(*arguments)
        starts.append(found is not None)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(searching._Trainer, "_watch", killed)
        with pytest.raises(Killed):
            searched(module, tmp_path)
    place = tmp_path / "offline"
    written = (place / "0000" / "report.json").stat().st_mtime_ns
    assert len(json.loads((place / "study.json").read_text())["trials"]) == 4
    monkeypatch.setattr(jcl.checkpoint, "restore", restored)
    searched(module, tmp_path)
    assert starts == [True]  # one run alone, from its checkpoint
    assert (place / "0000" / "report.json").stat().st_mtime_ns == written
    assert (place / "study.json").read_bytes() == (found[1] / "study.json").read_bytes()


def test_one_by_one_with_fields_that_decide_the_structure(module, tmp_path):
    report, place = searched(
        module, tmp_path, ["method", "width"], population=1, trials=3, first_tasks=2, pruner="none"
    )
    assert report["protocol"] == {"name": "first_tasks", "tasks": 2}
    assert place.name == "first_2_tasks"
    assert [trial["run"] for trial in report["trials"]] == ["0000", "0001", "0002"]
    for trial in report["trials"]:
        if trial["params"] == {"method": "l2", "width": 5}:
            assert (trial["state"], trial["reason"]) == ("failed", "l2 is not for a width of 5.")
        else:
            assert trial["state"] == "finished"
            own = jcl.report.read(place / trial["run"])
            assert own["tasks"] == ["left", "middle"]
            assert own["config"]["width"] == trial["params"]["width"]
    command = shlex.split(report["command"])
    best = report["trials"][report["best"]]["params"]
    assert command[:3] == ["jcl", "run", str(CONFIG)]
    assert command[3:] == ["--method", best["method"], "--width", str(best["width"])]
    # It is done: the same command trains nothing.
    before = (place / "study.json").read_bytes()
    again, _ = searched(
        module, tmp_path, ["method", "width"], population=1, trials=3, first_tasks=2, pruner="none"
    )
    assert again == report
    assert (place / "study.json").read_bytes() == before


def test_a_trial_whose_code_raises_has_failed_and_the_search_goes_on(module, tmp_path, monkeypatch):
    outcomes = [ValueError("no l2 today"), 0.5, TypeError("nor naive"), Stopped("by SIGTERM"), 0.6]

    def run(*_, **__):
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return {"metrics": {"average_accuracy": {"values": [outcome]}}}, None

    def search(trials):
        return searched(module, tmp_path, ["method"], population=1, trials=trials)

    monkeypatch.setattr(searching, "run", run)
    with pytest.raises(InputError, match="ValueError: no l2 today"):  # nothing has finished
        search(3)
    report, _ = search(3)
    failed, finished, other = report["trials"]
    assert (failed["state"], failed["reason"]) == ("failed", "ValueError: no l2 today")
    assert (finished["state"], finished["value"]) == ("finished", 0.5)
    assert (other["state"], other["reason"]) == ("failed", "TypeError: nor naive")
    with pytest.raises(Stopped):
        search(4)
    report, _ = search(4)  # what was stopped has not failed
    assert (report["trials"][3]["value"], report["best"], outcomes) == (0.6, 3, [])


def test_a_study_is_not_gone_on_with_otherwise(found, module):
    place = found[1]
    for options, message in [
        ({"pruner": "none"}, "pruner was 'median' and is now 'none'"),
        ({"config": module.Config(method="naive")}, "config was"),
        ({"texts": ["rate=0.1,0.2"]}, "spaces was"),
    ]:
        with pytest.raises(InputError, match=re.escape(message)):
            searched(module, place.parent, **options)


def test_what_cannot_be_searched_is_refused_before_anything_is_written(module, tmp_path):
    for texts, options, message in [
        (["share=0.5..1", "rate"], {}, "Or search one by one: --population 1"),
        (["width"], {}, "a population differs in numbers alone, and width decide"),
        (["rate"], {"first_tasks": 4}, "has 3 tasks"),
        (["rate"], {"pruner": "best"}, "one of"),
        (["rate"], {"trials": 0}, "at least 1"),
        (["rate=2..3"], {"population": 1, "config": module.Config(width=5)}, "not for a width"),
    ]:
        with pytest.raises(InputError, match=re.escape(message)):
            searched(module, tmp_path / "out", texts, **options)
    assert not (tmp_path / "out").exists()


# The study alone.


def studied(folder, storage=None, **options):
    folder.mkdir(exist_ok=True)
    options = {"size": 2, "pruner": "median", "seed": 0, **options}
    return Study(
        "some", storage or str(folder / "journal.log"), folder,
        {"rate": space.Space(1e-4, 1.0, log=True), "method": space.choices("a", "b")},
        together=["rate"], higher_is_better=True, **options,
    )  # fmt: skip


def take(study, trials=8, value=lambda params: -abs(np.log10(params["rate"]) + 2)):
    """Trains one group; what it tried."""
    with study.next(trials) as group:
        if group is None:
            return None
        for number, params in zip(group.numbers, group.params, strict=True):
            if number in group.going:
                study.tell(group, number, "finished", value(params))
        return group


def test_a_study_goes_on_where_it_stood(tmp_path):
    whole = studied(tmp_path / "whole")
    groups = []
    while group := take(whole, trials=32):
        groups.append(group.params)
        assert len({params["method"] for params in group.params}) == 1  # they share a program
    assert len(groups) == 16
    parts = []
    for _ in range(8):  # opened anew for every group
        parts.append(take(studied(tmp_path / "parts"), trials=16).params)
    assert parts == groups[:8]
    assert take(studied(tmp_path / "parts"), trials=16) is None
    away = [abs(np.log10(params["rate"]) + 2) for group in groups for params in group]
    assert np.median(away[-12:]) < 0.7  # it has learned: by chance it would be 1


def test_a_database_gives_the_same_study_as_a_journal(tmp_path):
    expected = [take(studied(tmp_path / "journal")).params for _ in range(2)]
    database = f"sqlite:///{tmp_path}/study.db"
    assert [take(studied(tmp_path / "database", database)).params for _ in range(2)] == expected


def test_nobody_trains_what_another_does(tmp_path):
    one, other = studied(tmp_path), studied(tmp_path)
    with one.next(4) as first, other.next(4) as second, one.next(4) as third:
        assert (first.numbers, second.numbers, third) == ([0, 1], [2, 3], None)
    with other.next(4) as left:  # whose trainer is gone, is taken up
        assert left.numbers == [0, 1]
        assert left.params == first.params
    elsewhere = studied(tmp_path / "elsewhere", str(tmp_path / "journal.log"))
    with elsewhere.next(4) as none:  # its run folders are not here
        assert none is None


def test_a_group_that_is_begun_in_part_is_made_whole(tmp_path, monkeypatch):
    expected = take(studied(tmp_path / "whole")).params
    study = studied(tmp_path / "part")
    add, added = study._study.add_trial, []

    def once(trial):
        if added:
            raise KeyboardInterrupt
        added.append(add(trial))

    monkeypatch.setattr(study._study, "add_trial", once)
    with pytest.raises(KeyboardInterrupt):
        take(study)
    assert take(studied(tmp_path / "part")).params == expected


@pytest.mark.parametrize(("pruner", "given_up"), [("median", 1), ("halving", 1), ("none", 0)])
def test_pruners_give_up_what_is_worse(pruner, given_up, tmp_path):
    study = studied(tmp_path, pruner=pruner, size=1)
    for value in (0.5, 0.6, 0.7, 0.8, 0.9):
        with study.next(9) as group:
            (number,) = group.numbers
            study.report(group, number, 1, value)
            study.report(group, number, 1, 0.0)  # again changes nothing
            assert not study.hopeless(group, number)
            study.tell(group, number, "finished", value)
    with study.next(9) as group:
        (number,) = group.numbers
        study.report(group, number, 1, 0.1)
        assert study.hopeless(group, number) == bool(given_up)
        study.tell(group, number, "pruned")
    assert study.trials[5].state.name == "PRUNED"
    assert study.trials[0].intermediate_values == {1: 0.5}


def test_the_median_is_of_the_last_stage_alone(tmp_path):
    """An average over the tasks seen falls from stage to stage: the first protects no trial."""
    study = studied(tmp_path, size=1)
    for trial in range(7):
        with study.next(9) as group:
            for stage, value in enumerate((0.99, 0.95, 0.93), 1):
                study.report(group, trial, stage, value + trial / 1000)
            study.tell(group, trial, "finished", 0.93)
    with study.next(9) as group:
        hopeless = []
        for stage, value in enumerate((0.999, 0.30, 0.94), 1):
            study.report(group, 7, stage, value)
            hopeless.append(study.hopeless(group, 7))
        study.tell(group, 7, "pruned")
    assert hopeless == [False, True, False]
    assert study.trials[7].intermediate_values == {1: 0.999, 2: 0.30, 3: 0.94}


def test_what_diverged_counts_as_the_worst(tmp_path):
    study = studied(tmp_path, size=1)
    with study.next(1) as group:
        study.report(group, 0, 1, 0.9)
        study.tell(group, 0, "diverged", diverged="task a, step 3")
    (trial,) = study.trials
    seen = study._seen(trial)
    assert trial.state.name == "FAIL"
    assert (seen.state.name, seen.intermediate_values, seen.params) == ("PRUNED", {}, trial.params)


def test_a_storage_that_cannot_be_opened(tmp_path):
    with pytest.raises(InputError, match="--storage nosuch://study cannot be opened"):
        studied(tmp_path, "nosuch://study")


# Spaces.


@dataclasses.dataclass(frozen=True)
class Fields:
    rate: Annotated[float | None, space.log_uniform(1e-4, 1e-2)] = None
    warmup: float = 0.1
    layers: Annotated[int, space.uniform(2, 6)] = 2
    method: Literal["naive", "replay"] = "naive"
    fast: bool = False
    name: str = "a"
    shape: tuple[int, ...] = (8,)
    seed: int = 0


def test_spaces_that_are_read():
    assert space.read(Fields) == {
        "rate": space.Space(1e-4, 1e-2, log=True),
        "layers": space.Space(2, 6),
    }
    texts = ["warmup=0..1", "layers=4..64:log", "method", "fast", "name=x,y", "rate=1e-3,0.1"]
    found = space.read(Fields, texts)
    assert found == {
        "warmup": space.Space(0.0, 1.0),
        "layers": space.Space(4, 64, log=True),
        "method": space.choices("naive", "replay"),
        "fast": space.choices(True, False),
        "name": space.choices("x", "y"),
        "rate": space.choices(1e-3, 0.1),
    }
    paths = space.read(Fields, ["name=../a,b:log"])["name"]
    assert paths == space.choices("../a", "b:log")
    numbers = {field for field, each in found.items() if each.number}
    assert numbers == {"warmup", "rate"}
    assert type(found["warmup"].low) is float
    assert type(found["layers"].high) is int


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rates=0..1", "the config has no field 'rates'"),
        ("seed=0..3", "seeds are no setting"),
        ("warmup=1..0", "the lower one first"),
        ("warmup=0..1:log", "a logarithm is of numbers above 0"),
        ("warmup=0..1:lin", "behind a range may stand :log"),
        ("warmup=0..fast", "'fast' is no number"),
        ("warmup=0..1e39", "two numbers of 32 bits"),
        ("layers=1..2.5", "'2.5' is no whole number"),
        ("method=0..1", "it is no field of numbers"),
        ("method=naive,ewc", "'ewc' is none of the field's values, naive, replay"),
        ("method=naive", "at least two values"),
        ("method=naive,naive", "at least two values"),
        ("warmup", "at least two values"),
        ("name", "at least two values"),
        ("shape=8,16", "a number of 32 bits, a bool or a str can be searched"),
        ("warmup=1e-60..1e-50:log", "two numbers of 32 bits, from 1.18e-38"),
        ("warmup=1e-60,1e-50", "a number of 32 bits"),
        ("shape=8..16", "it is no field of numbers"),
    ],
)
def test_spaces_that_are_refused(text, message):
    with pytest.raises(InputError, match=re.escape(message)):
        space.read(Fields, [text])


def test_the_picture_of_names_that_look_like_a_range(tmp_path):
    trials = [
        {"number": number, "state": "finished", "value": 0.5, "params": {"name": name}}
        for number, name in enumerate(("../a", "b:log"))
    ]
    report = {"study": "some", "measure": "accuracy", "higher_is_better": True, "trials": trials}
    study_report.picture(tmp_path, {**report, "space": {"name": "../a,b:log"}})
    assert (tmp_path / "study.png").read_bytes().startswith(b"\x89PNG")


def test_a_field_is_searched_once_and_a_config_must_have_one():
    with pytest.raises(InputError, match="rate is given twice"):
        space.read(Fields, ["rate", "rate=0..1"])
    bare = dataclasses.make_dataclass("Bare", [("rate", float, 0.1)], frozen=True)
    with pytest.raises(InputError, match="there is nothing to search: give --space"):
        space.read(bare)


# What is held out.


def test_held_out_examples_are_of_the_training_part(module):
    stream = module.stream()
    made = jcl.data.held_out(stream, 0.2, seed=1)
    for old, new in zip(stream.tasks, made.tasks, strict=True):
        parts = [new.train.arrays()["inputs"], new.test.take(np.arange(8))["inputs"]]
        assert [len(part) for part in parts] == [32, 8]
        both = np.concatenate(parts)
        np.testing.assert_array_equal(
            both[np.lexsort(both.T)],
            (every := old.train.arrays()["inputs"])[np.lexsort(every.T)],
        )
    assert made.stages == tuple(task.train for task in made.tasks)
    hashes = [task.hash for task in made.tasks]
    assert hashes == [task.hash for task in jcl.data.held_out(stream, 0.2, seed=1).tasks]
    assert hashes != [task.hash for task in jcl.data.held_out(stream, 0.2, seed=2).tasks]
    for stages, lengths in ((jcl.data.joint, [96]), (jcl.data.cumulative, [32, 64, 96])):
        assert list(map(len, jcl.data.held_out(stages(stream), 0.2).stages)) == lengths
    with pytest.raises(InputError, match="made of more than the train parts of its tasks"):
        jcl.data.held_out(jcl.data.blurry(stream, 0.1), 0.2)
    with pytest.raises(InputError, match="too few to hold 0.01 of them out"):
        jcl.data.held_out(stream, 0.01)


def test_what_a_task_shares_comes_along():
    """The mask that says which labels count in the test is no example of it."""
    draw = np.random.default_rng(0)
    images = jcl.data.Images(
        draw.integers(0, 255, (40, 2, 2), np.uint8), np.arange(40, dtype=np.int32) % 4,
        draw.integers(0, 255, (8, 2, 2), np.uint8), np.arange(8, dtype=np.int32) % 4,
    )  # fmt: skip
    stream = jcl.data.split(images, "task", masked="test")
    made = jcl.data.held_out(stream, 0.2)
    for old, new in zip(stream.tasks, made.tasks, strict=True):
        assert (
            new.test[0].keys() == old.test[0].keys() == {"inputs", "targets", "task", "label_mask"}
        )
        batch = new.test.take(np.array([0, 2]))
        np.testing.assert_array_equal(batch["label_mask"], old.test.take([0, 1])["label_mask"])
        assert new.train[0].keys() == {"inputs", "targets"}


# The command.


def test_the_command(tmp_path, capsys, monkeypatch):
    flags = ["--space", "rate=1e-3..1e-1:log", "--trials", "1", "--out", str(tmp_path / "search")]
    assert main(["search", str(CONFIG), "--strength", "0.5", "--population", "1", *flags]) == 0
    told = capsys.readouterr().out
    report = json.loads((tmp_path / "search" / "offline" / "study.json").read_text())
    assert re.search(r"trial 0, rate \S+: finished accuracy 0\.\d{4}, the best so far", told)
    assert f"--strength 0.5 --rate {report['trials'][report['best']]['params']['rate']}" in told
    given = shlex.split(report["command"])[1:]
    assert main([*given, "--out", str(tmp_path / "run")]) == 0
    assert jcl.report.read(tmp_path / "run")["tasks"] == ["left", "middle", "right"]


def test_the_command_says_what_it_needs(capsys):
    assert main(["search"]) == 1
    assert "name a config file first" in capsys.readouterr().err
    assert main(["search", str(HERE / "configs" / "grid.py")]) == 1
    assert "there is nothing to search" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["search", "--help"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    for word in ("configs/quickstart.py", "--space", "first_tasks", "sqlite:///", "halving"):
        assert word in told


def test_a_config_with_lines_alone_is_refused(tmp_path, capsys):
    path, out = str(HERE / "configs" / "online.py"), ["--out", str(tmp_path / "out")]
    for command in (
        ["search", path, "--space", "learning_rate=1e-4..1e-2", "--trials", "1"],
        ["select", path, "--candidate", "learning_rate=1e-4,1e-2"],
    ):
        assert main([*command, *out]) == 1
        assert "has lines alone, which `jcl online` learns from" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_without_the_extra_it_is_named(monkeypatch, module, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(InputError, match=re.escape('pip install "jcl[search]"')):
        searched(module, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_example_of_the_help(tmp_path, capsys):
    (line,) = [line for line in DESCRIPTION.splitlines() if line.startswith("  jcl search ")]
    words = shlex.split(line)[1:]
    words[1] = str(HERE.parent / words[1])
    words[words.index("--trials") + 1] = "1"
    small = "--steps 2 --layers 1 --width 8 --heads 1 --length 16 --boundary-batches 1"
    assert main([*words, *small.split(), "--out", str(tmp_path)]) == 0
    assert "Protocol offline" in capsys.readouterr().out
    report = json.loads((tmp_path / "offline" / "study.json").read_text())
    assert (report["population"], report["higher_is_better"]) == (1, False)  # steps of matmuls
    assert 1e-4 <= report["trials"][0]["params"]["learning_rate"] <= 1e-2
    assert "--method replay" in report["command"]
