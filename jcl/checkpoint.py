"""Checkpoints: Orbax's arrays with a manifest of SHA-256 sums, complete or absent.

A checkpoint is a folder `checkpoints/000007/` with `state/` (Orbax), `progress.json`,
`manifest.json` and the manifest's own sum, `manifest.sha256`. It is written under another name,
synced, and renamed, so that a kill at any moment leaves either all of it or none. The manifest is
verified before a restore, since Orbax restores a flipped bit without a word.

Where a run has several processes, all of them save and restore, into the same folder: Orbax writes
the arrays of each, and everything else is done and decided by process 0.
"""

import concurrent.futures
import contextlib
import hashlib
import json
import logging
import math
import os
import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from jcl import hosts, strict
from jcl.errors import InputError, SaveError

SCHEMA = 1
# Orbax looks at the wall clock to see whether it has waited for too long, and that clock may jump.
# Several processes know by their heartbeats that one is gone.
PATIENT = ocp.options.AsyncOptions(
    timeout_secs=365 * 24 * 3600, create_directories_asynchronously=False
)
_LEAF = {"path": str, "shape": [int], "dtype": str}

Loaded = TypeVar("Loaded")

for _name in ("absl", "orbax", "asyncio"):  # they report what save raises, at length
    logging.getLogger(_name).setLevel(logging.CRITICAL)


class Saver:
    """Writes the checkpoints of a run one at a time, while the run goes on.

    `save` returns as soon as there is a copy of the state. What a thread then does with it (Orbax,
    the sums, the rename) fails, if it fails, by a `SaveError` from the next `save` or `wait`; left
    as a context, it waits.

    With several processes each calls `save` at the same steps, which neither a clock nor a signal
    of its own may decide, and `save` returns when the checkpoint is written.

    Args:
        folder: the run's `checkpoints/`; made if it does not exist, its parent is not.
        keep: complete checkpoints left behind.
    """

    def __init__(self, folder: Path, *, keep: int = 2):
        self._folder, self._keep = folder, keep
        self._copy: Callable[[Any], Any] | None = None
        self._worker = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._writing: concurrent.futures.Future[Path] | None = None

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        try:
            self.wait()
        except SaveError as error:
            if kind is None:
                raise
            warnings.warn(str(error), stacklevel=2)  # the error that ends the run is another
        finally:
            self._worker.shutdown()

    def save(self, state: Any, progress: dict[str, Any]) -> None:
        """Begins one more checkpoint, of the state and the progress as they are now.

        Args:
            state: a pytree of arrays, which may be donated as soon as this returns.
            progress: what else the run needs to go on; JSON.

        Raises:
            SaveError: this checkpoint or the one before could not be written.
        """
        self.wait()
        if hosts.several():  # what they agree on takes the devices, which no thread may have beside
            save(self._folder, state, progress, keep=self._keep)
            return
        finish = _begun(self._folder, self._copied(state), progress, self._keep)
        self._writing = self._worker.submit(finish)

    def wait(self) -> None:
        """Returns when no checkpoint is being written any more.

        Raises:
            SaveError: the last one could not be written.
        """
        writing, self._writing = self._writing, None
        if writing:
            writing.result()

    def _copied(self, state: Any) -> Any:
        """On a CPU Orbax reads the run's own arrays while it writes, and the next step gets them as
        a donation; from another device it copies them before it returns."""
        if jax.default_backend() != "cpu":
            return state
        if self._copy is None:
            place = jax.tree.map(lambda leaf: leaf.sharding, state)
            self._copy = jax.jit(_copy, out_shardings=place)
        return self._copy(state)


def save(folder: Path, state: Any, progress: dict[str, Any], *, keep: int = 2) -> Path:
    """Writes one more checkpoint, removes all but the last `keep`, and returns its path.

    Raises:
        SaveError: the disk is full, read-only or gone.
    """
    return _begun(folder, state, progress, keep)()


