"""What `jcl select` shows: tables, the picture of the measure against each cost, the reasons."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from jcl.select.choice import COSTS, shown

HEAD = (
    "candidate", "parameters", "trained", "state", "step takes", "prediction", "step", "measure",
)  # fmt: skip
NOTE = (
    "parameters: of the model; trained: of these, what some steps have moved; state: params, "
    "optimizer and memories; step takes: all that a training step holds on a device at its peak; "
    "prediction: median time of one example; step: of a training step."
)


def show(content: dict[str, Any], console: Console) -> None:
    """Prints the table, which candidate to take, and why not the others."""
    table = Table(title=_title(content), title_justify="left")
    shown_here = [0, 1, 4, 5, 6, 7]  # of a terminal's width
    for column in shown_here:
        table.add_column(HEAD[column], justify="right" if column else "left", no_wrap=column > 0)
    for each in content["candidates"]:
        taken, row = each["name"] == content["recommended"], _row(each)
        table.add_row(*(row[column] for column in shown_here), style="bold" if taken else None)
    console.print(table)
    for line in _verdict(content):
        console.print(line, soft_wrap=True)
    for each in content["candidates"]:
        if each["name"] != content["recommended"]:
            console.print(f"{each['name']}: {each['reason']}", soft_wrap=True)


def write(place: Path, content: dict[str, Any]) -> list[Path]:
    """Writes select.md and pareto.png; returns their paths."""
    paths = [place / "select.md", place / "pareto.png"]
    rows = [list(HEAD), ["---", *["---:"] * (len(HEAD) - 1)], *map(_row, content["candidates"])]
    lines = [f"# {_title(content)}", "", *_verdict(content), ""]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    lines += ["", NOTE, "", "![the measure against each cost](pareto.png)", "", "Why:", ""]
    lines += [f"- {each['name']}: {each['reason']}" for each in content["candidates"]]
    limit = content["limit_steps"]
    lines += [
        "",
        f"Measured on {100 * content['validation']:g} % of the training examples, which were held "
        "out; the test examples took no part. "
        + (f"At most {limit} steps a stage. " if limit else "")
        + f"Seeds: {content['seeds']}. Devices: {content['device']}.",
    ]
    paths[0].write_text("\n".join(lines) + "\n")
    _picture(paths[1], content)
    return paths


def _title(content: dict[str, Any]) -> str:
    budget = ", ".join(f"{name} {shown(name, limit)}" for name, limit in content["budget"].items())
    better = "higher" if content["higher_is_better"] else "lower"
    return f"candidates by {content['measure']} ({better} is better), within {budget or 'no limit'}"


def _verdict(content: dict[str, Any]) -> list[str]:
    if content["recommended"] is None:
        return [
            "No candidate is within the budget and measured: raise a limit, or add smaller ones."
        ]
    each = next(each for each in content["candidates"] if each["name"] == content["recommended"])
    return [f"Take {each['name']}: {each['reason']}.", "", f"    {content['command']}"]


def _row(each: dict[str, Any]) -> list[str]:
    measured = "-" if each["measured"] is None else f"{each['measured']:.3f}"
    interval = "" if each["ci95"] is None else f" ± {each['ci95']:.3f}"
    return [
        each["name"],
        shown("parameters", each["parameters"]),
        shown("parameters", each["trained"]),
        shown("memory", each["state"]),
        shown("memory", each["memory"]),
        shown("latency", each["latency"]),
        shown("latency", each["step"]),
        measured + interval,
    ]


def _picture(path: Path, content: dict[str, Any]) -> None:
    """The measure against each cost: who is on the front of all three, and what is not trained."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 3, figsize=(13, 4.4), sharey=True, layout="constrained")
    trained = [each for each in content["candidates"] if each["measured"] is not None]
    others = [each for each in content["candidates"] if each["measured"] is None]
    for axes, cost in zip(panels, COSTS, strict=True):
        axes.set_xscale("log")
        axes.margins(0.12, 0.15)
        for each in trained:
            taken = each["name"] == content["recommended"]
            dominated = each["reason"].startswith("dominated")
            colour = "tab:red" if taken else "tab:grey" if dominated else "tab:blue"
            axes.errorbar(
                each[cost], each["measured"], yerr=each["ci95"], fmt="*" if taken else "o",
                markersize=14 if taken else 7, color=colour, markerfacecolor="none" if dominated
                else colour,
            )  # fmt: skip
            axes.annotate(
                "\n".join(f"{value}" for value in each["setting"].values()),
                (each[cost], each["measured"]),
                xytext=(6, 4), textcoords="offset points", fontsize=7,
            )  # fmt: skip
        for each in others:
            if each[cost] is not None:
                axes.axvline(each[cost], ymax=0.04, color="tab:grey", linewidth=2)
        if cost in content["budget"]:
            axes.axvline(content["budget"][cost], color="tab:red", linestyle="--", linewidth=1)
        axes.set_xlabel({"latency": "latency, s", "memory": "memory, bytes"}.get(cost, cost))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(content["measure"])
    if not content["higher_is_better"]:
        panels[0].invert_yaxis()  # shared: up is better in all
    figure.suptitle(
        "star: taken; hollow: dominated; dashes: the budget; ticks below: not trained", fontsize=9
    )
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
