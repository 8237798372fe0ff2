"""Where arrays live: a mesh over the devices at hand, and the shardings of state and batches.

Nothing here knows of strategies. The axes of a mesh are

data    batches and memories are split over it;
fsdp    batches as well, and every params-sized tree of the state;
tensor  the matmuls of a block, by columns and then by rows (Shoeybi et al. 2019, section 3).

Which leaf is split where, the ordered rules say: `PARAMS` by the path of a parameter, which every
tree follows that repeats the params' paths (moments, importances, anchors, teachers), and `REST` by
the path of whatever else the state holds. Several replicas, where no mesh is asked for, are dealt
out over the devices if their number allows, each with its state and batches. This is what jax.pmap
does, in the words that it is made of, `jax.shard_map` over a mesh of one axis inside `jax.jit`:
pmap itself takes no more replicas than devices and has a mesh of its own for every function. On one
device everything is the default placement.
"""

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, get_args

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import AxisType, NamedSharding, PartitionSpec, SingleDeviceSharding

from jcl import checks, paths
from jcl.errors import InputError

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")

Replicas = Literal["auto", "vmap", "map", "pmap"]  # how several share the devices

Shape = tuple[int, ...]
Sizes = Mapping[str, int]
Split = Callable[[Shape, Sizes], PartitionSpec]

_PARTS = contextvars.ContextVar("parts", default=1)


class Rule(NamedTuple):
    """How the leaves are split whose path is the first to match.

    Attributes:
        where: patterns of paths, such as "*/c_fc/kernel".
        split: (shape, {axis of the mesh: devices along it}) -> which axes are split over which.
    """

    where: tuple[str, ...]
    split: Split


def _fully(along: int | None = None) -> Split:
    """Over tensor along the given axis, and over fsdp along the longest other that it divides."""

    def split(shape, sizes):
        spec: list[str | None] = [None] * len(shape)
        if along is not None and shape[along] % sizes["tensor"] == 0:
            spec[along] = "tensor"
        free = [
            axis
            for axis, length in enumerate(shape)
            if length % sizes["fsdp"] == 0 and (spec[axis] is None or sizes["tensor"] == 1)
        ]
        if free and sizes["fsdp"] > 1:
            spec[max(free, key=lambda axis: (shape[axis], axis))] = "fsdp"
        return PartitionSpec(*spec)

    return split


def _along(axis: int, over: str | tuple[str, ...]) -> Split:
    """One axis over axes of the mesh, where they divide it."""
    names = (over,) if isinstance(over, str) else over

    def split(shape, sizes):
        if len(shape) <= axis or shape[axis] % math.prod(sizes[name] for name in names):
            return PartitionSpec()
        return PartitionSpec(*[None] * axis, over)

    return split


_COLUMNS = (
    "c_attn", "c_fc", "[qkv]_proj", "gate_proj", "up_proj", "query", "key", "value", "intermediate",
)  # fmt: skip
_ROWS = ("c_proj", "o_proj", "down_proj", "output")

PARAMS = (
    Rule(tuple(f"*/{name}/kernel" for name in _COLUMNS), _fully(along=1)),
    Rule(tuple(f"*/{name}/bias" for name in _COLUMNS), _fully(along=0)),
    Rule(tuple(f"*/{name}/kernel" for name in _ROWS), _fully(along=0)),
    Rule(("*",), _fully()),
)
REST = (
    Rule(("*/items/*",), _along(0, "data")),  # a memory's slots
    Rule(("*/ring/*",), _along(1, BATCH)),  # the last batches
    Rule(("*",), lambda shape, sizes: PartitionSpec()),
)


