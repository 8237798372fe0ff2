"""Look-ahead MAML."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jcl import checks
from jcl import memory as memories
from jcl.core import Batch, Params, Strategy, split, strategy
from jcl.errors import InputError
from jcl.memory.in_order import Reservoir


class LookAhead(NamedTuple):
    """Attributes:
    memory: of examples, a reservoir.
    rates: the learned rate of every parameter, in the params' shape.
    """

    memory: Reservoir
    rates: Params


def la_maml(
    capacity: int,
    size: int,
    learning_rate: float,
    meta_learning_rate: float,
    *,
    steps: int | None = None,
    first_order: bool = True,
    clip: float = 2.0,
) -> Strategy:
    """Looks ahead along the batch, with learned rates, so that steps suit the memory (La-MAML).

    params <- params - max(0, rates) * dM/dparams, after rates <- rates - meta_learning_rate *
    dM/drates, where M = mean_k loss_fn(fast_k, batch and draw(memory, size)) and
    fast_k = fast_(k-1) - rates * grad loss_fn(fast_(k-1), example k), fast_0 = params.

    Gupta et al. 2020 ("Look-ahead meta learning for continual learning"), algorithm 1, with two
    things of the authors' code: M is the mean over all looks ahead, not the last alone, and both
    gradients are clipped by their norms. The memory is filled at every step; while it is empty the
    batch itself stands in for the draw. meta_learning_rate 0 leaves all rates as they began, which
    is C-MAML with one rate inside and outside. For the way back a step keeps one params-sized tree
    for every look ahead and computes the rest anew.
    Differs from the authors' code in: a batch is used once; the memory holds the current task too;
    a rate below 0 is 0 in the params' step alone, so that it can rise again.

    Args:
        capacity: examples kept, in a reservoir.
        size: examples drawn at every step.
        learning_rate: what all rates begin with.
        meta_learning_rate: of the rates.
        steps: that look ahead, each on an equal share of the batch; by default one an example.
        first_order: whether the look ahead's own gradients count as constants. The params
            can then run away where a rate exceeds the inverse of the loss's curvature.
        clip: the largest norm of dM/dparams, and of dM/drates.

    Raises:
        InputError: at init, if the batch does not divide into the steps.

    Stores: a memory of examples; 1 params-sized tree (rates).
    Place: instead of the optimizer; gradients and terms of other parts do not count.
    Scenario: any.

    >>> import jcl
    >>> method = jcl.la_maml(200, 10, learning_rate=0.15, meta_learning_rate=0.3)
    """
    size = checks.whole("la_maml", "size", size)
    checks.number("la_maml", "learning_rate", learning_rate, "(0, inf)")
    checks.number("la_maml", "meta_learning_rate", meta_learning_rate)
    steps = None if steps is None else checks.whole("la_maml", "steps", steps)
    checks.flag("la_maml", "first_order", first_order)
    checks.number("la_maml", "clip", clip, "(0, inf)")
    clipping = optax.clip_by_global_norm(clip)
    policy = memories.reservoir(checks.whole("la_maml", "capacity", capacity))

    def init(params, *, batch, **_):
        examples = jax.tree.leaves(batch)[0].shape[0]
        if examples % (steps or 1):
            raise InputError(
                f"la_maml(steps={steps}) does not divide the batch of {examples}: give a divisor "
                "of it, or None for a step an example."
            )
        rates = jax.tree.map(lambda parameter: jnp.full_like(parameter, learning_rate), params)
        return LookAhead(policy.init(batch), rates)

    def update(updates, state, params, *, batch, loss_fn, key, **_):
        key_draw, key_ahead, key_insert = split(key, 3)
        recalled = recall(policy, state.memory, batch, size, key_draw)
        joined = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), batch, recalled)
        number = steps or jax.tree.leaves(batch)[0].shape[0]
        shares = jax.tree.map(lambda leaf: leaf.reshape((number, -1, *leaf.shape[1:])), batch)
        keys = None if key_ahead is None else jax.random.split(key_ahead, number)

        def meta_loss(params, rates):
            def look(fast, given):
                share, key = given
                key_share, key_joined = split(key, 2)
                at = jax.lax.stop_gradient(fast) if first_order else fast
                gradient = jax.grad(lambda fast: loss_fn(fast, share, key_share)[0])(at)
                move = jax.tree.map(lambda rate, g: -rate * g, rates, gradient)
                fast = optax.apply_updates(fast, move)
                return fast, loss_fn(fast, joined, key_joined)[0]

            look = jax.checkpoint(look, prevent_cse=False)
            return jax.lax.scan(look, params, (shares, keys))[1].mean()

        gradients = jax.grad(meta_loss, argnums=(0, 1))(params, state.rates)
        by_params, by_rates = (
            clipping.update(gradient, optax.EmptyState())[0] for gradient in gradients
        )
        rates = jax.tree.map(lambda rate, g: rate - meta_learning_rate * g, state.rates, by_rates)
        updates = jax.tree.map(lambda rate, g: -jnp.maximum(rate, 0) * g, rates, by_params)
        memory = policy.insert(memories.after(state.memory, updates), batch, key_insert)
        return updates, LookAhead(memory, rates)

    return strategy(
        name="la_maml",
        side="step",
        optimizes=True,
        init=init,
        update=update,
        consolidate=remember,
    )


def recall(
    policy: memories.Policy, memory: Any, batch: Batch, size: int, key: jax.Array | None
) -> Batch:
    """A draw from the memory; while it is empty, the batch's own examples in turn."""
    turn = jnp.arange(size) % jax.tree.leaves(batch)[0].shape[0]
    return jax.tree.map(
        lambda drawn, new: jnp.where(memory.seen > 0, drawn, new[turn]),
        policy.draw(memory, size, key),
        batch,
    )


def remember(state: Any, params: Params, **_: Any) -> tuple[Any, Params]:
    """The same, but a function of its own: so per_task(...) refuses to drop the memory."""
    return state, params
