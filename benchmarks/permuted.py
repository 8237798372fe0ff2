"""A whole run of experience replay on Permuted MNIST: seconds a seed, of ten seeds and of one.

Command:  python benchmarks/permuted.py [--seeds 10] [--tasks 20] [--repeats 1] [--by vmap map]
              [--profile]

The time is that of all that `jcl run configs/mnist/permuted.py --method er --buffer 200` does:
compiling, data, 20 tasks of one epoch, the whole matrix, checkpoints. "training" is the steps alone
and "share of peak" their matmul operations over the machine's best float32 matmul rate in this run.
--profile prints where one run's time goes, each part waited for.
"""

import argparse
import collections
import contextlib
import dataclasses
import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax
from rich.console import Console
from step import matmul_peak

from jcl import checkpoint, data
from jcl.__main__ import load_config
from jcl.allocator import keep_freed_memory
from jcl.program import Program
from jcl.run import run

CONFIG = Path(__file__).parent.parent / "configs" / "mnist" / "permuted.py"


def whole_run(module, config, seeds, by):
    """(seconds, seconds of training, steps) of one run in a folder of its own."""

    def build(config):
        return dataclasses.replace(module.build(config), seeds_by=by)

    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        report, _ = run(
            build, config, config_file=CONFIG, seeds=seeds, out=Path(folder) / "run",
            console=Console(quiet=True),
        )  # fmt: skip
        seconds = time.perf_counter() - start
    return seconds, report["step_seconds_median"] * report["steps"], report["steps"]


@contextlib.contextmanager
def profiled():
    """{part: seconds} of what runs inside."""
    seconds, undo = collections.Counter(), []

    def measure(owner, name, part):
        original = getattr(owner, name)

        def timed(*given, **named):
            start = time.perf_counter()
            result = jax.block_until_ready(original(*given, **named))
            seconds[part] += time.perf_counter() - start
            return result

        setattr(owner, name, timed)
        undo.append((owner, name, original))

    measure(Program, "evaluate", "evaluation, with compiling and holding the tests")
    measure(Program, "initial", "initial state, with compiling")
    measure(data, "held", "moving pixels of the training images")
    measure(checkpoint, "save", "checkpoints")
    try:
        yield seconds
    finally:
        for owner, name, original in undo:
            setattr(owner, name, original)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--tasks", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--by", nargs="+", choices=("vmap", "map"), default=("vmap", "map"))
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    keep_freed_memory()
    module = load_config(CONFIG)
    config = module.Config(method="er", buffer=200, tasks=arguments.tasks)
    # Operations of an example: forward and weight gradients of all layers, input gradients of all
    # but the first; batch and draw.
    each = 4 * 784 * 100 + 6 * (100 * 100 + 100 * 10)
    kinds = {f"{arguments.seeds} seeds by {by}": (arguments.seeds, by) for by in arguments.by}
    kinds["1 seed"] = (1, "vmap")
    times = {name: [] for name in kinds}
    for _ in range(arguments.repeats):
        for name, (seeds, by) in kinds.items():
            times[name].append(whole_run(module, config, seeds, by))
    if arguments.profile:
        seeds, by = arguments.seeds, arguments.by[0]
        with profiled() as parts:
            total, training, _ = whole_run(module, config, seeds, by)
        parts["training steps"] = training
        parts["the rest: compiling the step, data, copies to the device"] = total - parts.total()
        print(f"{seeds} seeds by {by}: {total:.1f} s")
        for part, seconds in parts.most_common():
            print(f"{part:55} {seconds:7.1f} s {seconds / total:4.0%}")
    peak = matmul_peak()
    print(f"matmul peak {peak / 1e9:.0f} GFLOP/s; medians of {arguments.repeats}")
    for name, (seeds, _) in kinds.items():
        seconds, training, steps = (
            statistics.median(one) for one in zip(*times[name], strict=True)
        )
        rate = seeds * steps * 256 * each / training
        print(
            f"{name:20} {seconds / seeds:7.2f} s a seed, training {training / seeds:7.2f} s, "
            f"{rate / 1e9:6.0f} GFLOP/s, {rate / peak:4.0%} of peak"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
