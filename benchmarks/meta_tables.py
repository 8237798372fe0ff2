"""The tables of meta-learning: sinusoids, characters, intents, and learning on after meta-training.

Command:  python benchmarks/meta_tables.py [TABLE ...] [--only METHOD ...] [--minutes 90] [--report]
Tables: sinusoid, omniglot, glyphs, intents, continual; without a name all of them, in this order.
omniglot needs JCL_DATA (see configs/meta/omniglot.py). The command stops at the end of its minutes,
in the middle of a run if it must: the same command goes on there; --report only writes docs/meta.md
and its pictures from what has been run. A row without a finished run keeps what the page has
for it, since the folder may be on another machine, or says "not run".
Exit status: 0, 1 where a row's run failed, 2 where the command cannot be followed.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import reproduce
import resumable
from scipy import stats

import jcl
from jcl import answer, report
from jcl.__main__ import load_config

RUNS = reproduce.ROOT / "runs" / "meta"
PAGE = reproduce.ROOT / "docs" / "meta.md"
START = "runs/meta/continual"
# Beside the page, of the tables of these names.
PICTURES = {
    "sinusoid": ("sinusoid.png", "a new sine, and MAML's curves before and after it has adapted"),
    "continual": ("continual.png", "accuracy over the classes seen, as more and more are seen"),
}
SCRATCH = "from scratch"
WITHIN = 15  # percent
# The error after so many points and steps of one run of the protocol in JAX.
STATED = {
    "5/1": 0.591, "5/5": 0.432, "5/10": 0.451, "10/1": 0.350, "10/5": 0.172, "10/10": 0.115,
    "20/1": 0.209, "20/5": 0.081, "20/10": 0.048,
}  # fmt: skip


class Row(NamedTuple):
    """A line of a table, and the run that it is of.

    Attributes:
        label: its first cell.
        settings: the run's arguments.
        method: what --only calls it.
        untrained: the figures are those before meta-training, the first row of the run's matrix.
    """

    label: str
    settings: tuple[str, ...]
    method: str
    untrained: bool = False


class Table(NamedTuple):
    """A section of the page.

    Attributes:
        title: of the section.
        config: the file in configs/.
        about: what the figures are.
        rows: in their order.
        seeds: of every run.
        head: of the cells that `cells` gives.
        cells: (folder, row) -> the cells of a finished run.
    """

    title: str
    config: str
    about: str
    rows: tuple[Row, ...]
    seeds: int
    head: tuple[str, ...]
    cells: Callable[[Path, Row], list[str]]


def of_seeds(values, digits, scale):
    """The mean over seeds with the half-width of its 95 % interval."""
    values = scale * np.asarray(values)
    found = f"{values.mean():.{digits}f}"
    if len(values) > 1:
        error = values.std(ddof=1) / len(values) ** 0.5
        found += f" ± {stats.t.ppf(0.975, len(values) - 1) * error:.{digits}f}"
    return found


def ending(folder):
    result = reproduce.finished(folder)
    return [result.wall, result.commit]


def by_task(folder, row):
    """The measure of every task that the run is tested on: a share in percent, or as it is."""
    found = report.read(folder)
    digits, scale = (2, 100) if found["higher_is_better"] else (3, 1)
    matrix = np.asarray(found["matrix"])[:, 0 if row.untrained else -1]
    figures = [of_seeds(values, digits, scale) for values in matrix.T]
    return figures + (["", ""] if row.untrained else ending(folder))


def by_classes(folder, row):
    """The accuracy over the classes seen, when so many tasks of ten have been seen; a run of the
    meta-training has none."""
    curve, figures = over_classes(folder), ["-"] * len(SEEN)
    if curve is not None:
        figures = [of_seeds(curve[:, seen - 1], 2, 100) for seen in SEEN]
    return [*figures, *ending(folder)]


def over_classes(folder):
    """[seeds, tasks]: the accuracy over the tasks seen, when so many have been seen; None of a
    meta-training, which has one task."""
    matrix = np.asarray(report.read(folder)["matrix"])
    tasks = matrix.shape[-1]
    if tasks == 1:
        return None
    return np.stack([matrix[:, seen, :seen].mean(axis=-1) for seen in range(1, tasks + 1)], axis=1)


def by_episode(folder, row):
    """The accuracy before and after meta-training, with intervals over the test episodes."""
    found = report.read(folder)
    (matrix,), episodes = np.asarray(found["matrix"]), found["config"]["episodes"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    deviations = [line["deviation"][0] for line in lines if line["kind"] == "probe"]
    before, after = (
        f"{100 * accuracy:.2f} ± {196 * deviation / episodes**0.5:.2f}"
        for (accuracy,), deviation in zip(matrix, deviations, strict=True)
    )
    return [after, before, *ending(folder)]


def sinusoids():
    methods = ("maml", "fomaml", "anil", "meta_sgd", "reptile", "joint")
    rows = [Row(method, ("--method", method), method) for method in methods]
    return (*rows, Row(SCRATCH, ("--method", "maml"), "maml", untrained=True))


def drawings(source, grid):
    """Rows for (ways, backbone, methods), each at 1 and 5 shots."""
    for ways, backbone, methods in grid:
        for shots in (1, 5):
            for method in methods:
                settings = {
                    "source": source, "ways": ways, "shots": shots, "backbone": backbone,
                    "method": method,
                }  # fmt: skip
                arguments = [f"--{name}={value}" for name, value in settings.items()]
                label = f"{ways} ways, {shots} shot{'s' * (shots > 1)}, {backbone}, {method}"
                yield Row(label, tuple(arguments), method)


def one_after_another():
    """Rows of the meta-training, and of learning on: --only takes both of a method."""
    for method in ("oml", "anml", "pretrained"):
        yield Row(f"{method}, meta-training", ("--method", method), method)
    for method in ("oml", "anml", "pretrained", "nearest_class_mean", "er", "scratch"):
        before = method if method in ("oml", "anml") else "pretrained"
        start = ("--start", f"{START}/{before}_meta-training")
        settings = ("--phase", "test", "--method", method, *(() if method == "scratch" else start))
        yield Row(method, settings, method)


SEEN = (2, 5, 10)
FIVE = ("maml", "fomaml", "anil", "reptile", "prototypes")
STRONG = ("maml", "prototypes")
CHARACTERS = (
    "accuracy over 1,000 episodes of unseen characters, in percent, with 95 % intervals over the "
    "episodes (their deviation is that of the first 250), after and before 2,000 meta-steps; one "
    "seed."
)
HEAD = ("accuracy", "before meta-training", "wall time", "commit")
TABLES = {
    "sinusoid": Table(
        "Sinusoids", "meta/sinusoid",
        "mean squared error over 600 new sines, a point counting at most 100 (the square of the "
        "largest error that an answer within the range of all sines can have), by points / inner "
        "steps; means and 95 % intervals over seeds. `joint` is pre-trained on all sines at once; "
        f"`{SCRATCH}` is maml's model before its training. A mean over sines hangs on any one that "
        "the inner steps throw off, which ten steps on five points now and then do. One seed alone "
        "on two idle cores (jax 0.10.2, 2026-11-27; aim 60 s), from the command to its end: maml "
        "64 s, fomaml 45, anil 30, meta_sgd 71, reptile 97, joint 29; with XLA's pool of a single "
        "thread (`--cpu-threads 1`) maml 44, meta_sgd 60, reptile 66: it alone misses the aim. Of "
        "reptile's 1.0 ms a step by itself on two threads the products of 25 weight gradients take "
        "about half: 40 x 10 by 10 x 40 in 0.09 ms, 9 GFLOP/s, five times a step.",
        sinusoids(), 3, (*STATED, "wall time", "commit"), by_task,
    ),
    "omniglot": Table(
        "Omniglot small", "meta/omniglot",
        f"{CHARACTERS} 242 of Omniglot's 1,623 characters, 60 of them for the test, so that no "
        "figure here may stand beside one of the whole set. The rows' times add up to 83 minutes "
        "and their starts to 6 more (aim 90), for the most part beside other work; one of them, "
        "which tests at a higher priority had slowed, was run again and gave the same bits. Where "
        "rounding differs training does: at 20 ways and 5 shots MAML of seeds 0, 1 and 2 came to "
        "77.2, 79.9 and 79.7 on an NVIDIA H200 (jax 0.11.2).",
        (
            *drawings("omniglot", ((5, "dense", FIVE), (5, "convolutional", FIVE))),
            *drawings("omniglot", ((20, "convolutional", STRONG),)),
        ),
        1, HEAD, by_episode,
    ),
    "glyphs": Table(
        "Glyphs", "meta/omniglot",
        f"{CHARACTERS} The Japanese characters of the Hershey fonts test; those of all other fonts "
        "are learned from, of which none looks like one of them.",
        tuple(drawings("glyphs", ((5, "convolutional", STRONG),))),
        1, HEAD, by_episode,
    ),
    "intents": Table(
        "Intents", "meta/intents",
        "accuracy in percent over 5-way episodes of 1 and 5 texts, of the domain that validates "
        "and of the two unseen ones; means and 95 % intervals over seeds. From one text, meta-"
        "trained ANIL and ProtoNet are better than the nearest class mean of frozen features, by "
        "six points; than a linear head learned over the same features they are not, nor from "
        "five texts: that head, of an encoder trained on sentences for their meaning, leaves 10 "
        "and 3 points to gain, and 400 episodes of seven domains gained nothing beyond the "
        "intervals. Nor are they better than fine-tuning the pretrained encoder: MAML, which "
        "begins there, is level with it from one text and its mean is below from five (it was "
        "trained on one); fomaml's meta-training, at its rate of 1e-3, did harm with some of the "
        "seeds.",
        (
            *(Row(each, ("--method", each), each) for each in ("maml", "fomaml", "anil")),
            Row("prototypes", ("--method", "prototypes"), "prototypes"),
            Row("fine-tuning, no meta-training", ("--method", "maml"), "maml", untrained=True),
            Row("linear head over frozen features", ("--method", "anil"), "anil", untrained=True),
            Row(
                "nearest class mean of frozen features", ("--method", "prototypes"), "prototypes",
                untrained=True,
            ),
        ),
        3,
        (
            "1 text, validation", "5 texts, validation", "1 text", "5 texts", "wall time", "commit",
        ),
        by_task,
    ),
    "continual": Table(
        "Learning on after meta-training", "meta/continual",
        "accuracy in percent over 20, 50 and 100 unseen characters, learned one drawing after "
        "another, when so many have been seen; means and 95 % intervals over seeds. OML and ANML "
        "learn each drawing once and store none; they stay above what was pre-trained "
        "plainly or not at all. ANML is level with ER's memory of 500 drawings at 50 characters "
        "and falls behind it at 100; the class means of the pre-trained features, which nothing "
        "overwrites, are above all of them.",
        tuple(one_after_another()), 3,
        ("20 classes", "50 classes", "100 classes", "wall time", "commit"), by_classes,
    ),
}  # fmt: skip


MAML = TABLES["sinusoid"].rows[0]


def place(name, row):
    """The run's folder: that of its label, or of the row that the run is made for."""
    label = row.method if row.untrained else row.label
    return RUNS / name / label.replace(", ", "_").replace(" ", "_")


