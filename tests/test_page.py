"""`jcl report --html`: what the page says, that it is safe, and how a real browser shows it."""

import html.parser
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from reports import a_report

from jcl import InputError, folder, page, report
from jcl.__main__ import main

BROWSER = next(
    filter(None, map(shutil.which, ("chromium-headless-shell", "chromium", "google-chrome"))), None
)
ATTACK = '"><script>document.title="taken"</script><img src=x onerror=document.title="taken">'
VOID = {"meta", "br", "wbr", "img"}


def matrices(seeds, tasks, forgetting):
    """Accuracies of 0.9 just after learning that fall by so much at every further task."""
    noise = np.random.default_rng(0).normal(0, 0.01, (seeds, tasks + 1, tasks))
    rows, columns = np.indices((tasks + 1, tasks))
    learned = rows > columns
    fall = forgetting * (rows - columns - 1)
    return (np.where(learned, 0.9 - fall, 0.1) + noise).tolist()


def a_run(place, *, forgetting=0.1, number=3, replicas=3, lines=True, **fields):
    """A run folder of so many tasks, without checkpoints."""
    place.mkdir(parents=True)
    found = a_report(matrix=matrices(replicas, number, forgetting)) | fields
    folder.write_json(place / "report.json", found)
    described = {
        "schema": 1, "name": found["name"], "config": found["config"], "seeds": found["seeds"],
        "devices": {"platform": "cpu", "kind": "cpu", "count": 2},
    }  # fmt: skip
    folder.write_json(place / "config.json", described)
    if lines:
        with (place / "metrics.jsonl").open("w") as file:
            for task in found["tasks"]:
                for step in (5, 10):
                    loss = [3.0 / step, None]
                    line = {"kind": "step", "task": task, "step": step, "loss": loss}
                    file.write(json.dumps(line) + "\n")
                line = {"kind": "evaluation", "after": task, "task": task, "accuracy": [0.5]}
                file.write(json.dumps(line) + "\n")
    return place


