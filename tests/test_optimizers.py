"""Optimizers and schedules as code: rates by progress, optax's optimizers in a chain, by path."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

import jcl
from jcl import InputError, checkpoint

# name: (optax factory, the numbers that it keeps of the toy's 72 params, apart from its counters)
MATRICES, VECTOR = 5 * 8 + 8 * 3, 8
OPTIMIZERS = {
    "adamw": (optax.adamw, 2 * (MATRICES + VECTOR)),
    "radam": (optax.radam, 2 * (MATRICES + VECTOR)),
    "lion": (optax.lion, MATRICES + VECTOR),
    "sgd": (functools.partial(optax.sgd, momentum=0.9), MATRICES + VECTOR),
    # Rows and columns of matrices; optax puts a number in place of each array that it leaves out.
    "adafactor": (
        functools.partial(optax.adafactor, min_dim_size_to_factor=2),
        (5 + 8) + (8 + 3) + VECTOR + (1 + 1 + 2),
    ),
    # Adam for the vector; and the coefficients of its polynomial.
    "muon": (optax.contrib.muon, MATRICES + 2 * VECTOR + 3),
}


def rates(schedule, *progress):
    return [float(schedule(jnp.float32(t))) for t in progress]


@pytest.mark.parametrize(
    ("schedule", "progress", "expected"),
    [
        (jcl.restarts(3.0, 2, floor=1.0), (0, 0.25, 0.5, 0.75, 1), (3, 2, 3, 2, 1)),
        (jcl.restarts(3.0, 2, floor=1.0), (0.4999,), (1.0,)),
        (jcl.restarts(2.0, 2, growth=2.0), (0, 1 / 6, 1 / 3, 2 / 3, 1), (2, 1, 2, 1, 0)),
        (jcl.restarts(2.0, 1, warmup=0.2), (0, 0.1, 0.2, 0.6, 1), (0, 1, 2, 1, 0)),
        (jcl.step_decay(2.0, (0.5, 0.75)), (0, 0.4999, 0.5, 0.75, 1), (2, 2, 0.2, 0.02, 0.02)),
        (jcl.step_decay(2.0, (0.5,), factor=0.5, warmup=0.2), (0.1, 0.2, 0.5), (1, 2, 1)),
        (jcl.exponential(1.0, 0.01), (0, 0.5, 1), (1, 0.1, 0.01)),
        (jcl.exponential(1.0, 0.01, warmup=0.2), (0, 0.1, 0.2, 0.6), (0, 0.5, 1, 0.1)),
    ],
)
def test_a_schedule_against_hand_computed_values(schedule, progress, expected):
    np.testing.assert_allclose(rates(schedule, *progress), expected, rtol=1e-5, atol=1e-6)


def test_one_cycle_is_a_cosine():
    progress = np.linspace(0, 1, 21)
    one = rates(jcl.restarts(2.0, 1, warmup=0.1, floor=0.5), *progress)
    np.testing.assert_allclose(one, rates(jcl.cosine(2.0, warmup=0.1, floor=0.5), *progress), 1e-5)


def test_a_restart_falls_on_its_step_however_long_the_task():
    schedule = jax.jit(jcl.restarts(2.0, 3))
    for steps in (6, 30, 99, 2001):
        at = jnp.arange(steps, dtype=jnp.int32) / steps
        restarted = np.flatnonzero(
            np.asarray([float(schedule(t)) == 2.0 for t in at[:: steps // 3]])
        )
        assert list(restarted) == [0, 1, 2]


@pytest.mark.parametrize("growth", [2.0, 0.5])
def test_cycles_too_short_for_a_float_are_still_cycles(growth):
    found = rates(jcl.restarts(2.0, 200, growth=growth), *np.linspace(0, 1, 41))
    assert np.all(np.isfinite(found))
    assert 0 <= min(found) <= max(found) <= 2
    few = rates(jcl.restarts(2.0, 20, growth=growth), 0.2, 0.4, 0.6, 0.8)
    np.testing.assert_allclose(found[8:40:8], few, atol=1e-3)  # the long ones are the same


def test_schedules_refuse():
    for make, message in [
        (lambda: jcl.restarts(1.0, 0), r"restarts\(cycles=0\): a whole number"),
        (lambda: jcl.restarts(1.0, 2, growth=0.0), r"growth=0.0\): a number in \(0, inf\)"),
        (lambda: jcl.restarts(1.0, 2, warmup=1.0), r"warmup=1.0\): a number in \[0, 1\)"),
        (lambda: jcl.step_decay(1.0, ()), r"give the points, such as at=\(0.5, 0.75\)"),
        (lambda: jcl.step_decay(1.0, 0.5), r"give the points, such as at=\(0.5, 0.75\)"),
        (lambda: jcl.step_decay(1.0, (1.0,)), r"at=1.0\): a number in \(0, 1\)"),
        (lambda: jcl.exponential(1.0, 0.0), r"floor=0.0\): a number in \(0, 1.0\]"),
        (lambda: jcl.exponential(1e-5, 1e-3), r"floor=0.001\): a number in \(0, 1e-05\]"),
        (lambda: jcl.restarts(1e-3, 2, floor=1e-2), r"floor=0.01\): a number in \[0, 0.001\]"),
        (lambda: jcl.cosine(1e-3, floor=1e-2), r"cosine\(floor=0.01\): a number in \[0, 0.001\]"),
    ]:
        with pytest.raises(InputError, match=message):
            make()


def learner_of(name, rate):
    optimizer = OPTIMIZERS[name][0]
    strategy = jcl.chain(jcl.scheduled(optimizer, jcl.restarts(rate, 2, floor=1e-3)))
    return jcl.learner(toy.loss_fn, strategy)


def begin(name, rate):
    return jcl.start_task(learner_of(name, rate).init(None, toy.params(), toy.batch(0)), 4)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_in_a_grid_and_resumed(name, tmp_path):
    """Two steps with the rate as data of one program, beside two of a rate of their own."""
    batches = [toy.batch(number) for number in range(2)]  # made outside of any trace
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)

    def two_steps(rate):
        return jax.lax.scan(learner_of(name, rate).step, begin(name, rate), both)[0].params

    together = jax.jit(jax.vmap(two_steps))(jnp.array([0.01, 0.03]))
    traces = []

    def traced(state, batch):
        traces.append(name)
        return learner_of(name, 0.03).step(state, batch)

    step = jax.jit(traced)
    state, _ = step(begin(name, 0.03), batches[0])
    checkpoint.save(tmp_path, state._replace(key=None), {})
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )
    restored, _ = checkpoint.restore(tmp_path, abstract)
    state, restored = (step(each, batches[1])[0] for each in (state, restored))
    assert len(traces) == 1
    for own, resumed, one, before in zip(
        *map(jax.tree.leaves, (state.params, restored.params, together, toy.params())), strict=True
    ):
        np.testing.assert_array_equal(own, resumed)
        np.testing.assert_allclose(own, one[1], rtol=1e-4, atol=1e-6)
        assert np.any(own != before)
        assert np.any(one[0] != one[1])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_an_optimizer_keeps(name):
    kept = jax.tree.leaves(begin(name, 0.1).strategy)
    floats = [leaf for leaf in kept if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert sum(leaf.size for leaf in floats) == OPTIMIZERS[name][1]


def test_a_plateau_lowers_the_rate_of_the_optimizer_on_its_left():
    def flat(params, batch, key):  # a loss of 1 whose gradient is 1
        losses = 1 + params - jax.lax.stop_gradient(params) + 0 * batch["inputs"]
        return losses.mean(), {"logits": losses, "losses": losses}

    plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=2)
    learner = jcl.learner(flat, jcl.chain(optax.sgd(0.1), plateau))
    state = learner.init(None, jnp.zeros(()), {"inputs": jnp.ones(2)})
    step, seen = jax.jit(learner.step), []
    for _ in range(5):
        before = state.params
        state, _ = step(state, {"inputs": jnp.ones(2)})
        seen.append(float(before - state.params))
    # The second and third loss are no better than the first, the fourth and fifth than it.
    np.testing.assert_allclose(seen, [0.1, 0.1, 0.05, 0.05, 0.025], rtol=1e-5)


def moved(strategy, gradient=1.0):
    params = toy.params()
    learner = jcl.learner(toy.loss_fn, strategy)
    learner.init(None, params, toy.batch(0))  # checks that every parameter has an optimizer
    state = strategy.init(params, batch=toy.batch(0), aux={})
    updates = jax.tree.map(lambda leaf: jnp.full_like(leaf, gradient), params)
    given = {
        "value": 0.0, "value_fn": None, "grad": updates, "loss_fn": None, "batch": None,
        "aux": None, "key": None, "progress": jnp.float32(0.5), "step": 0,
    }  # fmt: skip
    updates, state = strategy.update(updates, state, params, **given)
    return updates, state, params


def test_rates_schedules_and_weight_decay_by_path():
    strategy = jcl.by_path(
        {
            "body/kernel": jcl.scheduled(optax.sgd, jcl.exponential(1.0, 0.01)),
            "head/*": optax.adamw(0.5, weight_decay=0.2),
        },
        otherwise=optax.set_to_zero(),
    )
    updates, state, params = moved(strategy, gradient=2.0)
    np.testing.assert_allclose(updates["body"]["kernel"], -0.1 * 2.0, rtol=1e-5)
    np.testing.assert_array_equal(updates["body"]["bias"], 0.0)
    # The first step of Adam is the sign of the gradient.
    expected = -0.5 * (1.0 + 0.2 * params["head"]["kernel"])
    np.testing.assert_allclose(updates["head"]["kernel"], expected, rtol=1e-4)
    sizes = [leaf.size for leaf in jax.tree.leaves(state)]
    assert sum(sizes) == 1 + 2 * params["head"]["kernel"].size  # Adam's alone


def test_a_part_may_hold_its_params_or_edit_its_own_step():
    strategy = jcl.by_path(
        {"body/*": jcl.chain(optax.sgd(0.1), jcl.freeze("body/bias")), "head/*": optax.sgd(0.1)}
    )
    assert strategy.side == "step"
    updates, _, _ = moved(strategy)
    np.testing.assert_array_equal(updates["body"]["bias"], 0.0)
    np.testing.assert_allclose(updates["body"]["kernel"], -0.1)
    np.testing.assert_allclose(updates["head"]["kernel"], -0.1)
    updates, _, _ = moved(jcl.by_path({"head/*": optax.sgd(0.1)}, otherwise=jcl.freeze()))
    np.testing.assert_array_equal(updates["body"]["kernel"], 0.0)


def test_every_parameter_belongs_to_one_pattern():
    sgd = optax.sgd(0.1)
    for parts, otherwise, message in [
        ({"head/*": sgd}, None, "body/bias matches none of 'head/\\*'.*otherwise="),
        ({"*kernel": sgd, "body/*": sgd}, None, "body/kernel matches '\\*kernel' and 'body/\\*'"),
        ({"heed/*": sgd}, sgd, "'heed/\\*'. The nearest are: head/kernel"),
        (
            {"head/*": sgd, "body/*": sgd},
            sgd,
            "match every parameter, and nothing is left for otherwise=",
        ),
    ]:
        with pytest.raises(InputError, match=message):
            jcl.by_path(parts, otherwise=otherwise).init(toy.params(), batch=toy.batch(0), aux={})
    with pytest.raises(InputError, match="no pattern; name at least one"):
        jcl.by_path({})
    with pytest.raises(InputError, match="neither a strategy nor an optax"):
        jcl.by_path({"*": optax.sgd})


def test_only_but():
    updates, _, _ = moved(jcl.chain(jcl.only("*", optax.sgd(0.1), but="head/*"),
                                    jcl.only("head/*", optax.sgd(0.2))))  # fmt: skip
    np.testing.assert_allclose(updates["body"]["bias"], -0.1)
    np.testing.assert_allclose(updates["head"]["kernel"], -0.2)
