"""The examples that a state stores, found by the names of its arrays, and the state without some.

A memory is a part with "items" and "seen", whatever strategy keeps it; `periodically` keeps a
"ring" of its last batches.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jcl import memory
from jcl.forget.selection import Chooser

COUNTS = ("seen", "stored", "offered", "full", "filled", "place", "scores")


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

    def there(self) -> np.ndarray:
        """[slots], which hold anything: herding leaves copies in slots that count as empty."""
        known = _inputs(self.items())
        return self.filled.ravel() | np.any(known.reshape(len(known), -1) != 0, axis=1)

    def items(self) -> dict[str, np.ndarray]:
        """Every slot's example, all axes as one."""
        skipped = len(self.axes)
        return {
            name[6:]: np.asarray(leaf).reshape((-1, *leaf.shape[skipped + 1 :]))
            for name, leaf in self.leaves.items()
            if name.startswith("items/")
        }


def holders(arrays: Mapping[str, Any], replicas: int) -> Iterable[Holder]:
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
        slots = shape[: len(axes) + 1]
        ring = Holder(f"{part}ring", leaves, axes, np.zeros(slots, bool), ring=True)
        yield ring._replace(filled=ring.there().reshape(slots))  # at first its rows are zeros


def _filled(leaves: Mapping[str, Any], capacity: int) -> np.ndarray:
    if "filled" in leaves:
        return np.asarray(leaves["filled"])
    held = (
        np.asarray(leaves["stored"]).sum(-1) if "stored" in leaves else np.asarray(leaves["seen"])
    )
    return np.arange(capacity) < held[..., None]


def meant(
    holders: Sequence[Holder], chooser: Chooser, known: Iterable[bytes] = ()
) -> list[np.ndarray]:
    """Of each holder [*axes, capacity]: what is chosen, and every example equal to one of those or
    to one whose ids are known, as bytes."""
    meant, known = [], set(known)
    for each in holders:
        items, slots = each.items(), np.flatnonzero(each.there())
        chosen = np.zeros(each.filled.size, bool)
        if len(slots):
            only = {name: leaf[slots] for name, leaf in items.items()}
            chosen[slots] = chooser.of_items(only, each.name)
        known |= {row.tobytes() for row in _inputs(items)[chosen]}
        meant.append(chosen)
    for each, chosen in zip(holders, meant, strict=True):
        same = np.array([row.tobytes() in known for row in _inputs(each.items())], bool)
        chosen |= same & each.there()
    return [chosen.reshape(each.filled.shape) for each, chosen in zip(holders, meant, strict=True)]


def _inputs(items: Mapping[str, np.ndarray]) -> np.ndarray:
    """[slots, ...], what an example is known by."""
    return items["inputs"] if "inputs" in items else next(iter(items.values()))


def rows(holders: Sequence[Holder], meant: Sequence[np.ndarray]) -> list[np.ndarray]:
    """What is taken out, each once."""
    rows = {}
    for each, chosen in zip(holders, meant, strict=True):
        for row in _inputs(each.items())[chosen.ravel()]:
            rows[row.tobytes()] = row
    return list(rows.values())


def without(holders: Sequence[Holder], meant: Sequence[np.ndarray]) -> dict[str, Any]:
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
