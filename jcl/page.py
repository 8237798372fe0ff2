"""Runs side by side as one page of HTML: no network, no script, every text of a run escaped.

What is drawn comes from report.json, metrics.jsonl, config.json and the newest checkpoint's
manifest, which may come from elsewhere. Lengths in the drawings are percentages and texts are
HTML's own, so that the page is as readable on a phone as on a desk.
"""

import dataclasses
import html
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jcl import checkpoint, folder, metrics, report, strict
from jcl.errors import InputError

CELLS = 40_000  # of the matrices of a page
LINES_BYTES = 512 * 2**20  # of metrics.jsonl
POINTS = 300  # of a drawn curve
LARGEST = 1e300  # number that is drawn
PANELS = 60  # tasks that get a curve of their own
COLOURS = 8
CHANGES = ("forgetting", "backward_transfer", "forward_transfer")
WORDS = {
    "average_accuracy": "average of the last row",
    "learning_accuracy": "average just after learning",
    "average_incremental": "average over all rows",
    "forgetting_last": "forgetting since learned",
}
WHAT = {
    "forgetting": "from a task's best result to the last one; lower is better",
    "backward_transfer": "what later training did to earlier tasks; higher is better",
    "forward_transfer": "what earlier training did for a task to come; higher is better",
}
Interval = tuple[float, float | None]  # the mean and the half-width of its 95 % interval


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run as the page shows it.

    Attributes:
        label: its name, or its folder where another run has that name.
        number: its place among the runs, which gives its colour.
        report: of the best setting where it is a grid's.
        matrix: [seed, row, task].
        summary: of the matrix, as `metrics.summary` gives it.
        loss: of the training, (steps so far, mean over replicas); thinned.
        stages: (steps so far at the end, name) of each.
        cost: {what: shown}.
        place: {what: shown} of the machine and versions.
    """

    label: str
    number: int
    report: dict[str, Any]
    matrix: np.ndarray
    summary: dict[str, Any]
    loss: list[tuple[float, float]]
    stages: list[tuple[float, str]]
    cost: dict[str, str]
    place: dict[str, str]

    @property
    def colour(self) -> str:
        """The classes of its marks."""
        return f"c{self.number % COLOURS}" + (" dashed" if self.number >= COLOURS else "")


def write(path: Path, places: Sequence[Path]) -> None:
    """Writes the page of the runs in these folders; the first is what others are compared with.

    Raises:
        InputError: a folder holds no finished run, or one too large to draw; nothing is written.
    """
    path.write_text(make(places), encoding="utf-8")


def make(places: Sequence[Path]) -> str:
    """The page, as `write` writes it."""
    reports = [report.read(place) for place in places]
    names = [report.of_best(each)["name"] for each in reports]
    labels = [
        name if names.count(name) == 1 else str(place)
        for name, place in zip(names, places, strict=True)
    ]
    cells = sum(np.asarray(each["matrix"]).size for each in reports)
    if cells > CELLS:
        raise InputError(
            f"The matrices of these runs have {cells:,} cells, and a page of more than {CELLS:,} "
            "is of no use: name fewer runs, or leave out --html."
        )
    with np.errstate(all="ignore"):  # numbers from elsewhere may be of any size
        runs = [
            _read(place, whole, label, number)
            for number, (place, whole, label) in enumerate(
                zip(places, reports, labels, strict=True)
            )
        ]
        groups: dict[tuple[Any, ...], list[Run]] = {}
        for run in runs:
            of = run.report
            groups.setdefault((*of["tasks"], of["measure"], of["higher_is_better"]), []).append(run)
        parts = [_head(runs)]
        for number, group in enumerate(groups.values(), 1):
            if len(groups) > 1:
                tasks = ", ".join(group[0].report["tasks"])
                parts.append(f"<h2 class=stream>Stream {number}: {_e(tasks, 200)}</h2>")
            parts += [
                _results(group), _curves(group), _changes(group), _paired(group), _matrices(group),
            ]  # fmt: skip
        parts += [_losses(runs), _costs(runs), _configs(runs)]
    body = "\n".join(parts)
    return f"""<!doctype html>
