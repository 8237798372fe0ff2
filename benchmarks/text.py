"""The table of the text configs: every method on CLINC150, and four of them on the other streams.

Command:  python benchmarks/text.py [STREAM ...] [--only METHOD ...] [--seeds N] [--minutes 90]
          [--report]
Needs JCL_DATA (see configs/clinc150.py). Without names all streams, in the order of the page. The
command stops at the end of its minutes, in the middle of a run if it must: the same command goes on
there. --seeds 1 runs fewer seeds than the table asks for, in folders of their own, which stand in
the table until the row was run with all. --report only writes docs/text.md from what has been run.
A cell without a finished run keeps the row that the page has for it, since the folder may be on
another machine, or says "not run".
Exit status: 0, 1 where a cell's run failed, 2 where the command cannot be followed.
"""

import argparse
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from typing import NamedTuple

import reproduce

from jcl import report
from jcl.errors import InputError

RUNS = reproduce.ROOT / "runs" / "text"
PAGE = reproduce.ROOT / "docs" / "text.md"
HEAD = "| method | accuracy | forgetting | stored | wall time | peak memory | commit |"
FEW = ("naive", "joint", "replay, 10", "best")
ALL = (
    "naive", "joint", "replay, 2", "replay, 10", "ewc", "lwf", "derpp", "agem", "lora", "olora",
    "linear", "cosine", "nearest_class_mean", "slda", "random_slda", "best",
)  # fmt: skip


class Stream(NamedTuple):
    """A table of the page.

    Attributes:
        title: of its section.
        config: the file in configs/.
        settings: of all its runs.
        methods: rows; what follows a comma is the number of examples stored of an intent.
        seeds: of every run.
        intents: how many there are.
    """

    title: str
    config: str
    settings: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: int
    intents: int


STREAMS = {
    "clinc150": Stream("CLINC150, class-incremental, MiniLM", "clinc150", (), ALL, 3, 150),
    "clinc150-domain": Stream(
        "CLINC150, domain-incremental, MiniLM", "clinc150", ("--scenario", "domain"), FEW, 1, 150
    ),
    "banking77": Stream("Banking77, class-incremental, MiniLM", "banking77", (), FEW, 1, 77),
    "clinc150-small": Stream(
        "CLINC150, class-incremental, a small BERT from scratch", "clinc150",
        ("--backbone", "small"), FEW, 1, 150,
    ),
    "banking77-small": Stream(
        "Banking77, class-incremental, a small BERT from scratch", "banking77",
        ("--backbone", "small"), FEW, 1, 77,
    ),
}  # fmt: skip
STORING = ("replay", "derpp", "agem", "best")


def command(stream, row):
    """The arguments of `jcl run` for one row."""
    method, _, examples = row.partition(", ")
    arguments = ["--method", method, *stream.settings]
    return arguments + (["--examples", examples] if examples else [])


def stored(stream, row):
    """Examples in the memory at the end."""
    method, _, examples = row.partition(", ")
    return stream.intents * int(examples or 10) if method in STORING else 0


def place(name, row, seeds=None):
    """The run folder of a row, with as many seeds as the table asks for or with fewer."""
    folder = RUNS / name / row.replace(", ", "_")
    if seeds in (None, STREAMS[name].seeds):
        return folder
    return folder.with_name(f"{folder.name}_seeds_{seeds}")


def finished(name, row):
    """The finished run folder of a row with the most seeds, or None."""
    for seeds in range(STREAMS[name].seeds, 0, -1):
        if report.complete(place(name, row, seeds)):
            return place(name, row, seeds)
    return None


def peak(folder):
    """The file beside a run folder that holds the largest resident set of its processes, in MiB."""
    return folder.with_suffix(".peak.json")


