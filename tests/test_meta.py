"""Meta-learning: gradients by hand and by finite differences, and what every method must do."""

import functools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jcl
from jcl import checkpoint, hlo
from jcl.sharding import Placement

EPISODES, SUPPORT, QUERIES, WIDTH, WAYS = 8, 6, 4, 5, 3
MODEL = jcl.models.mlp(jcl.models.MLPConfig(inputs=WIDTH, hidden=(7,), classes=WAYS))
WITH_RATES = jcl.meta.learned_rates(MODEL, 0.1)
LOSS = jcl.losses.classify(MODEL.apply)
SGD = optax.sgd(0.1)

# name: (loss of episodes, model)
TABLE = {
    "maml": (jcl.maml(LOSS, steps=2, optimizer=SGD), MODEL),
    "first-order maml": (jcl.maml(LOSS, steps=2, optimizer=SGD, first_order=True), MODEL),
    "anil": (jcl.maml(LOSS, steps=2, optimizer=SGD, where="head/*"), MODEL),
    "meta-sgd": (jcl.maml(LOSS, steps=2, optimizer=optax.sgd(1.0), rates="rates"), WITH_RATES),
    "oml": (jcl.maml(LOSS, steps=4, optimizer=SGD, where="head/*", one_by_one=True), MODEL),
    "inner adam, one by one in the program": (
        jcl.maml(LOSS, steps=2, optimizer=optax.adam(0.1, eps_root=1e-8), over="map", remat=True),
        MODEL,
    ),
    "reptile": (jcl.reptile(LOSS, steps=2, optimizer=SGD), MODEL),
    "implicit maml": (jcl.implicit_maml(LOSS, steps=4, optimizer=SGD, strength=2.0), MODEL),
    "prototypes": (jcl.prototypes(MODEL.features, WAYS), MODEL),
}
methods = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.xdist_group("meta " + name)) for name in TABLE]
)


def episodes(seed=0, number=EPISODES):
    random = np.random.default_rng(seed)

    def part(examples):
        targets = random.integers(0, WAYS, (number, examples)).astype(np.int32)
        inputs = random.standard_normal((number, examples, WIDTH)).astype(np.float32)
        inputs[..., :WAYS] += 2 * np.eye(WAYS, dtype=np.float32)[targets]
        return inputs, targets

    inputs, targets = part(QUERIES)
    support_inputs, support_targets = part(SUPPORT)
    return {
        "inputs": inputs,
        "targets": targets,
        "support_inputs": support_inputs,
        "support_targets": support_targets,
    }


def gradient(meta_loss, params, batch, key=None):
    return jax.grad(lambda params: meta_loss(params, batch, key)[0])(params)


def assert_close(one, other, tolerance=1e-5):
    jax.tree.map(
        lambda left, right: np.testing.assert_allclose(
            np.asarray(left), np.asarray(right), rtol=tolerance, atol=tolerance
        ),
        one,
        other,
    )


# A parabola in one number, theta: a slope a and a target y make the loss (a theta - y)^2 / 2.
def parabola(params, batch, key):
    predictions = batch["inputs"] * params["theta"]
    if "targets" not in batch:
        return jnp.zeros(()), {"logits": predictions}
    losses = 0.5 * (predictions - batch["targets"]) ** 2
    return losses.mean(), {"logits": predictions, "losses": losses}


THETA, RATE = {"theta": jnp.float32(0.3)}, 0.2
POINTS = {
    "support_inputs": np.float32([[2.0], [0.5]]),
    "support_targets": np.float32([[1.0], [-1.0]]),
    "inputs": np.float32([[1.5], [1.0]]),
    "targets": np.float32([[2.0], [0.7]]),
}


