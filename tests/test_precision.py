"""Types of params and products, and blocks that the backward pass runs again."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from everything import ALL, costly

import jcl
from jcl import InputError
from jcl.models import BertConfig, GPT2Config, LlamaConfig, Precision, bert, gpt2, llama
from jcl.models import precision as precision_module

BFLOAT16 = Precision(compute="bfloat16")
SMALL = {"positions": 16, "width": 16, "layers": 2, "heads": 2}
MODELS = {
    "gpt2": (gpt2, GPT2Config(61, **SMALL)),
    "llama": (llama, LlamaConfig(61, inner=24, key_value_heads=1, dropout=0.1, **SMALL)),
    "llama tied": (llama, LlamaConfig(61, inner=24, tied=True, family="qwen2", **SMALL)),
    "bert": (bert, BertConfig(61, inner=24, **SMALL)),
    "bert classes": (bert, BertConfig(61, inner=24, head="classes", **SMALL)),
}
TOKENS = jax.random.randint(jax.random.key(0), (3, 16), 1, 61)
every_model = pytest.mark.parametrize("name", MODELS)
# Costly tests take one model of each family that differs in them; JCL_ALL_TESTS=1 takes every one.
some_models = every_model if ALL else pytest.mark.parametrize("name", ["llama", "bert classes"])


def made(name, **changes):
    make, config = MODELS[name]
    return make(dataclasses.replace(config, **changes))


def batch(name):
    targets = TOKENS[:, 0] % 2 if name == "bert classes" else jnp.roll(TOKENS, -1, axis=1)
    return {"inputs": TOKENS, "targets": targets, "attention_mask": jnp.ones(TOKENS.shape)}


def loss_of(name, model):
    make = jcl.losses.classify if name == "bert classes" else jcl.losses.causal_lm
    loss_fn = make(model.apply)
    return lambda params, key=None: loss_fn(params, batch(name), key)[0]


@functools.cache
def initial(name):
    return jax.jit(made(name).init)(jax.random.key(1))


def products(jaxpr):
    """Types of the operands and of the result of every product in a program."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            inputs = [str(each.aval.dtype) for each in equation.invars]
            yield (*inputs, str(equation.outvars[0].aval.dtype))
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from products(inner)


def products_of(function, *arguments):
    return list(products(jax.make_jaxpr(function)(*arguments).jaxpr))


@every_model
def test_the_default_is_float32_and_casts_nothing(name):
    gradient = jax.grad(loss_of(name, made(name)))
    assert set(products_of(gradient, initial(name))) == {("float32",) * 3}
    text = jax.jit(gradient).lower(initial(name)).as_text()
    assert "bf16" not in text
    assert "custom_vjp" not in text


@every_model
@pytest.mark.parametrize("remat", [False, True])
def test_every_product_multiplies_bfloat16_and_sums_float32(name, remat):
    gradient = jax.grad(loss_of(name, made(name, precision=BFLOAT16, remat=remat)))
    found = products_of(gradient, initial(name))
    plain = products_of(jax.grad(loss_of(name, made(name, remat=remat))), initial(name))
    assert set(found) == {("bfloat16", "bfloat16", "float32")}
    assert len(found) == len(plain)


@some_models
def test_bfloat16_stays_near_float32(name):
    expected, exact = jax.value_and_grad(loss_of(name, made(name)))(initial(name))
    model = made(name, precision=BFLOAT16)
    loss, gradient = jax.value_and_grad(loss_of(name, model))(initial(name))
    assert 0 < abs(loss - expected) < 2e-2
    for leaf, wanted in zip(jax.tree.leaves(gradient), jax.tree.leaves(exact), strict=True):
        assert leaf.dtype == jnp.float32
        distance = jnp.linalg.norm(leaf - wanted)
        assert distance < 0.03 * jnp.linalg.norm(wanted) + 1e-5
    if model.head is not None:
        kernel = gradient[min(key for key in gradient if "_0" in key)]
        leaf = next(leaf for leaf in jax.tree.leaves(kernel) if leaf.ndim == 2)
        assert jnp.any(leaf != leaf.astype(jnp.bfloat16))  # summed and kept in float32
    assert model.apply(initial(name), TOKENS).dtype == jnp.float32


def rounded(x):
    return np.asarray(jnp.asarray(x).astype(jnp.bfloat16).astype(jnp.float32), np.float64)


