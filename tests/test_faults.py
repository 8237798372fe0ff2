"""Whatever ends a run, the same command goes on and ends with the same bits."""

import json
import os
import random
import re
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from everything import ALL
from forked import TINY, Runs

from jcl import InputError, checkpoint, folder
from jcl.run import run

pytestmark = pytest.mark.xdist_group("faults")  # they share one process that forks
METHOD = ("--method", "replay_ewc_si", "--steps", "6", "--deterministic")  # on a GPU too


@pytest.fixture(scope="module")
def runs():
    runs = Runs()
    yield runs
    runs.close()


@pytest.fixture(scope="module")
def finished(runs, tmp_path_factory):
    """A run that nothing disturbed, and the seconds that it took; half of them went to compiling,
    of which the others are spared."""
    place = tmp_path_factory.mktemp("runs") / "run"
    done = runs("--out", place, "--save-minutes", "0", "--keep", "4", *METHOD)
    assert done["code"] == 0, done["output"]
    return place, done["seconds"]


def matrix(place):
    return json.loads((place / "report.json").read_text())["matrix"]


def plain(leaf):
    return jax.random.key_data(leaf) if "key" in str(leaf.dtype) else leaf


def assert_same_end(found, expected):
    assert (found / "metrics.jsonl").read_text() == (expected / "metrics.jsonl").read_text()
    assert matrix(found) == matrix(expected)
    one, other = (checkpoint.read(place / "checkpoints") for place in (found, expected))
    assert one.keys() == other.keys()
    for path, leaf in one.items():
        np.testing.assert_array_equal(*map(plain, (leaf, other[path])), err_msg=path)
    assert not list((found / "checkpoints").glob("*.partial"))


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_bits(runs, finished, tmp_path):
    """Ten kills, a hundred with JCL_ALL_TESTS=1: half of them at any moment, which most often is
    one before the run goes on, half within a step or two of its next checkpoint. The clock of every
    other process jumps."""
    expected, seconds = finished
    draw, left, number, places = random.Random(0), 100 if ALL else 10, 0, set()
    while True:
        place = tmp_path / str(number)
        arguments = ("--out", place, "--save-minutes", "0", *METHOD)
        moment, saved = draw.uniform(0, seconds / 2), None
        if left % 4 < 2:
            moment, saved = draw.uniform(0, seconds / 20), str(place / "checkpoints")
        done = runs(
            *arguments, seconds=moment if left else None, saved=saved, jumping=left % 2 == 1
        )
        if done["code"] == 0:
            assert_same_end(place, expected)
            if not left:
                break
            number += 1  # it came to its end before the moment: another run is to be killed
            continue
        assert done["code"] == -9, done["output"]
        left -= 1
        places.add((number, *sorted(path.name for path in place.glob("checkpoints/*"))))
    assert len(places) >= (20 if ALL else 5)  # several of them behind the first checkpoint


@pytest.mark.slow
def test_a_signal_leaves_a_checkpoint_and_a_second_one_ends_it_at_once(runs, finished, tmp_path):
    arguments = ("--out", tmp_path / "run", *METHOD)
    for number, (count, name) in enumerate([(3, "SIGTERM"), (2, "SIGINT")]):
        done = runs(*arguments, point="task", count=count, signals=[name])
        assert done["code"] == os.EX_TEMPFAIL == 75, done["output"]
        step = (3, 5)[number]
        where = f"stopped by {name} at stage 0, step {step}; the same command goes on"
        assert where in done["output"]
        assert "one more checkpoint" in done["output"]
    again = runs(*arguments, point="task", count=1, signals=["SIGTERM", "SIGTERM"])
    assert again["code"] == -15
    # In the last evaluation, the third row of three tasks and their probes, it lets the run end.
    done = runs(*arguments, point="evaluation", count=14, signals=["SIGTERM"])
    assert done["code"] == 0, done["output"]
    assert "one more checkpoint" in done["output"]
    assert "going on from stage 0, step 5" in done["output"]
    assert_same_end(tmp_path / "run", finished[0])


# A callback from which no exception gets out, as JAX has one at every collection of garbage.
IN_A_CALLBACK = (
    "import gc, os, signal\n"
    "gc.callbacks.append(lambda *_: os.kill(os.getpid(), signal.{name}))\n"
    "gc.collect()\n"
    "gc.callbacks.clear()\n"
)


