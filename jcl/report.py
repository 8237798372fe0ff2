"""The proof: report.json, report.md and matrix.png of a run, and runs side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from jcl import strict
from jcl.errors import InputError
from jcl.folder import write_json
from jcl.grid import shown
from jcl.metrics import METRICS, summary

SCHEMA = 1
_SOME = strict.NUMBER | None
_METRICS = {name: {"mean": _SOME, "ci95": _SOME, "values": [_SOME]} for name in METRICS}
SHAPE = {
    "name": str, "tasks": [str], "measure": str, "higher_is_better": bool, "seeds": [int],
    "matrix": [[[_SOME]]], "metrics": _METRICS, "wall_seconds": strict.NUMBER,
    "steps": int, "step_seconds_median": _SOME, "traces": {str: int}, "config": {str: object},
    "versions": {str: str},
}  # fmt: skip
# Of a run of several settings alone.
GRID_SHAPE = {
    "settings": [{str: strict.NUMBER}], "best": int | None,
    "by_setting": [{"setting": {str: strict.NUMBER}, "metrics": _METRICS}],
}  # fmt: skip
_WHERE = {"task": str, "step": int}  # a replica of a grid has diverged
# Of a run by jcl.private alone, of each replica.
PRIVACY_SHAPE = {
    "epsilon": _SOME, "delta": strict.NUMBER, "clip": strict.NUMBER,
    "noise_multiplier": strict.NUMBER, "assumed": str,
}  # fmt: skip


def make(
    *,
    name: str,
    tasks: list[str],
    measure: str,
    higher_is_better: bool,
    seeds: list[int],
    matrix: list[list[list[float | None]]],
    wall_seconds: float,
    steps: int,
    step_seconds_median: float | None,
    traces: dict[str, int],
    config: dict[str, Any],
    versions: dict[str, str],
    settings: Sequence[Mapping[str, float]] = (),
    diverged: Sequence[Mapping[str, Any] | None] = (),
    privacy: Sequence[Mapping[str, Any] | None] = (),
) -> dict[str, Any]:
    """The content of report.json; matrix is [seed][row][task], row 0 before training.

    Where the replicas of a grid differ in their settings, seeds, matrix and settings have one entry
    for each replica. A mean over different settings is undefined; `by_setting` has each setting's
    own, and `best` is the number of the one whose average accuracy is best. Where replicas have
    diverged, `diverged` has for each None, or the task and step; what it had not measured before is
    null, and so are the metrics of its setting, which is never the best.
    """
    report = {
        "schema": SCHEMA,
        "name": name,
        "tasks": tasks,
        "measure": measure,
        "higher_is_better": higher_is_better,
        "seeds": seeds,
        "matrix": matrix,
        "metrics": summary(np.asarray(matrix, np.float64), higher_is_better=higher_is_better),
        "wall_seconds": wall_seconds,
        "steps": steps,
        "step_seconds_median": step_seconds_median,
        "traces": traces,
        "config": config,
        "versions": versions,
    }
    if any(privacy):
        report["privacy"] = [dict(each or {}) for each in privacy]
    if not any(settings):
        return report
    gone = {"diverged": list(diverged)} if any(diverged) else {}
    return report | _grid(report, settings) | gone


def _grid(report: dict[str, Any], settings: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    of: dict[tuple[Any, ...], list[int]] = {}
    for number, setting in enumerate(settings):
        of.setdefault(tuple(setting.items()), []).append(number)
    higher, matrix = report["higher_is_better"], np.asarray(report["matrix"], np.float64)
    by_setting = [
        {"setting": dict(setting), "metrics": summary(matrix[numbers], higher_is_better=higher)}
        for setting, numbers in of.items()
    ]
    averages = [each["metrics"]["average_accuracy"]["mean"] for each in by_setting]
    defined = [number for number, average in enumerate(averages) if average is not None]
    undefined = {"mean": None, "ci95": None}
    return {
        "metrics": {name: each | undefined for name, each in report["metrics"].items()},
        "settings": [dict(setting) for setting in settings],
        "by_setting": by_setting,
        "best": (max if higher else min)(defined, key=averages.__getitem__, default=None),
    }


def of_best(report: dict[str, Any]) -> dict[str, Any]:
    """The report of a grid's best setting as if it had been run by itself; any other as it is, and
    that of a grid that has no best one."""
    if report.get("best") is None:
        return report
    best = report["by_setting"][report["best"]]
    numbers = [n for n, setting in enumerate(report["settings"]) if setting == best["setting"]]
    return {
        **{name: value for name, value in report.items() if name not in (*GRID_SHAPE, "diverged")},
        "name": f"{report['name']}, {shown(best['setting'])}",
        "config": report["config"] | best["setting"],
        "metrics": best["metrics"],
        "seeds": [report["seeds"][number] for number in numbers],
        "matrix": [report["matrix"][number] for number in numbers],
    }


def write(folder: Path, report: dict[str, Any]) -> list[Path]:
    """Writes report.json, report.md and matrix.png; returns their paths."""
    paths = [folder / "report.json", folder / "report.md", folder / "matrix.png"]
    paths[1].write_text(_markdown(report))
    _picture(paths[2], report)
    write_json(paths[0], report)  # last: where it stands, the run is finished
    return paths


def complete(folder: Path) -> bool:
    """Whether every file of the report is there."""
    return all((folder / name).exists() for name in ("report.json", "report.md", "matrix.png"))


def read(folder: Path) -> dict[str, Any]:
    """The report of a finished run.

    Raises:
        InputError: the folder holds none, or one that this version does not read.
    """
    path = Path(folder) / "report.json"
    try:
        report = strict.read_json(path)
        strict.fits(report, {"schema": int})
        if (schema := report["schema"]) == SCHEMA:
            _check(report)
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}): name the folder of a finished run, such as "
            "runs/quickstart/naive."
        ) from error
    except ValueError as error:
        raise InputError(
            f"{path} is no report of a run ({error}): give the command "
            "of that run again, which makes the report anew."
        ) from error
    if schema != SCHEMA:
        raise InputError(f"{path} has schema {schema}; this version of jcl reads {SCHEMA}.")
    return report


def _check(report: dict[str, Any]) -> None:
    """Passes the content of report.json, whose parts belong together.

    Raises:
        ValueError: they do not.
    """
    strict.fits(report, SHAPE)
    strict.fits({"privacy": report.get("privacy", [])}, {"privacy": [PRIVACY_SHAPE]})
    tasks, seeds, matrix = report["tasks"], report["seeds"], report["matrix"]
    rows = {len(each) for each in matrix}
    columns = {len(row) for each in matrix for row in each}
    if not tasks or len(matrix) != len(seeds) or len(rows) != 1 or columns != {len(tasks)}:
        raise ValueError("its matrix is not one of rows of its tasks for each of its seeds")
    if min(rows) < 2:
        raise ValueError("its matrix lacks the row before training or the one after it")
    fields: list[str] = []
    diverged = [None] * len(seeds)
    if "settings" in report:
        diverged = _check_grid(report)
        fields = [name for each in report["settings"] for name in each]
        fields += [each["task"] for each in diverged if each]
    for number, each in enumerate(matrix):
        if diverged[number] is None and any(None in row for row in each):
            raise ValueError(f"its matrix[{number}] has a null, and its replica has not diverged")
    names = "".join([report["name"], report["measure"], *tasks, *fields])
    if shown := strict.control(names):
        raise ValueError(f"one of its names holds the control character {shown}")


def _check_grid(report: dict[str, Any]) -> list[dict[str, Any] | None]:
    """Passes what only the report of a grid has; which replicas have diverged."""
    strict.fits(report, GRID_SHAPE)
    seeds, settings, by_setting = (report[key] for key in ("seeds", "settings", "by_setting"))
    distinct = list({tuple(each.items()): each for each in settings}.values())
    fields = [tuple(each) for each in settings]
    if len(settings) != len(seeds) or not all(fields) or len(set(fields)) != 1:
        raise ValueError("its settings are not those of its replicas")
    if [each["setting"] for each in by_setting] != distinct:
        raise ValueError("its by_setting is not of its settings")
    averages = [each["metrics"]["average_accuracy"]["mean"] for each in by_setting]
    best = report["best"]
    if best is not None and not (0 <= best < len(averages) and averages[best] is not None):
        raise ValueError(f"its best is {best}, which is no setting with an average accuracy")
    diverged = report.get("diverged", [None] * len(seeds))
    strict.fits({"diverged": diverged}, {"diverged": [dict | None]})
    if len(diverged) != len(seeds):
        raise ValueError("its diverged is not of its replicas")
    for number, each in enumerate(diverged):
        if each is not None:
            strict.fits(each, _WHERE, f"its diverged[{number}]")
    return diverged


def show(reports: Sequence[dict[str, Any]], console: Console) -> None:
    """Prints each run's matrix, and a table of their metrics side by side; of a grid the table of
    its settings, and all else of the best of them."""
    for report in reports:
        if "settings" in report:
            table = Table(title=f"{report['name']}, {_best(report)}", title_justify="left")
            head, rows = _settings(report)
            for column in head:
                table.add_column(column, justify="right")
            for row in rows:
                table.add_row(*row)
            console.print(table)
            for line in _diverged(report):
                console.print(line)
    reports = [of_best(report) for report in reports]
    for report in reports:
        table = Table(title=_title(report), title_justify="left")
        for column in ("after", *report["tasks"]):
            table.add_column(column, justify="left" if column == "after" else "right")
        for row in _rows(report):
            table.add_row(*row)
        console.print(table)
    table = Table(title="metrics (mean and 95 % interval over seeds)", title_justify="left")
    table.add_column("")
    for report in reports:
        table.add_column(report["name"], justify="right")
    for name in METRICS:
        table.add_row(name, *(_interval(report, name) for report in reports))
    table.add_row("seeds", *(str(len(report["seeds"])) for report in reports))
    table.add_row("seconds", *(f"{report['wall_seconds']:.0f}" for report in reports))
    console.print(table)
    for report in reports:
        for line in _privacy(report):
            console.print(f"{report['name']}: {line}")


def _title(report: dict[str, Any]) -> str:
    better = "higher" if report["higher_is_better"] else "lower"
    return f"{report['name']}: {report['measure']} ({better} is better)"


def row_names(report: dict[str, Any]) -> list[str]:
    """After what each row of the matrix was measured."""
    rows, tasks = len(report["matrix"][0]), report["tasks"]
    if rows == len(tasks) + 1:
        return ["(before)", *tasks]
    return ["(before)", *[f"stage {number}" for number in range(rows - 2)], "(all)"]


def _rows(report: dict[str, Any]) -> list[list[str]]:
    return [
        [name, *("-" if np.isnan(value) else f"{value:.3f}" for value in row)]
        for name, row in zip(row_names(report), _mean(report), strict=True)
    ]


def _mean(report: dict[str, Any]) -> np.ndarray:
    return np.asarray(report["matrix"], np.float64).mean(axis=0)


def _interval(report: dict[str, Any], name: str) -> str:
    metric = report["metrics"][name]
    if metric["mean"] is None:
        return "-"
    interval = "" if metric["ci95"] is None else f" ± {metric['ci95']:.3f}"
    return f"{metric['mean']:.3f}{interval}"


def _settings(report: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The head and the rows of a grid's table."""
    by_setting, names = report["by_setting"], ("average_accuracy", "forgetting")
    rows = [
        [*map(str, each["setting"].values()), *(_interval(each, name) for name in names)]
        for each in by_setting
    ]
    return [*by_setting[0]["setting"], *names], rows


