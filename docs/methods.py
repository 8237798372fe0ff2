"""Writes docs/methods.md, the table of all methods, from their docstrings.

Command:  python docs/methods.py
"""

import inspect
import operator
import re
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import jcl
from jcl.__main__ import load_config

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "methods.md"
# (baseline, what it is, call, config, its method)
BASELINES = (
    (
        "naive", "Trains on one task after the other and keeps nothing: the lower bound.",
        "jcl.chain(optimizer)", "mnist/baselines.py", "naive",
    ),
    (
        "joint", "Trains on all tasks at once: the upper bound.",
        "jcl.data.joint(stream)", "mnist/baselines.py", "joint",
    ),
    (
        "cumulative", "Trains at every stage on all tasks so far.",
        "jcl.data.cumulative(stream)", "mnist/baselines.py", "cumulative",
    ),
    (
        "per-task", "Keeps a model for every task and is told the task.",
        'jcl.chain(jcl.separate("*", tasks), optimizer)', "mnist/baselines.py", "per_task",
    ),
    (
        "linear head", "Trains the head alone, on a frozen backbone.",
        'jcl.chain(jcl.only("head/*", optimizer), jcl.freeze("*", but="head/*"))',
        "mnist/baselines.py", "linear",
    ),
    (
        "cosine head", "The same with a head of cosines.",
        "jcl.models.cosine_head(model), and the chain of the linear head",
        "mnist/baselines.py", "cosine",
    ),
)  # fmt: skip
# Title: (where they are found, functions, whether the second paragraph is a formula)
OTHERS = {
    "Combinators": (
        "jcl",
        (
            "only",
            "by_path",
            "per_task",
            "periodically",
            "scheduled",
            "cosine",
            "restarts",
            "step_decay",
            "exponential",
            "skip_nonfinite",
        ),
        False,
    ),
    "Meta-learning": ("jcl", ("maml", "reptile", "implicit_maml", "prototypes"), True),
    "Learned rates": ("jcl.meta", ("learned_rates",), False),
    "Episodes": (
        "jcl.data",
        ("Episodes", "Trajectories", "sinusoids", "omniglot", "glyphs"),
        False,
    ),
    "Memories": (
        "jcl.memory",
        (
            "reservoir",
            "ring",
            "class_balanced",
            "greedy_balanced",
            "herding",
            "priority",
            "balanced",
            "starting_from",
        ),
        True,
    ),
    "Streams": (
        "jcl.data",
        (
            "joint",
            "cumulative",
            "blurry",
            "fuzzy",
            "labelled",
            "encoded",
            "held_out",
            "permuted",
            "rotated",
            "split",
            "mnist_360",
            "class_sequence",
        ),
        True,
    ),
    "Streams of texts": ("jcl.data", ("domains", "text_files"), False),
    "Wrappers of models": (
        "jcl.models",
        (
            "lora",
            "adapters",
            "prompts",
            "cosine_head",
            "random_features",
            "second_head",
            "module_dropout",
            "starting_from",
        ),
        True,
    ),
    "Probes": ("jcl.probes", ("dormant_units", "effective_rank"), True),
}
PAPER = re.compile(
    r"(?:van de )?[A-Z][\w'-]+(?: et al\.| and [A-Z][\w-]+)?,? (?:\((?:19|20)\d\d\)|(?:19|20)\d\d)"
)
FIELDS = ("Stores", "Place", "Scenario")


def describe(function):
    """What a method's docstring says of it: a dict of the table's columns.

    Raises:
        ValueError: the docstring lacks one of them.
    """
    name, text = function.__name__, inspect.getdoc(function) or ""
    paragraphs = [" ".join(each.split()) for each in re.split(r"\n\s*\n", text)]
    paper = _paper(text)
    found = {"what": paragraphs[0], "formula": paragraphs[1], "paper": paper}
    for field in FIELDS:
        line = re.search(rf"^{field}: (.*?)\.\s*$(?=\n[A-Z>]|\n\n|\Z)", text, re.M | re.S)
        found[field] = line and " ".join(line.group(1).split())
    missing = [field for field, value in found.items() if not value]
    if missing:
        raise ValueError(f"{name}: its docstring lacks {', '.join(missing)}")
    return {**found, "configs": configs(f"jcl.{name}")}


