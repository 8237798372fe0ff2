"""A model on the shortest length that holds the batch gives what it gives on the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jcl
from jcl import InputError

CONFIG = jcl.models.BertConfig(
    50, positions=16, width=8, layers=2, heads=2, inner=16, head="classes", classes=3, dropout=0.0
)
MODEL = jcl.models.bert(CONFIG)
SHORT = jcl.models.shortened(MODEL, 4, 8, 99)


@pytest.fixture(scope="module")
def params():
    return MODEL.init(jax.random.key(0))


def batch(*longest):
    mask = (np.arange(16) < np.asarray(longest)[:, None]).astype(np.int32)
    inputs = np.random.default_rng(0).integers(1, 50, mask.shape, dtype=np.int32) * mask
    found = {"inputs": inputs, "attention_mask": mask, "targets": np.arange(len(mask)) % 3}
    return jax.tree.map(jnp.asarray, found)


@jax.jit
def both(params, batch):
    def gradient(model):
        loss_fn = jcl.losses.classify(model.apply)
        return jax.value_and_grad(lambda params: loss_fn(params, batch, None)[0])(params)

    return gradient(MODEL), gradient(SHORT)


@pytest.mark.parametrize("longest", [(1, 2), (4, 3), (5, 4), (8, 8), (9, 1), (16, 2)])
def test_loss_and_gradient_are_those_of_the_whole_length(longest, params):
    whole, short = both(params, batch(*longest))
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-5), whole, short)


def test_it_computes_on_the_length_that_holds_the_longest_text(params):
    """Positions behind that length are not looked at: what stands there changes nothing."""
    seen = []

    def apply(params, inputs, key=None, **_):
        return jnp.full((len(inputs), 1), inputs.shape[1], jnp.float32)

    model = jcl.models.shortened(MODEL._replace(apply=apply), 4, 8)
    for longest in (1, 4, 5, 8, 9, 16):
        given = batch(longest, 1)
        seen.append(model.apply(params, given["inputs"], attention_mask=given["attention_mask"]))
    assert [int(each[0, 0]) for each in seen] == [4, 4, 8, 8, 16, 16]


def test_a_hole_in_the_mask_does_not_cut_what_stands_behind(params):
    given = batch(3, 2)
    given["attention_mask"] = given["attention_mask"].at[0, 10].set(1)
    whole, short = (
        model.apply(params, given["inputs"], attention_mask=given["attention_mask"])
        for model in (MODEL, SHORT)
    )
    np.testing.assert_allclose(whole, short, atol=1e-6)


def test_without_a_mask_it_is_the_model(params):
    inputs = batch(16)["inputs"]
    np.testing.assert_array_equal(MODEL.apply(params, inputs), SHORT.apply(params, inputs))


def test_token_types_and_features_are_cut_as_well(params):
    given = batch(3, 2)
    call = (params, given["inputs"], None)
    rest = {"attention_mask": given["attention_mask"], "token_types": given["inputs"] % 2}
    whole, short = (model.features(*call, **rest) for model in (MODEL, SHORT))
    np.testing.assert_allclose(whole, short, atol=1e-6)


def test_what_it_refuses(params):
    with pytest.raises(InputError, match="at least one length"):
        jcl.models.shortened(MODEL)
    with pytest.raises(InputError, match="lengths"):
        jcl.models.shortened(MODEL, 0)
    words = jcl.models.bert(jcl.models.BertConfig(50, 16, 8, 1, 2, 16))
    given = batch(3, 2)
    with pytest.raises(InputError, match="a place for each position"):
        jcl.models.shortened(words, 4).apply(
            words.init(jax.random.key(0)), given["inputs"], attention_mask=given["attention_mask"]
        )
