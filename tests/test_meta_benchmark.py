"""benchmarks/meta.py: jcl and PyTorch compute the same, and the tables are printed."""

import importlib.util
import json
from pathlib import Path

import pytest
from everything import costly

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def script():
    pytest.importorskip("torch", reason="PyTorch is the peer: pip install torch")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        spec = importlib.util.spec_from_file_location("meta_benchmark", FOLDER / "meta.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        patch.setattr(module, "keep_freed_memory", lambda: None)
        patch.setattr(module, "GROWTH", (2,))
        yield module


@costly
def test_tables(script, tmp_path, capsys):
    out = tmp_path / "meta.json"
    words = ["--tiny", "--cases", "sinusoids", "--repeats", "1", "--out", str(out)]
    assert script.main(words) == 0
    found = json.loads(out.read_text())["sinusoids"]
    assert found["differences"] < script.TOLERANCE
    assert set(found["growth"]["temporary_bytes"]) == {"2 steps", "2 steps, remat"}
    printed = capsys.readouterr().out
    for peer in ("torch.func", "loop"):
        for ours in ("steps in one call", "step"):
            assert f"PyTorch, {peer} / jcl, {ours} " in printed


def test_convolutions_equal_pytorchs_at_odd_and_even_sizes(script):
    import torch_meta

    case = script.TINY["omniglot"]
    assert script.differences(torch_meta, case) < script.TOLERANCE


def test_a_difference_stops_it(script, monkeypatch):
    import torch_meta

    case = script.TINY["sinusoids"]
    other = script.meta_loss(case._replace(inner_rate=0.02))
    monkeypatch.setattr(script, "meta_loss", lambda case: other)
    with pytest.raises(AssertionError, match="torch.func: .* differs"):
        script.differences(torch_meta, case)


@pytest.mark.parametrize(
    ("words", "says"),
    [(["--repeats", "0"], "at least once"), (["--out", "nowhere/x.json"], "there is no folder")],
)
def test_what_cannot_end_is_not_begun(script, words, says, capsys):
    with pytest.raises(SystemExit):
        script.main(["--tiny", *words])
    assert says in capsys.readouterr().err