def test_a_product_and_its_gradients_are_those_of_rounded_operands():
    x, kernel, along = (
        jax.random.normal(jax.random.key(number), shape)
        for number, shape in enumerate([(5, 4), (4, 3), (5, 3)])
    )
    for function, right in [
        (precision_module.matmul, kernel),
        (precision_module.matmul_transposed, kernel.T),
    ]:
        product, back = jax.vjp(lambda x, right, f=function: f(x, right, BFLOAT16), x, right)
        np.testing.assert_allclose(product, rounded(x) @ rounded(kernel), rtol=1e-5, atol=1e-6)
        of_x, of_right = back(along)
        of_kernel = of_right if right is kernel else of_right.T
        np.testing.assert_allclose(of_x, rounded(along) @ rounded(kernel).T, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(of_kernel, rounded(x).T @ rounded(along), rtol=1e-5, atol=1e-6)
    coarse = precision_module.matmul(
        x, kernel, Precision(compute="bfloat16", accumulate="bfloat16")
    )
    assert coarse.dtype == jnp.float32
    np.testing.assert_array_equal(coarse, rounded(coarse))


def test_products_of_more_axes():
    x, y, along = (
        jax.random.normal(jax.random.key(number), shape)
        for number, shape in enumerate([(2, 3, 5, 4), (2, 3, 4, 6), (2, 3, 5, 6)])
    )

    def product(types):
        return lambda x, y: precision_module.einsum("bhqd,bhdk->bhqk", x, y, types)

    for ours, plain in zip(
        jax.vjp(product(BFLOAT16), x, y)[1](along), jax.vjp(product(Precision()), x, y)[1](along),
        strict=True,
    ):  # fmt: skip
        np.testing.assert_allclose(ours, plain, rtol=0.05, atol=0.05)
    rows = precision_module.matmul(x, y[0, 0], BFLOAT16)
    flat = precision_module.matmul(x.reshape(-1, 4), y[0, 0], BFLOAT16)
    np.testing.assert_array_equal(rows.reshape(-1, 6), flat)


@every_model
def test_params_may_be_kept_in_bfloat16(name):
    narrow = Precision(params="bfloat16", compute="bfloat16")
    params = jax.jit(made(name, precision=narrow).init)(jax.random.key(1))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    gradient = jax.grad(loss_of(name, made(name, precision=narrow)))(params)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype(jnp.bfloat16)}
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


def adapted_step(name, model):
    """The compiled step of adapters alone, and its state."""
    strategy = jcl.chain(jcl.only("lora/*", optax.adamw(1e-2)), jcl.freeze("*", but="lora/*"))
    learner = jcl.learner(jcl.losses.causal_lm(model.apply), strategy)
    params = jax.jit(model.init)(jax.random.key(1))
    state = learner.init(None, params, batch(name))
    return jax.jit(learner.step).lower(state, batch(name)).compile(), state


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"] if ALL else ["gpt2"])
@pytest.mark.parametrize("remat", [False, True])
def test_float32_adapters_train_over_a_bfloat16_base(name, remat):
    types = Precision(params="bfloat16", compute="bfloat16")
    base = made(name, precision=types, remat=remat)
    where = "*mlp*" if name == "bert" else "*attn*"
    model = jcl.models.lora(base, rank=2, alpha=4.0, where=where)
    step, first = adapted_step(name, model)
    state, losses = first, []
    for _ in range(8):
        state, metrics = step(state, batch(name))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0]
    for before, after in zip(*map(jax.tree.leaves, (first.params, state.params)), strict=True):
        assert before.dtype == after.dtype
    lora, frozen = state.params.pop("lora"), state.params
    assert {leaf.dtype for leaf in jax.tree.leaves(lora)} == {jnp.dtype(jnp.float32)}
    first.params.pop("lora")
    jax.tree.map(np.testing.assert_array_equal, frozen, first.params)
    assert set(products_of(jax.grad(loss_of(name, model)), {**frozen, "lora": lora})) == {
        ("bfloat16", "bfloat16", "float32")
    }
    merged = jcl.models.merge_lora({**frozen, "lora": lora}, 4.0)
    assert {leaf.dtype for leaf in jax.tree.leaves(merged)} == {jnp.dtype(jnp.bfloat16)}


def test_the_gradient_of_a_frozen_base_is_not_computed():
    types = Precision(params="bfloat16", compute="bfloat16")
    model = jcl.models.lora(made("gpt2", precision=types, width=64), rank=2, alpha=4.0)
    step, state = adapted_step("gpt2", model)
    learner = jcl.learner(jcl.losses.causal_lm(model.apply), optax.sgd(0.1))
    full = jax.jit(learner.step).lower(learner.init(None, state.params, batch("gpt2")),
                                       batch("gpt2")).compile()  # fmt: skip
    # A third of the products are those of the gradients of kernels and of the token table.
    assert step.cost_analysis()["flops"] < 0.8 * full.cost_analysis()["flops"]
    temporary = [each.memory_analysis().temp_size_in_bytes for each in (step, full)]
    assert temporary[0] < temporary[1]


