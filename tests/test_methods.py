"""docs/methods.md says what the docstrings say."""

import importlib.util
import re
from pathlib import Path

import pytest

import jcl

DOCS = Path(__file__).parent.parent / "docs"
specification = importlib.util.spec_from_file_location("methods", DOCS / "methods.py")
methods = importlib.util.module_from_spec(specification)
specification.loader.exec_module(methods)


def test_the_table_of_methods_is_that_of_the_docstrings():
    assert (DOCS / "methods.md").read_text() == methods.page(), "run: python docs/methods.py"


def test_every_part_that_a_chain_or_a_run_takes_has_a_row():
    page = (DOCS / "methods.md").read_text()
    parts = [f"jcl.{name}" for name in ("only", "per_task", "periodically", "scheduled")]
    parts += [f"jcl.probes.{name}" for name in ("dormant_units", "effective_rank")]
    parts += [
        f"jcl.{module.__name__.removeprefix('jcl.')}.{name}"
        for module in (jcl.data, jcl.memory)
        for name in vars(module)
        if getattr(getattr(module, name), "__annotations__", {}).get("return")
        in (jcl.data.Stream, jcl.memory.Policy)
        and not name.startswith("_")
        and name != "of"  # what a strategy does with its capacity
    ]
    assert len(parts) == 6 + 14 + 8
    for part in parts:
        assert f"| `{part}` |" in page, part
    for baseline in ("naive", "joint", "cumulative", "per-task", "linear head"):
        assert f"| {baseline} |" in page


def test_a_baseline_is_built_of_what_there_is():
    for name, _, call, _, _ in methods.BASELINES:
        for path in re.findall(r"jcl\.([\w.]+)", call):
            module, _, function = path.rpartition(".")
            assert callable(getattr(getattr(jcl, module) if module else jcl, function)), name
    with pytest.raises(ValueError, match="no method nothing"):
        methods.describe_baseline("nothing", "", "", "mnist/baselines.py", "nothing")
    with pytest.raises(ValueError, match="no formula"):
        methods.describe_other("jcl.per_task", with_formula=True)
