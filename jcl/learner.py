"""The learner: one loss and one strategy made into five pure functions over one state."""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jcl import checks
from jcl.core import Batch, Params, Skipping, State, Strategy, check_covered, lift, never, split
from jcl.errors import InputError

LossFn = Callable[[Params, Batch, jax.Array | None], tuple[jax.Array, dict[str, Any]]]


class LearnerState(NamedTuple):
    """Everything that changes in a run, so that donation, sharding and checkpoints see one tree.

    Attributes:
        params: the model's.
        strategy: the strategy's state.
        key: split at every step; None makes the whole run deterministic.
        step: steps taken in the run (int32).
        task_step: steps taken in the task (int32).
        task_steps: length of the task (int32), set by `start_task`; data, so that lengths differ
            without a retrace. While it is 0 the progress of the task stays 0.
    """

    params: Params
    strategy: State
    key: jax.Array | None
    step: jax.Array
    task_step: jax.Array
    task_steps: jax.Array


class Learner(NamedTuple):
    """Pure functions; compile `step`, `consolidate` and `evaluate` with `jax.jit`.

    Attributes:
        init: (key, params, batch) -> state. The params are copied; of the batch only shapes count.
        step: (state, batch) -> state, metrics. One gradient; metrics are scalars: "loss" of the
            task, "total", and each term of the strategy by name.
        consolidate: (state, batches) -> state. At the end of a task; batches are
            [number, batch, ...].
        predict: (state, batch) -> aux, without dropout; targets are never read.
        evaluate: (state, batch) -> sum, count, by the learner's measure.
    """

    init: Callable[[jax.Array | None, Params, Batch], LearnerState]
    step: Callable[[LearnerState, Batch], tuple[LearnerState, dict[str, jax.Array]]]
    consolidate: Callable[[LearnerState, Batch], LearnerState]
    predict: Callable[[LearnerState, Batch], dict[str, Any]]
    evaluate: Callable[[LearnerState, Batch], tuple[jax.Array, jax.Array]]


