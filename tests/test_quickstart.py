"""The quickstart's methods on its real text, at a size for tests."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from jcl import report
from jcl.__main__ import main

CONFIG = Path(__file__).parent.parent / "configs" / "quickstart.py"
SIZES = {
    "layers": 1,
    "width": 16,
    "heads": 2,
    "length": 32,
    "batch-size": 32,
    "boundary-batches": 1,
}
SMALL = [word for name, value in SIZES.items() for word in (f"--{name}", str(value))]
SMALL += ["--boundary-batches", "1"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["replay_ewc", "cumulative"])
def test_a_small_run(method, tmp_path):
    out = tmp_path / method
    arguments = ["run", str(CONFIG), "--method", method, "--steps", "3", "--out", str(out), *SMALL]
    assert main(arguments) == 0
    found = report.read(out)
    assert found["tasks"] == ["python_docs", "python_source", "german_home"]
    assert found["measure"] == "bits_per_byte"
    assert np.shape(found["matrix"]) == (1, 4, 3)
    assert np.all(np.asarray(found["matrix"])[0, -1] < np.asarray(found["matrix"])[0, 0])
    assert found["steps"] == 9
    assert found["traces"] == {"step": 1, "consolidate": 1, "evaluate": 1}
    assert found["metrics"]["forgetting"]["mean"] is not None
    hashes = json.loads((out / "config.json").read_text())["data"]
    assert all(re.fullmatch("[0-9a-f]{64}", value) for value in hashes.values())


def test_a_length_above_the_positions_is_refused(tmp_path, capsys):
    path = tmp_path / "longer.py"
    text = CONFIG.read_text()
    assert "positions=config.length" in text
    path.write_text(text.replace("positions=config.length", "positions=config.length // 2"))
    assert main(["run", str(path), "--out", str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err
    assert "128" in error
    assert "64" in error
    assert not (tmp_path / "run").exists()
