"""The inner loop: from the params that all tasks share to those of one task."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jcl import checks, core, paths
from jcl.errors import InputError
from jcl.meta.episodes import without_batch_statistics


def adaptation(
    loss_fn: Callable[..., Any],
    optimizer: optax.GradientTransformation,
    *,
    where: str | Sequence[str] = "*",
    rates: str | None = None,
    one_by_one: bool = False,
    first_order: bool = False,
    remat: bool = False,
) -> Callable[..., Any]:
    """(params, support, key, steps) -> params, after so many steps of the optimizer on the support.

    theta <- theta + rates * optimizer(d loss(theta, support) / d theta), rates 1 if none are given.

    Args:
        loss_fn: (params, batch, key) -> (scalar, aux).
        optimizer: any of optax's; the result is differentiable through it. Adam takes the root of
            a squared gradient, whose derivative is infinite at 0: give it an eps_root, such as
            optax.adam(0.01, eps_root=1e-8).
        where: patterns of the paths of what adapts; the rest stays as it is shared.
        rates: the entry of the params that holds a rate for every number, as
            `jcl.meta.learned_rates` adds it; the loss and the result are without it.
        one_by_one: every step is on one example of the support, in their order, the first again
            after the last; else it is on all of them. One whose mask is 0 is left out.
        first_order: the inner gradients count as constants.
        remat: a step's activations are computed again where they are needed, so that with the
            number of steps only the adapted params and the optimizer's state grow.

    `steps` is a whole number or, where nothing is differentiated, an array: then it is data.

    Raises:
        InputError: an argument that makes no sense; at the call, a pattern that matches nothing, no
            rates, steps that are no whole number, or, for a model that normalizes over the batch,
            a support that is padded or learned from one by one.
    """
    check_inner_loop(
        "adaptation",
        loss_fn,
        optimizer,
        where,
        rates,
        one_by_one=one_by_one,
        first_order=first_order,
        remat=remat,
    )
    patterns = paths.as_patterns(where)

    def adapt(params: Any, support: Any, key: jax.Array | None, steps: Any) -> Any:
        if isinstance(steps, jax.Array):
            if not jnp.issubdtype(steps.dtype, jnp.integer):
                raise InputError(f"adaptation: steps of type {steps.dtype}, give whole numbers.")
        else:
            steps = checks.whole("adaptation", "steps", steps, least=0)
        scale = None
        if rates is not None:
            if rates not in params:
                raise InputError(
                    f"The params have no entry {rates!r}, only {', '.join(params)}: wrap the model "
                    "by jcl.meta.learned_rates(model, 0.01)."
                )
            params, scale = {**params}, core.chosen_of(params[rates], patterns)
            del params[rates]
        core.check_patterns("the inner loop", patterns, params)
        order, length = None, support["targets"].shape[0]
        if one_by_one and "mask" in support:
            real = (support["mask"] > 0).reshape(length, -1).any(axis=1)
            order, length = jnp.argsort(~real, stable=True), jnp.maximum(real.sum(), 1)

        def step(index: Any, carry: Any) -> Any:
            chosen, moments = carry
            batch = support
            if one_by_one:
                at = index % length if order is None else order[index % length]
                batch = jax.tree.map(
                    lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, at, 1), support
                )
            own = None if key is None else jax.random.fold_in(key, index)

            def loss(chosen):
                return loss_fn(core.merge(params, chosen), batch, own)[0]

            with without_batch_statistics(support, one_by_one):
                gradient = jax.grad(loss)(chosen)
            if first_order:
                gradient = jax.lax.stop_gradient(gradient)
            updates, moments = optimizer.update(gradient, moments, chosen)
            if scale is not None:
                updates = jax.tree.map(jnp.multiply, updates, scale)
            return optax.apply_updates(chosen, updates), moments

        chosen = core.chosen_of(params, patterns)
        carry = (chosen, optimizer.init(chosen))
        if isinstance(steps, jax.Array):
            chosen, _ = jax.lax.fori_loop(0, steps, step, carry)
            return core.merge(params, chosen)
        # XLA would join the two passes of a single step; a loop keeps its own apart.
        body = jax.checkpoint(step, prevent_cse=steps == 1) if remat else step
        if steps == 1:
            # Under vmap a loop would carry a copy of the shared params for every episode, and
            # multiply them one by one, where here they are one matmul's.
            chosen, _ = body(0, carry)
        else:
            (chosen, _), _ = jax.lax.scan(
                lambda carry, index: (body(index, carry), None), carry, jnp.arange(steps)
            )
        return core.merge(params, chosen)

    return adapt


def check_inner_loop(
    call: str,
    loss_fn: Any,
    optimizer: Any,
    where: Any = "*",
    rates: Any = None,
    **flags: Any,
) -> None:
    """Refuses what `adaptation` cannot work with.

    Args:
        call: what an error calls the function that was given it.
        loss_fn: as in `adaptation`, and the others too.
        flags: what is to be True or False, by name.

    Raises:
        InputError: one of them.
    """
    checks.function(call, "loss_fn", loss_fn, "jcl.losses.classify(model.apply)")
    if not isinstance(optimizer, optax.GradientTransformation):
        raise InputError(
            f"{call}(optimizer={optimizer!r}): that is no optax transformation; give the inner "
            "steps an optimizer such as optax.sgd(0.01)."
        )
    several = isinstance(where, Sequence) and len(where) > 0
    if not several or not all(isinstance(pattern, str) for pattern in where):
        raise InputError(
            f'{call}(where={where!r}): one or several patterns of paths, such as "head/*".'
        )
    if not isinstance(rates, str | None):
        raise InputError(f'{call}(rates={rates!r}): an entry of the params, such as "rates".')
    for field, value in flags.items():
        checks.flag(call, field, value)
