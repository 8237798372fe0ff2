"""A whole run: its folder, its resume after any kill, and what it refuses."""

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick
from everything import costly
from jax.sharding import SingleDeviceSharding

from jcl import checkpoint
from jcl.__main__ import load_config, main
from jcl.program import Program
from jcl.run import _build

pytestmark = pytest.mark.xdist_group("run")  # its fixtures are whole runs
HERE = Path(__file__).parent
TINY = HERE / "configs" / "tiny.py"
# One device, compiled as quickly as in the tests themselves.
CACHE = tempfile.TemporaryDirectory(prefix="jcl-tests-")
ENVIRONMENT = os.environ | {
    "XLA_FLAGS": quick.FLAGS,
    "JAX_COMPILATION_CACHE_DIR": CACHE.name,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
}


def killed(point, count, *arguments):
    """`jcl run`, which must die by SIGKILL at the n-th pass of the point."""
    done = subprocess.run(
        [sys.executable, HERE / "killed.py", point, str(count), TINY, *map(str, arguments)],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == -9, (point, done.stdout, done.stderr)


def command(*arguments, kilobytes="unlimited"):
    """`jcl run` on the tiny config, with a limit on the size of every file it writes."""
    return subprocess.run(
        ["bash", "-c", f'ulimit -f {kilobytes}; exec "$@"', "-", sys.executable, "-m", "jcl", "run",
         str(TINY), *map(str, arguments)],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def final_state(folder, **config):
    """The leaves of the last checkpoint."""
    module = load_config(TINY)
    program = Program(_build(module.build, module.Config(**config), 1))
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=SingleDeviceSharding(jax.devices()[0])
        ),
        program.abstract,
    )
    state, _ = checkpoint.restore(folder / "checkpoints", abstract)
    return [np.asarray(jax.random.key_data(leaf) if "key" in str(leaf.dtype) else leaf)
            for leaf in jax.tree.leaves(state)]  # fmt: skip


def read(folder):
    return json.loads((folder / "report.json").read_text())


def metric_lines(folder):
    return (folder / "metrics.jsonl").read_text().splitlines()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    done = command("--out", folder)
    assert done.returncode == 0, done.stderr
    return folder