@pytest.mark.parametrize(("name", "code"), [("SIGINT", -2), ("SIGTERM", -15)])
def test_a_signal_before_there_is_anything_to_save_ends_it_at_once(name, code, runs, tmp_path):
    path = tmp_path / "starting.py"
    config = edited(
        path, ("    net = model(config.width)\n", "    interrupt()\n    net = model(16)\n")
    )
    interrupt = IN_A_CALLBACK.format(name=name).replace("\n", "\n    ")
    path.write_text(
        path.read_text().replace("def build(", f"def interrupt():\n    {interrupt}\n\ndef build(")
    )
    done = runs("--out", tmp_path / "runs" / "run", config=config)
    assert (done["code"], done["output"]) == (code, "")
    assert not (tmp_path / "runs").exists()


def test_a_signal_while_jax_is_imported_ends_the_command_at_once(tmp_path):
    (tmp_path / "jax.py").write_text(IN_A_CALLBACK.format(name="SIGINT"))
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{TINY.parent.parent.parent}"}

    def end(*arguments):
        command = [sys.executable, *arguments]
        # A shell's background job, such as these tests may be, hands its deafness to SIGINT on.
        heard = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, cwd=tmp_path
            )
        finally:
            signal.signal(signal.SIGINT, heard)
        return done.returncode, done.stderr

    assert end("-m", "jcl", "run", TINY) == (-2, "")
    (tmp_path / "jcl").write_text("import jcl.__main__")
    assert end(tmp_path / "jcl", "run", TINY) == (-2, "")
    code, told = end("-c", "import jcl")  # as a library it leaves signals alone
    assert code not in (-2, 0)
    assert "Exception ignored" in told


def test_a_folder_that_vanishes_ends_the_run_and_is_not_made_anew(runs, tmp_path):
    place, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    arguments = ("--out", place, *METHOD)
    done = runs(*arguments, point="task", count=5, moved=[str(place), str(elsewhere)])
    assert done["code"] == 1, done["output"]
    assert "could not be written" in done["output"]
    assert "bring it back" in done["output"]
    assert not place.exists()
    assert int(checkpoint.read(elsewhere / "checkpoints")["step"]) == 0  # it has the first one


def test_metrics_that_were_removed_are_noticed(tmp_path):
    lines = folder.MetricsFile(tmp_path, 0)
    lines.write(kind="step")
    assert lines.offset() == (tmp_path / "metrics.jsonl").stat().st_size
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(checkpoint.SaveError, match="removed while the run went on"):
        lines.offset()
    lines.close()


def test_a_thread_of_the_loader_that_fails_says_what_and_where(runs, tmp_path):
    arguments = ("--out", tmp_path / "run", *METHOD)
    # The first batch of each of the three stages is built when the run is checked.
    done = runs(*arguments, point="batch", count=8, error=["ValueError", "a broken block"])
    assert done["code"] == 1, done["output"]
    found = re.search(r"batch (\d) of 'vowels' could not be built: (.*) \(in", done["output"])
    assert found, done["output"]
    assert found.group(2) == "ValueError: a broken block"


def test_out_of_memory_names_the_largest_trees_and_the_remedies(runs, tmp_path):
    arguments = ("--out", tmp_path / "run", *METHOD)
    text = "RESOURCE_EXHAUSTED: Out of memory allocating 123456 bytes."
    done = runs(*arguments, point="task", count=5, error=["JaxRuntimeError", text])
    assert done["code"] == 1, done["output"]
    said = done["output"].replace("\n", " ")
    size = 2 * 258 * 16 * 4  # of the params: a table and an output
    assert "Out of memory allocating 123456 bytes" in said
    for tree in ("params", "strategy/1/importance", "strategy/1/anchor", "strategy/2/0/mu"):
        assert f"{tree} {size:,} bytes" in said, tree
    for remedy in ("fsdp", "remat=True", "jcl.only", "chunk="):
        assert remedy in said


def edited(path, *pairs):
    """The tiny config with other words."""
    text = TINY.read_text()
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    return path


SPOILED = (
    "loss_fn=jcl.losses.causal_lm(net.apply)",
    "loss_fn=lambda params, batch, key: spoil(jcl.losses.causal_lm(net.apply)(params, batch, key),"
    " batch)",
)


def spoiling(when):
    """A loss that is not a number where the first token of the batch says so."""
    return (
        "def build(",
        "def spoil(found, batch):\n"
        "    token = batch['inputs'][0, 0]\n"
        f"    spoiled = {when}\n"
        "    return jnp.where(spoiled, jnp.nan, found[0]), found[1]\n\n\ndef build(",
    )


PARTS = 'jcl.chain(*(parts if "ewc" in config.method else []), optimizer, *path)'
SKIPPING = (f"strategy={PARTS}", f"strategy=jcl.skip_nonfinite({PARTS}, most=6)")


