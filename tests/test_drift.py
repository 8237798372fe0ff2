"""Detectors of drift, and what strategies do at their alarms."""

import itertools
import sys
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

import jcl
from jcl import drift

PARAMS = {"w": jnp.zeros(2)}
ALARMS = (0, 1, 0, 0, 1, 0)
SCALES = [1, 5, 3, 2, 5, 3]  # of factor 5 and a half-life of one step


def told(alarm, number=0.0):
    return {"inputs": jnp.full((3, 1), number), "drift": jnp.full(3, alarm, jnp.int32)}


def extra(step=0):
    return {
        "loss_fn": None, "key": None, "step": jnp.int32(step), "value": jnp.zeros(()),
        "value_fn": None, "grad": None,
    }  # fmt: skip


def test_boost_scales_the_step_and_halves_the_rise():
    part = jcl.boost(factor=5.0, half_life=1.0)
    level, found = part.init(PARAMS), []
    for alarm in ALARMS:
        updates, level = part.update({"w": jnp.ones(2)}, level, PARAMS, batch=told(alarm))
        found.append(float(updates["w"][0]))
    np.testing.assert_allclose(found, SCALES, rtol=1e-6)


def test_boost_keeps_the_type_of_a_step():
    part = jcl.boost(factor=3.0, half_life=1.0)
    step = {"w": jnp.ones(2, jnp.bfloat16)}
    updates, _ = part.update(step, part.init(step), step, batch=told(1))
    assert updates["w"].dtype == jnp.bfloat16
    assert float(updates["w"][0]) == 3


def test_boost_multiplies_the_learning_rate_of_adam():
    """Adam's step does not depend on the gradient's scale, so the step itself must be scaled."""
    learner = jcl.learner(toy.loss_fn, jcl.chain(optax.adam(0.01), jcl.boost(4.0, 10.0)))
    steps = {}
    step = jax.jit(learner.step)
    for alarm in (0, 1):
        batch = toy.batch(0) | {"drift": jnp.full(toy.BATCH, alarm, jnp.int32)}
        state = learner.init(None, toy.params(), batch)
        after, _ = step(state, batch)
        steps[alarm] = jax.tree.map(jnp.subtract, after.params, state.params)
    assert step._cache_size() == 1
    for plain, boosted in zip(*map(jax.tree.leaves, (steps[0], steps[1])), strict=True):
        np.testing.assert_allclose(boosted, 4 * plain, rtol=1e-4, atol=1e-6)


def test_reweighted_weighs_the_terms_from_the_alarm_on():
    constant = jcl.strategy(name="constant", loss=lambda state, params, **_: {"c": jnp.ones(())})
    part = jcl.reweighted(constant, factor=5.0, half_life=1.0)
    state, found = part.init(PARAMS, batch=None, aux=None), []
    for alarm in ALARMS:
        found.append(float(part.loss(state, PARAMS, batch=told(alarm))["c"]))
        _, state = part.update({"w": jnp.ones(2)}, state, PARAMS, batch=told(alarm))
    np.testing.assert_allclose(found, SCALES, rtol=1e-6)


def test_on_drift_consolidates_on_the_last_batches_before_the_alarm():
    def consolidate(state, params, *, batches, **_):
        return batches["inputs"][:, 0, 0], params

    remember = jcl.strategy(
        name="remember", init=lambda params, **_: jnp.zeros(2), consolidate=consolidate
    )
    part = jcl.on_drift(remember, batches=2)
    state = part.init(PARAMS, batch=told(0), aux=None)
    seen = []
    for number, alarm in enumerate((0, 1, 0, 0, 1, 0)):  # the first alarm finds half a ring
        batch = told(alarm, float(number))
        _, state = part.update(PARAMS, state, PARAMS, batch=batch, **extra(number))
        seen.append(sorted(state.inner.tolist()))
    assert seen == [[0, 0]] * 4 + [[2, 3]] * 2


def test_restarting_counts_from_the_alarm():
    part = jcl.restarting(optax.sgd, lambda steps: 1.0 + steps)
    state, found = part.init(PARAMS, batch=None, aux=None), []
    for alarm in (0, 0, 0, 1, 0):
        updates, state = part.update(
            {"w": jnp.ones(2)}, state, PARAMS, batch=told(alarm), **extra()
        )
        found.append(-float(updates["w"][0]))
    assert found == [1, 2, 3, 1, 2]