def by_hand(steps):
    """theta after the steps and d theta_steps / d theta, of both episodes."""
    a, y = POINTS["support_inputs"][:, 0], POINTS["support_targets"][:, 0]
    theta, slope = np.full(2, 0.3), np.ones(2)
    for _ in range(steps):
        theta, slope = theta - RATE * a * (a * theta - y), slope * (1 - RATE * a * a)
    return theta, slope


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("first_order", [False, True])
def test_mamls_gradient_equals_one_by_hand(steps, first_order):
    meta_loss = jcl.maml(parabola, steps=steps, optimizer=optax.sgd(RATE), first_order=first_order)
    theta, slope = by_hand(steps)
    b, y = POINTS["inputs"][:, 0], POINTS["targets"][:, 0]
    expected = np.mean((1.0 if first_order else slope) * b * (b * theta - y))
    found = gradient(meta_loss, THETA, POINTS)["theta"]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    value, aux = meta_loss(THETA, POINTS, None)
    np.testing.assert_allclose(aux["losses"], 0.5 * (b * theta - y) ** 2, rtol=1e-5)
    np.testing.assert_allclose(value, aux["losses"].mean(), rtol=1e-6)


def test_learned_rates_have_their_gradient_by_hand():
    params = {**THETA, "rates": {"theta": jnp.float32(RATE)}}
    meta_loss = jcl.maml(parabola, steps=1, optimizer=optax.sgd(1.0), rates="rates")
    theta, _ = by_hand(1)
    a, y = POINTS["support_inputs"][:, 0], POINTS["support_targets"][:, 0]
    b, target = POINTS["inputs"][:, 0], POINTS["targets"][:, 0]
    expected = np.mean(-a * (a * 0.3 - y) * b * (b * theta - target))
    found = gradient(meta_loss, params, POINTS)["rates"]["theta"]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_reptile_goes_part_of_the_way():
    learner = jcl.learner(
        jcl.reptile(parabola, steps=3, optimizer=optax.sgd(RATE)), optax.sgd(0.25)
    )
    state, metrics = learner.step(learner.init(None, THETA, POINTS), POINTS)
    theta, _ = by_hand(3)
    np.testing.assert_allclose(state.params["theta"], 0.3 + 0.25 * np.mean(theta - 0.3), rtol=1e-5)
    b, y = POINTS["inputs"][:, 0], POINTS["targets"][:, 0]
    np.testing.assert_allclose(metrics["total"], np.mean(0.5 * (b * theta - y) ** 2), rtol=1e-5)


def test_implicit_gradient_equals_one_by_hand():
    strength = 3.0
    meta_loss = jcl.implicit_maml(parabola, steps=200, optimizer=optax.sgd(RATE), strength=strength)
    a, y = POINTS["support_inputs"][:, 0], POINTS["support_targets"][:, 0]
    b, target = POINTS["inputs"][:, 0], POINTS["targets"][:, 0]
    phi = (a * y + strength * 0.3) / (a * a + strength)
    expected = np.mean(b * (b * phi - target) / (1 + a * a / strength))
    np.testing.assert_allclose(gradient(meta_loss, THETA, POINTS)["theta"], expected, rtol=1e-4)
    held = {name: np.asarray(leaf) for name, leaf in POINTS.items()}
    of = jax.jit(jax.grad(lambda theta: meta_loss(theta, held, None)[0]))
    np.testing.assert_allclose(of(THETA)["theta"], expected, rtol=1e-4)


def test_implicit_gradient_of_a_model_with_backward_passes_of_its_own():
    config = jcl.models.GPT2Config(16, positions=4, width=4, layers=1, heads=1, dropout=0.0)
    model = jcl.models.gpt2(config)
    loss_fn = jcl.losses.causal_lm(model.apply)
    tokens = np.random.default_rng(0).integers(0, 16, (4, 2, 3, 4)).astype(np.int32)
    names = ("inputs", "targets", "support_inputs", "support_targets")
    params, unravel = jax.flatten_util.ravel_pytree(model.init(jax.random.key(0)))
    batch = {name: jnp.asarray(each[:1]) for name, each in zip(names, tokens, strict=True)}
    of = lambda flat, batch, key: loss_fn(unravel(flat), batch, key)
    # The inner loop goes nowhere, so that the curvature is that of where it began.
    inner = {"optimizer": optax.sgd(1e-9), "strength": 20.0, "iterations": 50}
    found = gradient(jcl.implicit_maml(of, steps=1, **inner), params, batch)
    support = {name: batch[f"support_{name}"][0] for name in ("inputs", "targets")}
    queries = {name: batch[name][0] for name in ("inputs", "targets")}
    curvature = jax.jit(jax.jacrev(jax.grad(lambda flat: of(flat, support, None)[0])))(params)
    plain = jax.grad(lambda flat: of(flat, queries, None)[0])(params)
    expected = np.linalg.solve(np.eye(len(params)) + np.asarray(curvature) / 20, plain)
    np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())
    assert np.abs(found - plain).max() > 0.01 * np.abs(plain).max()


