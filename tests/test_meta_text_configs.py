"""Trajectories, classes in turn, the gated network; the configs of continual and text episodes."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from words import Words

import jcl
from jcl import InputError, checkpoint
from jcl.__main__ import load_config
from jcl.answer import learned_params
from jcl.data import Arrays, Trajectories, class_sequence
from jcl.experiment import check
from jcl.learner import LearnerState

pytestmark = pytest.mark.xdist_group("meta configs")  # drawings and params are shared
ROOT = Path(__file__).parent.parent
CLASSES, EACH = 7, 10


def source(**more):
    """inputs are the numbers of the examples; classes do not stand in order."""
    targets = np.random.default_rng(0).permutation(np.repeat(np.arange(CLASSES) * 3, EACH))
    return Arrays({"inputs": np.arange(CLASSES * EACH), "targets": targets, **more})


def trajectories(**changes):
    arguments = {
        "ways": 2, "shots": 4, "queries": 3, "sample": 5, "number": 400, "seed": 1, **changes,
    }  # fmt: skip
    return Trajectories(arguments.pop("source", source()), **arguments)


def test_a_trajectory_is_classes_in_turn_and_a_sample_of_the_others():
    labels = source().arrays()["targets"]
    chosen = [0, 6, 9, 18]  # of 0, 3, 6 ... 18
    batch = trajectories(classes=chosen).arrays()
    assert batch["support_inputs"].shape == batch["support_targets"].shape == (400, 8)
    assert batch["inputs"].shape == batch["targets"].shape == (400, 11)
    assert batch["targets"].dtype == batch["support_targets"].dtype == np.int32
    # A target is the class's place among those chosen, in the support and in the queries alike.
    for part in ("", "support_"):
        places = np.searchsorted(chosen, labels[batch[f"{part}inputs"]])
        np.testing.assert_array_equal(batch[f"{part}targets"], places)
        assert set(np.unique(places)) == {0, 1, 2, 3}
    blocks = batch["support_targets"].reshape(400, 2, 4)
    assert (blocks == blocks[..., :1]).all()
    assert (blocks[:, 0] != blocks[:, 1]).all()
    np.testing.assert_array_equal(
        batch["targets"][:, :6].reshape(400, 2, 3), np.repeat(blocks[..., :1], 3, axis=-1)
    )
    # Nothing is learned and asked, and what is sampled is of other classes.
    own = np.concatenate([batch["support_inputs"], batch["inputs"][:, :6]], axis=1)
    assert all(len(set(row)) == 14 for row in own.tolist())
    sampled = batch["targets"][:, 6:]
    assert not (sampled[:, :, None] == blocks[:, None, :, 0]).any()
    counts = np.bincount(batch["inputs"][:, 6:].ravel(), minlength=CLASSES * EACH)
    counts = counts[np.isin(labels, chosen)]
    np.testing.assert_allclose(counts, 50, atol=32)  # 4.5 standard deviations


def test_a_trajectory_depends_on_its_number_alone():
    made, every = trajectories(), trajectories().arrays()
    for key, leaf in made.take(np.array([321, 5])).items():
        np.testing.assert_array_equal(leaf, every[key][[321, 5]])
    for key, leaf in trajectories(number=6)[5].items():
        np.testing.assert_array_equal(leaf, every[key][5])
    assert (trajectories(seed=2).arrays()["inputs"] != every["inputs"]).any()
    changed = [
        trajectories(sample=4), trajectories(seed=2), trajectories(shots=3), trajectories(ways=1),
    ]  # fmt: skip
    assert len({made.hash(), *(each.hash() for each in changed)}) == 5
    assert trajectories().hash() == made.hash()
    assert made.classes == CLASSES


def test_further_keys_of_the_examples_go_along():
    batch = trajectories(source=source(attention_mask=np.arange(CLASSES * EACH) * 2)).arrays()
    for part in ("", "support_"):
        np.testing.assert_array_equal(batch[f"{part}attention_mask"], batch[f"{part}inputs"] * 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ways": 7}, "none is left to sample from"),
        ({"sample": 0}, "sample=0"),
        ({"shots": 8}, "fewer than 8 shots and 3 queries"),
    ],
)
def test_what_trajectories_refuse(changes, message):
    with pytest.raises(InputError, match=message):
        trajectories(**changes)


def test_classes_come_in_turn_each_example_once():
    chosen = [18, 0, 9, 3, 6]
    stream = class_sequence(source(), chosen, task=2, learned=7)
    assert [task.name for task in stream.tasks] == ["1 to 2", "3 to 4", "5 to 5"]
    labels = source().arrays()["targets"]
    for number, task in enumerate(stream.tasks):
        batches = jcl.data.training_batches(task.train, 1, seed=3)
        met = jcl.data.stack([batches[step] for step in range(len(task.train))])
        places = range(2 * number, min(2 * number + 2, 5))
        rows = [np.flatnonzero(labels == chosen[place]) for place in places]
        expected = np.concatenate([row[:7] for row in rows])
        np.testing.assert_array_equal(met["inputs"].ravel(), expected)
        np.testing.assert_array_equal(met["targets"].ravel(), np.repeat(places, 7))
        test = task.test.arrays()
        np.testing.assert_array_equal(test["inputs"], np.concatenate([row[7:] for row in rows]))
        np.testing.assert_array_equal(test["targets"], np.repeat(places, 3))
        assert test["targets"].dtype == np.int32
    other = class_sequence(source(), chosen[::-1], task=2, learned=7)
    assert len({task.hash for task in (*stream.tasks, *other.tasks)}) == 6
    with pytest.raises(InputError, match=r"classes=\[0, 0\]\): name every class once"):
        class_sequence(source(), [0, 0], task=1, learned=7)
    with pytest.raises(InputError, match="class 18 has 10 examples, and none is left to test"):
        class_sequence(source(), chosen, task=2, learned=10)


def test_fresh_classes_are_those_of_the_support_alone():
    start = jcl.meta.fresh_classes("out")
    params = {"body": jnp.ones(2), "out": {"kernel": jnp.full((500, 6), 7.0), "bias": jnp.ones(6)}}
    support = {"targets": jnp.array([4, 4, 1])}
    one, other = (start(params, support, jax.random.key(key)) for key in (0, 1))
    np.testing.assert_array_equal(one["out"]["bias"], [1, 0, 1, 1, 0, 1])
    kernel = np.asarray(one["out"]["kernel"])
    np.testing.assert_array_equal(kernel[:, [0, 2, 3, 5]], 7.0)
    np.testing.assert_allclose(kernel[:, [1, 4]].std(), 500**-0.5, rtol=0.1)
    assert (kernel[:, [1, 4]] != np.asarray(other["out"]["kernel"])[:, [1, 4]]).all()
    assert one["body"] is params["body"]
    again = [start(params, support, None)["out"]["kernel"] for _ in range(2)]
    np.testing.assert_array_equal(*again)
    with pytest.raises(InputError, match="no head 'head' of a kernel and a bias, only body, out"):
        jcl.meta.fresh_classes()(params, support, None)


SHAPE = jcl.models.ConvolutionalConfig(
    height=6, width=6, filters=3, blocks=2, classes=4, normalization="instance"
)
GATED = jcl.models.neuromodulated(jcl.models.NeuromodulatedConfig(SHAPE, filters=2))


@functools.cache
def gated():
    """Params, and pictures [5, 6, 6]."""
    return jax.jit(GATED.init)(jax.random.key(0)), jax.random.normal(jax.random.key(1), (5, 6, 6))


@functools.cache
def outputs():
    """(params, pictures) -> logits, features, and those of the two networks by themselves."""
    plain = jcl.models.convolutional(SHAPE)
    thin = jcl.models.convolutional(dataclasses.replace(SHAPE, filters=2))

    @jax.jit
    def function(params, x):
        hidden = plain.features({**params["prediction"], "head": params["head"]}, x)
        signal = thin.features({**params["modulation"], "head": params["head"]}, x)
        return GATED.apply(params, x), GATED.features(params, x), hidden, signal

    return function


def test_a_gate_multiplies_the_features():
    params, x = gated()
    logits, features, hidden, signal = map(np.asarray, outputs()(params, x))
    params = jax.tree.map(np.asarray, params)
    assert (hidden.shape, signal.shape) == ((5, 12), (5, 8))
    gate = 1 / (1 + np.exp(-(signal @ params["gate"]["kernel"] + params["gate"]["bias"])))
    np.testing.assert_allclose(features, hidden * gate, rtol=1e-5, atol=1e-6)
    expected = features @ params["head"]["kernel"] + params["head"]["bias"]
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
    assert np.ptp(gate) > 0.01


def test_nothing_passes_and_nothing_is_learned_where_the_gate_is_shut():
    params, x = gated()
    bias = params["gate"]["bias"]
    shut = {"kernel": np.zeros((8, 12), np.float32), "bias": np.full_like(bias, -200.0)}
    params = {**params, "gate": shut}
    np.testing.assert_array_equal(outputs()(params, x)[1], 0.0)
    loss_fn, batch = jcl.losses.classify(GATED.apply), {"inputs": x, "targets": jnp.arange(5) % 4}
    gradient = jax.jit(jax.grad(lambda params: loss_fn(params, batch, None)[0]))(params)
    for name in ("prediction", "modulation"):
        assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradient[name]))
    assert np.any(gradient["head"]["bias"])


def test_an_instance_is_normalized_by_itself():
    params, x = gated()
    each = np.stack([x] * 2)  # beside other pictures, and beside itself alone
    each[1] = x[:1]
    (beside, *_), (alone, *_) = (outputs()(params, part) for part in each)
    np.testing.assert_allclose(beside[0], alone[0], rtol=1e-4, atol=1e-5)
    # One block by hand: two places, whose patches have the pixels (0, 0) and (2, 0) in the middle.
    shape = dataclasses.replace(SHAPE, blocks=1, filters=2, height=4, width=2)
    kernel = np.zeros((9, 2), np.float32)
    kernel[4] = [1.0, -1.0]
    block = {
        "convolution": {"kernel": kernel},
        "scale": np.float32([2.0, 3.0]),
        "bias": np.float32([10.0, 20.0]),
    }
    pictures = np.full((2, 4, 2), 9, np.float32)
    pictures[:, [0, 2], 0] = [[1, 3], [2, 8]]  # of means 2 and 5, of variances 1 and 9
    found = jax.jit(jcl.models.convolutional(shape).features)({"block_0": block}, pictures)
    apart = np.array([[-1, 1], [-3, 3]]) / np.sqrt(np.array([[1], [9]]) + 1e-3)
    expected = np.stack([10 + 2 * apart, 20 - 3 * apart], axis=-1)
    np.testing.assert_allclose(found, expected.reshape(2, 4), rtol=1e-5)


@functools.cache
def glyphs():
    """Some glyphs, and a split of 12, 10 and 20 of them."""
    pytest.importorskip("HersheyFonts", reason='needs pip install "jcl[demo]"')
    leaves = jcl.data.glyphs(drawings=20).take(np.arange(42 * 20))
    names = [str(number) for number in range(42)]
    return (
        jcl.data.Characters(leaves["inputs"], leaves["targets"], names, names),
        jcl.data.split_classes(42, test=20, validation=10),
    )


@pytest.fixture
def continual(monkeypatch, tmp_path):
    module = load_config(ROOT / "configs" / "meta" / "continual.py")
    monkeypatch.setattr(module, "drawings", lambda _: glyphs())
    monkeypatch.chdir(tmp_path)
    return module


def test_drawings_are_learned_one_by_one_by_the_head_alone(continual, monkeypatch):
    fields = {"source": "glyphs", "filters": 4}
    experiment = continual.build(continual.Config(meta_steps=3, **fields))
    check(experiment)
    params = jax.jit(experiment.model.init)(jax.random.key(0))
    kept = dict(zip(jcl.models.wrapping.names(params), jax.tree.leaves(params), strict=True))
    monkeypatch.setattr(continual, "learned_params", lambda *_: kept)
    experiment = continual.build(continual.Config(phase="test", rate=0.1, **fields))
    check(experiment)
    assert [task.name for task in experiment.stream.tasks] == ["1 to 10", "11 to 20"]
    learner = jcl.learner(
        experiment.loss_fn, experiment.strategy, measure=experiment.measure.function
    )
    drawings = {key: leaf[:, None] for key, leaf in experiment.stream.stages[0].arrays().items()}
    held = experiment.stream.tasks[0].test.arrays()
    last_class = {key: jnp.asarray(leaf[-5:]) for key, leaf in held.items()}

    @jax.jit
    def learn(key):
        params = experiment.model.init(key)
        state = learner.init(key, params, jax.tree.map(lambda leaf: leaf[0], drawings))
        after, _ = jax.lax.scan(learner.step, state, drawings)
        right = [learner.evaluate(each, last_class) for each in (state, after)]
        return params, after.params, right

    before, after, right = learn(jax.random.key(3))
    for name in ("block_0", "block_1", "block_2"):
        for each, own in ((before, params), (after, before)):
            jax.tree.map(np.testing.assert_array_equal, each[name], own[name])
    assert params["head"]["kernel"].shape == (64, 12)
    assert before["head"]["kernel"].shape == (64, 20)
    # Whatever became of the others, the class that came last is known.
    (first, _), (last, _) = right
    assert first <= 2
    assert last == 5


def traced(experiment):
    """(state before, state after) a step, and the training batch; shapes alone."""
    learner = jcl.learner(experiment.loss_fn, experiment.strategy)
    batch = jcl.data.training_batches(experiment.stream.stages[0], experiment.batch_size, 0)[0]
    begin = lambda key: learner.init(key, experiment.model.init(key), batch)
    state = jax.eval_shape(begin, jax.random.key(0))
    after, metrics = jax.eval_shape(learner.step, state, batch)
    assert metrics["total"].shape == ()
    return state, after, batch


def test_every_method_of_the_continual_config_can_be_traced(continual, monkeypatch):
    begin = {}
    for method in ("anml", "pretrained"):
        experiment = continual.build(
            continual.Config(method=method, source="glyphs", filters=4, meta_steps=3)
        )
        state, after, batch = traced(experiment)
        assert jax.tree.structure(state) == jax.tree.structure(after)
        assert batch["inputs"].shape[:2] == ((1, 69) if method == "anml" else (64, 28))
        paths = jcl.models.wrapping.names(state.params)
        begin[method] = dict(zip(paths, jax.tree.leaves(state.params), strict=True))
    asked = []

    def start(run, seed):
        asked.append(str(run))
        kind = "anml" if "anml" in str(run) else "pretrained"
        return {path: np.ones(leaf.shape, np.float32) for path, leaf in begin[kind].items()}

    monkeypatch.setattr(continual, "learned_params", start)
    for method in get_args(get_type_hints(continual.Config)["method"]):
        config = continual.Config(
            method=method, phase="validate", source="glyphs", filters=4,
            start="elsewhere" if method == "oml" else None,
        )  # fmt: skip
        state, after, batch = traced(continual.build(config))
        assert jax.tree.structure(state) == jax.tree.structure(after), method
        assert batch["inputs"].shape == (1, 28, 28)
    assert asked == [
        "elsewhere",
        *(f"runs/continual/train_{name}_glyphs" for name in ("anml", *["pretrained"] * 3)),
    ]
    with pytest.raises(InputError, match="scratch has no phase train"):
        continual.build(continual.Config(method="scratch", source="glyphs"))
    for field, refused in (
        ("rate", {"method": "oml"}),
        ("start", {"method": "oml"}),
        ("inner_rate", {"method": "pretrained"}),
        ("inner_rate", {"method": "oml", "phase": "test"}),
        ("rate", {"method": "nearest_class_mean", "phase": "test"}),
        ("start", {"method": "scratch", "phase": "test"}),
        ("memory", {"method": "anml", "phase": "test"}),
    ):
        with pytest.raises(InputError, match=f"--{field}: the phase .* has none"):
            continual.build(continual.Config(**refused, **{field: 0.0}))


def test_a_rate_of_nothing_is_obeyed(continual, monkeypatch):
    rates, sgd = [], optax.sgd
    monkeypatch.setattr(optax, "sgd", lambda rate: rates.append(rate) or sgd(rate))
    fields = {"source": "glyphs", "filters": 4, "meta_steps": 3}
    continual.build(continual.Config(inner_rate=0.0, **fields))
    continual.build(continual.Config(method="scratch", phase="test", rate=0.0, **fields))
    assert rates == [0.0, 0.0]


def test_the_seed_of_the_measured_episodes_is_not_trained_with(continual, intents):
    for module in (continual, intents):
        with pytest.raises(InputError, match="--seed 2147483648 draws .*: take another"):
            module.build(module.Config(seed=2**31))


def test_the_params_of_each_seed_of_a_run(tmp_path):
    with pytest.raises(InputError, match="no folder of a finished run"):
        learned_params(tmp_path, 4)
    (tmp_path / "report.json").write_text("{}")
    kernel = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    state = LearnerState({"head": {"kernel": kernel}}, {"params": kernel}, None, 0, 0, 0)
    checkpoint.save(tmp_path / "checkpoints", jax.tree.map(jnp.asarray, state), {})
    for seeds in ([3, 4], [4]):
        (tmp_path / "config.json").write_text(json.dumps({"schema": 1, "seeds": seeds}))
        found = learned_params(tmp_path, 4)
        assert list(found) == ["head"]
        np.testing.assert_array_equal(found["head"]["kernel"], kernel[1] if seeds[1:] else kernel)
    with pytest.raises(InputError, match=r"has the seeds \[4\], and not 0"):
        learned_params(tmp_path, 0)


@functools.cache
def sentences():
    pytest.importorskip("home_assistant_intents", reason='needs pip install "jcl[demo]"')
    return jcl.data.intents(tokenizer=Words())


def small(layers):
    """A BERT for the sentences."""
    words = 1 + max(int(task.train.arrays()["inputs"].max()) for task in sentences().tasks)
    shape = {"head": "classes", "classes": 5, "pooling": "mean", "dropout": 0.0}
    return jcl.models.bert(jcl.models.BertConfig(words, 64, 8, layers, 2, 16, **shape))


@pytest.fixture
def intents(monkeypatch):
    module = load_config(ROOT / "configs" / "meta" / "intents.py")
    names = [task.name for task in sentences().tasks]
    monkeypatch.setattr(module, "texts", lambda length: sentences())
    monkeypatch.setattr(module, "encoder", lambda: small(1))
    monkeypatch.setattr(module, "DOMAINS", {"validation": names[:2], "test": names[2:4]})
    return module


@pytest.mark.parametrize("method", ["maml", "fomaml", "anil", "prototypes"])
def test_every_method_of_text_episodes_can_be_traced(method, intents):
    experiment = intents.build(intents.Config(method=method, meta_steps=3, tested=2))
    state, after, batch = traced(experiment)
    assert jax.tree.structure(state) == jax.tree.structure(after)
    assert batch["support_inputs"].shape[:2] == (2, 5)
    assert batch["inputs"].shape[:2] == (2, 15)
    tasks = experiment.stream.tasks
    assert [task.name for task in tasks] == [
        "validation/1", "validation/5", "test/1", "test/5",
    ]  # fmt: skip
    for task, shots in zip(tasks, (1, 5, 1, 5), strict=True):
        test = jcl.data.stack([task.test[index] for index in range(len(task.test))])
        assert test["support_mask"].sum(axis=1).tolist() == [5.0 * shots] * len(task.test)
        shape = jax.eval_shape(experiment.measure.function, state.params, test)
        assert shape[0].shape == ()


def test_texts_of_other_domains_are_tested(intents, monkeypatch):
    monkeypatch.setattr(intents, "encoder", lambda: small(3))
    experiment = intents.build(intents.Config(meta_steps=200, tested=100))
    stream = sentences()
    home = {}
    for task in stream.tasks:
        arrays = task.train.arrays()
        home |= {row.tobytes(): task.name for row in arrays["inputs"]}

    def domains(source, part):
        rows = source.arrays()[f"{part}inputs"]
        return {home[row.tobytes()] for row in rows.reshape(-1, rows.shape[-1])}

    names = [task.name for task in stream.tasks]
    (train,), tasks = experiment.stream.stages, experiment.stream.tasks
    for part in ("", "support_"):
        assert domains(train, part) == set(names[4:])
        assert [domains(task.test, part) for task in tasks] == [
            set(names[:2]), set(names[:2]), set(names[2:4]), set(names[2:4]),
        ]  # fmt: skip
    assert set(jcl.models.wrapping.shapes(experiment.model)["lora"]) == {"layer_1", "layer_2"}


def test_prototypes_have_no_inner_rate(intents):
    with pytest.raises(InputError, match="--inner_rate: prototypes has no inner loop"):
        intents.build(intents.Config("prototypes", inner_rate=0.1))


@pytest.mark.slow
def test_features_computed_once_give_anils_gradient(intents):
    config = intents.Config(inner_rate=0.5)
    experiment = intents.build(config)
    batch = jcl.data.training_batches(experiment.stream.stages[0], 2, 0)[0]
    batch = {key: jnp.asarray(leaf) for key, leaf in batch.items()}
    model = experiment.model
    params = jax.jit(model.init)(jax.random.key(0))
    # As drawn, b is 0 and a has no gradient.
    adapter = params["lora"]["layer_0"]["mlp"]["intermediate"]
    adapter["b"] = np.full(adapter["b"].shape, 0.1, np.float32)
    plain = jcl.maml(
        jcl.losses.classify(model.apply),
        steps=20,
        optimizer=optax.sgd(0.5),
        where="classifier/*",
    )

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def both(loss_fn, names, params):
        chosen = {name: params[name] for name in names}
        loss = lambda chosen: loss_fn({**params, **chosen}, batch, None)[0]
        return jax.value_and_grad(loss)(chosen)

    value, gradient = both(experiment.loss_fn, tuple(params), params)
    expected, wanted = both(plain, intents.LEARNED, params)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for name in intents.LEARNED:
        jax.tree.map(
            lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-6),
            gradient[name],
            wanted[name],
        )
    assert max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(gradient["lora"])) > 1e-4
    # And what is frozen has none.
    held = {name: leaf for name, leaf in gradient.items() if name not in intents.LEARNED}
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(held))
