"""The contract of a strategy, and the six ways to build one from others.

A continual-learning strategy is an optax gradient transformation that may also shape what the
model sees, add to the loss, and act between tasks: five pure functions, each with an identity
default, and a static name. `chain` composes strategies and optax transformations as
`optax.chain` does; `per_task`, `periodically`, `only` and `skip_nonfinite` change when, and on
which params, a part acts; `scheduled` lets an optimizer's learning rate follow the progress of the
task.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jcl import checks, paths
from jcl.errors import InputError

Params = Any
Batch = dict[str, Any]
State = Any
Schedule = Callable[[jax.Array], jax.Array]


class Strategy(NamedTuple):
    """What a method remembers, sees, minds, bends and keeps.

    Attributes:
        init: (params, *, batch, aux) -> state. Only the shapes of batch and aux count; they may be
            `jax.ShapeDtypeStruct`s.
        view: (state, params, batch) -> params, batch. What the model sees, in training and in
            prediction; the batch it gets holds no `targets`.
        loss: (state, params, *, batch, aux, loss_fn, key) -> {name: scalar}. Terms added to the
            task's loss.
        update: (updates, state, params, **extra) -> updates, state. optax's contract; extra holds
            value, value_fn, grad (all of the total loss), loss_fn, batch, aux, key, progress (of
            the task, in [0, 1]) and step (of the run).
        consolidate: (state, params, *, batches, loss_fn, key) -> state, params. Called between
            tasks; batches are [number, batch, ...].
        name: what reports and errors call it.
        side: "gradient" where `update` expects a gradient and must stand left of the optimizer,
            "step" where it expects the step that an optimizer on its left has made of it, "any"
            where it leaves the updates alone or either will do.
        tasks: how many tasks it has room for; None for any number.
        optimizes: whether it makes a step of the gradient, as optax transformations are taken to.
        covers: (path of a parameter) -> whether it makes that one's step, or holds it still.
        needs: keys that a batch must hold in an evaluation, such as "task".
        privacy: what `private` promises, to be accounted for; None of anything else.
        alarms: whether it waits for a detector's alarms in the batches ("drift").

    `loss_fn` is the task's loss through all views, without any strategy's terms. A key of None
    means deterministic, in every function.
    """

    init: Callable[..., State]
    view: Callable[[State, Params, Batch], tuple[Params, Batch]]
    loss: Callable[..., dict[str, jax.Array]]
    update: Callable[..., tuple[Params, State]]
    consolidate: Callable[..., tuple[State, Params]]
    name: str
    side: str
    tasks: int | None = None
    optimizes: bool = False
    needs: frozenset[str] = frozenset()
    covers: Callable[[Any], bool] = lambda path: False
    privacy: Any = None
    alarms: bool = False


def _no_state(params: Params, **_: Any) -> State:
    return ()


def _see_all(state: State, params: Params, batch: Batch) -> tuple[Params, Batch]:
    return params, batch


def _no_terms(state: State, params: Params, **_: Any) -> dict[str, jax.Array]:
    return {}


def _same_updates(updates: Params, state: State, params: Params, **_: Any) -> tuple[Params, State]:
    return updates, state


def _same_state(state: State, params: Params, **_: Any) -> tuple[State, Params]:
    return state, params


def strategy(
    *,
    name: str,
    side: str = "any",
    tasks: int | None = None,
    optimizes: bool = False,
    needs: str | Iterable[str] = (),
    alarms: bool = False,
    covers: Callable[[Any], bool] | None = None,
    init: Callable[..., State] = _no_state,
    view: Callable[..., tuple[Params, Batch]] = _see_all,
    loss: Callable[..., dict[str, jax.Array]] = _no_terms,
    update: Callable[..., tuple[Params, State]] = _same_updates,
    consolidate: Callable[..., tuple[State, Params]] = _same_state,
) -> Strategy:
    """A strategy whose functions are the identity unless given; it covers what it optimizes."""
    checks.one_of(name, "side", side, ("gradient", "step", "any"))
    needs = frozenset([needs] if isinstance(needs, str) else needs)
    covers = covers or (lambda path: optimizes)
    return Strategy(
        init, view, loss, update, consolidate, name, side, tasks, optimizes, needs, covers,
        alarms=alarms,
    )  # fmt: skip


def lift(part: Strategy | optax.GradientTransformation) -> Strategy:
    """The part itself, or an optax transformation as a strategy named "optax"."""
    if isinstance(part, Strategy):
        return part
    if isinstance(part, optax.MultiSteps):
        part = part.gradient_transformation()
    if not isinstance(part, optax.GradientTransformation):
        raise InputError(
            f"{part!r} is neither a strategy nor an optax transformation: did you pass the "
            "function instead of what it returns, ewc instead of ewc(strength=100.0)?"
        )
    return strategy(
        name="optax",
        optimizes=True,
        init=lambda params, **_: part.init(params),
        update=_optax_update(part),
    )


def never(arrays: Iterable[jax.Array]) -> jax.Array:
    """False, which the compiler knows only once the arrays are there: so it puts what depends on it
    behind them.

    An array is written in place where nothing reads it later, and copied first otherwise. Of a
    backward pass that reads the params, or a draw that reads a memory, XLA knows no order to the
    writing unless one needs the other's result (an optimization barrier is taken out too early).
    The sort is there since nothing is computed anew behind it: XLA would repeat what is made of all
    the arrays for each that waits, and compile for as long as their number squared.
    """
    first = [array.ravel()[0].astype(jnp.float32) for array in arrays if array.size]
    return jnp.sort(jnp.stack(first))[0] > jnp.inf if first else jnp.zeros((), bool)


def kept(params: Params) -> Params:
    """A copy, for a consolidate, which the compiler does not know to be one.

    On an H100 (jax 0.11.2) a program that gave the params twice, `jnp.copy` being nothing within a
    program, beside arrays that pass through it, wrote them into one of these: Adam's first moment
    held the params of the boundary.
    """
    late = never(jax.tree.leaves(params))
    return jax.tree.map(lambda leaf: jnp.where(late, jnp.zeros_like(leaf), leaf), params)


def split(key: jax.Array | None, number: int) -> Sequence[jax.Array | None]:
    """`jax.random.split` which hands a key of None (deterministic) on."""
    return [None] * number if key is None else list(jax.random.split(key, number))


def chain(*parts: Strategy | optax.GradientTransformation) -> Strategy:
    """Strategies and optax transformations, one after the other; order is meaning.

    Everything flows from left to right: left of the optimizer a part edits gradients, right of it
    the step.

    Gradients of several batches are accumulated by `optax.MultiSteps` around the optimizer: the
    steps between are zero, and a loss that is a mean over equally many targets has the step of the
    large batch. What acts on the mean gradient, such as clipping, stands inside. A learning rate
    that follows the progress of the task stands behind:
    `chain(optax.MultiSteps(optax.scale_by_adam(), 4), scheduled(optax.scale_by_learning_rate,
    cosine(1e-3)), si(0.1))`. Progress counts batches, not updates; with `per_task` around it,
    what is accumulated at a boundary is dropped. A path such as that of SI takes the gradient of
    the last batch for that of all, which is right on average.

    Raises:
        InputError: there is no part; one that edits the step stands left of an optax
            transformation, or one that edits the gradient right of all of them.

    >>> import jcl, optax
    >>> jcl.chain(jcl.replay(capacity=100, size=16), optax.adamw(1e-3)).name
    'chain(replay, optax)'
    """
    lifted = [lift(part) for part in parts]
    if not lifted:
        raise InputError("chain(): give at least one part, such as optax.adamw(1e-3).")
    optimizes = [part.optimizes for part in lifted]
    for position, part in enumerate(lifted):
        left, right = any(optimizes[:position]), any(optimizes[position + 1 :])
        call = part.name if part.name.endswith(")") else f"{part.name}(...)"
        if part.side == "gradient" and left and not right:
            raise InputError(
                f"{call} edits the gradient and must stand before the optimizer: "
                f"chain({call}, optimizer), not chain(optimizer, {call})."
            )
        if part.side == "step" and right:
            raise InputError(
                f"{call} edits the final step and must stand after the optimizer and every other "
                f"optax transformation: chain(optimizer, {call}), not chain({call}, optimizer)."
            )

    def init(params, *, batch, aux):
        return tuple(part.init(params, batch=batch, aux=aux) for part in lifted)

    def view(state, params, batch):
        for part, own in zip(lifted, state, strict=True):
            params, batch = part.view(own, params, batch)
        return params, batch

    def loss(state, params, *, key, **rest):
        terms = {}
        for part, own, part_key in zip(lifted, state, split(key, len(lifted)), strict=True):
            for name, term in part.loss(own, params, key=part_key, **rest).items():
                terms[_unused(name, terms)] = term
        return terms

    def update(updates, state, params, *, key, **extra):
        kept = []
        for part, own, part_key in zip(lifted, state, split(key, len(lifted)), strict=True):
            updates, own = part.update(updates, own, params, key=part_key, **extra)
            kept.append(own)
        return updates, tuple(kept)

    def consolidate(state, params, *, key, **rest):
        kept = []
        for part, own, part_key in zip(lifted, state, split(key, len(lifted)), strict=True):
            own, params = part.consolidate(own, params, key=part_key, **rest)
            kept.append(own)
        return tuple(kept), params

    names = ", ".join(part.name for part in lifted)
    sides = {part.side for part in lifted}
    side = "step" if "step" in sides else "any"
    if "gradient" in sides and not any(optimizes):
        side = "gradient"  # as a part of a longer chain
    rooms = [part.tasks for part in lifted if part.tasks is not None]
    return Strategy(
        init,
        view if any(part.view is not _see_all for part in lifted) else _see_all,
        loss if any(part.loss is not _no_terms for part in lifted) else _no_terms,
        update,
        consolidate if any(part.consolidate is not _same_state for part in lifted) else _same_state,
        f"chain({names})",
        side,
        tasks=min(rooms, default=None),
        optimizes=any(optimizes),
        needs=frozenset().union(*(part.needs for part in lifted)),
        covers=lambda path: any(part.covers(path) for part in lifted),
        alarms=any(part.alarms for part in lifted),
    )


def per_task(part: Strategy | optax.GradientTransformation) -> Strategy:
    """The part with a fresh state for every task, such as an optimizer's moments and schedule.

    Raises:
        InputError: the part views, adds a loss or consolidates, and so is there to remember what
            was before the boundary.
    """
    part = lift(part)
    if "per_task" in part.name and part.view is _see_all and part.loss is _no_terms:
        raise InputError(f"per_task({part.name}): it begins afresh at every task already.")
    own = (part.view is _see_all, part.loss is _no_terms, part.consolidate is _same_state)
    if not all(own):
        raise InputError(
            f"per_task({part.name}) would forget at every boundary what {part.name} keeps of the "
            "tasks before. per_task is for optimizers: "
            f"chain({part.name}, per_task(optax.adamw(...)))."
        )

    def consolidate(state, params, *, batches, loss_fn, **_):
        batch = jax.tree.map(lambda leaf: leaf[0], batches)
        _, aux = jax.eval_shape(lambda params, batch: loss_fn(params, batch, None), params, batch)
        return part.init(params, batch=batch, aux=aux), params

    return part._replace(consolidate=consolidate, name=f"per_task({part.name})")


class Periodic(NamedTuple):
    """The part's own state, and a ring of the last batches for it to consolidate on."""

    inner: State
    ring: Batch