# The means are (1, 0) and (0, 4); the third class has none.
SCALED = lambda params, inputs, key=None: inputs * params
CORNERS = {
    "support_inputs": np.float32([[[0, 0], [2, 0], [0, 4]]]),
    "support_targets": np.int32([[0, 0, 1]]),
    "inputs": np.float32([[[1, 1]]]),
    "targets": np.int32([[1]]),
}


def test_prototypes_of_large_features():
    meta_loss = jcl.prototypes(SCALED, ways=3)
    value, aux = meta_loss(jnp.float32(1e5), CORNERS, None)
    np.testing.assert_allclose(value, 9e10, rtol=1e-5)
    assert list(np.argsort(aux["logits"][0, 0])) == [2, 1, 0]
    # A class without support has nothing to be learned from.
    assert meta_loss(jnp.float32(1.0), {**CORNERS, "targets": np.int32([[2]])}, None)[0] == 0


def test_prototypes_by_hand():
    for over in ("vmap", "map"):
        meta_loss = jcl.prototypes(SCALED, ways=3, over=over)
        value, aux = meta_loss(jnp.float32(1.0), CORNERS, None)
        np.testing.assert_allclose(aux["logits"][0, 0, :2], [-1, -10])
        assert aux["logits"][0, 0, 2] < -1e8
        np.testing.assert_allclose(value, np.log(1 + np.exp(9.0)), rtol=1e-5)


def test_prototypes_and_queries_are_one_batch():
    features = lambda params, inputs, key=None: inputs - inputs.mean(axis=0)
    batch = {
        "support_inputs": np.float32([[[0], [2]]]),
        "support_targets": np.int32([[0, 1]]),
        "inputs": np.float32([[[5]]]),
    }
    _, aux = jcl.prototypes(features, ways=2)(None, batch, None)
    np.testing.assert_allclose(aux["logits"][0, 0], [-25, -9], rtol=1e-6)


def test_the_deviation_is_over_episodes():
    answer = lambda params, batch, key: (0.0, {"logits": params * batch["inputs"]})
    inputs = np.float32([[[2, 1], [2, 1]], [[1, 2], [2, 1]], [[1, 2], [1, 2]]])
    batch = {"inputs": inputs, "targets": np.zeros((3, 2), np.int32)}
    probe = jcl.meta.deviation(jcl.meta.accuracy(answer))
    np.testing.assert_allclose(probe(1.0, batch), np.std([1, 0.5, 0], ddof=1))
    filled = {name: np.concatenate([leaf, leaf[:1]]) for name, leaf in batch.items()}
    filled["mask"] = np.float32([[1, 1], [1, 1], [1, 1], [0, 0]])
    np.testing.assert_allclose(probe(1.0, filled), np.std([1, 0.5, 0], ddof=1))
    with pytest.raises(jcl.InputError, match="at least 2 episodes"):
        probe(1.0, {name: leaf[:1] for name, leaf in batch.items()})


@pytest.mark.parametrize("name", ["maml", "meta-sgd", "oml"])
def test_gradient_equals_finite_differences(name):
    meta_loss, model = TABLE[name]
    params, batch = model.init(jax.random.key(0)), episodes()
    direction = jax.tree.map(
        lambda leaf: jax.random.normal(jax.random.key(leaf.size), leaf.shape), params
    )
    moved = lambda by: jax.tree.map(lambda leaf, way: leaf + by * way, params, direction)
    value = jax.jit(lambda by: meta_loss(moved(by), batch, None)[0])
    found = (value(3e-4) - value(-3e-4)) / 6e-4  # small, for the kinks of the ReLU
    np.testing.assert_allclose(jax.grad(value)(0.0), found, rtol=2e-2)


