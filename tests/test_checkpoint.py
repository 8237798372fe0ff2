"""Checkpoints: complete or absent, and damage is always noticed."""

import errno
import json
import os
import shutil
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcl import InputError, checkpoint

STATE = {"a/b": jnp.arange(3000.0), "c": [jnp.int32(3), None, jax.random.key(1)]}


def abstract(state):
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )


def test_round_trip_keeps_the_last_two(tmp_path):
    for number in range(4):
        checkpoint.save(tmp_path, STATE, {"number": number})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000002", "000003"]
    state, progress = checkpoint.restore(tmp_path, abstract(STATE))
    assert progress == {"number": 3}
    np.testing.assert_array_equal(state["a/b"], STATE["a/b"])
    assert state["c"][0] == 3
    assert state["c"][1] is None
    assert jnp.all(jax.random.key_data(state["c"][2]) == jax.random.key_data(STATE["c"][2]))


def test_none_is_there(tmp_path):
    assert checkpoint.restore(tmp_path / "absent", abstract(STATE)) is None


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def add(path):
    path.with_name("surplus").write_text("x")


@pytest.mark.parametrize("harm", [cut, flip, add, lambda path: path.unlink()])
def test_damage_to_any_file_is_noticed(harm, tmp_path):
    checkpoint.save(tmp_path, STATE, {"number": 0})
    checkpoint.save(tmp_path, STATE, {"number": 1})
    files = [path for path in (tmp_path / "000001").rglob("*") if path.is_file()]
    content = {path: path.read_bytes() for path in files}
    assert len(files) > 5
    for path in files:
        harm(path)
        with pytest.warns(UserWarning, match="damaged"):
            _, progress = checkpoint.restore(tmp_path, abstract(STATE))
        assert progress == {"number": 0}, path
        damaged = next(tmp_path.glob("*.damaged"))
        damaged.rename(tmp_path / "000001")
        path.with_name("surplus").unlink(missing_ok=True)
        path.write_bytes(content[path])
    assert checkpoint.restore(tmp_path, abstract(STATE))[1] == {"number": 1}


def test_every_flipped_bit_of_the_manifest_is_noticed(tmp_path):
    path = checkpoint.save(tmp_path, STATE, {}) / "manifest.json"
    content = path.read_bytes()
    for bit in range(0, 8 * len(content), 7):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        assert checkpoint._damage(path.parent)
    path.write_bytes(content)
    assert checkpoint._damage(path.parent) is None


def two(folder):
    for number in range(2):
        checkpoint.save(folder, STATE, {"number": number})


def test_what_cannot_be_read_is_damaged(tmp_path, monkeypatch):
    two(tmp_path)
    original = checkpoint._sum

    def refuse(path):
        if path.name == "progress.json" and path.parent.name == "000001":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return original(path)

    monkeypatch.setattr(checkpoint, "_sum", refuse)
    with pytest.warns(UserWarning, match="000001 is damaged .*Input/output error"):
        assert checkpoint.restore(tmp_path, abstract(STATE))[1] == {"number": 0}


