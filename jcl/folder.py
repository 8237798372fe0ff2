"""The run folder: who may write to it, what made it, and its lines of metrics.

config.json    what was run, on what; compared when the run goes on
metrics.jsonl  a line per logged step and per evaluation
checkpoints/   see checkpoint.py
report.json    report.md    matrix.png
"""

import ast
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from jcl.errors import InputError

SCHEMA = 1
PACKAGES = ("jcl", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
IDENTITY = ("name", "config", "config_hash", "data", "seeds")
MACHINE = ("versions", "devices", "threads", "flags")
CONTENTS = ("config.json", "metrics.jsonl", "checkpoints", "report.json", "report.md", "matrix.png")


def describe(
    *,
    name: str,
    config: dict[str, Any],
    config_file: Path,
    hashes: dict[str, str],
    seeds: list[int],
) -> dict[str, Any]:
    """What config.json holds: the identity of the run, and the machine that began it."""
    devices = jax.devices()
    return {
        "schema": SCHEMA,
        "name": name,
        "config": json.loads(json.dumps(config, default=str)),
        "config_hash": config_hash(config_file),
        "data": hashes,
        "seeds": seeds,
        "versions": {"python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in PACKAGES},
        "devices": {
            "platform": devices[0].platform,
            "kind": devices[0].device_kind,
            "count": len(devices),
        },
        "threads": len(os.sched_getaffinity(0)),
        "flags": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(("XLA_", "JAX_", "LIBTPU_"))
        },
        "git_commit": _git_commit(config_file.parent),
    }


def config_hash(path: Path) -> str:
    """SHA-256 of the config's code; comments, layout and docstrings do not count."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [part for part in body if not _is_docstring(part)]  # pyright: ignore
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


@contextmanager
def opened(folder: Path, description: dict[str, Any], *, fresh: bool) -> Iterator[None]:
    """Makes or takes up a run folder, and keeps every other process out of it meanwhile.

    Raises:
        InputError: the folder is another run's or nobody's, cannot be written, or is in use.
    """
    made = _make(folder)
    lock = _lock(folder)
    try:
        path = folder / "config.json"
        if fresh:
            _clear(folder)
        if path.exists():
            _compare(folder, _read_config(path), description)
        else:
            foreign = [file.name for file in folder.iterdir() if file.name != "lock"]
            if foreign:
                raise InputError(
                    f"The folder {folder} holds {', '.join(sorted(foreign)[:3])} but no config.json"
                    ", so it is no run folder: name another with --out."
                )
            try:
                write_json(path, description)
            except OSError as error:
                raise InputError(
                    f"{path} cannot be written ({error.strerror}): make room, or name another "
                    "folder with --out."
                ) from error
        yield
    finally:
        if made and not any(folder.glob("checkpoints/[0-9]*")):  # nothing worth keeping
            shutil.rmtree(folder, ignore_errors=True)
            for parent in made:
                _remove_if_empty(parent)
        os.close(lock)


class MetricsFile:
    """metrics.jsonl, cut back to where the checkpoint was made."""

    def __init__(self, folder: Path, offset: int):
        self._file = (folder / "metrics.jsonl").open("ab")
        self._file.truncate(offset)
        self._file.seek(offset)

    def write(self, **line: Any) -> None:
        """Appends one line."""
        self._file.write(json.dumps(line).encode() + b"\n")

    def offset(self) -> int:
        """Syncs the file and returns its length, so that a checkpoint can name it."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        self._file.close()


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
        lock = os.open(folder / "lock", os.O_CREAT | os.O_RDWR, 0o644)
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


def _clear(folder: Path) -> None:
    if (folder / "config.json").exists():
        for name in CONTENTS:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
        schema = found["schema"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is not a run's config.json ({error}): start with --fresh, or name another "
            "folder with --out."
        ) from error
    if schema > SCHEMA:
        raise InputError(
            f"{path} has schema {schema}, newer than {SCHEMA}, which this version of jcl reads: "
            "install the version that wrote it, or name another folder with --out."
        )
    return found


def _compare(folder: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    old, new = _flat(found, IDENTITY), _flat(wanted, IDENTITY)
    if old != new:
        raise InputError(
            f"{folder} was made by another run: {_differences(old, new)}. Give the same settings "
            "to go on with it, --fresh to start again, or --out for another folder."
        )
    old, new = _flat(found, MACHINE), _flat(wanted, MACHINE)
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


def _differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    return "; ".join(
        f"{name} was {old.get(name, 'absent')!r} and is now {new.get(name, 'absent')!r}"
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


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        return
