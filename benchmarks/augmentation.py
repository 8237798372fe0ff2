"""The table of docs/augmentation.md: each augmentation against none, on few-shot intents.

Command:  python benchmarks/augmentation.py [TEXTS ...] [--only METHOD ...] [--seeds N]
          [--minutes 90] [--report]
Needs JCL_DATA (see configs/augmentation.py). TEXTS are banking77 and clinc150; without names both.
masked_lm needs what configs/masked_lm.py makes, exported to runs/augmentation/TEXTS_masked_lm,
back_translation runs/augmentation/TEXTS_back_translations.json, as docs/augmentation.md makes them;
without it the row is not run.
The command stops at the end of its minutes, in the middle of a run if it must: the same command
goes on there. --report only writes the table from what has been run; a row without a finished run
keeps what the page has for it, or says "not run".
Exit status: 0, 1 where a run failed, 2 where the command cannot be followed.
"""

import math
import sys

import reproduce
import resumable

from jcl import metrics, report

RUNS = reproduce.ROOT / "runs" / "augmentation"
PAGE = reproduce.ROOT / "docs" / "augmentation.md"
BEGIN, END = "<!-- the table begins -->", "<!-- the table ends -->"
HEAD = "| augmentation | accuracy | difference to none | it | wall time | commit |"
SEEDS = 3
TEXTS = {"banking77": "Banking77, 77 intents", "clinc150": "CLINC150, 150 intents"}
METHODS = (
    "none", "synonyms", "insertion", "deletion", "swap", "local_shuffle", "token_cutoff", "mixup",
    "masked_lm", "back_translation",
)  # fmt: skip
# What a method needs: the option that names it, and where in RUNS it is looked for.
NEEDED = {
    "masked_lm": ("checkpoint", "{}_masked_lm"),
    "back_translation": ("translations", "{}_back_translations.json"),
}


def place(name, method):
    return RUNS / name / method


def needed(name, method):
    option, path = NEEDED[method]
    return option, RUNS / path.format(name)


def finished(name, method):
    return resumable.finished(place(name, method), SEEDS)


def run(name, method, deadline, seeds=None):
    folder = resumable.with_seeds(place(name, method), seeds, SEEDS)
    arguments = ["--method", method, "--texts", name, "--seeds", str(seeds or SEEDS)]
    if method in NEEDED:
        option, path = needed(name, method)
        if not path.exists():
            print(f"{name}, {method}: not run, as there is no {path}")
            return True
        arguments += [f"--{option}", str(path)]
    return resumable.run(folder, "augmentation", arguments, deadline)


def accuracies(folder):
    """Percent, by seed."""
    found = report.read(folder)
    values = found["metrics"]["average_accuracy"]["values"]
    return {
        seed: 100 * value
        for seed, value in zip(found["seeds"], values, strict=True)
        if value is not None
    }


def compared(values, without):
    """(the mean difference and its 95 % interval over common seeds, what they say)."""
    common = sorted(set(values) & set(without))
    differences = [values[seed] - without[seed] for seed in common]
    if not differences:
        return "-", "-"
    mean, half = sum(differences) / len(differences), metrics.interval(differences)
    if half is None:
        return f"{mean:+.2f}", "one seed says nothing"
    word = "undecided" if abs(mean) <= half else "helps" if mean > 0 else "harms"
    return f"{mean:+.2f} ± {half:.2f}", word


def cells(name, method):
    """The cells of a finished run."""
    folder, none = finished(name, method), finished(name, "none")
    result = reproduce.finished(folder)
    shown = "-" if math.isnan(result.mean) else f"{result.mean:.2f}"
    shown += f" ± {result.interval:.2f}" if result.interval else ""
    difference = ("-", "-")
    if method != "none" and none:
        difference = compared(accuracies(folder), accuracies(none))
    return [
        f"{shown} ({result.seeds})", *difference, result.wall, result.commit,
    ]  # fmt: skip


def table(held, where):
    """The lines between the marks, and the numbers of rows with figures and of all, by texts."""
    here = {
        (name, method): cells(name, method)
        for name in TEXTS
        for method in METHODS
        if finished(name, method)
    }
    if here:
        where = reproduce.this_machine()
    lines = [BEGIN, where if held or here else resumable.NEVER]
    counts = {}
    for name, title in TEXTS.items():
        rows = {method: here.get((name, method), held.get((name, method))) for method in METHODS}
        counts[name] = (sum(1 for row in rows.values() if row), len(rows))
        lines += [
            "", f"### {title}", "",
            f"`make augmentation TEXTS={name}`: a row is `jcl run configs/augmentation.py --texts "
            f"{name} --method METHOD --seeds {SEEDS}`; {counts[name][0]} of {counts[name][1]} run.",
            "", HEAD, "|---" * 6 + "|",
        ]  # fmt: skip
        lines += [
            f"| {method} | {' | '.join(found or ['not run', *[''] * 4])} |"
            for method, found in rows.items()
        ]
    return [*lines, END], counts


def write_page():
    """The part of docs/augmentation.md between the marks, from the run folders and, where there is
    none, from the page itself."""
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    held, where = resumable.read_page(PAGE, "TEXTS")
    held = {row: found for row, found in held.items() if row[1] in METHODS}
    lines, counts = table(held, where)
    PAGE.write_text(before + "\n".join(lines) + after)
    return counts


def chosen(names, only):
    rows = dict.fromkeys(TEXTS, METHODS)
    return resumable.chosen(rows, lambda method: method, names, only, "texts")


def main(arguments=None):
    return resumable.main(__doc__, "texts", chosen, run, write_page, arguments)


if __name__ == "__main__":
    sys.exit(main())
