"""What a step would take on a mesh that this machine does not have: compiled, never run.

The step is compiled for as many devices as the mesh has, which a CPU passes for, on shapes alone.
Sizes of the state are counted from the shapes and shardings of the whole model. What only the
compiler knows (temporaries, matmuls, collectives) is, for a config with a field `layers`, compiled
at `DEPTHS` and extended in a straight line, so that it takes no longer for a deeper model; blocks
are all alike, and each adds the same.
"""

import dataclasses
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from jcl import hlo, memory
from jcl.errors import InputError
from jcl.experiment import Experiment
from jcl.grid import Replica
from jcl.learner import learner
from jcl.program import Program, first_state
from jcl.sharding import Placement, read_mesh

DEPTHS = (2, 4)
DEVICES_AT_MOST = 2048  # that one process can pretend to have
SIZES = (16, 32, 80)  # GB

# Nothing is run: neither fast code nor concurrency, which costs memory, is worth its compiling. Two
# passes of the CPU are left out, since they make arrays live longer than elsewhere: one lets what a
# block with remat computes again move to where it was first computed, one gathers all gradients for
# one all-reduce.
FLAGS = (
    "--xla_disable_hlo_passes=cse_barrier_expander,cpu-all-reduce-combiner",
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_enable_concurrency_optimized_scheduler=false",
)


# Bytes of temporaries, FLOPs, bytes of collectives by kind, loops of unknown length, and the
# abstract batch.
Compiled = tuple[float, float, dict[str, float], int, Any]


class Plan(NamedTuple):
    """Of one device, in bytes and in one step, unless it says otherwise.

    Attributes:
        mesh: as asked for.
        devices: of the mesh.
        parameters: their number in the whole model.
        tokens: of the whole batch.
        compiled: the depths that were compiled; () where the model itself was.
        params: bytes.
        optimizer: what optax's transformations keep.
        strategy: what strategies keep beside memories.
        memory: examples kept, and rings of the last batches.
        temporaries: what else stands at once at the peak: activations, gradients, gathered params;
            as a CPU orders the work, most likely more than on a GPU or TPU.
        flops: of matmuls and convolutions.
        collectives: {kind: bytes}, see `jcl.hlo.Work`.
        unknown: loops that are counted as if they ran once, see there.
    """

    mesh: str
    devices: int
    parameters: int
    tokens: int
    compiled: tuple[int, ...]
    params: int
    optimizer: int
    strategy: int
    memory: int
    temporaries: int
    flops: float
    collectives: dict[str, float]
    unknown: int

    @property
    def held(self) -> dict[str, int]:
        """The bytes by what they are for."""
        names = ("params", "optimizer", "strategy", "memory", "temporaries")
        return {name: getattr(self, name) for name in names}

    @property
    def expected_flops(self) -> float:
        """6 x params x tokens, a device's share: a forward and a backward pass through all of them
        on the batch alone, without attention's own."""
        return 6.0 * self.parameters * self.tokens / self.devices


def plan(build: Callable[[Any], Experiment], config: Any, mesh: str) -> Plan:
    """What a step of an experiment would take on a mesh.

    Args:
        build: config -> experiment.
        config: a frozen dataclass; its field `layers`, if it has one, is the model's depth.
        mesh: such as "data=64,fsdp=4", of as many devices as the process sees.

    Raises:
        InputError: the mesh or the experiment cannot be used.
    """
    experiment = build(config)
    layers, depths = getattr(config, "layers", None), ()
    if isinstance(layers, int) and layers > max(DEPTHS):
        depths = DEPTHS
        low, high = (build(dataclasses.replace(config, layers=depth)) for depth in DEPTHS)
        temporaries, flops, collectives, unknown, batch = _extended(
            _compiled(low, mesh), _compiled(high, mesh), layers
        )
    else:
        temporaries, flops, collectives, unknown, batch = _compiled(experiment, mesh)
    functions = learner(experiment.loss_fn, experiment.strategy)
    with memory.shapes_alone():
        state = jax.eval_shape(lambda: first_state(experiment, functions, batch))
    shardings = Placement(experiment.batch_size, mesh=mesh).state(state)
    sizes = jax.tree.map(
        lambda leaf, own: int(np.prod(own.shard_shape(leaf.shape))) * leaf.dtype.itemsize,
        (state.params, state.strategy),
        (shardings.params, shardings.strategy),
    )
    optimizer, memories, strategy = _parts(sizes[1], state.strategy)
    return Plan(
        mesh=mesh,
        devices=jax.device_count(),
        parameters=sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        tokens=batch["inputs"].size,
        compiled=depths,
        params=sum(jax.tree.leaves(sizes[0])),
        optimizer=optimizer,
        strategy=strategy,
        memory=memories,
        temporaries=round(temporaries),
        flops=flops,
        collectives=collectives,
        unknown=unknown,
    )


