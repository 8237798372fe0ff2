"""A stand-in for gcloud, for Slurm and for what is called on a TPU's workers, by its own name.

It records every call in calls.jsonl of the folder $CLOUD, which is the whole cloud: the states that
a queued resource goes through (states.json), a home for each worker, the share, and what jcl does
there (ends-N.json: how the coming runs of worker N end). It knows the options that the
scripts use, as gcloud 528 has them, and refuses others.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

CLOUD = Path(os.environ.get("CLOUD", ""))
NAME, ARGUMENTS = Path(sys.argv[0]).name, sys.argv[1:]


def read(name, default):
    path = CLOUD / name
    return json.loads(path.read_text()) if path.exists() else default


def write(name, value):
    (CLOUD / f"{name}.new").write_text(json.dumps(value))
    (CLOUD / f"{name}.new").replace(CLOUD / name)


def homes():
    return sorted(CLOUD.glob("worker-*"))


def local(path, home=None):
    if path.startswith("/mnt/share/"):
        return CLOUD / "share" / path.removeprefix("/mnt/share/")
    return home / path if home else Path(path)


def gcloud():
    import argparse  # here, since a test starts most of the other tools a dozen times
    import shutil

    assert ARGUMENTS[:2] == ["compute", "tpus"], ARGUMENTS
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--zone", required=True)
    parser.add_argument("--project", required=True)
    states = read("states.json", ["ABSENT"])
    match ARGUMENTS[2:4]:
        case ["queued-resources", "create"]:
            parser.add_argument("name")
            for flag in ("--node-id", "--accelerator-type", "--runtime-version"):
                parser.add_argument(flag, required=True)
            parser.add_argument("--spot", action="store_true")
            parser.parse_args(ARGUMENTS[4:])
            if states[0] != "ABSENT":
                sys.exit("ERROR: ALREADY_EXISTS")
            write("states.json", read("after_create.json", ["WAITING_FOR_RESOURCES", "ACTIVE"]))
            for home in homes():  # new machines
                shutil.rmtree(home)
                home.mkdir()
        case ["queued-resources", "describe"]:
            parser.add_argument("name")
            parser.add_argument("--format", required=True)
            assert parser.parse_args(ARGUMENTS[4:]).format == "value(state.state)"
            write("states.json", states[1:] or states)
            if states[0] == "ABSENT":
                sys.exit(
                    "ERROR: (gcloud.compute.tpus.queued-resources.describe) NOT_FOUND: no such"
                )
            if states[0] == "OFFLINE":
                sys.exit("ERROR: there was a problem refreshing your tokens")
            print(states[0], flush=True)
            print("Updates are available for some components.", file=sys.stderr)
        case ["queued-resources", "delete"]:
            parser.add_argument("name")
            parser.add_argument("--force", action="store_true", required=True)
            parser.add_argument("--quiet", action="store_true", required=True)
            parser.parse_args(ARGUMENTS[4:])
            write("states.json", ["ABSENT"])
        case ["tpu-vm", "ssh"]:
            parser.add_argument("name")
            parser.add_argument("--worker", required=True, choices=["all"])
            parser.add_argument("--command", required=True)
            command = parser.parse_args(ARGUMENTS[4:]).command
            reach(states)
            codes = [on_worker(home, command) for home in homes()]
            sys.exit(next((code for code in codes if code), 0))
        case ["tpu-vm", "scp"]:
            parser.add_argument("paths", nargs="+")
            parser.add_argument("--worker", required=True, choices=["all", "0"])
            given = parser.parse_args(ARGUMENTS[4:])
            reach(states)
            *sources, to = given.paths
            for home in homes() if given.worker == "all" else homes()[:1]:
                for source in sources:
                    if ":" in to:
                        shutil.copy(source, home / to.split(":")[1])
                    else:
                        shutil.copy(local(source.split(":")[1], home), to)
        case other:
            sys.exit(f"no such command: {other}")


def reach(states):
    if states[0] != "ACTIVE" or (CLOUD / "unreachable").exists():
        sys.exit(255)


def on_worker(home, command):
    import subprocess

    environment = {"CLOUD": str(CLOUD), "HOME": str(home)}
    environment["PATH"] = f"{CLOUD / 'tools-of-workers'}:/usr/bin:/bin"
    return subprocess.run(["bash", "-c", command], cwd=home, env=environment).returncode


def python3():
    if ARGUMENTS[:3] == ["-m", "uv", "venv"]:
        place = Path(ARGUMENTS[-1]) / "bin"
        place.mkdir(parents=True, exist_ok=True)
        (place / "jcl").unlink(missing_ok=True)
        (place / "jcl").symlink_to(CLOUD / "tools-of-workers" / "jcl")


def mountpoint():
    assert ARGUMENTS == ["--quiet", "/mnt/share"], ARGUMENTS
    sys.exit(not (Path.home() / "mounted").exists())


def sudo():
    if ARGUMENTS[0] == "mount":
        (Path.home() / "mounted").touch()


def jcl():
    if ARGUMENTS == ["--help"]:
        return
    number = Path.home().name.removeprefix("worker-")
    ends = read(f"ends-{number}.json", []) or [0]
    end = ends.pop(0)
    write(f"ends-{number}.json", ends)
    with (CLOUD / "pids").open("a") as pids:
        pids.write(f"{os.getpid()}\n")
    print(f"this is jcl's log, which ends with {end}", flush=True)
    if end == "hang":
        time.sleep(60)
    elif end == "preempted":
        write("states.json", ["SUSPENDING", "SUSPENDED"])
        os.kill(os.getpid(), signal.SIGTERM)
    elif end == 0 and number == "0":
        out = local(ARGUMENTS[ARGUMENTS.index("--out") + 1])
        out.mkdir(parents=True, exist_ok=True)
        for name in ("report.json", "report.md", "matrix.png", "metrics.jsonl"):
            (out / name).write_text(f"{name} of {out.name}")
    sys.exit(end)


def srun():
    sys.exit(read("srun.json", 0))


def squeue():
    print(read("squeue.json", "RUNNING"))


if __name__ == "__main__":
    with (CLOUD / "calls.jsonl").open("a") as calls:
        calls.write(json.dumps([NAME, *ARGUMENTS]) + "\n")
    globals().get(NAME, lambda: None)()
