"""The published MNIST tables, run by config and compared cell by cell.

Command:  python benchmarks/reproduce.py [TABLE ...] [--seeds 10] [--only METHOD ...] [--report]
Tables: permuted, permuted_small, rotated, split, mnist_360, scenarios; without a name all of them.
Stopped, the same command goes on where it was; --report only writes docs/reproduction.md from what
has been run.
A finished run of fewer seeds than asked is not taken for the cell, nor overwritten: the command
stops before the first run and names the folders. A cell without a finished run keeps the row that
the page has for it, since the folder may be on another machine.
Exit status: 0, 1 where a cell's run failed, 2 where the command cannot be followed.

A verdict is two-sided: "reproduced" where the difference is at most 2 points, or where the two 95 %
intervals (the published one where it is stated) overlap; otherwise "differs". A method without a
published figure, of a config's BESIDE, has a row without a verdict.
"""

import argparse
import datetime
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from jcl import report
from jcl.__main__ import load_config
from jcl.errors import InputError

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs" / "mnist"
RUNS = ROOT / "runs" / "reproduction"
PAGE = ROOT / "docs" / "reproduction.md"
TITLES = {
    "permuted": "P-MNIST, 20 tasks (Buzzega et al. 2020)",
    "permuted_small": "P-MNIST, 20 tasks of 1,000 images (as Gupta et al. 2020)",
    "rotated": "R-MNIST, 20 tasks (Buzzega et al. 2020)",
    "split": "S-MNIST, class- and task-incremental (Buzzega et al. 2020)",
    "mnist_360": "MNIST-360, no boundaries (Buzzega et al. 2020)",
    "scenarios": "Split MNIST in three scenarios (Hsu et al. 2018)",
}
# The targets of the Makefile, each of at most 90 minutes by the wall times of the page.
PARTS = (
    "permuted-1", "permuted-2", "permuted-3", "permuted_small", "rotated-1", "rotated-2",
    "rotated-3", "split", "mnist_360", "scenarios-1", "scenarios-2", "scenarios-3",
)  # fmt: skip
T_OF_TEN = 2.262  # Student's t for 95 % and ten runs
FEW = {"gem": 3, "la_maml": 3}  # seeds of the methods that cost most


def cells(table):
    """(row's name, method, arguments, published or None, its interval or None, chance) for each
    cell."""
    config = load_config(CONFIGS / f"{table}.py")
    beside = getattr(config, "BESIDE", {})
    for method, settings in {**config.TABLE, **beside}.items():
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
            figures = (None, None) if method in beside else setting
            if table in ("permuted", "permuted_small", "rotated"):
                arguments += ["--evaluate", "end"]
            if table == "split":
                for scenario, published in zip(("class", "task"), figures, strict=False):
                    scenario_arguments = ["--scenario", scenario, *arguments]
                    chance = config.CHANCE[scenario]
                    yield f"{name}, {scenario}", method, scenario_arguments, published, None, chance
            else:
                yield name, method, arguments, figures[0], None, config.CHANCE


def place(table, name):
    return RUNS / table / name.replace(", ", "_")


def wanted(method, seeds):
    return min(seeds, FEW.get(method, seeds))


def chosen(tables, only, seeds):
    """(table, cell) for each cell of the tables, of all where none is named.

    Raises:
        InputError: an unknown table or method, no seed, or a finished run of fewer seeds.
    """
    for table in tables:
        if table not in TITLES:
            raise InputError(f"{table!r} is no table: name some of {', '.join(TITLES)}.")
    if seeds < 1:
        raise InputError(f"--seeds {seeds}: give at least 1.")
    found = [(table, cell) for table in tables or TITLES for cell in cells(table)]
    known = dict.fromkeys(method for _, (_, method, *_) in found)
    for method in only or ():
        if method in TITLES:
            raise InputError(
                f"--only {method}: that is a table, not a method: name the tables first, as in "
                f"reproduce.py {method} --only {next(iter(known))}."
            )
        if method not in known:
            raise InputError(
                f"--only {method}: no such method in {', '.join(tables or TITLES)}; known there "
                f"are {', '.join(known)}."
            )
    found = [(table, cell) for table, cell in found if not only or cell[1] in only]
    short = {}
    for table, (name, method, *_) in found:
        out = place(table, name)
        if report.complete(out):
            number = len(report.read(out)["seeds"])
            if number < wanted(method, seeds):
                short[out] = number
    if short:
        folders = ", ".join(f"{out} ({number})" for out, number in short.items())
        raise InputError(
            f"--seeds {seeds}: of fewer seeds are the finished runs {folders}. Remove these "
            f"folders to run the cells again, or give --seeds {min(short.values())}."
        )
    return found


