"""Memory Aware Synapses."""

import jax
import jax.numpy as jnp

from jcl import checks
from jcl.core import Strategy, kept, strategy
from jcl.strategies.quadratic import Quadratic, distance, flat, mean_over_examples


def mas(strength: float, *, chunk: int = 1) -> Strategy:
    """Holds the params near those of the last task, each by how much the outputs depend on it.

    loss = task loss + strength * sum_i importance_i (params_i - anchor_i)^2.

    Aljundi et al. 2018; the penalty has no half. At a boundary
    importance <- importance + mean over examples of |d ||logits||^2 / d params|, anchor <- params.
    It reads no targets. The squared norm is the sum over an example's classes; of a language
    model's block, which has logits at every position, the mean of that over positions.

    Args:
        strength: weight of the penalty; 0 switches it off.
        chunk: examples differentiated at once; 1 takes the least memory. It must divide the
            examples of a boundary.

    Stores: 2 params-sized trees (importance, anchor).
    Place: anywhere.
    Scenario: any.

    >>> import jcl, optax
    >>> method = jcl.chain(jcl.mas(strength=1.0), optax.adamw(1e-3))
    """
    checks.number("mas", "strength", strength)
    chunk = checks.whole("mas", "chunk", chunk)

    def init(params, **_):
        return flat(params)

    def loss(state, params, **_):
        return {"mas": strength * distance(state.importance, params, state.anchor)}

    def consolidate(state, params, *, batches, loss_fn, **_):
        inputs = {name: leaf for name, leaf in batches.items() if name != "targets"}

        def sensitivity(example, _):
            def output(params):
                return jnp.mean(jnp.sum(loss_fn(params, example, None)[1]["logits"] ** 2, axis=-1))

            return jax.tree.map(jnp.abs, jax.grad(output)(params))

        new = mean_over_examples(sensitivity, params, inputs, None, chunk=chunk, name="mas")
        importance = jax.tree.map(jnp.add, state.importance, new)
        return Quadratic(importance, kept(params)), params

    return strategy(name="mas", init=init, loss=loss, consolidate=consolidate)
