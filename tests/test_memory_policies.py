"""Each policy of a memory against a plain one-at-a-time reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcl import InputError
from jcl.memory import (
    balanced,
    class_balanced,
    greedy_balanced,
    herding,
    priority,
    reservoir,
    ring,
)

TOTAL = 60


def offered(policy, batch, targets, scores=None, seed=0):
    """The memory after a stream of items 1, 2, ..., and the keys of its batches."""
    stream = {
        "x": jnp.arange(1, len(targets) + 1).reshape(-1, batch),
        "targets": jnp.asarray(targets, jnp.int32).reshape(-1, batch),
    }
    keys = jax.random.split(jax.random.key(seed), len(targets) // batch)
    memory = policy.init(jax.tree.map(lambda leaf: leaf[0], stream))
    insert = jax.jit(policy.insert)
    for number, key in enumerate(keys):
        items = jax.tree.map(lambda leaf: leaf[number], stream)
        own = None if scores is None else jnp.asarray(scores).reshape(-1, batch)[number]
        memory = insert(memory, items, key, own)
    return memory, keys


def held(policy, memory):
    return np.asarray(memory.items["x"])[np.asarray(policy.filled(memory))].tolist()


TARGETS = np.random.default_rng(0).choice(4, TOTAL, p=[0.6, 0.25, 0.1, 0.05])


@pytest.mark.parametrize(("capacity", "batch"), [(7, 1), (7, 5), (7, 20), (70, 20), (4, 4)])
def test_ring_holds_the_last(capacity, batch):
    policy = ring(capacity)
    memory, _ = offered(policy, batch, TARGETS)
    assert sorted(held(policy, memory)) == list(range(1, TOTAL + 1))[-capacity:]
    # Item t lies in slot t modulo the capacity.
    assert memory.items["x"][(TOTAL - 1) % capacity] == TOTAL


@pytest.mark.parametrize("keep", ["highest", "lowest"])
@pytest.mark.parametrize(("capacity", "batch"), [(7, 1), (7, 5), (7, 20), (70, 20)])
def test_priority_holds_the_best(capacity, batch, keep):
    scores = np.random.default_rng(1).permutation(TOTAL).astype(np.float32)
    policy = priority(capacity, keep=keep)
    memory, _ = offered(policy, batch, TARGETS, scores)
    sign = 1 if keep == "highest" else -1
    best = sorted(range(TOTAL), key=lambda item: -sign * scores[item])[:capacity]
    assert sorted(held(policy, memory)) == sorted(item + 1 for item in best)
    for item, score in zip(memory.items["x"], memory.scores, strict=True):
        assert item == 0 or scores[item - 1] == score


def test_priority_of_equal_scores_keeps_the_older():
    policy = priority(5)
    memory, _ = offered(policy, 10, TARGETS, np.ones(TOTAL, np.float32))
    assert sorted(held(policy, memory)) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("keep", ["highest", "lowest"])
@pytest.mark.parametrize("batch", [1, 20])
def test_priority_replaces_at_random_what_lies_above_the_mean(batch, keep):
    scores = np.random.default_rng(1).permutation(TOTAL).astype(np.float32)
    policy = priority(7, keep=keep, replacement="random")
    memory, keys = offered(policy, batch, TARGETS, scores)
    slots = np.concatenate([jax.random.randint(key, (batch,), 0, 7) for key in keys])
    items, dropped = [], 0
    for item, slot in enumerate(slots):
        if len(items) < 7:
            items.append(item)
            continue
        mean = np.mean(scores[items])
        if scores[item] > mean if keep == "highest" else scores[item] < mean:
            items[slot] = item
        else:
            dropped += 1
    assert 10 < dropped < TOTAL - 7
    assert memory.items["x"].tolist() == [item + 1 for item in items]
    assert memory.scores.tolist() == scores[items].tolist()
    assert memory.seen == TOTAL


def test_priority_replaces_every_slot_alike():
    """One item better than a full memory takes each slot equally often."""
    policy = priority(5, replacement="random")
    first = {"x": jnp.zeros(5, jnp.int32)}
    full = policy.insert(policy.init(first), first, jax.random.key(0), jnp.arange(5.0))
    insert = lambda key: policy.insert(full, {"x": jnp.ones(1, jnp.int32)}, key, jnp.full(1, 3.0))
    taken = jax.jit(jax.vmap(insert))(jax.random.split(jax.random.key(1), 5000)).items["x"]
    assert (taken.sum(axis=1) == 1).all()
    np.testing.assert_allclose(taken.mean(axis=0), 0.2, atol=0.03)  # five standard deviations


def test_priority_draws_in_proportion():
    policy = priority(8, draw="score")
    scores = np.array([1.0, 0.0, 3.0, 4.0])
    memory, _ = offered(policy, 4, [0, 0, 0, 0], scores.astype(np.float32))
    drawn = policy.draw(memory, 8000, jax.random.key(0))["x"]
    share = np.bincount(np.asarray(drawn), minlength=5) / 8000
    np.testing.assert_allclose(share, [0, *(scores / 8)], atol=0.02)


class OneByOne:
    """Lists of items and labels; both papers' words, with the policies' own random numbers."""

    def __init__(self, capacity):
        self.capacity, self.items, self.labels = capacity, [], []
        self.met, self.full = {}, set()

    def largest(self):
        counts = {label: self.labels.count(label) for label in self.labels}
        return {label for label, count in counts.items() if count == max(counts.values())}

    def replace(self, item, label, classes, which):
        slots = [slot for slot, kept in enumerate(self.labels) if kept in classes]
        slot = slots[int(np.float32(which) * np.float32(len(slots)))]
        self.items[slot], self.labels[slot] = item, label

    def store(self, item, label):
        self.items.append(item)
        self.labels.append(label)

    def class_balanced(self, item, label, chance, which):
        self.met[label] = self.met.get(label, 0) + 1
        if len(self.items) < self.capacity:
            self.store(item, label)
            return
        self.full |= self.largest()
        if label not in self.full:
            self.replace(item, label, self.largest(), which)
        elif chance * self.met[label] < self.labels.count(label):
            self.replace(item, label, {label}, which)

    def greedy_balanced(self, item, label, chance, which):
        self.met[label] = self.met.get(label, 0) + 1
        if self.labels.count(label) < self.capacity / len(self.met):
            if len(self.items) < self.capacity:
                self.store(item, label)
            else:
                self.replace(item, label, self.largest(), which)


@pytest.mark.parametrize("make", [class_balanced, greedy_balanced])
@pytest.mark.parametrize("order", ["mixed", "sorted", "sorted, rare first"])
@pytest.mark.parametrize(("capacity", "batch"), [(12, 1), (12, 10), (5, 20)])
def test_by_class_equals_one_at_a_time(make, order, capacity, batch):
    targets = {"mixed": TARGETS, "sorted": np.sort(TARGETS),
               "sorted, rare first": np.sort(TARGETS)[::-1]}[order]  # fmt: skip
    policy = make(capacity, classes=4)
    memory, keys = offered(policy, batch, targets)
    reference = OneByOne(capacity)
    chances = np.concatenate([jax.random.uniform(key, (batch, 2)) for key in keys])
    for item, (label, chance) in enumerate(zip(targets, chances, strict=True)):
        getattr(reference, make.__name__)(item + 1, label, *chance)
    assert held(policy, memory) == reference.items
    assert memory.stored.tolist() == [reference.labels.count(label) for label in range(4)]
    assert memory.items["targets"].tolist()[: len(reference.labels)] == reference.labels
    assert memory.offered.tolist() == np.bincount(targets, minlength=4).tolist()


def test_class_balanced_is_balanced_and_uniform_within_a_class():
    """Of 30 of class 0, 8 of class 1 and 2 of class 2, a memory of 10 holds both of class 2 and
    four each of the others, and each item of a class with the same chance."""
    targets = np.array([*[0] * 30, *[1] * 8, *[2] * 2])
    policy, streams = class_balanced(10, classes=3), 3000
    order = jax.vmap(lambda key: jax.random.permutation(key, 40))(
        jax.random.split(jax.random.key(0), streams)
    )

    def run(order, key):
        batch = {"x": order, "targets": jnp.asarray(targets, jnp.int32)[order]}
        return policy.insert(policy.init(batch), batch, key)

    memory = jax.jit(jax.vmap(run))(order, jax.random.split(jax.random.key(1), streams))
    stored = np.asarray(memory.stored)
    assert (stored[:, 2] == 2).all()
    assert np.abs(stored[:, 0] - stored[:, 1]).max() <= 4
    # The items are met in a random order, so the place in the stream must not matter.
    position = np.argsort(np.asarray(order), axis=1)
    kept = np.zeros((streams, 40), bool)
    for stream, items in enumerate(np.asarray(memory.items["x"])):
        kept[stream, position[stream, items[targets[items] == 0]]] = True
    there = np.stack([targets[row] == 0 for row in np.asarray(order)])
    chance = kept.sum(0) / there.sum(0)
    mean = kept.sum() / there.sum()
    assert np.abs((chance - mean) / np.sqrt(mean * (1 - mean) / there.sum(0))).max() < 4


def icarl(features, share):
    """Algorithm 4, one exemplar at a time; the features have length 1."""
    features = features / np.linalg.norm(features, axis=1, keepdims=True)
    mean, chosen = features.mean(axis=0), []
    for k in range(1, min(share, len(features)) + 1):
        left = [row for row in range(len(features)) if row not in chosen]
        total = features[chosen].sum(axis=0)
        chosen.append(min(left, key=lambda row: np.linalg.norm(mean - (features[row] + total) / k)))
    return chosen


def test_herding_equals_one_at_a_time_and_shares_shrink():
    policy = herding(12, 4, lambda params, inputs: inputs)
    random = np.random.default_rng(0)
    tasks = [np.array([2] * 9 + [0] * 2), np.array([1] * 6 + [3] * 4 + [2])]
    expected, memory, insert = {}, None, jax.jit(policy.insert)
    for number, targets in enumerate(tasks):
        targets = random.permutation(targets)
        features = random.normal(size=(11, 3)).astype(np.float32) + 1
        batch = {"x": jnp.arange(11) + 100 * number, "targets": jnp.asarray(targets)}
        memory = policy.init(batch) if memory is None else memory
        memory = insert(memory, batch, None, jnp.asarray(features))
        for label in np.unique(targets):
            if label not in expected:
                rows = np.flatnonzero(targets == label)
                best = rows[icarl(features[rows], 12)] + 100 * number
                expected[label] = best.tolist()
        share = 12 // len(expected)
        filled = np.asarray(policy.filled(memory))
        for label, best in expected.items():
            mine = filled & (np.asarray(memory.items["targets"]) == label)
            assert np.asarray(memory.items["x"])[mine].tolist() == best[:share]
        assert filled.sum() == sum(len(best[:share]) for best in expected.values())
    assert filled.sum() == 3 + 2 + 3 + 3
    drawn = set(np.asarray(policy.draw(memory, 400, jax.random.key(0))["x"]).tolist())
    assert drawn == set(held(policy, memory))


def test_balanced_draws_give_every_class_the_same_chance():
    policy = balanced(reservoir(100))
    memory, _ = offered(policy, 20, [0] * 14 + [2] * 5 + [3])
    drawn = policy.draw(memory, 9000, jax.random.key(0))
    share = np.bincount(np.asarray(drawn["targets"]), minlength=4) / 9000
    np.testing.assert_allclose(share, [1 / 3, 0, 1 / 3, 1 / 3], atol=0.02)
    within = np.bincount(np.asarray(drawn["x"]))[15:20]
    np.testing.assert_allclose(within, 600, rtol=0.2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ring(0), "a whole number, at least 1"),
        (lambda: priority(0), "a whole number, at least 1"),
        (lambda: priority(5, keep="newest"), '"highest", "lowest"'),
        (lambda: priority(5, replacement="oldest"), '"priority", "random"'),
        (lambda: priority(5, draw="best"), '"uniform", "score"'),
        (lambda: class_balanced(5, classes=6), "room for an item of each class"),
        (lambda: greedy_balanced(5, classes=0), "a whole number, at least 1"),
        (lambda: herding(2, 3, lambda params, inputs: inputs), "room for an item of each class"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize(
    "policy",
    [
        class_balanced(5, 2),
        greedy_balanced(5, 2),
        balanced(ring(5)),
        herding(5, 2, lambda params, inputs: inputs),
    ],
)
@pytest.mark.parametrize("batch", [{"x": jnp.zeros(4)}, {"targets": jnp.zeros((4, 7))}])
def test_a_batch_without_labels_is_refused(policy, batch):
    with pytest.raises(InputError, match="the batch has no labels"):
        policy.init(batch)
