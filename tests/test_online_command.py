"""`jcl online`: whatever ends it, it goes on at the very line, with the same bits."""

import contextlib
import io
import json
import os
import random
import re
import shlex
import shutil
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from everything import ALL
from forked import Runs
from rich.console import Console

from jcl import checkpoint, folder
from jcl.__main__ import load_config, main
from jcl.answer import learned_params
from jcl.errors import InputError
from jcl.online import command, copying
from jcl.online.journal import Journal
from jcl.online.service import online
from jcl.online.waiting import Timing

pytestmark = pytest.mark.xdist_group("online")  # they share one process that forks
CONFIG = Path(__file__).parent / "configs" / "online.py"
LINES = 20


def some_lines(number=LINES):
    """Texts with labels, and texts whose labels come up to ten lines later."""
    draw, found, open_ = random.Random(0), [], []
    for place in range(number):
        if open_ and draw.random() < 0.4:
            found.append({"id": (each := open_.pop(0))[0], "label": each[1]})
            continue
        label = draw.choice("abc")
        record = {"text": label * 3 + draw.choice("xyz"), "time": place}
        if draw.random() < 0.5:
            open_.append((place, label))
            found.append(record | {"id": place})
        else:
            found.append(record | {"label": label})
    return [json.dumps(each).encode() + b"\n" for each in found]


@pytest.fixture(scope="module")
def runs():
    runs = Runs()
    yield runs
    runs.close()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("input") / "lines.jsonl"
    path.write_bytes(b"".join(some_lines()))
    return path


def plain(leaf):
    return jax.random.key_data(leaf) if "key" in str(leaf.dtype) else leaf


def assert_same_end(found, expected, *, same=("predictions.jsonl", "metrics.jsonl")):
    for name in same:
        assert (found / name).read_bytes() == (expected / name).read_bytes(), name
    one, other = (checkpoint.read(place / "checkpoints") for place in (found, expected))
    assert one.keys() == other.keys()
    for path, leaf in one.items():
        np.testing.assert_array_equal(*map(plain, (leaf, other[path])), err_msg=path)
    ours, theirs = (json.loads((each / "report.json").read_text()) for each in (found, expected))
    for name in ("measures", "window", "worst_window", "counts"):
        assert ours[name] == theirs[name], name


def learned(place):
    """The numbers of the lines that were learned from, in order."""
    lines = (place / "metrics.jsonl").read_text().splitlines()
    return [number for line in lines for number in json.loads(line)["lines"]]


def send(pipe, place, lines, done):
    """What a producer does: it sends what is not on disk yet, as soon as somebody reads."""
    while not done.is_set():
        try:
            out = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # nobody reads
            time.sleep(0.005)
            continue
        begin = count(place / "input.jsonl")
        with contextlib.suppress(BrokenPipeError):
            for number, line in enumerate(lines[begin:]):
                cut = len(line) // 2  # a kill may leave a part of a line
                os.write(out, line[:cut])
                if number % 4 == 0:
                    time.sleep(0.002)
                os.write(out, line[cut:])
        os.close(out)
        return


def until_done(runs, place, arguments, *, kills=0, pipe=None, seconds=1.0, seed=0):
    """`jcl online`, killed so many times at any moment, half of them right after a checkpoint."""
    draw = random.Random(seed)
    while True:
        done = threading.Event()
        sender = threading.Thread(target=send, args=(pipe, place, some_lines(), done))
        if pipe:
            sender.start()
        moment = draw.uniform(0, seconds * (0.05 if kills % 2 else 0.7)) if kills else None
        saved = str(place / "checkpoints") if kills % 2 else None
        ended = runs(
            *arguments, "--out", place, command="online", config=CONFIG, seconds=moment,
            saved=saved if moment is not None else None,
        )  # fmt: skip
        done.set()
        if pipe:
            sender.join()
        if ended["code"] == 0:
            return ended["seconds"]
        assert ended["code"] == -9, ended["output"]
        kills -= 1


ARGUMENTS = ("--save-seconds", "0", "--wait-ms", "1e6", "--drift", "--delay", "2", "--window", "5")


