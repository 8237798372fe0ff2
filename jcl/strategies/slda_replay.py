"""Streaming linear discriminant analysis over a backbone that goes on learning."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jcl import checks
from jcl import memory as memories
from jcl.core import Strategy, split, strategy
from jcl.losses import outputs
from jcl.strategies.replay import replay
from jcl.strategies.slda import Discriminant, slda

STORED = "stored_features"


class Followed(NamedTuple):
    """Attributes:
    discriminant: what SLDA keeps: a mean of every class and one scatter.
    memory: of examples and of the features that they had when the means were last right.
    answers: what SLDA keeps of the expanded features; () where nothing expands them.
    """

    discriminant: Discriminant
    memory: memories.ByClass
    answers: Any = ()


def slda_replay(
    features: Callable[..., jax.Array],
    classes: int,
    *,
    capacity: int,
    size: int,
    strength: float = 1.0,
    shrinkage: float = 1e-4,
    head: str = "head",
    answer: str = "wide",
    expand: Callable[[jax.Array], jax.Array] | None = None,
) -> Strategy:
    """Trains the backbone through SLDA's head and replay, and moves old means with the features.

    loss = task loss + strength * loss_fn(params, draw(memory, size)), both under `slda`'s head;
    at a boundary mu_c <- mu_c + mean over the memory's examples of c of (f_now(x) - f_stored(x)).

    Hayes and Kanan 2020 for the head, which is computed of class means and a shared covariance, so
    that no class is favoured for being the latest and every class has its column from its first
    example on. There the backbone is frozen; here it learns by the optimizer in the chain, best at
    a small rate, and what its drift does to the means of classes that do not come again is measured
    on a class-balanced memory and undone (the compensation of Yu et al. 2020, which measures it on
    the current task's data). Examples are stored with the features they had when they were met;
    until something lies in the memory the replay is zero.

    With `expand` a second head, over many random features of the features (McDonnell et al. 2023),
    answers, while the first trains the backbone: to learn through so wide a head, few examples of
    a class fit it exactly and leave no gradient. It is solved at boundaries, and its means follow
    the drift as well. The model is then `jcl.models.second_head(model, answer, expand, ...)`, its
    loss `jcl.losses.classify(model.apply, answer=wide.apply)` and its measure the wide model's.

    Args:
        features: (params, inputs, key) -> [batch, width], such as `model.features`.
        classes: of the head.
        capacity: examples kept.
        size: examples drawn at every step, every class with the same chance.
        strength: weight of the replay.
        shrinkage: as in `slda`.
        head: path of the head in the params, {"kernel": [width, classes], "bias": [classes]}.
        answer: path of the second head.
        expand: features [examples, width] -> [examples, more], such as
            `jcl.models.random_expansion(width, 4000)`; None for no second head.

    Raises:
        InputError: at init, if there is no such head or the features do not fit it.

    Stores: a memory of examples and their features, one mean of the features for every class, a
        [width, width] covariance; with expand both of the expanded features as well.
    Place: anywhere.
    Scenario: class-incremental.

    >>> import jcl, optax
    >>> model = jcl.models.mlp(jcl.models.MLPConfig(inputs=4, hidden=(8,), classes=3))
    >>> method = jcl.chain(
    ...     jcl.slda_replay(model.features, classes=3, capacity=30, size=8),
    ...     jcl.only("layer_*", optax.adam(1e-4)), jcl.freeze("head/*"),
    ... )
    """
    policy = memories.class_balanced(capacity, classes)
    size = checks.whole("slda_replay", "size", size)
    replayed = replay(policy, size, strength=strength, draw="balanced")
    computed = slda(features, classes, shrinkage=shrinkage, head=head)
    if expand is not None:
        checks.function("slda_replay", "expand", expand, "jcl.models.random_expansion(384, 4000)")

        def expanded(params, inputs, key=None, **rest):
            return expand(features(params, inputs, key, **rest))

        answered = slda(expanded, classes, shrinkage=shrinkage, head=answer, refresh="boundary")
    else:
        answered = strategy(name="nothing")

    def init(params, *, batch, aux):
        discriminant = computed.init(params, batch=batch, aux=aux)
        answers = answered.init(params, batch=batch, aux=aux)
        shape = jax.eval_shape(lambda p, b: outputs(features, p, b), params, batch)
        memory = replayed.init(params, batch={**batch, STORED: shape}, aux=aux)
        return Followed(discriminant, memory, answers)

    def view(state, params, batch):
        params, batch = computed.view(state.discriminant, params, batch)
        return answered.view(state.answers, params, batch)

    def loss(state, params, **rest):
        return replayed.loss(state.memory, params, **rest)

    def update(updates, state, params, *, batch, key, **rest):
        key_head, key_memory = split(key, 2)
        now = jax.lax.stop_gradient(outputs(features, params, batch))
        updates, discriminant = computed.update(
            updates, state.discriminant, params, batch=batch, key=key_head, **rest
        )
        updates, answers = answered.update(
            updates, state.answers, params, batch=batch, key=key_head, **rest
        )
        updates, memory = replayed.update(
            updates, state.memory, params, batch={**batch, STORED: now}, key=key_memory, **rest
        )
        return updates, Followed(discriminant, memory, answers)

    def consolidate(state, params, **rest):
        items = dict(state.memory.items)
        before = items.pop(STORED)
        # A few at a time: all of a memory's activations would be large.
        now = jax.lax.map(
            lambda item: outputs(features, params, jax.tree.map(lambda leaf: leaf[None], item))[0],
            items,
            batch_size=size,
        )
        member = jax.nn.one_hot(items["targets"], classes) * policy.filled(state.memory)[:, None]
        member = member / jnp.maximum(member.sum(axis=0), 1.0)

        def followed(discriminant, moved):
            means = discriminant.means
            means = means._replace(mean=means.mean + member.T @ moved)
            return discriminant._replace(means=means)

        answers = state.answers
        if expand is not None:
            answers = followed(answers, expand(now) - expand(before))
            answers, _ = answered.consolidate(answers, params, **rest)
        memory = state.memory._replace(items={**items, STORED: now})
        return Followed(followed(state.discriminant, now - before), memory, answers), params

    return strategy(
        name="slda_replay", init=init, view=view, loss=loss, update=update, consolidate=consolidate
    )
