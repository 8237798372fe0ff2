"""The comparison with published tables: its verdict, its cells, its page and its command."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from reports import a_report

PATH = Path(__file__).parent.parent / "benchmarks" / "reproduce.py"
specification = importlib.util.spec_from_file_location("reproduce", PATH)
reproduce = importlib.util.module_from_spec(specification)
specification.loader.exec_module(reproduce)


@pytest.mark.parametrize(
    ("published", "interval", "mean", "ours", "expected"),
    [
        (80.0, None, 81.9, 0.1, "reproduced"),
        (80.0, None, 78.1, 0.1, "reproduced"),
        (80.0, None, 82.1, 0.1, "differs"),  # better is another result too
        (80.0, None, 77.9, None, "differs"),
        (80.0, None, 83.0, 3.1, "reproduced"),
        (80.0, 2.0, 83.0, 1.1, "reproduced"),
        (80.0, 2.0, 83.2, 1.1, "differs"),
    ],
)
def test_the_verdict_is_two_sided(published, interval, mean, ours, expected):
    assert reproduce.verdict(published, interval, mean, ours) == expected


@pytest.mark.parametrize(
    ("table", "number"),
    [
        ("permuted", 16), ("permuted_small", 6), ("rotated", 15), ("split", 34), ("mnist_360", 11),
        ("scenarios", 30),
    ],
)  # fmt: skip
def test_every_cell_has_a_run_of_its_own(table, number):
    cells = list(reproduce.cells(table))
    assert len(cells) == number
    assert len({tuple(arguments) for _, _, arguments, *_ in cells}) == number
    assert len({reproduce.place(table, name) for name, *_ in cells}) == number
    methods = {method for _, method, *_ in cells}
    assert methods & {"sgd", "adam"}
    assert methods & {"joint", "offline"}
    assert all(0 < chance < (published or 100) + 5 for *_, published, _, chance in cells)


@pytest.fixture
def page(tmp_path, monkeypatch):
    """A small page of one table's cells, no run folder, and what was run."""
    monkeypatch.setattr(reproduce, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(reproduce, "PAGE", tmp_path / "page.md")
    ran = []
    monkeypatch.setattr(
        reproduce.subprocess, "run", lambda command, **_: ran.append(command) or Failed()
    )
    reproduce.PAGE.write_text(
        "# Title\n\nA machine; Python 3.11.7; 2026-01-02.\n\n## S-MNIST\n\n"
        "`configs/mnist/split.py`; reproduced 9 of 9 run, 9 in all; 9 minutes.\n\n"
        "| method | published | jcl | difference | verdict | wall time | commit |\n"
        "|---|---|---|---|---|---|---|\n"
        "| sgd, class | 19.60 | 19.59 ± 0.08 (10) | -0.00 | differs: no | 90 s | c2794be7 |\n"
        "| lwf, task | 94.11 | 98.73 (3) | +4.62 | reproduced | 30 s | 40d7c63d |\n"
        "| gone, class | 19.60 | 19.62 ± 0.08 (10) | +0.02 | reproduced | 10 s | c2794be7 |\n"
        "| si, class | 19.27 | not run | | | | |\n"
        "| gem, 200, class | 80.11 | stopped at 60 (2) | - | differs | 9 s | 40d7c63d |\n"
    )
    return reproduce.PAGE, ran


class Failed:
    returncode = 1


def finish(name, mean, seeds, table="split"):
    """The folder of a finished run."""
    folder = reproduce.place(table, name)
    folder.mkdir(parents=True)
    metric = {"mean": mean, "ci95": 0.01, "values": []}
    found = a_report(seeds, metrics={"average_accuracy": metric})
    (folder / "report.json").write_text(json.dumps(found))
    began = {"git_commit": "0123456789", "devices": {"platform": "cpu"}}
    (folder / "config.json").write_text(json.dumps(began))
    for file in ("report.md", "matrix.png"):
        (folder / file).write_text("")
    return folder


def row(page, name):
    section = page.read_text().split("## S-MNIST")[1].split("\n## ")[0]
    (found,) = [line for line in section.splitlines() if line.startswith(f"| {name} |")]
    return found


def test_a_cell_without_a_folder_keeps_its_row(page):
    page, _ = page
    finish("er, 200, class", 0.80, 10)
    counts = reproduce.write_page()
    # The figures stand; the difference, the verdict and its reason follow from them.
    kept = "| sgd, class | 19.60 | 19.59 ± 0.08 (10) | -0.01 | reproduced | 90 s | c2794be7 |"
    assert row(page, "sgd, class") == kept
    assert row(page, "lwf, task").startswith("| lwf, task | 94.11 | 98.73 (3) | +4.62 | differs: ")
    assert row(page, "lwf, task").endswith(" | 30 s | 40d7c63d |")
    assert row(page, "er, 200, class").endswith(" | 60 s | 01234567 |")
    assert row(page, "si, class") == "| si, class | 19.27 | not run | | | | |"
    assert " | stopped at 60 (2) | - | differs | 9 s |" in row(page, "gem, 200, class")
    assert "gone" not in page.read_text()
    assert counts["split"] == (2, 4, 32)
    assert "reproduced 2 of 4 run, 32 in all; 3 minutes" in page.read_text()
    assert "2026-01-02" not in page.read_text()  # a row was written now
    assert "carries its commit only" in page.read_text()
    before = page.read_text()
    assert reproduce.write_page() == counts
    assert page.read_text() == before


def test_a_row_without_a_published_figure_has_no_verdict(page):
    page, ran = page
    assert reproduce.main(["split", "--only", "la_maml"]) == 1
    assert [command[command.index("--method") + 1] for command in ran] == ["la_maml"] * 2
    assert row(page, "la_maml, 200, task") == "| la_maml, 200, task | - | not run | | | | |"
    finish("la_maml, 200, class", 0.5, 3)
    counts = reproduce.write_page()
    expected = "| la_maml, 200, class | - | 50.00 ± 1.00 (3) | - | - | 60 s | 01234567 |"
    assert row(page, "la_maml, 200, class") == expected
    assert counts["split"] == (1, 3, 32)
    shutil.rmtree(reproduce.RUNS)
    assert reproduce.write_page() == counts
    assert row(page, "la_maml, 200, class") == expected
    assert "permuted_small.py`; no published figures; 0 minutes" in page.read_text()


def test_a_folder_speaks_before_the_page_and_a_page_of_kept_rows_keeps_its_machine(page):
    page, _ = page
    reproduce.write_page()
    assert "\nA machine; Python 3.11.7; 2026-01-02.\n" in page.read_text()
    finish("sgd, class", 0.25, 10)
    reproduce.write_page()
    assert row(page, "sgd, class").startswith("| sgd, class | 19.60 | 25.00 ± 1.00 (10) | +5.40 |")


def test_the_page_is_what_its_own_rows_give(tmp_path, monkeypatch):
    written = reproduce.PAGE.read_text()
    monkeypatch.setattr(reproduce, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(reproduce, "PAGE", tmp_path / "page.md")
    reproduce.PAGE.write_text(written)
    reproduce.write_page()
    assert reproduce.PAGE.read_text() == written, "run: python benchmarks/reproduce.py --report"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("splat", "'splat' is no table: name some of permuted, permuted_small, rotated"),
        ("split --only dre", "--only dre: no such method in split; known there are sgd, joint"),
        ("permuted --only lamaml", "der, derpp, la_maml"),
        ("rotated --only lwf", "--only lwf: no such method in rotated"),
        ("--only der split", "that is a table, not a method: name the tables first"),
        ("split --seeds 0", "--seeds 0: give at least 1"),
        ("split --seeds few", "invalid int value"),
    ],
)
def test_a_command_that_cannot_be_followed_ends_with_status_2(page, capsys, command, message):
    page, ran = page
    before = page.read_text()
    with pytest.raises(SystemExit) as end:
        reproduce.main(command.split())
    assert end.value.code == 2
    assert message in capsys.readouterr().err
    assert not ran
    assert page.read_text() == before


