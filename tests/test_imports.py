"""Who may import whom, and what importing jcl does not do."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "jcl"

# part, a module or a package: the others it may import, errors, checks and strict aside; within a
# package its modules may import each other
ALLOWED = {
    "errors": set(),
    "stopping": set(),
    "checks": set(),
    "hosts": set(),
    "strict": set(),
    "allocator": set(),
    "paths": set(),
    "core": {"paths"},
    "memory": {"core", "losses"},
    "strategies": {"core", "losses", "memory", "paths"},
    "learner": {"core"},
    "losses": set(),
    "metrics": set(),
    "drift": set(),
    "prequential": set(),
    "probes": set(),
    "models": {"paths"},
    "data": set(),
    "meta": {"core", "losses", "models", "paths", "sharding"},
    "sharding": {"paths"},
    "checkpoint": {"hosts"},
    "folder": set(),
    "progress": set(),
    "report": {"folder", "grid", "metrics"},
    "page": {"checkpoint", "folder", "metrics", "report"},
    "tracking": {"folder"},
    "experiment": {"core", "data", "learner", "losses", "models"},
    "grid": {"experiment", "space"},
    "hlo": set(),
    "plan": {"experiment", "grid", "hlo", "learner", "memory", "program", "sharding"},
    "program": {"data", "experiment", "grid", "learner", "memory", "sharding"},
    "answer": {
        "checkpoint", "core", "experiment", "folder", "learner", "memory", "models",
        "program",
    },
    "survivors": {"grid"},
    "online": {
        "allocator", "checkpoint", "core", "data", "experiment", "folder", "forgotten", "learner",
        "losses", "memory", "program", "stopping",
    },
    "space": set(),
    "search": {"data", "experiment", "folder", "grid", "program", "run", "space"},
    "by_path": {"core"},
    "schedules": {"core"},
    "select": {
        "data", "experiment", "folder", "grid", "learner", "memory", "program", "run", "search",
    },
    "forgotten": {"folder"},
    "forget": {"answer", "checkpoint", "folder", "forgotten", "memory"},
    "privacy": {"core", "experiment"},
    "mixup": {"paths"},
    "run": {
        "allocator", "checkpoint", "experiment", "folder", "forgotten", "grid", "hosts",
        "learner", "privacy", "program", "progress", "report", "sharding", "stopping",
        "survivors", "tracking",
    },
    "__main__": {
        "allocator", "answer", "checkpoint", "data", "folder", "forget", "grid", "hosts",
        "memory", "models", "online", "page", "plan", "report", "run", "search", "select",
        "sharding", "stopping", "strategies",
    },
    "__init__": {
        "by_path", "core", "data", "drift", "experiment", "learner", "losses", "memory",
        "meta", "mixup", "models", "online", "privacy", "probes", "schedules", "space",
        "stopping", "strategies",
    },
}  # fmt: skip


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "jcl":
            inner = node.module.split(".")[1:]
            yield from [inner[0]] if inner else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from [a.name.split(".")[1] for a in node.names if a.name.startswith("jcl.")]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.name)
def test_imports_point_one_way(path):
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert set(imported(path)) - {part, "errors", "checks", "strict"} <= ALLOWED[part]


def test_no_tensorflow_no_torch_no_plotting_at_import():
    code = (
        "import sys, jcl, jcl.__main__; "
        "print([m for m in ('tensorflow', 'torch', 'matplotlib', 'transformers') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_strategies_stay_short():
    for path in (PACKAGE / "strategies").glob("*.py"):
        tree = ast.parse(path.read_text())
        docstrings = sum(
            node.end_lineno - node.lineno + 1
            for node in ast.walk(tree)
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        )
        assert len(path.read_text().splitlines()) - docstrings <= 120, path.name
