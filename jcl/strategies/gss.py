"""Gradient-based sample selection."""

import jax
import jax.numpy as jnp
import optax

from jcl import checks
from jcl import memory as memories
from jcl.core import Strategy, split
from jcl.errors import InputError
from jcl.memory.policy import with_one
from jcl.strategies.replay import replay


def gss(
    capacity: int,
    size: int,
    *,
    strength: float = 1.0,
    references: int = 10,
    reference_size: int = 1,
    group: int = 1,
) -> Strategy:
    """Replays from a memory of examples whose gradients differ from one another (GSS-greedy).

    score(x) = 1 + max_i cos(grad loss_fn(x), g_i), the g_i gradients on draws from the memory.
    While a slot is free x takes it. Then, if score(x) < 1, a stored example j is met with the
    chance score_j / sum of scores and x takes its place with the chance
    score_j / (score_j + score(x)).

    Aljundi et al. 2019 ("Gradient based sample selection for online continual learning"), the
    greedy variant. The loss is that of `replay`.
    Differs from the paper in: the g_i are taken once for each batch, of the memory before it, and
    drawn with replacement; what is met while the memory is empty has score 1; `group`.

    A step costs `references` gradients and one for each group of the batch.

    Args:
        capacity: examples kept.
        size: examples drawn at every step.
        strength: weight of the term.
        references: how many g_i there are.
        reference_size: examples of the memory whose mean gradient each g_i is.
        group: examples of the batch that share the score of their mean gradient; it must divide
            the batch. 1 scores each by its own.

    Stores: a memory of examples; in the step as many params-sized trees as references.
    Place: anywhere.
    Scenario: any.

    >>> import jcl, optax
    >>> method = jcl.chain(jcl.gss(capacity=300, size=10, references=10), optax.sgd(0.05))
    """
    size, references, reference_size, group = (
        checks.whole("gss", name, value)
        for name, value in (
            ("size", size), ("references", references), ("reference_size", reference_size),
            ("group", group),
        )
    )  # fmt: skip
    checks.number("gss", "strength", strength)
    policy = least_similar(checks.whole("gss", "capacity", capacity))
    plain = replay(policy, size, strength=strength)

    def init(params, *, batch, **_):
        number = jax.tree.leaves(batch)[0].shape[0]
        if number % group:
            raise InputError(
                f"gss(group={group}) does not divide the batch of {number}: choose one that does."
            )
        return policy.init(batch)

    def update(updates, state, params, *, batch, loss_fn, key, **_):
        key_draw, key_insert = split(key, 2)

        def gradient(examples):
            return jax.grad(lambda params: loss_fn(params, examples, None)[0])(params)

        def in_groups(examples, length):
            return jax.tree.map(lambda leaf: leaf.reshape(-1, length, *leaf.shape[1:]), examples)

        drawn = policy.draw(state, references * reference_size, key_draw)
        known = jax.lax.map(gradient, in_groups(drawn, reference_size))

        def score(examples):
            own = gradient(examples)
            cosines = jax.vmap(lambda other: cosine_similarity(own, other))(known)
            return 1.0 + jnp.max(cosines)

        scores = jnp.repeat(jax.lax.map(score, in_groups(batch, group)), group)
        scores = jnp.where(state.seen > 0, scores, 1.0)
        state = memories.after(state, updates, scores)
        return updates, policy.insert(state, batch, key_insert, scores)

    def loss(state, params, **rest):
        return {"gss": plain.loss(state, params, **rest)["replay"]}

    return plain._replace(init=init, loss=loss, update=update, name="gss")


def cosine_similarity(one, other) -> jax.Array:
    """Of two trees; 0 where either is zero."""
    lengths = optax.tree.norm(one) * optax.tree.norm(other)
    return jnp.asarray(optax.tree.vdot(one, other) / jnp.where(lengths > 0, lengths, 1.0))


def least_similar(capacity: int) -> memories.Policy:
    """A memory in which an example of low score may take the place of one of high score.

    Scores are offered with the examples and lie in [0, 2]; `gss` says the rule.
    """
    plain = memories.priority(capacity)

    def insert(memory, batch, key, scores):
        key = jax.random.fold_in(jax.random.key(0), memory.seen) if key is None else key
        chances = jax.random.uniform(key, (len(scores), 2))

        places, _ = memories.counted(batch)

        def offer(carry, item):
            kept, seen = carry
            score, (which, chance), place = item
            upto = jnp.cumsum(kept)
            victim = jnp.minimum(jnp.searchsorted(upto, which * upto[-1], "right"), capacity - 1)
            wins = (score < 1) & (chance * (kept[victim] + score) < kept[victim])
            slot = jnp.where(seen < capacity, seen, jnp.where(wins, victim, capacity))
            slot = jnp.where(place < 0, capacity, slot)
            return (with_one(kept, slot, score), seen + (place >= 0)), slot

        carry = (memory.scores, memory.seen)
        (kept, seen), slot = jax.lax.scan(offer, carry, (scores, chances, places))
        return memories.Prioritized(memories.write(memory.items, batch, slot), seen, kept)

    return plain._replace(insert=insert, score=None)