def alarmed(batch: Batch) -> jax.Array:
    """Whether a detector of drift gave an alarm before this batch: batch["drift"] is 1 then."""
    return jnp.any(batch["drift"] > 0) if "drift" in batch else jnp.zeros((), bool)


def periodically(part: Strategy, *, every: int, batches: int = 8) -> Strategy:
    """The part, consolidated every so many steps instead of at task boundaries.

    Args:
        part: a strategy whose consolidate leaves the params as they are.
        every: steps from one consolidation to the next.
        batches: how many of the last batches it consolidates on; at most `every`.
    """
    part = lift(part)
    every = checks.whole("periodically", "every", every)
    if checks.whole("periodically", "batches", batches) > every:
        raise InputError(
            f"periodically({part.name}, every={every}, batches={batches}): batches must lie "
            "between 1 and every, so that the ring is full when it is used."
        )

    def due(batch, step):
        return (step + 1) % every == 0

    return consolidating("periodically", part, due, batches)


def consolidating(
    call: str,
    part: Strategy,
    due: Callable[[Batch, jax.Array], jax.Array],
    batches: int,
    *,
    newest: bool = True,
) -> Strategy:
    """The part, consolidated on a ring of the last batches in the steps that are due.

    Args:
        call: of the public function, which names it.
        part: a strategy whose consolidate leaves the params as they are.
        due: (batch, step) -> whether this step consolidates.
        batches: how many lie in the ring.
        newest: whether the step's own batch is one of them.

    Raises:
        InputError: the part consolidates nothing; in the first step, if it changes the params.
    """
    if part.consolidate is _same_state:
        raise InputError(f"{call}({part.name}): it consolidates nothing.")

    def init(params, *, batch, aux):
        ring = jax.tree.map(lambda leaf: jnp.zeros((batches, *leaf.shape), leaf.dtype), batch)
        return Periodic(part.init(params, batch=batch, aux=aux), ring)

    def view(state, params, batch):
        return part.view(state.inner, params, batch)

    def loss(state, params, **rest):
        return part.loss(state.inner, params, **rest)

    def update(updates, state, params, *, batch, loss_fn, key, step, **extra):
        key_update, key_consolidate = split(key, 2)
        updates, inner = part.update(
            updates,
            state.inner,
            params,
            batch=batch,
            loss_fn=loss_fn,
            key=key_update,
            step=step,
            **extra,
        )
        ring = jax.tree.map(
            lambda kept, new: jax.lax.dynamic_update_index_in_dim(kept, new, step % batches, 0),
            state.ring,
            batch,
        )

        def consolidate(inner):
            inner, kept = part.consolidate(
                inner,
                params,
                batches=ring if newest else state.ring,
                loss_fn=loss_fn,
                key=key_consolidate,
            )
            pairs = zip(jax.tree.leaves(kept), jax.tree.leaves(params), strict=True)
            if any(new is not old for new, old in pairs):
                raise InputError(
                    f"{call}({part.name}): its consolidate changes the params, which only a "
                    f"task boundary allows; put the part into the chain without {call}."
                )
            return inner

        inner = jax.lax.cond(due(batch, step), consolidate, lambda own: own, inner)
        return updates, Periodic(inner, ring)

    return part._replace(
        init=init,
        view=view,
        loss=loss,
        update=update,
        consolidate=_same_state,
        name=f"{call}({part.name})",
    )