def finished(name, row):
    return resumable.finished(place(name, row), TABLES[name].seeds)


def run(name, row, deadline, seeds=None):
    table = TABLES[name]
    folder = resumable.with_seeds(place(name, row), seeds, table.seeds)
    # What a run starts from has as many seeds.
    settings = [
        str(resumable.with_seeds(Path(each), seeds, table.seeds)) if START in each else each
        for each in row.settings
    ]
    arguments = [*settings, "--seeds", str(seeds or table.seeds)]
    return resumable.run(folder, table.config, arguments, deadline)


def comparison(cells):
    """The lines of maml's figures beside those stated; none where it was not run."""
    if cells is None:
        return []
    lines = [
        "", "MAML beside the figures of one run of the same protocol, seen for their 600 sines "
        "alone and so without an interval, and stated without a bound on a point's error; a "
        f"verdict is whether ours lie within {WITHIN} %.", "",
        "| points / steps | one run | jcl | difference | verdict |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for (name, stated), shown in zip(STATED.items(), cells, strict=False):
        difference = 100 * (float(shown.split(" ± ")[0]) / stated - 1)
        verdict = f"within {WITHIN} %" if abs(difference) <= WITHIN else "differs"
        lines.append(f"| {name} | {stated:.3f} | {shown} | {difference:+.0f} % | {verdict} |")
    return lines


def draw(model, params, path):
    """A picture of one new sine and what these params make of 5, 10 and 20 of its points."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    loss_fn = jcl.losses.squared_error(model.apply)
    adapt = jax.jit(jcl.meta.adaptation(loss_fn, optax.sgd(0.01)))
    line = jnp.linspace(-5.0, 5.0, 200)[:, None]
    figure, panels = pyplot.subplots(1, 3, figsize=(12, 3.4), sharey=True, layout="constrained")
    for panel, shots in zip(panels, (5, 10, 20), strict=True):
        sine = jcl.data.sinusoids(1, shots, 300, seed=2**31)[0]
        order = np.argsort(sine["inputs"][:, 0])
        panel.plot(sine["inputs"][order], sine["targets"][order], "k", label="the sine")
        support = {"inputs": sine["support_inputs"], "targets": sine["support_targets"]}
        panel.plot(support["inputs"], support["targets"], "k^", label="points")
        for steps, style in ((0, ":"), (1, "--"), (10, "-")):
            adapted = adapt(params, support, None, steps)
            panel.plot(line, model.apply(adapted, line), style, label=f"steps: {steps}")
        panel.set_title(f"{shots} points")
    panels[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def draw_curves(curves, path):
    """A picture of the accuracy over the classes seen, {label: [seeds, tasks]}."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panel = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for label, curve in curves.items():
        seen = 10 * np.arange(1, curve.shape[1] + 1)
        panel.plot(seen, 100 * curve.mean(axis=0), marker=".", label=label)
    panel.set(xlabel="classes seen", ylabel="accuracy over them, %", ylim=(0, 100))
    panel.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def newer(path, folders):
    """Whether the picture was drawn after all of these runs were finished."""
    ends = [(folder / "report.json").stat().st_mtime for folder in folders]
    return path.exists() and path.stat().st_mtime > max(ends)


def draw_pictures(held):
    """Those whose runs are here, and newer than the picture.

    Args:
        held: the rows of the page: where one of a picture with several is not here, it stays.
    """
    path, folder = PAGE.parent / PICTURES["sinusoid"][0], finished("sinusoid", MAML)
    if folder and not newer(path, [folder]):
        config = reproduce.ROOT / "configs" / "meta" / "sinusoid.py"
        reopened = answer.reopen(folder, load_config, config)
        draw(reopened.experiment.model, reopened.state.params, path)
    path, rows = PAGE.parent / PICTURES["continual"][0], TABLES["continual"].rows
    folders = {row.label: finished("continual", row) for row in rows}
    curves = {label: over_classes(folder) for label, folder in folders.items() if folder}
    curves = {label: curve for label, curve in curves.items() if curve is not None}
    drawn = {label for label, cells in held.items() if cells[0] != "-"}
    elsewhere = [label for label, folder in folders.items() if label in drawn and not folder]
    if curves and not elsewhere and not newer(path, [folders[label] for label in curves]):
        draw_curves(curves, path)


def write_page():
    """docs/meta.md from the run folders and, where there is none, from the page itself.

    Returns the numbers of rows with figures and of all, by table.
    """
    held, machine = resumable.read_page(PAGE, "TABLES")
    here = {
        (name, row.label): table.cells(finished(name, row), row)
        for name, table in TABLES.items()
        for row in table.rows
        if finished(name, row)
    }
    if here:
        machine = reproduce.this_machine()
    elif machine is None or not held:
        machine = resumable.NEVER
    draw_pictures({label: cells for (name, label), cells in held.items() if name == "continual"})
    lines = [
        "# Meta-learning",
        "",
        "Fast adaptation to new tasks of few examples. Wall time is that of all seeds of a row "
        "together; where a GPU is named, a dozen runs shared it (Python 3.12.3, jax 0.11.2).",
        "",
        "Written by `make meta`, which goes on where it was stopped and stops after 90 minutes; a "
        "row that was not run says so, and a row whose run folder was not there stands as it was "
        "before. The next line tells where and when the page was last written from run folders.",
        "",
        machine,
    ]
    counts = {}
    for name, table in TABLES.items():
        rows = {row.label: here.get((name, row.label), held.get((name, row.label)))
                for row in table.rows}  # fmt: skip
        counts[name] = (sum(1 for cells in rows.values() if cells), len(rows))
        lines += [
            "", f"## {table.title}", "",
            f"`make meta TABLES={name}`: `jcl run configs/{table.config}.py`, "
            f"{counts[name][0]} of {counts[name][1]} run; {table.about}",
        ]  # fmt: skip
        if not rows:
            lines += ["", "Not run."]
            continue
        head = ("", *table.head)
        lines += ["", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        for label, cells in rows.items():
            cells = cells or ["not run", *[""] * (len(table.head) - 1)]
            lines.append(f"| {label} | {' | '.join(cells)} |")
        if name == "sinusoid":
            lines += comparison(rows["maml"])
        file, shown = PICTURES.get(name, (None, None))
        if file and (PAGE.parent / file).exists():
            lines += ["", f"![{shown}]({file})"]
    PAGE.write_text("\n".join(lines) + "\n")
    return counts


def chosen(names, only):
    rows = {
        name: [row for row in table.rows if not row.untrained] for name, table in TABLES.items()
    }
    return resumable.chosen(rows, lambda row: row.method, names, only, "table")


def main(arguments=None):
    return resumable.main(__doc__, "table", chosen, run, write_page, arguments)


if __name__ == "__main__":
    sys.exit(main())
