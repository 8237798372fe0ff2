"""Every strategy through one table: what a strategy has to do whatever its method is.

A new strategy adds one row to TABLE.
"""

import functools
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy
from everything import ALL

import jcl
from jcl import checkpoint
from jcl.sharding import Placement

GOLDEN = Path(__file__).parent / "golden" / "contract.json"
ADAMW = optax.adamw(1e-2)


def alarming(part):
    """The part, told of an alarm before every batch whose first number is positive."""
    part = jcl.lift(part)

    def told(batch):
        alarm = batch["inputs"][0, 0] > 0
        return {**batch, "drift": jnp.full(batch["inputs"].shape[0], alarm, jnp.int32)}

    def init(params, *, batch, aux):
        return part.init(params, batch=told(batch), aux=aux)

    def loss(state, params, *, batch, **rest):
        return part.loss(state, params, batch=told(batch), **rest)

    def update(updates, state, params, *, batch, **extra):
        return part.update(updates, state, params, batch=told(batch), **extra)

    return part._replace(init=init, loss=loss, update=update)


# name: strength -> the parts of a chain
TABLE = {
    "naive": lambda strength: [ADAMW],
    "replay": lambda strength: [jcl.replay(capacity=24, size=8, strength=strength), ADAMW],
    "replay at the boundary": lambda strength: [
        jcl.replay(capacity=24, size=8, strength=strength, insert="boundary"),
        ADAMW,
    ],
    "ewc": lambda strength: [jcl.ewc(strength), ADAMW],
    "online ewc": lambda strength: [jcl.ewc(strength, decay=0.5, recentre=True), ADAMW],
    "ewc, sampled, in chunks": lambda strength: [
        jcl.ewc(strength, targets="sampled", chunk=4),
        ADAMW,
    ],
    "periodically ewc": lambda strength: [
        jcl.periodically(jcl.ewc(strength), every=3, batches=2),
        ADAMW,
    ],
    "only ewc": lambda strength: [jcl.only("body/*", jcl.ewc(strength)), ADAMW],
    "only replay and adamw": lambda strength: [
        jcl.only("body/*", jcl.replay(capacity=24, size=8, strength=strength)),
        ADAMW,
    ],
    "si": lambda strength: [ADAMW, jcl.si(10 * strength)],
    "si, rectified": lambda strength: [ADAMW, jcl.si(10 * strength, rectify=True)],
    "only si": lambda strength: [ADAMW, jcl.only("body/*", jcl.si(10 * strength))],
    "mas": lambda strength: [jcl.mas(0.1 * strength), ADAMW],
    "only mas, in chunks": lambda strength: [jcl.only("body/*", jcl.mas(strength, chunk=4)), ADAMW],
    "l2": lambda strength: [jcl.l2(strength), ADAMW],
    "l2 toward initial": lambda strength: [
        jcl.only("body/*", jcl.l2(strength, toward="initial")),
        ADAMW,
    ],
    "l1": lambda strength: [jcl.l1(strength), ADAMW],
    "lwf": lambda strength: [jcl.lwf(strength), ADAMW],
    "only lwf": lambda strength: [jcl.only("body/*", jcl.lwf(strength, temperature=1.0)), ADAMW],
    "feature distillation": lambda strength: [
        jcl.feature_distillation(toy.features, strength),
        ADAMW,
    ],
    "rwalk": lambda strength: [ADAMW, jcl.rwalk(strength, every=2)],
    "only rwalk, in chunks": lambda strength: [
        ADAMW,
        jcl.only("body/*", jcl.rwalk(strength, every=3, chunk=4)),
    ],
    "shrink and perturb": lambda strength: [
        jcl.shrink_and_perturb(1 - 0.3 * strength, 0.1 * strength, toy.initial),
        ADAMW,
    ],
    "only shrink and perturb": lambda strength: [
        jcl.only("body/*", jcl.shrink_and_perturb(1 - 0.3 * strength, 0.1 * strength)),
        ADAMW,
    ],
    "per task, scheduled": lambda strength: [
        jcl.ewc(strength),
        jcl.per_task(jcl.scheduled(optax.adamw, jcl.cosine(1e-2, warmup=0.2))),
    ],
    "by path": lambda _: [
        jcl.by_path(
            {
                "body/kernel": jcl.per_task(
                    jcl.scheduled(optax.contrib.muon, jcl.restarts(1e-2, 2, growth=2.0))
                ),
                "body/bias": jcl.scheduled(optax.radam, jcl.step_decay(1e-2, (0.5,))),
            },
            otherwise=optax.adafactor(1e-2, min_dim_size_to_factor=2),
        ),
        optax.contrib.reduce_on_plateau(patience=1),
    ],
    "der": lambda strength: [jcl.der(24, 8, strength), ADAMW],
    "der++": lambda strength: [jcl.der(24, 8, strength, replay_strength=strength), ADAMW],
    "der, top": lambda strength: [jcl.der(24, 8, strength, top=2), ADAMW],
    "agem": lambda strength: [jcl.agem(24, 8), ADAMW],
    "agem at the step": lambda strength: [jcl.agem(24, 8, insert="step"), ADAMW],
    "only agem": lambda strength: [jcl.only("body/*", jcl.agem(24, 8)), ADAMW],
    "gem": lambda strength: [jcl.gem(30, tasks=3), ADAMW],
    "replay, ring, balanced draw": lambda strength: [
        jcl.replay(jcl.memory.ring(24), size=8, strength=strength, draw="balanced"),
        ADAMW,
    ],
    "replay, class balanced": lambda strength: [
        jcl.replay(jcl.memory.class_balanced(24, classes=3), size=8, strength=strength),
        ADAMW,
    ],
    "replay, greedy balanced": lambda strength: [
        jcl.replay(jcl.memory.greedy_balanced(24, classes=3), size=8, strength=strength),
        ADAMW,
    ],
    "replay, priority": lambda strength: [
        jcl.replay(jcl.memory.priority(24, draw="score"), size=8, strength=strength),
        ADAMW,
    ],
    "replay, priority, at random": lambda strength: [
        jcl.replay(jcl.memory.priority(24, replacement="random"), size=8, strength=strength),
        ADAMW,
    ],
    "replay, aged": lambda strength: [
        jcl.replay(jcl.memory.aged(jcl.memory.reservoir(24), most=40), size=8, strength=strength),
        ADAMW,
    ],
    "replay, herding": lambda strength: [
        jcl.replay(
            jcl.memory.herding(24, 3, lambda params, inputs: inputs @ params["body"]["kernel"]),
            size=8,
            strength=strength,
            insert="boundary",
        ),
        ADAMW,
    ],
    "mir": lambda strength: [jcl.mir(24, 8, 12, learning_rate=0.1, strength=strength), ADAMW],
    "gss": lambda strength: [jcl.gss(24, 8, strength=strength, references=3), ADAMW],
    "gss, grouped": lambda strength: [
        jcl.gss(24, 8, strength=strength, references=2, reference_size=4, group=8),
        ADAMW,
    ],
    "gdumb": lambda strength: [
        ADAMW,
        jcl.gdumb(24, classes=3, steps=5, size=8, optimizer=optax.sgd(0.1)),
    ],
    "la_maml": lambda _: [jcl.la_maml(24, 8, 0.1, 0.1, steps=8)],
    "only la_maml, second order": lambda _: [
        ADAMW,
        jcl.only("body/*", jcl.la_maml(24, 8, 0.1, 0.1, steps=4, first_order=False)),
    ],
    "mer": lambda _: [jcl.mer(24, 4, 0.05, batches=2, within=0.5, across=0.7)],
    "nested chain": lambda strength: [
        jcl.chain(jcl.replay(capacity=24, size=8, strength=strength), jcl.ewc(strength)),
        optax.clip_by_global_norm(1.0),
        ADAMW,
    ],
    "freeze": lambda strength: [ADAMW, jcl.freeze("body/*", until=strength)],
    "freeze all but": lambda _: [jcl.only("head/*", ADAMW), jcl.freeze("*", but="head/*")],
    "separate": lambda _: [jcl.separate("*", tasks=3), jcl.per_task(ADAMW)],
    "separate heads": lambda _: [ADAMW, jcl.separate("head/*", tasks=2, restart=False)],
    "packnet": lambda _: [ADAMW, jcl.packnet(keep=0.5)],
    "packnet, retrained": lambda _: [jcl.per_task(ADAMW), jcl.packnet(keep=0.4, retrain=0.5)],
    # The toy's body stands for a head: it is linear, has a bias, and its features are the inputs.
    "nearest class mean": lambda _: [
        ADAMW,
        jcl.nearest_class_mean(toy.inputs, toy.HIDDEN, head="body"),
    ],
    "seen classes": lambda _: [jcl.seen_classes(toy.CLASSES), ADAMW],
    "slda": lambda _: [
        jcl.slda(toy.inputs, toy.HIDDEN, head="body", shrinkage=0.1),
        ADAMW,
    ],
    "slda replay": lambda strength: [
        jcl.slda_replay(
            toy.inputs,
            toy.HIDDEN,
            capacity=24,
            size=8,
            strength=strength,
            head="body",
            shrinkage=0.1,
        ),
        ADAMW,
    ],
    "olora": lambda strength: [
        jcl.only(["lora/*", "head/*"], jcl.per_task(ADAMW)),
        jcl.olora(strength, tasks=3),
        jcl.freeze("*", but=["lora/*", "head/*"]),
    ],
    "progressive prompts": lambda _: [
        jcl.only("prompt", jcl.per_task(ADAMW)),
        jcl.progressive_prompts(tasks=3),
        jcl.freeze("*", but="prompt"),
    ],
    "boost": lambda strength: [ADAMW, alarming(jcl.boost(1 + 4 * strength, half_life=2.0))],
    "reweighted replay": lambda strength: [
        alarming(
            jcl.reweighted(jcl.replay(capacity=24, size=8, strength=strength), 3.0, half_life=2.0)
        ),
        ADAMW,
    ],
    "on drift ewc": lambda strength: [alarming(jcl.on_drift(jcl.ewc(strength), batches=2)), ADAMW],
    "restarting": lambda _: [
        alarming(jcl.restarting(optax.adamw, optax.exponential_decay(1e-2, 2, 0.5)))
    ],
}
# Rows whose method wants a model of its own: (loss_fn, params of a seed).
MODELS = {
    "seen classes": (toy.masked_loss_fn, toy.params),
    "olora": (toy.adapted_loss_fn, toy.adapted_params),
    "progressive prompts": (toy.prompted_loss_fn, toy.prompted_params),
}
# Methods that have no strength which could be 0.
WITHOUT_STRENGTH = {
    "naive", "agem", "agem at the step", "only agem", "gem", "gdumb", "freeze all but", "separate",
    "separate heads", "packnet", "packnet, retrained", "nearest class mean", "slda",
    "slda replay", "seen classes", "olora", "progressive prompts", "la_maml",
    "only la_maml, second order", "mer", "restarting", "by path",
}  # fmt: skip
STRENGTH = 0.7
STEPS = (4, 6, 3)  # tasks differ in length