@pytest.fixture(scope="module")
def whole(runs, source, tmp_path_factory):
    """A run that nothing disturbed, and the seconds that it took."""
    place = tmp_path_factory.mktemp("runs") / "whole"
    return place, until_done(runs, place, ("--input", source, *ARGUMENTS))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["file", "pipe"])
def test_killed_at_random_moments_it_ends_with_the_same_bits(kind, runs, whole, source, tmp_path):
    pipe = tmp_path / "pipe" if kind == "pipe" else None
    if pipe:
        os.mkfifo(pipe)
    place, arguments = tmp_path / "killed", ("--input", pipe or source, *ARGUMENTS)
    until_done(runs, place, arguments, kills=40 if ALL else 2, pipe=pipe, seconds=whole[1])
    assert_same_end(place, whole[0])
    assert (place / "input.jsonl").read_bytes() == b"".join(some_lines())
    told = [json.loads(line) for line in (place / "predictions.jsonl").read_text().splitlines()]
    assert [each["line"] for each in told] == list(range(1, LINES + 1))
    lines = learned(place)
    assert len(lines) == len({*lines}) > LINES / 3
    # All that were not learned wait, have no label coming, or are labels themselves.
    counts = json.loads((place / "report.json").read_text())["counts"]
    labels = sum(b'"text"' not in line for line in some_lines())
    assert counts["waiting"] + counts["learned"] + labels == LINES
    assert counts["examples"] == LINES - labels


def count(path):
    """Of its lines."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def once(place, source, *, config=None, size=4, wait_ms=1e6, **options):
    """In this process."""
    module = load_config(CONFIG)
    timing = {name: options.pop(name) for name in ("delay", "window") if name in options}
    return online(
        module.build,
        config or module.Config(),
        config_file=CONFIG,
        input=str(source),
        out=place,
        timing=Timing(batch=size, **timing),
        wait_ms=wait_ms,
        **options,
    )[0]


def test_micro_batches_that_the_clock_has_closed_are_the_same_when_it_goes_on(tmp_path, source):
    """From what a run has written of its input alone, as a kill before any checkpoint leaves it."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    place = tmp_path / "timed"

    def drip():
        with open(pipe, "wb", buffering=0) as out:
            for number, line in enumerate(some_lines()):
                out.write(line)
                while number == 0 and not count(place / "predictions.jsonl"):
                    time.sleep(0.01)  # until it is compiled
                time.sleep(0.03 if number % 3 == 0 else 0)

    sender = threading.Thread(target=drip)
    sender.start()
    once(place, pipe, wait_ms=2)
    sender.join()
    ends = [json.loads(line)["end"] for line in (place / "batches.jsonl").read_text().splitlines()]
    assert ends[-1] == LINES
    assert len(ends) > LINES / 4 + 1  # some were closed before they were full
    again = tmp_path / "again"
    shutil.copytree(place, again)
    for name in ("predictions.jsonl", "metrics.jsonl", "report.json"):
        (again / name).unlink()
    shutil.rmtree(again / "checkpoints")
    sender = threading.Thread(target=lambda: open(pipe, "wb").close())
    sender.start()
    once(again, pipe, wait_ms=1e6)
    sender.join()
    assert (again / "batches.jsonl").read_bytes() == (place / "batches.jsonl").read_bytes()
    assert_same_end(again, place)


