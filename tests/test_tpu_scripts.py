"""The scripts for TPUs and Slurm against a stand-in for the cloud (cloud.py)."""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted((ROOT / "tpu_scripts").glob("*.sh"))
README = (ROOT / "tpu_scripts" / "README.md").read_text()
SETTINGS, COMMANDS = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
RUN = ("run.sh", "configs/small.py", "--out", "/mnt/share/small")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A repository of the scripts as they are now, committed or not."""
    place = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "tpu_scripts", place / "tpu_scripts")
    shutil.copy(ROOT / "constraints.txt", place)
    (place / ".gitignore").write_text("build/\n")
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@t", "-C", str(place)]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message=all"]):
        subprocess.run([*git, *command], check=True)
    return place


class Cloud:
    def __init__(self, place, checkout, workers):
        self.place, self.checkout, self.started = place, checkout, []
        self.tools("tools", "gcloud", "sbatch", "srun", "squeue", "scontrol")
        self.tools("tools-of-workers", "python3", "mountpoint", "sudo", "jcl")
        (place / "share").mkdir()
        for number in range(workers):
            (place / f"worker-{number}").mkdir()
        self.environment = {
            "CLOUD": str(place),
            "HOME": str(place),
            "PATH": f"{place / 'tools'}:/usr/bin:/bin",
            "TPU_POLL_SECONDS": "0.2",
            **dict(re.findall(r"export (\w+)=(\S+)", SETTINGS)),
        }

    def tools(self, folder, *names):
        (self.place / folder).mkdir()
        program = f"#!{sys.executable} -SE\n" + (ROOT / "tests" / "cloud.py").read_text()
        for name in names:
            (self.place / folder / name).write_text(program)
            (self.place / folder / name).chmod(0o755)

    def set(self, **values):
        for name, value in values.items():
            (self.place / f"{name}.json").write_text(json.dumps(value))

    def ends(self, *workers):
        """How the coming runs of each worker end."""
        for number, ends in enumerate(workers):
            (self.place / f"ends-{number}.json").write_text(json.dumps(ends))

    def environment_with(self, changes):
        merged = {**self.environment, **changes}
        return {name: value for name, value in merged.items() if value is not None}

    def start(self, script, *arguments, **changes):
        process = subprocess.Popen(
            [str(self.checkout / "tpu_scripts" / script), *arguments],
            cwd=self.place,
            env=self.environment_with(changes),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def run(self, script, *arguments, code=0, **changes):
        process = self.start(script, *arguments, **changes)
        out, errors = process.communicate(timeout=30)
        assert process.returncode == code, out + errors
        return out if code == 0 else errors

    def read(self, name):
        path = self.place / name
        return path.read_text() if path.exists() else ""

    def calls(self, name="gcloud"):
        calls = [json.loads(line) for line in self.read("calls.jsonl").splitlines()]
        return [call[1:] for call in calls if call[0] == name]

    def verbs(self):
        """What was asked of gcloud, looks at the state and at the workers left out."""
        verbs = []
        for call in self.calls():
            command = call[-1].removeprefix("--command=").split("worker.sh ")[-1].split()[0]
            verb = command if call[3] == "ssh" else call[3]
            verbs.append("install" if verb.startswith("status") and "if " in call[-1] else verb)
        return [verb for verb in verbs if verb not in ("describe", "status")]

    def ready(self):
        """With a TPU on which jcl is installed."""
        self.set(states=["ACTIVE"])
        for home in self.place.glob("worker-*"):
            shutil.copytree(self.checkout / "tpu_scripts", home / "jcl" / "tpu_scripts")
            (home / "jcl-venv" / "bin").mkdir(parents=True)
            (home / "jcl-venv" / "bin" / "jcl").symlink_to(self.place / "tools-of-workers" / "jcl")
            (home / "mounted").touch()
        return self

    def wait_for(self, end):
        deadline = time.monotonic() + 20
        while not end():
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.fixture
def cloud(tmp_path, checkout):
    made = Cloud(tmp_path, checkout, workers=2)
    yield made
    for process in made.started:
        if process.poll() is None:
            process.kill()
            process.communicate()
    for number in made.read("pids").split():
        with contextlib.suppress(OSError):  # it has ended
            if str(tmp_path) in Path(f"/proc/{number}/cmdline").read_text():
                os.kill(int(number), signal.SIGKILL)


def test_the_scripts_are_short_and_clean():
    for path in SCRIPTS:
        assert len(path.read_text().splitlines()) <= 40, path.name
        sourced = path.name in ("common.sh", "tpu.sh")
        assert os.access(path, os.X_OK) != sourced, path.name
    beside = Path(sys.executable).with_name("shellcheck")
    program = str(beside) if beside.exists() else shutil.which("shellcheck")
    if program is None:
        pytest.skip("shellcheck is missing: install the extra `test`")
    done = subprocess.run(
        [program, "--external-sources", "--enable=quote-safe-variables", *map(str, SCRIPTS)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_the_five_commands_of_the_readme(cloud):
    commands = [line for line in COMMANDS.splitlines() if line]
    assert len(commands) == 5
    for command in commands:
        script, *arguments = shlex.split(command)
        cloud.run(Path(script).name, *arguments)
    assert cloud.verbs() == ["create", "scp", "install", "start", "scp", "delete"]
    assert " ".join(cloud.calls()[1]) == (
        "compute tpus queued-resources create first-run --node-id=first-run --zone=us-west4-a "
        "--project=your-project --accelerator-type=v5litepod-8 "
        "--runtime-version=v2-alpha-tpuv5-lite"
    )
    ran = ["run", "configs/quickstart.py", "--method", "replay_ewc"]
    ran += ["--out", "/mnt/share/replay_ewc"]
    assert cloud.calls("jcl").count(ran) == 2  # on each worker
    assert [call for call in cloud.calls("sudo") if call[0] == "mount"] == (
        [["mount", "-t", "nfs", "10.0.0.2:/share", "/mnt/share"]] * 2
    )
    installed = [
        call for call in cloud.calls("python3") if "install" in call and "--user" not in call
    ]
    assert [call[-3:] for call in installed] == [
        ["--constraint", "constraints.txt", ".[tpu,demo]"]
    ] * 2
    fetched = cloud.place / "runs" / "replay_ewc"
    assert {path.name: path.read_text() for path in fetched.iterdir()} == {
        name: f"{name} of replay_ewc"
        for name in ("report.json", "report.md", "matrix.png", "metrics.jsonl")
    }


@pytest.mark.parametrize(
    "command",
    [
        ("create.sh", "--spot"),
        ("setup.sh",),
        RUN,
        ("fetch.sh", "/mnt/share/small", "a place"),
        ("delete.sh", "--yes"),
        ("slurm.sh", "configs/small.py", "--out", "/shared/small", "--name", "a b"),
    ],
    ids=lambda command: command[0],
)
def test_a_dry_run_prints_what_a_run_would_call(cloud, command):
    script, *arguments = command
    slurm = {"JCL_NODES": "2", "JCL_GPUS": "8"}
    cloud.set(states=["ABSENT" if script == "create.sh" else "ACTIVE"])
    if script in ("run.sh", "fetch.sh"):
        cloud.ready()
        cloud.run(*RUN) if script == "fetch.sh" else None
        (cloud.place / "calls.jsonl").unlink(missing_ok=True)
    before = sorted(cloud.place.rglob("*"))
    shown = [
        shlex.split(line)
        for line in cloud.run(script, "--dry-run", *arguments, **slurm).splitlines()
    ]
    assert sorted(cloud.place.rglob("*")) == before
    cloud.run(script, *arguments, **slurm)
    called = [["gcloud", *call] for call in cloud.calls()] + [
        ["sbatch", *c] for c in cloud.calls("sbatch")
    ]
    shown = [line for line in shown if line[0] not in ("mkdir", "git")]
    assert shown
    assert {tuple(line) for line in shown} == {tuple(line) for line in called}


def test_the_dry_run_of_spot(cloud):
    shown = cloud.run("spot.sh", "--dry-run", *RUN[1:])
    assert not (cloud.place / "calls.jsonl").exists()
    assert "--spot" in shown
    verbs = ["describe", "create", "archive", "scp", "install", "start", "delete"]
    assert all(verb in shown for verb in verbs)
    assert "--fresh" in cloud.run("spot.sh", *RUN[1:], "--fresh", code=2)


@pytest.mark.parametrize(
    ("script", "changes", "told"),
    [
        ("create.sh", {"TPU_NAME": None}, "set TPU_NAME"),
        ("create.sh", {"TPU_PROJECT": ""}, "set TPU_PROJECT"),
        ("create.sh", {"TPU_ZONE": None}, "set TPU_ZONE"),
        ("create.sh", {"TPU_TYPE": None}, "set TPU_TYPE"),
        ("create.sh", {"TPU_TYPE": "v9x-8"}, "set TPU_RUNTIME"),
        ("create.sh", {"TPU_NAME": "--format=x"}, "TPU_NAME=--format=x is not"),
        ("create.sh", {"TPU_NAME": "a\nb"}, "is not a name"),
        ("create.sh", {"TPU_PROJECT": "a b"}, "is not the id"),
        ("delete.sh", {"TPU_NAME": "x;touch hacked"}, "is not a name"),
        ("setup.sh", {"TPU_SHARE": None}, "set TPU_SHARE"),
        ("setup.sh", {"TPU_SHARE": "host:/$(touch hacked)"}, "is not an NFS export"),
        ("run.sh", {"TPU_POLL_SECONDS": "soon"}, "is not seconds"),
        ("slurm.sh", {"JCL_NODES": None}, "set JCL_NODES"),
        ("slurm.sh", {"JCL_NODES": "2", "JCL_GPUS": "0"}, "JCL_GPUS=0 is not"),
    ],
)
def test_settings_that_are_missing_or_no_names(cloud, script, changes, told):
    assert told in cloud.run(script, code=2, **changes)
    assert sorted(path.name for path in cloud.place.iterdir()) == (
        ["share", "tools", "tools-of-workers", "worker-0", "worker-1"]
    )


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (("run.sh",), "name a config"),
        (("run.sh", "configs/small.py"), "give a run folder"),
        (("run.sh", "configs/small.py", "--out", "runs/small"), "/mnt/share/"),
        (("run.sh", "configs/small.py", "--out", "/mnt/share/../small"), "/mnt/share/"),
        (("run.sh", "--fresh", "configs/small.py"), "unknown flag --fresh"),
        (("fetch.sh",), "name the run folder"),
        (("fetch.sh", "/mnt/share/x y"), "not '/mnt/share/x y'"),
        (("fetch.sh", "/mnt/share/x", "other:place"), "put ./ before it"),
        (("delete.sh",), "add --yes"),
        (("create.sh", "now"), "unknown argument now"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_commands_that_are_refused(cloud, command, told):
    assert told in cloud.run(*command, code=2)
    assert not (cloud.place / "calls.jsonl").exists()


def test_the_run_folder_may_be_given_in_one_word(cloud):
    place = "--out=/mnt/share/small"
    shown = cloud.run("run.sh", "--dry-run", "configs/small.py", place)
    assert f"start configs/small.py {place}" in shlex.split(shown.splitlines()[0])[-1]
    told = cloud.run("run.sh", "configs/small.py", "--out=runs/small", code=2)
    assert "not 'runs/small'" in told


def test_arguments_reach_jcl_as_they_are(cloud):
    cloud.ready()
    strange = ["a b", "'; touch hacked #", "$(touch hacked)", "`touch hacked`", "a\\b*", "  ", ""]
    cloud.run(*RUN, *strange)
    assert cloud.calls("jcl") == [["run", *RUN[1:], *strange]] * 2
    assert not list(cloud.place.rglob("hacked"))


@pytest.mark.parametrize(
    ("types", "runtime"),
    [
        ("v6e-8", "v2-alpha-tpuv6e"),
        ("v5p-128", "v2-alpha-tpuv5"),
        ("v5litepod-8", "v2-alpha-tpuv5-lite"),
        ("v4-32", "tpu-ubuntu2204-base"),
    ],
)
def test_the_runtime_version_by_type(cloud, types, runtime):
    shown = cloud.run("create.sh", "--dry-run", TPU_TYPE=types).splitlines()[0]
    assert f"--accelerator-type={types} --runtime-version={runtime}" in shown
    shown = cloud.run("create.sh", "--dry-run", TPU_TYPE=types, TPU_RUNTIME="other-1")
    assert "--runtime-version=other-1" in shown


def test_create_waits_and_says_what_went_wrong(cloud):
    cloud.set(states=["WAITING_FOR_RESOURCES", "OFFLINE", "PROVISIONING", "ACTIVE"])
    cloud.run("create.sh")
    assert cloud.verbs() == []  # one that is there is awaited, not asked for again
    cloud.set(states=["ABSENT"], after_create=["PROVISIONING", "FAILED"])
    assert "is FAILED; delete it" in cloud.run("create.sh", code=75)
    cloud.set(states=["PROVISIONING", "PROVISIONING", "ABSENT"])
    assert "was deleted while" in cloud.run("create.sh", code=2)
    assert cloud.verbs() == ["create"]


@pytest.mark.parametrize(
    ("ends", "code"),
    [
        ((["hang"], [3]), 3),  # the other one is stopped
        (([143], [134]), 75),
        (([134], [130]), 75),
        (([75], ["hang"]), 75),
        (([137], [1]), 75),
        (([1], [0]), 1),
    ],
)
def test_a_stopped_run_is_told_from_a_failed_one(cloud, ends, code):
    cloud.ready().ends(*ends)
    told = cloud.run(*RUN, code=code)
    assert f"exit code {code}" in told
    assert "this is jcl's log" in told
    assert cloud.verbs() == ["start", "stop;"]
    for number in (0, 1):
        command = "bash ../jcl/tpu_scripts/worker.sh status"
        home = cloud.place / f"worker-{number}"
        done = subprocess.run(
            command.split(), cwd=home / "jcl-run", env={**os.environ, "HOME": str(home)},
            capture_output=True, text=True,
        )  # fmt: skip
        assert "exited" in done.stdout


def test_a_run_outlives_its_watcher_and_is_watched_again(cloud):
    cloud.ready().ends(["hang"], ["hang"])
    watcher = cloud.start(*RUN)
    cloud.wait_for(lambda: len(cloud.calls("jcl")) == 2)
    watcher.kill()
    watcher.communicate()
    assert "another run goes on: configs/small.py" in cloud.run(*RUN, "--seeds", "2", code=2)
    assert "nothing is installed anew" in cloud.run("setup.sh")
    watcher = cloud.start(*RUN)
    seen = len(cloud.calls())
    cloud.wait_for(lambda: len(cloud.calls()) > seen + 3)
    assert watcher.poll() is None
    assert len(cloud.calls("jcl")) == 2
    for path in cloud.place.glob("worker-*/jcl-run/pid"):
        os.kill(int(path.read_text()), signal.SIGTERM)
    watcher.communicate(timeout=20)
    assert watcher.returncode == 75
    cloud.run(*RUN)  # goes on, and ends
    assert (cloud.place / "share" / "small" / "report.json").exists()


def test_workers_that_do_not_answer(cloud):
    cloud.ready().ends(["hang"], ["hang"])
    watcher = cloud.start(*RUN)
    cloud.wait_for(lambda: len(cloud.calls("jcl")) == 2)
    (cloud.place / "unreachable").touch()
    seen = len(cloud.calls())
    cloud.wait_for(lambda: len(cloud.calls()) > seen + 4)
    assert watcher.poll() is None  # the TPU is there: the network may come back
    cloud.set(states=["OFFLINE", "SUSPENDING", "SUSPENDED"])
    _, errors = watcher.communicate(timeout=20)
    assert watcher.returncode == 75
    assert "trying again" in errors
    assert "was taken away" in errors


def test_a_worker_that_was_started_anew_has_lost_its_run(cloud):
    cloud.ready().ends(["hang"], ["hang"])
    watcher = cloud.start(*RUN)
    pids = [cloud.place / f"worker-{number}" / "jcl-run" / "pid" for number in (0, 1)]
    cloud.wait_for(lambda: all(path.exists() and path.read_text() for path in pids))
    number = int(pids[0].read_text())
    supervisor = Path(f"/proc/{number}/stat").read_text().split(")")[1].split()[1]
    os.kill(int(supervisor), signal.SIGKILL)
    os.kill(number, signal.SIGKILL)
    watcher.communicate(timeout=20)
    assert watcher.returncode == 75
    (cloud.place / "worker-1" / "mounted").unlink()
    assert "nothing is mounted" in cloud.run(*RUN, code=2)


def test_setup_refuses_a_share_that_is_not_there(cloud):
    cloud.set(states=["ACTIVE"])
    assert "nothing is mounted" in cloud.run("setup.sh", code=2, TPU_SHARE="mounted")
    assert not cloud.calls("sudo")
    for number in (0, 1):
        (cloud.place / f"worker-{number}" / "mounted").touch()
    assert cloud.run("setup.sh", TPU_SHARE="mounted").count("jcl is installed") == 2
    assert not cloud.calls("sudo")


def test_spot_starts_again_after_a_preemption(cloud):
    cloud.ends(["preempted", 143, 0], ["hang", "hang", 0])
    cloud.run("spot.sh", *RUN[1:])
    asked = ["scp", "install", "start"]
    verbs = cloud.verbs()
    assert verbs.count("start") == 3
    assert [verb for verb in verbs if verb != "stop;"] == (
        ["create", *asked, "delete", "create", *asked, *asked]
    )
    created = [call for call in cloud.calls() if call[3] == "create"]
    assert all(call[-1] == "--spot" for call in created)
    runs = cloud.calls("jcl")
    assert len([call for call in runs if call[0] == "run"]) == 6
    assert {tuple(call) for call in runs if call[0] == "run"} == {("run", *RUN[1:])}
    assert (cloud.place / "share" / "small" / "report.json").exists()


def test_spot_gives_up_where_it_should(cloud):
    cloud.ready().ends([1])
    cloud.run("spot.sh", *RUN[1:], code=1)
    assert "delete" not in cloud.verbs()
    cloud.ends(["hang"], ["hang"])
    watcher = cloud.start("spot.sh", *RUN[1:])
    before = len(cloud.calls("jcl"))
    cloud.wait_for(lambda: sum(c[0] == "run" for c in cloud.calls("jcl")[before:]) == 2)
    cloud.run("delete.sh", "--yes")
    _, errors = watcher.communicate(timeout=20)
    assert watcher.returncode == 2
    assert "deleted by another hand" in errors
    assert "create" not in cloud.verbs()


def test_spot_asks_again_where_the_request_failed(cloud):
    cloud.set(states=["FAILED"])
    cloud.run("spot.sh", *RUN[1:])
    assert cloud.verbs() == ["delete", "create", "scp", "install", "start"]


def test_slurm(cloud):
    strange = ["a b", "$(touch hacked)"]
    place = ("configs/small.py", "--out", "/shared/small", *strange)
    cloud.run("slurm.sh", *place, JCL_NODES="2", JCL_GPUS="8")
    (call,) = cloud.calls("sbatch")
    job = call.index(str(cloud.checkout / "tpu_scripts" / "slurm_job.sh"))
    assert set(call[:job]) == {
        "--job-name=jcl", "--nodes=2", "--gpus-per-node=8", "--ntasks-per-node=8", "--requeue",
        "--open-mode=append", "--output=jcl-%j.log", "--signal=TERM@120",
    }  # fmt: skip
    assert call[job + 1 :] == list(place)
    cloud.run("slurm_job.sh", *place, SLURM_JOB_ID="7")
    assert cloud.calls("srun") == [["--kill-on-bad-exit=1", "jcl", "run", *place]]
    assert not cloud.calls("scontrol")


@pytest.mark.parametrize(
    ("code", "state", "again"),
    [
        (143, "RUNNING", True),
        (75, "RUNNING", True),
        (143, "COMPLETING", False),  # cancelled
        (1, "RUNNING", False),
        (137, "RUNNING", True),
        (134, "RUNNING", False),
    ],
)
def test_slurm_queues_a_stopped_job_again(cloud, code, state, again):
    cloud.set(srun=code, squeue=state)
    cloud.run("slurm_job.sh", *RUN[1:], code=code, SLURM_JOB_ID="7")
    assert cloud.calls("scontrol") == ([["requeue", "7"]] if again else [])