class Skipping(NamedTuple):
    """The part's own state, and what was left out (int32 scalars).

    Attributes:
        inner: the part's.
        in_a_row: steps without a finite outcome, up to the last one.
        skipping: 1 where the last one was left out, else 0.
        skipped: steps that were left out in the whole run.
    """

    inner: State
    in_a_row: jax.Array
    skipping: jax.Array
    skipped: jax.Array


def skip_nonfinite(part: Strategy | optax.GradientTransformation, *, most: int) -> Strategy:
    """The strategy of a whole run, which leaves out steps that are not finite, so many in a row.

    Such a step, whose loss or step is infinite or NaN or which would put NaN into the strategy's
    state, leaves params and state as they were, memories included; the run's key and counters go
    on. Metrics gain `skipping` (1 for such a step) and `skipped` (how many the run had so far).
    Beyond `most` in a row a step is taken as it is, and `jcl run` stops at it.

    It stands around the whole chain, since `optax.apply_if_finite` around the optimizer keeps NaN
    from the optimizer's state alone. It costs a pass over the strategy's state at every step, of
    which two copies stand then.

    Args:
        part: such as `chain(replay(...), optax.adamw(1e-3))`.
        most: steps that may be left out in a row.

    >>> import jcl, optax
    >>> jcl.skip_nonfinite(jcl.chain(jcl.ewc(1.0), optax.sgd(0.1)), most=3).name
    'skip_nonfinite(chain(ewc, optax))'
    """
    part = lift(part)
    most = checks.whole("skip_nonfinite", "most", most)

    def init(params, **rest):
        zero = jnp.zeros((), jnp.int32)
        return Skipping(part.init(params, **rest), zero, zero, zero)

    def view(state, params, batch):
        return part.view(state.inner, params, batch)

    def loss(state, params, **rest):
        return part.loss(state.inner, params, **rest)

    def update(updates, state, params, *, value, **extra):
        updates, inner = part.update(updates, state.inner, params, value=value, **extra)
        kept = [leaf for leaf in jax.tree.leaves(inner) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
        good = [jnp.isfinite(value)]
        good += [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(updates)]
        good += [~jnp.any(jnp.isnan(leaf)) for leaf in kept]  # an infinity may have a meaning
        finite = jnp.all(jnp.stack(good))
        in_a_row = jnp.where(finite, 0, state.in_a_row + 1)
        skip = ~finite & (in_a_row <= most)
        updates = jax.tree.map(lambda leaf: jnp.where(skip, 0, leaf), updates)
        inner = jax.tree.map(lambda new, old: jnp.where(skip, old, new), inner, state.inner)
        return updates, Skipping(inner, in_a_row, skip.astype(jnp.int32), state.skipped + skip)

    def consolidate(state, params, **rest):
        inner, params = part.consolidate(state.inner, params, **rest)
        return state._replace(inner=inner), params

    return _around(
        part,
        init=init,
        view=view,
        loss=loss,
        update=update,
        consolidate=consolidate,
        name=f"skip_nonfinite({part.name})",
    )


def _around(
    part: Strategy,
    *,
    view: Callable[..., Any],
    loss: Callable[..., Any],
    consolidate: Callable[..., Any],
    **others: Any,
) -> Strategy:
    """The part with functions around its own; one that is the identity stays so."""
    return part._replace(
        view=view if part.view is not _see_all else _see_all,
        loss=loss if part.loss is not _no_terms else _no_terms,
        consolidate=consolidate if part.consolidate is not _same_state else _same_state,
        **others,
    )


def only(
    where: str | Sequence[str],
    part: Strategy | optax.GradientTransformation,
    *,
    but: str | Sequence[str] = (),
) -> Strategy:
    """The part, restricted to the params whose path matches.

    The part's functions see a params tree with None in place of the rest, so that its state costs
    no more than the chosen params. Updates of the rest pass unchanged.

    Args:
        where: patterns of paths such as "h_*/attn/*"; `*` also matches slashes.
        part: a strategy or an optax transformation.
        but: patterns of params that are left out although `where` matches them.

    Raises:
        InputError: at init, if a pattern matches no path, when the message lists the nearest paths,
            or if `but` leaves out all that `where` matches.
    """
    part = lift(part)
    patterns, spared = paths.as_patterns(where), paths.as_patterns(but)
    if not patterns:
        raise InputError(f"only([], {part.name}): no pattern, so the part would act on nothing.")

    def among(path):
        return matches(path, patterns) and not matches(path, spared)

    def choose(tree):
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf if among(path) else None, tree
        )

    def close(function, params):
        return lambda chosen, *rest: function(merge(params, chosen), *rest)

    def init(params, *, batch, aux):
        check_patterns(f"only({part.name})", (*patterns, *spared), params)
        if not jax.tree.leaves(choose(params)):
            raise InputError(
                f"only({part.name}): but={list(spared)} leaves out all that {list(patterns)} "
                "matches, so the part would act on nothing: leave it out of the chain."
            )
        return part.init(choose(params), batch=batch, aux=aux)

    def view(state, params, batch):
        chosen, batch = part.view(state, choose(params), batch)
        return merge(params, chosen), batch

    def loss(state, params, *, loss_fn, **rest):
        return part.loss(state, choose(params), loss_fn=close(loss_fn, params), **rest)

    def update(updates, state, params, *, grad, loss_fn, value_fn, **extra):
        chosen, state = part.update(
            choose(updates),
            state,
            choose(params),
            grad=choose(grad),
            loss_fn=close(loss_fn, params),
            value_fn=close(value_fn, params),
            **extra,
        )
        return merge(updates, chosen), state

    def consolidate(state, params, *, loss_fn, **rest):
        state, chosen = part.consolidate(
            state, choose(params), loss_fn=close(loss_fn, params), **rest
        )
        return state, merge(params, chosen)

    return _around(
        part,
        init=init,
        view=view,
        loss=loss,
        update=update,
        consolidate=consolidate,
        name=f"only({part.name})",
        covers=lambda path: among(path) and part.covers(path),
    )