@some_models
@pytest.mark.parametrize("key", [None, jax.random.key(5)], ids=["without", "dropout"])
def test_running_blocks_again_changes_no_value(name, key):
    plain, again = made(name), made(name, remat=True)
    jax.tree.map(
        np.testing.assert_array_equal, jax.jit(again.init)(jax.random.key(1)), initial(name)
    )
    (loss, gradient), (expected, wanted) = (
        jax.jit(jax.value_and_grad(loss_of(name, model)))(initial(name), key)
        for model in (again, plain)
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), gradient, wanted)


@every_model
def test_blocks_are_marked_to_run_again(name):
    """What becomes of the mark is the compiler's: on a CPU XLA joins the two passes again."""
    marks = []
    for remat in (False, True):
        gradient = jax.jit(jax.grad(loss_of(name, made(name, remat=remat))))
        marks.append(gradient.lower(initial(name)).as_text().count("optimization_barrier"))
    assert marks[0] == 0
    assert marks[1] >= made(name).config.layers


@costly
def test_wrappers_act_once_on_blocks_that_run_again():
    def wrapped(remat):
        model = made("gpt2", remat=remat)
        model = jcl.models.adapters(model, width=4, where=("h_0", "h_*/mlp"))
        model = jcl.models.lora(model, rank=2, alpha=4.0, dropout=0.5)
        return jcl.models.module_dropout(model, {"h_1": 0.5})

    params = jax.jit(wrapped(False).init)(jax.random.key(2))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(3), len(leaves))
    noise = [0.1 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves)]  # noqa: B905
    params = jax.tree.map(jnp.add, params, tree.unflatten(noise))
    results = [
        jax.value_and_grad(loss_of("gpt2", wrapped(remat)))(params, jax.random.key(4))
        for remat in (False, True)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *results)


@costly
def test_replicas_and_steps_in_bfloat16():
    """Over seeds as each alone, with replay, EWC, chunks of the loss and blocks that run again."""
    model = made("gpt2", precision=BFLOAT16, remat=True)
    strategy = jcl.chain(jcl.replay(8, 3), jcl.ewc(10.0), optax.adamw(1e-2), jcl.si(0.1))
    learner = jcl.learner(jcl.losses.causal_lm(model, chunk=20), strategy)
    data = {"inputs": TOKENS, "targets": jnp.roll(TOKENS, -1, axis=1)}
    keys = jax.random.split(jax.random.key(7), 2)
    params = jax.jit(jax.vmap(model.init))(keys)

    def trained(learner, key, params, data):
        state = learner.init(key, params, data)
        step, consolidate = learner.step, learner.consolidate
        stacked = jax.tree.map(lambda leaf: leaf[None], data)
        if data["inputs"].ndim == 3:
            stacked = jax.tree.map(lambda leaf: leaf[:, None], data)
        state = consolidate(step(state, data)[0], stacked)
        state, metrics = step(state, data)
        return state.params, metrics["loss"]

    def compiled(learner):
        return learner._replace(
            step=jax.jit(learner.step), consolidate=jax.jit(learner.consolidate)
        )

    one = compiled(learner)
    both = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), data)
    together = trained(compiled(jcl.over_seeds(learner)), keys, params, both)
    for number in range(2):
        own = jax.tree.map(lambda leaf, n=number: leaf[n], params)
        alone = trained(one, keys[number], own, data)
        jax.tree.map(
            lambda a, b, n=number: np.testing.assert_allclose(a[n], b, atol=2e-3), together, alone
        )


def test_what_is_refused():
    with pytest.raises(InputError, match="compute=\"half\"|compute='half'"):
        Precision(compute="half")
    with pytest.raises(InputError, match="narrower type"):
        Precision(accumulate="bfloat16")
    for wrong in (
        {"precision": "bfloat16", "remat": False},
        {"precision": Precision(), "remat": "b"},
    ):
        with pytest.raises(InputError, match=r"Config\(.*jcl.models.Precision|remat"):
            precision_module.check("Config", SimpleNamespace(**wrong))


def test_a_checkpoint_is_read_in_the_precision_asked_for(tmp_path):
    model = made("gpt2")
    jcl.models.save_pretrained(tmp_path / "model", model, initial("gpt2"))
    types = Precision(params="bfloat16", compute="bfloat16")
    model, params = jcl.models.from_pretrained(tmp_path / "model", precision=types, remat=True)
    assert (model.config.precision, model.config.remat) == (types, True)
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), initial("gpt2"))
    jax.tree.map(np.testing.assert_array_equal, params, narrow)
    _, params = jcl.models.from_pretrained(tmp_path / "model", precision=BFLOAT16)
    jax.tree.map(np.testing.assert_array_equal, params, initial("gpt2"))
    _, params = jcl.models.from_pretrained(
        tmp_path / "model", precision=BFLOAT16, dtype=jnp.float16
    )
    assert params["wte"].dtype == jnp.float16