def test_first_order_equals_the_inner_gradient_stopped():
    params, batch = MODEL.init(jax.random.key(0)), episodes(number=1)
    support = {name: jnp.asarray(batch["support_" + name][0]) for name in ("inputs", "targets")}
    queries = {name: jnp.asarray(batch[name][0]) for name in ("inputs", "targets")}

    def stopped(params):
        adapted = params
        for _ in range(2):
            inner = jax.grad(lambda params: LOSS(params, support, None)[0])(adapted)
            adapted = jax.tree.map(
                lambda leaf, slope: leaf - 0.1 * jax.lax.stop_gradient(slope), adapted, inner
            )
        return LOSS(adapted, queries, None)[0]

    found = gradient(TABLE["first-order maml"][0], params, batch)
    assert_close(found, jax.grad(stopped)(params))
    second = gradient(TABLE["maml"][0], params, batch)
    assert not np.allclose(found["head"]["kernel"], second["head"]["kernel"], rtol=1e-2)


def test_no_steps_are_plain_training_on_the_queries():
    params, batch = MODEL.init(jax.random.key(0)), episodes()
    flat = {
        "inputs": batch["inputs"].reshape(-1, WIDTH),
        "targets": batch["targets"].reshape(-1),
    }
    states = []
    for loss_fn, each in ((jcl.maml(LOSS, steps=0, optimizer=SGD), batch), (LOSS, flat)):
        learner = jcl.learner(loss_fn, optax.adam(1e-2))
        state, _ = jax.jit(learner.step)(learner.init(None, params, each), each)
        states.append(state.params)
    assert_close(*states)


def test_anil_adapts_the_head_alone():
    adapt = jcl.meta.adaptation(LOSS, SGD, where="head/*")
    params, batch = MODEL.init(jax.random.key(0)), episodes(number=1)
    support = {name: jnp.asarray(batch["support_" + name][0]) for name in ("inputs", "targets")}
    adapted = adapt(params, support, None, 2)
    assert_close(adapted["layer_0"], params["layer_0"], 0)
    assert np.abs(adapted["head"]["kernel"] - params["head"]["kernel"]).max() > 1e-3


def test_one_by_one_goes_round_the_support_in_its_order():
    support = {"inputs": np.float32([2.0, 0.5]), "targets": np.float32([1.0, -1.0])}
    adapt = jcl.meta.adaptation(parabola, optax.sgd(RATE), one_by_one=True)
    theta = 0.3
    for index in (0, 1, 0):
        a, y = support["inputs"][index], support["targets"][index]
        theta -= RATE * a * (a * theta - y)
    np.testing.assert_allclose(adapt(THETA, support, None, 3)["theta"], theta, rtol=1e-5)


def test_a_start_of_its_own_and_masked_support():
    fresh = lambda params, support, key: jax.tree.map(jnp.zeros_like, params)
    batch = {**episodes(), "support_mask": np.zeros((EPISODES, SUPPORT), np.float32)}
    masked = jcl.maml(LOSS, steps=2, optimizer=SGD, start=fresh)
    value, _ = masked(MODEL.init(jax.random.key(0)), batch, None)
    np.testing.assert_allclose(value, np.log(WAYS), rtol=1e-5)  # zeros, and nothing to learn from