def learner(
    loss_fn: LossFn,
    strategy: Strategy | optax.GradientTransformation,
    *,
    measure: Callable[[Params, Batch], tuple[jax.Array, jax.Array]] | None = None,
) -> Learner:
    """A learner of the given loss by the given strategy.

    Args:
        loss_fn: (params, batch, key) -> (scalar, aux) with aux = {"logits", "losses"}; losses hold
            one number per example. Without targets in the batch it must still return the logits.
        strategy: from `jcl.chain`, or any optax transformation (naive fine-tuning).
        measure: (params, batch) -> sum, count; by default the sum of the losses of
            the examples that count (whose mask is not all 0) and their number.

    Raises:
        InputError: skip_nonfinite or private stands inside the strategy; at init, if there are
            params for which no part of the strategy makes a step of the gradient, so that it would
            be added as it is.

    >>> import jax, jax.numpy as jnp, jcl, optax
    >>> def loss_fn(params, batch, key):
    ...     losses = (batch["inputs"] @ params["w"] - batch["targets"]) ** 2
    ...     return losses.mean(), {"logits": losses, "losses": losses}
    >>> batch = {"inputs": jnp.ones((4, 2)), "targets": jnp.ones(4)}
    >>> learner = jcl.learner(loss_fn, jcl.chain(jcl.ewc(strength=1.0), optax.sgd(0.1)))
    >>> state = learner.init(jax.random.key(0), {"w": jnp.zeros(2)}, batch)
    >>> state, metrics = jax.jit(learner.step, donate_argnums=0)(state, batch)
    >>> float(metrics["loss"])
    1.0
    """
    strategy = lift(strategy)
    if strategy.name.find("skip_nonfinite(") > 0:
        raise InputError(
            f"{strategy.name}: skip_nonfinite stands around the whole strategy, so that it leaves "
            "out all of a step: skip_nonfinite(chain(...), most=...)."
        )

    if strategy.name.find("private(") > 0:
        raise InputError(
            f"{strategy.name}: private stands around the whole strategy, since what stands beside "
            "it reads examples outside of what is accounted for: private(chain(...), clip=...)."
        )

    def task_loss(strategy_state):
        def loss(params, batch, key):
            return loss_fn(*_see(strategy, strategy_state, params, batch), key)

        return loss

    def init(key, params, batch):
        params = jax.tree.map(jnp.asarray, params)
        check_covered(strategy, params)
        _, aux = jax.eval_shape(lambda params, batch: loss_fn(params, batch, None), params, batch)
        _check_aux(aux, batch)
        state = LearnerState(
            params=params,
            strategy=strategy.init(params, batch=batch, aux=aux),
            key=key,
            step=jnp.zeros((), jnp.int32),
            task_step=jnp.zeros((), jnp.int32),
            task_steps=jnp.zeros((), jnp.int32),
        )
        return jax.tree.map(jnp.copy, state)  # nothing aliases the caller's or its own arrays

    def step(state, batch):
        batch = jax.tree.map(jnp.asarray, batch)
        key, key_task, key_terms, key_update = split(state.key, 4)
        loss = task_loss(state.strategy)

        def total(params):
            value, aux = loss(params, batch, key_task)
            terms = strategy.loss(
                state.strategy, params, batch=batch, aux=aux, loss_fn=loss, key=key_terms
            )
            return sum(terms.values(), start=value), (value, aux, terms)

        (value, (task_value, aux, terms)), grad = jax.value_and_grad(total, has_aux=True)(
            state.params
        )
        updates, strategy_state = strategy.update(
            grad,
            state.strategy,
            state.params,
            value=value,
            value_fn=lambda params: total(params)[0],
            grad=grad,
            loss_fn=loss,
            batch=batch,
            aux=aux,
            key=key_update,
            progress=jnp.clip(state.task_step / jnp.maximum(state.task_steps, 1), 0.0, 1.0)
            * (state.task_steps > 0),
            step=state.step,
        )
        late = never(jax.tree.leaves(updates))
        updates = jax.tree.map(lambda update: jnp.where(late, 0, update), updates)
        state = state._replace(
            params=optax.apply_updates(state.params, updates),
            strategy=strategy_state,
            key=key,
            step=state.step + 1,
            task_step=state.task_step + 1,
        )
        metrics = {"loss": task_value, "total": value, **terms}
        if isinstance(strategy_state, Skipping):
            metrics["skipping"] = strategy_state.skipping
            metrics["skipped"] = strategy_state.skipped
        return state, metrics

    def consolidate(state, batches):
        batches = jax.tree.map(jnp.asarray, batches)
        key, key_consolidate = split(state.key, 2)
        strategy_state, params = strategy.consolidate(
            state.strategy,
            state.params,
            batches=batches,
            loss_fn=task_loss(state.strategy),
            key=key_consolidate,
        )
        return state._replace(
            params=params,
            strategy=strategy_state,
            key=key,
            task_step=jnp.zeros_like(state.task_step),
        )

    def predict(state, batch):
        unlabelled = {name: leaf for name, leaf in batch.items() if name != "targets"}
        return task_loss(state.strategy)(state.params, unlabelled, None)[1]

    def sum_of_losses(params, batch):
        losses = loss_fn(params, batch, None)[1]["losses"]
        mask = batch.get("mask", jnp.ones_like(losses))
        counted = jnp.any(mask.reshape((losses.shape[0], -1)) > 0, axis=1).astype(losses.dtype)
        return (losses * counted).sum(), counted.sum()

    def evaluate(state, batch):
        check_needs(strategy, batch)
        params, seen = _see(strategy, state.strategy, state.params, batch)
        return (measure or sum_of_losses)(params, seen)

    return Learner(init, step, consolidate, predict, evaluate)


def check_needs(strategy: Strategy, batch: Batch) -> None:
    """Refuses a batch to evaluate on that lacks what tells the strategy's tasks apart.

    Raises:
        InputError: it lacks a key, such as "task".
    """
    missing = sorted(strategy.needs - set(batch))
    if missing:
        raise InputError(
            f"{strategy.name} needs {', '.join(map(repr, missing))} in the batches of an "
            f"evaluation, which hold {', '.join(sorted(batch))}. Labels of tasks come from "
            "jcl.data.labelled(stream), or from a task-incremental scenario."
        )


