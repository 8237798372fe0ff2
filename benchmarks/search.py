"""Trials an hour of `jcl search`: one after the other against populations in one program.

Command:  python benchmarks/search.py [--trials 16] [--population 8] [--repeats 3] [--out FILE.json]
              [--only naive si gpt2]  (--tiny: to see that it runs)

Every measurement is a search of its own in a process of its own, from its start to its end: what
it compiles, and what it writes, is in the time. Both kinds are run in turn, `repeats` times, with
the same trials asked for, no pruning, and the spaces below; medians. The MLP configs are
class-incremental Split MNIST, one epoch, if JCL_DATA has MNIST, else as many made-up images. The
small GPT-2 of the quickstart, with few steps and 4 trials, is there to see where a population does
not pay: `--population auto` runs it one by one. The exit status is 1 if a ratio of an MLP config is
below 1.5. Run it on an idle machine.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
AIM = 1.5
# name: (config, its flags, spaces, flags that make it tiny, most trials, whether the aim is its)
CASES = {
    "naive": ("mnist/baselines.py", ["--method", "naive"], ["rate=1e-3..0.3:log"], [], None, True),
    "si": ("mnist/split.py", ["--method", "si"], ["strength=1e-2..10:log"], [], None, True),
    "gpt2": (
        "quickstart.py", ["--steps", "40"], ["learning_rate=1e-4..1e-2:log"],
        ["--steps", "2", "--layers", "1", "--width", "8", "--heads", "1", "--length", "16"],
        4, False,
    ),
}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--population", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    trials, population, repeats = arguments.trials, arguments.population, arguments.repeats
    if arguments.tiny:
        trials, population, repeats = 2, 2, 1
    found, counts, load = {}, {}, [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory() as folder:
        environment = with_images(Path(folder), 200 if arguments.tiny else 60_000, arguments.tiny)
        for name in arguments.only:
            found[name] = {"one by one": [], "population": []}
            number = counts[name] = min(trials, CASES[name][-2] or trials)
            for repeat in range(repeats):
                for kind, size in (("one by one", 1), ("population", min(population, number))):
                    out = Path(folder) / f"{name}-{size}-{repeat}"
                    seconds = searched(name, number, size, out, environment, arguments.tiny)
                    found[name][kind].append(seconds)
                    print(f"{name}, {kind}: {number} trials in {seconds:.1f} s", flush=True)
    load.append(os.getloadavg()[0])
    print(f"load before and after {load[0]:.2f} {load[1]:.2f}\n")
    print("| config | one by one, trials an hour | population | ratio |\n|---|---|---|---|")
    missed = False
    for name, seconds in found.items():
        alone, together = (
            3600 * counts[name] / statistics.median(each) for each in seconds.values()
        )
        missed |= CASES[name][-1] and together < AIM * alone
        print(f"| {name} | {alone:.0f} | {together:.0f} | {together / alone:.2f} |")
    if arguments.out:
        arguments.out.write_text(json.dumps({"trials": counts, "seconds": found, "load": load}))
    return int(missed and not arguments.tiny)


def searched(name, trials, population, out, environment, tiny):
    """The seconds of one search, from the start of its process to its end."""
    config, flags, spaces, smaller, *_ = CASES[name]
    command = [sys.executable, "-m", "jcl", "search", str(ROOT / "configs" / config), *flags]
    command += smaller if tiny else []
    command += [word for space in spaces for word in ("--space", space)]
    command += ["--trials", str(trials), "--population", str(population), "--pruner", "none"]
    started = time.monotonic()
    done = subprocess.run(
        [*command, "--out", str(out)], env=environment, capture_output=True, text=True
    )
    seconds = time.monotonic() - started
    if done.returncode:
        sys.exit(done.stderr)
    study = json.loads((out / "offline" / "study.json").read_text())
    ended = sum(trial["state"] in ("finished", "diverged") for trial in study["trials"])
    assert ended == trials, study
    return seconds


def with_images(folder, number, made_up):
    """The environment in which the configs find MNIST, or else made-up images in its place."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    given = Path(os.environ.get("JCL_DATA", folder)) / "mnist" / "mnist.npz"
    if given.exists() and not made_up:
        return environment
    draw = np.random.default_rng(0)
    shapes = draw.integers(0, 256, (10, 28, 28))

    def part(number):
        targets = np.arange(number) % 10
        noise = draw.integers(0, 256, (number, 28, 28))
        return ((shapes[targets] + noise) // 2).astype(np.uint8), targets.astype(np.int32)

    (folder / "mnist").mkdir()
    (inputs, targets), (test_inputs, test_targets) = part(number), part(number // 6)
    np.savez(
        folder / "mnist" / "mnist.npz",
        x_train=inputs, y_train=targets, x_test=test_inputs, y_test=test_targets,
    )  # fmt: skip
    print("made-up images in the place of MNIST")
    return {**environment, "JCL_DATA": str(folder)}


if __name__ == "__main__":
    sys.exit(main())
