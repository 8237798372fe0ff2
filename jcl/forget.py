"""`jcl forget`: takes chosen examples out of a run folder or an exported memory, and proves it.

The checkpoint is written anew without them, older ones go, lines of an online run's journal are
blanked in place, and then every array and every file is searched for what was taken out.
forgotten.json says what happened, by salted hashes and never by a text: begun before anything is
changed, done at the end, so that a command that was cut off is given again.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import tyro

from jcl import checkpoint, folder, journal, memory, remains, selection, strict
from jcl.errors import InputError
from jcl.forgotten import NAME, Record


COUNTS = ("seen", "stored", "offered", "full", "filled", "place", "scores")
CANNOT = (
    "What the model has learned from them is not undone: it stays in the weights, in the optimizer's "
    "moments and in what strategies have computed of all examples (importances, anchors, teachers, "
    "means of classes). Only training again without them undoes that. The run's own data, exported "
    "memories and copies elsewhere are as they were."
)


@dataclasses.dataclass(frozen=True)
class Options:
    """Takes examples out of a run's memories, journal and pending data, proves it, and says what it
    cannot undo.

    All that is meant by any --where goes, and every equal example with it, such as:
    jcl forget runs/support --where text="my card is 4929" --where regex="(?i)ada lovelace"

    Attributes:
        place: a run folder, or a memory that `jcl memory` has written, .npz.
        where: text=TEXT, a whole text (of a language model: every block that holds it or, at an
            edge, a piece of it); regex=PATTERN, found in the text; label=NAME or label=NUMBER;
            task=NAME or task=NUMBER. May be given several times.
        where_file: whole texts, a line of JSON each: "a text" or {"text": "a text"}.
        tokenizer_of: of a memory .npz, the run folder whose tokenizer its texts were read with.
        config: the run's config file, which knows the tokenizer, if it was moved or does not lie in
            ./configs; needed for text= and regex= alone.
        dry_run: say what would go and change nothing.
    """

    place: tyro.conf.Positional[Path]
    where: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    where_file: Path | None = None
    tokenizer_of: Path | None = None
    config: Path | None = None
    dry_run: bool = False


class Holder(NamedTuple):
    """Arrays of a state that hold examples.

    Attributes:
        name: path of the part, such as "strategy/0".
        leaves: by name; every "items/..." is [*axes, capacity, ...].
        axes: of seeds, or of GEM's slots.
        filled: [*axes, capacity], which slots hold an example.
        ring: whether it is the ring of the last batches that `periodically` keeps.
    """

    name: str
    leaves: dict[str, Any]
    axes: tuple[int, ...]
    filled: np.ndarray
    ring: bool = False

    def items(self) -> dict[str, np.ndarray]:
        """Every slot's example, all axes as one."""
        skipped = len(self.axes)
        return {
            name[6:]: np.asarray(leaf).reshape((-1, *leaf.shape[skipped + 1 :]))
            for name, leaf in self.leaves.items()
            if name.startswith("items/")
        }


def forget(options: Options, load: Callable[[Path], ModuleType]) -> list[str]:
    """Does what the options say; returns what is to be told.

    Args:
        options: of the command.
        load: executes a config file.

    Raises:
        InputError: what was asked for is not understood; the folder is in use; or something of the
            examples is left in a file that this command does not change. Then all else is done.
        SaveError: the checkpoint could not be written; nothing was taken out.
    """
    chosen = selection.read(options.where, options.where_file)
    if options.place.is_file():
        return _of_file(options, chosen, load)
    if not (options.place / "config.json").is_file():
        raise InputError(
            f"{options.place} is no run folder (there is no config.json in it) and no memory of "
            "`jcl memory`: name one of them."
        )
    chooser, lines = _chooser(options.place, options, chosen, load)
    if options.dry_run:
        return _of_run(options.place, chooser, lines, dry=True)
    with folder.held(options.place):
        return _of_run(options.place, chooser, lines, dry=False)


def _chooser(
    run: Path, options: Options, chosen: selection.Selection, load: Callable[[Path], ModuleType]
) -> tuple[selection.Chooser, journal.Fields]:
    description = folder.read_config(run / "config.json")
    tokenizer, fields = None, journal.Fields()
    if chosen.by_text:
        from jcl.answer import rebuilt

        experiment = rebuilt(run, load, options.config)
        lines = getattr(experiment, "lines", None)
        tokenizer = experiment.tokenizer or getattr(lines, "tokenizer", None)
        fields = journal.Fields(
            *(getattr(lines, name, default) for name, default in fields._asdict().items())
        )
    labels = description.get("known", {}).get("labels", ())
    tasks = tuple(description.get("data") or ())
    return selection.Chooser(chosen, labels=labels, tasks=tasks, tokenizer=tokenizer), fields


