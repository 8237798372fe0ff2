"""MAML's meta-steps in jcl and in PyTorch, and what more inner steps cost.

Command:  python benchmarks/meta.py [--cases sinusoids omniglot] [--repeats 9] [--out meta.json]
          (--tiny: small shapes, to see that it runs; --no-growth: the first tables alone)

sinusoids: MLP 1-40-40-1, 25 tasks a meta-step, 10 points to adapt to and 10 queries, one inner step
at 0.01. omniglot: the convolutional network of 4 blocks of 32 filters with batch normalization,
images of 28 x 28, 8 tasks, 5 ways, 1 shot, 5 queries a class (random images: only their shape
counts), one inner step at 0.4. Adam at 0.001, float32, second order. jcl takes the tasks together,
maml(over="vmap").

PyTorch is written two ways: "torch.func" is grad, functional_call and vmap over the tasks, "loop" a
Python loop over the tasks that clones the module, adapts the clone with create_graph=True and takes
one backward pass through all, as learn2learn does. Both optimizers are PyTorch's fused Adam. jcl's
"step" is learner.step, compiled and donated, called from Python for every meta-step; "steps in one
call" is the program that `jcl run` makes of it where a config has device_data=True, as
configs/meta/sinusoid.py has. Before anything is timed, all must have the same loss and the same
gradient of the same params and episodes.

All batches are made before the time is taken. One process; blocks of meta-steps are timed in turn
(A B C D A B ...); medians, and the fastest blocks beside them, since on a busy machine the two
threads of PyTorch wait for each other. Run it on an idle machine.
"""

import argparse
import json
import os
import statistics
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from step import in_turn, machine

import jcl
from jcl.allocator import keep_freed_memory
from jcl.learner import by_index

RATE, TOLERANCE = 1e-3, 1e-4


class Case(NamedTuple):
    """One network and its episodes.

    Attributes:
        kind: the factory in jcl.models and in torch_meta.
        config: of the network.
        loss: the name in jcl.losses and in torch_meta.
        tasks: of a meta-step.
        shots: examples to adapt to, of each class.
        queries: of each class.
        inner_rate: of the inner steps.
        block: meta-steps that are timed together.
        aims: the least ratio to each peer.
    """

    kind: str
    config: object
    loss: str
    tasks: int
    shots: int
    queries: int
    inner_rate: float
    block: int
    aims: dict


CASES = {
    "sinusoids": Case(
        "mlp", jcl.models.MLPConfig(inputs=1, hidden=(40, 40), classes=1), "squared_error",
        tasks=25, shots=10, queries=10, inner_rate=0.01, block=50,
        aims={"torch.func": 3.0, "loop": 20.0},
    ),
    "omniglot": Case(
        "convolutional", jcl.models.ConvolutionalConfig(), "classify",
        tasks=8, shots=1, queries=5, inner_rate=0.4, block=4, aims={"torch.func": 1.3},
    ),
}  # fmt: skip
TINY = {
    "sinusoids": CASES["sinusoids"]._replace(
        config=jcl.models.MLPConfig(inputs=1, hidden=(4, 4), classes=1), tasks=2, block=2
    ),
    "omniglot": CASES["omniglot"]._replace(
        config=jcl.models.ConvolutionalConfig(height=6, width=5, filters=2, blocks=1), tasks=2,
        block=2,
    ),
}  # fmt: skip
GROWTH = (1, 5, 20)


def main(words=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--no-growth", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args(words)
    if arguments.repeats < 1:
        parser.error(f"--repeats {arguments.repeats}: time every step at least once")
    if arguments.out and not arguments.out.absolute().parent.is_dir():
        parser.error(f"--out {arguments.out}: there is no folder {arguments.out.absolute().parent}")
    keep_freed_memory()
    try:
        import torch
        import torch_meta
    except ImportError:
        print('PyTorch is the peer of this benchmark: pip install "jcl[bench]"', file=sys.stderr)
        return 1
    results = {"command": " ".join(["python", *sys.argv]), "machine": machine(torch)}
    print(json.dumps(results["machine"]))
    for name in arguments.cases:
        case = (TINY if arguments.tiny else CASES)[name]
        results[name] = compare(torch_meta, name, case, arguments.repeats)
        if not arguments.no_growth:
            results[name]["growth"] = growth(case, arguments.repeats)
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1))
    return 0


def compare(torch_meta, name, case, repeats):
    """Times the meta-steps of both libraries in turn and prints the table."""
    apart = differences(torch_meta, case)
    batches = [episodes(case, seed) for seed in range(case.block)]
    runs = {
        "jcl, steps in one call": jcl_calls(case, batches),
        "jcl, step": jcl_steps(case, batches)[0],
    }
    for way in torch_meta.WAYS:
        runs[f"PyTorch, {way}"] = torch_steps(torch_meta, case, way, batches)
    load = [os.getloadavg()[0]]
    every = in_turn(runs, repeats)
    load.append(os.getloadavg()[0])
    times = {
        run: [statistics.median(seconds) / case.block, min(seconds) / case.block]
        for run, seconds in every.items()
    }
    print(f"\n{name}: {case.tasks} tasks; load before and after {load[0]:.2f} {load[1]:.2f}")
    print(f"  the same loss and gradient within {apart:.0e}")
    print("  a meta-step: median, fastest; meta-steps a second")
    for run, (median, least) in times.items():
        print(f"  {run:24} {median * 1e3:9.3f} ms {least * 1e3:9.3f} ms {1 / median:9.1f}")
    ratios = {}
    for way in torch_meta.WAYS:
        for ours in ("jcl, steps in one call", "jcl, step"):
            title = f"PyTorch, {way} / {ours}"
            pairs = zip(times[f"PyTorch, {way}"], times[ours], strict=True)
            ratios[title] = [theirs / own for theirs, own in pairs]
            aim = f"   aim {case.aims[way]:g}" if way in case.aims else ""
            print(f"  {title:44} {ratios[title][0]:7.2f} {ratios[title][1]:7.2f}{aim}")
    return {"load": load, "differences": apart, "median_and_fastest_seconds": times,
            "median_and_fastest_ratios": ratios}  # fmt: skip