def test_steps_that_are_not_finite_are_left_out_and_counted_and_too_many_stop_the_run(
    runs, tmp_path
):
    sign = "((token < 48) | (token >= 60) & (token < 63))"  # of the third task: every batch
    when = f"(token % 7 == 0) | {sign}"
    config = edited(tmp_path / "skipping.py", SPOILED, spoiling(when), SKIPPING)
    done = runs("--out", tmp_path / "run", "--steps", "8", config=config)
    assert done["code"] == 1, done["output"]
    assert re.search(r"loss is nan at task signs, step 7: ", done["output"])
    assert "jcl.skip_nonfinite" in done["output"]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "NaN" not in lines
    leaves = checkpoint.read(tmp_path / "run" / "checkpoints")  # of the end of the second task
    assert int(leaves["task_step"]) == 0
    assert int(leaves["strategy/skipped"]) > 1
    assert all(np.isfinite(leaf).all() for path, leaf in leaves.items() if "params" in path)


def test_a_data_file_that_changed_is_refused_by_name(runs, tmp_path):
    read = f"documents = open('{tmp_path}/' + name).read().splitlines()"
    config = edited(
        tmp_path / "reading.py",
        ('documents = ["".join(draw.choice(letters, 60)) for _ in range(size)]', read),
    )
    for name, letters in (("vowels", "aeiou"), ("digits", "01234"), ("signs", "+-*/=")):
        (tmp_path / name).write_text(f"{letters * 12}\n" * 20)
    place = tmp_path / "run"
    arguments = ("--out", place, *METHOD)
    assert runs(*arguments, config=config, point="task", count=9, signals=["SIGTERM"])["code"] == 75
    begun = (place / "config.json").read_bytes()
    with (tmp_path / "digits").open("a") as file:
        file.write("5")
    done = runs(*arguments, config=config)
    assert done["code"] == 1, done["output"]
    found = re.search(r"data\.digits was '(\w{64})' and is now '(\w{64})'.*--fresh", done["output"])
    assert found, done["output"]
    assert "data.vowels" not in done["output"]
    assert found.group(1) == json.loads(begun)["data"]["digits"]
    assert (place / "config.json").read_bytes() == begun
    with (tmp_path / "digits").open("r+") as file:
        file.truncate(len(file.read()) - 1)
    assert "going on from stage 1" in runs(*arguments, config=config)["output"]


def test_another_start_is_refused(tmp_path):
    """As of a run that begins with the params of another, which was trained anew since."""
    description = {
        "schema": 1, "name": "oml", "config": {}, "config_hash": "c", "seeds": [0], "data": {},
        "start": ["1234"], "devices": {"processes": 1},
    }  # fmt: skip
    for name in ("new", "old"):
        (tmp_path / name / "checkpoints" / "000000").mkdir(parents=True)
    (tmp_path / "new" / "config.json").write_text(json.dumps(description))
    older = {key: part for key, part in description.items() if key != "start"}
    (tmp_path / "old" / "config.json").write_text(json.dumps(older))
    changed = description | {"start": ["ffff"]}
    with folder.opened(tmp_path / "new", description, fresh=False):
        pass
    with (
        pytest.raises(InputError, match=r"start was \['1234'\] and is now \['ffff'\].*--fresh"),
        folder.opened(tmp_path / "new", changed, fresh=False),
    ):
        pass
    with folder.opened(tmp_path / "old", changed, fresh=False):  # of before it was written
        pass


def test_a_run_folder_of_an_older_schema_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"schema": 0}')
    with pytest.raises(InputError, match=r"schema 0, older than 1.*--fresh"):
        folder.read_config(tmp_path / "config.json")


def test_no_clock_that_can_jump_is_read():
    """The wall clock may be set back at any time; see also the clocks of the kills above."""
    found = [
        path
        for path in (TINY.parent.parent.parent / "jcl").rglob("*.py")
        if re.search(r"\btime\.time\(|\btime_ns\(|datetime", path.read_text())
        and path.name != "tracking.py"  # MLflow shows when a line came; nothing hangs on it
    ]
    assert not found


def test_every_checkpoint_says_whose_it_is(finished):
    own = folder.fingerprint(folder.read_config(finished[0] / "config.json"))
    for path in (finished[0] / "checkpoints").iterdir():
        assert json.loads((path / "progress.json").read_text())["run"] == own


@pytest.mark.parametrize("minutes", [-1.0, float("nan")])
def test_minutes_that_are_none_are_refused(minutes):
    with pytest.raises(InputError, match=r"--save-minutes=.*\): a number in \[0, inf\]"):
        run(lambda config: None, None, config_file=TINY, save_minutes=minutes)


def test_as_many_checkpoints_are_kept_as_asked_for(finished):
    assert len(list((finished[0] / "checkpoints").iterdir())) == 4
    with pytest.raises(InputError, match=r"--keep=0\): a whole number, at least 1"):
        run(lambda config: None, None, config_file=TINY, keep=0)