@methods
def test_every_method(name, tmp_path):
    """One trace; the same on 8 devices; saved and continued bitwise; learns; blind to targets."""
    meta_loss, model = TABLE[name]
    outer = optax.sgd(0.5) if name == "reptile" else optax.adam(1e-2)
    learner, traces = jcl.learner(meta_loss, outer), []

    def step(state, batch):
        traces.append(name)
        return learner.step(state, batch)

    step = jax.jit(step)
    params = model.init(jax.random.key(0))
    state = learner.init(jax.random.key(1), params, episodes())
    losses = []
    for number in range(12):
        if number == 6:
            checkpoint.save(tmp_path, state, {})
            halfway = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
                state,
            )
        state, metrics = step(state, episodes(number))
        losses.append(metrics["total"])
    assert traces == [name]
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    restored, _ = checkpoint.restore(tmp_path, halfway)
    for number in range(6, 12):
        restored, _ = step(restored, episodes(number))
    assert_close(restored.params, state.params, 0)

    placement = Placement(EPISODES)
    place = placement.state(state)
    spread = jax.device_put(learner.init(jax.random.key(1), params, episodes()), place)
    of_many = jcl.learner(placement.spread(meta_loss), outer)
    spread_step = jax.jit(of_many.step, out_shardings=(place, None))
    for number in range(3):
        spread, metrics = spread_step(spread, jax.device_put(episodes(number), placement.batch()))
        np.testing.assert_allclose(metrics["total"], losses[number], rtol=1e-4)

    batch = episodes(20)
    permuted = {**batch, "targets": np.roll(batch["targets"], 1, axis=1)}
    logits = learner.predict(state, batch)["logits"]
    assert logits.shape == (EPISODES, QUERIES, WAYS)
    np.testing.assert_array_equal(logits, learner.predict(state, permuted)["logits"])


@pytest.mark.skipif(jax.device_count() != 8, reason="needs 8 devices: a CPU passes for them")
@pytest.mark.parametrize("over", ["vmap", "map"])
def test_episodes_divide_over_devices(over):
    """Each computes its own, whose examples stay where they are."""
    meta_loss, placement = jcl.maml(LOSS, steps=2, optimizer=SGD, over=over), Placement(16)
    params, batch = MODEL.init(jax.random.key(0)), episodes(number=16)
    measure = jcl.meta.accuracy(meta_loss).function
    probe = jcl.meta.deviation(jcl.meta.accuracy(meta_loss))

    def compiled(spread, batch):
        loss = spread(lambda params, batch: meta_loss(params, batch, None)[0])
        functions = [jax.value_and_grad(loss), spread(measure), spread(probe)]
        both = jax.jit(lambda params, batch: [each(params, batch) for each in functions])
        program = both.lower(params, batch).compile()
        return hlo.work(program.as_text()), program(params, batch)

    alone, expected = compiled(lambda function: function, batch)
    params = jax.device_put(params, placement.batch(whole=True))
    own, found = compiled(placement.spread, jax.device_put(batch, placement.batch()))
    assert alone.flops > 0
    assert own.flops == alone.flops / 8
    assert set(own.collectives) <= {"all-reduce"}
    assert_close(found, expected)


def padded(batch):
    """The batch with an example of no account behind each of the support."""
    more = dict(batch)
    for name in ("inputs", "targets"):
        real = np.asarray(batch[f"support_{name}"])
        other = real[:, ::-1] + (100 if name == "inputs" else 0)
        more[f"support_{name}"] = np.stack([real, other], axis=2).reshape(
            len(real), -1, *real.shape[2:]
        )
    return {**more, "support_mask": np.tile(np.float32([1, 0]), (EPISODES, SUPPORT))}


@pytest.mark.parametrize("name", ["maml", "oml", "prototypes"])
def test_padding_of_the_support_changes_nothing(name):
    meta_loss, model = TABLE[name]
    params, batch = model.init(jax.random.key(0)), episodes()
    of = jax.jit(jax.grad(lambda params, batch: meta_loss(params, batch, None)[0]))
    assert_close(of(params, padded(batch)), of(params, batch))


@pytest.mark.parametrize("kind", ["dense", "convolutional"])
def test_a_padded_support_is_refused_where_a_batch_is_normalized(kind):
    if kind == "dense":
        shape = jcl.models.MLPConfig(WIDTH, (4,), WAYS, normalization="batch")
        model = jcl.models.mlp(shape)
    else:
        shape = jcl.models.ConvolutionalConfig(WIDTH, 1, filters=2, blocks=1, classes=WAYS)
        model = jcl.models.convolutional(shape)
    params = jax.eval_shape(model.init, jax.random.key(0))
    loss_fn, inner = jcl.losses.classify(model.apply), {"steps": 1, "optimizer": SGD}
    for meta_loss in (
        jcl.maml(loss_fn, **inner),
        jcl.reptile(loss_fn, **inner),
        jcl.implicit_maml(loss_fn, strength=1.0, **inner),
        jcl.prototypes(model.features, WAYS),
    ):
        of = functools.partial(jax.eval_shape, functools.partial(meta_loss, key=None), params)
        of(episodes())
        with pytest.raises(jcl.InputError, match="normalizes over the batch at"):
            of(padded(episodes()))


