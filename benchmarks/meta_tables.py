"""The tables of meta-learning: sinusoids, characters, intents, and learning on after meta-training.

Command:  python benchmarks/meta_tables.py [TABLE ...] [--only METHOD ...] [--minutes 90] [--report]
Tables: sinusoid, omniglot, glyphs, intents, continual; without a name all of them, in this order.
omniglot needs JCL_DATA (see configs/meta/omniglot.py). The command stops at the end of its minutes,
in the middle of a run if it must: the same command goes on there; --report only writes docs/meta.md
and docs/sinusoid.png from what has been run. A row without a finished run keeps what the page has
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
PICTURE = "sinusoid.png"  # beside the page
START = "runs/meta/continual"
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
    return [f"{result.seconds:.0f} s", result.commit]


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
    matrix = np.asarray(report.read(folder)["matrix"])
    figures = ["-"] * len(SEEN)
    if matrix.shape[-1] > 1:
        figures = [of_seeds(matrix[:, seen, :seen].mean(axis=-1), 2, 100) for seen in SEEN]
    return [*figures, *ending(folder)]


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
        "mean squared error over 600 new sines, by points / inner steps; means and 95 % intervals "
        f"over seeds. `joint` is pre-trained on all sines at once; `{SCRATCH}` is maml's model "
        "before its training. A mean over sines hangs on any one that the inner steps throw off, "
        "which ten steps on five points now and then do.",
        sinusoids(), 3, (*STATED, "wall time", "commit"), by_task,
    ),
    "omniglot": Table(
        "Omniglot small", "meta/omniglot",
        f"{CHARACTERS} 242 of Omniglot's 1,623 characters, 60 of them for the test, so that no "
        "figure here may stand beside one of the whole set.",
        (
            *drawings("omniglot", ((5, "dense", FIVE), (5, "convolutional", FIVE))),
            *drawings("omniglot", ((20, "convolutional", STRONG),)),
        ),
        1, HEAD, by_episode,
    ),
    "glyphs": Table(
        "Glyphs", "meta/omniglot",
        f"{CHARACTERS} The glyphs of 16 Hershey fonts to learn from and of 8 to test on.",
        tuple(drawings("glyphs", ((5, "convolutional", STRONG),))),
        1, HEAD, by_episode,
    ),
    "intents": Table(
        "Intents", "meta/intents",
        "accuracy in percent over 5-way episodes of 1 and 5 texts, of the domain that validates "
        "and of the two unseen ones; means and 95 % intervals over seeds.",
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
        "another, when so many have been seen; means and 95 % intervals over seeds.",
        tuple(one_after_another()), 3,
        ("20 classes", "50 classes", "100 classes", "wall time", "commit"), by_classes,
    ),
}  # fmt: skip


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
        f"alone and so without an interval; a verdict is whether ours lie within {WITHIN} %.", "",
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


def newer(path, than):
    return path.exists() and path.stat().st_mtime > than.stat().st_mtime


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
    folder, picture = finished("sinusoid", TABLES["sinusoid"].rows[0]), PAGE.parent / PICTURE
    if ("sinusoid", "maml") in here and not newer(picture, folder / "report.json"):
        config = reproduce.ROOT / "configs" / "meta" / "sinusoid.py"
        reopened = answer.reopen(folder, load_config, config)
        draw(reopened.experiment.model, reopened.state.params, picture)
    lines = [
        "# Meta-learning",
        "",
        "Fast adaptation to new tasks of few examples. Wall time is that of all seeds of a row "
        "together.",
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
            if picture.exists():
                lines += [
                    "",
                    f"![a new sine, and MAML's curves before and after it has adapted]({PICTURE})",
                ]
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