def read_mesh(text: str) -> dict[str, int]:
    """The devices along each axis of a mesh, all axes named, in their order.

    Raises:
        InputError: an axis is unknown or named twice, or its length no whole number.

    >>> read_mesh("fsdp=2,data=4")
    {'data': 4, 'fsdp': 2, 'tensor': 1}
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, _, number = part.strip().partition("=")
        if name not in AXES or name in sizes or not number.isdecimal() or int(number) < 1:
            raise InputError(
                f"--mesh {text}: {part.strip()!r} is no axis of a mesh. Give each of "
                f"{', '.join(AXES)} at most once with its devices, as in --mesh data=4,fsdp=2."
            )
        sizes[name] = int(number)
    return {name: sizes.get(name, 1) for name in AXES}


def parts() -> int:
    """Over how many parts of the devices the batch is split whose loss or measure is being traced;
    1 where it is whole."""
    return _PARTS.get()


@contextlib.contextmanager
def split_over(number: int) -> Iterator[None]:
    """While it lasts, `parts` is that number."""
    before = _PARTS.set(number)
    try:
        yield
    finally:
        _PARTS.reset(before)


class Placement:
    """The shardings of one run.

    Args:
        batch_sizes: of training and evaluation.
        seeds: replicas in one program.
        mesh: such as "data=4,fsdp=2"; by default all devices are on data, or seeds dealt out.
        replicas: "pmap" deals them out over the devices, "vmap" and "map" do not, "auto" does where
            their number allows.

    Attributes:
        dealt: whether every device has seeds of its own.
        mesh: what was asked for, the axes in their order; None where nothing was.
        alone: whether this process holds all of the devices.
        fetched: the sharding of what every process reads, None where this one is alone.

    Raises:
        InputError: the mesh is not of as many devices as there are, or cannot split a batch; or
            replicas that are to be dealt out cannot be.
    """

    def __init__(
        self,
        *batch_sizes: int,
        seeds: int = 1,
        mesh: str | None = None,
        replicas: Replicas = "auto",
    ):
        devices = jax.devices()
        checks.one_of("run", "replicas", replicas, get_args(Replicas))
        if replicas == "pmap":
            _check_dealt(seeds, len(devices), mesh)
        sizes = (
            {**dict.fromkeys(AXES, 1), "data": len(devices)} if mesh is None else read_mesh(mesh)
        )
        self.mesh = mesh and ",".join(f"{axis}={sizes[axis]}" for axis in AXES if sizes[axis] > 1)
        can_be = mesh is None and len(devices) > 1 and seeds % len(devices) == 0
        self.dealt = can_be and replicas in ("auto", "pmap")
        self._leading = int(seeds > 1)
        self._sizes = sizes
        self._ways = math.prod(sizes[axis] for axis in BATCH)
        product = math.prod(sizes.values())
        if product != len(devices):
            raise InputError(
                f"--mesh {mesh} is of {product} devices and there are {len(devices)}: choose axes "
                f"whose product is {len(devices)}, or let the process see {product} (on a CPU, "
                f"--cpu-devices {product // jax.process_count() or 1})."
            )
        for size in batch_sizes:
            if not self.dealt and size % self._ways:
                fewer = "choose a mesh with less of data and fsdp" if mesh else "use fewer devices"
                raise InputError(
                    f"A batch of {size} cannot be split over {self._ways} devices: {fewer}, such "
                    f"that their product divides {size}, or a batch of a multiple of {self._ways}."
                )
        if len(devices) == 1:
            self._mesh = None
            self._everywhere: Any = SingleDeviceSharding(devices[0])
        else:
            names = {"seeds": len(devices)} if self.dealt else sizes
            self._mesh = jax.make_mesh(
                tuple(names.values()),
                tuple(names),
                axis_types=(AxisType.Auto,) * len(names),
                devices=devices,
            )
            self._everywhere = NamedSharding(self._mesh, PartitionSpec())
        self._seeds = seeds
        self.alone = jax.process_count() == 1
        self.fetched = None if self.alone else self._everywhere

    def state(self, state: Any) -> Any:
        """The shardings of the leaves of a learner's state."""
        mesh = self._mesh
        if mesh is None:
            return jax.tree.map(lambda leaf: self._everywhere, state)
        specs = _by_seed(state) if self.dealt else self._specs(state)
        return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)

    def batch(self, leading: int = 0, *, whole: bool = False) -> Any:
        """The sharding of a batch whose batch axis stands behind `leading` others.

        Args:
            leading: 0 for [batch, ...], 1 for [seeds, batch, ...], and so on.
            whole: it is not to be split along its batch axis.
        """
        if self._mesh is None or (whole and not self.dealt):
            return self._everywhere
        if self.dealt:
            return NamedSharding(self._mesh, PartitionSpec("seeds"))
        return NamedSharding(self._mesh, PartitionSpec(*[None] * leading, BATCH))

    def rows(self, size: int) -> np.ndarray | slice:
        """Which rows of a batch of that size the devices of this process hold, in their order."""
        return slice(None) if self.alone or self.dealt else self._held(size)

    def seeds(self) -> np.ndarray:
        """Whose batches this process makes, of the replicas."""
        return self._held(self._seeds) if self.dealt else np.arange(self._seeds)

    def place(self, own: Any, leading: int = 0, *, size: int | None) -> Any:
        """A batch on the devices of all processes, each of which gives its own part of it.

        Args:
            own: the batch of this process's `seeds` and of its `rows` alone.
            leading: as in `batch`.
            size: of the whole batch; None where it is not to be split along its batch axis.
        """
        sharding = self.batch(leading, whole=size is None)
        if self.alone:
            return jax.device_put(own, sharding)
        axis, length = (0, self._seeds) if self.dealt else (leading, size)
        if length is None:
            return jax.tree.map(
                lambda leaf: jax.make_array_from_callback(leaf.shape, sharding, leaf.__getitem__),
                own,
            )
        held = self._held(length)

        def put(leaf):
            def part(at):
                begin, end, _ = at[axis].indices(length)
                start = int(np.searchsorted(held, begin))
                return leaf[(*at[:axis], slice(start, start + end - begin))]

            shape = (*leaf.shape[:axis], length, *leaf.shape[axis + 1 :])
            return jax.make_array_from_callback(shape, sharding, part)

        return jax.tree.map(put, own)

    def _held(self, length: int) -> np.ndarray:
        """The places of an axis of that length, split as a batch is, on this process's devices."""
        slices = self.batch().addressable_devices_indices_map((length,)).values()
        return np.unique(np.concatenate([np.arange(length)[at] for at, *_ in slices]))

    def spread(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A loss or measure that splits every batch it gets, such as a draw from a memory, and what
        the modules of a Flax model make of it.

        A draw is the same on every device until something splits it, and then every device would
        compute the loss of all of it. Between a module's params and its inputs, both split, the
        compiler would often choose to move the inputs. Meanwhile `parts` tells over how many the
        batch is split, for who takes it apart.

        Args:
            function: (params, batch, ...) -> anything; a batch that the devices do not divide, such
                as one example, is left alone.
        """
        mesh = self._mesh
        if mesh is None or self.dealt or self._ways == 1:
            return function

        def split(leaf):
            if not leaf.ndim or leaf.shape[0] % self._ways:
                return leaf
            free = [PartitionSpec.UNCONSTRAINED] * (leaf.ndim - 1)
            place = NamedSharding(mesh, PartitionSpec(BATCH, *free))
            return jax.lax.with_sharding_constraint(leaf, place)

        def intercept(method, inputs, options, _):
            made = method(*inputs, **options)
            return made if parts() == 1 else jax.tree.map(split, made)

        def spread(params, batch, *key):
            if jax.tree.leaves(batch)[0].shape[0] % self._ways:
                return function(params, batch, *key)
            with split_over(self._ways), nn.intercept_methods(intercept):
                return function(params, jax.tree.map(split, batch), *key)

        return spread

    def deal(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function of all seeds, computed by each device for its own without a word to others.

        Args:
            function: of trees whose leaves have a leading axis of seeds or no axis at all; so have
                the leaves of what it returns.
        """
        mesh = self._mesh
        if mesh is None or not self.dealt:
            return function

        def dealt(*arguments):
            shapes = jax.eval_shape(function, *arguments)
            spread = jax.shard_map(
                function,
                mesh=mesh,
                in_specs=_by_seed(arguments),
                out_specs=_by_seed(shapes),
                check_vma=False,
            )
            return spread(*arguments)

        return dealt

    def whole(self, state: Any) -> list[str]:
        """The paths of params and of memories that stand on every device in full, since the mesh
        does not divide them."""
        if self._mesh is None or self.dealt:
            return []
        sizes, specs = self._sizes, _named(self._specs(state))
        params = {f"params/{name}" for name in _named(state.params)}
        return [
            path
            for path, spec in specs.items()
            if (path in params and sizes["fsdp"] > 1 and "fsdp" not in spec)
            or ("/items/" in path and sizes["data"] > 1 and "data" not in spec)
        ]

    def _specs(self, state: Any) -> Any:
        params = {name: leaf.shape[self._leading :] for name, leaf in _named(state.params).items()}

        def spec(path, leaf):
            name, shape = _name(path), leaf.shape[self._leading :]
            own = _own(name, shape, params)
            rules = REST if own is None else PARAMS
            inner = shape if own is None else params[own]
            rule = next(rule for rule in rules if paths.matches(own or name, rule.where))
            before = len(leaf.shape) - len(inner)
            return PartitionSpec(*[None] * before, *rule.split(inner, self._sizes))

        return jax.tree_util.tree_map_with_path(spec, state)


def _check_dealt(seeds: int, devices: int, mesh: str | None) -> None:
    if mesh is not None:
        raise InputError(
            f"--replicas pmap gives every replica a device to itself and --mesh {mesh} splits each "
            "over all devices: leave one of them out."
        )
    if seeds % devices:
        fewer = max(number for number in range(1, devices) if seeds % number == 0)
        raise InputError(
            f"--replicas pmap: {seeds} {'replica is' if seeds == 1 else 'replicas are'} no "
            f"multiple of the {devices} devices: make them {-(-seeds // devices) * devices} by "
            f"--seeds or --grid, or let the process see {fewer} of the devices (on a CPU, "
            f"--cpu-devices {fewer})."
        )


def _own(name: str, shape: Shape, params: Mapping[str, Shape]) -> str | None:
    """The parameter whose path the leaf's ends with and whose shape its own does; a leaf may have
    more axes in front, as one that keeps the params of several tasks."""
    parts = name.split("/")
    for start in range(1, len(parts)):
        own = "/".join(parts[start:])
        if {"items", "ring"} & set(parts[:start]):  # examples, whatever they are called
            return None
        if own in params and shape[len(shape) - len(params[own]) :] == params[own]:
            return own
    return None


def _named(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(
        tree, is_leaf=lambda leaf: isinstance(leaf, PartitionSpec)
    )
    return {_name(path): leaf for path, leaf in leaves}


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _by_seed(tree: Any) -> Any:
    """Split along the first axis; what has none is the same for all seeds."""
    return jax.tree.map(lambda leaf: PartitionSpec("seeds") if leaf.ndim else PartitionSpec(), tree)
