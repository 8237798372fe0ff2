"""`jcl forget`: takes chosen examples out of a run folder or an exported memory, and proves it.

The checkpoint is written anew without them, older ones go, lines of an online run's journal are
blanked in place, and then every array and every file is searched for what was taken out.
forgotten.json says what happened, by salted hashes and never by a text: begun before anything is
changed, done at the end, so that a command that was cut off is given again.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import tyro
from rich.console import Console

from jcl import checkpoint, folder, memory, strict
from jcl.errors import InputError
from jcl.forget import journal, remains, selection, stored
from jcl.forgotten import NAME, Record

CANNOT = (
    "What the model has learned from them is not undone: it stays in the weights, in the "
    "optimizer's moments and in what strategies have computed of all examples (importances, "
    "anchors, teachers, means of classes). Only training again without them undoes that. The run's "
    "own data, exported memories and copies elsewhere are as they were."
)


@dataclasses.dataclass(frozen=True)
class ForgetOptions:
    """Takes examples out of a run's memories, journal and pending data, proves it, and says what it
    cannot undo.

      jcl forget runs/support --where text="my card is 4929" --where regex="(?i)ada lovelace"

    All that is meant by any --where goes, and every equal example with it.

    Attributes:
        place: a run folder; a memory that `jcl memory` has written, .npz; or the lines that an
            online run was given, .jsonl, to which its own copy must stay equal.
        where: text=TEXT, a whole text (of a language model: every block that holds it or, at an
            edge, a piece of it); regex=PATTERN, found in the text; label=NAME or label=NUMBER;
            task=NAME or task=NUMBER. May be given several times.
        where_file: whole texts, a line of JSON each: "a text" or {"text": "a text"}.
        tokenizer_of: a run folder whose tokenizer the texts were read with, of a memory .npz, or
            of a run whose own config or data are gone; of lines .jsonl the run that was given them,
            which knows their fields and labels.
        config: the run's config file, which knows the tokenizer, if it was moved or does not lie in
            ./configs; needed for text= and regex= alone, and where an online run's config.json does
            not say what the fields of its lines are.
        dry_run: say what would go and change nothing.
    """

    place: tyro.conf.Positional[Path]
    where: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    where_file: Path | None = None
    tokenizer_of: Path | None = None
    config: Path | None = None
    dry_run: bool = False


def main(arguments: list[str], load: Callable[[Path], ModuleType]) -> None:
    """`jcl forget` with these arguments.

    Args:
        arguments: behind "forget".
        load: executes a config file.

    Raises:
        InputError, SaveError: from `forget`.
    """
    options = tyro.cli(ForgetOptions, args=arguments, prog="jcl forget")
    console = Console(markup=False, highlight=False)
    for line in forget(options, load):
        console.print(line, soft_wrap=True)


def forget(options: ForgetOptions, load: Callable[[Path], ModuleType]) -> list[str]:
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
    if options.place.suffix == ".jsonl" and options.place.is_file():
        return _of_lines(options, chosen, load)
    if options.place.is_file():
        return _of_file(options, chosen, load)
    if not (options.place / "config.json").is_file():
        raise InputError(
            f"{options.place} is no run folder (there is no config.json in it) and no memory of "
            "`jcl memory`: name one of them, or a file of lines, .jsonl."
        )
    known = _known(options.place, options, chosen, load)
    if options.dry_run:
        return _of_run(options.place, known, dry=True)
    with folder.held(options.place):
        return _of_run(options.place, known, dry=False)


class _Known(NamedTuple):
    """What a run knows of examples and, where it is an online one, of lines."""

    chooser: selection.Chooser
    fields: journal.Fields = journal.Fields()
    read: Callable[[bytes], Any] | None = None


def _known(
    run: Path,
    options: ForgetOptions,
    chosen: selection.Selection,
    load: Callable[[Path], ModuleType],
) -> _Known:
    description = folder.read_config(run / "config.json")
    known = description.get("known", {})
    fields, lines, tokenizer = known.get("fields"), None, None
    online = (run / journal.INPUT).is_file()
    if chosen.by_text or (online and not fields):
        from jcl.answer import rebuilt

        experiment = rebuilt(options.tokenizer_of or run, load, options.config)
        lines = experiment.lines
        tokenizer = experiment.tokenizer or getattr(lines, "tokenizer", None)
        if lines is not None:
            fields = fields or {name: getattr(lines, name) for name in journal.Fields._fields}
            lines = dataclasses.replace(lines, **fields)
    if online and not fields:
        raise InputError(
            f"{run} has a journal, and neither its config.json nor the config says what the fields "
            "of a line are: give by --config the file whose experiment has "
            "lines=jcl.data.Lines(...)."
        )
    chooser = selection.Chooser(
        chosen,
        labels=known.get("labels", ()),
        tasks=tuple(description.get("data") or ()),
        tokenizer=tokenizer,
        parts=bool(fields) and not known.get("labels"),
    )
    return _Known(chooser, journal.Fields(**(fields or {})), lines and lines.read)


def _check_patterns(chooser: selection.Chooser, where: Path) -> None:
    if chooser.selection.patterns and chooser.tokenizer is not None and not chooser.reads_back:
        raise InputError(
            f"--where regex=...: the tokenizer, a {type(chooser.tokenizer).__name__}, has no "
            f"decode, so that no text is known of the examples in {where}: choose them by text=, "
            "label= or task=."
        )


def _of_run(run: Path, known: _Known, *, dry: bool) -> list[str]:
    chooser, place = known.chooser, run / "checkpoints"
    if not (run / journal.INPUT).is_file():
        _check_patterns(chooser, run)
    entries = sorted(place.iterdir()) if place.is_dir() else []
    arrays = checkpoint.read(place) if entries else {}
    replicas = len(folder.read_config(run / "config.json")["seeds"])
    holders = list(stored.holders(arrays, replicas))
    chosen = stored.rows(holders, stored.meant(holders, chooser))
    lines = journal.find(
        run / journal.INPUT, chooser, known.fields, known.read, (row.tobytes() for row in chosen)
    )
    # The memories and the journal lose the same, though an example may say less than its line.
    meant = stored.meant(holders, chooser, (row.tobytes() for row in lines.rows))
    taken = stored.rows(holders, meant)
    rows = [*taken, *lines.rows]
    texts = [*chooser.selection.texts, *lines.texts]
    if chooser.reads_back:
        texts += [chooser.text_of(row) for row in rows if _is_text(row)]
    told = [
        f"{run}: {each.name}: {(chosen & each.filled).sum()} of {each.filled.sum()} stored examples"
        for each, chosen in zip(holders, meant, strict=True)
    ]
    if not holders:
        told = [f"{run}: its method stores no examples"]
    if lines.found:
        told.append(f"{run}: {len(lines.numbers)} of {lines.found} lines of the journal")
    record = Record(run / NAME)
    nothing = not (taken or lines.numbers or record.cut)
    if nothing and entries and _any_older(place, replicas, chooser):
        nothing = False
        told.append(f"{run}: older checkpoints hold some, or cannot be read")
    if dry:
        return [*told, "Nothing was changed (--dry-run)."]
    if nothing:
        if left := remains.in_files(_files(run), remains.patterns(texts, [])):
            raise InputError(
                "; ".join(told) + ". Nothing was meant and nothing was changed, but a text stands "
                f"in {', '.join(map(str, left))}: remove it by hand."
            )
        return [*told, "Nothing was meant; nothing was changed."]

    record.begin(chooser.selection.kinds(), [*taken, *lines.hashed])
    if holders:
        new = stored.without(holders, meant)
        checkpoint.rewrite(
            place,
            lambda old, progress: ({**old, **new}, journal.without(progress, lines.numbers)),
        )
        if len(entries) > 1:
            told.append(f"{run}: {len(entries) - 1} older checkpoints are gone")
    elif lines.numbers and entries:
        checkpoint.rewrite(
            place, lambda old, progress: (old, journal.without(progress, lines.numbers))
        )
    # The input last: by it a command that is given again finds the lines.
    journal.blank(run / journal.PREDICTIONS, lines.numbers, journal.nameless)
    journal.blank(run / journal.INPUT, lines.numbers, journal.spaces)

    arrays = checkpoint.read(place) if entries else {}
    left = [f"{place}, {name}" for name in _found(arrays, rows)]
    files = _files(run)
    short = sum(len(text.encode()) < remains.LEAST_BYTES for text in set(texts))
    left += map(str, remains.in_files(files, remains.patterns(texts, rows)))
    record.end(left)
    told.append(
        f"{run}: searched {len(arrays)} arrays of the checkpoint and {len(files)} files for "
        f"{len({row.tobytes() for row in rows})} examples and {len(set(texts))} texts"
    )
    if short:
        told.append(
            f"{short} texts of fewer than {remains.LEAST_BYTES} bytes were looked for in the "
            "arrays alone: they stand by chance in any file"
        )
    if left:
        raise InputError(
            "; ".join(told) + f". The examples are taken out, but something of them still stands "
            f"in {', '.join(left)}: this command does not change that; remove it by hand."
        )
    return [*told, "Nothing of them is left there.", CANNOT]


def _any_older(place: Path, replicas: int, chooser: selection.Chooser) -> bool:
    """Whether a checkpoint that a rewriting removes holds what is meant, or cannot be read."""
    for arrays in checkpoint.others(place):
        if arrays is None:
            return True
        meant = stored.meant(list(stored.holders(arrays, replicas)), chooser)
        if any(each.any() for each in meant):
            return True
    return False


def _files(run: Path) -> list[Path]:
    """All but the record, and what Orbax packs, whose arrays are searched."""
    packed = {path / "state" for path in (run / "checkpoints").glob("*")}
    return [
        file
        for file in sorted(run.rglob("*"))
        if file.is_file() and file.name != NAME and not packed & set(file.parents)
    ]


def _of_file(
    options: ForgetOptions, chosen: selection.Selection, load: Callable[[Path], ModuleType]
) -> list[str]:
    path = options.place
    try:
        arrays = strict.read_npz(path)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is no memory that can be read ({error}): give a run folder, or a file that "
            "`jcl memory` has written."
        ) from error
    held = list(stored.holders({f"{path.name}/{name}": leaf for name, leaf in arrays.items()}, 1))
    if len(held) != 1:
        raise InputError(f"{path} holds no memory: give a file that `jcl memory` has written.")
    labels, tokenizer = arrays.get("known/labels", np.array([], str)).tolist(), None
    if chosen.by_text:
        if options.tokenizer_of is None:
            raise InputError(
                f"{path}: to find a text, its tokenizer is needed: give the run folder it comes "
                "from by --tokenizer-of, or choose by label= or task=."
            )
        tokenizer = _known(options.tokenizer_of, options, chosen, load).chooser.tokenizer
    chooser = selection.Chooser(chosen, labels=labels, tokenizer=tokenizer)
    _check_patterns(chooser, path)
    meant = stored.meant(held, chooser)
    told = [
        f"{path}: {(meant[0] & held[0].filled).sum()} of {held[0].filled.sum()} stored examples"
    ]
    if options.dry_run:
        return [*told, "Nothing was changed (--dry-run)."]
    rows = stored.rows(held, meant)
    if not rows:
        return [*told, "Nothing was meant; nothing was changed."]
    record = Record(path.with_name(f"{path.stem}.{NAME}"))
    record.begin(chosen.kinds(), rows)
    taken = stored.without(held, meant)
    memory.save(path, {**arrays, **{name.removeprefix(f"{path.name}/"): leaf
                                    for name, leaf in taken.items()}})  # fmt: skip
    left = _found(strict.read_npz(path), rows)
    record.end(left)
    if left:
        raise InputError(f"{path}: something of the examples still stands in {', '.join(left)}.")
    return [*told, f"{path}: searched {len(arrays)} arrays: nothing of them is left", CANNOT]


def _of_lines(
    options: ForgetOptions, chosen: selection.Selection, load: Callable[[Path], ModuleType]
) -> list[str]:
    """A file of lines, such as the one that an online run was given."""
    path = options.place
    if chosen.tasks:
        raise InputError(f"--where task=...: the lines of {path} have no tasks.")
    if options.tokenizer_of:
        known = _known(options.tokenizer_of, options, chosen, load)
    else:  # every label is a name that a line may have
        known = _Known(selection.Chooser(chosen, labels=chosen.labels))
    lines = journal.find(path, known.chooser, known.fields, known.read)
    if lines.lacking:
        raise InputError(
            f"{path}: no line has the field {' or '.join(lines.lacking)}: name the run that was "
            "given the lines by --tokenizer-of, which knows what their fields are."
        )
    told = [f"{path}: {len(lines.numbers)} of {lines.found} lines"]
    if options.dry_run:
        return [*told, "Nothing was changed (--dry-run)."]
    journal.blank(path, lines.numbers, journal.spaces)
    if remains.in_files([path], remains.patterns([*chosen.texts, *lines.texts], [])):
        raise InputError(f"{path}: a line that is not JSON, or another field, still holds a text.")
    if not lines.numbers:
        return [f"{told[0]}: no line is meant; nothing was changed."]
    return [*told, f"{path}: they are blank now, and nothing of their texts is left there."]


def _is_text(row: np.ndarray) -> bool:
    return row.ndim == 1 and row.dtype.kind in "iu"


def _found(arrays: Mapping[str, Any], rows: Sequence[np.ndarray]) -> list[str]:
    plain = {name: leaf for name, leaf in arrays.items() if "key<" not in str(leaf.dtype)}
    kinds: dict[Any, list[np.ndarray]] = {}
    for row in rows:
        kinds.setdefault((row.shape, row.dtype), []).append(row)
    return sorted({name for each in kinds.values() for name in remains.in_arrays(plain, each)})