def pretend(mesh: str) -> None:
    """Lets this process see as many CPU devices as the mesh has, before JAX is used.

    Raises:
        InputError: more than one process can pretend to have; it is no mesh; or JAX is in use
            already with other devices.
    """
    devices = int(np.prod(list(read_mesh(mesh).values())))
    if devices > DEVICES_AT_MOST:
        raise InputError(
            f"--mesh {mesh} is of {devices} devices, and one process can pass for at most "
            f"{DEVICES_AT_MOST}: plan a smaller mesh; along data nothing but the batch grows."
        )
    told = "device_count" in os.environ.get("XLA_FLAGS", "")
    try:
        jax.config.update("jax_platforms", "cpu")
        if not told:
            jax.config.update("jax_num_cpu_devices", devices)
            os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS]).strip()
    except RuntimeError:
        pass
    if jax.device_count() != devices or jax.default_backend() != "cpu":
        raise InputError(
            f"--mesh {mesh} needs a process in which a CPU passes for {devices} devices, and JAX "
            f"is in use already with {jax.device_count()}: let the config use JAX in build(config) "
            "only, and leave the number of devices out of XLA_FLAGS."
        )


def show(plan: Plan, title: str, console: Console) -> None:
    """Prints it as tables."""
    where = f"{title} on {plan.mesh}: {plan.devices} devices, compiled and not run"
    table = Table("on each device", "GB", title=where, title_justify="left")
    table.columns[1].justify = "right"
    for name, size in plan.held.items():
        table.add_row(name, f"{size / 1e9:,.3f}")
    total = sum(plan.held.values())
    table.add_row("all", f"{total / 1e9:,.3f}", style="bold")
    console.print(table)
    for size in SIZES:
        short = total / 1e9 - size
        largest = sorted(plan.held, key=lambda name: -plan.held[name])[:2]
        verdict = f"misses {short:,.1f} GB; the largest are {' and '.join(largest)}"
        console.print(f"{size} GB: {'fits' if short <= 0 else verdict}")
    table = Table("a step, on each device", "", title_justify="left")
    table.columns[1].justify = "right"
    table.add_row("matmuls and convolutions, TFLOP", f"{plan.flops / 1e12:,.3f}")
    table.add_row("6 x params x tokens, TFLOP", f"{plan.expected_flops / 1e12:,.3f}")
    for kind, size in sorted(plan.collectives.items()):
        table.add_row(f"{kind}, GB", f"{size / 1e9:,.3f}")
    table.add_row("all collectives, GB", f"{sum(plan.collectives.values()) / 1e9:,.3f}")
    console.print(table)
    if plan.unknown:
        console.print(
            f"{plan.unknown} of its loops run until a condition holds: each is counted as if it "
            "ran once, so that a step takes more than these figures say."
        )
    how = (
        "The model itself was compiled (its config has no field layers, or few of them)."
        if not plan.compiled
        else f"Temporaries, matmuls and collectives are extended from {plan.compiled[0]} and "
        f"{plan.compiled[1]} layers."
    )
    console.print(f"{plan.parameters:,} params, {plan.tokens:,} tokens a batch. {how}")


def _compiled(experiment: Experiment, mesh: str) -> Compiled:
    program = Program([Replica(dataclasses.replace(experiment, device_data=False))], mesh)
    lowered, batch = program.lowered_step()
    compiled = lowered.compile()
    told, done = compiled.memory_analysis(), hlo.work(compiled.as_text())
    assert told is not None
    return told.temp_size_in_bytes, done.flops, done.collectives, done.unknown, batch


def _extended(low: Compiled, high: Compiled, layers: int) -> Compiled:
    """The line through what was compiled at both depths, at so many layers."""
    steps = (layers - DEPTHS[0]) / (DEPTHS[1] - DEPTHS[0])

    def at(low, high):
        return max(0.0, low + steps * (high - low))

    kinds = sorted({*low[2], *high[2]})
    collectives = {kind: at(low[2].get(kind, 0.0), high[2].get(kind, 0.0)) for kind in kinds}
    unknown = round(at(low[3], high[3]))
    return at(low[0], high[0]), at(low[1], high[1]), collectives, unknown, low[4]


def _parts(sizes: Any, state: Any) -> tuple[int, int, int]:
    """Bytes of what optax keeps, of memories, and of the rest."""
    kept = {"optax": 0, "memory": 0, "rest": 0}

    def of_optax(node):
        return type(node).__module__.startswith("optax") and isinstance(node, tuple)

    def count(path, node, size):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        kind = "rest"
        if of_optax(node):
            kind = "optax"
        elif {"items", "ring"} & set(name.split("/")):
            kind = "memory"
        kept[kind] += sum(jax.tree.leaves(size))

    jax.tree_util.tree_map_with_path(count, state, sizes, is_leaf=of_optax)
    return kept["optax"], kept["memory"], kept["rest"]
