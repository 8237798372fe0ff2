"""Methods that keep examples, each against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

import jcl
from jcl import InputError


def met(strategy, batch, params, number=1):
    """The strategy's state after it met the batch at those params, without its loss or key."""
    _, aux = toy.loss_fn(params, batch, None)
    state = strategy.init(params, batch=batch, aux=aux)
    for _ in range(number):
        _, state = strategy.update({}, state, params, batch=batch, aux=aux, key=None)
    return state


def terms(strategy, state, params, key=None):
    return strategy.loss(state, params, loss_fn=toy.loss_fn, key=key, batch=None, aux=None)


ONE = toy.batch(0, size=1)


def test_der_matches_the_logits_of_the_time():
    """A memory of one example: mean over classes of (new - old)^2, and its task loss."""
    strategy = jcl.der(1, 3, strength=2.0, replay_strength=5.0)
    state, old, new = met(strategy, ONE, toy.params(0)), toy.params(0), toy.params(1)
    logits = [toy.loss_fn(params, ONE, None)[1]["logits"] for params in (old, new)]
    found = terms(strategy, state, new)
    np.testing.assert_allclose(found["der"], 2 * np.mean((logits[1] - logits[0]) ** 2), rtol=1e-5)
    np.testing.assert_allclose(found["der_replay"], 5 * toy.loss_fn(new, ONE, None)[0], rtol=1e-5)
    assert float(terms(strategy, state, old)["der"]) == 0


def test_der_is_zero_while_the_memory_is_empty():
    strategy = jcl.der(4, 3, strength=2.0, replay_strength=1.0)
    state = strategy.init(toy.params(), batch=ONE, aux=toy.loss_fn(toy.params(), ONE, None)[1])
    assert set(jax.tree.map(float, terms(strategy, state, toy.params(1))).values()) == {0.0}


def test_der_top_matches_the_largest_only():
    strategy = jcl.der(1, 2, strength=1.0, top=2)
    state = met(strategy, ONE, toy.params(0))
    assert state.items["stored_logits"]["values"].shape == (1, 2)
    old, new = (toy.loss_fn(toy.params(s), ONE, None)[1]["logits"][0] for s in (0, 1))
    largest = np.argsort(-old)[:2]
    np.testing.assert_allclose(
        terms(strategy, state, toy.params(1))["der"], np.mean((new - old)[largest] ** 2), rtol=1e-5
    )


def test_der_of_a_language_model_keeps_no_vocabulary():
    vocabulary = 50

    def loss_fn(params, batch, key):
        logits = params["table"][batch["inputs"]]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])
        return losses.mean(), {"logits": logits, "losses": losses.mean(axis=1)}

    params = {"table": jax.random.normal(jax.random.key(0), (vocabulary, vocabulary))}
    tokens = jax.random.randint(jax.random.key(1), (4, 6), 0, vocabulary)
    batch = {"inputs": tokens, "targets": tokens, "mask": jnp.ones((4, 6)).at[:, 3:].set(0.0)}
    strategy = jcl.der(4, 4, strength=1.0, top=3)
    learner = jcl.learner(loss_fn, jcl.chain(strategy, optax.sgd(0.0)))
    state, _ = learner.step(learner.init(None, params, batch), batch)
    leaves = jax.tree.leaves(state.strategy[0])
    assert not any(vocabulary in leaf.shape for leaf in leaves)
    # Only the first half of each block counts, so what the other half's rows become is no matter.
    late = jnp.zeros(vocabulary).at[tokens[:, 3:]].set(1.0).at[tokens[:, :3]].set(0.0)
    moved = {"table": params["table"] + late[:, None]}
    term = {"loss_fn": loss_fn, "key": None}
    assert float(late.sum()) > 0
    assert float(strategy.loss(state.strategy[0], moved, **term)["der"]) == 0
    shifted = {"table": params["table"] + 2.0}
    found = strategy.loss(state.strategy[0], shifted, **term)["der"]
    np.testing.assert_allclose(found, 4.0, rtol=1e-5)


