"""The MLP against its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jcl
from jcl import InputError
from jcl.models import MLPConfig
from jcl.models.layers import over_rows


def test_the_mlp_is_its_formula():
    model = jcl.models.mlp(MLPConfig(inputs=6, hidden=(5, 4), classes=3, scale=0.5, shift=-1.0))
    params = model.init(jax.random.key(0))
    inputs = np.random.default_rng(0).integers(0, 9, (7, 2, 3)).astype(np.uint8)
    x = inputs.reshape(7, 6) * 0.5 - 1
    for layer in ("layer_0", "layer_1"):
        x = np.maximum(x @ params[layer]["kernel"] + params[layer]["bias"], 0)
    np.testing.assert_allclose(model.features(params, jnp.asarray(inputs)), x, rtol=1e-5)
    expected = x @ params["head"]["kernel"] + params["head"]["bias"]
    np.testing.assert_allclose(model.apply(params, jnp.asarray(inputs)), expected, rtol=1e-5)


def test_batch_normalization_takes_the_place_of_the_biases():
    model = jcl.models.mlp(MLPConfig(inputs=6, hidden=(5, 4), classes=3, normalization="batch"))
    params = model.init(jax.random.key(0))
    assert sorted(params["layer_0"]) == ["kernel"]
    assert "bias" in params["head"]
    params["norm_0"] = {"scale": jnp.arange(1.0, 6.0), "bias": jnp.linspace(-1, 1, 5)}
    x = inputs = np.random.default_rng(0).standard_normal((7, 6)).astype(np.float32)
    for number in range(2):
        x, norm = x @ params[f"layer_{number}"]["kernel"], params[f"norm_{number}"]
        x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-3) * norm["scale"] + norm["bias"]
        x = np.maximum(x, 0)
    np.testing.assert_allclose(model.features(params, jnp.asarray(inputs)), x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 19600, 8), (2, 4900, 8), (7, 3), (1, 2), (2, 13, 4)])
def test_the_gradient_of_batch_normalization_is_that_in_float64(shape):
    draw = np.random.default_rng(0)
    # Most of a drawing is blank: the mean is far from 0.
    x = np.maximum(draw.normal(0.5, 0.3, shape), 0)
    weight, scale, bias = draw.normal(size=shape), np.ones(shape[-1]), np.zeros(shape[-1])

    def gradients(precision):
        def loss(x, scale, bias):
            return jnp.vdot(jax.nn.relu(over_rows(x, scale, bias)), weight.astype(precision))

        def plain(x, scale, bias):
            deviation = jnp.sqrt(x.var(axis=-2, keepdims=True) + 1e-3)
            normal = (x - x.mean(axis=-2, keepdims=True)) / deviation
            return jnp.vdot(jax.nn.relu(normal * scale + bias), weight)

        chosen = plain if precision is np.float64 else loss
        arrays = [array.astype(precision) for array in (x, scale, bias)]
        return jax.jit(jax.grad(chosen, argnums=(0, 1, 2)))(*arrays)

    found = gradients(np.float32)
    with jax.enable_x64(True):
        expected = gradients(np.float64)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6 * np.abs(other).max())


@pytest.mark.parametrize(
    ("initializer", "limit"), [("glorot", (6 / (100 + 50)) ** 0.5), ("lecun", 0.1)]
)
def test_initial_kernels_are_uniform_within_their_limit(initializer, limit):
    model = jcl.models.mlp(MLPConfig(inputs=100, hidden=(50,), initializer=initializer))
    layer = model.init(jax.random.key(0))["layer_0"]
    assert 0.97 * limit < np.abs(layer["kernel"]).max() <= limit
    assert abs(np.std(layer["kernel"]) - limit / 3**0.5) < 0.02 * limit
    assert (np.abs(layer["bias"]).max() > 0) == (initializer == "lecun")


def test_one_pixel_is_not_normalized_by_itself():
    shape = {"height": 8, "width": 7, "normalization": "instance"}
    with pytest.raises(InputError, match="3 blocks make one pixel of 8 x 7"):
        jcl.models.ConvolutionalConfig(**shape, blocks=3)
    jcl.models.ConvolutionalConfig(**shape, blocks=2)


def test_bad_shapes_are_refused():
    with pytest.raises(InputError, match="a whole number, at least 1"):
        MLPConfig(hidden=(5, 0))
    with pytest.raises(InputError, match="glorot"):
        MLPConfig(initializer="he")
    with pytest.raises(InputError, match="normalization"):
        MLPConfig(normalization="layer")
    model = jcl.models.mlp(MLPConfig(inputs=4))
    with pytest.raises(InputError, match="takes 4: give MLPConfig\\(inputs=5\\)"):
        model.apply(model.init(jax.random.key(0)), jnp.zeros((2, 5)))
