"""The reservoir: uniform, exact in its counting, whatever the size of the batch."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

import jcl
from jcl import InputError
from jcl.learner import by_index
from jcl.memory import reservoir


def filled(capacity, batch, total, key):
    policy = reservoir(capacity)
    memory = policy.init({"x": jnp.zeros((batch,), jnp.int32)})

    def insert(memory, number_and_key):
        number, key = number_and_key
        items = {"x": number * batch + jnp.arange(batch, dtype=jnp.int32)}
        return policy.insert(memory, items, key), None

    numbers = jnp.arange(total // batch)
    return jax.lax.scan(insert, memory, (numbers, jax.random.split(key, total // batch)))[0]


@pytest.mark.parametrize(("capacity", "batch"), [(10, 1), (10, 5), (4, 20), (7, 40)])
def test_uniform_over_thousands_of_streams(capacity, batch):
    """Every item of a stream of 40 is kept with probability capacity / 40."""
    streams, total = 6000, 40
    keys = jax.random.split(jax.random.key(batch), streams)
    memory = jax.jit(jax.vmap(lambda key: filled(capacity, batch, total, key)))(keys)
    kept = np.asarray(memory.items["x"])
    assert np.all(np.asarray(memory.seen) == total)
    assert all(len(set(row)) == capacity for row in kept)  # no item twice
    counts = np.bincount(kept.ravel(), minlength=total)
    chance = capacity / total
    deviation = (counts - streams * chance) / np.sqrt(streams * chance * (1 - chance))
    assert np.abs(deviation).max() < 4.5
    assert 0.5 < np.mean(deviation**2) < 1.7


def test_fills_in_order_first():
    memory = filled(10, 4, 8, jax.random.key(0))
    np.testing.assert_array_equal(memory.items["x"], [0, 1, 2, 3, 4, 5, 6, 7, 0, 0])


def test_where_two_items_take_one_slot_the_later_wins():
    """With capacity 1 every item that is accepted overwrites the one before it."""
    policy = reservoir(1)
    for seed in range(20):
        key = jax.random.key(seed)
        memory = policy.insert(policy.init({"x": jnp.zeros(9)}), {"x": jnp.arange(9.0)}, key)
        drawn = np.asarray(jax.random.randint(key, (9,), 0, jnp.arange(1, 10)))
        assert float(memory.items["x"][0]) == max(t for t in range(9) if drawn[t] == 0)


def test_draws_are_uniform_over_what_is_there():
    policy = reservoir(100)
    memory = filled(100, 5, 20, jax.random.key(0))
    drawn = policy.draw(memory, 40_000, jax.random.key(1))["x"]
    counts = np.bincount(np.asarray(drawn), minlength=20)
    assert len(counts) == 20
    deviation = (counts - 2000) / np.sqrt(2000 * 0.95)
    assert np.abs(deviation).max() < 4


def test_a_memory_of_one_item_is_drawn_from_alone():
    policy = reservoir(9)
    memory = policy.insert(policy.init({"x": jnp.zeros(1)}), {"x": jnp.ones(1)}, None)
    assert jnp.all(policy.draw(memory, 200, jax.random.key(0))["x"] == 1)


def test_without_a_key_a_draw_does_not_follow_the_insertion():
    """The slots drawn in a step are not the slots that the same step replaces."""
    policy = reservoir(16)
    memory = policy.init({"x": jnp.zeros(16, jnp.int32)})
    drawn_and_replaced = replaced = 0
    for number in range(30):
        items = {"x": 16 * number + jnp.arange(16, dtype=jnp.int32)}
        drawn = set(np.asarray(policy.draw(memory, 16, None)["x"]).tolist())
        following = policy.insert(memory, items, None)
        gone = set(memory.items["x"].tolist()) - set(following.items["x"].tolist())
        if number:
            drawn_and_replaced += len(gone & drawn)
            replaced += len(gone)
        memory = following
    assert replaced > 40
    assert drawn_and_replaced < 0.85 * replaced


def test_without_a_key_it_is_deterministic():
    policy = reservoir(5)
    memory = policy.init({"x": jnp.zeros(8)})
    first = policy.insert(memory, {"x": jnp.arange(8.0)}, None)
    again = policy.insert(memory, {"x": jnp.arange(8.0)}, None)
    np.testing.assert_array_equal(first.items["x"], again.items["x"])
    assert jnp.all(policy.draw(first, 3, None)["x"] == policy.draw(first, 3, None)["x"])


def test_capacity_zero_is_refused():
    with pytest.raises(InputError, match="a whole number, at least 1"):
        reservoir(0)


@pytest.mark.parametrize(
    "part",
    [
        jcl.replay(999, size=8),
        jcl.agem(999, size=8, insert="step"),
        jcl.der(999, 8, 0.5, replay_strength=0.5),
    ],
    ids=lambda part: part.name,
)
def test_a_compiled_loop_copies_neither_memory_nor_params(part):
    """XLA copies what is written while something may still read it: see `core.never`."""
    learner = jcl.learner(toy.loss_fn, jcl.chain(part, optax.sgd(0.1)))
    state = learner.init(jax.random.key(0), toy.params(), toy.batch(0))
    data = (toy.batch(0), jnp.zeros((4, toy.BATCH), jnp.int32))
    steps = jax.jit(by_index(learner.step), donate_argnums=0)
    program = steps.lower(state, data).compile().as_text()
    assert f"f32[999,{toy.INPUTS}]" in program
    copied = re.findall(r"= (\w+\[[\d,]+\])\S* copy\(", program)
    held = {f"f32[999,{toy.INPUTS}]", "s32[999]", f"f32[999,{toy.CLASSES}]"}
    params = {f"f32[{toy.INPUTS},{toy.HIDDEN}]", f"f32[{toy.HIDDEN},{toy.CLASSES}]"}
    assert not (held | params) & set(copied)
