"""chain, lift, per_task, periodically, only and scheduled, each by what it promises."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

import jcl
from jcl import InputError, core

STEP = jcl.strategy(name="mask", side="step")


def scale(factor):
    return jcl.strategy(
        name="scale",
        update=lambda updates, state, params, **_: (
            jax.tree.map(lambda leaf: factor * leaf, updates),
            state,
        ),
    )


def updated(strategy, params=None, updates=None, **extra):
    """One update of a strategy outside any learner."""
    params = toy.params() if params is None else params
    batch = toy.batch(0)
    (value, aux), grad = jax.value_and_grad(toy.loss_fn, has_aux=True)(params, batch, None)
    state = strategy.init(params, batch=batch, aux=aux)
    given = {
        "value": value, "value_fn": lambda params: toy.loss_fn(params, batch, None)[0],
        "grad": grad, "loss_fn": toy.loss_fn, "batch": batch, "aux": aux, "key": None,
        "progress": jnp.zeros(()), "step": jnp.zeros((), jnp.int32),
    }  # fmt: skip
    updates = grad if updates is None else updates
    return strategy.update(updates, state, params, **(given | extra))


def test_order_is_meaning():
    left = updated(jcl.chain(scale(0.0), optax.adamw(1.0, weight_decay=0.1)))[0]
    right = updated(jcl.chain(optax.adamw(1.0, weight_decay=0.1), scale(0.0)))[0]
    # Left of AdamW a mask does not freeze: the weight decay still moves the weights.
    np.testing.assert_allclose(left["head"]["kernel"], -0.1 * toy.params()["head"]["kernel"], 1e-5)
    assert jnp.all(right["head"]["kernel"] == 0)


@pytest.mark.parametrize(
    "parts",
    [
        (STEP, optax.sgd(0.1)),
        (STEP, jcl.per_task(optax.sgd(0.1))),
        (jcl.chain(optax.sgd(0.1), STEP), jcl.chain(jcl.ewc(1.0), optax.clip(1.0))),
        (jcl.only("head/*", STEP), jcl.only("body/*", optax.sgd(0.1))),
        (STEP, jcl.scheduled(optax.sgd, jcl.cosine(0.1))),
    ],
)
def test_a_part_that_edits_the_step_stands_after_the_optimizer(parts):
    with pytest.raises(InputError, match="must stand after the optimizer"):
        jcl.chain(*parts)


def test_after_the_optimizer_it_is_welcome():
    assert jcl.chain(optax.sgd(0.1), STEP, jcl.ewc(1.0)).side == "step"


def test_what_is_no_strategy_is_refused():
    with pytest.raises(InputError, match="ewc instead of ewc"):
        jcl.chain(jcl.ewc, optax.sgd(0.1))
    with pytest.raises(InputError, match='"gradient", "step"'):
        jcl.strategy(name="x", side="left")


def test_terms_of_the_same_name_are_numbered():
    part = jcl.strategy(name="one", loss=lambda state, params, **_: {"term": jnp.ones(())})
    strategy = jcl.chain(part, jcl.chain(part, part))
    terms = strategy.loss(
        strategy.init({}, batch={}, aux={}), {}, key=None, batch={}, aux={}, loss_fn=None
    )
    assert sorted(terms) == ["term", "term_2", "term_2_2"]


def test_views_compose_from_left_to_right():
    double = jcl.strategy(name="double", view=lambda state, params, batch: (
        jax.tree.map(lambda leaf: 2 * leaf, params), batch))  # fmt: skip
    shift = jcl.strategy(name="shift", view=lambda state, params, batch: (
        jax.tree.map(lambda leaf: leaf + 1, params), batch))  # fmt: skip
    learner = jcl.learner(toy.loss_fn, jcl.chain(double, shift, optax.sgd(0.1)))
    state = learner.init(None, toy.params(), toy.batch(0))
    seen = jax.tree.map(lambda leaf: 2 * leaf + 1, toy.params())
    expected = toy.loss_fn(seen, toy.batch(0), None)[1]["logits"]
    np.testing.assert_allclose(learner.predict(state, toy.batch(0))["logits"], expected, rtol=1e-6)


def test_the_loss_given_to_strategies_leaves_out_the_other_terms():
    heard = {}

    def loss(state, params, *, batch, loss_fn, **_):
        heard["loss"] = loss_fn(params, batch, None)[0]
        return {"spy": 100.0 * jnp.ones(())}

    def update(updates, state, params, *, batch, loss_fn, value, grad, value_fn, **_):
        heard["update"], heard["value"] = loss_fn(params, batch, None)[0], value
        heard["value_fn"], heard["grad"] = value_fn(params), grad
        return updates, state

    spy = jcl.strategy(name="spy", loss=loss, update=update)
    learner = jcl.learner(toy.loss_fn, jcl.chain(spy, jcl.ewc(5.0), optax.sgd(0.1)))
    state = learner.init(None, toy.params(), toy.batch(0))
    learner.step(state, toy.batch(0))
    alone = toy.loss_fn(toy.params(), toy.batch(0), None)[0]
    np.testing.assert_allclose(heard["update"], alone, rtol=1e-6)
    np.testing.assert_allclose(heard["value"], alone + 100, rtol=1e-6)
    np.testing.assert_allclose(heard["value_fn"], alone + 100, rtol=1e-6)
    assert jax.tree.structure(heard["grad"]) == jax.tree.structure(toy.params())


def test_per_task_starts_the_optimizer_afresh():
    learner = jcl.learner(toy.loss_fn, jcl.per_task(optax.adam(0.1)))
    state = learner.init(None, toy.params(), toy.batch(0))
    fresh = state.strategy
    state, _ = learner.step(state, toy.batch(0))
    assert int(state.strategy[0].count) == 1
    state = learner.consolidate(state, toy.stacked())
    assert jax.tree.all(jax.tree.map(lambda a, b: jnp.all(a == b), state.strategy, fresh))


def test_periodically_consolidates_on_the_last_batches():
    def consolidate(state, params, *, batches, **_):
        return state + batches["inputs"].sum(axis=(1, 2)), params

    part = jcl.strategy(name="sums", init=lambda params, **_: jnp.zeros(2), consolidate=consolidate)
    learner = jcl.learner(
        toy.loss_fn, jcl.chain(jcl.periodically(part, every=3, batches=2), optax.sgd(0.1))
    )
    state = learner.init(None, toy.params(), toy.batch(0))
    sums = [toy.batch(number)["inputs"].sum() for number in range(6)]
    step = jax.jit(learner.step)
    history = []
    for number in range(6):
        state, _ = step(state, toy.batch(number))
        history.append(sorted(np.asarray(state.strategy[0].inner)))
    np.testing.assert_array_equal(history[1], [0, 0])
    np.testing.assert_allclose(history[2], sorted([sums[1], sums[2]]), rtol=1e-5)
    np.testing.assert_array_equal(history[3], history[2])
    # The ring has two places: batches 4 and 5 lie at 0 and 1, 1 and 2 lay at 1 and 0.
    np.testing.assert_allclose(
        history[5], sorted([sums[2] + sums[4], sums[1] + sums[5]]), rtol=1e-5
    )
    assert learner.consolidate(state, toy.stacked()).strategy[0].inner is not None


def test_periodically_stays_a_branch_over_seeds():
    learner = jcl.learner(
        toy.loss_fn, jcl.chain(jcl.periodically(jcl.ewc(1.0), every=3, batches=2), optax.sgd(0.1))
    )
    states = [learner.init(jax.random.key(s), toy.params(s), toy.batch(0)) for s in range(2)]
    state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    state = state._replace(step=jnp.int32(0), task_step=jnp.int32(0), task_steps=jnp.int32(1))
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), toy.batch(0))
    text = str(jax.make_jaxpr(jcl.over_seeds(learner).step)(state, batch))
    assert "cond[" in text


@pytest.mark.parametrize(
    "part",
    [jcl.ewc(1.0), jcl.chain(jcl.replay(9, 2)), jcl.seen_classes(3)],
)
def test_a_method_is_no_optimizer(part):
    with pytest.raises(InputError, match="no optimizer makes a step for body/bias"):
        jcl.learner(toy.loss_fn, part).init(None, toy.params(), toy.batch(0))
    with pytest.raises(InputError, match="would forget at every boundary"):
        jcl.per_task(part)


@pytest.mark.parametrize(
    "part",
    [
        jcl.only("head/*", optax.sgd(0.1)),
        jcl.chain(jcl.only("head/*", optax.sgd(0.1)), jcl.freeze({"body/kernel": 1, "*": 0.5})),
        jcl.only("head/*", jcl.freeze("*")),
    ],
)
def test_params_without_an_optimizer_are_named(part):
    with pytest.raises(InputError, match=r"no optimizer makes a step for body/bias.*freeze"):
        jcl.learner(toy.loss_fn, part).init(None, toy.params(), toy.batch(0))


def test_a_step_of_ones_own_says_so():
    descend = jcl.strategy(
        name="descend",
        optimizes=True,
        update=lambda updates, state, params, **_: (
            jax.tree.map(lambda leaf: -0.1 * leaf, updates),
            state,
        ),
    )
    own = jcl.learner(toy.loss_fn, jcl.chain(jcl.ewc(1.0), jcl.per_task(descend)))
    optaxs = jcl.learner(toy.loss_fn, jcl.chain(jcl.ewc(1.0), optax.sgd(0.1)))
    ends = [
        learner.step(learner.init(None, toy.params(), toy.batch(0)), toy.batch(0))[0].params
        for learner in (own, optaxs)
    ]
    jax.tree.map(np.testing.assert_array_equal, *ends)


@pytest.mark.parametrize("part", [jcl.separate("head/*", 2), jcl.packnet(0.5)])
def test_an_evaluation_without_the_label_of_its_task_is_refused(part):
    learner = jcl.learner(toy.loss_fn, jcl.chain(optax.sgd(0.1), part))
    batch = {key: leaf for key, leaf in toy.batch(0).items() if key != "task"}
    state, _ = learner.step(learner.init(None, toy.params(), batch), batch)  # training needs none
    with pytest.raises(InputError, match=r"needs 'task'.*jcl.data.labelled"):
        learner.evaluate(state, batch)


def test_periodically_refuses():
    with pytest.raises(InputError, match="between 1 and every"):
        jcl.periodically(jcl.ewc(1.0), every=2, batches=3)
    prune = jcl.strategy(
        name="prune",
        consolidate=lambda state, params, **_: (state, jax.tree.map(jnp.zeros_like, params)),
    )
    strategy = jcl.chain(jcl.periodically(prune, every=2, batches=1), optax.sgd(0.1))
    learner = jcl.learner(toy.loss_fn, strategy)
    with pytest.raises(InputError, match="changes the params"):
        learner.step(learner.init(None, toy.params(), toy.batch(0)), toy.batch(0))


def test_only_restricts_state_updates_and_gradients():
    strategy = jcl.only("head/*", optax.adam(0.1))
    params = toy.params()
    state = strategy.init(params, batch=toy.batch(0), aux={})
    sizes = [leaf.size for leaf in jax.tree.leaves(state)]
    assert sum(sizes) == 1 + 2 * params["head"]["kernel"].size
    gradient = jax.tree.map(jnp.ones_like, params)
    updates, _ = updated(strategy, params, gradient)
    assert jnp.all(updates["body"]["kernel"] == 1)
    np.testing.assert_allclose(updates["head"]["kernel"], -0.1, rtol=1e-4)


def test_only_differentiates_only_the_chosen():
    learner = jcl.learner(toy.loss_fn, jcl.chain(jcl.only("body/*", jcl.ewc(1.0)), optax.sgd(0.1)))
    full = jcl.learner(toy.loss_fn, jcl.chain(jcl.ewc(1.0), optax.sgd(0.1)))
    state = learner.init(None, toy.params(), toy.batch(0))
    part = learner.consolidate(state, toy.stacked()).strategy[0]
    whole = full.consolidate(full.init(None, toy.params(), toy.batch(0)), toy.stacked()).strategy[0]
    assert part.importance["head"]["kernel"] is None
    np.testing.assert_allclose(part.importance["body"]["bias"], whole.importance["body"]["bias"])
    text = str(jax.make_jaxpr(learner.consolidate)(state, toy.stacked()))
    assert text.count("dot_general") < str(
        jax.make_jaxpr(full.consolidate)(full.init(None, toy.params(), toy.batch(0)), toy.stacked())
    ).count("dot_general")


def test_only_merges_view_and_consolidate():
    part = jcl.strategy(
        name="zero",
        view=lambda state, params, batch: (jax.tree.map(jnp.zeros_like, params), batch),
        consolidate=lambda state, params, **_: (state, jax.tree.map(jnp.zeros_like, params)),
    )
    strategy = jcl.only(["body/kernel", "body/bias"], part)
    seen, _ = strategy.view((), toy.params(), {})
    _, kept = strategy.consolidate((), toy.params(), batches={}, loss_fn=toy.loss_fn, key=None)
    for params in (seen, kept):
        assert jnp.all(params["body"]["kernel"] == 0)
        assert jnp.all(params["head"]["kernel"] == toy.params()["head"]["kernel"])


def test_only_lists_the_nearest_paths():
    strategy = jcl.chain(optax.sgd(0.1), jcl.only("boddy/kernel", jcl.ewc(1.0)))
    learner = jcl.learner(toy.loss_fn, strategy)
    with pytest.raises(InputError, match="boddy/kernel.*nearest are: body/kernel"):
        learner.init(None, toy.params(), toy.batch(0))


def test_the_default_measure_does_not_count_padding():
    def loss_fn(params, batch, key):
        losses = params * batch["inputs"] * batch["mask"]
        return losses.mean(), {"logits": losses, "losses": losses}

    learner = jcl.learner(loss_fn, optax.sgd(0.1))
    batch = {"inputs": jnp.array([1.0, 2.0, 7.0]), "mask": jnp.array([1.0, 1.0, 0.0])}
    state = learner.init(None, jnp.ones(()), batch)
    assert [float(number) for number in learner.evaluate(state, batch)] == [3, 2]


def test_progress_without_start_task_stays_at_the_beginning():
    learner = jcl.learner(toy.loss_fn, jcl.scheduled(optax.sgd, jcl.cosine(0.1)))
    state = learner.init(None, toy.params(), toy.batch(0))
    for _ in range(3):
        before = state.params
        state, _ = learner.step(state, toy.batch(0))
        assert jnp.any(state.params["head"]["kernel"] != before["head"]["kernel"])
    with pytest.raises(InputError, match="a whole number, at least 1"):
        jcl.start_task(state, 0)


def test_cosine_against_hand_computed_values():
    schedule = jcl.cosine(2.0, warmup=0.2, floor=0.5)
    progress = [0.0, 0.1, 0.2, 0.6, 1.0]
    expected = [0.0, 1.0, 2.0, 1.25, 0.5]
    np.testing.assert_allclose([schedule(jnp.float32(t)) for t in progress], expected, atol=1e-6)
    assert float(jcl.cosine(2.0)(jnp.float32(0.0))) == 2.0
    with pytest.raises(InputError, match=r"\[0, 1\)"):
        jcl.cosine(1.0, warmup=1.0)


def test_scheduled_follows_the_progress_of_tasks_of_any_length():
    learner = jcl.learner(toy.loss_fn, jcl.scheduled(optax.sgd, lambda progress: 1.0 - progress))
    step = jax.jit(learner.step)
    for steps in (4, 10):
        state = jcl.start_task(learner.init(None, toy.params(), toy.batch(0)), steps)
        for number in range(3):
            gradient = jax.grad(lambda p: toy.loss_fn(p, toy.batch(0), None)[0])(state.params)
            expected = jax.tree.map(
                lambda p, g: p - (1 - number / steps) * g,
                state.params,
                gradient,
            )
            state, _ = step(state, toy.batch(0))
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6),
                         state.params, expected)  # fmt: skip
    assert step._cache_size() == 1


def test_any_optax_transformation_composes():
    for transformation in (
        optax.lion(1e-3), optax.adafactor(1e-3), optax.chain(optax.clip(1.0), optax.sgd(0.1)),
        optax.contrib.reduce_on_plateau(), optax.apply_every(2),
        optax.contrib.schedule_free_adamw(), optax.lbfgs(), optax.contrib.dog(1.0),
        optax.polyak_sgd(),
        optax.partition({"train": optax.adam(1e-3), "freeze": optax.set_to_zero()},
                        {"body": "freeze", "head": "train"}),
    ):  # fmt: skip
        learner = jcl.learner(toy.loss_fn, jcl.chain(jcl.ewc(1.0), transformation))
        state = learner.init(None, toy.params(), toy.batch(0))
        state, metrics = jax.jit(learner.step)(state, toy.batch(0))
        assert jnp.isfinite(metrics["total"])
    assert jnp.all(state.params["body"]["kernel"] == toy.params()["body"]["kernel"])
    assert jnp.any(state.params["head"]["kernel"] != toy.params()["head"]["kernel"])


def test_a_loss_of_the_wrong_shape_is_refused():
    for aux, message in [
        ({"logits": 0}, "must return"),
        ({"logits": 0, "losses": jnp.ones(3)}, "one number per example"),
    ]:
        learner = jcl.learner(lambda p, b, k: (jnp.zeros(()), aux), optax.sgd(0.1))
        with pytest.raises(InputError, match=message):
            learner.init(None, toy.params(), toy.batch(0))


def test_state_is_an_argument_not_a_constant():
    """A changed anchor changes the loss without a retrace."""
    learner = jcl.learner(toy.loss_fn, jcl.chain(jcl.ewc(1.0), optax.sgd(0.0)))
    step = jax.jit(learner.step)
    state = learner.init(None, toy.params(), toy.batch(0))
    state = learner.consolidate(state, toy.stacked())
    _, before = step(state, toy.batch(0))
    moved = state.strategy[0]._replace(anchor=jax.tree.map(lambda x: x + 1, state.params))
    _, after = step(state._replace(strategy=(moved, *state.strategy[1:])), toy.batch(0))
    assert float(before["ewc"]) == 0
    assert float(after["ewc"]) > 0
    assert step._cache_size() == 1


def test_the_argument_bytes_are_the_counted_trees():
    """AdamW holds 2 params-sized trees and its count, EWC 2, replay its memory and counter."""
    learner = jcl.learner(
        toy.loss_fn, jcl.chain(jcl.replay(capacity=10, size=4), jcl.ewc(1.0), optax.adamw(1e-3))
    )
    batch = toy.batch(0)
    state = learner.init(jax.random.key(0), toy.params(), batch)
    compiled = jax.jit(learner.step, donate_argnums=0).lower(state, batch).compile()
    params = sum(leaf.nbytes for leaf in jax.tree.leaves(toy.params()))
    example = sum(leaf.nbytes for leaf in jax.tree.leaves(batch)) // toy.BATCH
    counters, key = 3 * 4, 8
    counted = 5 * params + 10 * example + 4 + 4 + counters + key + toy.BATCH * example
    assert compiled.memory_analysis().argument_size_in_bytes == counted
    # Donation: all of the state's bytes are written where they were read.
    assert compiled.memory_analysis().alias_size_in_bytes == counted - toy.BATCH * example


def test_what_is_kept_is_equal_and_computed():
    """A copy that the compiler sees through came out in other arrays on a GPU."""
    params = {"a": jnp.array([jnp.inf, -1.0]), "b": {"c": jnp.arange(3), "d": jnp.array([True])}}
    jax.tree.map(np.testing.assert_array_equal, jax.jit(core.kept)(params), params)
    closed = jax.make_jaxpr(core.kept)(params)
    assert not set(closed.jaxpr.outvars) & set(closed.jaxpr.invars)
    assert str(closed).count("select_n") >= 3