def _begun(
    folder: Path,
    state: Any,
    progress: dict[str, Any],
    keep: int,
    paths: Sequence[str] | None = None,
) -> Callable[[], Path]:
    """Begins to write a checkpoint; the function returned ends it, in any thread."""
    numbers = hosts.told(_numbers(folder))
    final = folder / f"{max(numbers, default=-1) + 1:06d}"
    partial = folder / f"{final.name}.partial"
    last = f"checkpoint {max(numbers):06d} stays" if numbers else "there is none before it"
    leaves = {
        name: {"path": path, "shape": list(leaf.shape), "dtype": str(leaf.dtype)}
        for (name, leaf), path in zip(_named(state).items(), paths or _paths(state), strict=True)
    }
    with _cleared(partial, final, last):
        hosts.by_first(lambda: _begin(partial))
        checkpointer = ocp.StandardCheckpointer(async_options=PATIENT)
        try:
            checkpointer.save(partial.absolute() / "state", _named(state))
        except BaseException:
            checkpointer.close()
            raise

    def finish() -> Path:
        with _cleared(partial, final, last):
            checkpointer.close()  # waits until everything is written
            hosts.by_first(lambda: _commit(partial, final, leaves, progress))
        for number in sorted([*numbers, int(final.name)])[:-keep] if hosts.first() else ():
            shutil.rmtree(folder / f"{number:06d}", ignore_errors=True)
        return final

    return finish


def _begin(partial: Path) -> None:
    partial.parent.mkdir(exist_ok=True)  # without its parents: a run folder that is gone stays so
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()


def _commit(partial: Path, final: Path, leaves: dict[str, Any], progress: dict[str, Any]) -> None:
    """Gives Orbax's finished arrays their progress, manifest and name."""
    _write(partial / "progress.json", progress)
    manifest = {"schema": SCHEMA, "leaves": leaves, "sha256": _sums(partial)}
    _write(partial / "manifest.json", manifest)
    (partial / "manifest.sha256").write_text(_sum(partial / "manifest.json"))
    for file in _files(partial):
        _sync(file)
    partial.rename(final)
    _sync(final.parent)


@contextlib.contextmanager
def _cleared(partial: Path, final: Path, last: str) -> Iterator[None]:
    """Removes what was written of a checkpoint where the rest of it fails."""
    try:
        yield
    except Exception as error:  # Orbax and tensorstore raise ValueError for a full disk
        if hosts.first():
            _remove(partial)
        raise SaveError(
            f"The checkpoint {final} could not be written ({_first_line(error)}); {last}. Make "
            "room, give the folder back its write permission or bring it back, then start the same "
            "command again."
        ) from error


def _copy(state: Any) -> Any:
    return jax.tree.map(jnp.copy, state)


def _remove(folder: Path) -> None:
    """Removes the folder, into which threads of a write that failed may still be writing."""
    for _ in range(100):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)


def restore(folder: Path, abstract: Any, *, own: bool = True) -> tuple[Any, dict[str, Any]] | None:
    """The newest intact checkpoint's state and progress, or None if there is no checkpoint.

    A damaged checkpoint is passed over with a warning and, by the run alone, renamed to
    `*.damaged`.

    Args:
        folder: the run's `checkpoints/`.
        abstract: the state as `jax.ShapeDtypeStruct`s with shardings.
        own: whether this is the run itself, which holds the folder's lock; anybody else changes
            nothing, and the run may write on and remove meanwhile what is being read.

    Raises:
        InputError: checkpoints exist and none is intact, or the newest intact one is of a newer
            or older schema or of another state, or cannot be what it says it is.
    """
    if folder.is_symlink():
        raise InputError(f"{folder} is a link: put there what it leads to.")

    def load(path):
        with hosts.together():
            _check(path, _manifest(path), abstract)
        named = _arrays(path, _named(abstract))
        state = jax.tree.unflatten(jax.tree.structure(abstract), list(named.values()))
        return state, _progress(path)

    return _of_newest(folder, load, own=own)