# Rows that differ from another of the same method in an option: the costlier tests leave them out.
OPTIONS = {
    "replay at the boundary", "ewc, sampled, in chunks", "only replay and adamw", "si, rectified",
    "only si", "only mas, in chunks", "l2 toward initial", "only lwf", "only rwalk, in chunks",
    "only shrink and perturb", "agem at the step", "only agem", "gss, grouped", "freeze all but",
    "separate heads", "der, top", "replay, priority", "replay, greedy balanced",
    "replay, priority, at random", "replay, aged", "only ewc", "online ewc",
    "only la_maml, second order",
}  # fmt: skip


# Of each way that a strategy can act one row, for the tests that are costly and whose outcome hangs
# on the way alone; JCL_ALL_TESTS=1 runs them for every method.
KINDS = {
    "replay", "ewc", "periodically ewc", "si", "lwf", "agem", "gem", "gss", "gdumb", "packnet",
    "slda replay", "la_maml", "progressive prompts", "per task, scheduled",
}  # fmt: skip


def rows_but(*left_out):
    """Every row, all tests of one row in one process, which compiles its functions once."""
    return pytest.mark.parametrize(
        "name",
        [
            pytest.param(name, marks=pytest.mark.xdist_group(name))
            for name in TABLE
            if not any(name in names for names in left_out)
        ],
    )


