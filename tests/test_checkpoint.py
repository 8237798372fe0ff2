"""Checkpoints: complete or absent, and damage is always noticed."""

import json

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


def test_a_partial_checkpoint_does_not_count(tmp_path):
    checkpoint.save(tmp_path, STATE, {"number": 0})
    (tmp_path / "000001.partial").mkdir()
    assert checkpoint.restore(tmp_path, abstract(STATE))[1] == {"number": 0}
    checkpoint.save(tmp_path, STATE, {"number": 1})
    assert checkpoint.restore(tmp_path, abstract(STATE))[1] == {"number": 1}


def test_another_state_or_a_newer_schema_is_refused_by_name(tmp_path):
    checkpoint.save(tmp_path, STATE, {})
    with pytest.raises(InputError, match="a/b"):
        checkpoint.restore(tmp_path, abstract({**STATE, "a/b": jnp.arange(4.0)}))
    path = tmp_path / "000000" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"schema": 2}))
    path.with_name("manifest.sha256").write_text(checkpoint._sum(path))
    with pytest.raises(InputError, match="schema 2, newer than 1"):
        checkpoint.restore(tmp_path, abstract(STATE))


def test_a_disk_that_refuses_leaves_what_was_there(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, STATE, {"number": 0})

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_write", refuse)
    with pytest.raises(checkpoint.SaveError, match="No space left.*000000 stays"):
        checkpoint.save(tmp_path, STATE, {"number": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["000000"]