@pytest.mark.parametrize("options", [{"remat": True}, {"over": "map"}])
def test_how_it_is_computed_changes_nothing(options):
    params, batch = MODEL.init(jax.random.key(0)), episodes()
    plain = gradient(TABLE["maml"][0], params, batch)
    assert_close(gradient(jcl.maml(LOSS, steps=2, optimizer=SGD, **options), params, batch), plain)


def test_measures_and_steps_of_an_episodes_own():
    params, batch = MODEL.init(jax.random.key(0)), episodes()
    batch["mask"] = np.ones((EPISODES, QUERIES), np.float32)
    batch["mask"][-1] = 0
    of = lambda steps: jcl.maml(LOSS, steps=steps, optimizer=SGD)
    own = {**batch, "steps": np.full(EPISODES, 4, np.int32)}
    right, count = jcl.meta.accuracy(of(4)).function(params, batch)
    assert count == (EPISODES - 1) * QUERIES
    assert right == jcl.meta.accuracy(of(None)).function(params, own)[0]
    logits = of(4)(params, {n: leaf for n, leaf in batch.items() if n != "targets"}, None)[1]
    expected = (np.argmax(logits["logits"], -1) == batch["targets"])[:-1].sum()
    assert right == expected
    error, count = jcl.meta.squared_error(
        jcl.maml(parabola, steps=1, optimizer=optax.sgd(RATE))
    ).function(THETA, POINTS)
    theta, _ = by_hand(1)
    np.testing.assert_allclose(
        error, ((POINTS["inputs"][:, 0] * theta - POINTS["targets"][:, 0]) ** 2).sum(), rtol=1e-5
    )
    assert count == 2


@pytest.mark.parametrize("rate", [1e10, float("nan")])
def test_an_episode_that_runs_away_counts_at_most(rate):
    away = jcl.maml(parabola, steps=1, optimizer=optax.sgd(rate))
    error, count = jcl.meta.squared_error(away, at_most=7.0).function(THETA, POINTS)
    assert error == 7.0 * count
    near = jcl.maml(parabola, steps=1, optimizer=optax.sgd(RATE))
    bounded = jcl.meta.squared_error(near, at_most=1e6).function(THETA, POINTS)
    assert bounded == jcl.meta.squared_error(near).function(THETA, POINTS)
    with pytest.raises(jcl.InputError, match="at_most"):
        jcl.meta.squared_error(near, at_most=0.0)