<html lang=en>
<meta charset=utf-8>
<meta name=viewport content="width=device-width, initial-scale=1">
<meta http-equiv=Content-Security-Policy content="default-src 'none'; style-src 'unsafe-inline'">
<title>jcl: {_e(", ".join(labels), 80)}</title>
<style>{Path(__file__).with_name("page.css").read_text()}</style>
<main>
{body}
</main>
</html>
"""


# Reading


def _read(place: Path, whole: dict[str, Any], label: str, number: int) -> Run:
    best = report.of_best(whole)
    matrix = np.asarray(best["matrix"], np.float64)
    loss, stages = _lines(place / "metrics.jsonl")
    described = folder.read_config(place / "config.json")
    machine = described.get("devices")
    machine = machine if isinstance(machine, dict) else {}
    cost = {
        "wall time": _seconds(whole["wall_seconds"]),
        "replicas in the program": str(len(whole["seeds"])),
        "steps": f"{whole['steps']:,}",
        "median step": "-"
        if whole["step_seconds_median"] is None
        else f"{_number(1000 * whole['step_seconds_median'])} ms",
        **_sizes(place / "checkpoints", len(whole["seeds"])),
        "devices": " ".join(str(machine[key]) for key in ("count", "kind") if key in machine),
        "compiled (step, consolidate, evaluate)": ", ".join(
            str(whole["traces"].get(name, "-")) for name in ("step", "consolidate", "evaluate")
        ),
    }
    return Run(
        label=label,
        number=number,
        report=best,
        matrix=matrix,
        summary=metrics.summary(matrix, higher_is_better=best["higher_is_better"]),
        loss=loss,
        stages=stages,
        cost=cost,
        place={key: str(value) for key, value in {**whole["versions"], **machine}.items()},
    )


def _lines(path: Path) -> tuple[list[tuple[float, float]], list[tuple[float, str]]]:
    """The curve of the loss and the ends of the stages, of metrics.jsonl."""
    points: list[tuple[float, float]] = []
    stages: list[tuple[float, str]] = []
    done, last, task, number = 0.0, 0.0, None, 0
    try:
        if strict.size(path) > LINES_BYTES:
            raise ValueError(f"it has more than {LINES_BYTES:,} bytes")
        with path.open("rb") as file:
            while line := file.readline(strict.LINE_CHARACTERS):
                number += 1
                found = strict.parse_json(line.decode())
                strict.fits(found, {"kind": str})
                if found["kind"] == "evaluation" and task is not None:
                    done, task = done + last, None
                    stages.append((done, str(found.get("after", ""))))
                if found["kind"] != "step":
                    continue
                strict.fits(found, {"task": str, "step": strict.NUMBER})
                if task is not None and found["task"] != task:  # of a run evaluated at its end only
                    stages.append((done := done + last, task))
                task, last = found["task"], found["step"]
                values = found.get("loss", found.get("total"))
                values = [each for each in values or [] if isinstance(each, int | float)]
                if values:
                    points.append((done + last, float(np.mean(values))))
    except OSError:
        return [], []
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(
            f"{path}, line {number}, is no line of metrics ({error}): get the folder again from "
            "where it comes from, or take the file away, and the page has no curve of its loss."
        ) from error
    size = max(1, math.ceil(len(points) / POINTS))
    thinned = [points[n : n + size] for n in range(0, len(points), size)]
    means = [np.mean(each, axis=0) for each in thinned]
    return [(float(x), float(y)) for x, y in means if np.isfinite(x + y)], stages


def _sizes(place: Path, replicas: int) -> dict[str, str]:
    """What one replica keeps, as the newest checkpoint has it."""
    names = ("params", "all state", "stored examples (room for)", "their memory")
    try:
        sizes = checkpoint.sizes(place)
    except InputError:
        return dict.fromkeys(names, "-")
    total = sum(size for _, size in sizes.values())
    params = sum(size for path, (_, size) in sizes.items() if path.startswith("params/"))
    room, stored = 0, 0
    for seen in (path for path in sizes if path.endswith("/seen")):
        items = seen.removesuffix("seen") + "items/"
        parts = [each for path, each in sizes.items() if path.startswith(items)]
        first = parts[0][0][replicas > 1 :] if parts else ()
        room += first[0] if first else 0
        stored += sum(size for _, size in parts)
    values = (_bytes(params / replicas), _bytes(total / replicas), f"{room:,}")
    return dict(zip(names, (*values, _bytes(stored / replicas)), strict=True))


# Words


def _e(text: Any, most: int = 300) -> str:
    shown = str(text)
    return html.escape(shown if len(shown) <= most else shown[: most - 1] + "…")


def _name(text: str, most: int = 80) -> str:
    """As `_e`, for HTML alone: a line may break behind an underscore or a slash."""
    return _e(text, most).replace("_", "_<wbr>").replace("/", "/<wbr>")


def _number(value: float | None, beside: float = 0.0) -> str:
    """As many places as it takes beside a number of that size.

    >>> _number(0.25), _number(0.0001), _number(0.0001, beside=0.5), _number(123456.0)
    ('0.250', '1.00e-04', '0.000', '1.23e+05')
    """
    if value is None or not math.isfinite(value):
        return "-"
    size = max(abs(value), abs(beside))
    if size and not 1e-3 <= size < 1e5:
        return f"{value:.2e}"
    shown = f"{value:.3f}" if size < 100 else f"{value:.1f}"
    return shown if shown.strip("-0.") else shown.lstrip("-")


def _bytes(size: float) -> str:
    units = ["B", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size /= 1000
        units.pop(0)
    unit = units[0]
    return f"{size:.3g} {unit}" if size < 1e6 else f"{size:.1e} {unit}"


def _seconds(seconds: float) -> str:
    if not 0 <= seconds < 1e9:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes} min"
        if hours
        else f"{minutes} min {rest} s"
        if minutes
        else f"{rest} s"
    )


def _shown(interval: Interval | None) -> str:
    if interval is None:
        return "-"
    mean, half = interval
    return _number(mean, half or 0.0) + ("" if half is None else f" ± {_number(half, mean)}")


def _of(run: Run, name: str) -> Interval | None:
    found = run.summary[name]
    return None if found["mean"] is None else (found["mean"], found["ci95"])


def _section(title: str, note: str, content: str) -> str:
    return f"<section><h3>{title}</h3><p class=note>{note}</p>{content}</section>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """Of cells that are HTML already; the first of a row is its heading."""
    top = "".join(f"<th scope=col>{cell}</th>" for cell in head)
    body = "".join(
        f"<tr><th scope=row>{row[0]}</th>"
        + "".join(f"<td>{cell}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class=scroll tabindex=0><table class="{kind}"><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _key(run: Run) -> str:
    return (
        f'<span class=run><svg class=key aria-hidden=true><line class="{run.colour}" x1=0 x2=22 '
        f"y1=6 y2=6 /></svg><span>{_name(run.label)}</span></span>"
    )


def _legend(runs: Sequence[Run]) -> str:
    return "<p class=legend>" + "".join(map(_key, runs)) + "</p>"


# Sections


def _head(runs: Sequence[Run]) -> str:
    several = f"{len(runs)} runs side by side" if len(runs) > 1 else _e(runs[0].label)
    return f"<h1>{several}</h1>{_legend(runs)}"


def _results(runs: Sequence[Run]) -> str:
    of = runs[0].report
    better = "higher" if of["higher_is_better"] else "lower"
    rows = [
        [_e(WORDS.get(name, name.replace("_", " "))), *(_shown(_of(run, name)) for run in runs)]
        for name in metrics.METRICS
    ]
    rows.append(["seeds", *(_e(", ".join(map(str, run.report["seeds"])), 60) for run in runs)])
    return _section(
        "Results",
        f"In {_e(of['measure'])}, {better} is better. Mean over seeds and its 95 % interval.",
        _table(["", *(_key(run) for run in runs)], rows),
    )


def _mean(run: Run) -> np.ndarray:
    return run.matrix.mean(axis=0)


def _curves(runs: Sequence[Run]) -> str:
    tasks = runs[0].report["tasks"]
    last = max(len(_mean(run)) for run in runs) - 1
    low, high = _range([value for run in runs for value in run.matrix.ravel()])
    panels = []
    for number, task in enumerate(tasks[:PANELS]):
        learned = (number, number + 1) if last == len(tasks) else None
        lines = []
        for run in runs:
            values = _mean(run)[:, number]
            if len(values) == 2 < last + 1:  # joint training: a result to compare with, no curve
                lines.append((run, [(0.0, values[-1]), (float(last), values[-1])], True))
            else:
                lines.append((run, list(enumerate(values)), False))
        ends = " → ".join(
            f"{_e(run.label, 40)} {_number(_mean(run)[-1, number])}" for run in runs[:1]
        )
        panels.append(
            f"<figure><figcaption>{_name(task)}</figcaption>"
            + _plot(lines, (0, last), (low, high), range(last + 1), learned, ends)
            + "</figure>"
        )
    note = (
        "Each task's result (mean over seeds) after each stage, 0 being before training. Upright "
        "lines are the boundaries between stages; the stage in which the task itself is learned is "
        "shaded. A level line is a run evaluated only at its end."
    )
    if len(tasks) > PANELS:
        note += f" The first {PANELS} of {len(tasks)} tasks; the matrices have all."
    return _section(
        "Every task over time", note, f"{_legend(runs)}<div class=panels>{''.join(panels)}</div>"
    )


def _range(values: Sequence[float]) -> tuple[float, float]:
    """The ends of an axis: finite, and apart."""
    drawn = [float(value) for value in values if abs(value) < LARGEST] or [0.0]
    low, high = min(drawn), max(drawn)
    around = max(0.5, 1e-3 * abs(low))
    return (low, high) if low < high else (low - around, low + around)


def _plot(
    lines: Sequence[tuple[Run, Sequence[tuple[float, float]], bool]],
    across: tuple[float, float],
    up: tuple[float, float],
    boundaries: Sequence[float],
    learned: tuple[float, float] | None,
    told: str,
    names: Sequence[str] = (),
) -> str:
    """Lines in a frame; the numbers of the axes stand beside it."""

    def x(value: float) -> float:
        return 100 * (value - across[0]) / ((across[1] - across[0]) or 1)

    def y(value: float) -> float:
        return 96 - 92 * (value - up[0]) / (up[1] - up[0])

    marks = []
    if learned:
        left, right = map(x, learned)
        marks.append(f"<rect class=learned x={left:.2f} width={right - left:.2f} y=0 height=100 />")
    marks += [
        f"<line class=boundary x1={x(each):.2f} x2={x(each):.2f} y1=0 y2=100 />"
        for each in boundaries
    ]
    for run, points, level in lines:
        at = " ".join(f"{x(a):.2f},{y(b):.2f}" for a, b in points if max(abs(a), abs(b)) < LARGEST)
        marks.append(
            f'<polyline class="{run.colour}{" level" if level else ""}" points="{at}">'
            f"<title>{_e(run.label)}</title></polyline>"
        )
    every = max(1, math.ceil(len(boundaries) / 8))
    ticks = "".join(
        f"<span{' class=end' if x(each) > 95 else ''} style=left:{x(each):.2f}%>{each:,.0f}</span>"
        for number, each in enumerate(boundaries)
        if number % every == 0
    )
    titles = "".join(
        f'<span style="left:{x(at):.2f}%">{_e(name, 40)}</span>'
        for at, name in zip(boundaries, names, strict=False)
    )
    return (
        f"<div class=plot><div class=axis><span>{_number(up[1], up[0])}</span>"
        f"<span>{_number(up[0], up[1])}</span></div>"
        f'<svg viewBox="0 0 100 100" preserveAspectRatio=none role=img aria-label="{told}">'
        f"{''.join(marks)}</svg><div class=ticks>{ticks}</div>"
        + (f"<div class=names>{titles}</div>" if titles else "")
        + "</div>"
    )


def _changes(runs: Sequence[Run]) -> str:
    bars = []
    for name in CHANGES:
        shown = [(run, _of(run, name)) for run in runs]
        if all(interval is None for _, interval in shown):
            continue
        rows = [(run, _key(run), run.summary[name]["values"], found) for run, found in shown]
        bars.append(
            f"<figure><figcaption><b>{name.replace('_', ' ')}</b>, {WHAT[name]}</figcaption>"
        )
        bars.append(f"{_bars(rows)}</figure>")
    if not bars:
        return ""
    note = "Bars are means over seeds, whiskers their 95 % intervals, dots the seeds."
    return _section("Forgetting and transfer", note, f"<div class=bars>{''.join(bars)}</div>")


def _bars(rows: Sequence[tuple[Run, str, Sequence[float | None], Interval | None]]) -> str:
    ends = [0.0]
    for *_, values, interval in rows:
        ends += [value for value in values if value is not None]
        if interval:
            ends += [interval[0] - (interval[1] or 0.0), interval[0] + (interval[1] or 0.0)]
    low, high = _range(ends)

    def x(value: float) -> str:
        place = 2 + 96 * (value - low) / (high - low)
        return f"{place if np.isfinite(place) else 0:.2f}%"

    drawn = []
    for run, label, values, interval in rows:
        marks = ""
        if interval:
            mean, half = interval
            left, right = min(mean, 0.0), max(mean, 0.0)
            width = 96 * (right - left) / (high - low)
            width = width if np.isfinite(width) else 0
            marks += (
                f'<rect class="{run.colour}" x="{x(left)}" width="{width:.2f}%" y=5 height=14 />'
            )
            marks += "".join(
                f'<circle cx="{x(each)}" cy=12 r=2.5 />' for each in values if each is not None
            )
            if half is not None:
                a, b = x(mean - half), x(mean + half)
                marks += f'<line class=whisker x1="{a}" x2="{b}" y1=12 y2=12 />'
                marks += "".join(
                    f'<line class=whisker x1="{at}" x2="{at}" y1=7 y2=17 />' for at in (a, b)
                )
        marks += f'<line class=zero x1="{x(0.0)}" x2="{x(0.0)}" y1=0 y2=24 />'
        shown = _shown(interval) if interval else "not defined"
        drawn.append(
            f"<div class=bar>{label}<svg aria-hidden=true>{marks}</svg>"
            f"<output>{shown}</output></div>"
        )
    return "".join(drawn)


def _paired(runs: Sequence[Run]) -> str:
    if len(runs) < 2:
        return ""
    first, names = runs[0], ("average_accuracy", *CHANGES)
    rows = []
    for run in runs[1:]:
        common = sorted(set(run.report["seeds"]) & set(first.report["seeds"]))
        row = [_key(run), f"{len(common)}"]
        for name in names:
            row.append(_difference(run, first, common, name))
        rows.append(row)
    higher = first.report["higher_is_better"]
    note = (
        f"Each run minus <b>{_e(first.label, 80)}</b>, the run named first, seed by seed over the "
        "seeds that both have: mean difference and its 95 % interval (Student's t). ▲ better and "
        "▼ worse where the interval leaves zero out, ○ where it does not; one common seed has no "
        "interval and no verdict. The intervals are not corrected for the number of comparisons."
    )
    arrows = {"average_accuracy": higher, "forgetting": False}
    head = [
        f"{_e(WORDS.get(name, name.replace('_', ' ')))} ({'+' if arrows.get(name, True) else '-'})"
        for name in names
    ]
    note += " (+) and (-) say which sign is good."
    return _section("Differences", note, _table(["run", "seeds", *head], rows))


def _difference(run: Run, first: Run, seeds: Sequence[int], name: str) -> str:
    values = []
    for seed in seeds:
        own, other = (
            each.summary[name]["values"][each.report["seeds"].index(seed)] for each in (run, first)
        )
        if own is None or other is None:
            return "-"
        values.append(own - other)
    if not values or not np.all(np.isfinite(values)):
        return "-"
    mean, half = float(np.mean(values)), metrics.interval(values)
    if half is None:
        return _number(mean)
    good = mean > 0
    if name == "forgetting" or (name == "average_accuracy" and not run.report["higher_is_better"]):
        good = not good
    sign, word = (
        ("○", "undecided") if abs(mean) <= half else ("▲", "better") if good else ("▼", "worse")
    )
    return f"<span class={word} title={word}>{sign}</span> {_shown((mean, half))}"


def _matrices(runs: Sequence[Run]) -> str:
    of = runs[0].report
    low, high = _range([value for run in runs for value in _mean(run).ravel()])
    # All cells alike, so that columns of numbers can be compared.
    digits = int(np.clip(2 - np.floor(np.log10(max(high - low, 1e-9))), 1, 6))
    least = 9 + 3.9 * len(of["tasks"])
    drawn = []
    for run in runs:
        mean = _mean(run)
        rows = []
        for number, (name, values) in enumerate(
            zip(report.row_names(run.report), mean, strict=True)
        ):
            cells = []
            for task, value in enumerate(values):
                part = (value - low) / (high - low)
                part = part if of["higher_is_better"] else 1 - part
                part = float(np.clip(part, 0, 1)) if np.isfinite(part) else 0.0
                kind = ["hi"] if part > 0.7 else []
                if len(mean) == len(values) + 1 and number == task + 1:
                    kind.append("just")
                shown = f"{value:.{digits}f}" if abs(value) < 1e5 else _number(float(value))
                seeds = ", ".join(_number(each) for each in run.matrix[:8, number, task])
                cells.append(
                    f'<td class="{" ".join(kind)}" style="--v:{100 * part:.0f}%" '
                    f'title="seeds: {seeds}">{shown}</td>'
                )
            rows.append(f"<tr><th scope=row>{_name(name, 60)}</th>{''.join(cells)}</tr>")
        top = "".join(f"<th scope=col>{_name(task, 60)}</th>" for task in of["tasks"])
        drawn.append(
            f"<figure><figcaption>{_key(run)}</figcaption><div class=scroll tabindex=0>"
            f"<table class=heat><thead><tr><th scope=col>after ↓ on →</th>{top}</tr></thead>"
            f"<tbody>{''.join(rows)}</tbody></table></div></figure>"
        )
    note = (
        f"{_e(of['measure'])} on each task (columns) after each stage (rows), mean over seeds; the "
        "deeper the colour the better, on one scale for all. Framed: the task just learned."
    )
    return _section(
        "Matrices",
        note,
        f"<div class=matrices style='--least:{least:.0f}rem'>{''.join(drawn)}</div>",
    )


def _losses(runs: Sequence[Run]) -> str:
    drawn = [run for run in runs if len(run.loss) > 1]
    if not drawn:
        return ""
    low, high = _range([y for run in drawn for _, y in run.loss])
    end = max(x for run in drawn for x, _ in run.loss)
    plots = []
    for run in drawn:
        ends = [0.0, *(at for at, _ in run.stages)]
        plots.append(
            f"<figure><figcaption>{_key(run)}</figcaption>"
            + _plot(
                [(run, run.loss, False)], (0, end), (low, high), ends, None, "training loss",
                [name for _, name in run.stages] if len(run.stages) <= 6 else [],
            )
            + "</figure>"
        )  # fmt: skip
    note = (
        "Over the steps of all stages, mean over replicas; upright lines are boundaries, at the "
        "last step logged before them."
    )
    return _section("Training loss", note, f"<div class='panels wide'>{''.join(plots)}</div>")


def _costs(runs: Sequence[Run]) -> str:
    rows = [[_e(name), *(_e(run.cost[name]) for run in runs)] for name in runs[0].cost]
    note = (
        "Wall time is of all replicas together, which share one program. Params, state and stored "
        "examples are one replica's, by the newest checkpoint."
    )
    return _section("Cost", note, _table(["", *(_key(run) for run in runs)], rows))


def _configs(runs: Sequence[Run]) -> str:
    tables = [run.report["config"] for run in runs]
    fields = list(dict.fromkeys(field for table in tables for field in table))
    differing, alike = _sorted_fields(fields, tables)
    other = [run.place for run in runs]
    names = list(dict.fromkeys(name for table in other for name in table))
    far, near = _sorted_fields(names, other)
    head = ["field", *(_key(run) for run in runs)]
    marked = differing + far
    content = (
        _table(head, [[f"<b>≠ {row[0]}</b>", *row[1:]] for row in marked], "differs")
        if marked
        else ""
    )
    if alike + near:
        told = f"{len(alike)} fields and {len(near)} versions that all have alike"
        content += f"<details{'' if marked else ' open'}><summary>{told}</summary>"
        content += f"{_table(head, alike + near)}</details>"
    note = "Fields, versions and machines that differ come first, marked ≠."
    return _section("Configs", note, content)


def _sorted_fields(
    fields: Sequence[str], tables: Sequence[dict[str, Any]]
) -> tuple[list[list[str]], list[list[str]]]:
    """The rows of fields that differ, and of those that do not."""
    differing, alike = [], []
    for field in fields:
        values = [repr(table[field]) if field in table else None for table in tables]
        row = [_name(field), *("absent" if each is None else _e(each) for each in values)]
        (differing if len(set(values)) > 1 else alike).append(row)
    return differing, alike