def differences(torch_meta, case):
    """How far a peer's loss or gradient is from jcl's, in parts of the largest number of an array.

    Raises:
        AssertionError: it is more than TOLERANCE.
    """
    loss_fn, params, batch = meta_loss(case), initial(case), episodes(case, 0)
    value, gradient = jax.jit(
        jax.value_and_grad(lambda params, batch: loss_fn(params, batch, None)[0])
    )(params, batch)
    ours = {"loss": np.asarray(value), **torch_meta.by_name(gradient, case.config)}
    largest = 0.0
    for way in torch_meta.WAYS:
        _, gradient_of = torch_module(torch_meta, case, way)
        value, gradient = gradient_of(torch_meta.tensors(batch, case.config))
        theirs = {"loss": value, **gradient}
        assert set(theirs) == set(ours), set(theirs) ^ set(ours)
        for name, array in ours.items():
            apart = np.abs(array - theirs[name].numpy()).max() / np.abs(array).max()
            assert apart < TOLERANCE, f"{way}: {name} differs by {apart:.1e}"
            largest = max(largest, float(apart))
    return largest


def growth(case, repeats):
    """Times jcl's step with more inner steps, with and without remat, and prints the table."""
    batches = [episodes(case, seed) for seed in range(max(case.block // 5, 1))]
    runs, memory = {}, {}
    for steps in GROWTH:
        for remat in (False, True):
            name = f"{steps} steps{', remat' if remat else ''}"
            runs[name], memory[name] = jcl_steps(case, batches, steps=steps, remat=remat)
    seconds = {
        name: statistics.median(each) / len(batches)
        for name, each in in_turn(runs, repeats).items()
    }
    print("  more inner steps: a meta-step, median; temporary memory of the compiled step")
    for name in runs:
        print(f"  {name:24} {seconds[name] * 1e3:9.3f} ms {memory[name] / 2**20:9.2f} MiB")
    return {"median_seconds": seconds, "temporary_bytes": memory}


def meta_loss(case, steps=1, remat=False):
    loss_fn = getattr(jcl.losses, case.loss)(model(case).apply)
    return jcl.maml(loss_fn, steps=steps, optimizer=optax.sgd(case.inner_rate), remat=remat)


def model(case):
    return getattr(jcl.models, case.kind)(case.config)


def initial(case):
    return jax.jit(model(case).init)(jax.random.key(0))


def episodes(case, seed):
    """A meta-step's episodes, of a seed of their own."""
    if case.kind == "mlp":
        source = jcl.data.sinusoids(case.tasks, case.shots, case.queries, seed=seed)
        return source.arrays()
    draw, config, batch = np.random.default_rng(seed), case.config, {}
    for part, each in (("", case.queries), ("support_", case.shots)):
        targets = np.repeat(np.arange(config.classes, dtype=np.int32), each)
        shape = (case.tasks, len(targets), config.height, config.width)
        batch[part + "inputs"] = draw.random(shape, np.float32)
        batch[part + "targets"] = np.tile(targets, (case.tasks, 1))
    return batch


def learner_and_state(case, batch, **options):
    learner = jcl.learner(meta_loss(case, **options), optax.adam(RATE))
    state = learner.init(jax.random.key(1), initial(case), batch)
    return learner, jcl.start_task(state, 10**9)


def jcl_steps(case, batches, **options):
    """A function that takes a step on every batch, each by a call from Python; and the bytes of
    the step's temporary arrays."""
    learner, state = learner_and_state(case, batches[0], **options)
    batches = jax.device_put(batches)
    step = jax.jit(learner.step, donate_argnums=0).lower(state, batches[0]).compile()
    held = [state]
    del state

    def run():
        for batch in batches:
            held[0], metrics = step(held[0], batch)
        jax.block_until_ready((held[0], metrics))

    return run, step.memory_analysis().temp_size_in_bytes


def jcl_calls(case, batches):
    """A function that takes a step on every batch, all in one call."""
    learner, state = learner_and_state(case, batches[0])
    step, held = jax.jit(by_index(learner.step), donate_argnums=0), [state]
    del state
    arrays = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *batches)
    indices = jnp.arange(len(batches) * case.tasks, dtype=jnp.int32).reshape(-1, case.tasks)

    def run():
        held[0], metrics = step(held[0], (arrays, indices))
        jax.block_until_ready((held[0], metrics))

    return run


def torch_module(torch_meta, case, way):
    """PyTorch's module with jcl's params, and its meta-loss and gradient of a batch."""
    module = getattr(torch_meta, case.kind)(case.config, way)
    torch_meta.load(module, torch_meta.by_name(initial(case), case.config))
    loss = torch_meta.LOSSES[case.loss]
    return module, torch_meta.WAYS[way](module, loss, 1, case.inner_rate)


def torch_steps(torch_meta, case, way, batches):
    """A function that takes a step on every batch."""
    step = torch_meta.step(*torch_module(torch_meta, case, way), RATE)
    batches = [torch_meta.tensors(batch, case.config) for batch in batches]

    def run():
        for batch in batches:
            step(batch)

    return run


if __name__ == "__main__":
    sys.exit(main())
