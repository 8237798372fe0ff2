"""Memories without some of their items: every policy goes on as it should; and memories by age."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy
from everything import ALL

import jcl
from jcl import InputError
from jcl.memory import (
    aged,
    class_balanced,
    forgetting,
    greedy_balanced,
    herding,
    priority,
    reservoir,
    ring,
    without,
)
from jcl.strategies.gss import least_similar

CAPACITY, CLASSES = 8, 3
POLICIES = {
    "reservoir": reservoir(CAPACITY),
    "ring": ring(CAPACITY),
    "priority": priority(CAPACITY),
    "gss": least_similar(CAPACITY),
    "class balanced": class_balanced(CAPACITY, CLASSES),
    "greedy balanced": greedy_balanced(CAPACITY, CLASSES),
    "herding": herding(CAPACITY, CLASSES, lambda params, inputs: inputs),
}
# Two of them share what is tested here with another, and are left to JCL_ALL_TESTS=1.
policies = pytest.mark.parametrize(
    "name", [name for name in POLICIES if ALL or name not in ("gss", "greedy balanced")]
)


def batch(first, size=4):
    """Items first, first + 1, ...; each is its number in every leaf."""
    number = jnp.arange(first, first + size)
    return {
        "x": number,
        "deep": {"y": 10 * number},
        "targets": (number % CLASSES).astype(jnp.int32),
    }


def score(name, items):
    number = items["x"].astype(jnp.float32)
    if name == "herding":
        return jnp.stack([jnp.cos(number), jnp.sin(number)], axis=1)
    return (number * 7 % 11) / 11 if name in ("priority", "gss") else None


@functools.cache
def inserting(name, policy=None):
    policy = policy or POLICIES[name]
    return jax.jit(lambda memory, items, key: policy.insert(memory, items, key, score(name, items)))


@functools.cache
def forgets(name):
    return jax.jit(POLICIES[name].forget)


def grown(name, number, first=1, memory=None):
    """The memory after `number` more batches."""
    memory = POLICIES[name].init(batch(0)) if memory is None else memory
    for step in range(number):
        key = jax.random.key(first + step)
        memory = inserting(name)(memory, batch(first + 4 * step), key)
    return memory


def held(name, memory):
    return np.asarray(memory.items["x"])[np.asarray(POLICIES[name].filled(memory))].tolist()


@policies
@pytest.mark.parametrize("batches", [1, 5], ids=["not full", "full"])
def test_what_goes_is_nowhere_and_what_stays_goes_on(name, batches):
    policy, memory = POLICIES[name], grown(name, batches)
    before = held(name, memory)
    gone = before[1::2]
    keep = jnp.asarray(~np.isin(memory.items["x"], gone))
    memory = forgets(name)(memory, keep)
    stay = set(before) - set(gone)
    assert set(held(name, memory)) == stay
    assert not np.isin(gone, memory.items["x"]).any()
    np.testing.assert_array_equal(memory.items["deep"]["y"], 10 * memory.items["x"])
    drawn = policy.draw(memory, 200, jax.random.key(0))["x"]
    assert set(np.asarray(drawn).tolist()) == stay
    assert memory.seen > 0
    memory = grown(name, 3, first=100, memory=memory)
    assert len(held(name, memory)) == CAPACITY or name == "herding"
    assert not np.isin(gone, memory.items["x"]).any()
    assert any(item >= 100 for item in held(name, memory))
    if hasattr(memory, "stored"):
        counts = np.bincount(np.asarray(held(name, memory)) % CLASSES, minlength=CLASSES)
        np.testing.assert_array_equal(memory.stored, counts)


@policies
def test_nothing_taken_out_changes_nothing(name):
    for batches in (1, 5):
        memory = grown(name, batches)
        same = forgets(name)(memory, jnp.ones(CAPACITY, bool))
        if name == "herding":  # it leaves copies in slots that count as empty
            assert held(name, same) == held(name, memory)
            memory = memory._replace(items=same.items)
        jax.tree.map(np.testing.assert_array_equal, same, memory)


@policies
def test_with_everything_taken_out_it_is_empty(name):
    memory = forgets(name)(grown(name, 5), jnp.zeros(CAPACITY, bool))
    assert memory.seen == 0
    assert held(name, memory) == []
    assert not memory.items["x"].any()
    assert len(held(name, grown(name, 2, first=50, memory=memory))) >= 4


def test_a_reservoir_stays_a_uniform_sample():
    """Of 40 items the first 8 are forgotten, 40 more come: all have the same expected slots."""
    policy, total, forgotten = reservoir(10), 40, 8

    def stream(key):
        memory, key_more = policy.init({"x": jnp.zeros(4, jnp.int32)}), jax.random.fold_in(key, 1)

        def insert(memory, given):
            number, key = given
            return policy.insert(memory, {"x": 1 + 4 * number + jnp.arange(4)}, key), None

        keys = jax.random.split(key, 10)
        memory, _ = jax.lax.scan(insert, memory, (jnp.arange(10), keys))
        memory = policy.forget(memory, memory.items["x"] > forgotten)
        keys = jax.random.split(key_more, 10)
        return jax.lax.scan(insert, memory, (10 + jnp.arange(10), keys))[0]

    streams = 4000
    memory = jax.jit(jax.vmap(stream))(jax.random.split(jax.random.key(0), streams))
    slots = np.bincount(np.asarray(memory.items["x"]).ravel(), minlength=1 + 2 * total) / streams
    assert slots[: 1 + forgotten].sum() == 0
    old, new = slots[1 + forgotten : 1 + total].mean(), slots[1 + total :].mean()
    # 10 slots over 72 items; with a seen of 40 the old ones had 1.25 times the new ones'.
    np.testing.assert_allclose([old, new], 10 / 72, rtol=0.03)
    np.testing.assert_allclose(memory.seen.mean(), 72, rtol=0.01)


def test_a_full_reservoir_fills_gaps_with_what_stays():
    memory = grown("reservoir", 10)
    keep = jnp.arange(CAPACITY) != 3
    after = forgets("reservoir")(memory, keep)
    assert after.seen == 35  # of 40, an eighth less
    np.testing.assert_array_equal(after.items["x"][keep], memory.items["x"][keep])
    assert after.items["x"][3] in memory.items["x"][keep]
    # Copies are taken of as many different items as there are.
    after = forgets("reservoir")(memory, jnp.arange(CAPACITY) >= 4)
    assert np.bincount(after.items["x"])[np.asarray(memory.items["x"][4:])].tolist() == [2] * 4


def test_a_ring_keeps_its_order():
    memory = grown("ring", 3)  # 5 .. 12; 9 lies in slot 0
    after = forgets("ring")(memory, ~jnp.isin(memory.items["x"], jnp.array([5, 10, 11])))
    assert after.items["x"].tolist() == [6, 7, 8, 9, 12, 0, 0, 0]
    assert after.seen == 5
    after = grown("ring", 1, first=100, memory=after)
    assert sorted(after.items["x"].tolist()) == [7, 8, 9, 12, 100, 101, 102, 103]


def test_a_memory_of_scores_keeps_them_with_their_items():
    memory = grown("priority", 5)
    after = forgets("priority")(memory, jnp.arange(CAPACITY) % 2 == 0)
    np.testing.assert_array_equal(after.items["x"][:4], memory.items["x"][::2])
    np.testing.assert_array_equal(after.scores, [*memory.scores[::2], 0, 0, 0, 0])
    assert after.seen == 4


def test_by_class_each_class_keeps_its_share_of_what_was_offered():
    memory = grown("class balanced", 10)._replace(
        offered=jnp.array([30, 9, 1]), seen=jnp.int32(40),
        items={"x": jnp.arange(1, 9), "targets": jnp.array([0, 0, 0, 0, 1, 1, 1, 2])},
        stored=jnp.array([4, 3, 1]), full=jnp.array([True, False, True]),
    )  # fmt: skip
    keep = jnp.array([1, 1, 1, 0, 1, 0, 0, 0], bool)
    after = forgetting.by_class(memory, keep)
    assert after.stored.tolist() == [3, 1, 0]
    assert after.offered.tolist() == [22, 3, 0]  # 30 * 3/4, 9 * 1/3, none
    assert after.full.tolist() == [True, False, False]
    assert after.seen == 25
    assert after.items["x"].tolist() == [1, 2, 3, 5, 0, 0, 0, 0]


def test_herding_moves_exemplars_up_and_shares_out_what_a_class_leaves():
    memory = forgetting.herded(  # nothing taken: three classes have two slots each
        POLICIES["herding"].init(batch(0))._replace(
            items={"x": jnp.array([1, 2, 3, 4, 5, 6, 0, 0])}, seen=jnp.int32(9),
            filled=jnp.arange(CAPACITY) < 6, place=jnp.array([1, 0, 2], jnp.int32),
        ),
        jnp.ones(CAPACITY, bool),
    )  # fmt: skip
    assert memory.items["x"].tolist() == [1, 2, 3, 4, 5, 6, 0, 0]
    after = forgetting.herded(memory, jnp.array([0, 1, 0, 0, 1, 1, 1, 1], bool))
    assert after.items["x"].tolist() == [2, 0, 0, 0, 5, 6, 0, 0]  # two classes, four slots each
    assert after.filled.tolist() == [True, False, False, False, True, True, False, False]
    assert after.place.tolist() == [-1, 0, 1]
    assert after.seen == 6


def named(memory):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(memory)
    }


@policies
def test_of_arrays_it_is_the_same_for_every_kind_and_with_axes_in_front(name):
    memories = [grown(name, 1), grown(name, 5), grown(name, 8, first=3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *memories)
    keep = np.random.default_rng(0).random((3, CAPACITY)) < 0.6
    found = without(named(stacked), keep)
    assert found.keys() == named(stacked).keys()
    for number, memory in enumerate(memories):
        own = {path: leaf[number] for path, leaf in found.items()}
        gone = set(held(name, memory)) - set(np.asarray(memory.items["x"])[keep[number]].tolist())
        assert not np.isin(list(gone), own["items/x"]).any()
        if name in ("reservoir", "ring"):
            full = memory.seen > CAPACITY
            assert (own["seen"] % CAPACITY == memory.seen % CAPACITY) == full or not full
            if full:  # what stays lies where it lay, so that a ring's next slot is its next
                np.testing.assert_array_equal(
                    own["items/x"][keep[number]], memory.items["x"][keep[number]]
                )
        else:
            expected = named(forgets(name)(memory, jnp.asarray(keep[number])))
            jax.tree.map(np.testing.assert_array_equal, own, expected)


@policies
def test_aged_never_holds_nor_draws_what_is_too_old(name):
    policy, most = aged(POLICIES[name], most=6), 6
    memory, reference = policy.init(batch(0)), {}
    for step in range(9):
        items = batch(1 + 4 * step)
        memory = inserting(name, policy)(memory, items, jax.random.key(step))
        reference |= {int(item): 4 * step + place for place, item in enumerate(items["x"])}
        filled = np.asarray(policy.filled(memory))
        ages = 4 * step + 3 - np.array([reference[item] for item in held(name, memory)])
        np.testing.assert_array_equal(np.asarray(memory.items["age"])[filled], ages)
        assert ages.max() < most
        left = np.asarray(memory.items["x"])
        assert min(left[left > 0]) > 4 * step + 4 - most
        drawn = policy.draw(memory, 40, jax.random.key(step))
        assert drawn.keys() == items.keys()
        assert min(drawn["x"].tolist()) > 4 * step + 4 - most
    assert memory.seen > 0


def test_an_aged_reservoir_is_about_uniform_over_the_last():
    policy, streams = aged(reservoir(10), most=40), 3000

    def stream(key):
        memory = policy.init({"x": jnp.zeros(4, jnp.int32)})

        def insert(memory, given):
            number, key = given
            return policy.insert(memory, {"x": 1 + 4 * number + jnp.arange(4)}, key), None

        return jax.lax.scan(insert, memory, (jnp.arange(50), jax.random.split(key, 50)))[0]

    memory = jax.jit(jax.vmap(stream))(jax.random.split(jax.random.key(0), streams))
    slots = np.bincount(np.asarray(memory.items["x"]).ravel(), minlength=201) / streams
    assert slots[1:161].sum() == 0
    np.testing.assert_allclose(memory.seen.mean(), 40, rtol=0.03)
    quarters = slots[161:].reshape(4, 10).mean(axis=1)
    np.testing.assert_allclose(quarters, 0.25, rtol=0.12)


def test_aged_in_a_strategy_and_balanced():
    met = []

    def loss_fn(params, batch, key):
        met.append(set(batch))
        return toy.loss_fn(params, batch, key)

    policy = aged(class_balanced(6, toy.CLASSES), most=20)
    replay = jcl.replay(policy, 4, draw="balanced")
    learner = jcl.learner(loss_fn, jcl.chain(replay, optax.sgd(0.1)))

    def begin(params):
        return learner.init(jax.random.key(0), params, toy.batch(0))

    state = jax.eval_shape(begin, toy.params())
    _, metrics = jax.eval_shape(learner.step, state, toy.batch(0))
    assert "replay" in metrics
    assert {frozenset(keys) for keys in met} == {frozenset(toy.batch(0))}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: aged(reservoir, 5), "give a memory that can let go"),
        (lambda: aged(reservoir(5), 0), "a whole number, at least 1"),
        (lambda: aged(reservoir(5), 3).init(batch(0)), "4 examples are offered at once"),
        (lambda: aged(aged(reservoir(5), 9), 9).init(batch(0)), 'a key "age" of its own'),
    ],
)
def test_what_aged_refuses(call, message):
    with pytest.raises(InputError, match=re.escape(message)):
        call()
