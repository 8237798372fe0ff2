"""Meta-experience replay."""

import jax
import jax.numpy as jnp
import optax

from jcl import checks
from jcl import memory as memories
from jcl.core import Strategy, split, strategy
from jcl.strategies.la_maml import recall, remember


def mer(
    capacity: int,
    size: int,
    learning_rate: float,
    *,
    batches: int,
    within: float,
    across: float = 1.0,
) -> Strategy:
    """Goes a share of the way that SGD on single new and old examples leads (MER, by Reptile).

    params <- params + across * (p_batches - params), p_0 = params,
    p_i = p_(i-1) + within * (SGD(p_(i-1); batch, draw_i(memory, size)) - p_(i-1)).

    Riemer et al. 2019 ("Learning to learn without forgetting by maximizing transfer and minimizing
    interference"), algorithm 1. SGD takes one step an example, first along the batch, then along
    the draw, so that a step costs batches * (batch + size) gradients one after the other. The
    memory is a reservoir, filled at every step; while it is empty the batch's own examples stand
    in for the draw.
    Differs from the paper in: the whole batch stands in the place of the current example, which a
    batch of 1 is.

    Args:
        capacity: examples kept.
        size: examples of each draw, one fewer than the paper's k.
        learning_rate: of SGD, the paper's alpha.
        batches: draws at a step, the paper's s.
        within: share of the way of each batch, the paper's beta.
        across: share of the way of all batches, the paper's gamma.

    Stores: a memory of examples.
    Place: instead of the optimizer; gradients and terms of other parts do not count.
    Scenario: any.

    >>> import jcl
    >>> method = jcl.mer(200, 10, learning_rate=0.03, batches=10, within=0.03)
    """
    size, batches = checks.whole("mer", "size", size), checks.whole("mer", "batches", batches)
    checks.number("mer", "learning_rate", learning_rate, "(0, inf)")
    checks.number("mer", "within", within, "(0, inf)")
    checks.number("mer", "across", across, "(0, inf)")
    policy = memories.reservoir(checks.whole("mer", "capacity", capacity))

    def init(params, *, batch, **_):
        return policy.init(batch)

    def update(updates, state, params, *, batch, loss_fn, key, **_):
        key_draw, key_descent, key_insert = split(key, 3)
        draws = jax.tree.map(
            lambda leaf: leaf.reshape((batches, size, *leaf.shape[1:])),
            recall(policy, state, batch, batches * size, key_draw),
        )
        length = jax.tree.leaves(batch)[0].shape[0] + size
        keys = None if key_descent is None else jax.random.split(key_descent, (batches, length))

        def descend(fast, given):
            example, key = given
            one = jax.tree.map(lambda leaf: leaf[None], example)
            gradient = jax.grad(lambda fast: loss_fn(fast, one, key)[0])(fast)
            move = jax.tree.map(lambda g: -learning_rate * g, gradient)
            return optax.apply_updates(fast, move), None

        def approach(start, given):
            draw, keys = given
            joined = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), batch, draw)
            end, _ = jax.lax.scan(descend, start, (joined, keys))
            move = jax.tree.map(lambda old, new: within * (new - old), start, end)
            return optax.apply_updates(start, move), None

        end, _ = jax.lax.scan(approach, params, (draws, keys))
        updates = jax.tree.map(lambda old, new: across * (new - old), params, end)
        return updates, policy.insert(memories.after(state, updates), batch, key_insert)

    return strategy(
        name="mer",
        side="step",
        optimizes=True,
        init=init,
        update=update,
        consolidate=remember,
    )