rows = rows_but()
rows_of_methods = rows_but(OPTIONS)
rows_of_kinds = rows_of_methods if ALL else rows_but(TABLE.keys() - KINDS)
rows_with_strength = rows_but(WITHOUT_STRENGTH, OPTIONS if ALL else TABLE.keys() - KINDS)


def model_of(name):
    return MODELS.get(name, (toy.loss_fn, toy.params))


def make(name, strength=STRENGTH, *, left=(), right=()):
    """The row, with other parts on its left and right."""
    loss_fn, params = model_of(name)
    learner = jcl.learner(loss_fn, jcl.chain(*left, *TABLE[name](strength), *right))
    return Compiled(learner, params)


def begin(row, seed=0, key=0):
    key = None if key is None else jax.random.key(key)
    return row.learner.init(key, row.params(seed), toy.batch(0))


class Compiled:
    """A row's learner with its compiled functions, shared by the tests to save compiling."""

    def __init__(self, learner, params=toy.params, place=None):
        self.learner, self.params = learner, params
        self.traces = {"step": 0, "consolidate": 0}
        both = place and (place, None)
        self.step = jax.jit(self._counted(learner.step), donate_argnums=0, out_shardings=both)
        self.consolidate = jax.jit(
            self._counted(learner.consolidate), donate_argnums=0, out_shardings=place
        )

    def _counted(self, function):
        def traced(*arguments):
            self.traces[function.__name__] += 1
            return function(*arguments)

        return traced


