"""GPT-2 against Hugging Face's in PyTorch, and its own promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from everything import costly
from jax.test_util import check_grads

import jcl
from jcl import InputError
from jcl.models import GPT2_SIZES, GPT2Config, gpt2
from jcl.models.layers import gelu_tanh, standardize

CONFIG = GPT2Config(vocab_size=61, positions=24, width=32, layers=3, heads=4, dropout=0.1)
INPUTS = jax.random.randint(jax.random.key(0), (3, 24), 0, 61)


def make(config=CONFIG):
    model = gpt2(config)
    return model, model.init(jax.random.key(1))


def test_logits_and_gradients_equal_hugging_faces():
    torch = pytest.importorskip("torch", reason="PyTorch is absent: pip install torch==2.13.0")
    import transformers

    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=61, n_positions=24, n_embd=32, n_layer=3, n_head=4,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, initializer_range=0.2,
        )
    )  # fmt: skip
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # biases and scales as well

    model, params = make()

    def renamed(tensors):
        """Their names -> our tree."""

        def find(path, leaf):
            names = [part.key for part in path]
            if names[0].startswith("h_"):
                names[:1] = ["h", names[0][2:]]
            names[-1] = {"kernel": "weight", "scale": "weight"}.get(names[-1], names[-1])
            if names[-1] in ("wte", "wpe"):
                names.append("weight")
            found = tensors["transformer." + ".".join(names)].detach().numpy()
            assert found.shape == leaf.shape
            return jnp.asarray(found)

        return jax.tree_util.tree_map_with_path(find, params)

    params = renamed(dict(theirs.named_parameters()))
    tokens = torch.tensor(np.asarray(INPUTS, np.int64))
    answer = theirs(tokens, labels=tokens)
    logits = model.apply(params, INPUTS)
    np.testing.assert_allclose(logits, answer.logits.detach().numpy(), atol=1e-4)

    answer.loss.backward()
    loss_fn = jcl.losses.causal_lm(model.apply)
    batch = {"inputs": INPUTS[:, :], "targets": jnp.roll(INPUTS, -1, axis=1)}
    batch["mask"] = jnp.ones(INPUTS.shape).at[:, -1].set(0.0)
    (loss, _), gradient = jax.value_and_grad(loss_fn, has_aux=True)(params, batch, None)
    np.testing.assert_allclose(loss, answer.loss.item(), rtol=1e-5)
    expected = renamed({name: p.grad for name, p in theirs.named_parameters()})
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), gradient, expected)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    assert largest > 0.05  # the tolerance is small against what it compares


@costly
def test_a_later_token_does_not_change_earlier_logits():
    model, params = make()
    before = model.apply(params, INPUTS)
    after = model.apply(params, INPUTS.at[:, 15].add(1))
    np.testing.assert_allclose(after[:, :15], before[:, :15], atol=1e-6)
    assert jnp.abs(after[:, 15:] - before[:, 15:]).max() > 1e-3


def test_dropout_acts_only_with_a_key():
    model, params = make()
    without, _ = make(GPT2Config(61, positions=24, width=32, layers=3, heads=4, dropout=0.0))
    expected = without.apply(params, INPUTS, jax.random.key(3))
    np.testing.assert_array_equal(model.apply(params, INPUTS), expected)
    one = model.apply(params, INPUTS, jax.random.key(3))
    np.testing.assert_array_equal(model.apply(params, INPUTS, jax.random.key(3)), one)
    assert jnp.abs(one - expected).max() > 1e-3
    assert jnp.abs(one - model.apply(params, INPUTS, jax.random.key(4))).max() > 1e-3


def test_dropout_keeps_the_mean():
    from jcl.models.layers import dropout

    dropped = dropout(jnp.ones(100_000), 0.3, jax.random.key(0))
    np.testing.assert_allclose(np.unique(dropped), [0, 1 / 0.7], rtol=1e-6)
    np.testing.assert_allclose(dropped.mean(), 1, atol=0.01)


@pytest.mark.parametrize(
    ("size", "count"),
    [
        ("small", 124_439_808), ("medium", 354_823_168), ("large", 774_030_080),
        ("xl", 1_557_611_200),
    ],
)  # fmt: skip
def test_published_sizes(size, count):
    shapes = jax.eval_shape(gpt2(size).init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


def test_the_scale_of_the_first_weights():
    _, params = make(GPT2Config(500, positions=64, width=64, layers=8, heads=4))
    block = params["h_3"]
    for leaf, scale in [
        (params["wte"], 0.02), (params["wpe"], 0.02), (block["attn"]["c_attn"]["kernel"], 0.02),
        (block["mlp"]["c_fc"]["kernel"], 0.02), (block["attn"]["c_proj"]["kernel"], 0.02 / 4),
        (block["mlp"]["c_proj"]["kernel"], 0.02 / 4),
    ]:  # fmt: skip
        np.testing.assert_allclose(jnp.std(leaf), scale, rtol=0.05)
    assert jnp.all(block["ln_1"]["scale"] == 1)
    assert jnp.all(block["mlp"]["c_fc"]["bias"] == 0)


def test_what_is_refused():
    model, params = make()
    with pytest.raises(InputError, match="25 tokens long and the model has 24"):
        model.apply(params, jnp.zeros((1, 25), jnp.int32))
    for field, value in [("heads", 3), ("layers", 0), ("dropout", 1.0), ("vocab_size", 0)]:
        with pytest.raises(InputError, match=field):
            GPT2Config(**{"width": 32, "heads": 4, field: value})
    with pytest.raises(InputError, match="small, medium, large, xl"):
        gpt2("huge")
    assert GPT2_SIZES["xl"].layers == 48


@pytest.mark.parametrize("length", [1, 2, 7])
def test_any_length_equals_the_start_of_a_longer_one(length):
    """Attention cuts the queries in halves, of which one may be empty or longer."""
    model, params = make()
    np.testing.assert_allclose(
        model.apply(params, INPUTS[:, :length]), model.apply(params, INPUTS)[:, :length], atol=1e-6
    )


def plain_layer_norm(x):
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / jnp.sqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + 1e-5)


@pytest.mark.parametrize(
    ("by_hand", "plain"),
    [
        (lambda x: standardize(x, 1e-5), plain_layer_norm),
        (gelu_tanh, lambda x: jax.nn.gelu(x, approximate=True)),
    ],
    ids=["layer norm", "gelu"],
)
def test_backward_passes_by_hand(by_hand, plain):
    """Against autodiff of the plain formula, to second order, and against finite differences."""
    x, weights = jax.random.normal(jax.random.key(5), (2, 6, 16)) * 2

    def loss(function):
        return lambda x: jnp.sum(weights * function(x) ** 2)

    def curvature(function):
        return jax.grad(lambda x: jnp.sum(weights * jax.grad(loss(function))(x)))

    np.testing.assert_allclose(by_hand(x), plain(x), atol=1e-6)
    ours = jax.grad(loss(by_hand))(x)
    np.testing.assert_allclose(ours, jax.grad(loss(plain))(x), atol=1e-5)
    np.testing.assert_allclose(curvature(by_hand)(x), curvature(plain)(x), atol=1e-4)
    check_grads(by_hand, (x,), order=1, modes=["rev"], atol=1e-2, rtol=1e-2)
