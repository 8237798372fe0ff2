"""The tables of docs/online.md: each method of configs/drift.py on streams with known drifts.

Command:  python benchmarks/drift_table.py [STREAM ...] [--only METHOD ...] [--seeds 3]
          [--minutes 90] [--report]
Needs JCL_DATA (see configs/drift.py) and pip install "jcl[drift]". Goes on where it was stopped:
a finished run is a file in runs/drift_table and is not run again. --report only writes the page; a
row that is not in that folder keeps what the page has for it, or says "not run".
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import reproduce

import jcl
from jcl import drift, prequential
from jcl.__main__ import load_config
from jcl.metrics import interval

RUNS = reproduce.ROOT / "runs" / "drift_table"
PAGE = reproduce.ROOT / "docs" / "online.md"
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"
WINDOW = 100
SETTINGS = {"texts": "clinc150", "backbone": "minilm"}
CONFIG = load_config(reproduce.ROOT / "configs" / "drift.py")
METHODS = get_args(get_type_hints(CONFIG.Config)["method"])
# name: (title, drift, change)
STREAMS = {
    "abrupt": ("Labels, abrupt", "abrupt", "labels"),
    "gradual": ("Labels, gradual", "gradual", "labels"),
    "recurring": ("Labels, recurring", "recurring", "labels"),
    "domains": ("Domains, recurring", "recurring", "domains"),
}
HEAD = (
    "method", "accuracy", "worst window", "recovery", "recovered", "forgetting", "examples/s",
    "state",
)  # fmt: skip


def place(name, method, seed):
    return RUNS / name / f"{method}_{seed}.json"


def run(name, method, seed):
    """Runs one row and writes its file."""
    _, kind, change = STREAMS[name]
    config = CONFIG.Config(method=method, drift=kind, change=change, seed=seed, **SETTINGS)
    experiment = CONFIG.build(config)
    stream = experiment.stream
    began = time.monotonic()
    report = jcl.online.run(experiment, stream.stages[0], window=WINDOW)
    truth = {"drifts": stream.drifts, "order": stream.order, "width": stream.width}
    correct = report["series"]["correct"]
    found = {
        "measures": prequential.summary(correct, window=WINDOW, **truth),
        "truth": truth,
        "examples": len(correct),
        "examples_per_second": report["examples_per_second"],
        "state_bytes": report["state_bytes"],
        "seconds": time.monotonic() - began,
        "alarms": report["series"]["alarms"],
        "losses": report["series"]["loss"] if method == "constant" else None,
        "settings": " ".join(f"--{name} {value}" for name, value in SETTINGS.items()),
        "commit": commit(),
        "on": machine(),
        "date": datetime.date.today().isoformat(),
    }
    path = place(name, method, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".part").write_text(json.dumps(found))
    path.with_suffix(".part").rename(path)


def commit():
    done = subprocess.run(
        ["git", "rev-parse", "--short=8", "HEAD"], cwd=reproduce.ROOT, capture_output=True,
        text=True,
    )  # fmt: skip
    return done.stdout.strip() or "unknown"


def machine():
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return f"{len(os.sched_getaffinity(0))} cores of an {cpu}"


def finished(name, method):
    """The results of all seeds that have been run."""
    paths = sorted((RUNS / name).glob(f"{method}_[0-9]*.json"))
    return [json.loads(path.read_text()) for path in paths]


def figure(values, scale=100.0):
    """The mean with its 95 % interval; "-" where there is nothing to measure."""
    if any(value is None for value in values):
        return "-"
    values = scale * np.asarray(values, np.float64)
    spread = interval(values)
    return f"{values.mean():.1f}" + (f" ± {spread:.1f}" if spread is not None else "")


def cells(results):
    of = {key: [each["measures"][key] for each in results] for key in results[0]["measures"]}
    drifts = sum(len(each["truth"]["drifts"]) for each in results)
    return [
        figure(of["accuracy"]), figure(of["worst_window"]), figure(of["recovery_mean"], 1.0),
        f"{sum(of['recovered'])} of {drifts}", figure(of["forgetting"]),
        f"{np.median([each['examples_per_second'] for each in results]):.0f}",
        f"{results[0]['state_bytes'] / 2**20:.1f} MiB",
    ]  # fmt: skip


def detectors(name):
    """A row for each detector, fed the losses of the method constant where it was run."""
    runs = finished(name, "constant")
    for detector in get_args(drift.Name) if runs else ():
        rows = []
        for each in runs:
            fresh, truth = drift.detector(detector), each["truth"]
            alarms = [number for number, loss in enumerate(each["losses"]) if fresh.update(loss)]
            rows.append(prequential.detection(alarms, truth["drifts"]))
        drifts = sum(len(row["delays"]) for row in rows)
        delays = [delay for row in rows for delay in row["delays"] if delay is not None]
        yield [
            detector, f"{len(delays)} of {drifts}", f"{np.mean(delays):.0f}" if delays else "-",
            f"{np.mean([row['false'] for row in rows]):.1f}",
        ]  # fmt: skip


def kept():
    """The rows of the page, by (heading, first cell)."""
    text = PAGE.read_text() if PAGE.exists() else ""
    held, title = {}, None
    for line in text.partition(BEGIN)[2].partition(END)[0].splitlines():
        if line.startswith("### "):
            title = line[4:]
        elif line.startswith("| ") and "not run" not in line:
            held[title, line.split(" | ")[0].removeprefix("| ")] = line
    return held


def tables():
    """The markdown between the markers."""
    held, lines = kept(), []
    for name, (title, _, _) in STREAMS.items():
        lines += ["", f"### {title}", "", f"`python benchmarks/drift_table.py {name}`", ""]
        lines += [f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
        for method in METHODS:
            results = finished(name, method)
            row = f"| {method} | {' | '.join([*cells(results)])} |" if results else None
            missing = f"| {method} | not run |" + " |" * (len(HEAD) - 2)
            lines.append(row or held.get((title, method), missing))
    for name, (title, _, _) in STREAMS.items():
        title = f"Detectors on the losses of constant: {title}"
        lines += ["", f"### {title}", "", "| detector | drifts found | delay | false alarms |"]
        lines.append("|---|---|---|---|")
        found = {row[0]: f"| {' | '.join(row)} |" for row in detectors(name)}
        for detector in get_args(drift.Name):
            row = held.get((title, detector), f"| {detector} | not run | | |")
            lines.append(found.get(detector, row))
    return lines


def where():
    """What the rows were run on, and when."""
    every = [each for name in STREAMS for method in METHODS for each in finished(name, method)]
    told = sorted({f"{e['settings']}; {e['on']}; commit {e['commit']}; {e['date']}" for e in every})
    old = [line for line in PAGE.read_text().splitlines() if line.startswith("Run on: ")]
    return f"Run on: {' / '.join(told)}." if told else (old or ["Nothing has been run so far."])[0]


def write_page():
    before, _, rest = PAGE.read_text().partition(BEGIN)
    middle = "\n".join([BEGIN, "", where(), *tables(), "", END])
    PAGE.write_text(before + middle + rest.partition(END)[2])


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("streams", nargs="*", metavar="STREAM", default=[])
    parser.add_argument("--only", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=90.0)
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args(arguments)
    for name in options.streams:
        if name not in STREAMS:
            parser.error(f"{name!r} is no stream: name some of {', '.join(STREAMS)}.")
    rows = [
        (name, method, seed)
        for seed in range(options.seeds)
        for name in options.streams or STREAMS
        for method in options.only
        if not options.report and not place(name, method, seed).exists()
    ]
    deadline = time.monotonic() + 60 * options.minutes
    for number, (name, method, seed) in enumerate(rows):
        if time.monotonic() > deadline:
            print("The time is over; the same command goes on from here.")
            break
        print(f"{number + 1} of {len(rows)}: {name}, {method}, seed {seed}", flush=True)
        run(name, method, seed)
    write_page()
    return 0


if __name__ == "__main__":
    sys.exit(main())
