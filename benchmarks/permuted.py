"""A whole run of experience replay on Permuted MNIST: seconds a seed, of ten seeds and of one.

Command:  python benchmarks/permuted.py [--seeds 10] [--tasks 20] [--repeats 1] [--by vmap map]

The time is that of all that `jcl run configs/mnist/permuted.py --method er --buffer 200` does:
compiling, data, 20 tasks of one epoch, the whole matrix, checkpoints. "training" is the steps alone
and "share of peak" their matmul operations over the machine's best float32 matmul rate in this run.
"""

import argparse
import dataclasses
import statistics
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from step import matmul_peak

from jcl.__main__ import load_config
from jcl.allocator import keep_freed_memory
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


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--tasks", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--by", nargs="+", choices=("vmap", "map"), default=("vmap", "map"))
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