def _of_run(
    run: Path, chooser: selection.Chooser, fields: journal.Fields, *, dry: bool
) -> list[str]:
    place = run / "checkpoints"
    entries = sorted(place.iterdir()) if place.is_dir() else []
    arrays = checkpoint.read(place) if entries else {}
    replicas = len(folder.read_config(run / "config.json")["seeds"])
    holders = list(_holders(arrays, replicas))
    meant = _meant(holders, chooser)
    lines = journal.find(run, chooser, fields)
    rows, texts = _rows(holders, meant), list(chooser.selection.texts)
    if chooser.tokenizer is not None:
        texts += [chooser.text_of(row) for row in rows if _is_text(row)]
    texts += lines.texts
    told = [
        f"{run}: {each.name}: {chosen.sum()} of {each.filled.sum()} stored examples"
        for each, chosen in zip(holders, meant, strict=True)
    ]
    if not holders:
        told = [f"{run}: its method stores no examples"]
    if lines.found:
        told.append(f"{run}: {len(lines.numbers)} of {lines.found} lines of the journal")
    if dry:
        return [*told, "Nothing was changed (--dry-run)."]

    record = Record(run / NAME)
    record.begin(chooser.selection.kinds(), [*rows, *lines.hashed])
    if holders:
        taken = _without(holders, meant)
        checkpoint.rewrite(
            place,
            lambda old, progress: ({**old, **taken}, journal.without(progress, lines.numbers)),
        )
        if len(entries) > 1:
            told.append(f"{run}: {len(entries) - 1} older checkpoints are gone")
    elif lines.numbers and entries:
        checkpoint.rewrite(
            place, lambda old, progress: (old, journal.without(progress, lines.numbers))
        )
    journal.blank(run, lines)

    arrays = checkpoint.read(place) if entries else {}
    left = [f"{place}, {name}" for name in _found(arrays, rows)]
    files = [
        file
        for file in sorted(run.rglob("*"))
        if file.is_file() and "state" not in file.relative_to(run).parts and file.name != NAME
    ]
    short = sum(len(text.encode()) < remains.LEAST_BYTES for text in set(texts))
    left += map(str, remains.in_files(files, remains.patterns(texts, rows)))
    record.end(left)
    told.append(
        f"{run}: searched {len(arrays)} arrays of the checkpoint and {len(files)} files for "
        f"{len(rows)} examples and {len(set(texts))} texts"
    )
    if short:
        told.append(
            f"{short} texts of fewer than {remains.LEAST_BYTES} bytes were looked for in the arrays "
            "alone: they stand by chance in any file"
        )
    if left:
        raise InputError(
            "; ".join(told) + f". The examples are taken out, but something of them still stands "
            f"in {', '.join(left)}: this command does not change that; remove it by hand."
        )
    return [*told, "Nothing of them is left there.", CANNOT]


def _of_file(
    options: Options, chosen: selection.Selection, load: Callable[[Path], ModuleType]
) -> list[str]:
    path = options.place
    try:
        arrays = strict.read_npz(path)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is no memory that can be read ({error}): give a run folder, or a file that "
            "`jcl memory` has written."
        ) from error
    held = list(_holders({f"{path.name}/{name}": leaf for name, leaf in arrays.items()}, 1))
    if len(held) != 1:
        raise InputError(f"{path} holds no memory: give a file that `jcl memory` has written.")
    labels, tokenizer = arrays.get("known/labels", np.array([], str)).tolist(), None
    if chosen.by_text:
        if options.tokenizer_of is None:
            raise InputError(
                f"{path}: to find a text, its tokenizer is needed: give the run folder it comes "
                "from by --tokenizer-of, or choose by label= or task=."
            )
        tokenizer = _chooser(options.tokenizer_of, options, chosen, load)[0].tokenizer
    chooser = selection.Chooser(chosen, labels=labels, tokenizer=tokenizer)
    meant = _meant(held, chooser)
    told = [f"{path}: {meant[0].sum()} of {held[0].filled.sum()} stored examples"]
    if options.dry_run:
        return [*told, "Nothing was changed (--dry-run)."]
    rows = _rows(held, meant)
    record = Record(path.with_name(f"{path.stem}.{NAME}"))
    record.begin(chosen.kinds(), rows)
    taken = _without(held, meant)
    memory.save(path, {**arrays, **{name.removeprefix(f"{path.name}/"): leaf
                                    for name, leaf in taken.items()}})  # fmt: skip
    left = _found(strict.read_npz(path), rows)
    record.end(left)
    if left:
        raise InputError(f"{path}: something of the examples still stands in {', '.join(left)}.")
    return [*told, f"{path}: searched {len(arrays)} arrays: nothing of them is left", CANNOT]


