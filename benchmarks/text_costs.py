"""What a row of docs/text.md costs on this machine: seconds a step, and the peak of memory.

Command:  python benchmarks/text_costs.py [STREAM ...] [--only METHOD ...] [--minutes 90]
          [--again] [--tiny]
Needs JCL_DATA. A row is a process that makes the row's experiment whole (its model, and strategy
with all that it stores) of one seed, cuts the texts of its stream to the first few of two tasks,
and runs it: 3 steps, a boundary, 9 steps, a boundary, evaluations. The step is the median of its
steps; the peak is the largest resident set of the process, and lacks but the texts that were cut
off. So the rows of a GPU have a cost on cores, where a whole table takes hours. A row with a figure
is left as it is, unless --again; --tiny only shows that the script runs.
Exit status: 0, 1 where a row failed, 2 where the command cannot be followed.
"""

import argparse
import dataclasses
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import text
import tyro

import jcl
from jcl import run
from jcl.__main__ import load_config
from jcl.errors import InputError

STEPS = (3, 9)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="STREAM")
    parser.add_argument("--only", nargs="+", metavar="METHOD")
    parser.add_argument("--minutes", type=float, default=90.0)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args(arguments)
    try:
        rows = text.chosen(options.names, options.only)
    except InputError as error:
        parser.error(str(error))  # ends with status 2
    deadline, failed = time.monotonic() + 60 * options.minutes, 0
    for name, row in rows:
        if text.cost(name, row) and not options.again:
            continue
        if time.monotonic() > deadline:
            print("The time is over; the same command goes on from here.")
            break
        found = measured(name, row, options.tiny)
        print(f"{name}, {row}: {found or 'failed'}", flush=True)
        failed += found is None
        if found and not options.tiny:
            place = text.cost_file(name, row)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(json.dumps(found))
            text.write_page()
    return int(failed > 0)


def measured(name, row, tiny=False):
    """{"step", "peak", "on"} of a row, in seconds, MiB and words, or None if its run fails."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        call = f"import text_costs; text_costs.one({name!r}, {row!r}, {str(out)!r}, {tiny})"
        child = subprocess.Popen([sys.executable, "-c", call], cwd=Path(__file__).parent)
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            return None
        report = json.loads((out / "report.json").read_text())
        on = text.machine(out)
    return {
        "step": report["step_seconds_median"], "peak": round(used.ru_maxrss / 1024), "on": on
    }  # fmt: skip


def one(name, row, out, tiny):
    """Runs a row on a few texts, in this process."""
    stream = text.STREAMS[name]
    file = text.reproduce.ROOT / "configs" / f"{stream.config}.py"
    module = load_config(file)
    given = getattr(module, "texts")  # noqa: B009
    module.texts = functools.cache(lambda *which: cut(given(*which)))
    config = tyro.cli(module.Config, args=text.command(stream, row))
    steps = (1, 2) if tiny else STEPS

    def build(config):
        experiment = module.build(config)
        number = len(experiment.stream.stages)
        return dataclasses.replace(
            experiment, epochs=None, steps=steps[-number:] if number < 3 else None, log_every=1
        )

    run.run(build, config, config_file=file, out=Path(out))


def cut(stream):
    """The first texts of the first two tasks; classes, and what else the stream knows, stay."""

    def few(source):
        return jcl.data.Chosen(source, np.arange(min(len(source), 150)))

    tasks = [task._replace(train=few(task.train), test=few(task.test)) for task in stream.tasks[:2]]
    return dataclasses.replace(stream, tasks=tuple(tasks), stages=())


if __name__ == "__main__":
    sys.exit(main())