def run(table, name, method, arguments, seeds):
    """The cell's run, to its end; returns whether it got there."""
    out = place(table, name)
    if report.complete(out):
        return True
    seeds = wanted(method, seeds)
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


class Result(NamedTuple):
    """What a cell's run gave: percent, its interval or None, seeds, seconds, commit, and the kind
    of the accelerator that it ran on."""

    mean: float
    interval: float | None
    seeds: int
    seconds: float
    commit: str
    accelerator: str | None = None

    @property
    def wall(self):
        return f"{self.seconds:.0f} s" + (f", {self.accelerator}" if self.accelerator else "")


def read_page():
    """The cells of each row of the page, by (table, name), and its line about the machine."""
    held, table, machine = {}, None, None
    for line in PAGE.read_text().splitlines() if PAGE.exists() else ():
        if heading := re.match(r"`configs/mnist/(\w+)\.py`", line):
            table = heading.group(1)
        elif table is None and "; Python " in line:
            machine = line
        elif table and line.startswith("| "):
            name, *row = line.removeprefix("| ").removesuffix(" |").split(" | ")
            if len(row) == 6:  # that of a cell which was not run is shorter
                held[table, name] = row
    return held, machine


def finished(folder, metric="average_accuracy"):
    """The result of a finished run."""
    found = report.read(folder)
    result = found["metrics"][metric]
    began = json.loads((folder / "config.json").read_text())
    commit, device = began.get("git_commit") or "unknown", began["devices"]
    accelerator = None if device["platform"] == "cpu" else device["kind"]
    interval = 100 * result["ci95"] if result["ci95"] else None
    mean = float("nan") if result["mean"] is None else 100 * result["mean"]
    return Result(
        mean, interval, len(found["seeds"]), found["wall_seconds"], commit[:8], accelerator
    )


def kept(row):
    """The result that a row of the page holds; None where its figures cannot be read."""
    _, result, _, _, seconds, commit = row
    figures = re.fullmatch(r"(-?[\d.]+)(?: ± ([\d.]+))? \((\d+)\)", result)
    wall = re.fullmatch(r"(\d+) s(?:, (.+))?", seconds)
    if not figures or not wall:
        return None
    mean, interval, seeds = figures.groups()
    return Result(
        float(mean),
        float(interval) if interval else None,
        int(seeds),
        int(wall[1]),
        commit,
        wall[2],
    )


def rows(table, held):
    """(markdown line, verdict or None, wall seconds, whether of a run folder) for each cell."""
    why = getattr(load_config(CONFIGS / f"{table}.py"), "WHY", {})
    for name, _, _, published, interval, _ in cells(table):
        out = place(table, name)
        here, row = report.complete(out), held.get((table, name))
        shown = "-" if published is None else f"{published:.2f}"
        shown += f" ± {interval:.2f}" if interval else ""
        if not here and row is None:
            yield f"| {name} | {shown} | not run | | | | |", None, 0.0, False
            continue
        result = finished(out) if here else kept(row)
        if result is None:
            told = row[3].split(":")[0]
            yield f"| {name} | {' | '.join(row)} |", told, 0.0, False
            continue
        found_verdict, compared = None, "- | -"
        if published is not None:
            found_verdict = verdict(published, interval, result.mean, result.interval)
            reason = f": {why[name]}" if found_verdict == "differs" and name in why else ""
            difference = round(result.mean - published, 2) + 0.0  # no -0.00
            compared = f"{difference:+.2f} | {found_verdict}{reason}"
        yield (
            f"| {name} | {shown} | {result.mean:.2f}"
            + (f" ± {result.interval:.2f}" if result.interval else "")
            + f" ({result.seeds}) | {compared} | {result.wall} | {result.commit} |",
            found_verdict,
            result.seconds,
            here,
        )


