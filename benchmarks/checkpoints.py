"""What the checkpoints of a run cost it: one save every two minutes against none.

Command:  python benchmarks/checkpoints.py [--sizes byte small] [--seconds 120] [--pairs 3]
              [--folder DIR] [--out checkpoints.json] [--tiny]

GPT-2 with AdamW, replay and EWC, float32, steps as `jcl run` takes them (dispatched one ahead, the
state donated). A window is so many steps as take `--seconds` without a save. Windows without and
with one take turns (A B A B ...); a save begins at the first step of its window and the window ends
when it is written. The share is what a window with a save takes longer, over a window without,
medians of the windows; beside it stands what a save would be of 120 s where `--seconds` is less.
The longest step of a window with a save, beside that of one without, is what the run stood still:
the copy of the state, and steps that share the cores with the writing. The disk is that of
`--folder`, by default the system's for temporary files; the size of a checkpoint and the seconds
that one takes by itself are printed with it.

`--tiny` shows that the script runs, in seconds, and its figures mean nothing. Run it on an idle
machine with as many cores as the run will have.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jcl
from jcl.allocator import keep_freed_memory
from jcl.checkpoint import Saver
from jcl.models import GPT2Config

SIZES = {
    "tiny": (GPT2Config(64, positions=16, width=16, layers=1, heads=2, dropout=0.0), 4, 16),
    "byte": (GPT2Config(258, positions=128, width=128, layers=4, heads=4, dropout=0.0), 16, 128),
    "small": (GPT2Config(dropout=0.0), 4, 128),
}
EVERY, AIM = 120.0, 0.05  # seconds between saves, and the share they may take


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["byte", "small"])
    parser.add_argument("--seconds", type=float, default=EVERY)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args(arguments)
    if options.tiny:
        options.sizes, options.seconds, options.pairs = ["tiny"], 0.5, 2
    if not options.seconds > 0 or options.pairs < 1:
        parser.error("--seconds and --pairs are to be above 0")
    keep_freed_memory()
    results = {
        "command": " ".join(["python", *sys.argv]),
        "machine": {
            "device": jax.devices()[0].device_kind, "cores": len(os.sched_getaffinity(0)),
            "python": platform.python_version(), "jax": jax.__version__,
        },
    }  # fmt: skip
    print(json.dumps(results["machine"]))
    for size in options.sizes:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            results[size] = measure(size, options.seconds, options.pairs, Path(folder))
        show(size, results[size])
    if options.out:
        options.out.write_text(json.dumps(results, indent=1))
    return 0


def measure(size, seconds, pairs, folder):
    """The seconds of every window and of its longest step, and of every save until it is whole."""
    take, state = training(*SIZES[size])
    state, each = walk(take, state, 3)
    state, each = walk(take, state, 10)
    steps = max(5, round(seconds / statistics.median(each)))
    kinds = {"without": ([], []), "with": ([], [])}
    written = []
    with Saver(folder / "checkpoints", keep=2) as saver:
        saver.save(state, {})  # which compiles the copy
        saver.wait()
        for _ in range(pairs):
            for kind, (windows, longest) in kinds.items():
                begun = time.perf_counter()
                state, each = walk(take, state, steps, saver if kind == "with" else None)
                saver.wait()
                windows.append(time.perf_counter() - begun)
                longest.append(max(each))
        begun = time.perf_counter()
        saver.save(state, {})
        saver.wait()
        written.append(time.perf_counter() - begun)
    files = [path for path in max((folder / "checkpoints").iterdir()).rglob("*") if path.is_file()]
    return {
        "steps": steps, "windows": {kind: windows for kind, (windows, _) in kinds.items()},
        "longest_steps": {kind: longest for kind, (_, longest) in kinds.items()},
        "alone": written[0], "bytes": sum(path.stat().st_size for path in files),
    }  # fmt: skip


def walk(take, state, steps, saver=None):
    """So many steps, with a save behind the first where there is a saver; the seconds of each."""
    each, before = [], None
    for number in range(steps):
        begun = time.perf_counter()
        state, metrics = take(state)
        jax.block_until_ready(before)  # the step before: this one is on its way, as in a run
        if number == 0 and saver:
            jax.block_until_ready(metrics)  # a run looks whether all is finite
            saver.save(state, {})
        before = metrics
        each.append(time.perf_counter() - begun)
    jax.block_until_ready(state.params)
    return state, each


def training(config, batch_size, length):
    """A function that takes a step, and the first state."""
    draw = np.random.default_rng(0)
    tokens = draw.integers(0, config.vocab_size, (8, batch_size, length + 1))
    batches = [
        {"inputs": jnp.asarray(each[:, :-1], jnp.int32), "targets": jnp.asarray(each[:, 1:])}
        for each in tokens.astype(np.int32)
    ]
    model = jcl.models.gpt2(config)
    strategy = jcl.chain(jcl.replay(capacity=100, size=batch_size), jcl.ewc(1.0), optax.adamw(1e-4))
    learner = jcl.learner(jcl.losses.causal_lm(model.apply), strategy)
    params = jax.jit(model.init)(jax.random.key(0))
    state = learner.init(jax.random.key(1), params, batches[0])
    compiled = jax.jit(learner.step, donate_argnums=0)
    turn = iter(range(10**9))
    return lambda state: compiled(state, batches[next(turn) % len(batches)]), state


def show(size, found):
    median = {kind: statistics.median(each) for kind, each in found["windows"].items()}
    longest = {kind: statistics.median(each) for kind, each in found["longest_steps"].items()}
    more = median["with"] - median["without"]
    share = more / median["without"]
    told = "met" if more / EVERY <= AIM else "MISSED"
    number = len(found["windows"]["with"])
    print(f"\n{size}: {found['steps']} steps a window, {number} windows of each kind")
    print(f"  a window without a save   {median['without']:9.2f} s")
    print(f"  a window with one         {median['with']:9.2f} s   {share:+.1%}")
    costs = f"{more:9.2f} s   {more / EVERY:+.1%} of {EVERY:.0f} s"
    print(f"  a save costs              {costs}; aim {AIM:.0%}: {told}")
    print(f"  the longest step without  {longest['without']:9.3f} s")
    print(f"  and with                  {longest['with']:9.3f} s")
    print(f"  one save alone            {found['alone']:9.2f} s   {found['bytes'] / 1e6:,.1f} MB")


if __name__ == "__main__":
    sys.exit(main())
