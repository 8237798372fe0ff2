"""Gradient episodic memory."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jcl import checks
from jcl import memory as memories
from jcl.core import Strategy, strategy
from jcl.errors import InputError

RIDGE = 1e-3
ITERATIONS = 30


class Episodes(NamedTuple):
    """Attributes:
    memories: one ring for each task slot; every leaf has a leading axis of slots.
    task: the current task's slot (int32); the slots before it constrain.
    """

    memories: memories.Ring
    task: jax.Array


def gem(capacity: int, tasks: int, *, margin: float = 0.5) -> Strategy:
    """Moves the gradient as little as lets it lower the loss on every past task's memory (GEM).

    updates <- g + G^T v, where the rows of G are the gradients of the past tasks' memories and
    v = argmin_{v >= margin} 1/2 v^T (G G^T + ridge I) v + (G g)^T v; as it was where no past
    gradient has a negative inner product with g.

    Lopez-Paz and Ranzato 2017, section 3, equations 8 to 12 and algorithm 1. For margin 0 it is the
    projection onto {x: G x >= 0}; a margin pulls further toward the past tasks. g is whatever the
    parts on the left made of the gradient. A memory's loss is the mean of its examples' own
    losses. Each task has a ring of capacity // tasks of its last examples, filled at every step;
    the current task's own does not constrain.
    Differs from the paper in: the margin bounds v from below in the quadratic programme, as in the
    code the authors published, where the paper adds it to the solution; and that code's ridge of
    1e-3 is joined by a millionth of each gradient's square, for single precision.

    The programme is solved on the device by 30 steps of a primal-dual interior-point method. A
    step costs one gradient on a whole memory for each past task.

    Args:
        capacity: examples kept, of all tasks together.
        tasks: slots, at least as many as the stream's tasks; further ones would be learned in the
            last slot, whose examples never constrain.
        margin: the least pull toward each past task when any is violated.

    Stores: a memory of examples; in the step one params-sized tree for each slot.
    Place: left of the optimizer.
    Scenario: any with task boundaries.

    >>> import jcl, optax
    >>> method = jcl.chain(jcl.gem(capacity=200, tasks=20), optax.sgd(0.1))
    """
    tasks = checks.whole("gem", "tasks", tasks, least=2)
    if checks.whole("gem", "capacity", capacity) < tasks:
        raise InputError(
            f"gem(capacity={capacity}, tasks={tasks}): the capacity is that of all tasks together "
            "and must hold at least one example of each."
        )
    checks.number("gem", "margin", margin)
    policy = memories.ring(capacity // tasks)

    def init(params, *, batch, **_):
        one = policy.init(batch)
        slots = jax.tree.map(lambda leaf: jnp.zeros((tasks, *leaf.shape), leaf.dtype), one)
        return Episodes(slots, jnp.zeros((), jnp.int32))

    def update(updates, state, params, *, batch, loss_fn, key, **_):
        def reference(slot, references):
            memory = jax.tree.map(lambda leaf: leaf[slot], state.memories)
            filled = policy.filled(memory)

            def loss(params):
                losses = loss_fn(params, memory.items, key)[1]["losses"]
                return jnp.sum(losses * filled) / jnp.maximum(filled.sum(), 1)

            gradient = jax.grad(loss)(params)
            return jax.tree.map(lambda all, one: all.at[slot].set(one), references, gradient)

        empty = jax.tree.map(lambda leaf: jnp.zeros((tasks, *leaf.shape), leaf.dtype), params)
        references = jax.lax.fori_loop(0, state.task, reference, empty)
        past = (jnp.arange(tasks) < state.task) & (state.memories.seen > 0)
        gram = _products(references, references)
        own = jax.tree.map(lambda leaf: leaf[None], updates)
        along = _products(references, own)[:, 0]
        pull = dual(gram, along, past, margin)
        pull = jnp.where(jnp.any(past & (along < 0)), pull, 0.0)
        updates = jax.tree.map(
            lambda leaf, all: leaf + jnp.tensordot(pull, all, axes=1), updates, references
        )

        own = jax.tree.map(lambda leaf: leaf[state.task], memories.after(state.memories, updates))
        own = policy.insert(own, batch, None)
        slots = jax.tree.map(lambda all, one: all.at[state.task].set(one), state.memories, own)
        return updates, Episodes(slots, state.task)

    def consolidate(state, params, **_):
        return state._replace(task=jnp.minimum(state.task + 1, tasks - 1)), params

    return strategy(
        name="gem", side="gradient", init=init, update=update, consolidate=consolidate, tasks=tasks
    )


def dual(gram: jax.Array, along: jax.Array, past: jax.Array, margin: float) -> jax.Array:
    """argmin_{v >= margin} 1/2 v^T (gram + ridge I) v + along^T v over the past slots, 0 elsewhere.

    Args:
        gram: [tasks, tasks], inner products of the reference gradients.
        along: [tasks], theirs with the gradient.
        past: [tasks], which slots count.
        margin: the least v.
    """
    gram = jnp.where(past[:, None] & past[None, :], gram, 0.0)
    matrix = gram + jnp.diag(jnp.where(past, RIDGE + 1e-6 * jnp.diagonal(gram), 1.0))
    linear = jnp.where(past, along + matrix @ (margin * past), 0.0)
    # Each slot in units of its own gradient's length, so that tasks of small gradients count too.
    length = jnp.sqrt(jnp.diagonal(matrix))
    height = jnp.abs(linear / length).max()
    height = jnp.where(height > 0, height, 1.0)
    scaled = jnp.where(past, linear / length / height, 1.0)
    above = nonnegative(matrix / (length[:, None] * length[None, :]), scaled)
    return jnp.where(past, margin + above * height / length, 0.0)


def nonnegative(matrix: jax.Array, linear: jax.Array) -> jax.Array:
    """argmin_{w >= 0} 1/2 w^T matrix w + linear^T w, both of the order of 1.

    Newton's method on matrix w + linear = s, w s = target, with the target going to 0.
    """

    def newton(_, pair):
        w, s = pair
        target = jnp.maximum(0.1 * jnp.mean(w * s), 1e-10)
        residual = matrix @ w + linear - s
        dw = jnp.linalg.solve(matrix + jnp.diag(s / w), target / w - s - residual)
        ds = target / w - s - s / w * dw
        room = [jnp.where(move < 0, -at / jnp.minimum(move, -1e-30), jnp.inf).min()
                for at, move in ((w, dw), (s, ds))]  # fmt: skip
        step = jnp.minimum(1.0, 0.95 * jnp.minimum(*room))
        return w + step * dw, s + step * ds

    start = jnp.ones_like(linear)
    return jax.lax.fori_loop(0, ITERATIONS, newton, (start, start))[0]


def _products(rows, others):
    """[rows, others], the inner products over the whole tree."""

    def product(one, other):
        one, other = (leaf.reshape(leaf.shape[0], -1) for leaf in (one, other))
        return jnp.matmul(one, other.T, precision=jax.lax.Precision.HIGHEST)

    return sum(jax.tree.leaves(jax.tree.map(product, rows, others)), start=jnp.zeros(()))