def assert_same_end(folder, expected):
    assert read(folder)["matrix"] == read(expected)["matrix"]
    assert metric_lines(folder) == metric_lines(expected)
    for one, other in zip(final_state(folder), final_state(expected), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_folder_and_the_report(finished):
    names = {path.name for path in finished.iterdir()}
    assert names == {
        "config.json", "metrics.jsonl", "checkpoints", "report.json", "report.md", "matrix.png",
        "lock",
    }  # fmt: skip
    report = read(finished)
    assert list(report) == [
        "schema", "name", "tasks", "measure", "higher_is_better", "seeds", "matrix", "metrics",
        "wall_seconds", "steps", "step_seconds_median", "traces", "config", "versions",
    ]  # fmt: skip
    assert report["schema"] == 1
    assert report["tasks"] == ["vowels", "digits", "signs"]
    assert np.shape(report["matrix"]) == (1, 4, 3)
    assert report["higher_is_better"] is False
    assert report["metrics"]["forgetting"]["ci95"] is None
    config = json.loads((finished / "config.json").read_text())
    assert {"config_hash", "data", "seeds", "versions", "devices", "threads", "flags"} <= set(
        config
    )
    assert set(config["data"]) == {"vowels", "digits", "signs"}
    lines = [json.loads(line) for line in metric_lines(finished)]
    assert {line["kind"] for line in lines} == {"step", "evaluation", "probe"}
    ranks = [line["rank"][0] for line in lines if line["kind"] == "probe"]
    assert len(ranks) == 4 * 3
    assert all(1 < rank <= 16 for rank in ranks)
    assert {"loss", "total", "replay", "ewc"} <= set(next(x for x in lines if x["kind"] == "step"))


def test_one_trace_though_the_tasks_differ_in_size(finished):
    assert read(finished)["traces"] == {"step": 1, "consolidate": 1, "evaluate": 1}
    module = load_config(TINY)
    assert len({len(task.train) for task in module.stream(0).tasks}) == 3


def test_killed_anywhere_it_ends_with_the_same_bits(finished, tmp_path):
    arguments = ("--out", tmp_path / "run", "--save-minutes", "0.001")
    for point, count in [
        ("task", 9), ("save", 3), ("consolidate", 1), ("task", 6), ("evaluation", 2),
        ("rename", 25), ("task", 5),
    ]:  # fmt: skip
        killed(point, count, *arguments)
    done = command(*arguments)
    assert done.returncode == 0, done.stderr
    assert "going on from stage" in done.stdout
    assert_same_end(tmp_path / "run", finished)
    assert not list((tmp_path / "run" / "checkpoints").glob("*.partial"))


@costly
def test_examples_held_on_the_device_give_the_same_run(finished, tmp_path):
    arguments = ("--out", tmp_path / "run", "--save-minutes", "0.001", "--device-data")
    for point, count in [("task", 3), ("consolidate", 2)]:
        killed(point, count, *arguments)
    done = command(*arguments)
    assert done.returncode == 0, done.stderr
    straight = tmp_path / "straight"
    done = command("--out", straight, "--device-data")
    assert done.returncode == 0, done.stderr
    assert_same_end(tmp_path / "run", straight)
    assert read(straight)["traces"] == {"step": 1, "consolidate": 1, "evaluate": 1}
    np.testing.assert_allclose(read(straight)["matrix"], read(finished)["matrix"], rtol=1e-4)
    lines = [json.loads(line) for line in metric_lines(straight)]
    # The remainder of a task is a shorter call of the same program.
    assert any(line["step"] % 5 for line in lines if line["kind"] == "step")


@pytest.mark.parametrize("data", ["--device-data", "--no-device-data"])
def test_joint_training_has_two_rows(tmp_path, data):
    options = ("--method", "joint", "--seeds", "2", data)
    done = command("--out", tmp_path / "run", *options)
    assert done.returncode == 0, done.stderr
    report = read(tmp_path / "run")
    assert np.shape(report["matrix"]) == (2, 2, 3)
    assert report["metrics"]["forgetting"]["mean"] is None
    assert np.all(np.asarray(report["matrix"])[:, 1] < np.asarray(report["matrix"])[:, 0])


@costly
def test_killed_at_its_begin_or_end_it_goes_on(interrupted, finished, tmp_path):
    folder = tmp_path / "run"
    killed("config", 1, "--out", folder)
    assert [path.name for path in folder.iterdir() if path.name != "lock"] == [
        "config.json.partial"
    ]
    shutil.copytree(interrupted, folder, dirs_exist_ok=True)
    killed("fresh", 1, "--out", folder, "--fresh")
    killed("report", 1, "--out", folder, "--fresh")
    assert not (folder / "report.json").exists()
    done = command("--out", folder)
    assert done.returncode == 0, done.stderr
    assert_same_end(folder, finished)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A run killed behind its second task, with two checkpoints; copy it before use."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    killed("next", 3, "--out", folder)
    return folder


def test_a_damaged_checkpoint_is_passed_over(interrupted, finished, tmp_path):
    folder = Path(shutil.copytree(interrupted, tmp_path / "run"))
    newest = max((folder / "checkpoints").iterdir())
    victim = max((newest / "state").rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    done = command("--out", folder)
    assert done.returncode == 0
    assert re.search("warning: The checkpoint .* is damaged", done.stderr)
    assert_same_end(folder, finished)


def test_lost_lines_of_metrics_are_told_and_not_made_up(interrupted, tmp_path):
    folder = Path(shutil.copytree(interrupted, tmp_path / "run"))
    (folder / "metrics.jsonl").unlink()
    done = command("--out", folder)
    assert done.returncode == 0
    assert "lines of metrics are lost" in done.stderr
    assert all(json.loads(line) for line in metric_lines(folder))


def test_no_intact_checkpoint_is_refused(interrupted, tmp_path):
    folder = Path(shutil.copytree(interrupted, tmp_path / "run"))
    for path in (folder / "checkpoints").iterdir():
        (path / "manifest.json").write_text("{")
    done = command("--out", folder)
    assert done.returncode == 1
    assert "None of the 2 checkpoints" in done.stderr
    assert "--fresh" in done.stderr


def test_of_two_runs_on_one_folder_the_second_refuses(finished, tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    with (folder / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert main(["run", str(TINY), "--out", str(folder)]) == 1
    assert "Another process is running" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["lock"]


@costly
def test_seeds_in_one_program_equal_seeds_alone(tmp_path):
    arguments = ("--epochs", "1")
    assert command("--out", tmp_path / "all", "--seeds", "3", *arguments).returncode == 0
    together = read(tmp_path / "all")
    assert together["seeds"] == [0, 1, 2]
    assert together["traces"] == {"step": 1, "consolidate": 1, "evaluate": 1}
    for seed in (0, 2):
        folder = tmp_path / str(seed)
        assert command("--out", folder, "--seed", seed, *arguments).returncode == 0
        np.testing.assert_allclose(together["matrix"][seed], read(folder)["matrix"][0], rtol=1e-5)
    assert together["metrics"]["average_accuracy"]["ci95"] > 0


def test_seeds_dealt_out_over_devices_resume_bitwise(tmp_path):
    arguments = (
        "--epochs", "1", "--seeds", "4", "--save-minutes", "0.001", "--cpu-devices", "2",
        "--deterministic",
    )  # fmt: skip
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    assert command("--out", straight, *arguments).returncode == 0
    killed("task", 9, "--out", broken, *arguments)
    done = command("--out", broken, *arguments)
    assert done.returncode == 0, done.stderr
    assert "going on from stage" in done.stdout
    told = json.loads((broken / "config.json").read_text())
    assert told["devices"]["count"] == 2
    assert "--xla_gpu_deterministic_ops=true" in str(told["flags"])
    assert read(broken)["matrix"] == read(straight)["matrix"]
    assert metric_lines(broken) == metric_lines(straight)


def test_the_threads_are_as_many_as_were_asked_for(tmp_path):
    arguments = ("--out", tmp_path / "run", "--epochs", "1", "--cpu-threads", "1")
    assert command(*arguments).returncode == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["threads"] == 1
    # XLA's documentation does not have the variable.
    code = (
        "import glob, os; os.environ['NPROC'] = '3'\n"
        "import jax.numpy as jnp; (jnp.ones((9, 9)) @ jnp.ones((9, 9))).block_until_ready()\n"
        "print([open(f).read()[:7] for f in glob.glob('/proc/self/task/*/comm')].count('tf_XLAE'))"
    )
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert shown.stdout.strip() == "3"


@pytest.mark.parametrize(
    ("option", "says"),
    [
        (["--cpu-threads", "0"], "at least 1"),
        (["--cpu-threads", "1"], "--cpu-threads: JAX is in use"),
        (["--deterministic"], "--deterministic: JAX is in use"),
    ],
)
def test_what_is_set_before_jax_is_used_is_refused_after(option, says, tmp_path, capsys):
    jax.devices()
    assert main(["run", str(TINY), *option, "--out", str(tmp_path / "run")]) == 1
    assert says in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_evaluated_at_the_end_alone(finished, tmp_path):
    assert command("--out", tmp_path / "run", "--evaluate", "end").returncode == 0
    report, whole = read(tmp_path / "run"), read(finished)
    assert report["matrix"][0] == [whole["matrix"][0][0], whole["matrix"][0][-1]]
    name = "average_accuracy"
    assert report["metrics"][name]["mean"] == whole["metrics"][name]["mean"]
    assert report["metrics"]["forgetting"]["mean"] is None
    assert "| (all) |" in (tmp_path / "run" / "report.md").read_text()


def test_a_device_count_given_twice_is_refused(tmp_path, capsys):
    arguments = ("--seeds", "2", "--cpu-devices", "2", "--out", str(tmp_path / "run"))
    assert main(["run", str(TINY), *arguments]) == 1
    assert "XLA_FLAGS" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_finished_run_is_shown_again(finished, capsys):
    before = (finished / "report.json").stat().st_mtime_ns
    assert main(["run", str(TINY), "--out", str(finished)]) == 0
    assert "finished already" in capsys.readouterr().out
    assert (finished / "report.json").stat().st_mtime_ns == before


def test_fresh_starts_again(interrupted, tmp_path):
    folder = Path(shutil.copytree(interrupted, tmp_path / "run"))
    done = command("--out", folder, "--fresh", "--epochs", "1", "--width", "8")
    assert done.returncode == 0
    assert "going on" not in done.stdout
    assert read(folder)["config"]["width"] == 8


def test_another_config_or_other_data_is_refused(finished, capsys):
    for field, value in [("--learning-rate", "0.1"), ("--text-seed", "1"), ("--seed", "5")]:
        assert main(["run", str(TINY), "--out", str(finished), field, value]) == 1
        error = capsys.readouterr().err
        assert "was made by another run" in error
        assert field[2:].replace("-", "_") in error
    assert read(finished)["config"]["learning_rate"] == 3e-3


def test_a_newer_schema_is_refused(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"schema": 99}')
    assert main(["run", str(TINY), "--out", str(tmp_path)]) == 1
    assert "schema 99, newer than 1" in capsys.readouterr().err


def test_a_folder_of_something_else_is_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("precious")
    for flags in ([], ["--fresh"]):
        assert main(["run", str(TINY), "--out", str(tmp_path), *flags]) == 1
        assert "it is no run folder" in capsys.readouterr().err
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_what_is_not_a_number_is_never_saved(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("jcl.program._all_finite", lambda state: jnp.array(False))
    assert main(["run", str(TINY), "--out", str(tmp_path / "run")]) == 1
    assert "is not a number, at task vowels" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_seeds_and_purposes_have_orders_of_their_own():
    module = load_config(TINY)
    one, two = (Program(_build(module.build, module.Config(seed=seed), 1)) for seed in (0, 1))
    orders = [
        np.asarray(batches["inputs"]).reshape(-1, 16)
        for program in (one, two)
        for batches in (next(program.calls(0, 0, 1)).arguments[0], program.boundary_batches(0))
    ]
    for number, order in enumerate(orders):
        for other in orders[number + 1 :]:
            assert not np.array_equal(order[:8], other[:8])


def test_the_run_donates_its_state():
    module = load_config(TINY)
    program = Program(_build(module.build, module.Config(), 1))
    state = program.initial()
    call = next(program.calls(0, 0, 1))
    following, _ = call.function(state, *call.arguments)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
    program.consolidate(following, program.boundary_batches(0))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(following.params))


def test_a_learning_rate_that_is_no_number_is_refused(tmp_path, capsys):
    folder = tmp_path / "run"
    assert main(["run", str(TINY), "--out", str(folder), "--learning-rate", "nan"]) == 1
    assert "cosine(peak=nan): a number in [0, inf)" in capsys.readouterr().err
    assert not folder.exists()


def test_a_run_that_turns_nan_stops_and_says_where(tmp_path, capsys):
    folder = tmp_path / "run"
    assert main(["run", str(TINY), "--out", str(folder), "--learning-rate", "1e37"]) == 1
    error = capsys.readouterr().err
    assert re.search(r"task vowels, step \d+: lower the learning rate", error)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["000000"]
    assert not (folder / "report.json").exists()


@pytest.mark.parametrize("kilobytes", [0, 20])
def test_a_full_disk_leaves_no_half_made_folder(kilobytes, tmp_path):
    done = command("--out", tmp_path / "runs" / "run", kilobytes=kilobytes)
    assert done.returncode == 1, (done.stdout, done.stderr)
    assert re.search("could not be written|cannot be written", done.stderr)
    assert not (tmp_path / "runs").exists()


def test_a_disk_that_fills_later_keeps_the_last_good_checkpoint(interrupted, finished, tmp_path):
    folder = Path(shutil.copytree(interrupted, tmp_path / "run"))
    done = command("--out", folder, kilobytes=20)
    assert done.returncode == 1
    assert "start the same command again" in done.stderr
    assert command("--out", folder).returncode == 0
    assert_same_end(folder, finished)


def test_a_disk_that_cannot_be_written_is_refused(capsys):
    assert main(["run", str(TINY), "--out", "/proc/jcl"]) == 1
    assert "name another with --out" in capsys.readouterr().err


def config_file(tmp_path, text):
    path = tmp_path / "config.py"
    path.write_text(text)
    return str(path)


def edited(tmp_path, old, new):
    assert old in TINY.read_text()
    return config_file(tmp_path, TINY.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("documents[4:], documents[:4]", "[], documents[:4]", "train"),
        ("capacity=20", "capacity=0", "a whole number, at least 1"),
        ("strength=10.0", "strength=-1.0", "a number in [0, inf)"),
        ("strength=10.0", "strength=10.0, chunk=7", "does not divide the 24 examples"),
        ("tokenizer, 16)", "tokenizer, 16 + number)", "a run has one shape"),
        ("Model(init, apply, None)", "Model(init, apply, jcl.models.GPT2Config(50, 9, 4, 1, 1))",
         "a vocabulary of 50"),
        ("@dataclass(frozen=True)", "@dataclass", "frozen=True"),
        ("width: int = 16", "fresh: int = 16", "is an option of `jcl run`"),
        ("(\"signs\", 20)", "(\"signs\", 5)", "fewer than one batch"),
        ("jcl.chain(*(parts", "jcl.chain(*([jcl.ewc] + parts", "ewc instead of ewc("),
        ("jcl.chain(*(parts", "jcl.chain(jcl.gem(4, tasks=2), *(parts", "has room for 2 tasks"),
        ("def build(", "def construct(", "has no build"),
        ("class Config:", "class Settings:", "has no Config"),
        ("seed=config.seed,\n        boundary", "boundary", "must hand config.seed on"),
    ],
)  # fmt: skip
def test_bad_configs(old, new, message, tmp_path, capsys):
    arguments = ["--seeds", "2"] if "config.seed" in message else []
    if message == "fewer than one batch":
        arguments = ["--batch-size", "64"]
    path = edited(tmp_path, old, new)
    out = tmp_path / "runs" / "run"
    assert main(["run", path, "--out", str(out), *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not out.parent.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--learning-rat", "1"], "learning-rat"),
        (["--steps", "many"], "--steps"),
        (["--method", "magic"], "magic"),
    ],
)
def test_bad_fields(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["run", str(TINY), "--out", str(tmp_path / "run"), *arguments])
    assert stopped.value.code == 2
    captured = capsys.readouterr()
    assert message in captured.err + captured.out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "every stage needs at least one"),
        (["--seeds", "0"], "at least one"),
        (["--batch-size", "0"], "at least 1"),
    ],
)
def test_bad_numbers(arguments, message, tmp_path, capsys):
    assert main(["run", str(TINY), "--out", str(tmp_path / "run"), *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_bad_config_files(tmp_path, capsys):
    for path, message in [
        (str(tmp_path / "absent.py"), "There is no config file"),
        (config_file(tmp_path, "def build(:\n"), "is not valid Python"),
    ]:
        assert main(["run", path]) == 1
        assert message in capsys.readouterr().err
    assert main(["run"]) == 1
    assert main(["walk"]) == 2
    assert "unknown command 'walk'" in capsys.readouterr().err


def test_report_and_list(finished, capsys):
    assert main(["report", str(finished), str(finished)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("replay_ewc: bits_per_byte") == 2
    assert "forgetting_last" in shown
    assert main(["report", str(finished.parent)]) == 1
    assert "cannot be read" in capsys.readouterr().err
    assert main(["list", str(TINY.parent)]) == 0
    listed = capsys.readouterr().out
    for name in ("tiny.py", "A byte model", "replay", "ewc", "gpt2", "domains", "text_files"):
        assert name in listed
