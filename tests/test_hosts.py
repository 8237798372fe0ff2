"""Several processes in one run: real ones, on the loopback interface."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest
import quick
from everything import costly
from joined import count_rows

import jcl.data
from jcl import InputError, hosts
from jcl.__main__ import main

HERE = Path(__file__).parent
TINY = HERE / "configs" / "tiny.py"
MESH = ("--mesh", "data=4,fsdp=2")
SHORT = ("--steps", "6")
CACHE = tempfile.TemporaryDirectory(prefix="jcl-tests-")
ENVIRONMENT = {
    name: value for name, value in os.environ.items() if "proxy" not in name.lower()
} | {
    "XLA_FLAGS": quick.FLAGS,
    "JAX_COMPILATION_CACHE_DIR": CACHE.name,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
}  # fmt: skip

pytestmark = [
    pytest.mark.xdist_group("hosts"),
    pytest.mark.skipif(jax.device_count() != 8, reason="needs 8 devices: a CPU passes for them"),
]


def processes(*commands, seconds=200):
    """Runs them together as the processes of one run; returns their (status, output, errors)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    joining = ["--coordinator", address, "--processes", str(len(commands)), "--process"]
    children = []
    try:
        for number, command in enumerate(commands):
            children.append(
                subprocess.Popen(
                    [sys.executable, *map(str, command), *joining, str(number)],
                    env=ENVIRONMENT,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        ends = [child.communicate(timeout=seconds) for child in children]
        return [(child.returncode, *end) for child, end in zip(children, ends, strict=True)]
    finally:
        for child in children:
            child.kill()


def run(*arguments):
    return [HERE / "joined.py", TINY, *arguments]


def killed(point, count, *arguments):
    return [HERE / "killed.py", point, count, TINY, *arguments]


def read(folder):
    return json.loads((folder / "report.json").read_text())


def assert_same_matrix(folder, expected):
    np.testing.assert_allclose(read(folder)["matrix"], read(expected)["matrix"], rtol=1e-4)


def alone(folder, *arguments):
    """A run of this process, which has 8 devices; how many examples it has read."""
    rows, original = count_rows()
    try:
        assert main(["run", str(TINY), "--out", str(folder), *arguments]) == 0
    finally:
        jcl.data.streams.gather = original
    return sum(rows)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "alone"
    return folder, alone(folder, *MESH, *SHORT)


def test_two_processes_equal_one_and_each_reads_its_share(finished, tmp_path, capsys):
    folder, read_alone = finished
    out = tmp_path / "run"
    both = processes(*2 * [run("--out", out, *MESH, *SHORT)])
    assert [status for status, *_ in both] == [0, 0], both
    assert_same_matrix(out, folder)
    assert read(out)["traces"] == {"step": 1, "consolidate": 1, "evaluate": 1}
    assert json.loads((out / "config.json").read_text())["devices"]["processes"] == 2
    lines = [json.loads(line) for line in (out / "metrics.jsonl").open()]
    assert len(lines) == len((folder / "metrics.jsonl").read_text().splitlines())  # of one process
    assert "average_accuracy" in both[0][1]
    said = [line for line in both[1][1].splitlines() if not line.startswith("[Gloo]")]
    assert said == []  # by process 1
    shares = [int(re.search(r"rows (\d+)", errors).group(1)) for *_, errors in both]
    # Both look at a whole batch of each of the 3 stages and tests, as the run begins.
    looked_at = 2 * 3 * 8
    assert shares == 2 * [looked_at + (read_alone - looked_at) // 2]
    # One process goes on from their checkpoint before the last task, with another mesh.
    (out / "report.json").unlink()
    shutil.rmtree(max((out / "checkpoints").iterdir()))
    capsys.readouterr()
    alone(out, "--mesh", "data=2,fsdp=4", *SHORT)
    told = capsys.readouterr()
    assert "going on from stage 2, step 0" in told.out
    assert "devices.processes was 2 and is now 1" in told.err
    assert_same_matrix(out, folder)


def test_one_is_killed_and_one_process_goes_on_with_another_mesh(finished, tmp_path, capsys):
    out = tmp_path / "run"
    arguments = ("--out", out, *MESH, *SHORT, "--save-minutes", "0.001")
    first, second = processes(run(*arguments), killed("task", 9, *arguments))
    assert second[0] == -9, second
    if first[0] == 1:  # it heard of it from a collective
        assert "another process of this run has ended" in first[2]
    else:  # JAX aborted it, since the heartbeat of the other was missed
        assert first[0] == -6, first
    assert not (out / "report.json").exists()
    alone(out, "--mesh", "data=2,fsdp=4", *SHORT)
    told = capsys.readouterr()
    assert "going on from stage 1" in told.out
    assert "devices.processes was 2 and is now 1" in told.err
    assert "mesh was 'data=4,fsdp=2' and is now 'data=2,fsdp=4'" in told.err
    assert_same_matrix(out, finished[0])


@costly
def test_processes_that_differ_are_refused_together(tmp_path):
    out = tmp_path / "runs" / "run"
    first, second = processes(run("--out", out), run("--out", out, "--learning-rate", "0.1"))
    assert (first[0], second[0]) == (1, 1)
    assert "Process 1 of 2 has failed: see what it says" in first[2]
    assert "config.learning_rate is 0.003 there and 0.1 here" in second[2]
    assert not out.parent.exists()


@costly
@pytest.mark.parametrize(
    ("number", "arguments"),
    [
        (4, (*MESH, *SHORT)),
        (2, ("--mesh", "data=2,fsdp=2,tensor=2", *SHORT)),
        (2, ("--mesh", "tensor=8", *SHORT)),
        (2, (*MESH, "--device-data", *SHORT)),
        (2, ("--seeds", "8", "--cpu-devices", "4", *SHORT)),
        (2, ("--seeds", "8", "--cpu-devices", "4", *SHORT, "--device-data")),
        (2, ("--seeds", "2", "--mesh", "data=8", *SHORT)),
    ],
)  # fmt: skip
def test_many_forms_equal_one_process(number, arguments, tmp_path):
    plain = [each for each in arguments if each not in ("--cpu-devices", "4")]
    alone(tmp_path / "alone", *plain)
    out = tmp_path / "run"
    all_of_them = processes(*number * [run("--out", out, *arguments)])
    assert [status for status, *_ in all_of_them] == number * [0], all_of_them
    assert_same_matrix(out, tmp_path / "alone")


@costly
def test_killed_with_four_processes_continued_with_two(finished, tmp_path):
    out = tmp_path / "run"
    arguments = ("--out", out, *MESH, *SHORT, "--save-minutes", "0.001")
    ends = processes(*3 * [run(*arguments)], killed("task", 9, *arguments))
    assert ends[3][0] == -9
    assert all(status != 0 for status, *_ in ends), ends
    other = ("--out", out, "--mesh", "data=2,fsdp=4", *SHORT)
    both = processes(*2 * [run(*other)])
    assert [status for status, *_ in both] == [0, 0], both
    assert "going on from stage 1" in both[0][1]
    assert_same_matrix(out, finished[0])


class Counted:
    """Examples that say which of them were read."""

    def __init__(self, number):
        self._number, self.seen = number, []

    def __len__(self):
        return self._number

    def __getitem__(self, index):
        self.seen.append(index)
        return {"inputs": np.full(2, index), "targets": np.int32(index)}


def test_only_the_rows_of_this_process_are_read():
    source, rows = Counted(11), np.array([2, 3, 6])
    whole = jcl.data.training_batches(source, 8, seed=0)[1]
    source.seen.clear()
    part = jcl.data.training_batches(source, 8, seed=0, rows=rows)[1]
    assert source.seen == whole["targets"][rows].tolist()
    np.testing.assert_array_equal(part["inputs"], whole["inputs"][rows])
    whole = list(jcl.data.evaluation_batches(source, 8))
    source.seen.clear()
    parts = list(jcl.data.evaluation_batches(source, 8, rows=rows))
    assert source.seen == [2, 3, 6, 10, 10, 10]  # what fills up the last batch is its last example
    for one, other in zip(parts, whole, strict=True):
        for name in other:
            np.testing.assert_array_equal(one[name], other[name][rows])


SLURM = {
    "SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "node[1-2]", "SLURM_NTASKS": "2",
    "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
}  # fmt: skip
LAUNCHERS = [
    ({}, None),
    (SLURM, 2),
    (SLURM | {"SLURM_NTASKS": "1"}, None),
    ({name: SLURM[name] for name in ("SLURM_JOB_ID", "SLURM_NTASKS")}, None),  # no srun
    ({"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1", "OMPI_COMM_WORLD_SIZE": "4"}, 4),
    ({"TPU_ML_PLATFORM": "JAX"}, 1),
    ({"TPU_ML_PLATFORM": "JAX", "TPU_SKIP_MDS_QUERY": "1"}, None),
    ({"TPU_ML_PLATFORM": "JAX", "TPU_WORKER_HOSTNAMES": "localhost"}, None),
    ({"TPU_ML_PLATFORM": "JAX", "TPU_WORKER_HOSTNAMES": "a.b,c.d", "TPU_WORKER_ID": "1"}, 1),
    ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),
    ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, 1),
]


@pytest.fixture
def calls(monkeypatch):
    """The settings of every call of jax.distributed.initialize, which does nothing."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "TPU_", "KUBERNETES_", "JOB_", "MEGASCALE_")):
            monkeypatch.delenv(name)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    made = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **settings: made.append(settings))
    return made


@pytest.mark.parametrize(("environment", "number"), LAUNCHERS)
def test_a_launcher_is_recognized(environment, number, calls, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert hosts.join() == (number or 1)
    assert len(calls) == (number is not None)
    assert all("coordinator_address" not in settings for settings in calls)  # JAX finds it
    assert hosts.join(processes=1) == 1  # asks to be left alone
    assert len(calls) == (number is not None)


def test_explicit_settings_are_handed_on(calls):
    assert hosts.join("10.0.0.2:4321", 3, 2) == 3
    assert hosts.join("127.0.0.1:4321", 1, 0) == 1
    far, near = calls
    assert (far["coordinator_address"], far["num_processes"], far["process_id"]) == (
        "10.0.0.2:4321", 3, 2,
    )  # fmt: skip
    assert far["coordinator_bind_address"] is None
    assert near["coordinator_bind_address"] == "127.0.0.1:4321"  # no other machine gets in


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--processes 2", "--coordinator, --process is missing"),
        ("--coordinator a:1", "--processes, --process is missing"),
        ("--coordinator a --processes 2 --process 0", "--coordinator a: give the address"),
        ("--coordinator a:b --processes 2 --process 0", "--coordinator a:b: give the address"),
        ("--coordinator a:70000 --processes 2 --process 0", "a port that is free"),
        ("--coordinator a:1 --processes 2 --process 2", "--process 2: of 2 processes the first is"),
        ("--coordinator a:1 --processes 2 --process -1", "--process -1: of 2 processes"),
        ("--coordinator a:1 --processes 0 --process 0", "--processes 0: at least one"),
        ("--coordinator a:1 --processes 2 --process 0", "JAX is in use"),  # as it is in a test
    ],
)
def test_settings_that_are_refused(arguments, message, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["run", str(TINY), "--out", str(out), *arguments.split()]) == 1
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_processes_that_do_not_meet_say_so(monkeypatch):
    monkeypatch.setattr(jax.config, "update", lambda *_: None)

    def refuse(**_):
        raise RuntimeError("DEADLINE_EXCEEDED: nobody there\nmore of it")

    monkeypatch.setattr(jax.distributed, "initialize", refuse)
    with pytest.raises(InputError, match=r"at 10.0.0.2:1 \(DEADLINE_EXCEEDED: nobody there\)"):
        hosts.join("10.0.0.2:1", 2, 1)


def test_a_folder_that_a_process_does_not_see_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(jcl.folder, "SHARED_SECONDS", 1)
    with pytest.raises(InputError, match="does not see the run folder .* that process 0 has"):
        jcl.folder.check_shared(tmp_path)
    shutil.copy(TINY, tmp_path / "config.json")
    jcl.folder.check_shared(tmp_path)