def read(folder: Path) -> dict[str, Any]:
    """The arrays of the newest intact checkpoint by their paths, such as "params/wte", on one
    device.

    Args:
        folder: the run's `checkpoints/`; nothing in it is changed, and the run may be going on.

    Raises:
        InputError: there is no intact checkpoint, or it is of a newer or older schema.
    """
    found = _of_newest(folder, _loaded, own=False)
    if found is None:
        raise InputError(f"There is no intact checkpoint in {folder}: name the folder of a run.")
    return found


def others(folder: Path) -> Iterator[dict[str, Any] | None]:
    """The arrays, as `read` gives them, of each checkpoint that `rewrite` removes, all but the
    newest intact one; None of what is damaged or unfinished."""
    newest = _newest(folder, own=False)
    for path in sorted(folder.iterdir()):
        if path.name != newest:
            intact = path.name.isdecimal() and not _damage(path)
            yield _loaded(path) if intact else None


def _loaded(path: Path) -> dict[str, Any]:
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def abstract(leaf):
        return jax.ShapeDtypeStruct(tuple(leaf["shape"]), _dtype(leaf), sharding=place)

    leaves = _manifest(path)["leaves"]
    _check_declared(path, leaves)
    found = _arrays(path, {name: abstract(leaf) for name, leaf in leaves.items()})
    return {leaf["path"]: found[name] for name, leaf in leaves.items()}


def rewrite(
    folder: Path,
    change: Callable[[dict[str, Any], dict[str, Any]], tuple[dict[str, Any], dict[str, Any]]],
) -> Path:
    """Leaves one checkpoint, the newest intact one as `change` makes it anew; returns its path.

    All others go, damaged and unfinished ones too. A kill leaves the old ones, the new one or both.

    Args:
        folder: the run's `checkpoints/`; the caller holds the run folder's lock.
        change: (the arrays by their paths, as `read` gives them, the progress) -> others of the
            same paths, shapes and types, and another progress.

    Raises:
        InputError: there is no intact checkpoint, or it is of a newer or older schema.
        SaveError: the new one could not be written; the old ones stay.
    """
    old = read(folder)
    progress = _of_newest(folder, _progress, own=False)
    new, progress = change(old, progress or {})
    leaves = [jnp.asarray(new[path]) for path in old]
    final = _begun(folder, leaves, progress, 1, tuple(old))()
    for other in folder.iterdir():
        if other != final:
            shutil.rmtree(other) if other.is_dir() else other.unlink()
    _sync(folder)
    return final


def _of_newest(folder: Path, load: Callable[[Path], Loaded], *, own: bool) -> Loaded | None:
    """What `load` makes of the newest intact checkpoint, of a newer one where its run has removed
    that meanwhile; None if there is none."""
    while True:
        name = hosts.by_first(lambda: _newest(folder, own))
        if name is None:
            return None
        try:
            return load(folder / name)
        except (InputError, OSError):
            if own or not _damage(folder / name):
                raise


def _newest(folder: Path, own: bool) -> str | None:
    """The name of the newest intact checkpoint; damaged ones behind it are renamed by their own
    run."""
    passed: set[int] = set()
    while left := set(_numbers(folder)) - passed:
        number = max(left)  # looked for anew, since a run may be writing more
        path = folder / f"{number:06d}"
        damage = _damage(path)
        if not damage:
            return path.name
        passed.add(number)
        if not own and not path.exists():
            continue
        warnings.warn(
            f"The checkpoint {path} is damaged ({damage}): the one before it is taken.",
            stacklevel=2,
        )
        if own:
            path.rename(_free(path.with_suffix(".damaged")))
    if passed:
        raise InputError(
            f"None of the {len(passed)} checkpoints in {folder} is intact; start the same command "
            "with --fresh to begin again."
        )
    return None


def sizes(folder: Path) -> dict[str, tuple[tuple[int, ...], int]]:
    """The shapes and bytes of the arrays of the newest checkpoint by their paths; no array is read.

    Args:
        folder: the run's `checkpoints/`.

    Raises:
        InputError: there is none, or its manifest is damaged.
    """
    numbers = _numbers(folder)
    if not numbers:
        raise InputError(f"There is no checkpoint in {folder}: name the folder of a run.")
    leaves = _manifest(folder / f"{max(numbers):06d}")["leaves"].values()
    return {
        leaf["path"]: (tuple(leaf["shape"]), math.prod(leaf["shape"]) * _dtype(leaf).itemsize)
        for leaf in leaves
    }


