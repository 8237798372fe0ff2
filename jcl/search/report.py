"""What a search has found: study.json, study.md and study.png, and a table on the terminal."""

import dataclasses
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from jcl.folder import write_json
from jcl.space import Space

SCHEMA = 1
SHOWN = 10  # trials on the terminal
_PROTOCOLS = {
    "offline": "chosen by validation over the whole stream, all {tasks} tasks of it, which a "
    "learner that meets the stream for the first time does not have",
    "first_tasks": "chosen by validation on the first {tasks} tasks alone, and to be held for the "
    "rest",
}


def make(
    name: str,
    identity: Mapping[str, Any],
    trials: Sequence[Any],
    spaces: Mapping[str, Space],
    command: Sequence[str],
) -> dict[str, Any]:
    """The content of study.json, of which nothing depends on the time or the machine.

    Args:
        name: of the study.
        identity: what makes it; see `jcl.search.trials.search`.
        trials: all of it, as Optuna has them.
        spaces: what was chosen from.
        command: what runs the config, before the flags of the best setting.
    """
    groups: dict[tuple[str, str], int] = {}
    made = []
    for trial in trials:
        group = trial.user_attrs["place"], trial.user_attrs["folder"]
        groups[group] = groups.get(group, -1) + 1
        made.append(
            {
                "number": trial.number,
                "state": _state(trial),
                "value": trial.value if _state(trial) == "finished" else None,
                "params": dict(trial.params),
                "stages": [value for _, value in sorted(trial.intermediate_values.items())],
                "run": trial.user_attrs["folder"],
                "replica": groups[group],
                **{key: trial.user_attrs[key] for key in ("diverged", "reason")
                   if key in trial.user_attrs},
            }
        )  # fmt: skip
    finished = [each for each in made if each["state"] == "finished"]
    choose = max if identity["higher_is_better"] else min
    best = choose(finished, key=lambda each: each["value"], default=None)
    return {
        "schema": SCHEMA,
        "study": name,
        **identity,
        "space": {field: str(space) for field, space in spaces.items()},
        "trials": made,
        "best": best and best["number"],
        "command": best and shlex.join([*command, *flags(best["params"])]),
    }


def flags(fields: Mapping[str, Any]) -> list[str]:
    """The fields of a config as the command line takes them.

    >>> flags({"learning_rate": 0.01, "device_data": True, "method": "naive"})
    ['--learning-rate', '0.01', '--device-data', '--method', 'naive']
    """
    words = []
    for field, value in fields.items():
        name = field.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        elif isinstance(value, list | tuple):
            words += [f"--{name}", *map(str, value)]
        else:
            words += [f"--{name}", str(value)]
    return words


def changed(config: Any) -> dict[str, Any]:
    """The fields of a config that are not as its class has them."""
    return {
        field.name: value
        for field in dataclasses.fields(config)
        if (value := getattr(config, field.name)) != field.default
    }


def write(folder: Path, report: Mapping[str, Any]) -> None:
    """Writes study.md and, last and whole, study.json."""
    (folder / "study.md").write_text(_markdown(report))
    write_json(folder / "study.json", report)


def show(report: Mapping[str, Any], console: Console) -> None:
    """Prints the best trials, how they were chosen, and the command of the best."""
    head, rows = _table(report)
    table = Table(title=_title(report), title_justify="left")
    for column in head:
        table.add_column(column, justify="right")
    for row in rows[:SHOWN]:
        table.add_row(*row)
    console.print(table)
    if len(rows) > SHOWN:
        console.print(f"and {len(rows) - SHOWN} more in study.md")
    console.print(_sentence(report), soft_wrap=True)
    if report["command"]:
        console.print(f"The best on the real tests:\n{report['command']}", soft_wrap=True)


def _state(trial: Any) -> str:
    if "diverged" in trial.user_attrs:
        return "diverged"
    name = str(trial.state.name).lower()
    return {"complete": "finished", "fail": "failed"}.get(name, name)


def _title(report: Mapping[str, Any]) -> str:
    better = "higher" if report["higher_is_better"] else "lower"
    return f"{report['study']}: {report['measure']} on validation ({better} is better)"


def _sentence(report: Mapping[str, Any]) -> str:
    protocol, validation = report["protocol"], report["validation"]
    told = _PROTOCOLS[protocol["name"]].format(tasks=protocol["tasks"])
    return (
        f"Protocol {protocol['name']}: {told}. Validation is {validation['share']:g} of every "
        f"training part, drawn with seed {validation['seed']}; no test set took part."
    )


def _table(report: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The head and the rows, the best first and what has no value last."""
    fields, sign = list(report["space"]), -1 if report["higher_is_better"] else 1

    def place(trial):
        value = trial["value"]
        return math.inf if value is None else sign * value

    rows = [
        [
            str(trial["number"]),
            trial["state"],
            "-" if trial["value"] is None else f"{trial['value']:.4f}",
            *(_shown(trial["params"][field]) for field in fields),
            trial["run"],
        ]
        for trial in sorted(report["trials"], key=place)
    ]
    return ["trial", "state", report["measure"], *fields, "run"], rows


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _markdown(report: Mapping[str, Any]) -> str:
    head, rows = _table(report)
    lines = [f"# {_title(report)}", "", _sentence(report), ""]
    if report["command"]:
        lines += ["The best on the real tests:", "", f"    {report['command']}", ""]
    lines += [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
    lines += [
        f"\nTrial {trial['number']} {trial['state']}: {trial.get('reason') or trial['diverged']}"
        for trial in report["trials"]
        if trial["state"] in ("failed", "diverged")
    ]
    lines += ["", "![trials](study.png)", "", "| field | chosen from |", "|---|---|"]
    lines += [f"| {field} | {space} |" for field, space in report["space"].items()]
    lines += ["", "| task | examples held out, SHA-256 |", "|---|---|"]
    lines += [f"| {task} | {digest} |" for task, digest in report["validation"]["hashes"].items()]
    return "\n".join(lines) + "\n"


def picture(folder: Path, report: Mapping[str, Any]) -> None:
    """Draws study.png: the values by trial with the best so far, and by every field."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    finished = [trial for trial in report["trials"] if trial["state"] == "finished"]
    numbers = [trial["number"] for trial in finished]
    values = [trial["value"] for trial in finished]
    choose = max if report["higher_is_better"] else min
    so_far = [choose(values[: count + 1]) for count in range(len(values))]
    panels = ["trial", *report["space"]]
    figure, row = pyplot.subplots(
        1, len(panels), figsize=(3.2 * len(panels), 3.2), sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for axes, field in zip(row[0], panels, strict=True):
        axes.set_xlabel(field)
        if field == "trial":
            axes.plot(numbers, so_far, drawstyle="steps-post", color="black", label="best so far")
            axes.scatter(numbers, values, s=16)
            axes.set_ylabel(report["measure"])
            axes.legend(fontsize=8)
            continue
        chosen = [trial["params"][field] for trial in finished]
        if any(not isinstance(each, int | float) or isinstance(each, bool) for each in chosen):
            chosen = [str(each) for each in chosen]
        axes.scatter(chosen, values, s=16, c=numbers, cmap="viridis")
        space = report["space"][field]
        if "," in space:  # values
            continue
        if space.endswith(":log"):
            axes.set_xscale("log")
            axes.xaxis.set_minor_formatter(ticker.NullFormatter())
        axes.set_xlim(*map(float, space.removesuffix(":log").split("..")))
    figure.suptitle(_title(report), fontsize=10)
    figure.savefig(folder / "study.png", dpi=110)
    pyplot.close(figure)
