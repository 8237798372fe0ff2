"""Memories that outlive their run: written to a file, and taken up from it by another run."""

import contextlib
import contextvars
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcl import strict
from jcl.errors import InputError, SaveError
from jcl.memory.policy import Items, Origin, Policy, rows

_SHAPES_ALONE = contextvars.ContextVar("shapes_alone", default=False)
_TOKENS = tuple(
    f"items/{name}" for name in ("inputs", "targets", "attention_mask", "token_types", "mask")
)
# Along these axes an imported leaf may be longer in the new run, and what is filled in there.
_GROWS = {
    **dict.fromkeys((*_TOKENS, "items/label_mask"), (1, 0)),
    **dict.fromkeys(("stored", "offered", "full"), (0, 0)),
    "place": (0, -1),
}


def save(
    path: str | os.PathLike[str],
    memory: Any,
    *,
    labels: Sequence[str] = (),
    vocabulary: int | None = None,
) -> None:
    """Writes a memory to a file, from which `starting_from` takes it up in another run.

    The memory is part of the learner's state, `state.strategy[0]` where it is the first part's of a
    chain; of a finished run `jcl memory RUN FILE.npz` writes it.

    Args:
        path: of a file of numpy's, .npz, without pickle; it is replaced.
        memory: what a policy made: a NamedTuple of arrays with `items` and `seen`; or the same
            arrays by name, "items/inputs".
        labels: the names of the classes, by class number, such as a text stream's `labels`; the
            other run must have them too. `jcl memory` takes them from the run folder.
        vocabulary: of the model, where the items are of a language model.

    Raises:
        InputError: it is no memory, or one of several seeds (give one seed's).
        SaveError: the file could not be written.
    """
    arrays = memory if isinstance(memory, Mapping) else named(memory)
    arrays = {name: np.asarray(leaf) for name, leaf in arrays.items()}
    if "seen" not in arrays or not any(name.startswith("items/") for name in arrays):
        raise InputError(
            f"memory.save: a {type(memory).__name__} with {', '.join(arrays) or 'no arrays'} is no "
            "memory, which has items and seen: give state.strategy[...] of the part that keeps it."
        )
    if arrays["seen"].ndim:
        raise InputError(
            f"memory.save: the memory is one of {len(arrays['seen'])} seeds: save one of them, "
            "jax.tree.map(lambda leaf: leaf[0], memory)."
        )
    if labels:
        arrays["known/labels"] = np.array(labels, str)
    if vocabulary is not None:
        arrays["known/vocabulary"] = np.array(vocabulary)
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.unlink(missing_ok=True)  # a link that someone has put there would be followed
        with partial.open("xb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
        partial.replace(path)
    except OSError as error:
        raise SaveError(
            f"{path}: the memory could not be written ({error}). Make room or choose another "
            "place, and save again."
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def starting_from(
    policy: Any, path: str | os.PathLike[str], *, labels: Sequence[str] = ()
) -> Policy:
    """The policy, whose memory begins with what `save` has written rather than empty.

    init(batch) = the arrays of the file, or insert(..., the file's examples, one after the other).

    With the params that go with it (`jcl.models.starting_from`) a run goes on where another ended:
    `replay(starting_from(reservoir(1000), "memory.npz"), size=16)`. The draws of the first step are
    of it.

    A policy of the same kind and capacity takes the arrays as they are, counts included, so that
    new items take the place of old ones as they would have. Any other, such as one of another
    capacity, is offered the examples by its own insert, the oldest first where the file is a
    ring's; where that fills it, it goes on with the file's counts, else it counts them alone, and
    what comes later takes their place sooner.

    There may be more classes than in the other run, behind its own, and longer texts: examples
    are filled up on the right, with the mask 0 (attention_mask; of a language model mask).

    Args:
        policy: any memory; herding, which needs features, only as it was in the other run.
        path: of the file. A run that has a checkpoint goes on without it.
        labels: the names of this run's classes, by class number; to be given where the file has
            names, and then they begin with those.

    Raises:
        InputError: the file is none of numpy's, or its classes are others; at init, if there is no
            file, or it holds other items than the batch, or of other shapes or types, each by name;
            from `replay`, if it holds targets that the model has no logit for.

    >>> import jax.numpy as jnp, jcl, pathlib, tempfile
    >>> policy, batch = jcl.memory.ring(4), {"inputs": jnp.array([3.0, 5.0])}
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "memory.npz"
    >>> jcl.memory.save(path, policy.insert(policy.init(batch), batch, None))
    >>> jcl.memory.starting_from(policy, path).init(batch).items["inputs"].tolist()
    [3.0, 5.0, 0.0, 0.0]
    """
    if not isinstance(policy, Policy):
        raise InputError(
            "memory.starting_from: give a memory and a file, as in "
            'starting_from(jcl.memory.reservoir(1000), "memory.npz").'
        )
    try:
        found = strict.read_npz(Path(path))
        _check_memory(found)
    except FileNotFoundError:
        return policy._replace(init=_awaiting(policy, path))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is no memory that can be read ({error}): give a file that jcl.memory.save or "
            "`jcl memory` has written."
        ) from error
    _check_same_classes(path, found.pop("known/labels", np.array([], str)).tolist(), labels)
    vocabulary = found.pop("known/vocabulary", None)
    targets = found.get("items/targets", np.zeros(0))
    mask = found.get("items/mask")
    if mask is not None and mask.dtype.kind in "biuf" and mask.shape == targets.shape:
        targets = targets[mask > 0]
    whole = targets.size and np.issubdtype(targets.dtype, np.integer)
    origin = Origin(
        str(path),
        int(targets.max()) if whole else -1,
        None if vocabulary is None else int(vocabulary),
    )
    return policy._replace(init=lambda batch: _taken(policy, path, found, batch), origin=origin)


def _check_memory(found: dict[str, np.ndarray]) -> None:
    """Passes the arrays of a memory, whose counts do not exceed what it holds.

    Raises:
        ValueError: they are no memory's.
    """
    items = {name: leaf for name, leaf in found.items() if name.startswith("items/")}
    capacities = {leaf.shape[0] if leaf.ndim else 0 for leaf in items.values()}
    if len(capacities) != 1 or 0 in capacities:
        raise ValueError("it has no items, or not one capacity for all")
    if any(leaf.dtype.kind not in "biufV" for leaf in items.values()):
        raise ValueError("its items are no numbers")
    counts = {name: found[name] for name in ("seen", "stored", "filled", "place") if name in found}
    wrong = [name for name, leaf in counts.items() if leaf.dtype.kind not in "iub"]
    if wrong or "seen" not in found or found["seen"].ndim or found["seen"] < 0:
        raise ValueError(f"{', '.join(wrong) or 'seen'} is no count")
    (capacity,) = capacities
    stored = found.get("stored", np.zeros(1, int))
    fitting = {leaf.shape for leaf in map(found.get, ("filled", "scores")) if leaf is not None}
    if stored.ndim != 1 or stored.min(initial=0) < 0 or stored.sum(dtype=float) > capacity:
        raise ValueError(f"it counts more than its {capacity} items")
    if fitting - {(capacity,)}:
        raise ValueError(f"filled or scores are not of its {capacity} items")
    labels, vocabulary = found.get("known/labels"), found.get("known/vocabulary")
    if labels is not None and (labels.dtype.kind != "U" or labels.ndim != 1):
        raise ValueError("known/labels are no words")
    if vocabulary is not None and (vocabulary.dtype.kind not in "iu" or vocabulary.ndim):
        raise ValueError("known/vocabulary is no whole number")


@contextlib.contextmanager
def shapes_alone() -> Iterator[None]:
    """Inside, `starting_from` needs no file: only shapes are asked for, to restore a checkpoint."""
    token = _SHAPES_ALONE.set(True)
    try:
        yield
    finally:
        _SHAPES_ALONE.reset(token)


def _awaiting(policy: Policy, path: str | os.PathLike[str]) -> Callable[[Items], Any]:
    def init(batch):
        if _SHAPES_ALONE.get():
            return policy.init(batch)
        raise InputError(
            f"There is no {path}, with which the memory begins: write it by `jcl memory RUN {path}`"
            ", or leave out memory.starting_from. Only a run with a checkpoint goes on without it."
        )

    return init


def _check_same_classes(
    path: str | os.PathLike[str], own: Sequence[str], labels: Sequence[str]
) -> None:
    """Refuses other names than the file's: numbers alone would make one class of another."""
    if own and not len(labels):
        shown = ", ".join(own[:5]) + (", ..." if len(own) > 5 else "")
        raise InputError(
            f"{path}: its targets are the classes {shown}: give starting_from labels="
            "stream.labels, so that it is known whether they are this run's as well."
        )
    for number, name in enumerate(own):
        here = labels[number] if number < len(labels) else None
        if here != name:
            raise InputError(
                f"{path}: class {number} is {name!r} in the file and "
                f"{'missing' if here is None else repr(here)} in this run: give the stream the "
                "file's classes first and in their order (tasks= lists of labels), new ones behind."
            )


def _taken(policy: Policy, path: Any, found: dict[str, np.ndarray], batch: Items) -> Any:
    """The memory that a file's arrays make, in the shapes of the policy and the batch."""
    empty = jax.eval_shape(policy.init, batch)
    wanted = named(empty)
    found = {name: _grown(name, leaf, wanted.get(name), batch) for name, leaf in found.items()}
    if wanted.keys() == found.keys() and all(_alike(found[n], wanted[n]) for n in wanted):
        return jax.tree.unflatten(
            jax.tree.structure(empty), [jnp.asarray(found[n]) for n in wanted]
        )
    names = {name for name in wanted.keys() | found.keys() if name.startswith("items/")}
    names |= _GROWS.keys() & wanted.keys() & found.keys()
    wrong = [
        f"{name} is {_shown(found.get(name))} in the file and {_shown(wanted.get(name))} in this "
        "run"
        for name in sorted(names)
        if not _alike(found.get(name), wanted.get(name), capacity=name.startswith("items/"))
    ]
    if wrong:
        inputs = [leaf.get("items/inputs") for leaf in (found, wanted)]
        lengths = [each.shape[1] for each in inputs if each is not None and each.ndim == 2]
        remedy = ""
        if len(lengths) == 2 and lengths[0] > lengths[1]:
            remedy = f" (a stream of texts takes length={lengths[0]})"
        raise InputError(
            f"{path}: {'; '.join(wrong)}. Give batches with the keys and types that the other run "
            f"had, no fewer classes, and texts that are no shorter{remedy}; longer ones need a "
            "mask."
        )
    if policy.boundary or (policy.score and "scores" not in found):
        raise InputError(
            f"{path}: this policy wants features or losses with every example, which the file has "
            "not: give it as it was in the other run, or take a reservoir, a ring or a "
            "class-balanced memory."
        )
    structure = jax.tree.structure(empty.items)
    order, capacity = _stored(found), rows(empty.items)
    names = [f"items/{name}" for name in named(empty.items)]
    items = jax.tree.unflatten(structure, [jnp.asarray(found[name][order]) for name in names])
    scores = jnp.asarray(found["scores"][order]) if policy.score else None

    def offer(memory, each):
        item, score = jax.tree.map(lambda leaf: leaf[None], each)
        return policy.insert(memory, item, None, score), None

    memory, _ = jax.lax.scan(offer, policy.init(batch), (items, scores))
    if len(order) >= capacity:
        counts = {"seen", "offered"} & wanted.keys() & found.keys()
        memory = memory._replace(**{name: jnp.asarray(found[name]) for name in counts})
    return memory


def _grown(name: str, leaf: np.ndarray, wanted: Any, batch: Items) -> np.ndarray:
    """The leaf as long as it is wanted, where what is filled in does not count."""
    if wanted is None or leaf.ndim != len(wanted.shape):
        return leaf
    if leaf.dtype.kind == "V" and leaf.dtype.itemsize == wanted.dtype.itemsize:
        leaf = leaf.view(wanted.dtype)  # numpy knows no bfloat16 and reads its bytes as nameless
    axis, fill = _GROWS.get(name, (leaf.ndim, 0))
    if axis >= leaf.ndim or (name in _TOKENS and not _marks_tokens(batch)):
        return leaf
    more = max(0, wanted.shape[axis] - leaf.shape[axis])
    width = [(0, more if each == axis else 0) for each in range(leaf.ndim)]
    return np.pad(leaf, width, constant_values=fill)


def _marks_tokens(batch: Items) -> bool:
    """Whether each token has a mark of its own, which says that it is none."""
    targets = batch.get("targets")
    if targets is None or "inputs" not in batch:
        return False
    mark = batch.get("attention_mask" if len(targets.shape) == 1 else "mask")
    return mark is not None and tuple(mark.shape) == tuple(batch["inputs"].shape)


def _stored(found: dict[str, np.ndarray]) -> np.ndarray:
    """The slots that hold an item; a ring's begin with the oldest."""
    if "filled" in found:
        return np.flatnonzero(found["filled"])
    if "stored" in found:
        return np.arange(found["stored"].sum())
    seen = int(found["seen"])
    capacity = len(next(leaf for name, leaf in found.items() if name.startswith("items/")))
    first = seen % capacity if seen > capacity else 0
    return (first + np.arange(min(seen, capacity))) % capacity


def named(memory: Any) -> dict[str, Any]:
    """The leaves of a memory by name, such as "items/inputs"."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(memory)
    }


def _alike(found: Any, wanted: Any, *, capacity: bool = False) -> bool:
    """Whether both have one shape and type; the capacity, the first axis, may be left out."""
    if found is None or wanted is None:
        return False
    shapes = (tuple(each.shape)[1 if capacity else 0 :] for each in (found, wanted))
    return len(set(shapes)) == 1 and found.dtype == wanted.dtype


def _shown(leaf: Any) -> str:
    return "missing" if leaf is None else f"{leaf.dtype}{list(leaf.shape)}"
