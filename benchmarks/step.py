"""The training step of jcl against Hugging Face's GPT-2 in PyTorch, and what a strategy adds to it.

Command:  python benchmarks/step.py [--sizes byte small] [--repeats 15] [--out step.json]
              [--methods replay EWC SI MAS LwF A-GEM DER++]

The states of all methods are held at once: at "small" seven of them did not fit in 24 GiB.
Both libraries run with the allocator settings of `jcl run` (jcl/allocator.py).
float32, dropout 0, AdamW with the same settings, the same shapes, one process, all steps timed in
turn (A B C A B C ...), medians. "share of peak" is the step's floating-point operations a second
over the best float32 matmul rate that JAX or PyTorch reaches in the same run; the operations are
6 per token and parameter of a matmul (the head's included) and 12 layers length width per token
for attention, although jcl leaves out a quarter of it.

Run it on an idle machine. Other programs slow PyTorch's two OpenMP threads, which wait for each
other, far more than JAX: the ratio of the medians then flatters jcl. So the fastest runs and their
ratio are printed beside the medians, and the machine's load before and after.
"""

import argparse
import gc
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jcl
from jcl.allocator import keep_freed_memory
from jcl.models import GPT2Config

SIZES = {
    "byte": (GPT2Config(258, positions=128, width=128, layers=4, heads=4, dropout=0.0), 16, 128),
    "small": (GPT2Config(dropout=0.0), 4, 128),
}
RATE, DECAY = 1e-4, 1e-4
# name: (the chain, given the optimizer and a batch size; how many times a step's matmuls it does)
METHODS = {
    "replay": (lambda optimizer, size: [jcl.replay(capacity=1000, size=size), optimizer], 2),
    "EWC": (lambda optimizer, size: [jcl.ewc(strength=100.0), optimizer], 1),
    "SI": (lambda optimizer, size: [optimizer, jcl.si(strength=1.0)], 1),
    "MAS": (lambda optimizer, size: [jcl.mas(strength=1.0), optimizer], 1),
    "LwF": (lambda optimizer, size: [jcl.lwf(strength=1.0), optimizer], 4 / 3),
    "A-GEM": (lambda optimizer, size: [jcl.agem(capacity=1000, size=size), optimizer], 2),
    "DER++": (
        lambda optimizer, size: [
            jcl.der(1000, size, 0.5, replay_strength=0.5, top=64), optimizer
        ],
        3,
    ),
}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["replay", "EWC"])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    keep_freed_memory()
    try:
        import torch
        import torch_peer
    except ImportError:
        print('PyTorch is the peer of this benchmark: pip install "jcl[bench]"', file=sys.stderr)
        return 1
    results = {"command": " ".join(["python", *sys.argv]), "machine": machine(torch)}
    print(json.dumps(results["machine"]))
    for size in arguments.sizes:
        results[size] = compare(torch_peer, size, arguments.repeats, arguments.methods)
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1))
    return 0


def compare(torch_peer, size, repeats, methods):
    """Times every step of a size in turn and prints the table."""
    config, batch_size, length = SIZES[size]
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (batch_size, length + 1))
    batch = {
        "inputs": jnp.asarray(tokens[:, :-1], jnp.int32),
        "targets": jnp.asarray(tokens[:, 1:], jnp.int32),
    }
    optimizer = optax.adamw(RATE, weight_decay=DECAY)
    chains, times_the_work = {"jcl naive": jcl.chain(optimizer)}, {}
    for method in methods:
        make, times_the_work[f"jcl {method}"] = METHODS[method]
        chains[f"jcl {method}"] = jcl.chain(*make(optimizer, batch_size))
    theirs = torch_peer.step(torch_peer.gpt2(config), "float32", batch["inputs"], batch["targets"])
    steps, memory = {"PyTorch naive": theirs}, {}
    for name, chain in chains.items():
        steps[name], memory[name] = jcl_step(config, chain, batch)
    parts = partial_steps(config, batch)

    peak, load = matmul_peak(torch_peer), [os.getloadavg()[0]]
    every = in_turn(steps | parts, repeats)
    load.append(os.getloadavg()[0])
    peak = max(peak, matmul_peak(torch_peer))  # the machine's rate may change in between
    times = {name: statistics.median(seconds) for name, seconds in every.items()}
    fastest = {name: min(seconds) for name, seconds in every.items()}
    flops = operations(config, length) * batch_size * length
    print_title(size, config, batch_size, length, load)
    print(f"  {'matmul peak':18} {peak / 1e9:44.0f} GFLOP/s")
    for name, seconds in times.items():
        work = times_the_work.get(name, 1) * flops if name in steps else None
        print_times(name, seconds, fastest[name], work, peak)
    pairs = {"jcl / PyTorch": ("jcl naive", "PyTorch naive")}
    pairs |= {f"{method} / naive": (f"jcl {method}", "jcl naive") for method in methods}
    ratios = {
        name: [times[ours] / times[other], fastest[ours] / fastest[other]]
        for name, (ours, other) in pairs.items()
    }
    for name, (median, least) in ratios.items():
        print(f"  {name:18} {median:9.2f}    {least:9.2f}")
    for name, (argument, counted) in memory.items():
        verdict = "equal" if argument == counted else "NOT EQUAL"
        print(f"  {name:18} {argument:,} bytes of arguments, {counted:,} counted: {verdict}")
    gc.collect()
    return {
        "load": load, "matmul_peak": peak, "median_seconds": times, "fastest_seconds": fastest,
        "median_and_fastest_ratios": ratios, "argument_and_counted_bytes": memory,
    }  # fmt: skip