class Tree(html.parser.HTMLParser):
    """The elements and the text of a page whose tags are all closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data if self.open[-1:] != ["style"] else ""


def test_what_the_page_holds(tmp_path, capsys):
    first = a_run(tmp_path / "a", config={"rate": 0.1, "width": 8})
    other = a_run(tmp_path / "b", forgetting=0.02, name="replay", config={"rate": 0.2, "width": 8})
    joint = a_run(
        tmp_path / "c", name="joint", matrix=[[[0.1] * 3, [0.8] * 3]] * 3, lines=False,
        config={"rate": 0.1, "width": 8},
    )  # fmt: skip
    out = tmp_path / "out.html"
    assert main(["report", str(first), str(other), str(joint), "--html", str(out)]) == 0
    assert "out.html" in capsys.readouterr().out
    tree = Tree(out.read_text())
    for heading in (
        "Results", "Every task over time", "Forgetting and transfer", "Differences", "Matrices",
        "Training loss", "Cost", "Configs",
    ):  # fmt: skip
        assert heading in tree.text
    summary = report.read(first)["metrics"]["forgetting"]
    assert f"{summary['mean']:.3f} ± {summary['ci95']:.3f}" in tree.text
    tags = [tag for tag, _ in tree.elements]
    assert tags.count("polyline") == 3 * 3 + 2  # every run in every task's panel, and two losses
    drawn = [each for tag, each in tree.elements if tag == "td" and "--v" in each.get("style", "")]
    assert len(drawn) == 2 * 4 * 3 + 2 * 3
    assert sum("just" in each["class"] for each in drawn) == 2 * 3
    assert "≠ rate" in tree.text
    assert "≠ width" not in tree.text
    assert "1 min 0 s" in tree.text
    assert "script" not in tags
    assert not re.search("https?:|url\\(|@import", out.read_text())


def test_differences_are_paired_over_common_seeds(tmp_path):
    """A difference that every seed has alike has no width, however far the seeds lie apart."""
    spread = np.asarray(matrices(4, 3, 0.1)) + np.array([0, 0.2, 0.4, 0.6])[:, None, None]
    first = a_run(tmp_path / "a", matrix=spread.tolist(), replicas=4)
    later = (spread + 0.05)[[3, 1, 2]].tolist()
    other = a_run(tmp_path / "b", name="b", matrix=later)
    for place, seeds in ((first, [0, 1, 2, 3]), (other, [3, 1, 7])):
        found = report.read(place)
        found["seeds"] = seeds
        folder.write_json(place / "report.json", found)
    runs = [page._read(place, report.read(place), "", 0) for place in (first, other)]
    assert "0.050 ± 0.000" not in page._difference(runs[1], runs[0], [1, 3], "forgetting")
    shown = page._difference(runs[1], runs[0], [1, 3], "average_accuracy")
    assert "better" in shown
    assert re.search(r"0\.050 ± \d\.\d\de-1[5-9]|0\.050 ± 0\.000", shown)
    text = Tree(page.make([first, other])).text
    assert re.search(r"b2.{0,4}0\.050 ± 0\.000", text)


@pytest.mark.parametrize(
    ("higher", "name", "change", "word"),
    [
        (True, "average_accuracy", 1, "better"),
        (False, "average_accuracy", 1, "worse"),
        (True, "forgetting", 1, "worse"),
        (False, "backward_transfer", 1, "better"),
        (True, "backward_transfer", -1, "worse"),
    ],
)
def test_which_sign_is_good(higher, name, change, word):
    def run(values):
        return page.Run(
            "", 0, {"seeds": [0, 1], "higher_is_better": higher}, np.zeros(0),
            {name: {"values": values}}, [], [], {}, {},
        )  # fmt: skip

    one, other = run([change * 1.0, change * 1.1]), run([0.0, 0.0])
    assert f"class={word}" in page._difference(one, other, [0, 1], name)
    assert "class=undecided" in page._difference(run([1.0, -1.0]), other, [0, 1], name)
    assert "class" not in page._difference(one, other, [0], name)


def attacked(place):
    tasks = [ATTACK, "a_b/c" * 30, "&amp;"]
    return a_run(
        place, name=ATTACK, measure=ATTACK, config={ATTACK: ATTACK, "b": [ATTACK]},
        versions={ATTACK: ATTACK},
    ), tasks  # fmt: skip


def test_strings_of_a_run_are_escaped(tmp_path):
    place, tasks = attacked(tmp_path / "a")
    found = report.read(place) | {"tasks": tasks}
    folder.write_json(place / "report.json", found)
    described = folder.read_config(place / "config.json") | {"devices": {"kind": ATTACK}}
    folder.write_json(place / "config.json", described)
    lines = (place / "metrics.jsonl").read_text().replace("task 0", ATTACK.replace('"', '\\"'))
    (place / "metrics.jsonl").write_text(lines)
    text = page.make([place, place])
    tree = Tree(text)
    assert tree.text.count(ATTACK) > 5
    assert "&amp;" in tree.text  # twice escaped is once shown
    assert not {"script", "img"} & {tag for tag, _ in tree.elements}
    names = {name for _, attributes in tree.elements for name in attributes}
    assert not [name for name in names if name.startswith("on")]
    policy = [each for _, each in tree.elements if each.get("http-equiv")]
    assert policy[0]["content"].startswith("default-src 'none'")


def test_numbers_of_any_size_are_drawn(tmp_path):
    huge = [[[1e308, -1e308, 0.0]] * 4] * 3
    place = a_run(tmp_path / "a", matrix=huge, wall_seconds=1e308, step_seconds_median=1e308)
    text = page.make([place, a_run(tmp_path / "b", name="b")])
    assert not re.search('[ :>"](nan|inf)', text)
    Tree(text)


def test_what_cannot_be_drawn_is_refused(tmp_path, monkeypatch):
    place = a_run(tmp_path / "a")
    monkeypatch.setattr(page, "CELLS", 35)
    with pytest.raises(InputError, match="36 cells, and a page of more than 35"):
        page.make([place])


@pytest.mark.parametrize("line", ['{"kind": 1}', "{", '{"kind": "step"}', "\xff"])
def test_lines_that_are_no_metrics_are_refused(line, tmp_path):
    place = a_run(tmp_path / "a")
    with (place / "metrics.jsonl").open("ab") as file:
        file.write(line.encode("latin-1") + b"\n")
    with pytest.raises(InputError, match=r"metrics\.jsonl, line 10, is no line of metrics"):
        page.make([place])


def test_refusals_of_the_command(tmp_path, capsys):
    assert main(["report", str(tmp_path), "--html", str(tmp_path / "out.html")]) == 1
    assert "report.json cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "out.html").exists()
    place = a_run(tmp_path / "a")
    assert main(["report", str(place), "--html", str(tmp_path / "no" / "out.html")]) == 1
    assert "No such file" in capsys.readouterr().err


def test_runs_of_other_streams_stand_apart(tmp_path):
    first, other = a_run(tmp_path / "a"), a_run(tmp_path / "b", number=2)
    text = Tree(page.make([first, other])).text
    assert "Stream 1: task 0, task 1, task 2" in text
    assert "Stream 2: task 0, task 1" in text
    assert "Differences" not in text
    assert str(other) in text  # both are named naive


def test_of_a_grid_the_best_setting_is_shown(tmp_path):
    found = report.make(
        name="naive", tasks=["a", "b"], measure="accuracy", higher_is_better=True,
        seeds=[0, 1, 0, 1], matrix=matrices(2, 2, 0.5) + matrices(2, 2, 0.1), wall_seconds=1.0,
        steps=1, step_seconds_median=None, traces={}, config={"rate": 0.1}, versions={},
        settings=[{"rate": 0.1}] * 2 + [{"rate": 0.2}] * 2,
    )  # fmt: skip
    text = Tree(page.make([a_run(tmp_path / "a", **found)])).text
    assert "naive, rate 0.2" in text
    best = found["by_setting"][1]["metrics"]["forgetting"]
    assert f"{best['mean']:.3f} ± {best['ci95']:.3f}" in text


# In a browser


def dumped(path, width, text):
    """What a script in a copy of the page found, which its own policy would not have let run."""
    measure = """<script>
    const wide = [...document.querySelectorAll('main *')].filter(each =>
        !each.closest('.scroll') && each.getBoundingClientRect().right > innerWidth + 1);
    const svgs = [...document.querySelectorAll('.plot svg')].map(each => each.clientHeight);
    const found = JSON.stringify({
        title: document.title, width: innerWidth,
        page: document.documentElement.scrollWidth, seen: document.documentElement.clientWidth,
        wide: wide.map(each => each.outerHTML.slice(0, 80)), least: Math.min(...svgs),
    });
    document.body.textContent = found;
    </script>"""
    path.write_text(re.sub("<meta http-equiv[^>]*>", "", text).replace("</html>", measure))
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900",
        "--dump-dom", path.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return json.loads(re.search(r"<body>(\{.*\})", done.stdout, re.S)[1])


@pytest.mark.skipif(BROWSER is None, reason="needs a browser: apt-get install chromium")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_it_at_phone_and_desk_width(width, tmp_path):
    place, _ = attacked(tmp_path / "a")
    runs = [place, *(a_run(tmp_path / str(n), name=f"run_{n}" * 4, number=9) for n in range(9))]
    found = dumped(tmp_path / "page.html", width, page.make(runs))
    assert found["width"] == width
    assert found["page"] <= found["seen"]  # nothing to scroll sideways but tables within themselves
    assert found["wide"] == []
    assert found["least"] > 100
    assert found["title"].startswith("jcl: ")  # an attack would have set it
