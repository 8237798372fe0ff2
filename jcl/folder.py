"""The run folder: who may write to it, what made it, and its lines of metrics.

config.json    what was run, on what; compared when the run goes on
metrics.jsonl  a line per logged step and per evaluation
checkpoints/   see checkpoint.py
report.json    report.md    matrix.png
input.jsonl    batches.jsonl    predictions.jsonl    of `jcl online`, see online/journal.py
forgotten.json what was taken out of it, see forgotten.py
tensorboard/   wandb/       mlflow/     where a run was given such trackers, see tracking.py
"""

import ast
import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import shutil
import subprocess
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jcl import strict
from jcl.errors import InputError, SaveError

SCHEMA = 1
PACKAGES = ("jcl", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
IDENTITY = ("name", "config", "config_hash", "data", "start", "seeds", "grid")
MACHINE = ("versions", "devices", "mesh", "replicas", "threads", "flags")
# In the order of removal: config.json, which makes it a run folder, last.
CONTENTS = (
    "report.json", "report.md", "matrix.png", "metrics.jsonl", "checkpoints",
    "tensorboard", "wandb", "mlflow", "predictions.jsonl", "batches.jsonl", "input.jsonl",
    "forgotten.json", "config.json",
)  # fmt: skip
# What config.json holds at least, and what it may hold beside it.
_HELD = {"seeds": [int]}
_MAY_HOLD = {
    "name": str, "config": {str: object}, "config_file": str, "config_hash": str,
    "git_commit": str | None, "known": {str: object},
}  # fmt: skip
_KNOWN = {
    "labels": [str], "vocabulary": int | None,
    "fields": {"text": str, "label": str, "identity": str},
}  # fmt: skip
SHARED_SECONDS = 30  # that a network disk may take to show a file


def describe(
    *,
    name: str,
    config: dict[str, Any],
    config_file: Path,
    hashes: dict[str, str],
    seeds: list[int],
    known: dict[str, Any],
    mesh: str | None = None,
    replicas: str | None = None,
    grid: Mapping[str, Sequence[float]] | Sequence[Mapping[str, float]] | None = None,
    start: Sequence[str | None] = (),
) -> dict[str, Any]:
    """What config.json holds: the identity of the run, the machine that began it, and what is
    known of its numbers (classes, vocabulary, tokens of a text), for who reads them later."""
    devices = jax.devices()
    return {
        "schema": SCHEMA,
        "name": name,
        "config": as_json(config),
        "config_file": str(config_file.resolve()),
        "config_hash": config_hash(config_file),
        "data": hashes,
        # The hashes of the params that the replicas begin with.
        "start": list(start) if any(start) else None,
        "seeds": seeds,  # one for each replica; every setting of the grid has each
        "grid": as_json(grid) or None,
        "known": as_json(known),
        "versions": {"python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in PACKAGES},
        "devices": {
            "platform": devices[0].platform,
            "kind": devices[0].device_kind,
            "count": len(devices),
            "processes": jax.process_count(),
        },
        "mesh": mesh,
        "replicas": replicas,
        "threads": _threads(),
        "flags": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(("XLA_", "JAX_", "LIBTPU_"))
        },
        "git_commit": _git_commit(config_file.parent),
    }


def _threads() -> int:
    """Those that XLA computes with on a CPU: NPROC's number, else one for every core."""
    told = os.environ.get("NPROC", "")
    return int(told) if told.isdecimal() else len(os.sched_getaffinity(0))


def as_json(config: Any) -> Any:
    """A config's fields as config.json holds them."""
    return json.loads(json.dumps(_finite(config), default=str))


def config_hash(path: Path) -> str:
    """SHA-256 of the config's code; comments, layout and docstrings do not count."""
    tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [part for part in body if not _is_docstring(part)]  # pyright: ignore
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def identity(description: dict[str, Any]) -> dict[str, Any]:
    """What all processes of a run have in common."""
    return {name: description[name] for name in (*IDENTITY, "mesh", "versions")}


def fingerprint(description: Mapping[str, Any]) -> str:
    """SHA-256 of what tells one run from another, of a `describe` or of what `read_config` gave."""
    own = {name: description.get(name) for name in IDENTITY}
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()


def check_alike(first: dict[str, Any], own: dict[str, Any]) -> None:
    """Refuses a process that was started otherwise than process 0.

    Args:
        first: the `identity` of process 0, and what else is to be alike.
        own: of this one.
    """
    old, new = _flat(first, tuple(first)), _flat(own, tuple(own))
    if old != new:
        differing = _differences(old, new, "{} is {!r} there and {!r} here")
        raise InputError(
            f"This process was started otherwise than process 0: {differing}. Give all processes "
            "of a run the same command, data and versions."
        )


def check_shared(folder: Path) -> None:
    """Refuses a folder in which this process does not see what process 0 has written."""
    for _ in range(SHARED_SECONDS):
        if (folder / "config.json").exists():
            return
        time.sleep(1)
    raise InputError(
        f"This process does not see the run folder {folder} that process 0 has opened: name one "
        "that all hosts share with --out."
    )


@contextlib.contextmanager
def opened(folder: Path, description: dict[str, Any], *, fresh: bool) -> Iterator[None]:
    """Makes or takes up a run folder, and keeps every other process out of it meanwhile.

    Raises:
        InputError: the folder is another run's or nobody's, cannot be written, or is in use.
    """
    made = _make(folder)
    lock = _lock(folder)
    begun = True
    try:
        path = folder / "config.json"
        for partial in folder.glob("*.partial"):  # of a write that was killed
            partial.unlink()
        if fresh and path.exists():
            _clear(folder)
        begun = path.exists()
        if begun:
            _refuse_links(folder)
            _compare(folder, read_config(path), description)
        else:
            begun = True  # not ours to clear
            foreign = [file.name for file in folder.iterdir() if file.name != "lock"]
            if foreign:
                raise InputError(
                    f"The folder {folder} holds {', '.join(sorted(foreign)[:3])} but no config.json"
                    ", so it is no run folder: name another with --out."
                )
            begun = False
            try:
                write_json(path, description)
            except OSError as error:
                raise InputError(
                    f"{path} cannot be written ({error.strerror}): make room, or name another "
                    "folder with --out."
                ) from error
        yield
    finally:
        if not begun and not any(folder.glob("checkpoints/[0-9]*")):  # nothing worth keeping
            with contextlib.suppress(OSError):
                _clear(folder)
                (folder / "lock").unlink()
                for path in made:
                    path.rmdir()
        os.close(lock)


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keeps every other process out of a run folder meanwhile.

    Raises:
        InputError: it cannot be written, is in use, or holds a link.
    """
    lock = _lock(folder)
    try:
        _refuse_links(folder)
        yield
    finally:
        os.close(lock)


class MetricsFile:
    """metrics.jsonl, or another file of lines, cut back to where the checkpoint was made."""

    def __init__(self, folder: Path, offset: int, name: str = "metrics.jsonl"):
        self._path = folder / name
        self._file = self._path.open("ab", buffering=0)
        found = self._path.stat().st_size
        if found < offset:
            warnings.warn(
                f"{self._path} has {found} bytes where the checkpoint counts {offset}: lines of "
                f"{self._path.stem} are lost. The training is not touched.",
                stacklevel=2,
            )
        self._file.truncate(min(found, offset))

    def write(self, **line: Any) -> None:
        """Appends one line."""
        try:
            self._file.write(json.dumps(line).encode() + b"\n")
        except OSError as error:
            raise self._failed(error.strerror) from error

    def offset(self) -> int:
        """Syncs the file and returns its length, so that a checkpoint can name it.

        Raises:
            SaveError: the file cannot be synced, or was removed.
        """
        try:
            os.fsync(self._file.fileno())
            found = os.fstat(self._file.fileno())
        except OSError as error:
            raise self._failed(error.strerror) from error
        if not found.st_nlink:
            raise self._failed("it was removed while the run went on")
        return found.st_size

    def close(self) -> None:
        self._file.close()

    def _failed(self, reason: Any) -> SaveError:
        return SaveError(
            f"{self._path} cannot be written ({reason}); what there is of checkpoints stays. Make "
            "room or bring the folder back, then start the same command again."
        )


class NoFile:
    """What a process has in place of metrics.jsonl where another writes it."""

    def write(self, **line: Any) -> None:
        pass

    def offset(self) -> int:
        return 0

    def close(self) -> None:
        pass


def write_json(path: Path, content: Any) -> None:
    """Writes the file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("w") as file:
            json.dump(content, file, indent=1, allow_nan=False)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _make(folder: Path) -> list[Path]:
    """Makes the folder; returns those of it and its parents that were not there, deepest first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"The run folder {folder} cannot be made ({error.strerror}): name another with --out."
        ) from error
    return missing


def _lock(folder: Path) -> int:
    try:
        lock = os.open(folder / "lock", os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise InputError(
            f"The run folder {folder} cannot be written ({error.strerror}): give it back its write "
            "permission or make room, or name another with --out."
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise InputError(
            f"Another process is running in {folder}: wait for it, or name another folder with "
            "--out."
        ) from None
    return lock


def _refuse_links(folder: Path) -> None:
    """A link in a folder from elsewhere would have what it leads to overwritten."""
    for path in list(folder.rglob("*")):
        if path.is_symlink() and (folder / "wandb") in path.parents:
            path.unlink()  # to a log of that tracker's own, which nobody writes by it
        elif path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise InputError(
                f"{path} is a link or no file, and a run writes to nothing outside of its folder: "
                "put there what it leads to, or name another folder with --out."
            )


def _clear(folder: Path) -> None:
    for name in CONTENTS:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def read_config(path: Path) -> dict[str, Any]:
    """What `describe` gave when the run began.

    Raises:
        InputError: the file is no run's, or of a newer or older schema.
    """
    try:
        found = strict.read_json(path)
        strict.fits(found, {"schema": int})
        if (schema := found["schema"]) == SCHEMA:
            strict.fits(found, _HELD | {key: _MAY_HOLD[key] for key in _MAY_HOLD.keys() & found})
            known = found.get("known", {})
            strict.fits(known, {key: _KNOWN[key] for key in _KNOWN.keys() & known}, "its known")
            if not found["seeds"]:
                raise ValueError("its seeds are none")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is not a run's config.json ({error}): start with --fresh, or name another "
            "folder with --out."
        ) from error
    if schema > SCHEMA:
        raise InputError(
            f"{path} has schema {schema}, newer than {SCHEMA}, which this version of jcl reads: "
            "install the version that wrote it, or name another folder with --out."
        )
    if schema < SCHEMA:
        raise InputError(
            f"{path} has schema {schema}, older than {SCHEMA}, which this version of jcl reads: "
            "end the run with the version that began it, or start with --fresh."
        )
    return found


def check_no_grid(folder: Path, description: Mapping[str, Any]) -> None:
    """Refuses a run of several settings where one is to be used.

    Raises:
        InputError: it is one.
    """
    if description.get("grid"):
        grid = description["grid"]
        names = grid if isinstance(grid, dict) else grid[0]
        fields = " and ".join(f"--{field.replace('_', '-')}" for field in names)
        raise InputError(
            f"{folder} holds a grid of settings: choose one by `jcl report {folder}`, run it by "
            f"itself with its {fields}, and name that run's folder."
        )


def _compare(folder: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    old, new = _flat(found, IDENTITY), _flat(wanted, IDENTITY)
    if "start" not in found:  # older versions did not write it
        old["start"] = new["start"]
    if old != new:
        raise InputError(
            f"{folder} was made by another run: {_differences(old, new)}. Give the same settings "
            "to go on with it, --fresh to start again, or --out for another folder."
        )
    old, new = _flat(found, MACHINE), _flat(wanted, MACHINE)
    old.setdefault("devices.processes", 1)  # older versions did not write it
    if old != new:
        warnings.warn(
            f"{folder} was begun elsewhere: {_differences(old, new)}. The run goes on, equal to "
            "the uninterrupted one to rounding but not to the bit.",
            stacklevel=3,
        )


def _flat(tree: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    flat = {}
    for name in names:
        value = tree.get(name)
        if isinstance(value, dict):
            flat |= {f"{name}.{inner}": part for inner, part in value.items()}
        else:
            flat[name] = value
    return flat


def _differences(
    old: dict[str, Any], new: dict[str, Any], say: str = "{} was {!r} and is now {!r}"
) -> str:
    return "; ".join(
        say.format(name, old.get(name, "absent"), new.get(name, "absent"))
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    )


def _is_docstring(node: Any) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _git_commit(folder: Path) -> str | None:
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()


def _finite(value: Any) -> Any:
    """Numbers that JSON does not know become words."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
