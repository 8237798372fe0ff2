"""Params of their own for every task."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jcl import checks, paths
from jcl.core import Batch, Params, Strategy, check_patterns, only, strategy


class PerTask(NamedTuple):
    """Attributes:
    task: the task under way, from 0; it stays at the last one.
    kept: [tasks, ...] of the chosen params; what each past task ended with, and what each later
        task begins with.
    """

    task: jax.Array
    kept: Params


def separate(where: str | Sequence[str], tasks: int, *, restart: bool = True) -> Strategy:
    """Keeps a copy of the chosen params for every task and shows the model that of its task.

    params seen = kept[batch["task"]] for a task that has ended, else the live params.

    With where="*" this is the baseline of separate models, which neither forgets nor transfers
    (the independent models of Rusu et al. 2016, section 4); with "lora/*" LoRA per task, with
    "head/*" a head per task over a shared body. A batch has one `task`; one of
    several, such as a draw from a memory, and one without are seen by the live params. An
    evaluation without labels is refused. The optimizer's moments are not part of it: give it
    `per_task(...)`.

    Args:
        where: patterns of paths such as "lora/*"; `*` also matches slashes.
        tasks: how many copies there are, at least the stream's tasks.
        restart: every task begins with the initial params; False lets it go on from those of the
            task before.

    Raises:
        InputError: at init, if a pattern matches no path; the message lists the nearest paths.

    Stores: one copy of the chosen params for every task.
    Place: anywhere; right of parts that change params at a boundary.
    Scenario: task labels at prediction.

    >>> import jcl, optax
    >>> adapters = jcl.chain(jcl.separate("lora/*", tasks=5), jcl.per_task(optax.adamw(1e-3)))
    """
    tasks = checks.whole("separate", "tasks", tasks)
    checks.flag("separate", "restart", restart)

    def init(params, **_):
        kept = jax.tree.map(lambda leaf: jnp.stack([leaf] * tasks), params)
        return PerTask(jnp.zeros((), jnp.int32), kept)

    def view(state, params, batch):
        if "task" not in batch:
            return params, batch
        task = task_of(batch, otherwise=state.task)

        def see(parameter, kept):
            return jnp.where(task < state.task, kept[jnp.clip(task, 0, tasks - 1)], parameter)

        return jax.tree.map(see, params, state.kept), batch

    def consolidate(state, params, **_):
        kept = jax.tree.map(
            lambda kept, parameter: kept.at[state.task].set(parameter), state.kept, params
        )
        task = jnp.minimum(state.task + 1, tasks - 1)
        if restart:
            params = jax.tree.map(lambda kept: kept[task], kept)
        return PerTask(task, kept), params

    part = only(
        where,
        strategy(name="separate", needs={"task"}, init=init, view=view, consolidate=consolidate),
    )

    def begin(params, **rest):
        check_patterns("separate", paths.as_patterns(where), params)
        return part.init(params, **rest)

    return part._replace(init=begin, name="separate", tasks=tasks)


def task_of(batch: Batch, *, otherwise: jax.Array) -> jax.Array:
    """The one task of all examples of the batch; otherwise where they differ or have none."""
    if "task" not in batch:
        return otherwise
    return jnp.where(jnp.all(batch["task"] == batch["task"][0]), batch["task"][0], otherwise)
