"""PackNet: one network packed with many tasks by pruning."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jcl import checks
from jcl.core import Params, Strategy, strategy
from jcl.strategies.separate import task_of

FREE, MOST = 0, 127


class Packing(NamedTuple):
    """Attributes:
    owner: shaped like params, int8; the number of the task that owns a weight, from 1, or 0 where
        it is free.
    task: the number of the task under way, from 1 (int32).
    pruned: whether the task under way has chosen its weights already (bool).
    """

    owner: Params
    task: jax.Array
    pruned: jax.Array


def packnet(keep: float, *, retrain: float = 0.0) -> Strategy:
    """Gives every task the largest of the free weights and frees the others for those to come.

    step_i <- 0 where a task before owns weight i (after pruning: where another or none does).
    Pruning: of each tensor's n free weights the round(keep n) of largest |weight| are the task's,
    the others become 0 and stay free.

    Mallya and Lazebnik 2018. A task trains all free weights, prunes, and retrains those
    it kept. The phases lie within one task: the first step at progress >= 1 - retrain prunes; with
    retrain=0, or where `jcl.start_task` gave no length, the boundary prunes and nothing is
    retrained. Tensors with fewer than 2 axes (biases, norms) move in the first task only. A batch
    with one `task` (from 0) for all examples is seen by the weights that this task and
    those before own; any other by all. Tasks beyond the 127th share its number.

    Args:
        keep: share of the free weights that a task keeps, in (0, 1]; 0.5 leaves the next half of
            what this one had.
        retrain: the last share of each task, in [0, 1). Where seeds share a program every step
            sorts the weights.

    Stores: one params-sized tree of bytes.
    Place: right of the optimizer.
    Scenario: task labels at prediction.

    >>> import jcl, optax
    >>> method = jcl.chain(jcl.per_task(optax.adamw(1e-3)), jcl.packnet(keep=0.5, retrain=1 / 3))
    """
    checks.number("packnet", "keep", keep, "(0, 1]")
    checks.number("packnet", "retrain", retrain, "[0, 1)")

    def init(params, **_):
        owner = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.int8), params)
        return Packing(owner, jnp.ones((), jnp.int32), jnp.zeros((), bool))

    def view(state, params, batch):
        task = task_of(batch, otherwise=state.task - 1) + 1

        def see(parameter, owner):
            owned = (owner != FREE) & (owner <= task)
            if parameter.ndim < 2:
                return parameter
            return jnp.where(owned | (task >= state.task), parameter, jnp.zeros_like(parameter))

        return jax.tree.map(see, params, state.owner), batch

    def choose(state, params):
        """The owners after pruning, unless the task has pruned already."""

        def own(parameter, owner):
            if parameter.ndim < 2:
                return owner
            free = (owner == FREE).ravel()
            # Ranks rather than a threshold: equal weights must not make a task own too many.
            order = jnp.argsort(jnp.where(free, -jnp.abs(parameter).ravel(), jnp.inf))
            number = jnp.round(keep * free.sum()).astype(jnp.int32)
            largest = jnp.zeros(free.shape, bool).at[order].set(jnp.arange(free.size) < number)
            return jnp.where(largest.reshape(owner.shape), state.task.astype(jnp.int8), owner)

        owner = jax.tree.map(own, params, state.owner)
        owner = jax.tree.map(lambda new, old: jnp.where(state.pruned, old, new), owner, state.owner)
        return state._replace(owner=owner, pruned=jnp.ones((), bool))

    def update(updates, state, params, *, progress, **_):
        due = (progress >= 1 - retrain) & ~state.pruned if retrain else jnp.zeros((), bool)
        if retrain:
            state = jax.lax.cond(due, choose, lambda state, params: state, state, params)

        def move(update, parameter, owner):
            zeros = jnp.zeros_like(update)
            if parameter.ndim < 2:
                return jnp.where(state.task == 1, update, zeros)
            own = jnp.where(state.pruned, owner == state.task, owner == FREE)
            return jnp.where(own, update, jnp.where(due & (owner == FREE), -parameter, zeros))

        return jax.tree.map(move, updates, params, state.owner), state

    def consolidate(state, params, **_):
        state = choose(state, params)

        def clear(parameter, owner):
            freed = owner == FREE if parameter.ndim >= 2 else jnp.zeros(parameter.shape, bool)
            return jnp.where(freed, jnp.zeros_like(parameter), parameter)

        params = jax.tree.map(clear, params, state.owner)
        task = jnp.minimum(state.task + 1, MOST)
        return Packing(state.owner, task, jnp.zeros((), bool)), params

    return strategy(
        name="packnet",
        side="step",
        needs={"task"},
        init=init,
        view=view,
        update=update,
        consolidate=consolidate,
    )
