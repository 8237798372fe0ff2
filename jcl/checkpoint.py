"""Checkpoints: Orbax's arrays with a manifest of SHA-256 sums, complete or absent.

A checkpoint is a folder `checkpoints/000007/` with `state/` (Orbax), `progress.json`,
`manifest.json` and the manifest's own sum, `manifest.sha256`. It is written under another name,
synced, and renamed, so that a kill at any moment leaves either all of it or none. The manifest is
verified before a restore, since Orbax restores a flipped bit without a word.

Where a run has several processes, all of them save and restore, into the same folder: Orbax writes
the arrays of each, and everything else is done and decided by process 0.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import time
import warnings
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from jcl import hosts
from jcl.errors import InputError, SaveError

SCHEMA = 1

for _name in ("absl", "orbax", "asyncio"):  # they report what save raises, at length
    logging.getLogger(_name).setLevel(logging.CRITICAL)


def save(folder: Path, state: Any, progress: dict[str, Any], *, keep: int = 2) -> Path:
    """Writes one more checkpoint and removes all but the last `keep`.

    Args:
        folder: the run's `checkpoints/`; made if it does not exist.
        state: a pytree of arrays.
        progress: what else the run needs to go on; JSON.
        keep: complete checkpoints left behind.

    Raises:
        SaveError: the disk is full, read-only or gone.
    """
    numbers = hosts.told(_numbers(folder))
    final = folder / f"{max(numbers, default=-1) + 1:06d}"
    partial = folder / f"{final.name}.partial"
    try:
        hosts.by_first(lambda: _begin(partial))
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(partial.absolute() / "state", _named(state))
        hosts.by_first(lambda: _complete(partial, final, state, progress))
    except Exception as error:  # Orbax and tensorstore raise ValueError for a full disk
        if hosts.first():
            _remove(partial)
        last = f"checkpoint {max(numbers):06d} stays" if numbers else "there is none before it"
        raise SaveError(
            f"The checkpoint {final} could not be written ({_first_line(error)}); {last}. Make "
            "room or give the folder back its write permission, then start the same command again."
        ) from error
    if hosts.first():
        for number in sorted([*numbers, int(final.name)])[:-keep]:
            shutil.rmtree(folder / f"{number:06d}", ignore_errors=True)
    return final


def _begin(partial: Path) -> None:
    partial.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()


def _complete(partial: Path, final: Path, state: Any, progress: dict[str, Any]) -> None:
    """Gives a checkpoint whose arrays are written its manifest and its name."""
    _write(partial / "progress.json", progress)
    leaves = {
        name: {"path": path, "shape": list(leaf.shape), "dtype": str(leaf.dtype)}
        for (name, leaf), path in zip(_named(state).items(), _paths(state), strict=True)
    }
    manifest = {"schema": SCHEMA, "leaves": leaves, "sha256": _sums(partial)}
    _write(partial / "manifest.json", manifest)
    (partial / "manifest.sha256").write_text(_sum(partial / "manifest.json"))
    for file in _files(partial):
        _sync(file)
    partial.rename(final)
    _sync(final.parent)


def _remove(folder: Path) -> None:
    """Removes the folder, into which threads of a write that failed may still be writing."""
    for _ in range(100):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)


def restore(folder: Path, abstract: Any) -> tuple[Any, dict[str, Any]] | None:
    """The newest intact checkpoint's state and progress, or None if there is no checkpoint.

    A damaged checkpoint is passed over with a warning and renamed to `*.damaged`.

    Args:
        folder: the run's `checkpoints/`.
        abstract: the state as `jax.ShapeDtypeStruct`s with shardings.

    Raises:
        InputError: checkpoints exist and none is intact, or the newest intact one is of a newer
            schema or of another state.
    """
    name = hosts.by_first(lambda: _newest(folder))
    if name is None:
        return None
    path = folder / name
    with hosts.together():
        _check(path, json.loads((path / "manifest.json").read_text()), abstract)
    with ocp.StandardCheckpointer() as checkpointer:
        named = checkpointer.restore(path.absolute() / "state", _named(abstract))
    state = jax.tree.unflatten(jax.tree.structure(abstract), list(named.values()))
    return state, json.loads((path / "progress.json").read_text())


def _newest(folder: Path) -> str | None:
    """The name of the newest intact checkpoint; damaged ones behind it are renamed."""
    numbers = _numbers(folder)
    for number in sorted(numbers, reverse=True):
        path = folder / f"{number:06d}"
        damage = _damage(path)
        if not damage:
            return path.name
        warnings.warn(
            f"The checkpoint {path} is damaged ({damage}): the one before it is taken.",
            stacklevel=2,
        )
        path.rename(_free(path.with_suffix(".damaged")))
    if numbers:
        raise InputError(
            f"None of the {len(numbers)} checkpoints in {folder} is intact; start the same command "
            "with --fresh to begin again."
        )
    return None


def read(folder: Path) -> dict[str, Any]:
    """The arrays of the newest intact checkpoint by their paths, such as "params/wte", on one
    device.

    Args:
        folder: the run's `checkpoints/`; nothing in it is changed.

    Raises:
        InputError: there is no intact checkpoint, or it is of a newer schema.
    """
    intact = [n for n in sorted(_numbers(folder), reverse=True) if not _damage(folder / f"{n:06d}")]
    if not intact:
        raise InputError(f"There is no intact checkpoint in {folder}: name the folder of a run.")
    path = folder / f"{intact[0]:06d}"
    manifest = json.loads((path / "manifest.json").read_text())
    if manifest["schema"] > SCHEMA:
        raise InputError(_newer(path, manifest))
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def abstract(leaf):
        key = leaf["dtype"].startswith("key<")
        dtype = jax.random.key(0).dtype if key else jax.numpy.dtype(leaf["dtype"])
        return jax.ShapeDtypeStruct(tuple(leaf["shape"]), dtype, sharding=place)

    with ocp.StandardCheckpointer() as checkpointer:
        shapes = {name: abstract(leaf) for name, leaf in manifest["leaves"].items()}
        found = checkpointer.restore(path.absolute() / "state", shapes)
    return {leaf["path"]: found[name] for name, leaf in manifest["leaves"].items()}


def _newer(path: Path, manifest: dict[str, Any]) -> str:
    return (
        f"The checkpoint {path} has schema {manifest['schema']}, newer than {SCHEMA}, which "
        "this version of jcl reads: install the version that wrote it, or name another folder "
        "with --out."
    )


def _named(state: Any) -> dict[str, Any]:
    """The leaves by number: Orbax reads a slash in a name as a folder."""
    return {f"{number:05d}": leaf for number, leaf in enumerate(jax.tree.leaves(state))}


def _paths(state: Any) -> list[str]:
    return [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(state)
    ]


def _numbers(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    names = (path.name for path in folder.iterdir() if path.is_dir())
    return [int(name) for name in names if re.fullmatch("[0-9]{6}", name)]


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _sums(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): _sum(path) for path in _files(folder)}


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        if (path / "manifest.sha256").read_text() != _sum(path / "manifest.json"):
            return "manifest.json has another SHA-256 sum than manifest.sha256"
        expected = json.loads((path / "manifest.json").read_text())["sha256"]
    except (OSError, ValueError) as error:
        return f"its manifest cannot be read: {_first_line(error)}"
    found = _sums(path)
    del found["manifest.json"], found["manifest.sha256"]
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            return f"{name} is missing"
        if found[name] != expected.get(name):
            return f"{name} has another SHA-256 sum than the manifest"
    return None


def _check(path: Path, manifest: dict[str, Any], abstract: Any) -> None:
    if manifest["schema"] > SCHEMA:
        raise InputError(_newer(path, manifest))
    expected = [
        (name, list(leaf.shape), str(leaf.dtype))
        for name, leaf in zip(_paths(abstract), jax.tree.leaves(abstract), strict=True)
    ]
    found = [(leaf["path"], leaf["shape"], leaf["dtype"]) for leaf in manifest["leaves"].values()]
    if found != expected:
        differing = sorted({str(leaf) for leaf in set(map(str, found)) ^ set(map(str, expected))})
        raise InputError(
            f"The checkpoint {path} holds another state than this run's model and strategy: "
            f"{', '.join(differing[:4])}. Start with --fresh, or name another folder with --out."
        )


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _free(path: Path) -> Path:
    number, free = 2, path
    while free.exists():
        free, number = path.with_name(f"{path.name}.{number}"), number + 1
    return free


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
