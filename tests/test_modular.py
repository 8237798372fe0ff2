"""Freezing, params per task, pruning: the strategies that rule which params move."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

import jcl
from jcl import InputError


def trained(strategy, steps=4, *, total=0, learner=None, state=None):
    """The learner and its state after some steps of one task."""
    learner = learner or jcl.learner(toy.loss_fn, strategy)
    state = state or learner.init(None, toy.params(), toy.batch(0))
    state = jcl.start_task(state, total) if total else state
    step = jax.jit(learner.step)
    for number in range(steps):
        state, _ = step(state, toy.batch(number))
    return learner, state


def still(one, other):
    """Which leaves are bitwise the same."""
    return jax.tree.map(lambda a, b: bool(jnp.all(a == b)), one, other)


def test_what_is_frozen_does_not_move_even_by_weight_decay():
    optimizer = optax.adamw(1e-2, weight_decay=0.5)
    _, state = trained(jcl.chain(optimizer, jcl.freeze("body/*")))
    assert still(state.params, toy.params()) == {
        "body": {"kernel": True, "bias": True},
        "head": {"kernel": False},
    }
    _, state = trained(jcl.chain(optimizer, jcl.freeze("*", but=["head/*", "body/bias"])))
    assert still(state.params, toy.params()) == {
        "body": {"kernel": True, "bias": False},
        "head": {"kernel": False},
    }


def test_gradual_unfreezing_thaws_at_its_share_of_the_task():
    strategy = jcl.chain(optax.sgd(0.1), jcl.freeze({"head/*": 0.25, "body/kernel": 0.5}))
    learner, state = trained(strategy, 1, total=4)
    assert still(state.params, toy.params())["head"]["kernel"]
    assert not still(state.params, toy.params())["body"]["bias"]
    for moved in (["head/kernel"], ["body/kernel", "head/kernel"]):
        before = state.params
        state, _ = learner.step(state, toy.batch(5))
        same = still(before, state.params)
        assert same["head"]["kernel"] == ("head/kernel" not in moved)
        assert same["body"]["kernel"] == ("body/kernel" not in moved)
    before = (state := learner.consolidate(state, toy.stacked())).params
    state, _ = learner.step(jcl.start_task(state, 4), toy.batch(5))
    assert still(before, state.params)["head"]["kernel"]  # a new task begins frozen


def test_the_first_pattern_counts():
    strategy = jcl.chain(optax.sgd(0.1), jcl.freeze({"body/bias": 0.0, "body/*": 1.0}))
    _, state = trained(strategy, 1, total=4)
    assert still(state.params, toy.params())["body"] == {"kernel": True, "bias": False}


def test_the_gradient_of_what_is_frozen_is_dropped():
    def products(strategy):
        learner = jcl.learner(toy.loss_fn, strategy)
        state = learner.init(None, toy.params(), toy.batch(0))
        return jax.jit(learner.step).lower(state, toy.batch(0)).compile().as_text().count(" dot(")

    frozen = jcl.chain(jcl.only("head/*", optax.adamw(1e-3)), jcl.freeze("*", but="head/*"))
    assert products(optax.adamw(1e-3)) == 5
    assert products(frozen) == 3  # forward two, and the head's gradient


def test_rates_and_weight_decay_of_their_own_for_every_module():
    strategy = jcl.chain(
        jcl.only("body/*", optax.adamw(1e-4)),
        jcl.only("head/*", optax.adamw(1e-3, weight_decay=0.0)),
    )
    _, state = trained(strategy, 1)
    gradient = jax.grad(lambda params: toy.loss_fn(params, toy.batch(0), None)[0])(toy.params())
    for module, optimizer in (
        ("body", optax.adamw(1e-4)),
        ("head", optax.adamw(1e-3, weight_decay=0.0)),
    ):
        params = toy.params()[module]
        updates, _ = optimizer.update(gradient[module], optimizer.init(params), params)
        expected = optax.apply_updates(params, updates)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), state.params[module], expected
        )


def labelled(task, size=toy.BATCH):
    return {**toy.batch(0), "task": jnp.full(size, task, jnp.int32)}


@pytest.mark.parametrize("where", ["*", "head/*"])
def test_separate_shows_every_task_its_own_params(where):
    strategy = jcl.chain(jcl.separate(where, tasks=3), optax.sgd(0.3))
    learner, state = trained(strategy)
    initial, ended = toy.params(), []
    for _ in range(2):
        ended.append(state.params)
        state = learner.consolidate(state, toy.stacked())
        chosen = ["head"] if where == "head/*" else ["head", "body"]
        for module in chosen:  # the next task starts from the initial ones
            assert all(jax.tree.leaves(still(state.params[module], initial[module])))
        _, state = trained(None, learner=learner, state=state)
    ended.append(state.params)
    for task, params in enumerate(ended):
        body = state.params["body"] if where == "head/*" else params["body"]
        seen = {"body": body, "head": params["head"]}
        np.testing.assert_array_equal(
            learner.predict(state, labelled(task))["logits"],
            toy.loss_fn(seen, toy.batch(0), None)[1]["logits"],
        )
    np.testing.assert_array_equal(  # without labels, the current ones
        learner.predict(state, toy.batch(0))["logits"],
        toy.loss_fn(state.params, toy.batch(0), None)[1]["logits"],
    )


def test_separate_may_go_on_from_the_task_before():
    learner, state = trained(jcl.chain(jcl.separate("*", 2, restart=False), optax.sgd(0.3)))
    following = learner.consolidate(state, toy.stacked())
    assert all(jax.tree.leaves(still(state.params, following.params)))


def test_separate_stays_at_its_last_copy_and_learns_through_the_view():
    learner, state = trained(jcl.chain(jcl.separate("*", 2), optax.sgd(0.3)), 1)
    for _ in range(3):
        state = learner.consolidate(state, toy.stacked())
        assert int(state.strategy[0].task) == 1
    after, _ = learner.step(state, labelled(1))
    plain, _ = learner.step(state, toy.batch(0))
    assert all(jax.tree.leaves(still(after.params, plain.params)))
    assert not all(jax.tree.leaves(still(after.params, state.params)))
    after, _ = learner.step(state, labelled(0))  # a past task's batch teaches nothing
    assert all(jax.tree.leaves(still(after.params, state.params)))


KERNELS = (("body", "kernel"), ("head", "kernel"))


def kernels(tree):
    return [np.asarray(tree[module][name]) for module, name in KERNELS]


@pytest.mark.parametrize("retrain", [0.0, 0.5])
def test_packnet_owns_the_largest_free_weights_and_keeps_them(retrain):
    strategy = jcl.chain(optax.adamw(5e-2), jcl.packnet(0.4, retrain=retrain))
    learner = jcl.learner(toy.loss_fn, strategy)
    state, step = learner.init(None, toy.params(), toy.batch(0)), jax.jit(learner.step)
    owner, ended = [np.zeros(leaf.shape) for leaf in kernels(toy.params())], []
    for task in range(1, 4):
        state = jcl.start_task(state, 4)
        begun = state.params
        for number in range(4):
            if number == 2 and retrain:
                trained = kernels(state.params)
            state, _ = step(state, toy.batch(number, task))
        bias = begun["body"]["bias"], state.params["body"]["bias"]
        assert bool(jnp.all(bias[0] == bias[1])) == (task > 1)
        trained = trained if retrain else kernels(state.params)
        state = learner.consolidate(state, toy.stacked())
        for index, (mine, weights) in enumerate(zip(owner, trained, strict=True)):
            free = np.flatnonzero(mine == 0)
            number = int(np.round(0.4 * len(free)))
            largest = free[np.argsort(-np.abs(weights.ravel()[free]))[:number]]
            mine.ravel()[largest] = task
            np.testing.assert_array_equal(kernels(state.strategy[1].owner)[index], mine)
            np.testing.assert_array_equal(kernels(state.params)[index][mine == 0], 0)
            before = kernels(begun)[index]
            old = (mine > 0) & (mine < task)
            np.testing.assert_array_equal(kernels(state.params)[index][old], before[old])
            assert np.all(kernels(state.params)[index][mine == task] != before[mine == task])
            if retrain:  # the weights it kept went on after the pruning
                own = mine == task
                assert np.any(kernels(state.params)[index][own] != weights[own])
        ended.append(state.params)
    assert int(state.strategy[1].task) == 4
    assert step._cache_size() == 1
    state, _ = step(jcl.start_task(state, 4), toy.batch(0))  # the free weights are in use again
    for task, params in enumerate(ended):
        np.testing.assert_array_equal(  # and an old task sees its own and those before, as it ended
            learner.predict(state, labelled(task))["logits"],
            toy.loss_fn(params, toy.batch(0), None)[1]["logits"],
        )
    for batch in (labelled(3), toy.batch(0)):
        np.testing.assert_array_equal(
            learner.predict(state, batch)["logits"],
            toy.loss_fn(state.params, toy.batch(0), None)[1]["logits"],
        )


def test_packnet_prunes_once_and_only_its_own_weights_move_after():
    strategy = jcl.chain(optax.adamw(5e-2), jcl.packnet(0.5, retrain=0.5))
    learner, state = trained(strategy, 2, total=4)
    assert not state.strategy[1].pruned
    assert all(np.all(leaf != 0) for leaf in kernels(state.params))
    owners = []
    for number in (2, 3):
        state, _ = learner.step(state, toy.batch(number))
        owners.append(kernels(state.strategy[1].owner))
        for owner, weights in zip(owners[-1], kernels(state.params), strict=True):
            assert owner.sum() == owner.size / 2
            np.testing.assert_array_equal(weights != 0, owner == 1)
    assert state.strategy[1].pruned
    jax.tree.map(np.testing.assert_array_equal, *owners)


def test_these_strategies_work_on_a_part_of_the_params():
    strategy = jcl.chain(
        jcl.separate("body/*", tasks=2), optax.adamw(5e-2),
        jcl.only("body/*", jcl.packnet(0.5, retrain=0.5)), jcl.only("head/*", jcl.freeze("*")),
    )  # fmt: skip
    learner, state = trained(strategy, total=4)
    assert state.strategy[2].owner["head"]["kernel"] is None
    assert still(state.params, toy.params())["head"]["kernel"]
    assert np.sum(state.params["body"]["kernel"] == 0) == toy.INPUTS * toy.HIDDEN / 2
    state = jax.jit(learner.consolidate)(state, toy.stacked())
    assert jnp.isfinite(learner.predict(state, labelled(0))["logits"]).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: jcl.freeze("a", until=1.5), r"a number in \[0, 1\]"),
        (lambda: jcl.freeze({"a": -0.5}), r"a number in \[0, 1\]"),
        (lambda: jcl.freeze({"a": 0.5}, until=0.5), "leave out until"),
        (lambda: jcl.chain(jcl.freeze("a"), optax.sgd(0.1)), "must stand after the optimizer"),
        (lambda: jcl.separate("*", tasks=0), "a whole number, at least 1"),
        (lambda: jcl.packnet(0.0), r"in \(0, 1\]"),
        (lambda: jcl.packnet(0.5, retrain=1.0), r"in \[0, 1\)"),
        (lambda: jcl.chain(jcl.packnet(0.5), optax.sgd(0.1)), "must stand after the optimizer"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize(
    "part",
    [jcl.freeze("boddy/kernel"), jcl.freeze("*", but="boddy/kernel"),
     jcl.separate("boddy/kernel", 2)],
)  # fmt: skip
def test_unknown_patterns_list_the_nearest_paths(part):
    learner = jcl.learner(toy.loss_fn, jcl.chain(optax.sgd(0.1), part))
    nearest = f"^{part.name}: .*'boddy/kernel'. The nearest are: body/kernel"
    with pytest.raises(InputError, match=nearest):
        learner.init(None, toy.params(), toy.batch(0))
