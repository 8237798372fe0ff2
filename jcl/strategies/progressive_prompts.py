"""Progressive prompts."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jcl import checks
from jcl.core import Strategy, strategy
from jcl.errors import InputError
from jcl.strategies.separate import task_of


class Prompted(NamedTuple):
    """Attributes:
    task: the task under way and its prompt, from 0; it stays at the last one.
    """

    task: jax.Array


def progressive_prompts(tasks: int) -> Strategy:
    """Learns a prompt for every task in front of those of the tasks before, which stay.

    logits = model([P_t ... P_1; inputs]), and only P_t moves.

    Razdaibiedina et al. 2023, section 3, over the slots of `jcl.models.prompts(..., slots=tasks)`.
    A batch with one `task` (from 0) for all examples is seen through the prompts up to that
    task's; any other through all up to the current one. The other params pass as they are: leave
    them to `freeze`, as the paper does. Its view tells the model how many prompts are used by an
    entry of its own in the params: put it right of other views, not inside `only`. Differs from
    the paper in: no network reparameterizes the prompts.

    Args:
        tasks: how many there will be, at least the stream's.

    Raises:
        InputError: at init, if the params hold no prompts or fewer than tasks.

    Stores: the number of the task.
    Place: right of the optimizer.
    Scenario: task labels at prediction.

    >>> import jcl, optax
    >>> config = jcl.models.GPT2Config(258, positions=20, width=4, layers=1, heads=2)
    >>> model = jcl.models.prompts(jcl.models.gpt2, config, length=4, slots=3)
    >>> method = jcl.chain(
    ...     jcl.only("prompt", jcl.per_task(optax.adamw(1e-2))),
    ...     jcl.progressive_prompts(tasks=3),
    ...     jcl.freeze("*", but="prompt"),
    ... )
    """
    tasks = checks.whole("progressive_prompts", "tasks", tasks)

    def init(params, **_):
        slots = len(params["prompt"]) if "prompt" in params else 0
        if slots < tasks:
            found = f"{slots} prompts" if slots else "no prompts"
            raise InputError(
                f"progressive_prompts(tasks={tasks}): the params have {found}. Give every task "
                f"one: jcl.models.prompts(make, config, length, slots={tasks})."
            )
        return Prompted(jnp.zeros((), jnp.int32))

    def view(state, params, batch):
        task = jnp.minimum(task_of(batch, otherwise=state.task), state.task)
        return {**params, "prompts_used": task + 1}, batch

    def update(updates, state, params, **_):
        prompt = updates["prompt"]
        current = (jnp.arange(len(prompt)) == state.task)[:, None, None]
        return {**updates, "prompt": jnp.where(current, prompt, jnp.zeros_like(prompt))}, state

    def consolidate(state, params, **_):
        return Prompted(jnp.minimum(state.task + 1, tasks - 1)), params

    return strategy(
        name="progressive_prompts",
        side="step",
        init=init,
        view=view,
        update=update,
        consolidate=consolidate,
        tasks=tasks,
        needs={"task"},
    )