def _dtype(leaf: dict[str, Any]) -> Any:
    key = leaf["dtype"].startswith("key<")
    return jax.random.key(0).dtype if key else jax.numpy.dtype(leaf["dtype"])


def _manifest(path: Path) -> dict[str, Any]:
    """What an intact checkpoint says of itself: one of a forger is intact as well."""
    try:
        manifest = strict.read_json(path / "manifest.json")
        _check_schema(path, manifest)
        strict.fits(manifest, {"leaves": {str: _LEAF}})
        for name, leaf in manifest["leaves"].items():
            numbered = re.fullmatch("[0-9]+", name)
            if not numbered or min(leaf["shape"], default=0) < 0 or str(_dtype(leaf)) == "object":
                raise ValueError(f"its leaf {name[:40]!r} has no number, no shape or no type")
    except InputError:
        raise
    except (OSError, ValueError, TypeError) as error:
        raise InputError(_forged(path, "manifest.json", error)) from error
    return manifest


def _progress(path: Path) -> dict[str, Any]:
    try:
        progress = strict.read_json(path / "progress.json")
        strict.fits(progress, {str: object})
    except (OSError, ValueError) as error:
        raise InputError(_forged(path, "progress.json", error)) from error
    return progress


def _check_declared(path: Path, leaves: dict[str, Any]) -> None:
    """Refuses to make arrays that are out of proportion to the files; only a state of almost
    nothing but zeros is packed so well."""
    declared = sum(math.prod(leaf["shape"]) * _dtype(leaf).itemsize for leaf in leaves.values())
    held = sum(file.stat().st_size for file in _files(path / "state"))
    if declared > strict.most_unpacked(held):
        reason = f"it declares {declared:,} bytes of arrays, where its files hold {held:,}"
        raise InputError(_forged(path, "manifest.json", reason))


def _arrays(path: Path, shapes: dict[str, Any]) -> dict[str, Any]:
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(path.absolute() / "state", shapes)
    except Exception as error:  # Orbax raises Exception itself
        raise InputError(_forged(path, "state", _first_line(error))) from error


def _forged(path: Path, name: str, reason: Any) -> str:
    return (
        f"{path / name} cannot be read ({reason}), though its sums are right: get "
        "the run folder again from where it comes from, or begin again with --fresh."
    )


def _check_schema(path: Path, manifest: dict[str, Any]) -> None:
    schema = manifest["schema"]
    if schema > SCHEMA:
        raise InputError(
            f"The checkpoint {path} has schema {schema}, newer than {SCHEMA}, which this version "
            "of jcl reads: install the version that wrote it, or name another folder with --out."
        )
    if schema < SCHEMA:
        raise InputError(
            f"The checkpoint {path} has schema {schema}, older than {SCHEMA}, which this version "
            "of jcl reads: end the run with the version that began it, or start with --fresh."
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
        for file in (path, *path.rglob("*")):
            if file.is_symlink() or not (file.is_file() or file.is_dir()):
                return f"{file.relative_to(path.parent)} is a link, or no file"
        if (path / "manifest.sha256").read_text() != _sum(path / "manifest.json"):
            return "manifest.json has another SHA-256 sum than manifest.sha256"
        manifest = strict.read_json(path / "manifest.json")
        strict.fits(manifest, {"schema": int, "sha256": {str: str}})
        expected, found = manifest["sha256"], _sums(path)
    except (OSError, ValueError) as error:  # of the disk, or a file of it was removed meanwhile
        return f"it cannot be read: {_first_line(error)}"
    for name in ("manifest.json", "manifest.sha256"):
        found.pop(name, None)
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            return f"{name} is missing"
        if found[name] != expected.get(name):
            return f"{name} has another SHA-256 sum than the manifest"
    return None


def _check(path: Path, manifest: dict[str, Any], abstract: Any) -> None:
    _check_schema(path, manifest)
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