def run(name, row, deadline, seeds=None):
    """Runs a cell until it is finished or the time is over; whether it did not fail."""
    folder, stream = place(name, row, seeds), STREAMS[name]
    seeds = seeds or stream.seeds
    if report.complete(folder):
        return True
    print(f"\n{name}: {row}, {seeds} seed(s)", flush=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    child = subprocess.Popen(
        [
            sys.executable, "-m", "jcl", "run", f"configs/{stream.config}.py",
            *command(stream, row), "--seeds", str(seeds), "--out", str(folder),
        ],
        cwd=reproduce.ROOT,
    )  # fmt: skip
    while True:
        pid, status, used = os.wait4(child.pid, os.WNOHANG)
        if pid:
            break
        if time.monotonic() > deadline:
            child.send_signal(signal.SIGINT)
            deadline = math.inf
        time.sleep(0.2)
    child.returncode = os.waitstatus_to_exitcode(status)
    before = json.loads(peak(folder).read_text()) if peak(folder).exists() else 0
    peak(folder).write_text(json.dumps(max(before, round(used.ru_maxrss / 1024))))
    return child.returncode in (0, 130)  # 130: stopped


def read_page():
    """The cells of every row of the page, by (stream, method), and its line about the machine."""
    held, name, machine = {}, None, None
    for line in PAGE.read_text().splitlines() if PAGE.exists() else ():
        if heading := re.match(r"`make text STREAMS=([\w-]+)`", line):
            name = heading.group(1)
        elif name is None and "; Python " in line:
            machine = line
        elif name and line.startswith("| "):
            row, *cells = line.removeprefix("| ").removesuffix(" |").split(" | ")
            method = row.removesuffix(" a class") if row.startswith("replay") else row
            if len(cells) == 6 and method != "method" and cells[0] != "not run":
                held[name, method] = cells
    return held, machine


def cells(name, row):
    """The cells of a finished run."""
    folder, stream = finished(name, row), STREAMS[name]
    accuracy = reproduce.finished(folder)
    forgetting = reproduce.finished(folder, "forgetting")

    def figure(result):
        if math.isnan(result.mean):
            return "-"
        return f"{result.mean:.2f}" + (f" ± {result.interval:.2f}" if result.interval else "")

    memory = json.loads(peak(folder).read_text()) if peak(folder).exists() else None
    return [
        f"{figure(accuracy)} ({accuracy.seeds})", figure(forgetting), str(stored(stream, row)),
        f"{accuracy.seconds:.0f} s", f"{memory} MiB" if memory else "-", accuracy.commit,
    ]  # fmt: skip


def write_page():
    """docs/text.md from the run folders and, where there is none, from the page itself.

    Returns the numbers of rows with figures and of all, by stream.
    """
    held, machine = read_page()
    here = {
        (name, row): cells(name, row)
        for name, stream in STREAMS.items()
        for row in stream.methods
        if finished(name, row)
    }
    if here:
        machine = reproduce.this_machine()
    elif machine is None or not held:
        machine = "Nothing has been run so far."
    lines = [
        "# Texts, with a pretrained encoder",
        "",
        "Average accuracy after the last task and average forgetting, in percent: means and 95 % "
        "intervals over seeds (their number in brackets). Stored: examples in the memory at the "
        "end. Wall time is that of all seeds together, which run in one program, and peak memory "
        "the largest resident set of that program; what a frozen encoder makes of the texts is "
        "computed before, and its time is not in it. `joint` trains once on all tasks and so has "
        "no forgetting.",
        "",
        "Written by `make text`, which goes on where it was stopped and stops after 90 minutes; a "
        "row that was not run says so, and a row whose run folder was not there stands as it was "
        "before. The next line tells where and when the page was last written from run folders.",
        "",
        machine,
    ]
    counts = {}
    for name, stream in STREAMS.items():
        rows = {row: here.get((name, row)) or held.get((name, row)) for row in stream.methods}
        counts[name] = (sum(1 for row in rows.values() if row), len(rows))
        settings = " ".join((f"configs/{stream.config}.py", *stream.settings))
        lines += [
            "", f"## {stream.title}", "",
            f"`make text STREAMS={name}`: `jcl run {settings}`, {stream.seeds} seed(s) asked for; "
            f"{counts[name][0]} of {counts[name][1]} run.",
            "", HEAD, "|---|---|---|---|---|---|---|",
        ]  # fmt: skip
        for row, found in rows.items():
            label = f"{row} a class" if ", " in row else row
            lines.append(f"| {label} | {' | '.join(found or ['not run', '', '', '', '', ''])} |")
    PAGE.write_text("\n".join(lines) + "\n")
    return counts


def chosen(names, only):
    """(stream, row) for every row asked for.

    Raises:
        InputError: an unknown stream or method.
    """
    for name in names:
        if name not in STREAMS:
            raise InputError(f"{name!r} is no stream: name some of {', '.join(STREAMS)}.")
    every = [(name, row) for name in names or STREAMS for row in STREAMS[name].methods]
    known = dict.fromkeys(row.partition(", ")[0] for _, row in every)
    for method in only or ():
        if method not in known:
            raise InputError(f"--only {method}: known there are {', '.join(known)}.")
    return [(name, row) for name, row in every if not only or row.partition(", ")[0] in only]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("streams", nargs="*", metavar="STREAM")
    parser.add_argument("--only", nargs="+", metavar="METHOD")
    parser.add_argument("--seeds", type=int, choices=range(1, 11))
    parser.add_argument("--minutes", type=float, default=90.0)
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args(arguments)
    try:
        todo = chosen(options.streams, options.only)
        if not options.minutes > 0:
            raise InputError(f"--minutes {options.minutes}: a number above 0.")
    except InputError as error:
        parser.error(str(error))  # ends with status 2
    # A run that is stopped takes some seconds to end.
    deadline, failed = time.monotonic() + 60 * options.minutes - 20, 0
    for name, row in [] if options.report else todo:
        if time.monotonic() > deadline:
            print("The time is over; the same command goes on from here.")
            break
        failed += not run(name, row, deadline, options.seeds)
        write_page()
    for name, (ran, every) in write_page().items():
        print(f"{name}: {ran} of {every} run")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