def start_task(state: LearnerState, steps: int) -> LearnerState:
    """The state at the beginning of a task of that many steps, which schedules follow."""
    if not isinstance(steps, jax.Array):
        steps = checks.whole("start_task", "steps", steps)
    return state._replace(
        task_step=jnp.zeros_like(state.task_step),
        task_steps=jnp.full_like(state.task_steps, steps),
    )


def over_seeds(learner: Learner, *, by: Literal["vmap", "map"] = "vmap") -> Learner:
    """The learner of several replicas in one program, each with its own params, key and batches.

    Every leaf of params, strategy and key, and every batch, gains a leading axis of seeds. The
    counters are shared, so that a strategy which acts every n steps stays a branch.

    Args:
        learner: of one replica.
        by: "vmap" computes the replicas together, "map" one after the other (`jax.lax.map`), which
            was the faster for a small GPT-2 on two CPU cores.
    """
    checks.one_of("over_seeds", "by", by, ("vmap", "map"))
    axes = LearnerState(0, 0, 0, None, None, None)  # pyright: ignore[reportArgumentType]

    def over(function):
        def one(own, shared, batch):
            params, strategy, key = own
            return function(LearnerState(params, strategy, key, *shared), batch)

        def together(state, batch):
            own, shared = tuple(state[:3]), tuple(state[3:])
            if by == "vmap":
                result = jax.vmap(one, in_axes=(0, None, 0))(own, shared, batch)
            else:
                result = jax.lax.map(lambda each: one(each[0], shared, each[1]), (own, batch))
            return jax.tree.map(_share_counters, result, is_leaf=_is_state)

        return together

    return Learner(
        init=jax.vmap(learner.init, out_axes=axes),
        step=over(learner.step),
        consolidate=over(learner.consolidate),
        predict=over(learner.predict),
        evaluate=over(learner.evaluate),
    )


def by_index(step: Callable) -> Callable:
    """(state, (arrays, indices [number, batch])) -> state, metrics of the last step.

    Where the task has fewer steps left than there are indices, it takes those: the remainder of a
    stage needs no program of its own.
    """

    def steps(state, data):
        arrays, indices = data
        gather = functools.partial(jnp.take, axis=0, mode="clip")

        def batch(index):
            return jax.tree.map(lambda leaf: gather(leaf, indices[index]), arrays)

        _, shapes = jax.eval_shape(step, state, jax.eval_shape(batch, 0))
        metrics = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
        number = jnp.minimum(len(indices), state.task_steps - state.task_step)
        return jax.lax.fori_loop(
            0, number, lambda index, carry: step(carry[0], batch(index)), (state, metrics)
        )

    return steps


def over_batches(evaluate: Callable) -> Callable:
    """(state, batches [number, batch, ...]) -> sum, count over all of them."""

    def over(state, batches):
        sums, counts = jax.lax.map(lambda batch: evaluate(state, batch), batches)
        return sums.sum(), counts.sum()

    return over


def _is_state(tree: Any) -> bool:
    return isinstance(tree, LearnerState)


def _share_counters(result: Any) -> Any:
    """Every replica's counters are the same: one of them stands for all."""
    if not _is_state(result):
        return result
    return LearnerState(*result[:3], *(counter[0] for counter in result[3:]))


def _see(strategy: Strategy, state: State, params: Params, batch: Batch) -> tuple[Params, Batch]:
    """What the model sees. The targets are kept from the view, which serves predict as well."""
    hidden = {name: leaf for name, leaf in batch.items() if name == "targets"}
    shown = {name: leaf for name, leaf in batch.items() if name != "targets"}
    params, seen = strategy.view(state, params, shown)
    return params, {**seen, **hidden}


def _check_aux(aux: Any, batch: Batch) -> None:
    size = jax.tree.leaves(batch)[0].shape[0]
    if not isinstance(aux, dict) or not {"logits", "losses"} <= set(aux):
        raise InputError(
            'loss_fn must return (scalar, {"logits": ..., "losses": one number per example}).'
        )
    if aux["losses"].shape != (size,):
        raise InputError(
            f'loss_fn\'s aux["losses"] has the shape {aux["losses"].shape}, but must hold one '
            f"number per example of the batch, ({size},)."
        )
