"""Milliseconds a training step of each method, in jcl and in Avalanche.

Command:  python benchmarks/strategies.py [--repeats 9] [--methods naive replay ...]
          (`make bench-strategies` makes Avalanche's environment, .venv-avalanche, first)

An MLP of 784-256-256-10, batch 32, plain SGD, float32; memories of 1,000 examples, draws of 32.
Both train on examples that lie in memory, 100 steps at a time, after a first task has ended, so
that every method has something to remember. jcl: one call of the compiled program that `jcl run`
uses, of one seed, or of ten as `jcl run --seeds 10` deals them out over the cores. Avalanche: one
epoch of its training loop, from the first batch to behind the last, in a process of its own. All
are timed in turn, each right after a call or epoch that is not timed, so that neither starts on a
core that has slept; medians. "matmuls" is what the step's matmuls alone take in the same run, by
the number of its passes through the network. Run it on an idle machine.
"""

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import SingleDeviceSharding

import jcl
from jcl.__main__ import enough_devices
from jcl.allocator import keep_freed_memory
from jcl.learner import by_index
from jcl.sharding import Placement

HERE = Path(__file__).parent
PEER = HERE.parent / ".venv-avalanche" / "bin" / "python"
BATCH, EXAMPLES, MEMORY, STEPS, SEEDS, CALLS = 32, 3200, 1000, 100, 10, 4
SGD = optax.sgd(0.01)
CHAINS = {
    "naive": lambda: [SGD],
    "replay": lambda: [jcl.replay(MEMORY, BATCH), SGD],
    "ewc": lambda: [jcl.ewc(1.0), SGD],
    "si": lambda: [SGD, jcl.si(1.0)],
    "lwf": lambda: [jcl.lwf(1.0), SGD],
    "agem": lambda: [jcl.agem(MEMORY, BATCH), SGD],
    "derpp": lambda: [jcl.der(MEMORY, BATCH, 0.5, replay_strength=0.5), SGD],
    "mas": lambda: [jcl.mas(1.0), SGD],
}

# Passes through the network that a step makes, forward and backward; a forward pass is a third.
PASSES = {
    "naive": 1, "replay": 2, "ewc": 1, "si": 1, "lwf": 4 / 3, "agem": 2, "derpp": 3, "mas": 1,
}  # fmt: skip


def ours(method, seeds):
    """A function that takes STEPS steps and waits for them, in the second task."""
    model = jcl.models.mlp(jcl.models.MLPConfig(784, (256, 256), 10))
    learner = jcl.learner(jcl.losses.classify(model.apply), jcl.chain(*CHAINS[method]()))
    draw = np.random.default_rng(0)
    examples = {
        "inputs": draw.random((EXAMPLES, 784), np.float32),
        "targets": draw.integers(0, 10, EXAMPLES).astype(np.int32),
    }
    indices = draw.permutation(EXAMPLES).reshape(STEPS, BATCH).astype(np.int32)
    boundary = {key: leaf[: 4 * BATCH].reshape(4, BATCH, *leaf.shape[1:])
                for key, leaf in examples.items()}  # fmt: skip
    batch = {key: leaf[:BATCH] for key, leaf in examples.items()}
    states = [
        learner.init(jax.random.key(seed), model.init(jax.random.key(seed)), batch)
        for seed in range(seeds)
    ]
    functions = learner._replace(step=by_index(learner.step))
    state, data = states[0], (examples, indices)
    placement = Placement(BATCH, seeds=seeds) if seeds > 1 else None
    if placement:
        functions = jcl.over_seeds(functions, by="map")
        functions = functions._replace(step=placement.deal(functions.step))
        state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        state = state._replace(**{
            name: getattr(states[0], name) for name in ("step", "task_step", "task_steps")
        })  # fmt: skip
        data, boundary = jax.tree.map(lambda leaf: np.stack([leaf] * seeds), (data, boundary))
    one = SingleDeviceSharding(jax.devices()[0])
    place = placement.state(state) if placement else one
    data = jax.device_put(data, placement.batch(1) if placement else place)
    out = (place, None) if placement else None
    step = jax.jit(functions.step, donate_argnums=0, out_shardings=out)
    held = [jax.device_put(jcl.start_task(state, 10**9), place)]

    def run():
        held[0], metrics = step(held[0], data)
        jax.block_until_ready((held[0], metrics))

    run()
    consolidate = jax.jit(functions.consolidate, donate_argnums=0, out_shardings=place)
    held[0] = consolidate(held[0], boundary)
    return run


def matmuls():
    """A function that does the matmuls of STEPS naive steps, and as little else as there can be."""
    keys = jax.random.split(jax.random.key(0), 4)
    widths = (784, 256, 256, 10)
    kernels = [
        0.01 * jax.random.normal(key, shape)
        for key, shape in zip(keys, itertools.pairwise(widths), strict=False)
    ]
    batch = jax.random.normal(keys[3], (BATCH, 784))

    def step(_, kernels):
        seen = [batch]
        for kernel in kernels:
            seen.append(seen[-1] @ kernel)
        error, moved = seen.pop(), []
        for kernel, inputs in zip(reversed(kernels), reversed(seen), strict=True):
            moved.insert(0, kernel - 1e-6 * (inputs.T @ error))
            error = error @ kernel.T  # not needed for the first kernel, and dropped by XLA
        return moved

    loop = jax.jit(lambda kernels: jax.lax.fori_loop(0, STEPS, step, kernels))
    return lambda: jax.block_until_ready(loop(kernels))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--methods", nargs="+", choices=CHAINS, default=list(CHAINS))
    parser.add_argument("--peer", type=Path, default=PEER, help="the Python that has Avalanche")
    arguments = parser.parse_args()
    keep_freed_memory()
    jax.config.update("jax_num_cpu_devices", enough_devices(SEEDS, len(os.sched_getaffinity(0))))
    if not arguments.peer.exists():
        print(
            f"Avalanche is the peer: {arguments.peer} is missing; make bench-strategies makes it."
        )
        return 1
    peer = subprocess.Popen(
        [arguments.peer, HERE / "avalanche_peer.py"], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip

    def theirs(method):
        peer.stdin.write(method + "\n")
        peer.stdin.flush()
        return float(peer.stdout.readline())

    print(f"load before {os.getloadavg()[0]:.2f}; medians of {arguments.repeats}, ms a step")
    head = f"{'method':8} {'Avalanche':>9} {'jcl':>8} {'ratio':>7} {'ten, a seed':>17} {'ratio':>7}"
    print(f"{head} {'matmuls':>8}", flush=True)
    limit = matmuls()
    for method in arguments.methods:
        one, ten = ours(method, 1), ours(method, SEEDS)
        theirs(method)
        times = {"theirs": [], "one": [], "ten": [], "matmuls": []}
        for _ in range(arguments.repeats):
            times["theirs"].append(theirs(method))
            for name, run, seeds in (("one", one, 1), ("ten", ten, SEEDS), ("matmuls", limit, 1)):
                run()
                start = time.perf_counter()
                for _ in range(CALLS):
                    run()
                times[name].append(1e3 * (time.perf_counter() - start) / CALLS / STEPS / seeds)
        median = {name: statistics.median(each) for name, each in times.items()}
        print(
            f"{method:8} {median['theirs']:9.2f} {median['one']:8.3f} "
            f"{median['theirs'] / median['one']:6.1f}x {median['ten']:17.3f} "
            f"{median['theirs'] / median['ten']:6.1f}x {PASSES[method] * median['matmuls']:8.3f}",
            flush=True,
        )
    peer.stdin.close()
    peer.wait()
    print(f"load after {os.getloadavg()[0]:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
