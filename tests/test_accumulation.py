"""Gradients accumulated over several batches by optax.MultiSteps in a chain."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import toy

import jcl
from jcl import checkpoint

EVERY = 4


def accumulated(optimizer):
    return optax.MultiSteps(optimizer, every_k_schedule=EVERY).gradient_transformation()


def learner(*parts):
    return jcl.learner(toy.loss_fn, jcl.chain(*parts))


def parts_of(batch):
    """The batch in EVERY batches."""
    return [jax.tree.map(lambda leaf, n=n: leaf[n::EVERY], batch) for n in range(EVERY)]


def begun(learner, micro=True):
    batch = parts_of(toy.batch(0))[0] if micro else toy.batch(0)
    return learner.init(None, toy.params(), batch)


def close(one, other, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), one, other)


def test_steps_equal_those_of_the_whole_batch_in_one_trace():
    """Over two tasks, with EWC on the left and SI on the right."""
    traces = {"step": 0, "consolidate": 0}

    def counted(name, function):
        def call(*arguments):
            traces[name] += 1
            return function(*arguments)

        return jax.jit(call)

    clipped = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2))
    small = learner(jcl.ewc(10.0), accumulated(clipped), jcl.si(0.0))
    whole = learner(jcl.ewc(10.0), clipped, jcl.si(0.0))
    step = counted("step", small.step)
    consolidate = counted("consolidate", small.consolidate)
    step_whole, consolidate_whole = jax.jit(whole.step), jax.jit(whole.consolidate)
    state, expected = begun(small), begun(whole, micro=False)
    for task in range(2):
        state, expected = jcl.start_task(state, 3 * EVERY), jcl.start_task(expected, 3)
        for number in range(3):
            before = state.params
            for index, part in enumerate(parts_of(toy.batch(number, task))):
                state, _ = step(state, part)
                if index < EVERY - 1:
                    jax.tree.map(np.testing.assert_array_equal, state.params, before)
            expected, _ = step_whole(expected, toy.batch(number, task))
            close(state.params, expected.params, atol=1e-5)
        state = consolidate(state, toy.stacked(task))
        expected = consolidate_whole(expected, toy.stacked(task))
    assert traces == {"step": 1, "consolidate": 1}
    assert max(jax.tree.leaves(jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()),
                                            state.params, toy.params()))) > 1e-2  # fmt: skip


def test_a_state_saved_between_two_updates_goes_on(tmp_path):
    small = learner(jcl.ewc(10.0), accumulated(optax.adamw(1e-2)), jcl.si(1.0))
    step, state = jax.jit(small.step), begun(small)
    batches = [part for number in range(3) for part in parts_of(toy.batch(number))]
    for part in batches[:6]:
        state, _ = step(state, part)
    checkpoint.save(tmp_path, state, {})
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )
    for part in batches[6:]:
        state, _ = step(state, part)
    again, _ = checkpoint.restore(tmp_path, like)
    assert int(again.strategy[1].mini_step) == 2
    for part in batches[6:]:
        again, _ = step(again, part)
    jax.tree.map(np.testing.assert_array_equal, again, state)


def test_si_counts_the_steps_that_are_made():
    """path <- path - gradient * step, which is zero at the steps between."""
    small = learner(accumulated(optax.sgd(0.1)), jcl.si(1.0))
    state, parts = begun(small), parts_of(toy.batch(0))
    gradients = [
        jax.grad(lambda params, part=part: toy.loss_fn(params, part, None)[0])(toy.params())
        for part in parts
    ]
    for part in parts[:-1]:
        state, _ = small.step(state, part)
        assert all(jnp.all(leaf == 0) for leaf in jax.tree.leaves(state.strategy[1].path))
    state, _ = small.step(state, parts[-1])
    expected = jax.tree.map(lambda *each: 0.1 * each[-1] * sum(each) / EVERY, *gradients)
    close(state.strategy[1].path, expected, rtol=1e-4, atol=1e-7)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected)) > 1e-4


def test_a_learning_rate_that_follows_progress_stands_behind():
    rate = jcl.cosine(0.1)
    small = learner(
        accumulated(optax.scale_by_adam()), jcl.scheduled(optax.scale_by_learning_rate, rate)
    )
    state = jcl.start_task(begun(small), 2 * EVERY)
    whole = learner(optax.scale_by_adam(), optax.scale_by_learning_rate(rate((EVERY - 1) / 8)))
    for part in parts_of(toy.batch(0)):
        state, _ = small.step(state, part)
    expected, _ = whole.step(begun(whole, micro=False), toy.batch(0))
    close(state.params, expected.params, atol=1e-5)


def test_multi_steps_themselves_are_taken_as_the_transformation_they_give():
    given = optax.MultiSteps(optax.sgd(0.1), every_k_schedule=2)
    results = []
    for part in (given, given.gradient_transformation()):
        small = learner(part)
        state = begun(small)
        for batch in parts_of(toy.batch(0)):
            state, _ = small.step(state, batch)
        results.append(state.params)
    jax.tree.map(np.testing.assert_array_equal, *results)