def test_an_inner_adam_with_an_eps_root_has_a_gradient_where_its_own_is_zero():
    dead = jax.tree.map(jnp.zeros_like, MODEL.init(jax.random.key(0)))
    of = lambda adam: gradient(jcl.maml(LOSS, steps=2, optimizer=adam), dead, episodes())
    assert np.isfinite(of(optax.adam(0.1, eps_root=1e-8))["head"]["bias"]).all()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: jcl.maml(LOSS, steps=-1, optimizer=SGD), "maml(steps=-1)"),
        (lambda: jcl.maml(LOSS, steps=1, optimizer=SGD, over="pmap"), '"vmap", "map"'),
        (lambda: jcl.maml(LOSS, steps=1, optimizer=0.1), "optax.sgd(0.01)"),
        (lambda: jcl.maml(LOSS, steps=1, optimizer=SGD, first_order="no"), "True or False"),
        (lambda: jcl.maml(LOSS, steps=1, optimizer=SGD, remat="no"), "maml(remat='no')"),
        (lambda: jcl.maml(None, steps=1, optimizer=SGD), "maml(loss_fn=None)"),
        (lambda: jcl.maml(LOSS, steps=1, optimizer=SGD, start="x"), "maml(start='x')"),
        (lambda: jcl.maml(LOSS, steps=1, optimizer=SGD, rates=3), "maml(rates=3)"),
        (lambda: jcl.maml(LOSS, steps=1, optimizer=SGD, where=[]), "maml(where=[])"),
        (lambda: jcl.meta.adaptation(LOSS, SGD, one_by_one="no"), "adaptation(one_by_one='no')"),
        (lambda: jcl.reptile(None, steps=1, optimizer=SGD), "reptile(loss_fn=None)"),
        (lambda: jcl.reptile(LOSS, steps=1, optimizer=SGD, one_by_one="no"), "reptile(one_by_one"),
        (lambda: jcl.reptile(LOSS, steps=0, optimizer=SGD), "reptile(steps=0)"),
        (
            lambda: jcl.implicit_maml(LOSS, steps=1, optimizer=0.1, strength=1.0),
            "implicit_maml(optimizer=0.1)",
        ),
        (lambda: jcl.implicit_maml(LOSS, steps=1, optimizer=SGD, strength=0.0), "strength=0.0"),
        (lambda: jcl.prototypes(None, 3), "model.features"),
        (lambda: jcl.prototypes(MODEL.features, 0), "ways=0"),
        (lambda: jcl.prototypes(MODEL.features, 3, over="scan"), '"vmap", "map"'),
        (lambda: jcl.meta.learned_rates(MODEL, 0.0), "initial=0.0"),
        (lambda: jcl.meta.learned_rates(WITH_RATES, 0.1), "wrap it once"),
    ],
)
def test_bad_arguments_are_refused(make, says):
    with pytest.raises(jcl.InputError) as caught:
        make()
    assert says in str(caught.value)


def test_one_example_by_itself_is_refused_where_it_would_be_normalized():
    shape = jcl.models.MLPConfig(WIDTH, (4,), WAYS, normalization="batch")
    model = jcl.models.mlp(shape)
    loss_fn = jcl.losses.classify(model.apply)
    meta_loss = jcl.maml(loss_fn, steps=1, optimizer=SGD, one_by_one=True)
    with pytest.raises(jcl.InputError, match="one example by itself is 0 there"):
        jax.eval_shape(
            functools.partial(meta_loss, key=None), model.init(jax.random.key(0)), episodes()
        )


@pytest.mark.parametrize("steps", [2.5, -1, "2", np.float32(2)])
def test_steps_are_whole(steps):
    adapt = jcl.meta.adaptation(LOSS, SGD)
    support = {"inputs": np.zeros((2, WIDTH), np.float32), "targets": np.int32([0, 1])}
    with pytest.raises(jcl.InputError, match="steps"):
        adapt(MODEL.init(jax.random.key(0)), support, None, steps)


def test_what_is_masked_names_no_fresh_class():
    params = MODEL.init(jax.random.key(0))
    support = {"targets": np.int32([0, -1]), "mask": np.float32([1, 0])}
    before = params["head"]["kernel"]
    after = jcl.meta.fresh_classes()(params, support, jax.random.key(1))["head"]["kernel"]
    assert [bool((before[:, c] != after[:, c]).any()) for c in range(WAYS)] == [True, False, False]


def without_axis(name):
    return {**episodes(), name: episodes()[name][0]}


@pytest.mark.parametrize(
    ("options", "batch", "says"),
    [
        ({}, without_axis("inputs"), "different numbers of them"),
        ({}, {**episodes(), "mask": np.ones(EPISODES)}, r"mask \[8\]: give one number"),
        ({"where": "haed/*"}, episodes(), "head/kernel"),
        ({"rates": "rates"}, episodes(), "learned_rates"),
        ({}, {"inputs": np.zeros((2, 3, WIDTH))}, "support_inputs"),
        ({"steps": None}, episodes(), "steps"),
    ],
)
def test_bad_batches_are_refused(options, batch, says):
    meta_loss = jcl.maml(LOSS, **{"steps": 1, "optimizer": SGD, **options})
    params = MODEL.init(jax.random.key(0))
    with pytest.raises(jcl.InputError, match=says):
        jax.eval_shape(functools.partial(meta_loss, key=None), params, batch)
