"""docs/methods.md says what the docstrings say."""

import importlib.util
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"


def test_the_table_of_methods_is_that_of_the_docstrings():
    specification = importlib.util.spec_from_file_location("methods", DOCS / "methods.py")
    methods = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(methods)
    assert (DOCS / "methods.md").read_text() == methods.page(), "run: python docs/methods.py"
