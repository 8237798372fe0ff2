"""Writes docs/methods.md, the table of all methods, from their docstrings.

Command:  python docs/methods.py
"""

import inspect
import re
import sys
from pathlib import Path

import jcl

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "methods.md"
# Title: (module, functions); one line each, by the docstring's first sentence and its paper.
OTHERS = {
    "Memories": (
        "memory",
        (
            "reservoir",
            "ring",
            "class_balanced",
            "greedy_balanced",
            "herding",
            "priority",
            "balanced",
        ),
    ),
    "Streams": (
        "data",
        (
            "joint",
            "cumulative",
            "blurry",
            "fuzzy",
            "labelled",
            "permuted",
            "rotated",
            "split",
            "mnist_360",
        ),
    ),
    "Wrappers of models": (
        "models",
        ("lora", "adapters", "prompts", "cosine_head", "module_dropout"),
    ),
}
PAPER = re.compile(
    r"[A-Z][\w'-]+(?: et al\.| and [A-Z][\w-]+)?,? (?:\((?:19|20)\d\d\)|(?:19|20)\d\d)"
)
FIELDS = ("Stores", "Place", "Scenario")


def describe(function):
    """What a method's docstring says of it: a dict of the table's columns.

    Raises:
        ValueError: the docstring lacks one of them.
    """
    name, text = function.__name__, inspect.getdoc(function) or ""
    paragraphs = [" ".join(each.split()) for each in re.split(r"\n\s*\n", text)]
    paper = PAPER.search(text)
    found = {"what": paragraphs[0], "formula": paragraphs[1], "paper": paper and paper.group()}
    for field in FIELDS:
        line = re.search(rf"^{field}: (.*?)\.\s*$(?=\n[A-Z>]|\n\n|\Z)", text, re.M | re.S)
        found[field] = line and " ".join(line.group(1).split())
    missing = [field for field, value in found.items() if not value]
    if missing:
        raise ValueError(f"{name}: its docstring lacks {', '.join(missing)}")
    return {**found, "configs": configs(f"jcl.{name}")}


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
        "in a `jcl.chain` with an optimizer; a memory is given to `replay` or `mir`; streams are "
        "of the baselines (joint, cumulative) and the scenarios; wrappers change the model.",
    ]
    lines += [
        "", "## Strategies", "",
        "| method | what it does | formula | paper | stores | place | scenario | configs |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name in jcl.strategies.__all__:
        found = describe(getattr(jcl.strategies, name))
        keys = ("paper", *FIELDS, "configs")
        cells = [f"`{name}`", found["what"], _code(found["formula"]), *map(found.get, keys)]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    for title, (module, names) in OTHERS.items():
        lines += ["", f"## {title}", ""]
        heading = ["function", "what it does", "paper", "configs"]
        if module == "models":
            heading.insert(2, "formula")
        lines += ["| " + " | ".join(heading) + " |", "|---" * len(heading) + "|"]
        for name in names:
            text = inspect.getdoc(getattr(getattr(jcl, module), name)) or ""
            paragraphs = [" ".join(each.split()) for each in text.split("\n\n")]
            paper, call = PAPER.search(text), f"jcl.{module}.{name}"
            cells = [f"`{call}`", paragraphs[0], paper.group() if paper else "-", configs(call)]
            if module == "models":
                cells.insert(2, _code(paragraphs[1]))
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _code(formula):
    """The formula up to the end of its sentence, as code."""
    return "`" + re.split(r"(?<=[\w)\]])\.(?= |$)", formula)[0].rstrip(".,") + "`"


if __name__ == "__main__":
    PAGE.write_text(page())
    sys.exit(0)
