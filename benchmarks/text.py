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

import json
import math
import sys
from typing import NamedTuple

import reproduce
import resumable

RUNS = reproduce.ROOT / "runs" / "text"
PAGE = reproduce.ROOT / "docs" / "text.md"
HEAD = (
    "| method | accuracy | forgetting | stored | wall time | on | commit | a step | peak memory |"
)
WROTE = "Rows ran on what their column `on` says; the page itself was written on: "
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
    """Examples in the memory when it is full."""
    method, _, examples = row.partition(", ")
    return stream.intents * int(examples or 10) if method in STORING else 0


def place(name, row):
    return RUNS / name / row.replace(", ", "_")


def finished(name, row):
    return resumable.finished(place(name, row), STREAMS[name].seeds)


def run(name, row, deadline, seeds=None):
    stream = STREAMS[name]
    folder = resumable.with_seeds(place(name, row), seeds, stream.seeds)
    arguments = [*command(stream, row), "--seeds", str(seeds or stream.seeds)]
    return resumable.run(folder, stream.config, arguments, deadline)


def label(row):
    return f"{row} a class" if ", " in row else row


def cells(name, row):
    """The cells of a finished run."""
    folder, stream = finished(name, row), STREAMS[name]
    accuracy = reproduce.finished(folder)
    forgetting = reproduce.finished(folder, "forgetting")

    def figure(result):
        if math.isnan(result.mean):
            return "-"
        return f"{result.mean:.2f}" + (f" ± {result.interval:.2f}" if result.interval else "")

    return [
        f"{figure(accuracy)} ({accuracy.seeds})", figure(forgetting), str(stored(stream, row)),
        f"{accuracy.seconds:.0f} s", machine(folder), accuracy.commit,
    ]  # fmt: skip


def cost_file(name, row):
    return RUNS / "costs" / name / f"{row.replace(', ', '_')}.json"


def cost(name, row):
    """What text_costs.py measured of a row: its cells, or None."""
    if not (file := cost_file(name, row)).exists():
        return None
    found = json.loads(file.read_text())
    return [f"{1000 * found['step']:.0f} ms, {found['on']}", f"{found['peak']} MiB"]


def machine(folder):
    """What a run computed on: the kind of its accelerator, or the cores that it had."""
    began = json.loads((folder / "config.json").read_text())
    device = began["devices"]
    cores = began["threads"]
    return f"{cores} core{'s'[: cores - 1]}" if device["platform"] == "cpu" else device["kind"]


def merged(result, costs, held):
    """A row's cells: what there is here, for the rest what the page has of it."""
    if not (result or held):
        return None
    held = held or ["-"] * 8
    return [*(result or held[:-2]), *(costs or held[-2:])]


def write_page():
    """docs/text.md from the run folders and, where there is none, from the page itself.

    Returns the numbers of rows with figures and of all, by stream.
    """
    held, where = resumable.read_page(PAGE, "STREAMS")
    here = {
        (name, row): cells(name, row)
        for name, stream in STREAMS.items()
        for row in stream.methods
        if finished(name, row)
    }
    if here:
        where = reproduce.this_machine()
    elif where is None or not held:
        where = resumable.NEVER
    lines = [
        "# Texts, with a pretrained encoder",
        "",
        "Average accuracy after the last task and average forgetting, in percent: means and 95 % "
        "intervals over seeds (their number in brackets). Stored: the examples that the memory "
        "holds when full, computed from the row's settings (examples an intent times intents) and "
        "not counted in the run. Wall time is that of all seeds together, which run in one "
        "program, `on` the device: rows of a GPU were run several at a time beside each other on "
        "one, so that their times are no measure of a method's cost; what a frozen encoder makes "
        "of the texts is computed before, and its time is not in it. What a row costs, a step of "
        "32 texts and the largest resident set, is of another run, on the cores named there, with "
        "one seed and the first texts alone: `make text-costs`; of two cores both were idle, of "
        "one the other had work. `joint` trains once on all tasks and so has no forgetting.",
        "",
        "Written by `make text`, which goes on where it was stopped and stops after 90 minutes; a "
        "row that was not run says so, and a row whose run folder was not there stands as it was "
        "before. The next line tells where and when the page was last written from run folders.",
        "",
        where if where == resumable.NEVER else WROTE + where.removeprefix(WROTE),
    ]
    counts = {}
    for name, stream in STREAMS.items():
        rows = {
            row: merged(here.get((name, row)), cost(name, row), held.get((name, label(row))))
            for row in stream.methods
        }
        counts[name] = (sum(1 for row in rows.values() if row), len(rows))
        settings = " ".join((f"configs/{stream.config}.py", *stream.settings))
        lines += [
            "", f"## {stream.title}", "",
            f"`make text STREAMS={name}`: a row is `jcl run {settings} --method METHOD --seeds "
            f"{stream.seeds}`, METHOD the row's first word, and `--examples N` where it has N a "
            f"class; {counts[name][0]} of {counts[name][1]} run.",
            "", HEAD, "|---" * 9 + "|",
        ]  # fmt: skip
        for row, found in rows.items():
            found = found or ["not run", *[""] * 7]
            lines.append(f"| {label(row)} | {' | '.join(found)} |")
    PAGE.write_text("\n".join(lines) + "\n")
    return counts


def chosen(names, only):
    rows = {name: stream.methods for name, stream in STREAMS.items()}
    return resumable.chosen(rows, lambda row: row.partition(", ")[0], names, only, "stream")


def main(arguments=None):
    return resumable.main(__doc__, "stream", chosen, run, write_page, arguments)


if __name__ == "__main__":
    sys.exit(main())