def test_a_bad_line_ends_it_behind_those_before_and_can_be_left_out(tmp_path):
    source, place = tmp_path / "lines.jsonl", tmp_path / "run"
    lines = some_lines(8)
    lines[5] = b'{"text": "aa", "label": "z"}\n'
    long = b'{"text": "' + b"a" * 10_000_000 + b'"}\n'
    source.write_bytes(b"".join([*lines, b"\n", long, *some_lines(2)]).rstrip(b"\n"))
    with pytest.raises(
        InputError, match=r"line 6 cannot be used: its label is none of.*--skip-bad"
    ):
        once(place, source)
    assert len((place / "predictions.jsonl").read_text().splitlines()) == 4
    report = once(place, source, skip_bad=True)
    assert report["counts"]["skipped"] == 2
    assert report["counts"]["lines"] == 12
    told = [json.loads(line) for line in (place / "predictions.jsonl").read_text().splitlines()]
    assert [each["line"] for each in told] == list(range(1, 13))
    assert (
        told[5]["skipped"] == "its label is none of the 3 classes (a, b, c, ...)"
    )  # not its value
    assert told[8]["skipped"] == "it is empty"
    assert "longer than" in told[9]["skipped"]
    assert told[10]["prediction"] in "abc"
    # The end of the input is no end of the run: what is added is learned from.
    with source.open("ab") as file:
        file.write(b"\n" + some_lines(3)[2])
    assert once(place, source, skip_bad=True)["counts"]["lines"] == 13
    # Other lines than those that came are refused.
    source.write_bytes(source.read_bytes().replace(b"z", b"y"))
    with pytest.raises(InputError, match=r"is not the file that .*input\.jsonl was copied from"):
        once(place, source, skip_bad=True)
    with pytest.raises(InputError, match="data.delay was .0. and is now .1."):
        once(place, source, delay=1)


@pytest.mark.parametrize("kind", ["file", "pipe"])
def test_a_last_line_that_is_still_written_is_used_once_it_is_whole(kind, tmp_path):
    source, place = tmp_path / "lines.jsonl", tmp_path / "run"
    place.mkdir()

    def read(content, used):
        if kind == "pipe":  # which is sent what is not on disk yet
            begin = (place / "input.jsonl").read_bytes().rfind(b"\n") + 1 if used[1] else 0
            source.unlink(missing_ok=True)
            os.mkfifo(source)
            out = threading.Thread(target=lambda: source.write_bytes(content[begin:]))
            out.start()
        else:
            source.write_bytes(content)
        options = dict(zip(("lines", "offset", "ends"), used, strict=True))
        found = Journal(place, str(source), follow=False, **options)
        found.start()
        lines = [line.content for line in found.next(8, 1e6, lambda: False)]
        assert not found.next(8, 1e6, lambda: False)
        used = found.lines, found.offset, found.ends
        found.close()
        if kind == "pipe":
            out.join()
        return lines, found.torn, used

    lines, torn, used = read(b'{"a": 1}\n{"b": 2', (0, 0, 0))
    assert (lines, torn) == ([b'{"a": 1}'], True)
    lines, torn, used = read(b'{"a": 1}\n{"b": 23}', used)  # the end alone is missing
    assert (lines, torn) == ([b'{"b": 23}'], False)
    lines, torn, used = read(b'{"a": 1}\n{"b": 23}\n{"c": 4}\n', used)
    assert (lines, torn) == ([b'{"c": 4}'], False)


def test_a_run_says_that_the_last_line_is_not_used_yet(tmp_path):
    source = tmp_path / "lines.jsonl"
    source.write_bytes(b'{"text": "a", "label": "a"}\n{"text": "b", "lab')
    shown = io.StringIO()
    report = once(tmp_path / "run", source, skip_bad=True, console=Console(file=shown, width=500))
    assert (report["counts"]["lines"], report["counts"]["skipped"]) == (1, 0)
    assert "line 2, the last one, has no end yet" in shown.getvalue()
    with source.open("ab") as file:
        file.write(b'el": "b"}\n')
    assert once(tmp_path / "run", source)["counts"]["learned"] == 2


def test_a_growing_file_is_followed_and_a_signal_leaves_a_checkpoint(runs, tmp_path, source):
    growing, place = tmp_path / "growing.jsonl", tmp_path / "run"
    lines = some_lines()
    growing.write_bytes(b"".join(lines[:7]))

    def grow():
        predictions = place / "predictions.jsonl"
        while count(predictions) < 7:
            time.sleep(0.01)
        with growing.open("ab", buffering=0) as file:
            for line in lines[7:]:
                file.write(line)

    writer = threading.Thread(target=grow)
    writer.start()
    ended = runs(
        "--input", growing, "--follow", "--wait-ms", "20", "--out", place,
        command="online", config=CONFIG, signalled=[str(place / "predictions.jsonl"), LINES],
    )  # fmt: skip
    writer.join()
    assert ended["code"] == 75, ended["output"]
    assert f"stopped by SIGTERM behind line {LINES}; the same command goes on" in ended["output"]
    state = checkpoint.read(place / "checkpoints")
    assert int(state["step"]) == len((place / "metrics.jsonl").read_text().splitlines())
    assert (place / "input.jsonl").read_bytes() == growing.read_bytes()