def _holders(arrays: Mapping[str, Any], replicas: int) -> Iterable[Holder]:
    """What holds examples in a state: memories by their names, and rings of batches."""
    for path, seen in arrays.items():
        if path.rpartition("/")[2] != "seen":
            continue
        part = path.removesuffix("seen")
        leaves = {
            name.removeprefix(part): leaf
            for name, leaf in arrays.items()
            if name.startswith(f"{part}items/")
            or (name.startswith(part) and name.removeprefix(part) in COUNTS)
        }
        items = [leaf for name, leaf in leaves.items() if name.startswith("items/")]
        if items:
            axes = tuple(seen.shape)
            yield Holder(part.rstrip("/"), leaves, axes, _filled(leaves, items[0].shape[len(axes)]))
    for part in {path.partition("ring/")[0] for path in arrays if "/ring/" in path}:
        if not part.startswith("strategy"):
            continue
        leaves = {
            f"items/{name.removeprefix(f'{part}ring/')}": leaf
            for name, leaf in arrays.items()
            if name.startswith(f"{part}ring/")
        }
        shape = next(iter(leaves.values())).shape
        # [batches, batch] slots, behind the seeds where there are several.
        axes = shape[: 1 + (replicas > 1)]
        filled = np.ones((*axes, shape[len(axes)]), bool)
        yield Holder(f"{part}ring", leaves, axes, filled, ring=True)


def _filled(leaves: Mapping[str, Any], capacity: int) -> np.ndarray:
    if "filled" in leaves:
        return np.asarray(leaves["filled"])
    held = np.asarray(leaves["stored"]).sum(-1) if "stored" in leaves else np.asarray(leaves["seen"])
    return np.arange(capacity) < held[..., None]


def _meant(holders: Sequence[Holder], chooser: selection.Chooser) -> list[np.ndarray]:
    """Of each holder [*axes, capacity]: what is chosen, and every example equal to one of those."""
    meant, known = [], set()
    for each in holders:
        items, slots = each.items(), np.flatnonzero(each.filled)
        chosen = np.zeros(each.filled.size, bool)
        if len(slots):
            only = {name: leaf[slots] for name, leaf in items.items()}
            chosen[slots] = chooser.of_items(only, each.name)
        known |= {row.tobytes() for row in _inputs(items)[chosen]}
        meant.append(chosen)
    for each, chosen in zip(holders, meant, strict=True):
        same = np.array([row.tobytes() in known for row in _inputs(each.items())], bool)
        chosen |= same & each.filled.ravel()
    return [chosen.reshape(each.filled.shape) for each, chosen in zip(holders, meant, strict=True)]


def _inputs(items: Mapping[str, np.ndarray]) -> np.ndarray:
    """[slots, ...], what an example is known by."""
    return items["inputs"] if "inputs" in items else next(iter(items.values()))


def _rows(holders: Sequence[Holder], meant: Sequence[np.ndarray]) -> list[np.ndarray]:
    """What is taken out, each once."""
    rows = {}
    for each, chosen in zip(holders, meant, strict=True):
        for row in _inputs(each.items())[chosen.ravel()]:
            rows[row.tobytes()] = row
    return list(rows.values())


def _is_text(row: np.ndarray) -> bool:
    return row.ndim == 1 and row.dtype.kind in "iu"


def _without(holders: Sequence[Holder], meant: Sequence[np.ndarray]) -> dict[str, Any]:
    """The arrays by their paths, without what is meant."""
    taken = {}
    for each, chosen in zip(holders, meant, strict=True):
        if not chosen.any():
            continue
        if not each.ring:
            new = memory.without(each.leaves, ~chosen)
            taken |= {f"{each.name}/{name}": leaf for name, leaf in new.items()}
            continue
        # A ring's batches have no empty rows: others stand in, or, where all go, zeros.
        flat, stay = chosen.ravel(), np.flatnonzero(~chosen.ravel())
        source = np.resize(stay, flat.size) if len(stay) else np.zeros(flat.size, int)
        for name, leaf in each.items().items():
            other = leaf[source] if len(stay) else np.zeros_like(leaf)
            wide = flat.reshape((-1,) + (1,) * (leaf.ndim - 1))
            shape = each.leaves[f"items/{name}"].shape
            taken[f"{each.name}/{name}"] = np.where(wide, other, leaf).reshape(shape)
    return taken


def _found(arrays: Mapping[str, Any], rows: Sequence[np.ndarray]) -> list[str]:
    plain = {name: leaf for name, leaf in arrays.items() if "key<" not in str(leaf.dtype)}
    kinds: dict[Any, list[np.ndarray]] = {}
    for row in rows:
        kinds.setdefault((row.shape, row.dtype), []).append(row)
    return sorted({name for each in kinds.values() for name in remains.in_arrays(plain, each)})
