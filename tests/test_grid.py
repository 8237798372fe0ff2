"""Replicas of one program: settings with seeds, and how they share the devices."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from everything import ALL

import jcl
from jcl import InputError, checkpoint, folder, grid
from jcl.__main__ import load_config, main
from jcl.answer import learned_params, reopen
from jcl.program import Program
from jcl.run import _build
from jcl.sharding import Placement
from jcl.survivors import Survivors

pytestmark = [
    pytest.mark.xdist_group("grid"),  # its fixtures are whole runs
    pytest.mark.skipif(jax.device_count() != 8, reason="needs 8 devices: a CPU passes for them"),
]
HERE = Path(__file__).parent
CONFIG = HERE / "configs" / "grid.py"
GRID = ["--grid", "rate=0.01,0.1", "--grid", "strength=1,100", "--seeds", "2"]
SETTINGS = [{"rate": rate, "strength": own} for rate in (0.01, 0.1) for own in (1.0, 100.0)]


def command(out, *arguments):
    return main(["run", str(CONFIG), "--out", str(out), *map(str, arguments)])


def read(place):
    return json.loads((place / "report.json").read_text())


def leaves(place):
    """What the last checkpoint holds of params, strategy and key."""
    return {
        path: jax.random.key_data(leaf) if path == "key" else leaf
        for path, leaf in checkpoint.read(place / "checkpoints").items()
        if path.split("/")[0] in ("params", "strategy", "key")
    }


def assert_same(one, other, **tolerance):
    assert one.keys() == other.keys()
    for path, leaf in one.items():
        np.testing.assert_allclose(leaf, other[path], err_msg=path, **tolerance)


BITWISE = {"rtol": 0, "atol": 0}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two rates, two strengths and two seeds, on a device each."""
    place = tmp_path_factory.mktemp("runs") / "grid"
    assert command(place, *GRID) == 0
    return place


@pytest.fixture
def one_device(monkeypatch):
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: devices)