def scheduled(
    optimizer: Callable[..., optax.GradientTransformation],
    learning_rate: Schedule,
    **options: Any,
) -> Strategy:
    """An optax optimizer whose learning rate follows the progress of the task.

    Progress is data, not a constant of the program, so that tasks of different lengths share one
    compiled step.

    Args:
        optimizer: an optax factory that takes the learning rate first, such as `optax.adamw`.
        learning_rate: progress in [0, 1] -> rate, such as `jcl.cosine(1e-3)`.
        **options: the factory's further arguments.

    >>> import jcl, optax
    >>> jcl.per_task(jcl.scheduled(optax.adamw, jcl.cosine(1e-3, warmup=0.1))).name
    'per_task(optax)'
    """

    def update(updates, state, params, *, progress, **extra):
        transformation = optimizer(learning_rate(progress), **options)
        return _optax_update(transformation)(updates, state, params, **extra)

    return lift(optimizer(learning_rate(jnp.zeros(())), **options))._replace(update=update)


def cosine(peak: float, *, warmup: float = 0.0, floor: float = 0.0) -> Schedule:
    """Linear warm-up from zero to `peak`, then half a cosine down to `floor`.

    rate(t) = peak t / warmup for t < warmup,
    else floor + (peak - floor) (1 + cos(pi (t - warmup) / (1 - warmup))) / 2,
    with t the progress of the task (Loshchilov and Hutter 2017, without restarts).

    Args:
        peak: the highest rate.
        warmup: the share of the task spent on the warm-up, in [0, 1).
        floor: the rate at the end, at most `peak`.

    Raises:
        InputError: an argument is out of range.
    """
    checks.number("cosine", "peak", peak)
    checks.number("cosine", "warmup", warmup, "[0, 1)")
    checks.floor("cosine", floor, peak)

    def schedule(progress):
        rising = peak * progress / jnp.maximum(warmup, 1e-12)
        angle = jnp.pi * (progress - warmup) / (1 - warmup)
        falling = floor + (peak - floor) * 0.5 * (1 + jnp.cos(angle))
        return jnp.where(progress < warmup, rising, falling)

    return schedule


