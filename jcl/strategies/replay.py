"""Experience replay."""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from jcl import checks
from jcl import memory as memories
from jcl.core import Strategy, split, strategy
from jcl.errors import InputError


def replay(
    capacity: int | memories.Policy,
    size: int,
    *,
    strength: float = 1.0,
    insert: Literal["step", "boundary"] = "step",
    draw: Literal["uniform", "balanced"] = "uniform",
) -> Strategy:
    """Adds the loss on examples drawn from a memory of what was seen.

    loss = task loss + strength * loss_fn(params, draw(memory, size)).

    The memory is a reservoir, a uniform sample of all examples offered so far, unless another
    policy is given; until something lies in it the term is zero. Rolnick et al. 2019 and
    Chaudhry et al. 2019 ("On tiny episodic memories"). Differs from the latter in: the
    two means are summed rather than taken over the joined batch, which for equal sizes is twice
    their loss.

    Args:
        capacity: examples kept, in a reservoir; or a policy of `jcl.memory`, such as
            `jcl.memory.class_balanced(1000, classes=10)`.
        size: examples drawn at every step.
        strength: weight of the term.
        insert: "step" offers every training batch as it is seen; "boundary" offers the batches
            that `consolidate` gets, so that the current task is not replayed.
        draw: "uniform" leaves it to the policy, which is uniform unless it says so; "balanced"
            gives every class in the memory the same chance.

    Stores: a memory of examples.
    Place: anywhere.
    Scenario: any.

    >>> import jcl, optax
    >>> method = jcl.chain(jcl.replay(capacity=1000, size=16), optax.adamw(1e-3))
    """
    size = checks.whole("replay", "size", size)
    checks.number("replay", "strength", strength)
    checks.one_of("replay", "insert", insert, ("step", "boundary"))
    checks.one_of("replay", "draw", draw, ("uniform", "balanced"))
    policy = memories.of("replay", capacity)
    if policy.boundary and insert == "step":
        raise InputError(
            'replay(insert="step"): this memory chooses among all examples of a task and is filled '
            'at boundaries: give insert="boundary".'
        )
    if draw == "balanced":
        policy = memories.balanced(policy)

    def init(params, *, batch, aux, **_):
        memories.check_head(policy, aux)
        return policy.init(batch)

    def loss(state, params, *, loss_fn, key, **_):
        key_draw, key_dropout = split(key, 2)
        value, _ = loss_fn(params, policy.draw(state, size, key_draw), key_dropout)
        return {"replay": strength * jnp.where(state.seen > 0, value, 0.0)}

    def update(updates, state, params, *, batch, key, aux: Any = None, **_):
        if insert == "boundary":
            return updates, state
        scores = policy.score(params, batch, aux) if policy.score else None
        return updates, policy.insert(memories.after(state, updates), batch, key, scores)

    def consolidate(state, params, *, batches, loss_fn, key, **_):
        if insert == "step":
            return state, params

        def score(batch):
            assert policy.score is not None
            return policy.score(params, batch, loss_fn(params, batch, None)[1])

        scores = jax.lax.map(score, batches) if policy.score else None
        offered, scores = jax.tree.map(
            lambda leaf: leaf.reshape((-1, *leaf.shape[2:])), (batches, scores)
        )
        return policy.insert(state, offered, key, scores), params

    return strategy(name="replay", init=init, loss=loss, update=update, consolidate=consolidate)
