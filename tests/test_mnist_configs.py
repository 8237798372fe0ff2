"""The configs of Split MNIST on its first two tasks and few images: who forgets, and who does not.

MNIST itself where JCL_DATA has it, else made-up images of ten classes that are as hard to tell
apart from few examples.
"""

import dataclasses
import functools
import os
from pathlib import Path
from typing import get_args, get_type_hints

import jax
import jax.flatten_util
import numpy as np
import optax
import pytest

import jcl
from jcl.__main__ import load_config
from jcl.experiment import stage_steps

pytestmark = pytest.mark.xdist_group("mnist")  # the results are shared
CONFIGS = Path(__file__).parent.parent / "configs" / "mnist"
LWF = jcl.lwf(0.3)
TRAIN, TEST = 600, 250  # images of each class of the two tasks


def made_up(each, seed, classes=10):
    """Images whose pixels are lit with chances of their class's own."""
    chances = np.where(np.random.default_rng(0).random((classes, 28, 28)) < 0.5, 0.1, 0.25)
    draw, targets = np.random.default_rng(seed), np.repeat(np.arange(classes, dtype=np.uint8), each)
    lit = draw.random((len(targets), 28, 28)) < chances[targets]
    return np.where(lit, 255, 0).astype(np.uint8), targets


@pytest.fixture(scope="module", autouse=True)
def two_tasks(tmp_path_factory):
    """JCL_DATA with few images, and streams that end after two tasks."""
    whole = Path(os.environ.get("JCL_DATA", "")) / "mnist" / "mnist.npz"
    parts = (made_up(TRAIN, seed=1), made_up(TEST, seed=2))
    if whole.is_file():
        digits = jcl.data.mnist(whole)
        parts = (digits[:2], digits[2:])
    held = {}
    for name, (inputs, targets), each in zip(("train", "test"), parts, (TRAIN, TEST), strict=True):
        rows = [
            np.flatnonzero(targets == digit)[: each if digit < 4 else 10] for digit in range(10)
        ]
        chosen = np.concatenate(rows)
        held[f"x_{name}"], held[f"y_{name}"] = inputs[chosen], targets[chosen]
    folder = tmp_path_factory.mktemp("data")
    (folder / "mnist").mkdir()
    np.savez(folder / "mnist" / "mnist.npz", **held)
    split = jcl.data.split
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JCL_DATA", str(folder))
        patch.setattr(
            jcl.data, "split",
            lambda *arguments, **options: jcl.data.Stream(
                "two tasks", split(*arguments, **options).tasks[:2]
            ),
        )  # fmt: skip
        yield


@functools.cache
def accuracy(file, strategy=None, **config):
    """The average accuracy of a config after both tasks, with another strategy where one is given.

    The run's own loop, which the tests of `jcl run` cover, would take longer on eight devices.
    """
    module = load_config(CONFIGS / file)
    experiment = module.build(module.Config(**config))
    changes = {} if strategy is None else {"strategy": strategy}
    experiment = dataclasses.replace(experiment, boundary_batches=20, **changes)
    learner = jcl.learner(
        experiment.loss_fn, experiment.strategy, measure=experiment.measure.function
    )
    train = jax.jit(
        lambda state, batches: jax.lax.scan(learner.step, state, batches)[0], donate_argnums=0
    )
    consolidate, evaluate = jax.jit(learner.consolidate), jax.jit(learner.evaluate)
    state = None
    for stage, steps in zip(experiment.stream.stages, stage_steps(experiment), strict=True):
        batches = jcl.data.training_batches(stage, experiment.batch_size, seed=0)
        if state is None:
            params = experiment.model.init(jax.random.key(1))
            state = learner.init(jax.random.key(0), params, batches[0])
        state = jcl.start_task(state, steps)
        state = train(state, jcl.data.stack([batches[number] for number in range(steps)]))
        state = consolidate(state, jcl.data.stack([batches[steps + n] for n in range(20)]))
    found = []
    for task in experiment.stream.tasks:
        (batch,) = jcl.data.evaluation_batches(task.test, len(task.test))
        total, count = evaluate(state, batch)
        found.append(float(total / count))
    return float(np.mean(found))


def naive():
    return accuracy("split.py", method="sgd")


def joint():
    return accuracy("split.py", method="joint")


def test_naive_keeps_the_last_task_alone_and_joint_keeps_both():
    assert 0.45 < naive() < 0.52
    assert joint() > 0.95


@pytest.mark.parametrize(
    ("file", "config"),
    [
        ("split.py", {"method": "er", "buffer": 200}),
        ("split.py", {"method": "der", "buffer": 200}),
        ("split.py", {"method": "gem", "buffer": 200}),
        ("methods.py", {"method": "class_balanced", "buffer": 50}),
        ("methods.py", {"method": "herding", "buffer": 20}),
        ("methods.py", {"method": "mir", "buffer": 50}),
        ("methods.py", {"method": "gss", "buffer": 50}),
        pytest.param("methods.py", {"method": "la_maml", "buffer": 50}, marks=pytest.mark.slow),
        pytest.param("methods.py", {"method": "mer", "buffer": 50}, marks=pytest.mark.slow),
        ("baselines.py", {"method": "gdumb", "buffer": 100, "steps": 300}),
    ],
)
def test_a_memory_lies_between_naive_and_joint(file, config):
    assert naive() + 0.15 < accuracy(file, **config) < joint() - 0.005


