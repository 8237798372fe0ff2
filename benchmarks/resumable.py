"""What the scripts share whose table is run in parts: text.py and meta_tables.py.

Each row is a run in a folder of its own. The command stops at the end of its minutes, in the middle
of a run if it must, and goes on there when it is given again; a row without a finished run keeps
what the page has for it, since the folder may be on another machine.
"""

import argparse
import math
import os
import re
import signal
import subprocess
import sys
import time

import reproduce

from jcl import report
from jcl.errors import InputError

NEVER = "Nothing has been run so far."


def with_seeds(folder, seeds, asked):
    """The run folder for so many seeds, where the table asks for others: one beside its own."""
    return folder if seeds in (None, asked) else folder.with_name(f"{folder.name}_seeds_{seeds}")


def finished(folder, asked):
    """The finished one with the most seeds, up to those that the table asks for, or None."""
    for seeds in range(asked, 0, -1):
        if report.complete(with_seeds(folder, seeds, asked)):
            return with_seeds(folder, seeds, asked)
    return None


def run(folder, config, arguments, deadline):
    """Runs a row until it is finished or the time is over; whether it did not fail."""
    if report.complete(folder):
        return True
    print(f"\n{folder.relative_to(folder.parent.parent)}: {' '.join(arguments)}", flush=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    child = subprocess.Popen(
        [
            sys.executable, "-m", "jcl", "run", f"configs/{config}.py",
            *arguments, "--out", str(folder),
        ],
        cwd=reproduce.ROOT,
    )  # fmt: skip
    while child.poll() is None:
        if time.monotonic() > deadline:
            child.send_signal(signal.SIGINT)
            deadline = math.inf
        time.sleep(0.2)
    return child.returncode in (0, os.EX_TEMPFAIL, 130)  # stopped, or before its first step


def read_page(page, variable):
    """The cells of every row of the page, by (table, label), and its line about the machine.

    A table follows a line with its command, such as "`make text STREAMS=banking77`".
    """
    held, name, machine = {}, None, None
    for line in page.read_text().splitlines() if page.exists() else ():
        if heading := re.match(rf"`make \w+ {variable}=([\w-]+)`", line):
            name = heading.group(1)
        elif name is None and "; Python " in line:
            machine = line
        elif name and line.startswith("| "):
            label, *cells = line.removeprefix("| ").removesuffix(" |").split(" | ")
            if cells[0] != "not run":
                held[name, label] = cells
    return held, machine


def chosen(rows, method_of, names, only, kind):
    """(table, row) for every row asked for.

    Args:
        rows: {table: its rows}.
        method_of: row -> the method that --only names.
        names: tables, of all where none is named.
        only: methods, or None.
        kind: what to call a table.

    Raises:
        InputError: an unknown table or method.
    """
    for name in names:
        if name not in rows:
            raise InputError(f"{name!r} is no {kind}: name some of {', '.join(rows)}.")
    every = [(name, row) for name in names or rows for row in rows[name]]
    known = dict.fromkeys(method_of(row) for _, row in every)
    for method in only or ():
        if method not in known:
            raise InputError(f"--only {method}: known there are {', '.join(known)}.")
    return [(name, row) for name, row in every if not only or method_of(row) in only]


def main(document, kind, choose, run, write_page, arguments=None):
    """The command line: what is chosen is run, each with the deadline, and the page written.

    Args:
        document: the script's docstring.
        kind: what to call a table.
        choose: (names, methods) -> [(table, row)].
        run: (table, row, deadline, seeds or None) -> whether it did not fail.
        write_page: () -> {table: (rows with figures, all)}.
    """
    parser = argparse.ArgumentParser(description=document.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar=kind.upper())
    parser.add_argument("--only", nargs="+", metavar="METHOD")
    parser.add_argument("--seeds", type=int, choices=range(1, 11))
    parser.add_argument("--minutes", type=float, default=90.0)
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args(arguments)
    try:
        todo = choose(options.names, options.only)
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