def test_der_leaves_hidden_classes_alone():
    def loss_fn(params, batch, key):
        logits = jnp.where(batch["label_mask"] > 0, params["w"][None], -1e9)
        return jnp.zeros(()), {"logits": logits, "losses": jnp.zeros(1)}

    strategy = jcl.der(1, 1, strength=1.0)
    batch = {"label_mask": jnp.array([[1.0, 0.0]])}
    _, aux = loss_fn({"w": jnp.array([1.0, 1.0])}, batch, None)
    state = strategy.init({}, batch=batch, aux=aux)
    _, state = strategy.update({}, state, {}, batch=batch, aux=aux, key=None)

    def all_shown(params, batch, key):
        return loss_fn(params, {"label_mask": jnp.ones((1, 2))}, key)

    def term(w):
        return strategy.loss(state, {"w": w}, loss_fn=all_shown, key=None)["der"]

    value, gradient = jax.value_and_grad(term)(jnp.array([3.0, 7.0]))
    assert float(value) == 2.0  # (3 - 1)^2 over two classes
    np.testing.assert_allclose(gradient, [2.0, 0.0])


def projected(strategy, updates, reference, seen=True):
    """updates after a strategy whose memory holds one example with that gradient."""
    batch = {"inputs": jnp.asarray(reference, jnp.float32)[None]}

    def loss_fn(params, batch, key):
        losses = batch["inputs"][:, 0] * params["a"] + batch["inputs"][:, 1] * params["b"][0]
        return losses.mean(), {"logits": losses, "losses": losses}

    params = {"a": jnp.zeros(()), "b": jnp.zeros(1)}
    state = strategy.init(params, batch=batch, aux={})
    if seen:
        batches = jax.tree.map(lambda leaf: leaf[None], batch)
        state, _ = strategy.consolidate(state, params, batches=batches, key=None)
    updates = {"a": jnp.asarray(updates[0]), "b": jnp.asarray(updates[1:])}
    updates, _ = strategy.update(updates, state, params, batch=batch, loss_fn=loss_fn, key=None)
    return [float(updates["a"]), float(updates["b"][0])]


@pytest.mark.parametrize(
    ("updates", "reference", "expected"),
    [
        ([1.0, -3.0], [0.0, 2.0], [1.0, 0.0]),  # against: the part along (0, 1) goes
        ([1.0, -2.0], [1.0, 1.0], [1.5, -1.5]),  # g.r = -1, r.r = 2
        ([1.0, 3.0], [0.0, 2.0], [1.0, 3.0]),  # along: as it was
        ([1.0, 3.0], [0.0, 0.0], [1.0, 3.0]),  # nothing to project against
    ],
)
def test_agem_by_hand(updates, reference, expected):
    """The inner product is over the whole tree: two leaves here."""
    np.testing.assert_allclose(projected(jcl.agem(1, 2), updates, reference), expected, rtol=1e-6)


def test_agem_leaves_gradients_alone_while_its_memory_is_empty():
    assert projected(jcl.agem(1, 2), [1.0, -3.0], [0.0, 2.0], seen=False) == [1.0, -3.0]


def test_agem_inserts_where_it_is_told():
    for insert, seen in (("step", (16, 16)), ("boundary", (0, 64))):
        learner = jcl.learner(toy.loss_fn, jcl.chain(jcl.agem(9, 4, insert=insert), optax.sgd(0.1)))
        state = learner.init(jax.random.key(0), toy.params(), toy.batch(0))
        state, _ = learner.step(state, toy.batch(0))
        assert int(state.strategy[0].seen) == seen[0]
        assert int(learner.consolidate(state, toy.stacked()).strategy[0].seen) == seen[1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: jcl.der(10, 0, 1.0), "a whole number, at least 1"),
        (lambda: jcl.der(0, 1, 1.0), "a whole number, at least 1"),
        (lambda: jcl.der(10, 1, -1.0), r"der\(strength=-1.0\)"),
        (lambda: jcl.der(10, 1, 1.0, replay_strength=-1.0), r"der\(replay_strength=-1.0\)"),
        (lambda: jcl.der(10, 1, 1.0, top=0), "a whole number, at least 1"),
        (lambda: met(jcl.der(10, 1, 1.0, top=4), ONE, toy.params()), "has 3 logits a row"),
        (lambda: jcl.agem(10, 0), "a whole number, at least 1"),
        (lambda: jcl.agem(10, 1, insert="never"), '"step", "boundary"'),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(InputError, match=message):
        make()