@functools.cache
def compiled(name):
    return make(name)


def train(functions, state, *, place=lambda batch: batch):
    """Three tasks by functions with `step` and `consolidate`; the final state and all losses."""
    losses = []
    for task, steps in enumerate(STEPS):
        state = jcl.start_task(state, steps)
        for number in range(steps):
            state, metrics = functions.step(state, place(toy.batch(number, task)))
            losses.append(metrics["total"])
        state = functions.consolidate(state, toy.stacked(task))
    return state, losses


def numbers(state):
    """The leaves as numpy arrays, keys as their data."""
    return [
        np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
                   else leaf)
        for leaf in jax.tree.leaves(state)
    ]  # fmt: skip


def assert_close(one, other, tolerance=1e-5):
    for left, right in zip(numbers(one), numbers(other), strict=True):
        np.testing.assert_allclose(left, right, rtol=tolerance, atol=tolerance)


def assert_equal(one, other):
    for left, right in zip(numbers(one), numbers(other), strict=True):
        np.testing.assert_array_equal(left, right)


@rows
def test_one_trace_over_three_tasks(name):
    row = compiled(name)
    train(row, begin(row))
    assert row.traces == {"step": 1, "consolidate": 1}
    assert row.step._cache_size() == row.consolidate._cache_size() == 1


@rows_of_kinds
def test_jit_equals_no_jit(name):
    row = compiled(name)
    states = []
    for functions in (row, row.learner):
        state, _ = functions.step(begin(row), toy.batch(0))
        states.append(functions.step(functions.consolidate(state, toy.stacked()), toy.batch(1))[0])
    assert_close(*states, 1e-4)


@rows_of_kinds
def test_scan_equals_loop(name):
    row = compiled(name)
    batches = [toy.batch(number) for number in range(5)]
    looped = begin(row)
    for batch in batches:
        looped, _ = row.step(looped, batch)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)
    scan = jax.jit(lambda state, batches: jax.lax.scan(row.learner.step, state, batches))
    assert_close(scan(begin(row), stacked)[0], looped)


@rows_of_kinds
def test_seeds_in_one_program_equal_separate_runs(name):
    row = compiled(name)
    by = "map" if name == "nested chain" else "vmap"
    together = jcl.over_seeds(row.learner, by=by)
    states = [begin(row, seed, key=seed) for seed in range(3)]
    state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    state = state._replace(step=jnp.int32(0), task_step=jnp.int32(0), task_steps=jnp.int32(1))
    alone = [train(row, state)[0] for state in states]
    step, consolidate = jax.jit(together.step), jax.jit(together.consolidate)
    repeat = lambda tree: jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), tree)
    for task, steps in enumerate(STEPS):
        state = jcl.start_task(state, steps)
        for number in range(steps):
            state, _ = step(state, repeat(toy.batch(number, task)))
        state = consolidate(state, repeat(toy.stacked(task)))
    for seed, expected in enumerate(alone):
        one = jax.tree.map(lambda leaf: leaf[seed], (state.params, state.strategy))
        assert_close(one, (expected.params, expected.strategy), 1e-4)