@pytest.mark.parametrize("number", range(8) if ALL else (5,))
def test_every_replica_equals_a_run_of_its_own(finished, number, tmp_path, one_device):
    setting, seed = SETTINGS[number // 2], number % 2
    flags = [word for field, value in setting.items() for word in (f"--{field}", value)]
    assert command(tmp_path / "alone", *flags, "--seed", seed) == 0
    alone, together = read(tmp_path / "alone"), read(finished)
    assert together["settings"][number] == setting
    assert together["seeds"][number] == seed
    assert together["matrix"][number] == alone["matrix"][0]
    own = {path: leaf[number] for path, leaf in leaves(finished).items()}
    assert_same(own, leaves(tmp_path / "alone"), **BITWISE)


def test_it_is_one_program(finished):
    assert read(finished)["traces"] == {"step": 1, "consolidate": 1, "evaluate": 1}
    ends = np.asarray(leaves(finished)["params/head"])  # by replica
    assert len({end.tobytes() for end in ends}) == 8


@pytest.mark.parametrize(
    ("flags", "tolerance"),
    [
        (["--replicas", "map"], BITWISE),
        (["--replicas", "vmap", "--device-data"], {"rtol": 1e-4, "atol": 1e-5}),
    ],
)
def test_the_replicas_of_one_device(finished, flags, tolerance, tmp_path, one_device, capsys):
    assert command(tmp_path / "run", *GRID, *flags) == 0
    assert "going on" not in capsys.readouterr().out
    assert_same(leaves(tmp_path / "run"), leaves(finished), **tolerance)
    report = read(tmp_path / "run")
    assert report["traces"] == {"step": 1, "consolidate": 1, "evaluate": 1}
    description = folder.read_config(tmp_path / "run" / "config.json")
    assert description["replicas"] == flags[1]


def test_replicas_are_dealt_as_asked():
    assert Placement(8, seeds=16).dealt
    assert Placement(8, seeds=16, replicas="pmap").dealt
    assert not Placement(8, seeds=16, replicas="vmap").dealt
    assert not Placement(8, seeds=16, replicas="map").dealt
    for seeds, message in [
        (12, "12 replicas are no multiple of the 8 devices: make them 16 .* process see 6 "),
        (1, "1 replica is no multiple of the 8 devices: make them 8 .* --cpu-devices 1"),
    ]:
        with pytest.raises(InputError, match=message):
            Placement(8, seeds=seeds, replicas="pmap")
    with pytest.raises(InputError, match="leave one of them out"):
        Placement(8, seeds=8, mesh="data=8", replicas="pmap")
    with pytest.raises(InputError, match="one of"):
        Placement(8, seeds=8, replicas="pamp")


def test_replicas_that_are_no_multiple_of_the_devices_are_refused(tmp_path, capsys):
    assert command(tmp_path / "run", "--seeds", 6, "--replicas", "pmap") == 1
    assert "--replicas pmap: 6 replicas are no multiple" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_from_an_earlier_checkpoint_it_ends_with_the_same_bits(finished, tmp_path, capsys):
    place = Path(shutil.copytree(finished, tmp_path / "run"))
    (place / "report.json").unlink()
    shutil.rmtree(max((place / "checkpoints").iterdir()))  # its last task is still to come
    assert command(place, *GRID) == 0
    assert "going on from stage 1" in capsys.readouterr().out
    assert read(place)["matrix"] == read(finished)["matrix"]
    assert_same(leaves(place), leaves(finished), **BITWISE)


@pytest.mark.skipif(not ALL, reason="JCL_ALL_TESTS=1 kills processes, each with an own start")
def test_killed_it_ends_with_the_same_bits(finished, tmp_path):
    arguments = [CONFIG, "--out", tmp_path / "run", *GRID, "--save-minutes", "0.0001"]
    for point, count in [("task", 3), ("save", 2), ("task", 5)]:
        killed = subprocess.run(
            [sys.executable, HERE / "killed.py", point, str(count), *map(str, arguments)],
            capture_output=True, text=True, env=dict(os.environ),
        )  # fmt: skip
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert command(tmp_path / "run", *GRID) == 0
    assert read(tmp_path / "run")["matrix"] == read(finished)["matrix"]
    assert_same(leaves(tmp_path / "run"), leaves(finished), **BITWISE)


@pytest.mark.filterwarnings("always:.*has diverged")
def test_a_setting_that_diverges_is_left_and_the_others_go_on(tmp_path, one_device, capsys):
    flags = ["--grid", "rate=0.1,1e38", "--keep", "9"]
    place = tmp_path / "grid"
    assert command(place, *flags) == 0
    told, report = capsys.readouterr(), read(place)
    said = re.search(
        r"warning: \(rate 1e\+38, seed 0\) has diverged: .* at task left, step (\d+)\. The other",
        told.err,
    )
    assert said, told.err
    gone = {"task": "left", "step": int(said[1])}
    assert report["diverged"] == [None, gone]
    assert f"rate 1e+38, seed 0 diverged at task left, step {said[1]}." in told.out
    assert report["matrix"][1][1:] == [[None, None]] * 2
    assert None not in report["matrix"][1][0]  # before training
    assert report["best"] == 0
    for name, metric in report["by_setting"][1]["metrics"].items():
        assert metric == {"mean": None, "ci95": None, "values": [None]}, name
    assert jcl.report.read(place) == report  # strictly

    # The other is as if it had been alone.
    assert command(tmp_path / "alone", "--rate", 0.1) == 0
    assert report["matrix"][0] == read(tmp_path / "alone")["matrix"][0]
    own = {path: leaf[0] for path, leaf in leaves(place).items()}
    assert_same(own, leaves(tmp_path / "alone"), **BITWISE)

    # From the first checkpoint, saving at every step, to the same bits.
    again = Path(shutil.copytree(place, tmp_path / "again"))
    (again / "report.json").unlink()
    for path in (again / "checkpoints").glob("00000[1-9]"):
        shutil.rmtree(path)
    assert command(again, *flags, "--save-minutes", 0) == 0
    assert "going on from stage 0, step 0" in capsys.readouterr().out
    assert len(list((again / "checkpoints").iterdir())) == 9
    lines = (again / "metrics.jsonl").read_text()
    assert lines == (place / "metrics.jsonl").read_text()
    found = [json.loads(line) for line in lines.splitlines() if '"diverged"' in line]
    assert found == [
        {"kind": "diverged", "replica": 1, "setting": {"rate": 1e38}, "seed": 0, **gone}
    ]
    assert "NaN" not in lines
    assert "Infinity" not in lines
    assert_same(leaves(again), leaves(place), **BITWISE)
    assert read(again)["matrix"] == report["matrix"]
    for path in (again / "checkpoints").glob("0000*"):  # the mark comes back from a checkpoint
        assert "diverged" in (path / "progress.json").read_text()


@pytest.mark.filterwarnings("always:.*has diverged")
def test_where_all_settings_diverge_it_stops(tmp_path, one_device, capsys):
    flags = ["--grid", "rate=1e38,2e38"]
    assert command(tmp_path / "grid", *flags) == 1
    assert re.search(
        r"is \S+ for .*\(rate 2e\+38, seed 0\) at task left, step", capsys.readouterr().err
    )
    assert not (tmp_path / "grid" / "report.json").exists()


def survivors(*settings):
    told, replicas = [], []
    for number, setting in enumerate(settings):
        replicas.append(grid.Replica(SimpleNamespace(seed=number), setting))
    diverged = [None] * len(replicas)
    return Survivors(replicas, diverged, lambda *given: told.append(given)), diverged, told


def test_a_seed_that_diverges_is_named():
    watch, _, told = survivors({}, {}, {})
    with pytest.raises(InputError, match=r"loss is nan for \(seed 1\) at task left, step 2: lower"):
        watch.check("loss", [1.0, np.nan, 1.0], "left", 2)
    assert told == []
    with pytest.raises(InputError, match="loss is inf at task left, step 2: lower"):
        survivors({})[0].check("loss", np.inf, "left", 2)


def test_a_grid_goes_on_until_the_last_has_diverged():
    watch, diverged, told = survivors({"rate": 1.0}, {"rate": 2.0}, {"rate": 3.0})
    watch.check("loss", [1.0, np.nan, 1.0], "left", 2)
    watch.check("loss", [1.0, 1.0, 1.0], "left", 3)
    assert diverged == [None, {"task": "left", "step": 2}, None]
    assert [number for number, _ in told] == [1]
    assert watch.numbers([1.0, 2.0, np.inf]) == [1.0, None, None]
    assert watch.mean([1.0, np.nan, 3.0]) == 2.0
    with pytest.raises(InputError, match=r"\(rate 1.0, seed 0\) and \(rate 3.0, seed 2\) at"):
        watch.check("loss", [np.nan, np.nan, np.inf], "right", 1)


def test_a_field_of_several_numbers_is_no_number():
    several = dataclasses.make_dataclass("Config", [("hidden", tuple[int, ...], (8,))])
    with pytest.raises(InputError, match="hidden is no field of numbers"):
        grid.read(several, ["hidden=8,16"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--grid", "rate=0.01,0.2", *GRID[2:]], "grid.rate was [0.01, 0.1] and is now"),
        (["--rate", "0.01", *GRID[2:]], "grid.rate was [0.01, 0.1] and is now 'absent'"),
    ],
)
def test_another_grid_does_not_go_on(finished, flags, message, capsys):
    assert command(finished, *flags) == 1
    assert message in capsys.readouterr().err


def test_the_report(finished, tmp_path, capsys):
    report = read(finished)
    assert report["schema"] == 1
    assert report["settings"] == [setting for setting in SETTINGS for _ in range(2)]
    assert report["seeds"] == [0, 1] * 4
    assert np.shape(report["matrix"]) == (8, 3, 2)
    averages = np.asarray(report["matrix"])[:, -1].mean(axis=1)
    assert report["metrics"]["average_accuracy"]["mean"] is None  # over settings: undefined
    np.testing.assert_allclose(report["metrics"]["average_accuracy"]["values"], averages)
    by_setting = [each["metrics"]["average_accuracy"] for each in report["by_setting"]]
    means = averages.reshape(4, 2).mean(axis=1)
    np.testing.assert_allclose([each["mean"] for each in by_setting], means)
    assert report["best"] == np.argmax(means)
    assert [each["setting"] for each in report["by_setting"]] == SETTINGS
    best = jcl.report.of_best(report)
    assert best["matrix"] == report["matrix"][2 * report["best"] : 2 * report["best"] + 2]
    assert best["config"]["rate"] == SETTINGS[report["best"]]["rate"]

    lower = jcl.report.make(
        **{name: report[name] for name in jcl.report.SHAPE if name != "metrics"}
        | {"higher_is_better": False, "settings": report["settings"]}
    )
    assert lower["best"] == np.argmin(means)

    capsys.readouterr()
    assert main(["report", str(finished)]) == 0
    told, written = capsys.readouterr().out, (finished / "report.md").read_text()
    name = grid.shown(SETTINGS[report["best"]])
    for text in (told, written):
        text = " ".join(text.split())  # a narrow table breaks its title
        assert f"ewc, {name}: accuracy" in text
        assert f"best average accuracy: {name}" in text
        assert text.count(f"{means[0]:.3f} ±") >= 1
    assert written.count("| 0.01 | 100.0 |") == 1


def test_a_report_that_lacks_a_part_of_the_grid_is_refused(finished, tmp_path):
    report = read(finished)
    del report["best"]
    (tmp_path / "report.json").write_text(json.dumps(report))
    with pytest.raises(InputError, match="it lacks best"):
        jcl.report.read(tmp_path)


def test_a_run_of_several_settings_has_no_params_to_go_on_from(finished, tmp_path, capsys):
    for use in (lambda: learned_params(finished, 0), lambda: reopen(finished, load_config)):
        with pytest.raises(InputError, match="holds a grid of settings: .* --rate and --strength"):
            use()
    assert main(["memory", str(finished), str(tmp_path / "memory.npz")]) == 1
    assert "holds a grid of settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["rates=0.1,0.2"], "no field 'rates'; its fields of numbers are rate, warmup, strength"),
        (["method=ewc,naive"], "method is no field of numbers"),
        (["device-data=0,1"], "device_data is no field of numbers"),
        (["seed=0,1"], "give --seeds N"),
        (["rate"], "'nothing' is no number"),
        (["rate="], "'nothing' is no number"),
        (["rate=0.1,,0.2"], "'nothing' is no number"),
        (["rate=0.1,fast"], "'fast' is no number"),
        (["rate=0.1,nan"], "'nan' is no number"),
        (["rate=0.1,1e39"], "'1e39' is no number of 32 bits"),
        (["width=6,6.5"], "'6.5' is no whole number"),
        (["rate=0.1,1e-1"], "a value stands there twice"),
        (["rate=0.1", "rate=0.2"], "rate is given twice"),
        (["rate=0.1,-0.1"], "cosine(peak=-0.1): a number in [0, inf)"),
        (["width=4,6"], "(width 4, seed 0) and (width 6, seed 0) differ in the shapes of the"),
        (["steps=4,6"], "(steps 4, seed 0) and (steps 6, seed 0) differ in the names of tasks"),
        (["chunk=1,2"], "--grid: chunk cannot be a number among others of one program"),
        (["rate=0.1,0.2", "clip=1,2"], "--grid: clip cannot be a number among others"),
        (["shift=0,1", "rate=0.1"], "--grid: shift cannot be a number among others"),
        (["shift=0,1", "rate=0.1,0.2"], "run each value by itself, with its own --out"),
    ],
)
def test_grids_that_are_refused(flags, message, tmp_path, capsys):
    flags = [word for flag in flags for word in ("--grid", flag)]
    assert command(tmp_path / "runs" / "run", *flags) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_what_is_wrong_with_the_config_is_not_laid_on_the_grid(tmp_path, capsys):
    flags = ["--grid", "rate=0.1,0.2", "--chunk", "3"]
    assert command(tmp_path / "run", *flags) == 1
    assert "--grid" not in (told := capsys.readouterr().err)
    assert "does not divide" in told


