"""Shrink and perturb, and the probes of plasticity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jcl
from jcl import InputError

PARAMS = {"w": jnp.array([1.0, -2.0]), "b": jnp.array(4.0)}


def test_shrink_and_perturb_adds_a_fresh_initialization():
    def init(key):
        return {"w": jax.random.normal(key, (2,)), "b": jnp.array(10.0)}

    strategy = jcl.shrink_and_perturb(0.5, 0.1, init)
    key = jax.random.key(3)
    boundaries, moved = strategy.consolidate(strategy.init(PARAMS), PARAMS, key=key)
    np.testing.assert_allclose(moved["b"], 0.5 * 4 + 0.1 * 10)
    np.testing.assert_allclose(moved["w"], 0.5 * PARAMS["w"] + 0.1 * init(key)["w"], rtol=1e-6)
    assert int(boundaries) == 1


def test_shrink_and_perturb_draws_gaussian_noise_anew_at_every_boundary():
    strategy = jcl.shrink_and_perturb(0.5, 0.1)
    params, state, noises = {"w": jnp.ones(10_000)}, strategy.init({}), []
    for _ in range(2):
        state, moved = strategy.consolidate(state, params, key=None)
        noises.append(np.asarray(moved["w"]) - 0.5)
    for noise in noises:
        np.testing.assert_allclose(noise.std(), 0.1, rtol=0.05)
        np.testing.assert_allclose(noise.mean(), 0.0, atol=0.005)
    assert abs(np.corrcoef(*noises)[0, 1]) < 0.05


def test_shrink_and_perturb_before_an_anchor_is_what_the_anchor_keeps():
    chain = jcl.chain(jcl.shrink_and_perturb(0.5, 0.0), jcl.l2(1.0))
    state = chain.init(PARAMS, batch={}, aux={})
    state, moved = chain.consolidate(state, PARAMS, batches={}, loss_fn=None, key=None)
    np.testing.assert_allclose(moved["w"], 0.5 * PARAMS["w"])
    np.testing.assert_array_equal(state[1].anchor["w"], moved["w"])


def test_dormant_units():
    """Mean absolute activations 2, 0.02, 0 and 1.98; the layer's mean is 1."""
    activations = jnp.array([[2.0, 0.04, 0.0, -1.98], [-2.0, 0.0, 0.0, 1.98]])
    assert float(jax.jit(jcl.probes.dormant_units)(activations)) == 0.5
    assert float(jcl.probes.dormant_units(activations, 0.01)) == 0.25
    assert float(jcl.probes.dormant_units(activations, 0.0)) == 0.25
    assert float(jcl.probes.dormant_units(activations.reshape(2, 1, 4))) == 0.5
    assert float(jcl.probes.dormant_units(jnp.zeros((2, 3)))) == 1.0


def test_effective_rank():
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]
    for values, expected in [
        ([2.0, 2.0, 0.0, 0.0], 2.0),
        ([5.0, 0.0, 0.0, 0.0], 1.0),
        ([3.0, 1.0, 0.0, 0.0], np.exp(-0.75 * np.log(0.75) - 0.25 * np.log(0.25))),
        ([0.0, 0.0, 0.0, 0.0], 0.0),
    ]:
        features = jnp.asarray(rotation @ np.diag(values) @ rotation.T, jnp.float32)
        np.testing.assert_allclose(
            jax.jit(jcl.probes.effective_rank)(features), expected, rtol=1e-4
        )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: jcl.shrink_and_perturb(1.5, 0.1), r"a number in \[0, 1\]"),
        (lambda: jcl.shrink_and_perturb(0.5, -0.1), r"a number in \[0, inf"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(InputError, match=message):
        make()
