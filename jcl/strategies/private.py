"""Differentially private stochastic gradient descent."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jcl import checks, core, paths
from jcl.core import Strategy, check_complete, check_patterns, chosen_of, lift, split, strategy
from jcl.errors import InputError
from jcl.strategies.quadratic import sum_over_examples

# What sees no example, so that it may do with the private gradient what it likes.
BLIND = {"by_path", "chain", "per_task", "only", "optax", "freeze", "shrink_and_perturb"}


class Promise(NamedTuple):
    """What `jcl.privacy` accounts for.

    Attributes:
        clip: the largest norm of an example's gradient.
        noise_multiplier: the noise's standard deviation in units of clip.
        delta: at which epsilon is told.
    """

    clip: float
    noise_multiplier: float
    delta: float


def private(
    part: Strategy | optax.GradientTransformation,
    *,
    clip: float,
    noise_multiplier: float,
    delta: float = 1e-5,
    where: str | Sequence[str] = "*",
    chunk: int = 1,
) -> Strategy:
    """Gives the optimizer a gradient that hardly depends on any single example (DP-SGD).

    updates <- part((sum_i g_i min(1, clip / |g_i|) + clip noise_multiplier N(0, I)) / batch),
    g_i the gradient of loss_fn on example i alone, |g_i| over all chosen params.

    Abadi et al. 2016, algorithm 1, with clipping and noise as optax.contrib has them
    (differentially_private_aggregate, to which it is equal for the same key); a scan over the
    examples holds one gradient at a time. The batch's size divides, not the number of examples
    whose mask counts. `jcl run` reports the epsilon that this spends: `jcl.privacy.epsilon`.

    It stands around the whole strategy, which may hold optimizers, schedules, per_task, only and
    freeze: nothing within sees an example, a target or a loss (they are zeros there), so that all
    that becomes of the gradient is as private as it is. What reads examples by itself, such as a
    memory, is refused. Not private are what a run writes of its training: losses in metrics.jsonl,
    and the noise's own key, which follows from the seed and stands in every checkpoint: give away
    the params, not the run folder, and keep the seed secret.

    Args:
        part: an optimizer, or a chain of such parts.
        clip: the largest norm of an example's gradient.
        noise_multiplier: of the noise on the sum, in units of clip; 0 clips alone and promises
            nothing.
        delta: at which the report tells epsilon; below 1 / the examples of the largest stage.
        where: patterns of the paths of the params that are learned, such as "lora/*"; the gradient
            of all others is 0.
        chunk: examples differentiated at once; it must divide the batch.

    Raises:
        InputError: a part within reads examples, or would add to the loss or to what the model
            sees; at init, if an optimizer within reads the loss, as a plateau does.

    Stores: nothing beside the part's own.
    Place: around the whole strategy.
    Scenario: any.

    >>> import jcl, optax
    >>> method = jcl.private(optax.adam(1e-3), clip=1.0, noise_multiplier=1.1)
    """
    part, nothing = lift(part), strategy(name="nothing")
    checks.number("private", "clip", clip, "(0, inf)")
    checks.number("private", "noise_multiplier", noise_multiplier)
    checks.number("private", "delta", delta, "(0, 1)")
    chunk, patterns = checks.whole("private", "chunk", chunk), paths.as_patterns(where)
    others = sorted({*re.findall(r"\w+", part.name)} - BLIND)
    if others or part.view is not nothing.view or part.loss is not nothing.loss:
        raise InputError(
            f"private({part.name}): {', '.join(others) or 'a part within'} reads examples, or what "
            "was kept of them, outside of what is accounted for: leave it out. Optimizers, "
            "per_task, only and freeze may stand there."
        )

    def init(params, **rest):
        check_complete("private", params)
        number = jax.tree.leaves(rest["batch"])[0].shape[0]
        if number % chunk:
            raise InputError(
                f"private(chunk={chunk}) does not divide the batch of {number}: choose one that "
                "does."
            )
        check_patterns("private", patterns, params)
        state = part.init(params, **rest)
        if core.reads_loss(part, state, params, **rest):
            raise InputError(
                f"private({part.name}): an optimizer within reads the loss, as a plateau does; it "
                "is not private, and 0 there: take a schedule of the progress, jcl.scheduled."
            )
        return state

    def update(updates, state, params, *, batch, aux, loss_fn, key, step, **extra):
        key_examples, key_noise, key_part = split(key, 3)
        if key_noise is None:  # without a key the noise still differs from step to step
            key_noise = jax.random.fold_in(jax.random.key(3), step)

        def clipped(example, key):
            key = None if key_examples is None else key
            gradient = jax.grad(lambda params: loss_fn(params, example, key)[0])(params)
            leaves, structure = jax.tree.flatten(chosen_of(gradient, patterns))
            cut, _ = optax.per_example_global_norm_clip([leaf[None] for leaf in leaves], clip)
            return jax.tree.unflatten(structure, jax.tree.leaves(cut))

        one = jax.tree.map(lambda leaf: leaf[None], batch)
        chosen = chosen_of(params, patterns)
        total, _ = sum_over_examples(
            clipped, chosen, one, key_examples, chunk=chunk, name="private"
        )
        number = jax.tree.leaves(batch)[0].shape[0]
        leaves, structure = jax.tree.flatten(total)
        _, *keys = jax.random.split(key_noise, len(leaves) + 1)
        noisy = [
            (leaf + clip * noise_multiplier * jax.random.normal(key, leaf.shape, leaf.dtype))
            / number
            for leaf, key in zip(leaves, keys, strict=True)
        ]
        private = jax.tree.map(
            lambda new, old: jnp.zeros_like(old) if new is None else new,
            jax.tree.unflatten(structure, noisy),
            params,
            is_leaf=lambda leaf: leaf is None,
        )
        blind: dict[str, Any] = {"batch": _zeros(batch), "aux": _zeros(aux), "loss_fn": loss_fn}
        none = jnp.zeros(())
        extra |= {"value": none, "value_fn": lambda params: none, "grad": private, **blind}
        return part.update(private, state, params, key=key_part, step=step, **extra)

    def consolidate(state, params, *, batches, **rest):
        return part.consolidate(state, params, batches=_zeros(batches), **rest)

    return part._replace(
        name=f"private({part.name})",
        init=init,
        update=update,
        consolidate=part.consolidate if part.consolidate is nothing.consolidate else consolidate,
        privacy=Promise(clip, noise_multiplier, delta),
    )


def _zeros(tree: Any) -> Any:
    return jax.tree.map(jnp.zeros_like, tree)