def test_a_file_that_is_followed_and_cut_is_refused(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"1\n2\n3\n")
    found = Journal(tmp_path, str(path), follow=True, lines=0, offset=0, ends=0)
    found.start()
    assert [line.content for line in found.next(3, 1.0, lambda: False)] == [b"1", b"2", b"3"]
    path.write_bytes(b"4\n")
    with pytest.raises(InputError, match="was cut, moved or replaced after 6 bytes"):
        found.next(3, 1.0, lambda: False)
    found.close()


def test_a_micro_batch_is_closed_when_its_first_line_has_waited_and_what_is_torn_is_cut(tmp_path):
    (tmp_path / "input.jsonl").write_bytes(b"1\n2\n3\n4")
    (tmp_path / "batches.jsonl").write_bytes(b'{"end": 2}\n{"en')
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    out = os.open(pipe, os.O_RDWR)
    found = Journal(tmp_path, str(pipe), follow=False, lines=0, offset=0, ends=0)
    found.start()
    assert [line.content for line in found.next(8, 0.05, lambda: False)] == [b"1", b"2"]
    begun = time.monotonic()
    assert [line.content for line in found.next(8, 0.05, lambda: False)] == [b"3"]
    assert time.monotonic() - begun < 5
    os.write(out, b"five\nsix\nsev")
    lines = found.next(2, 60.0, lambda: False)
    assert [(line.number, line.content) for line in lines] == [(4, b"five"), (5, b"six")]
    assert all(line.arrived is not None for line in lines)
    assert found.next(2, 60.0, lambda: True) is None
    found.close()
    os.close(out)
    assert (tmp_path / "input.jsonl").read_bytes() == b"1\n2\n3\nfive\nsix\nsev"
    assert (tmp_path / "batches.jsonl").read_bytes() == b'{"end": 2}\n{"end": 3}\n{"end": 5}\n'


def test_a_pipes_writer_waits_where_too_much_lies_ahead(tmp_path, monkeypatch):
    monkeypatch.setattr(copying, "AHEAD_BYTES", 100_000)
    path = tmp_path / "lines"
    path.write_bytes(b"0123456789\n" * 100_000)
    found = Journal(tmp_path, str(path), follow=False, lines=0, offset=0, ends=0)
    found.start()
    found.next(1, 1.0, lambda: False)
    time.sleep(0.3)
    assert (tmp_path / "input.jsonl").stat().st_size < 300_000
    assert sum(iter(lambda: len(found.next(9999, 1.0, lambda: False)), 0)) == 99_999
    found.close()


def test_a_language_model_online(tmp_path, capsys):
    source = tmp_path / "texts.jsonl"
    source.write_text('{"text": "abab"}\n' * 20)
    module = load_config(CONFIG)
    config = module.Config(kind="language", method="sgd", learning_rate=1.0)
    report = once(tmp_path / "run", source, config=config, window=4)
    assert report["window"]["bits_per_byte"] < report["measures"]["bits_per_byte"] < 9
    told = json.loads((tmp_path / "run" / "predictions.jsonl").read_text().splitlines()[0])
    assert told["line"] == 1
    assert told["loss"] == pytest.approx(np.log(258), rel=0.1)
    assert report["worst_window"]["loss"] > report["window"]["loss"]
    assert report["traces"] == {"predict": 1, "learn": 1}
    shown = (tmp_path / "run" / "report.md").read_text()
    assert "bits_per_byte" in shown
    assert "20 lines" in shown
    known = json.loads((tmp_path / "run" / "config.json").read_text())["known"]
    assert known["fields"] == {"text": "text", "label": "label", "identity": "id"}
    assert main(["report", str(tmp_path / "run")]) == 0
    assert "bits_per_byte" in capsys.readouterr().out
    page = tmp_path / "out.html"
    assert main(["report", str(tmp_path / "run"), "--html", str(page)]) == 1
    assert "a run of `jcl online`, and the page shows" in " ".join(capsys.readouterr().err.split())
    assert not page.exists()
    params = learned_params(tmp_path / "run", 0)
    assert {name: leaf.shape for name, leaf in params.items()} == {
        "table": (258, 8),
        "out": (8, 258),
    }