def this_machine():
    """A line about the machine and the day."""
    cpu = next(
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    )
    return (
        f"{cpu}, {len(os.sched_getaffinity(0))} cores; Python {platform.python_version()}; "
        f"{datetime.date.today().isoformat()}."
    )


def chance_rows(table):
    """What guessing gives, in each of the table's scenarios."""
    found = {}
    for name, *_, chance in cells(table):
        several = table in ("split", "scenarios")
        found[f"chance, {name.rsplit(', ', 1)[1]}" if several else "chance"] = chance
    return [f"| {name} | - | {chance:.2f} | | | | |" for name, chance in found.items()]


def write_page():
    """docs/reproduction.md from the run folders and, where there is none, from the page itself.

    Returns the share reproduced of each table.
    """
    held, machine = read_page()
    found = {table: list(rows(table, held)) for table in TITLES}
    if machine is None or any(here for each in found.values() for *_, here in each):
        machine = this_machine()
    lines = [
        "# Published tables, reproduced",
        "",
        "Final average accuracy in percent: the mean over tasks after the last, with its 95 % "
        "interval over seeds (their number in brackets). Reproduced: within 2 points, or within "
        "the two intervals. The published intervals of Hsu et al. are made here from the standard "
        "deviations over ten runs that their released code computes. A row without a published "
        "figure is there for the others to stand beside. Wall times are of runs beside others on "
        "the same two cores, or on the accelerator that they name.",
        "",
        "Written by `make reproduce`, which goes on where it was stopped. It runs in turn the "
        f"targets {', '.join(f'`reproduce-{part}`' for part in PARTS)}, each of at most 90 "
        "minutes by the wall times below; `make reproduce-permuted` and its like run a whole "
        "table, and `make "
        'reproduce-split METHODS="der derpp"` some methods of it.',
        "",
        "The next line tells where and when the page was last written from run folders; a row "
        "whose folder was not there stands as it was before and carries its commit only.",
        "",
        machine,
    ]
    counts = {}
    for table, title in TITLES.items():
        verdicts = [each for _, each, *_ in found[table] if each]
        minutes = sum(seconds for _, _, seconds, _ in found[table]) / 60
        published = sum(figure is not None for _, _, _, figure, *_ in cells(table))
        counts[table] = (verdicts.count("reproduced"), len(verdicts), published)
        lines += ["", f"## {title}", ""]
        lines += [
            f"`configs/mnist/{table}.py`; reproduced {counts[table][0]} of {counts[table][1]} run, "
            f"{counts[table][2]} in all; {minutes:.0f} minutes."
            if published
            else f"`configs/mnist/{table}.py`; no published figures; {minutes:.0f} minutes.",
            "",
            "| method | published | jcl | difference | verdict | wall time | commit |",
            "|---|---|---|---|---|---|---|",
            *chance_rows(table),
            *(line for line, *_ in found[table]),
        ]
    PAGE.write_text("\n".join(lines) + "\n")
    return counts


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("tables", nargs="*", metavar="TABLE")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--only", nargs="+", metavar="METHOD")
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args(arguments)
    failed = 0
    try:
        for table, (name, method, settings, *_) in chosen(
            options.tables, options.only, 1 if options.report else options.seeds
        ):
            if not options.report:
                failed += not run(table, name, method, settings, options.seeds)
                write_page()
        for table, (reproduced, ran, every) in write_page().items():
            print(f"{table}: {reproduced} of {ran} run reproduced, {every} in all")
    except InputError as error:
        parser.error(str(error))  # ends with status 2
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