def test_nothing_traced_stays_in_what_a_config_keeps():
    module = load_config(CONFIG)
    given = {"rate": (0.1, 0.2), "warmup": (0.0, 0.1)}
    replicas = _build(module.build, module.Config(), 1, given)
    with jax.checking_leaks():
        Program(replicas)
    kept = module.stream(0.0).tasks[0].train.arrays()
    assert all(isinstance(leaf, np.ndarray) for leaf in kept.values())
    assert module.stream.cache_info().currsize == 1


def test_a_grid_of_one_setting_is_a_plain_run(tmp_path):
    module = load_config(CONFIG)
    replicas = _build(module.build, module.Config(), 1, {"rate": (0.5,)})
    assert str(replicas[0]) == "rate 0.5, seed 0"
    assert Program(replicas).abstract.params["head"].shape == (6, 2)


def test_settings_promote_as_numbers_of_python_do():
    module = load_config(CONFIG)
    replicas = _build(module.build, module.Config(), 1, {"rate": (0.1, 0.2), "width": (4, 6)})
    values = grid.stacked(replicas)
    assert values["rate"].shape == (4,)
    assert values["width"].dtype == jnp.int32
    products = jax.vmap(lambda each: each["rate"] * each["width"] * jnp.bfloat16(1))(values)
    assert products.dtype == jnp.bfloat16


def test_a_run_of_before_there_were_grids_goes_on(finished):
    description = folder.read_config(finished / "config.json")
    now = {**description, "grid": None, "replicas": None}
    before = {key: value for key, value in now.items() if key not in ("grid", "replicas")}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        folder._compare(finished, before, now)
    with pytest.raises(InputError, match="grid.rate was 'absent'"):
        folder._compare(finished, before, description)