def test_the_example_of_the_help_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        main(["online", "--help"])
    assert "goes on after any end" in re.sub(r"\s+", " ", capsys.readouterr().out)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(CONFIG.parent.parent.parent / "configs")
    examples = [line.strip() for line in command.DESCRIPTION.splitlines() if line[:2] == "  "]
    words = shlex.split(examples[0])
    assert words[:2] == ["printf", "%s\\n"]
    assert words[-2] == ">"
    (tmp_path / words[-1]).write_text("".join(f"{each}\n" for each in words[2:-2]))
    arguments = shlex.split(examples[1])
    assert arguments[0] == "jcl"
    assert main(arguments[1:]) == 0
    place = tmp_path / "runs" / "online" / "classifier"
    report = json.loads((place / "report.json").read_text())
    assert report["counts"]["learned"] == 2
    shown = capsys.readouterr().out
    assert "2 lines" in shown
    assert "fewer than 500 labels, so no worst 500;" in shown
    told = (place / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["target"] for line in told] == ["yes", "no"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lines": None}, "does not say how a line becomes an example"),
        ({"classes": 4}, "The lines have 3 labels and the model gives 4 classes"),
    ],
)
def test_an_experiment_that_does_not_fit_is_refused_before_anything_is_written(
    change, message, tmp_path, source
):
    module = load_config(CONFIG)

    def build(config):
        import dataclasses

        made = module.build(config)
        if "classes" in change:
            other = module.build(dataclasses.replace(config, classes=4))
            return dataclasses.replace(other, lines=made.lines)
        stream = jax.tree_util.Partial  # anything that is not None
        return dataclasses.replace(made, lines=None, stream=stream, steps=1)

    with pytest.raises(InputError, match=message):
        online(
            build,
            module.Config(),
            config_file=CONFIG,
            input=str(source),
            out=tmp_path / "run",
            timing=Timing(batch=2),
        )
    assert not (tmp_path / "run").exists()


def test_a_run_begun_from_a_file_goes_on_by_another_name_as_from_a_pipe(tmp_path):
    source, pipe, place = tmp_path / "lines.jsonl", tmp_path / "pipe", tmp_path / "run"
    lines = some_lines(6)
    source.write_bytes(b"".join(lines[:4]))
    once(place, source)
    os.mkfifo(pipe)
    sender = threading.Thread(target=lambda: pipe.write_bytes(b"".join(lines[4:])))
    sender.start()
    assert once(place, pipe)["counts"]["lines"] == 6
    sender.join()
    assert (place / "input.jsonl").read_bytes() == b"".join(lines)
    source.write_bytes(b"".join(lines[1:]))
    with pytest.raises(InputError, match="is not the file"):
        once(place, source)


def test_an_input_that_is_not_there_leaves_no_folder(tmp_path):
    with pytest.raises(InputError, match=r"--input .*missing cannot be read"):
        once(tmp_path / "run", tmp_path / "missing")
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="is a folder"):
        once(tmp_path / "run", tmp_path)


def test_a_run_begun_anew_has_nothing_of_the_old_one(tmp_path):
    for name in ("input.jsonl", "batches.jsonl", "predictions.jsonl"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "config.json").write_text("{}")
    with folder.opened(tmp_path, {"schema": 1}, fresh=True):
        assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "lock"]
        (tmp_path / "checkpoints" / "000000").mkdir(parents=True)