def test_lwf_and_agem_keep_some_of_the_first_task():
    # At a rate at which the new task leaves something of the old one to be kept.
    slow = optax.sgd(0.01)
    alone = accuracy("split.py", strategy=jcl.chain(slow), method="sgd")
    agem = jcl.chain(jcl.agem(200, size=128), slow)
    assert alone + 0.1 < accuracy("split.py", strategy=agem, method="sgd") < joint()
    # At a rate that forgets, and at 0.3 of the usual strength: in so few steps all of it holds
    # the new task back.
    adam = optax.adam(3e-3)
    domain = lambda *left: accuracy(
        "scenarios.py", strategy=jcl.chain(*left, adam), scenario="domain", method="adam"
    )
    assert domain() + 0.02 < domain(LWF) < 1


def test_penalties_on_params_forget_the_classes_as_naive_does():
    """Class-incremental, as in table 2 of Hsu et al. 2018. MAS at a hundredth of the coefficient
    there: in so few steps the whole of it holds the head still."""
    mas = jcl.chain(jcl.mas(0.01, chunk=10), optax.sgd(0.03))
    for found in (
        accuracy("split.py", method="oewc"),
        accuracy("split.py", method="si"),
        accuracy("split.py", strategy=mas, method="sgd"),
    ):
        assert abs(found - naive()) < 0.02


def test_the_baselines():
    method = lambda name: accuracy("baselines.py", method=name)
    for trained in ("linear", "cosine"):  # a frozen backbone does not keep its head from forgetting
        assert method(trained) < naive() + 0.02
        for computed in ("nearest_class_mean", "slda"):  # over the same features
            assert method(trained) + 0.1 < method(computed) < joint()
    assert abs(method("cumulative") - joint()) < 0.03
    assert method("per_task") > 0.95  # of two classes, not of four


@pytest.mark.parametrize(
    ("file", "sizes"),
    [
        ("mnist/baselines.py", {}),
        ("mnist/methods.py", {}),
        ("mnist/permuted.py", {"tasks": 2}),
        ("mnist/permuted_small.py", {"tasks": 2}),
        ("mnist/split.py", {}),
        ("modular.py", {"layers": 1, "width": 16, "heads": 2, "batch_size": 2}),
    ],
)
def test_every_method_of_a_config_can_be_traced(file, sizes, monkeypatch):
    """The table of methods that the published ones leave out, without compiling or running it."""
    once = functools.cache(functools.partial(jcl.data.domains, length=128))
    monkeypatch.setattr(jcl.data, "domains", lambda **_: once())
    module = load_config(CONFIGS.parent / file)
    for method in get_args(get_type_hints(module.Config)["method"]):
        if hasattr(module, "BESIDE"):
            table = module.TABLE.get(method) or module.BESIDE[method]
            sizes = {**sizes, "buffer": min(table)}
        experiment = module.build(module.Config(method=method, **sizes))
        learner = jcl.learner(experiment.loss_fn, experiment.strategy)
        batch = jcl.data.training_batches(
            experiment.stream.stages[0], experiment.batch_size, seed=0
        )[0]
        begin = lambda key: learner.init(key, experiment.model.init(key), batch)
        state = jax.eval_shape(begin, jax.random.key(0))
        after, metrics = jax.eval_shape(learner.step, state, batch)
        assert jax.tree.structure(after) == jax.tree.structure(state), method
        assert metrics["total"].shape == ()


def test_what_acts_at_boundaries_alone_is_refused_where_there_are_none():
    module = load_config(CONFIGS / "methods.py")
    for method in get_args(get_type_hints(module.Config)["method"]):
        assert len(module.build(module.Config(method=method, stream="blurry")).stream.stages) == 2
        config = module.Config(method=method, stream="fuzzy")
        if method in module.AT_BOUNDARIES:
            with pytest.raises(jcl.InputError, match=f"fuzzy: {method} acts at .* --stream blurry"):
                module.build(config)
        else:
            assert len(module.build(config).stream.stages) == 1


@pytest.mark.slow
def test_without_a_boundary_the_refused_methods_train_as_plain_sgd_does():
    module = load_config(CONFIGS / "methods.py")

    def trained(method, strategy=None):
        experiment = module.build(module.Config(method=method))
        learner = jcl.learner(experiment.loss_fn, strategy or experiment.strategy)
        batches = jcl.data.training_batches(experiment.stream.stages[0], 10, seed=0)
        state = learner.init(None, experiment.model.init(jax.random.key(0)), batches[0])
        step = jax.jit(learner.step)
        for number in range(2):
            state, _ = step(state, batches[number])
        return jax.flatten_util.ravel_pytree(state.params)[0]

    plain = {method: trained(method, optax.sgd(0.03)) for method in ("ring", "packnet")}
    for method in module.AT_BOUNDARIES:
        found, expected = trained(method), plain.get(method, plain["ring"])
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7)
    assert np.abs(trained("ring") - plain["ring"]).max() > 1e-4