def test_a_run_of_fewer_seeds_is_not_the_cell(page, capsys):
    _, ran = page
    folder = finish("si, task", 0.96, 4)
    finish("gem, 200, task", 0.97, 3)  # which has three
    with pytest.raises(SystemExit) as end:
        reproduce.main(["split", "--only", "si", "gem"])
    assert end.value.code == 2
    found = capsys.readouterr().err
    assert f"{folder} (4)" in found
    assert "Remove these folders" in found
    assert "give --seeds 4" in found
    assert "gem" not in found.split("error:")[1]
    assert not ran
    assert reproduce.main(["split", "--only", "si", "--seeds", "4"]) == 1  # si, class failed
    assert len(ran) == 1
    assert reproduce.main(["split", "--only", "gem", "--report"]) == 0


def test_a_run_that_fails_is_told_by_status_1(page):
    _, ran = page
    finish("si, class", 0.2, 10)
    finish("si, task", 0.96, 12)
    assert reproduce.main(["split", "--only", "si"]) == 0
    assert not ran
    assert reproduce.main(["split", "--only", "gem"]) == 1
    assert [command[command.index("--seeds") + 1] for command in ran] == ["3", "3"]


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
def test_the_targets_run_every_cell_once_in_at_most_90_minutes():
    told = subprocess.run(
        ["make", "-n", "reproduce"], cwd=PATH.parent.parent, capture_output=True, text=True,
        check=True, env={"PATH": os.environ["PATH"]},
    ).stdout.replace("\\\n", " ")  # fmt: skip
    (parts,) = re.findall(r"--jobs=1 (.*)", told)
    assert parts.split() == [f"reproduce-{part}" for part in reproduce.PARTS]
    held, _ = reproduce.read_page()
    everything = []
    for command in re.findall(r"benchmarks/reproduce.py (.*)", told):
        table, *methods = command.replace("--only", "").split()
        found = reproduce.chosen([table], methods, 1)
        rows = [held[table, cell[0]] for table, cell in found if (table, cell[0]) in held]
        assert rows or "la_maml" in methods or table == "permuted_small"
        assert sum(reproduce.kept(row).seconds for row in rows) <= 90 * 60, command
        everything += [(table, cell[0]) for table, cell in found]
    assert len(everything) == len(set(everything)) == 112


def test_a_row_names_the_accelerator_and_keeps_it(page):
    path, _ = page
    folder = finish("sgd, class", 0.2, 10)
    began = {"git_commit": "0123456789", "devices": {"platform": "gpu", "kind": "Some GPU"}}
    (folder / "config.json").write_text(json.dumps(began))
    reproduce.write_page()
    written = row(path, "sgd, class")
    assert " s, Some GPU | 01234567 |" in written
    (folder / "report.json").unlink()
    reproduce.write_page()
    assert row(path, "sgd, class") == written