def describe_other(call, with_formula):
    """The cells of a function that is no strategy.

    Raises:
        ValueError: its docstring has no second paragraph that could be a formula.
    """
    text = inspect.getdoc(operator.attrgetter(call.removeprefix("jcl."))(jcl)) or ""
    paragraphs = [" ".join(each.split()) for each in text.split("\n\n")]
    formula = paragraphs[1] if len(paragraphs) > 1 else ""
    if with_formula and not re.search("[=<]", formula.split(". ")[0]):
        raise ValueError(f"{call}: the second paragraph of its docstring is no formula")
    found = [f"`{call}`", paragraphs[0], _paper(text) or "-", configs(call)]
    return [*found[:2], _code(formula), *found[2:]] if with_formula else found


def describe_baseline(name, what, call, config, method):
    """The cells of a baseline.

    Raises:
        ValueError: the config has no such method.
    """
    known = get_args(get_type_hints(load_config(ROOT / "configs" / config).Config)["method"])
    if method not in known:
        raise ValueError(f"{name}: configs/{config} has no method {method}")
    return [name, what, f"`{call}`", f"`jcl run configs/{config} --method {method}`"]


def configs(function):
    """The configs in which the function stands."""
    named = re.compile(re.escape(function) + r"\b")
    paths = sorted((ROOT / "configs").rglob("*.py"))
    uses = [path for path in paths if named.search(path.read_text())]
    return ", ".join(f"`{path.relative_to(ROOT)}`" for path in uses) or "-"


def page():
    """The text of docs/methods.md."""
    lines = [
        "# Methods",
        "",
        "Written by `python docs/methods.py` from the docstrings, which say more. Strategies stand "
        "in a `jcl.chain` with an optimizer; combinators change when, and on which params, a part "
        "of it acts; a memory is given to `replay` or `mir`; streams are of the baselines (joint, "
        "cumulative) and the scenarios; wrappers change the model; probes are given to "
        "`jcl.Experiment(probes=...)`.",
    ]
    heading = ("baseline", "what it is", "call", "command")
    lines += table("Baselines", heading, [describe_baseline(*each) for each in BASELINES])
    heading = ("method", "what it does", "formula", "paper", *map(str.lower, FIELDS), "configs")
    rows = []
    for name in jcl.strategies.__all__:
        found = describe(getattr(jcl.strategies, name))
        keys = ("paper", *FIELDS, "configs")
        rows.append([f"`{name}`", found["what"], _code(found["formula"]), *map(found.get, keys)])
    lines += table("Strategies", heading, rows)
    for title, (module, names, with_formula) in OTHERS.items():
        heading = ["function", "what it does", "paper", "configs"]
        if with_formula:
            heading.insert(2, "formula")
        rows = [describe_other(f"{module}.{name}", with_formula) for name in names]
        lines += table(title, heading, rows)
    return "\n".join(lines) + "\n"


def table(title, heading, rows):
    """The lines of a table under its title."""
    lines = ["", f"## {title}", "", f"| {' | '.join(heading)} |", "|---" * len(heading) + "|"]
    return lines + [
        "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in rows
    ]


def _paper(text):
    paper = PAPER.search(text)
    return paper and paper.group()


def _code(formula):
    """The formula up to the end of its sentence, as code."""
    return "`" + re.split(r"(?<=[\w)\]])\.(?= |$)", formula)[0].rstrip(".,") + "`"


if __name__ == "__main__":
    PAGE.write_text(page())
    sys.exit(0)