@rows_of_methods
def test_donated_and_never_aliased(name):
    row = compiled(name)
    given = row.params()
    state = row.learner.init(jax.random.key(0), given, toy.batch(0))
    for following in (
        lambda state: row.step(state, toy.batch(0))[0],
        lambda state: row.consolidate(state, toy.stacked()),
        lambda state: row.step(state, toy.batch(1))[0],
    ):
        pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)
                    if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)]  # fmt: skip
        assert len(set(pointers)) == len(pointers)
        before = state
        state = following(state)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before.params))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(given))


def over_a_mesh(name, mesh):
    """The row on eight devices against one, all its state split by the rules."""
    if jax.device_count() < 8:
        pytest.skip(f"needs 8 devices, not {jax.device_count()}: a CPU passes for them")
    row = compiled(name)
    expected, losses = train(row, begin(row))
    loss_fn, params = model_of(name)
    placement = Placement(toy.BATCH, mesh=mesh)
    learner = jcl.learner(placement.spread(loss_fn), jcl.chain(*TABLE[name](STRENGTH)))
    place = placement.state(begin(row))
    spread = Compiled(learner, params, place)
    state, spread_losses = train(
        spread,
        jax.device_put(begin(row), place),
        place=lambda batch: jax.device_put(batch, placement.batch()),
    )
    assert_close(state, expected, 1e-4)
    np.testing.assert_allclose(spread_losses, losses, rtol=1e-4)
    assert spread.traces == {"step": 1, "consolidate": 1}


@rows_of_methods
def test_eight_devices_equal_one(name):
    over_a_mesh(name, "data=4,fsdp=2")


@pytest.mark.parametrize("name", ["ewc", "replay", "si"])
def test_eight_devices_on_data_equal_one(name):
    over_a_mesh(name, "data=8")


@rows_of_kinds
def test_saved_and_continued_bitwise(name, tmp_path):
    row = compiled(name)
    state, _ = row.step(begin(row), toy.batch(0))
    state = row.consolidate(state, toy.stacked())
    checkpoint.save(tmp_path, state, {})
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )
    restored, _ = checkpoint.restore(tmp_path, abstract)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert_equal(restored, state)
    for number in range(4):
        state, _ = row.step(state, toy.batch(number))
        restored, _ = row.step(restored, toy.batch(number))
    assert_equal(restored, state)


@rows_with_strength
def test_strength_zero_equals_plain_optax(name):
    optimizers = {
        "per task, scheduled": [
            jcl.per_task(jcl.scheduled(optax.adamw, jcl.cosine(1e-2, warmup=0.2)))
        ],
        "nested chain": [optax.clip_by_global_norm(1.0), ADAMW],
    }
    plain = (
        Compiled(jcl.learner(toy.loss_fn, jcl.chain(*optimizers[name])))
        if name in optimizers
        else compiled("naive")
    )
    expected, _ = train(plain, begin(plain))
    without = make(name, strength=0.0)
    if name != "shrink and perturb":  # of the others a boundary's work is the same, if not its use
        without.consolidate = compiled(name).consolidate
    state, _ = train(without, begin(without))
    assert_close(state.params, expected.params)
    state, _ = train(compiled(name), begin(without))
    difference = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), state.params, expected.params)
    assert max(jax.tree.leaves(difference)) > 1e-3  # the strength does something


def test_plain_optax_is_what_optax_does():
    row = Compiled(jcl.learner(toy.loss_fn, ADAMW))
    state, _ = train(row, begin(row, key=None))
    params, moments = toy.params(), ADAMW.init(toy.params())
    for task, steps in enumerate(STEPS):
        for number in range(steps):
            gradient = jax.grad(lambda params: toy.loss_fn(params, batch, None)[0])
            batch = toy.batch(number, task)
            updates, moments = ADAMW.update(gradient(params), moments, params)
            params = optax.apply_updates(params, updates)
    assert_close(state.params, params)


@rows_of_kinds
def test_key_none_is_deterministic(name):
    row = make(name)
    one, losses = train(row, begin(row, key=None))
    other, other_losses = train(row, begin(row, key=None))
    assert_equal(one, other)
    assert losses == other_losses
    assert one.key is None