def _optax_update(transformation: optax.GradientTransformation) -> Callable[..., Any]:
    """Its update, given of the extra arguments those that optax's own transformations know."""
    full = optax.with_extra_args_support(transformation)

    def update(updates, state, params, *, value, value_fn, grad, **_):
        return full.update(updates, state, params, value=value, value_fn=value_fn, grad=grad)

    return update


def _unused(name: str, taken: dict[str, Any]) -> str:
    number = 2
    unused = name
    while unused in taken:
        unused, number = f"{name}_{number}", number + 1
    return unused


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def matches(path: Any, patterns: Sequence[str]) -> bool:
    """Whether the path of a leaf, written "h_0/attn/c_attn/kernel", matches one of the patterns."""
    return paths.matches(_name(path), patterns)


def check_patterns(part: str, patterns: Sequence[str], params: Params) -> None:
    """Refuses a pattern that matches no path of the params, and lists the nearest paths."""
    names = [_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    paths.check(f"{part}: no parameter has a path that matches", patterns, names)


def check_covered(strategy: Strategy, params: Params) -> None:
    """Refuses params to which nothing but the gradient itself would be added.

    Raises:
        InputError: a parameter has no optimizer and is not held; the message names some.
    """
    found = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    bare = [_name(path) for path in found if not strategy.covers(path)]
    if bare:
        shown = ", ".join(bare[:3]) + (f" and {len(bare) - 3} more" if len(bare) > 3 else "")
        raise InputError(
            f"{strategy.name}: no optimizer makes a step for {shown}, so the gradient itself would "
            'be added to them. Hold them by freeze("*", but=...) or give them an optimizer, such '
            "as optax.adamw(1e-3); a strategy of your own that makes the step says so by "
            "optimizes=True."
        )


def reads_loss(part: Strategy, state: State, params: Params, *, batch: Batch, aux: Any) -> bool:
    """Whether its update makes anything of the value of the loss, or asks for another value.

    Args:
        part: one whose update leaves examples and loss_fn alone.
        state: of its init, on these params, batch and aux.
    """
    asked = []

    def value_fn(params):
        asked.append(1)
        return jnp.zeros(())

    def update(value):
        return part.update(
            params,
            state,
            params,
            batch=jax.tree.map(jnp.zeros_like, batch),
            aux=jax.tree.map(jnp.zeros_like, aux),
            loss_fn=None,
            key=jax.random.key(0),
            progress=jnp.zeros(()),
            step=jnp.zeros((), jnp.int32),
            value=value,
            value_fn=value_fn,
            grad=params,
        )

    traced = jax.make_jaxpr(update)(jnp.zeros(())).jaxpr
    read = [*traced.outvars, *(each for equation in traced.eqns for each in equation.invars)]
    return bool(asked) or any(each is traced.invars[0] for each in read)


def check_complete(name: str, params: Params) -> None:
    """Refuses params of which `only` has taken some out."""
    if any(leaf is None for leaf in jax.tree.leaves(params, is_leaf=lambda leaf: leaf is None)):
        raise InputError(
            f"{name} reads all params and cannot stand in only(...): put it into the chain by "
            "itself."
        )


def chosen_of(tree: Params, patterns: Sequence[str]) -> Params:
    """The tree, with None in place of the leaves whose path matches no pattern."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf if matches(path, patterns) else None, tree
    )


def merge(tree: Params, chosen: Params) -> Params:
    """The tree, with the leaves of `chosen` that are not None in place of its own."""
    return jax.tree.map(
        lambda new, old: old if new is None else new,
        chosen,
        tree,
        is_leaf=lambda leaf: leaf is None,
    )
