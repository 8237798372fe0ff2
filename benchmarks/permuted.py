"""A whole run of experience replay on Permuted MNIST: seconds a seed, of ten seeds and of one.

Command:  python benchmarks/permuted.py [--seeds 10] [--tasks 20] [--repeats 1]
              [--evaluate boundaries end] [--profile]

Each is one command, `jcl run configs/mnist/permuted.py --method er --buffer 200`, in a process of
its own from its start to its end: imports, compiling, data, 20 tasks of one epoch, checkpoints, and
the whole matrix (--evaluate boundaries) or what the published table needs of it (end). "training"
is the steps alone, and "share of peak" their matmul operations over the machine's best float32
matmul rate in this run. --profile prints where the time of ten seeds goes, each part waited for.
"""

import argparse
import collections
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
from step import matmul_peak

from jcl import checkpoint, data
from jcl.__main__ import main as jcl_main
from jcl.program import Program

CONFIG = Path(__file__).parent.parent / "configs" / "mnist" / "permuted.py"


def command(folder, seeds, tasks, evaluate):
    return [
        "run", str(CONFIG), "--method", "er", "--buffer", "200", "--tasks", str(tasks),
        "--evaluate", evaluate, "--seeds", str(seeds), "--out", str(folder),
    ]  # fmt: skip


def whole_run(*settings):
    """(seconds, seconds of training, steps) of one command in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "jcl", *command(Path(folder) / "run", *settings)],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        seconds = time.perf_counter() - start
        report = json.loads((Path(folder) / "run" / "report.json").read_text())
    return seconds, report["step_seconds_median"] * report["steps"], report["steps"]


def profile(*settings):
    """Runs the command in this process, each part waited for, and prints the parts."""
    seconds = collections.Counter()

    def measure(owner, name, part):
        original = getattr(owner, name)

        def timed(*given, **named):
            start = time.perf_counter()
            result = jax.block_until_ready(original(*given, **named))
            seconds[part] += time.perf_counter() - start
            return result

        setattr(owner, name, timed)

    measure(Program, "__init__", "tracing on shapes")
    measure(Program, "evaluate", "evaluation, with compiling and holding the tests")
    measure(Program, "initial", "initial state, with compiling")
    measure(data, "held", "moving pixels of the training images")
    measure(checkpoint, "save", "checkpoints")
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        assert jcl_main(command(Path(folder) / "run", *settings)) == 0
        total = time.perf_counter() - start
        report = json.loads((Path(folder) / "run" / "report.json").read_text())
    seconds["training steps"] = report["step_seconds_median"] * report["steps"]
    seconds["the rest: compiling the step, data, copies to the device"] = total - seconds.total()
    print(f"profile of {settings}: {total:.1f} s")
    for part, spent in seconds.most_common():
        print(f"{part:58} {spent:7.1f} s {spent / total:4.0%}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--tasks", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument(
        "--evaluate", nargs="+", choices=("boundaries", "end"), default=("boundaries", "end")
    )
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    # Operations of an example: forward and weight gradients of all layers, input gradients of all
    # but the first; batch and draw.
    each = 4 * 784 * 100 + 6 * (100 * 100 + 100 * 10)
    kinds = [
        (seeds, arguments.tasks, evaluate)
        for evaluate in arguments.evaluate
        for seeds in (arguments.seeds, 1)
    ]
    times = {kind: [] for kind in kinds}
    for _ in range(arguments.repeats):
        for kind in kinds:
            times[kind].append(whole_run(*kind))
    if arguments.profile:  # before this process uses JAX, whose devices the command chooses
        profile(arguments.seeds, arguments.tasks, arguments.evaluate[0])
    peak = matmul_peak()
    print(f"matmul peak {peak / 1e9:.0f} GFLOP/s; medians of {arguments.repeats}")
    for seeds, tasks, evaluate in kinds:
        seconds, training, steps = (
            statistics.median(one) for one in zip(*times[seeds, tasks, evaluate], strict=True)
        )
        rate = seeds * steps * 256 * each / training
        print(
            f"{seeds:2} seeds, evaluate {evaluate:10} {seconds / seeds:7.2f} s a seed, training "
            f"{training / seeds:7.2f} s, {rate / 1e9:6.0f} GFLOP/s, {rate / peak:4.0%} of peak",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
