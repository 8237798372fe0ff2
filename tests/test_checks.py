"""What a caller gives to a factory is refused where it stands, by name."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

import jcl
from jcl import InputError, checks

BALANCED = inspect.unwrap(jcl.memory.balanced)  # without the tests' check of its type
MLP = jcl.models.mlp(jcl.models.MLPConfig(inputs=toy.INPUTS, hidden=(4,), classes=toy.CLASSES))


@pytest.mark.parametrize("value", [1, np.int64(3), np.int32(1), jnp.int32(2)])
def test_whole_numbers_of_every_kind_pass(value):
    number = checks.whole("f", "size", value)
    assert type(number) is int
    assert number == value


@pytest.mark.parametrize("value", [0, -1, 1.0, "1", None, True, np.float32(2), [1]])
def test_what_is_no_whole_number_is_refused(value):
    with pytest.raises(InputError, match=r"f\(size=.*\): a whole number, at least 1"):
        checks.whole("f", "size", value)


@pytest.mark.parametrize("value", ["no", 1, None, jnp.array(True)])
def test_what_is_no_flag_is_refused(value):
    checks.flag("f", "sure", False)
    checks.flag("f", "sure", np.bool_(True))
    with pytest.raises(InputError, match=r"f\(sure=.*\): True or False"):
        checks.flag("f", "sure", value)


@pytest.mark.parametrize(
    "make",
    [
        lambda value: jcl.si(1.0, rectify=value),
        lambda value: jcl.ewc(1.0, recentre=value),
        lambda value: jcl.separate("*", 2, restart=value),
        lambda value: jcl.data.mnist_360(None, replacement=value),
    ],
)
def test_a_word_is_no_flag(make):
    with pytest.raises(InputError, match=r"='no'\): True or False"):
        make("no")


@pytest.mark.parametrize("value", [0, 0.5, np.float32(1), np.array(1.0), jnp.float32(0.1), 1])
def test_numbers_of_every_kind_pass(value):
    checks.number("f", "rate", value, "[0, 1]")


@pytest.mark.parametrize(
    "value", [-1, np.float32(-1), float("nan"), np.nan, 1.1, "1", None, True, jnp.ones(2), 1j]
)
def test_what_lies_outside_is_refused(value):
    with pytest.raises(InputError, match=r"f\(rate=.*\): a number in \[0, 1\]"):
        checks.number("f", "rate", value, "[0, 1]")


def test_the_ends_of_an_interval_belong_to_it_as_written():
    checks.number("f", "x", 0, "[0, 1)")
    checks.number("f", "x", 1, "(0, 1]")
    for value, within in ((1, "[0, 1)"), (0, "(0, 1]"), (float("inf"), "[0, inf)")):
        with pytest.raises(InputError):
            checks.number("f", "x", value, within)


def test_a_traced_number_passes():
    assert jax.vmap(lambda s: checks.number("f", "x", s) or s)(jnp.array([-1.0, 1.0])).shape == (2,)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: jcl.replay(jcl.memory.ring, 4), "'ring' is a function that makes a memory"),
        (lambda: jcl.replay(None, 4), r"replay\(capacity=None\): a whole number"),
        (lambda: jcl.der(jcl.memory.ring(10), 4, 1.0), r"der\(capacity=a Policy\)"),
        (lambda: jcl.agem(jcl.memory.ring(10), 4), r"agem\(capacity=a Policy\)"),
        (lambda: jcl.gss(jcl.memory.ring(10), 4), r"gss\(capacity=a Policy\)"),
        (lambda: jcl.ewc("1e3"), r"ewc\(strength='1e3'\)"),
        (lambda: jcl.mir(10, 2, 4, learning_rate=0.1, strength=-1.0), r"^mir\(strength"),
        (
            lambda: jcl.memory.priority(5, keep="lowest", draw="score"),
            "prefer the high losses",
        ),
        (lambda: jcl.chain(), "at least one part"),
        (lambda: jcl.only([], optax.sgd(0.1)), "no pattern"),
        (lambda: jcl.freeze({}), "no pattern"),
        (lambda: jcl.freeze("h_*", but="*"), r"but=\['\*'\] spares all that 'h_\*' matches"),
        (lambda: jcl.freeze(["a", "b"], but="b"), "spares all that 'b' matches"),
        (lambda: BALANCED(10), r"balanced\(policy=10\): give a memory"),
        (lambda: BALANCED(jcl.memory.ring), r"balanced\(policy=ring\): give a memory"),
        (
            lambda: jcl.shrink_and_perturb(0.8, 0.1, init="x"),
            r"shrink_and_perturb\(init='x'\): give a function, such as model.init",
        ),
        (lambda: jcl.periodically(optax.sgd(0.1), every=9), "consolidates nothing"),
        (lambda: jcl.per_task(jcl.per_task(optax.sgd(0.1))), "afresh at every task already"),
        (
            lambda: jcl.mir(jcl.memory.herding(9, 3, MLP.features), 2, 4, 0.1),
            "mir: this memory .* at its end",
        ),
    ],
)
def test_a_mistake_is_named_when_it_is_made(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (jcl.seen_classes(classes=5), r"logits are \[16, 3\]"),
        (jcl.rwalk(1.0, chunk=3), r"rwalk\(chunk=3\) does not divide the batch of 16"),
        (jcl.replay(jcl.memory.class_balanced(10, classes=2), 4), "give the memory classes=3"),
        (
            jcl.gdumb(10, classes=2, steps=1, size=2, optimizer=optax.sgd(0.1)),
            "give the memory classes=3",
        ),
        (jcl.only("head/*", jcl.slda(MLP.features, 3)), "slda reads all params"),
        (jcl.only("head/*", jcl.nearest_class_mean(MLP.features, 3)), "reads all params"),
        (
            jcl.only("*", jcl.nearest_class_mean(MLP, 3)),  # pyright: ignore[reportArgumentType]
            "features=a Model.*model.features",
        ),
        (jcl.freeze("*/kernel", but=["layer_*", "head/*"]), "spares all that '\\*/kernel' matches"),
        (
            jcl.freeze({"head/*": 0.2, "*": 0.5, "layer_*/bias": 0.3}),
            r"'layer_\*/bias' never counts, since .* before by '\*': put it first",
        ),
        (
            jcl.only("head/*", jcl.gdumb(10, classes=3, steps=1, size=2, optimizer=optax.sgd(0.1))),
            "gdumb reads all params",
        ),
    ],
)
def test_what_does_not_fit_the_model_is_refused_at_init(part, message):
    learner = jcl.learner(jcl.losses.classify(MLP.apply), jcl.chain(optax.sgd(0.1), part))
    with pytest.raises(InputError, match=message):
        learner.init(None, MLP.init(jax.random.key(0)), toy.batch(0))


@pytest.mark.parametrize("part", [jcl.agem(10, 4), jcl.gem(10, 2)])
def test_what_edits_the_gradient_stands_left_of_the_optimizer(part):
    with pytest.raises(InputError, match=r"gem\(...\) edits the gradient and must stand before"):
        jcl.chain(optax.sgd(0.1), part)
    with pytest.raises(InputError, match="must stand before"):
        jcl.chain(optax.sgd(0.1), jcl.chain(jcl.ewc(1.0), part))
    jcl.chain(optax.clip_by_global_norm(1.0), jcl.chain(part), optax.sgd(0.1))
    jcl.chain(jcl.chain(part, optax.sgd(0.1)), jcl.si(1.0))


def test_rooms_for_tasks_are_those_of_the_smallest_part():
    olora = jcl.olora(1.0, tasks=3)
    inner = jcl.only("lora/*", jcl.chain(jcl.gem(10, tasks=5), optax.sgd(0.1)))
    assert jcl.chain(inner, olora).tasks == 3
    assert jcl.chain(jcl.ewc(1.0), optax.sgd(0.1)).tasks is None


def test_rows_that_the_mask_leaves_out_enter_no_memory():
    batch = {**toy.batch(0, size=8), "mask": jnp.array([1.0, 0, 1, 1, 0, 0, 1, 0])}
    kept = {"inputs": batch["inputs"], "targets": jnp.array([0, 1, 2, 0, 1, 2, 0, 1])}
    batch = {**batch, "targets": kept["targets"]}
    real = jnp.array([0, 2, 3, 6])
    alone = jax.tree.map(lambda leaf: leaf[real], batch)
    scores = jnp.arange(8.0)
    memory = jcl.memory
    policies = {
        "reservoir": memory.reservoir(6),
        "ring": memory.ring(3),
        "priority": memory.priority(6),
        "random": memory.priority(6, replacement="random"),
        "class_balanced": memory.class_balanced(6, classes=3),
        "greedy_balanced": memory.greedy_balanced(6, classes=3),
        "herding": memory.herding(6, 3, toy.inputs),
    }
    for name, policy in policies.items():
        rows = batch["inputs"] if name == "herding" else scores
        insert = jax.jit(policy.insert)
        filled = insert(policy.init(batch), batch, jax.random.key(1), rows)
        expected = insert(policy.init(alone), alone, jax.random.key(1), rows[real])
        assert filled.seen == 4, name
        there = policy.filled(expected)
        assert np.array_equal(policy.filled(filled), there), name
        for key, kept in expected.items.items():
            assert np.array_equal(filled.items[key][there], kept[there]), (name, key)


def test_a_class_of_no_counted_row_is_not_seen():
    batch = {**toy.batch(0, size=4), "targets": jnp.array([0, 1, 2, 1])}
    batch["mask"] = jnp.array([1.0, 1, 0, 1])
    for part in (jcl.lwf(1.0), jcl.seen_classes(3)):
        state = part.init(toy.params(), batch=batch, aux={"logits": jnp.zeros((4, 3))})
        _, state = part.update({}, state, {}, batch=batch)
        seen = getattr(state, "seen", state)
        assert seen.tolist() == [True, True, False], part.name


def test_a_target_below_0_names_no_class():
    batch = {**toy.batch(0, size=4), "targets": jnp.array([0, -1, 1, -1])}
    part = jcl.seen_classes(3)
    state = part.init(toy.params(), batch=batch, aux={"logits": jnp.zeros((4, 3))})
    _, state = part.update({}, state, {}, batch=batch)
    assert state.tolist() == [True, True, False]


def test_patterns_of_one_share_may_overlap():
    part = jcl.freeze(["layer_*", "layer_0/*", "*"])
    assert part.init(MLP.init(jax.random.key(0)), batch={}, aux={}) == ()
    part = jcl.freeze({"layer_0/bias": 0.3, "layer_0/*": 0.5, "*": 0.3})
    assert part.init(MLP.init(jax.random.key(0)), batch={}, aux={}) == ()


def test_a_batch_of_several_tasks_is_seen_by_the_live_params():
    part = jcl.separate("*", tasks=3)
    params = {"w": jnp.zeros(2)}
    state = part.init(params, batch={}, aux={})
    state, _ = part.consolidate(state, {"w": jnp.ones(2)}, batches={}, loss_fn=None, key=None)
    live = {"w": jnp.full(2, 7.0)}
    for tasks, expected in (([0, 0], 1.0), ([1, 1], 7.0), ([0, 1], 7.0)):
        seen, _ = part.view(state, live, {"task": jnp.array(tasks)})
        assert seen["w"][0] == expected, tasks
