"""Frozen params, and gradual unfreezing."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from jcl import checks, paths
from jcl.core import Strategy, check_patterns, matches, strategy
from jcl.errors import InputError


def freeze(
    where: str | Sequence[str] | Mapping[str, float] = "*",
    *,
    until: float = 1.0,
    but: str | Sequence[str] = (),
) -> Strategy:
    """Holds the chosen params still, for good or up to a share of every task.

    update_i <- 0 while progress < until_i, else update_i.

    The step itself is zeroed, not the gradient, so that weight decay and momentum move nothing
    either. What is frozen for good costs no backward pass where no part on the left reads its
    gradient: XLA drops it. Give the optimizer the rest alone then, `only("head/*", adamw(...))`.
    A dict of patterns and shares is gradual unfreezing, Howard and Ruder 2018 (ULMFiT), section
    3.3: the last layer first, one more after the other. Differs from the paper in: shares of the
    task's steps in place of epochs, and it begins anew with every task.

    Args:
        where: patterns of paths such as "h_*/attn/*"; `*` also matches slashes. Or {pattern: share
            of the task's progress at which it thaws}; the first pattern that matches counts.
        until: that share for all patterns; 1 freezes for good. Progress stays 0, and everything
            frozen, unless `jcl.start_task` gives the task's length.
        but: patterns of params that stay free although `where` matches them.

    Raises:
        InputError: no pattern, or a share outside [0, 1]; at init, if a pattern matches no path, if
            `but` spares all that one of `where` matches, or if all of that thaws at the shares of
            patterns before it.

    Stores: nothing.
    Place: right of the optimizer.
    Scenario: any.

    >>> import jcl, optax
    >>> head = jcl.chain(jcl.only("head/*", optax.adamw(1e-3)), jcl.freeze("*", but="head/*"))
    >>> gradual = jcl.chain(optax.adamw(1e-3), jcl.freeze({"h_1/*": 0.25, "h_0/*": 0.5}))
    """
    if isinstance(where, Mapping):
        if until != 1.0:
            raise InputError("freeze: the dict holds every pattern's share; leave out until.")
        shares = dict(where)
    else:
        shares = dict.fromkeys(paths.as_patterns(where), until)
    spared = paths.as_patterns(but)
    if not shares:
        raise InputError("freeze: no pattern, so nothing would be held; leave it out of the chain.")
    for pattern, share in shares.items():
        checks.number(f"freeze({pattern!r})", "until", share, "[0, 1]")
        _check_spared(pattern, pattern in spared or "*" in spared, spared)

    def init(params, **_):
        check_patterns("freeze", (*shares, *spared), params)
        leaves = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        for pattern, share in shares.items():
            chosen = [path for path in leaves if matches(path, (pattern,))]
            _check_spared(pattern, all(matches(path, spared) for path in chosen), spared)
            firsts = [next(each for each in shares if matches(path, (each,))) for path in chosen]
            if all(shares[first] != share for first in firsts):
                raise InputError(
                    f"freeze: {pattern!r} never counts, since all it matches is matched before by "
                    f"{', '.join(repr(first) for first in dict.fromkeys(firsts))}: put it first."
                )
        return ()

    def thaws(path):
        """The share at which it thaws, 1 for never; None where it is not held at all."""
        chosen = [share for pattern, share in shares.items() if matches(path, (pattern,))]
        return chosen[0] if chosen and not matches(path, spared) else None

    def update(updates, state, params, *, progress, **_):
        def hold(path, update):
            share = thaws(path)
            if share is None:
                return update
            zeros = jnp.zeros_like(update)
            return zeros if share == 1 else jnp.where(progress < share, zeros, update)

        return jax.tree_util.tree_map_with_path(hold, updates), state

    def covers(path):
        return thaws(path) == 1  # held for good, so that no optimizer has to make its step

    return strategy(name="freeze", side="step", covers=covers, init=init, update=update)


def _check_spared(pattern: str, spared: bool, but: Sequence[str]) -> None:
    if spared:
        raise InputError(
            f"freeze: but={list(but)} spares all that {pattern!r} matches, so that it freezes "
            "nothing: take the pattern out, or spare less."
        )