def print_title(case, config, batch_size, length, load):
    print(f"\n{case}: {config.layers} x {config.width}, batch {batch_size} x {length}", end="")
    print(f"; load before and after {load[0]:.2f} {load[1]:.2f}; median, fastest")


def print_times(name, median, least, work, peak):
    """One line of the table, with its share of the peak where the operations are counted."""
    print(f"  {name:18} {median * 1e3:9.1f} ms {least * 1e3:9.1f} ms", end="")
    if work is not None:
        print(f"  {work / median / 1e9:6.0f} GFLOP/s  {work / median / peak:4.0%} of peak", end="")
    print()


def jcl_step(config, chain, batch):
    """A function that takes one step and waits for it; and the step's argument bytes, counted."""
    model = jcl.models.gpt2(config)
    learner = jcl.learner(jcl.losses.causal_lm(model.apply), chain)
    state = learner.init(jax.random.key(1), jax.jit(model.init)(jax.random.key(0)), batch)
    compiled = jax.jit(learner.step, donate_argnums=0).lower(state, batch).compile()
    counted = sum(
        jax.random.key_data(leaf).nbytes if "key" in str(leaf.dtype) else leaf.nbytes
        for leaf in jax.tree.leaves((state, batch))
    )
    held = [state]
    del state

    def run():
        held[0], metrics = compiled(held[0], batch)
        jax.block_until_ready((held[0].params, metrics))

    return run, (compiled.memory_analysis().argument_size_in_bytes, counted)


def partial_steps(config, batch):
    """Where the time goes: the forward pass alone, and with the backward pass."""
    model = jcl.models.gpt2(config)
    loss_fn = jcl.losses.causal_lm(model.apply)
    params = jax.jit(model.init)(jax.random.key(0))
    forward = jax.jit(lambda params: loss_fn(params, batch, None)[0])
    gradient = jax.jit(jax.grad(lambda params: loss_fn(params, batch, None)[0]))
    return {
        "  forward": lambda: jax.block_until_ready(forward(params)),
        "  and backward": lambda: jax.block_until_ready(gradient(params)),
    }


def operations(config, length):
    """Floating-point operations of a training step per token."""
    matmuls = config.layers * 12 * config.width**2 + config.vocab_size * config.width
    return 6 * matmuls + 12 * config.layers * length * config.width


def matmul_peak(torch_peer=None):
    """The best rate of a square float32 matmul in operations a second, in PyTorch too if given."""
    runs = {}
    for side in (2048, 4096):
        ours = jnp.ones((side, side))
        multiply = jax.jit(jnp.matmul)
        runs[side, "jax"] = lambda a=ours, f=multiply: f(a, a).block_until_ready()
        if torch_peer:
            runs[side, "torch"] = torch_peer.matmuls(side)["float32"]
    return max(2 * side**3 / min(seconds) for (side, _), seconds in in_turn(runs, 5).items())


def in_turn(runs, repeats):
    """The seconds of every run of each function: two warm-ups, then all in turn."""
    for run in runs.values():
        run()
        run()
    times = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            time.sleep(0.3)  # until the threads of the run before have stopped spinning
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return times


def machine(torch):
    packages = ("jcl", "jax", "jaxlib", "flax", "optax", "transformers", "torch", "numpy")
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
         if line.startswith("model name")),
        platform.processor(),
    )  # fmt: skip
    return {
        "cpu": cpu, "cores": len(os.sched_getaffinity(0)), "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(), "xla_flags": os.environ.get("XLA_FLAGS", ""),
        **{package: importlib.metadata.version(package) for package in packages},
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
