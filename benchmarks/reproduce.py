"""The published MNIST tables, run by config and compared cell by cell.

Command:  python benchmarks/reproduce.py [TABLE ...] [--seeds 10] [--only METHOD ...] [--report]
Tables: permuted, rotated, split, mnist_360, scenarios; without a name all of them. Stopped, the
same command goes on where it was; --report only writes docs/reproduction.md from what has been run.

A verdict is two-sided: "reproduced" where the difference is at most 2 points, or where the two 95 %
intervals (the published one where it is stated) overlap; otherwise "differs".
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

from jcl import report
from jcl.__main__ import load_config

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs" / "mnist"
RUNS = ROOT / "runs" / "reproduction"
PAGE = ROOT / "docs" / "reproduction.md"
TITLES = {
    "permuted": "P-MNIST, 20 tasks (Buzzega et al. 2020)",
    "rotated": "R-MNIST, 20 tasks (Buzzega et al. 2020)",
    "split": "S-MNIST, class- and task-incremental (Buzzega et al. 2020)",
    "mnist_360": "MNIST-360, no boundaries (Buzzega et al. 2020)",
    "scenarios": "Split MNIST in three scenarios (Hsu et al. 2018)",
}
T_OF_TEN = 2.262  # Student's t for 95 % and ten runs
FEW = {"gem": 3}  # seeds of the methods that cost most


def cells(table):
    """(row's name, method, arguments, published, its interval or None, chance) for each cell."""
    config = load_config(CONFIGS / f"{table}.py")
    for method, settings in config.TABLE.items():
        if table == "scenarios":
            for scenario, (published, deviation, _) in zip(config.SCENARIOS, settings, strict=True):
                interval = deviation and T_OF_TEN * deviation / 10**0.5
                arguments = ["--scenario", scenario, "--method", method]
                chance = config.CHANCE[scenario]
                yield f"{method}, {scenario}", method, arguments, published, interval, chance
            continue
        for buffer, setting in settings.items():
            name = f"{method}, {buffer}" if buffer else method
            arguments = ["--method", method, "--buffer", str(buffer)]
            if table == "split":
                for scenario, published in zip(("class", "task"), setting, strict=False):
                    scenario_arguments = ["--scenario", scenario, *arguments]
                    chance = config.CHANCE[scenario]
                    yield f"{name}, {scenario}", method, scenario_arguments, published, None, chance
            else:
                yield name, method, arguments, setting[0], None, config.CHANCE


def place(table, name):
    return RUNS / table / name.replace(", ", "_")


def run(table, name, method, arguments, seeds):
    """The cell's run, to its end; returns whether it got there."""
    out = place(table, name)
    if report.complete(out):
        return True
    seeds = min(seeds, FEW.get(method, seeds))
    print(f"\n{table}: {name}, {seeds} seeds", flush=True)
    command = [
        sys.executable, "-m", "jcl", "run", str(CONFIGS / f"{table}.py"), *arguments,
        "--seeds", str(seeds), "--out", str(out),
    ]  # fmt: skip
    return subprocess.run(command, cwd=ROOT, check=False).returncode == 0


def verdict(published, interval, mean, ours):
    """ "reproduced" or "differs"."""
    difference = abs(mean - published)
    return "reproduced" if difference <= max(2.0, (interval or 0.0) + (ours or 0.0)) else "differs"


def rows(table):
    """(markdown line, verdict or None, wall seconds) for each cell."""
    why = getattr(load_config(CONFIGS / f"{table}.py"), "WHY", {})
    for name, _, _, published, interval, _ in cells(table):
        out = place(table, name)
        shown = f"{published:.2f}" + (f" ± {interval:.2f}" if interval else "")
        if not report.complete(out):
            yield f"| {name} | {shown} | not run | | | | |", None, 0.0
            continue
        found = report.read(out)
        result = found["metrics"]["average_accuracy"]
        mean, ours = 100 * result["mean"], result["ci95"] and 100 * result["ci95"]
        found_verdict = verdict(published, interval, mean, ours)
        reason = f": {why[name]}" if found_verdict == "differs" and name in why else ""
        commit = json.loads((out / "config.json").read_text()).get("git_commit") or "unknown"
        yield (
            f"| {name} | {shown} | {mean:.2f}"
            + (f" ± {ours:.2f}" if ours else "")
            + f" ({len(found['seeds'])}) | {mean - published:+.2f} | {found_verdict}{reason} | "
            f"{found['wall_seconds']:.0f} s | {commit[:8]} |",
            found_verdict,
            found["wall_seconds"],
        )


def write_page():
    """docs/reproduction.md from the run folders; returns the share reproduced of each table."""
    cpu = next(
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    )
    lines = [
        "# Published tables, reproduced",
        "",
        "Final average accuracy in percent: the mean over tasks after the last, with its 95 % "
        "interval over seeds (their number in brackets). Reproduced: within 2 points, or within "
        "the two intervals. The published intervals of Hsu et al. are made here from the standard "
        "deviations over ten runs that their released code computes. Written by `make reproduce`, "
        "which goes on where it was stopped; wall times are of runs beside others on the same "
        "two cores; a table that takes longer than 90 minutes can be run in parts, as in "
        '`make reproduce TABLES=permuted METHODS="der derpp"`.',
        "",
        f"{cpu}, {len(os.sched_getaffinity(0))} cores; Python {platform.python_version()}; "
        f"{datetime.date.today().isoformat()}.",
    ]
    counts = {}
    for table, title in TITLES.items():
        found = list(rows(table))
        verdicts = [each for _, each, _ in found if each]
        minutes = sum(seconds for *_, seconds in found) / 60
        counts[table] = (verdicts.count("reproduced"), len(verdicts), len(found))
        chances = dict.fromkeys(f"{cell[-1]:.1f}" for cell in cells(table))
        lines += ["", f"## {title}", ""]
        lines += [
            f"`configs/mnist/{table}.py`; reproduced {counts[table][0]} of {counts[table][1]} run, "
            f"{counts[table][2]} in all; {minutes:.0f} minutes. "
            f"Chance is {' or '.join(chances)} %.",
            "",
            "| method | published | jcl | difference | verdict | wall time | commit |",
            "|---|---|---|---|---|---|---|",
            *(line for line, *_ in found),
        ]
    PAGE.write_text("\n".join(lines) + "\n")
    return counts


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("tables", nargs="*", metavar="TABLE")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--only", nargs="+", metavar="METHOD")
    parser.add_argument("--report", action="store_true")
    arguments = parser.parse_args()
    for table in arguments.tables:
        if table not in TITLES:
            parser.error(f"{table!r} is none of {', '.join(TITLES)}")
    failed = 0
    if not arguments.report:
        for table in arguments.tables or TITLES:
            for name, method, settings, *_ in cells(table):
                if not arguments.only or method in arguments.only:
                    failed += not run(table, name, method, settings, arguments.seeds)
                    write_page()
    for table, (reproduced, ran, every) in write_page().items():
        print(f"{table}: {reproduced} of {ran} run reproduced, {every} in all")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