def test_who_only_reads_renames_nothing(tmp_path):
    two(tmp_path)
    cut(tmp_path / "000001" / "progress.json")
    for read in (
        checkpoint.read,
        lambda place: checkpoint.restore(place, abstract(STATE), own=False),
    ):
        with pytest.warns(UserWarning, match="000001 is damaged"):
            assert read(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000000", "000001"]


@pytest.mark.parametrize("point", ["_sums", "_manifest", "_arrays"])
def test_a_checkpoint_that_its_run_removes_meanwhile(point, tmp_path, monkeypatch):
    two(tmp_path)
    original, left = getattr(checkpoint, point), ["000001"]

    def removing(path, *given):
        if left and path.name == left[0]:
            shutil.rmtree(tmp_path / left.pop())
            checkpoint.save(tmp_path / "other", STATE, {"number": 7})
            (tmp_path / "other" / "000000").rename(tmp_path / "000002")
        return original(path, *given)

    monkeypatch.setattr(checkpoint, point, removing)
    assert checkpoint.restore(tmp_path, abstract(STATE), own=False)[1] == {"number": 7}
    assert not left


def test_a_partial_checkpoint_does_not_count(tmp_path):
    checkpoint.save(tmp_path, STATE, {"number": 0})
    (tmp_path / "000001.partial").mkdir()
    assert checkpoint.restore(tmp_path, abstract(STATE))[1] == {"number": 0}
    checkpoint.save(tmp_path, STATE, {"number": 1})
    assert checkpoint.restore(tmp_path, abstract(STATE))[1] == {"number": 1}


def test_another_state_or_schema_is_refused_by_name(tmp_path):
    checkpoint.save(tmp_path, STATE, {})
    with pytest.raises(InputError, match="a/b"):
        checkpoint.restore(tmp_path, abstract({**STATE, "a/b": jnp.arange(4.0)}))
    path = tmp_path / "000000" / "manifest.json"
    manifest = json.loads(path.read_text())
    for schema, message in (
        (2, "schema 2, newer than 1.*install"),
        (0, "schema 0, older than 1.*--fresh"),
    ):
        path.write_text(json.dumps(manifest | {"schema": schema}))
        path.with_name("manifest.sha256").write_text(checkpoint._sum(path))
        with pytest.raises(InputError, match=message):
            checkpoint.restore(tmp_path, abstract(STATE))
        with pytest.raises(InputError, match=message):
            checkpoint.read(tmp_path)


def test_a_disk_that_refuses_leaves_what_was_there(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, STATE, {"number": 0})

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_write", refuse)
    with pytest.raises(checkpoint.SaveError, match="No space left.*000000 stays"):
        checkpoint.save(tmp_path, STATE, {"number": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["000000"]


@pytest.fixture
def step():
    """A step that donates its state, as a run does."""
    return jax.jit(
        lambda state: {**state, "a/b": state["a/b"] + 1}, donate_argnums=0, keep_unused=True
    )


def fresh():
    return jax.tree.map(jnp.copy, STATE)


def test_a_checkpoint_is_of_the_moment_though_the_run_goes_on(tmp_path, monkeypatch, step):
    slow, go_on = threading.Event(), checkpoint._sums

    def slowly(folder):
        assert slow.wait(20)
        return go_on(folder)

    monkeypatch.setattr(checkpoint, "_sums", slowly)
    state, progress = fresh(), {"steps": [0]}
    with checkpoint.Saver(tmp_path) as saver:
        saver.save(state, progress | {"steps": [0]})
        before = state
        for number in range(1, 4):
            state = step(state)
            progress["steps"].append(number)
        assert before["a/b"].is_deleted()
        assert np.array_equal(state["a/b"], STATE["a/b"] + 3)  # the steps did not wait
        assert [path.name for path in tmp_path.iterdir()] == ["000000.partial"]
        slow.set()
        saver.wait()
        found, then = checkpoint.restore(tmp_path, abstract(STATE))
        assert then == {"steps": [0]}
        np.testing.assert_array_equal(found["a/b"], STATE["a/b"])
        saver.save(state, progress)
    found, then = checkpoint.restore(tmp_path, abstract(STATE))
    assert then == {"steps": [0, 1, 2, 3]}
    np.testing.assert_array_equal(found["a/b"], STATE["a/b"] + 3)
    alone = checkpoint.save(tmp_path / "alone", STATE, {"steps": [0]})
    manifests = [
        json.loads((path / "manifest.json").read_text())["leaves"]
        for path in (alone, tmp_path / "000000")
    ]
    assert manifests[0] == manifests[1]


def test_one_checkpoint_is_written_at_a_time(tmp_path, monkeypatch):
    at_work, most, sums = [0], [0], checkpoint._sums

    def counted(folder):
        at_work[0] += 1
        most[0] = max(most[0], at_work[0])
        time.sleep(0.05)
        at_work[0] -= 1
        return sums(folder)

    monkeypatch.setattr(checkpoint, "_sums", counted)
    with checkpoint.Saver(tmp_path, keep=3) as saver:
        for number in range(4):
            saver.save(STATE, {"number": number})
    assert most == [1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000001", "000002", "000003"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.ESTALE])
def test_what_the_thread_cannot_write_is_said_by_the_next_save(number, tmp_path, monkeypatch):
    checkpoint.save(tmp_path, STATE, {"number": 0})

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    message = f"{os.strerror(number)}.*000000 stays"
    with checkpoint.Saver(tmp_path) as saver:
        with monkeypatch.context() as patched:
            patched.setattr(checkpoint, "_write", refuse)
            saver.save(STATE, {"number": 1})
            with pytest.raises(checkpoint.SaveError, match=message):
                saver.save(STATE, {"number": 2})
        assert [path.name for path in tmp_path.iterdir()] == ["000000"]
        saver.save(STATE, {"number": 3})  # there is room again
    assert checkpoint.restore(tmp_path, abstract(STATE))[1] == {"number": 3}


def test_what_the_thread_cannot_write_is_said_at_the_end_too(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "_write", lambda *_: 1 / 0)
    with (
        pytest.raises(checkpoint.SaveError, match="there is none before it"),
        checkpoint.Saver(tmp_path) as saver,
    ):
        saver.save(STATE, {})
    saver = checkpoint.Saver(tmp_path)
    saver.save(STATE, {})
    with pytest.warns(UserWarning, match="could not be written"):
        saver.__exit__(KeyError, KeyError("another"), None)  # which goes on by itself


def test_a_run_folder_that_is_gone_is_not_made_anew(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    with checkpoint.Saver(run / "checkpoints") as saver:
        saver.save(STATE, {})
        saver.wait()
        shutil.rmtree(run)
        with pytest.raises(checkpoint.SaveError, match="No such file.*bring it back"):
            saver.save(STATE, {})
    assert not run.exists()
