"""report.json and report.md of an online run."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from jcl import strict
from jcl.errors import InputError, SaveError
from jcl.folder import write_json
from jcl.online.engine import Engine

SCHEMA = 1
_SOME = strict.NUMBER | None
_SHAPE = {
    "name": str, "measures": {str: _SOME}, "window": {str: _SOME}, "counts": {str: int},
    "latency_seconds": {"median": _SOME, "p99": _SOME}, "lines_per_second": _SOME,
    "timing": {"window": int},
}  # fmt: skip


def make(
    *,
    name: str,
    engine: Engine,
    lines: int,
    skipped: int,
    latencies: list[float],
    seconds: float,
    rate: float | None,
    traces: dict[str, int],
    description: dict[str, Any],
) -> dict[str, Any]:
    """The content of report.json; what is undefined is null.

    {"schema": 1, "kind": "online", "name", "measures", "window", "worst_window": each {"accuracy",
    "loss"} or {"loss", "perplexity", "bits_per_byte"}, "counts": {"lines", "skipped", and
    those of the engine}, "latency_seconds": {"median", "p99"} from a line's arrival to its
    prediction, of the last lines of this process, "lines_per_second" while it did not wait for
    input, "wall_seconds", "traces", "timing", "config", "versions"}
    """
    percentile = (lambda share: float(np.percentile(latencies, share))) if latencies else None
    return {
        "schema": SCHEMA,
        "kind": "online",
        "name": name,
        "measures": engine.measures.running(),
        "window": engine.measures.windowed(),
        "worst_window": engine.measures.worst,
        "counts": {
            "lines": lines, "skipped": skipped, **engine.counts,
        },
        "latency_seconds": {
            "median": percentile and percentile(50), "p99": percentile and percentile(99),
        },
        "lines_per_second": rate,
        "wall_seconds": seconds,
        "traces": traces,
        "timing": dataclasses.asdict(engine.timing),
        "config": description["config"],
        "versions": description["versions"],
    }  # fmt: skip


def write(folder: Path, report: dict[str, Any]) -> None:
    """Writes report.md and report.json.

    Raises:
        SaveError: they cannot be written.
    """
    try:
        (folder / "report.md").write_text(_markdown(report))
        write_json(folder / "report.json", report)
    except OSError as error:
        raise SaveError(
            f"The report in {folder} cannot be written ({error.strerror}); the checkpoints stay. "
            "Make room, then start the same command again."
        ) from error


def read(folder: Path) -> dict[str, Any] | None:
    """The report of an online run; None where the folder holds no such one.

    Raises:
        InputError: it is one, and not as it was written.
    """
    path = folder / "report.json"
    try:
        found = strict.read_json(path)
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict) or found.get("kind") != "online":
        return None
    try:
        strict.fits(found, _SHAPE)
        if found.get("worst_window") is not None:
            strict.fits(found["worst_window"], {str: _SOME}, "its worst_window")
    except ValueError as error:
        raise InputError(
            f"{path} is no report of an online run ({error}): give the command of that run again, "
            "which makes the report anew."
        ) from error
    return found


def show(report: dict[str, Any], console: Console) -> None:
    """Prints it."""
    table = Table(title=report["name"], title_justify="left")
    for number, name in enumerate(("", *_columns(report))):
        table.add_column(name, justify="right" if number else "left")
    for row in _rows(report):
        table.add_row(*row)
    console.print(table)
    console.print(_sentence(report), soft_wrap=True)


def shown(measures: dict[str, Any]) -> str:
    """Such as "accuracy 0.912  loss 0.301"."""
    return "  ".join(f"{name} {_number(value)}" for name, value in measures.items())


def _columns(report: dict[str, Any]) -> list[str]:
    return list(report["measures"])


def _rows(report: dict[str, Any]) -> list[list[str]]:
    window = report["timing"]["window"]
    of = {
        "all": report["measures"],
        f"last {window}": report["window"],
        f"worst {window}": report.get("worst_window") or {},
    }
    return [
        [name, *(_number(found.get(each)) for each in _columns(report))]
        for name, found in of.items()
    ]


def _markdown(report: dict[str, Any]) -> str:
    columns = ["", *_columns(report)]
    table = [columns, ["---"] * len(columns), *_rows(report)]
    lines = ["| " + " | ".join(row) + " |" for row in table]
    return "\n".join([f"# {report['name']}", "", *lines, "", _sentence(report), ""])


def _sentence(report: dict[str, Any]) -> str:
    counts, latency = report["counts"], report["latency_seconds"]
    told = [f"{value:,} {name}" for name, value in counts.items() if value or name == "lines"]
    if not report.get("worst_window"):
        window = report["timing"]["window"]
        told.append(f"fewer than {window} labels, so no worst {window}")
    if report["lines_per_second"]:
        told.append(f"{report['lines_per_second']:,.0f} lines a second while busy")
    if latency["median"] is not None:
        median, most = (1000 * latency[name] for name in ("median", "p99"))
        told.append(f"a prediction after {median:,.0f} ms (median), {most:,.0f} ms (99th of 100)")
    return "; ".join(told) + "."


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
