"""Class-incremental learning with a head of full size."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jcl
from jcl import InputError


def test_only_classes_that_were_targets_are_predicted():
    model = jcl.models.mlp(jcl.models.MLPConfig(inputs=3, hidden=(4,), classes=4))
    strategy = jcl.chain(jcl.seen_classes(classes=4), optax.sgd(0.1))
    learner = jcl.learner(jcl.losses.classify(model.apply), strategy)
    batch = {"inputs": jnp.ones((5, 3)), "targets": jnp.array([0, 2, 2, 0, 0])}
    state = learner.init(None, model.init(jax.random.key(0)), batch)
    initial = state.params
    state, metrics = learner.step(state, batch)
    assert metrics["loss"] == 0  # no other class is there to be told apart
    jax.tree.map(np.testing.assert_array_equal, state.params, initial)
    shown = learner.predict(state, {"inputs": batch["inputs"]})["logits"][0] > -1e8
    assert shown.tolist() == [True, False, True, False]
    later = {**batch, "targets": jnp.array([3, 3, 3, 3, 3])}
    state, metrics = learner.step(state, later)
    assert metrics["loss"] < 10  # the first batch of a class is learned from
    shown = learner.predict(state, {"inputs": batch["inputs"]})["logits"][0] > -1e8
    assert shown.tolist() == [True, False, True, True]
    own = jnp.zeros((5, 4), bool).at[:, 2].set(True)
    both = learner.predict(state, {"inputs": batch["inputs"], "label_mask": own})["logits"][0]
    assert (both > -1e8).tolist() == [False, False, True, False]


def test_a_head_of_one_class_is_refused():
    with pytest.raises(InputError, match="a whole number, at least 2"):
        jcl.seen_classes(classes=1)