def test_restarting_keeps_the_moments():
    part, adam = jcl.restarting(optax.adam, lambda steps: 0.01), optax.adam(0.01)
    state, moments = part.init(PARAMS, batch=None, aux=None), adam.init(PARAMS)
    for gradient in (1.0, -3.0):
        gradients = {"w": jnp.full(2, gradient)}
        found, state = part.update(gradients, state, PARAMS, batch=told(1), **extra())
        expected, moments = adam.update(gradients, moments)
        np.testing.assert_allclose(found["w"], expected["w"], rtol=1e-6)


def test_a_batch_without_the_key_has_no_alarm():
    part = jcl.boost(factor=5.0, half_life=1.0)
    batch = {"inputs": jnp.zeros((3, 1))}
    updates, level = part.update({"w": jnp.ones(2)}, part.init(PARAMS), PARAMS, batch=batch)
    assert (float(updates["w"][0]), float(level)) == (1, 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: jcl.boost(-1.0, 3.0), r"boost\(factor=-1.0\): a number in \[0, inf\)"),
        (lambda: jcl.boost(2.0, 0.0), "half_life=0.0"),
        (lambda: jcl.chain(jcl.boost(2.0, 3.0), optax.sgd(0.1)), "must stand after the optimizer"),
        (lambda: jcl.reweighted(optax.sgd(0.1), 2.0, 3.0), "adds no term to the loss; boost"),
        (lambda: jcl.reweighted(jcl.ewc(1.0), 2.0, -3.0), "half_life=-3.0"),
        (lambda: jcl.on_drift(optax.sgd(0.1)), "consolidates nothing"),
        (lambda: jcl.on_drift(jcl.ewc(1.0), batches=0), "batches=0"),
        (lambda: jcl.restarting(optax.sgd, 0.1), "give a function, such as"),
        (lambda: drift.detector("adwim"), r'one of "adwin", "page_hinkley"'),
        (lambda: drift.detector("ddm", above=-1.0), "above=-1.0"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(jcl.InputError, match=message):
        call()


def test_without_river_the_error_names_the_extra(monkeypatch):
    for name in ("river", "river.drift", "river.drift.binary"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(jcl.InputError, match=r'pip install "jcl\[drift\]"'):
        drift.detector("ddm")


def losses(*levels, number=600):
    """Noisy losses of these levels, so many of each."""
    generator = np.random.default_rng(0)
    return np.concatenate([level * generator.gamma(4.0, 0.25, number) for level in levels])


def alarms(name, stream, **settings):
    detector = drift.detector(name, **settings)
    return [number for number, loss in enumerate(stream) if detector.update(loss)]


@pytest.fixture(scope="module")
def river():
    pytest.importorskip("river", reason='needs the extra: pip install "jcl[drift]"')


@pytest.mark.parametrize("name", get_args(drift.Name))
def test_a_rise_is_found_and_a_fall_is_not(name, river):
    settings = {"alpha": 1e-5} if name == "kswin" else {}
    found = alarms(name, losses(0.2, 2.0), **settings)
    assert found
    assert 600 <= found[0] < 700
    assert not alarms(name, losses(2.0, 0.2), **settings)


def test_a_detector_is_a_function_of_the_losses(river):
    stream = losses(0.2, 2.0, 0.2, 1.0, number=300)
    for name in get_args(drift.Name):
        assert alarms(name, stream) == alarms(name, stream)


def test_right_and_wrong_are_told_apart_by_the_loss(river):
    """A rise below the threshold is none to ddm."""
    stream = losses(0.1, 0.4)
    assert max(stream) < 2
    assert not alarms("ddm", stream, above=2.0)
    assert alarms("ddm", stream, above=0.3)


def test_a_loss_that_is_not_finite_is_left_out(river):
    stream = losses(0.2, 2.0)
    broken = list(itertools.chain.from_iterable((float("nan"), loss) for loss in stream))
    assert [number // 2 for number in alarms("adwin", broken)] == alarms("adwin", stream)


def test_unknown_settings_are_refused(river):
    with pytest.raises(jcl.InputError, match=r"detla.*Settings are those of river.drift.ADWIN"):
        drift.detector("adwin", detla=0.1)
