"""Mix-up inside a model: what is mixed, with whom, by how much."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import jcl

CLASSES, BATCH = 4, 6


class Bag(nn.Module):
    """The mean of the embeddings of the tokens that count, and a head."""

    @nn.compact
    def __call__(self, inputs, mask):
        table = nn.Embed(10, 3, name="embeddings")(inputs)
        mean = (table * mask[..., None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
        return nn.Dense(CLASSES, name="head")(mean)


def of_bag(params, inputs, key=None, *, attention_mask):
    return Bag().apply({"params": params}, inputs, attention_mask)


@pytest.fixture(scope="module")
def texts():
    """params, batch of a bag."""
    draw = np.random.default_rng(0)
    lengths = np.array([1, 5, 2, 3, 4, 5])
    mask = (np.arange(5) < lengths[:, None]).astype(np.int32)
    batch = {
        "inputs": draw.integers(1, 10, (BATCH, 5)).astype(np.int32) * mask,
        "attention_mask": mask,
        "targets": draw.integers(0, CLASSES, BATCH).astype(np.int32),
    }
    params = Bag().init(jax.random.key(1), batch["inputs"], mask)["params"]
    return params, jax.tree.map(jnp.asarray, batch)


def drawn(key, alpha=0.2, size=BATCH):
    """The share and the partners that a key gives."""
    key_share, key_partner, _ = jax.random.split(key, 3)
    return jax.random.beta(key_share, alpha, alpha), jax.random.permutation(key_partner, size)


def test_the_loss_is_that_of_mixed_embeddings_and_soft_targets(texts):
    params, batch = texts
    key = jax.random.key(3)
    share, partner = drawn(key)
    assert 0.01 < share < 0.99
    assert (partner != np.arange(BATCH)).sum() >= 4

    def expected(params):
        table = params["embeddings"]["embedding"][batch["inputs"]]
        mixed = share * table + (1 - share) * table[partner]
        mask = jnp.maximum(batch["attention_mask"], batch["attention_mask"][partner])
        mean = (mixed * mask[..., None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
        logits = mean @ params["head"]["kernel"] + params["head"]["bias"]
        soft = jax.nn.one_hot(batch["targets"], CLASSES)
        soft = share * soft + (1 - share) * soft[partner]
        losses = -(soft * jax.nn.log_softmax(logits)).sum(axis=1)
        return losses.mean(), {"logits": logits, "losses": losses}

    calls = []

    def apply(*arguments, **options):
        calls.append(1)
        return of_bag(*arguments, **options)

    loss_fn = jcl.mixup(jcl.losses.classify(apply))
    both = [
        jax.jit(jax.value_and_grad(function, has_aux=True))(params)
        for function in (lambda params: loss_fn(params, batch, key), expected)
    ]
    assert len(calls) == 1
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        *both,
    )


def test_the_share_is_of_the_beta_distribution_and_the_partner_any():
    model = jcl.models.mlp(jcl.models.MLPConfig(inputs=CLASSES, hidden=(), classes=CLASSES))
    params = {"head": {"kernel": jnp.eye(CLASSES), "bias": jnp.zeros(CLASSES)}}
    batch = {"inputs": np.eye(CLASSES, dtype=np.float32), "targets": np.arange(CLASSES)}

    def logits(alpha, number):
        loss_fn = jcl.mixup(jcl.losses.classify(model.apply), alpha=alpha, where="head")
        keys = jax.random.split(jax.random.key(0), number)
        mixed = jax.jit(jax.vmap(lambda key: loss_fn(params, batch, key)[1]["logits"]))
        return np.asarray(mixed(keys))

    found = logits(1.0, 2000)
    np.testing.assert_allclose(found.sum(axis=2), 1, rtol=1e-5)
    share = np.diagonal(found, axis1=1, axis2=2)
    mixed = share < 1 - 1e-6  # with another than itself
    assert abs(mixed.mean() - 3 / 4) < 0.03
    partners = np.argmax(found * (1 - np.eye(CLASSES)), axis=2)
    assert [(partners[:, 0] == k).mean() > 0.2 for k in (1, 2, 3)] == [True] * 3
    every = share.min(axis=1)
    np.testing.assert_allclose(
        np.where(mixed, share, every[:, None]).T, [every] * CLASSES, rtol=1e-5
    )
    own = every[mixed.any(axis=1)]  # one share a batch
    assert abs(own.mean() - 0.5) < 0.03
    assert abs(own.var() - 1 / 12) < 0.01  # 1 / (4 (2 alpha + 1))
    half = logits(1e6, 1)[0]
    assert np.abs(half[half > 0.1] - 0.5).max() < 0.01 or half[half > 0.9].size


def test_without_a_key_or_targets_nothing_is_mixed(texts):
    params, batch = texts
    plain = jcl.losses.classify(of_bag)
    mixed = jcl.mixup(plain)
    np.testing.assert_array_equal(mixed(params, batch, None)[0], plain(params, batch, None)[0])
    shown = {name: batch[name] for name in ("inputs", "attention_mask")}
    found, expected = (loss(params, shown, jax.random.key(0))[1] for loss in (mixed, plain))
    np.testing.assert_array_equal(found["logits"], expected["logits"])


def test_an_example_alone_is_mixed_with_none(texts):
    """As the docs say; such are the batches that `jcl.private` differentiates."""
    params, batch = texts
    alone, key = {name: leaf[:1] for name, leaf in batch.items()}, jax.random.key(3)
    plain = jcl.losses.classify(of_bag)
    mixed = jcl.mixup(plain)(params, alone, key)[0]
    np.testing.assert_allclose(mixed, plain(params, alone, key)[0], rtol=1e-6)
    assert "under `jcl.private` nothing is mixed" in jcl.mixup.__doc__


def test_what_does_not_count_is_mixed_with_none(texts):
    params, batch = texts
    masked = {**batch, "mask": jnp.array([1.0, 1, 0, 1, 1, 0])}
    hidden = jnp.array([2, 5])
    other = {name: batch[name].at[hidden].set(9) for name in ("inputs", "targets")}
    other = {**masked, **other}
    loss_fn = jax.jit(jcl.mixup(jcl.losses.classify(of_bag)))
    plain = jcl.losses.classify(of_bag)(params, masked, None)[1]["losses"]
    moved = 0
    for seed in range(4):
        key = jax.random.key(seed)
        one, same = (loss_fn(params, each, key) for each in (masked, other))
        np.testing.assert_allclose(one[0], same[0], rtol=1e-6)
        assert np.isfinite(one[0])
        moved += not np.allclose(one[1]["losses"], plain)
    assert moved


def test_a_target_hidden_by_the_label_mask_has_a_finite_loss(texts):
    params, batch = texts
    one = jax.nn.one_hot(batch["targets"], CLASSES)  # no other class may be chosen
    loss_fn = jax.jit(jcl.mixup(jcl.losses.classify(of_bag)))
    loss, _ = loss_fn(params, {**batch, "label_mask": one}, jax.random.key(3))
    assert 0 <= loss < 20


def test_of_a_bert_equal_texts_stay_and_a_replay_is_mixed_as_well():
    model = jcl.models.bert(
        jcl.models.BertConfig(
            20, 8, 8, 1, 2, 8, head="classes", classes=CLASSES, pooling="mean", dropout=0.0
        )
    )
    draw = np.random.default_rng(0)
    batch = {
        "inputs": draw.integers(0, 20, (8, 5)).astype(np.int32),
        "attention_mask": np.ones((8, 5), np.int32),
        "targets": draw.integers(0, CLASSES, 8).astype(np.int32),
    }
    batch = jax.tree.map(jnp.asarray, batch)
    params = jax.jit(model.init)(jax.random.key(0))
    plain = jcl.losses.classify(model.apply)
    loss_fn = jcl.mixup(plain, alpha=1.0)
    # Rows that are the same stay as they are, whatever the share.
    same = {name: jnp.repeat(leaf[:1], 8, axis=0) for name, leaf in batch.items()}
    key = jax.random.key(1)
    mixed, pure = (jax.jit(each)(params, same, key)[0] for each in (loss_fn, plain))
    np.testing.assert_allclose(mixed, pure, rtol=1e-5)
    learner = jcl.learner(loss_fn, jcl.chain(jcl.replay(16, 4), optax.adam(1e-2)))
    begin = lambda key: learner.init(key, params, batch)
    state = jax.eval_shape(begin, jax.random.key(2))
    after, metrics = jax.eval_shape(learner.step, state, batch)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert "replay" in metrics


def test_errors(texts):
    params, batch = texts
    plain = jcl.losses.classify(of_bag)
    key = jax.random.key(0)
    for call, match in (
        (lambda: jcl.mixup(plain, alpha=0.0), r"mixup\(alpha=0.0\): a number in \(0, inf\)"),
        (lambda: jcl.mixup("loss"), "give a function, such as jcl.losses.classify"),
        (
            lambda: jcl.mixup(plain, where="embedding")(params, batch, key),
            "no module that the loss calls matches 'embedding'. The nearest are: embeddings",
        ),
        (
            lambda: jcl.mixup(plain, where="*e*")(params, batch, key),
            "the modules embeddings, head match, and an example would be mixed more than once",
        ),
    ):
        with pytest.raises(jcl.InputError, match=match):
            call()
