"""Steps that are not finite: left out whole, counted, and at most so many in a row."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

import jcl
from jcl import InputError

CHAIN = jcl.chain(jcl.replay(capacity=24, size=8), optax.adamw(1e-2))
POISON = toy.batch(5) | {"inputs": toy.batch(5)["inputs"].at[3, 2].set(jnp.nan)}


class Compiled:
    def __init__(self, strategy):
        self.traces = 0
        self.learner = jcl.learner(toy.loss_fn, strategy)

        def step(state, batch):
            self.traces += 1
            return self.learner.step(state, batch)

        self.step = jax.jit(step, donate_argnums=0)

    def begin(self):
        return self.learner.init(jax.random.key(0), toy.params(), toy.batch(0))


@pytest.fixture(scope="module")
def skipping():
    return Compiled(jcl.skip_nonfinite(CHAIN, most=2))


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_where_all_is_finite_nothing_changes(skipping):
    plain, ends = Compiled(CHAIN), []
    for functions in (plain, skipping):
        state = functions.begin()
        for number in range(3):
            state, metrics = functions.step(state, toy.batch(number))
        ends.append((state, metrics))
    (expected, told), (state, metrics) = ends
    assert {key: int(metrics.pop(key)) for key in ("skipping", "skipped")} == {
        "skipping": 0, "skipped": 0,
    }  # fmt: skip
    assert metrics.keys() == told.keys()
    close = lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, (state.params, state.strategy.inner), (expected.params, expected.strategy))


def test_a_poisoned_step_leaves_nothing_behind_and_is_counted(skipping):
    state = skipping.begin()
    state, _ = skipping.step(state, toy.batch(0))
    kept = jax.tree.map(np.array, (state.params, state.strategy.inner))  # no views: donated next
    key = jax.random.key_data(state.key)
    for number in (1, 2):
        given = state
        state, metrics = skipping.step(state, POISON)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given.params))
        assert not np.isfinite(metrics["loss"])
        assert (int(metrics["skipping"]), int(metrics["skipped"])) == (1, number)
        same(jax.device_get((state.params, state.strategy.inner)), kept)
    assert int(state.step) == 3
    assert not np.array_equal(jax.random.key_data(state.key), key)
    state, metrics = skipping.step(state, toy.batch(1))
    assert (int(metrics["skipping"]), int(metrics["skipped"])) == (0, 2)
    assert int(state.strategy.in_a_row) == 0
    assert int(state.strategy.inner[0].seen) == 2 * toy.BATCH
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    assert skipping.traces == 1


def test_more_in_a_row_than_allowed_are_taken_as_they_are(skipping):
    state = skipping.begin()
    for expected in (1, 1, 0, 0):
        state, metrics = skipping.step(state, POISON)
        assert int(metrics["skipping"]) == expected
    assert int(metrics["skipped"]) == 2
    assert not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    state, metrics = skipping.step(state, toy.batch(0))  # nothing hides it any more
    assert int(metrics["skipping"]) == 0
    assert not np.isfinite(metrics["loss"])


@pytest.mark.parametrize("spoiled", ["updates", "state"])
def test_a_step_or_a_state_that_is_no_number_counts_though_the_loss_is_one(spoiled):
    """As of an optimizer that overflows; optax.apply_if_finite looks at the gradient alone."""

    def update(updates, state, params, *, step, **_):
        bad = jnp.where(step == 1, jnp.nan, 1.0)
        if spoiled == "updates":
            return jax.tree.map(lambda leaf: leaf * bad, updates), state
        return updates, state * bad

    part = jcl.strategy(name="spoil", init=lambda params, **_: jnp.ones(()), update=update)
    row = Compiled(jcl.skip_nonfinite(jcl.chain(optax.sgd(0.1), part), most=1))
    state, found = row.begin(), []
    for number in range(3):
        state, metrics = row.step(state, toy.batch(number))
        found.append(int(metrics["skipping"]))
    assert found == [0, 1, 0]
    assert np.isfinite(state.strategy.inner[1])


def test_each_seed_leaves_out_its_own_steps():
    one = jcl.learner(toy.loss_fn, jcl.skip_nonfinite(optax.sgd(0.1), most=2))
    several = jcl.over_seeds(one)
    params = jax.vmap(toy.initial)(jax.random.split(jax.random.key(0), 2))
    stack = lambda *batches: jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)
    both = stack(toy.batch(0), toy.batch(0))
    state = several.init(jax.random.split(jax.random.key(1), 2), params, both)
    state, metrics = jax.jit(several.step)(state, stack(toy.batch(1), POISON))
    assert metrics["skipping"].tolist() == metrics["skipped"].tolist() == [0, 1]
    moved = jnp.abs(state.params["head"]["kernel"] - params["head"]["kernel"]).max((1, 2))
    assert moved[0] > 0
    assert moved[1] == 0


def test_all_five_functions_are_those_of_the_strategy():
    chain = jcl.chain(jcl.seen_classes(toy.CLASSES), jcl.ewc(0.5), optax.adamw(1e-2))
    learners = [jcl.learner(toy.masked_loss_fn, each)
                for each in (chain, jcl.skip_nonfinite(chain, most=2))]  # fmt: skip
    plain, wrapped = [each.init(jax.random.key(0), toy.params(), toy.batch(0)) for each in learners]
    same(wrapped.strategy.inner, plain.strategy)
    for _ in range(2):
        plain, wrapped = (
            jax.eval_shape(each.consolidate, state, toy.stacked())
            for each, state in zip(learners, (plain, wrapped), strict=True)
        )
    assert jax.tree.structure(wrapped.strategy.inner) == jax.tree.structure(plain.strategy)
    _, metrics = jax.eval_shape(learners[1].step, wrapped, toy.batch(0))
    assert set(metrics) == {"loss", "total", "ewc", "skipping", "skipped"}


def test_it_stands_around_the_whole_strategy():
    inside = jcl.chain(jcl.skip_nonfinite(optax.adamw(1e-3), most=2), jcl.si(0.1))
    with pytest.raises(InputError, match="stands around the whole strategy"):
        jcl.learner(toy.loss_fn, inside)
    with pytest.raises(InputError, match=r"skip_nonfinite\(most=0\): a whole number, at least 1"):
        jcl.skip_nonfinite(CHAIN, most=0)