@rows
def test_predictions_are_blind_to_targets(name):
    row = compiled(name)
    learner, (state, _) = row.learner, train(row, begin(row))
    batch = toy.batch(7)
    logits = learner.predict(state, batch)["logits"]
    permuted = {**batch, "targets": jnp.roll(batch["targets"], 3)}
    absent = {"inputs": batch["inputs"]}
    np.testing.assert_array_equal(logits, learner.predict(state, permuted)["logits"])
    np.testing.assert_array_equal(logits, learner.predict(state, absent)["logits"])


@rows
def test_losses_are_those_recorded(name):
    """JCL_WRITE_GOLDEN=1 records them anew, which a change of a method's mathematics asks for."""
    row = compiled(name)
    _, losses = train(row, begin(row, key=1))
    recorded = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("JCL_WRITE_GOLDEN"):
        recorded[name] = [round(float(loss), 6) for loss in losses]
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(json.dumps(recorded, indent=1) + "\n")
    np.testing.assert_allclose(losses, recorded[name], rtol=1e-3)


def test_a_view_cannot_read_targets():
    def peek(state, params, batch):
        return params, {**batch, "inputs": batch["inputs"] * batch["targets"][:, None]}

    peeking = jcl.chain(jcl.strategy(name="peek", view=peek), ADAMW)
    row = Compiled(jcl.learner(toy.loss_fn, peeking))
    with pytest.raises(KeyError):
        row.learner.step(begin(row), toy.batch(0))


@rows_of_methods
def test_survives_unknown_extra_arguments(name):
    strategy, (loss_fn, initial) = jcl.chain(*TABLE[name](STRENGTH)), model_of(name)
    params, batch = initial(), toy.batch(0)
    value, aux = loss_fn(params, batch, None)
    state = strategy.init(params, batch=batch, aux=aux)
    strategy.loss(state, params, batch=batch, aux=aux, loss_fn=loss_fn, key=None, surprise=1)
    grad = jax.tree.map(jnp.ones_like, params)
    _, state = strategy.update(
        grad, state, params, value=value, value_fn=lambda params: value, grad=grad,
        loss_fn=loss_fn, batch=batch, aux=aux, key=None, progress=jnp.zeros(()),
        step=jnp.zeros((), jnp.int32), surprise=1,
    )  # fmt: skip
    strategy.consolidate(
        state, params, batches=toy.stacked(), loss_fn=loss_fn, key=None, surprise=1
    )


def in_one_chain(name):
    left = [jcl.replay(capacity=24, size=8), jcl.ewc(0.1 * STRENGTH)]
    return make(name, left=left, right=[jcl.si(0.1 * STRENGTH)])


@rows_of_methods
def test_in_one_chain_with_replay_ewc_and_si(name):
    row = in_one_chain(name)
    state = begin(row)
    stepped, metrics = jax.eval_shape(row.learner.step, state, toy.batch(0))
    assert {"replay", "ewc", "si"} <= set(metrics)
    after = jax.eval_shape(row.learner.consolidate, state, toy.stacked())
    like = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
    assert like(stepped) == like(after) == like(state)


@rows_of_kinds
def test_it_runs_in_one_chain_with_replay_ewc_and_si(name):
    row = in_one_chain(name)
    _state, losses = train(row, begin(row))
    assert np.isfinite(losses).all()
    assert row.traces == {"step": 1, "consolidate": 1}


def test_all_in_one_chain():
    learner = jcl.learner(
        toy.loss_fn,
        jcl.chain(
            jcl.replay(capacity=24, size=8),
            jcl.ewc(STRENGTH),
            jcl.mas(0.1 * STRENGTH),
            jcl.lwf(STRENGTH),
            ADAMW,
            jcl.si(STRENGTH),
            jcl.rwalk(STRENGTH, every=2),
        ),
    )
    row = Compiled(learner)
    state, losses = train(row, begin(row))
    state, _ = row.step(state, toy.batch(0))  # at the boundary itself the params are the anchor
    _, metrics = row.step(state, toy.batch(1))
    terms = {"loss", "replay", "ewc", "mas", "lwf", "si", "rwalk"}
    assert set(metrics) == {"total", *terms}
    assert np.isfinite(losses).all()
    assert all(metrics[term] > 0 for term in terms)
    np.testing.assert_allclose(metrics["total"], sum(metrics[term] for term in terms), rtol=1e-6)
    assert row.traces == {"step": 1, "consolidate": 1}