def _best(report: dict[str, Any]) -> str:
    if report["best"] is None:
        return "every setting has diverged with some seed"
    return f"best average accuracy: {shown(report['by_setting'][report['best']]['setting'])}"


def _diverged(report: dict[str, Any]) -> list[str]:
    """A sentence on each replica of a grid that has diverged."""
    each = zip(report["settings"], report["seeds"], report.get("diverged", []), strict=False)
    return [
        f"{shown(setting)}, seed {seed} diverged at task {gone['task']}, step {gone['step']}."
        for setting, seed, gone in each
        if gone
    ]


def _markdown(report: dict[str, Any]) -> str:
    if "settings" in report:
        whole, report = report, of_best(report)
        lines = [f"# {whole['name']}, {_best(whole)}", "", *_table(*_settings(whole))]
        lines += ["", "Mean and 95 % interval over seeds."]
        lines[-1] += "" if whole["best"] is None else " What follows is of the best setting."
        lines += [line for each in _diverged(whole) for line in ("", each)]
        lines += ["", f"## {_title(report)}", ""]
    else:
        lines = [f"# {_title(report)}", ""]
    lines += _table(["after", *report["tasks"]], _rows(report))
    lines += ["", "Mean over seeds " + ", ".join(map(str, report["seeds"])) + "."]
    lines += ["", "![matrix](matrix.png)", ""]
    lines += _table(
        ["metric", "mean and 95 % interval"], [[name, _interval(report, name)] for name in METRICS]
    )
    median = report["step_seconds_median"]
    lines += ["", f"{report['steps']} steps in {report['wall_seconds']:.0f} s"]
    lines[-1] += "." if median is None else f", median {median * 1000:.1f} ms a step."
    lines += [line for each in _privacy(report) for line in ("", each)]
    lines += ["", "| setting | value |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in report["config"].items()]
    lines += ["", ", ".join(f"{name} {version}" for name, version in report["versions"].items())]
    return "\n".join(lines) + "\n"


def _privacy(report: dict[str, Any]) -> list[str]:
    """A sentence on what each replica's training has spent; seeds of one setting spend the same."""
    told = [
        f"epsilon {'infinite' if each['epsilon'] is None else format(each['epsilon'], '.3g')} at "
        f"delta {each['delta']:g} (clip {each['clip']:g}, noise {each['noise_multiplier']:g} times "
        f"that); {each['assumed']}."
        for each in report.get("privacy", [])
    ]
    return list(dict.fromkeys(told))


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def _picture(path: Path, report: dict[str, Any]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    report = of_best(report)
    rows = _rows(report)
    mean = np.nan_to_num(_mean(report))
    figure, axes = pyplot.subplots(
        figsize=(1.6 * len(report["tasks"]) + 2.5, 0.6 * len(rows) + 1.6), layout="constrained"
    )
    colours = "viridis" if report["higher_is_better"] else "viridis_r"
    image = axes.imshow(mean, cmap=colours, aspect="auto")
    middle = (mean.min() + mean.max()) / 2
    for row, values in enumerate(mean):
        for column, value in enumerate(values):
            bright = (value > middle) == report["higher_is_better"]
            shown = "-" if rows[row][1 + column] == "-" else f"{value:.2f}"
            axes.text(
                column, row, shown, ha="center", va="center",
                color="black" if bright else "white",
            )  # fmt: skip
    axes.set_xticks(range(len(report["tasks"])), report["tasks"])
    axes.set_yticks(range(len(rows)), [row[0] for row in rows])
    axes.set_xlabel("evaluated on")
    axes.set_ylabel("after training on")
    axes.set_title(_title(report), fontsize=10)
    figure.colorbar(image, ax=axes)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
