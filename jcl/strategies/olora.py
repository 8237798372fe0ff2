"""O-LoRA: orthogonal low-rank adapters."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jcl import checks
from jcl.core import Params, Strategy, strategy
from jcl.errors import InputError


class Slot(NamedTuple):
    """Attributes:
    task: the task under way and its slot, from 0; it stays at the last one.
    """

    task: jax.Array


def olora(strength: float, tasks: int) -> Strategy:
    """Learns every task in adapters of its own, kept orthogonal to those of the tasks before.

    loss = task loss + strength * sum over modules and i < t of sum |A_i^T A_t|.

    Wang et al. 2023, over the slots of `jcl.models.lora(..., slots=tasks)`: A_i is [in, rank], and
    the absolute entries of A_i^T A_t are summed, as in the authors' released code. Only the current
    task's slot moves; those before stay, those after wait with B = 0, and all add up, so that no
    task label is needed at prediction. The other params pass as they are: leave them to `freeze`,
    as the paper does, or train a head along. Differs from that code in: no L2 term on the new
    adapters.

    Args:
        strength: weight of the orthogonality; 0 switches it off and leaves one slot a task.
        tasks: how many there will be, at least the stream's.

    Raises:
        InputError: at init, if the params hold no adapters or fewer slots than tasks.

    Stores: the number of the task.
    Place: right of the optimizer.
    Scenario: any.

    >>> import jax, jcl, optax
    >>> model = jcl.models.mlp(jcl.models.MLPConfig(inputs=4, hidden=(8,), classes=3))
    >>> model = jcl.models.lora(model, rank=2, alpha=4.0, where="layer_*", slots=3)
    >>> method = jcl.chain(
    ...     jcl.only(["lora/*", "head/*"], jcl.per_task(optax.adamw(1e-3))),
    ...     jcl.olora(strength=0.5, tasks=3),
    ...     jcl.freeze("*", but=["lora/*", "head/*"]),
    ... )
    """
    checks.number("olora", "strength", strength)
    tasks = checks.whole("olora", "tasks", tasks)

    def init(params, **_):
        adapters = _adapters(params)
        slots = min([leaf.shape[0] for leaf in jax.tree.leaves(adapters)], default=0)
        if slots < tasks:
            found = f"{slots} slots" if slots else "no adapters"
            raise InputError(
                f"olora(tasks={tasks}): the params have {found}. Give every task a slot: "
                f"jcl.models.lora(model, ..., slots={tasks})."
            )
        return Slot(jnp.zeros((), jnp.int32))

    def loss(state, params, **_):
        def overlap(path, leaf):
            if path[-1].key != "a":
                return jnp.zeros(())
            past = jax.lax.stop_gradient(leaf)  # frozen, so that clipping must not count it
            products = jnp.abs(jnp.einsum("sir,iq->srq", past, leaf[state.task]))
            return jnp.sum(products, where=(jnp.arange(len(leaf)) < state.task)[:, None, None])

        overlaps = jax.tree_util.tree_map_with_path(overlap, _adapters(params))
        return {"olora": strength * jnp.asarray(optax.tree.sum(overlaps))}

    def update(updates, state, params, **_):
        def hold(update):
            current = jnp.arange(len(update)) == state.task
            return jnp.where(current[:, None, None], update, jnp.zeros_like(update))

        return {**updates, "lora": jax.tree.map(hold, _adapters(updates))}, state

    def consolidate(state, params, **_):
        return Slot(jnp.minimum(state.task + 1, tasks - 1)), params

    return strategy(
        name="olora",
        side="step",
        init=init,
        loss=loss,
        update=update,
        consolidate=consolidate,
        tasks=tasks,
    )


def _adapters(params: Params) -> Params:
    return params.get("lora", {}) if isinstance(params, dict) else {}
