"""Shrink and perturb."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jcl import checks
from jcl.core import Params, Strategy, strategy


def shrink_and_perturb(
    shrink: float, perturb: float, init: Callable[[jax.Array], Params] | None = None
) -> Strategy:
    """Draws the params toward zero and adds noise at every boundary, to keep them able to learn.

    params <- shrink * params + perturb * noise.

    Ash and Adams 2020, section 4. The noise is a fresh initialization or standard Gaussian in
    every parameter, the paper's. It changes no loss; the optimizer's state stays, unless it
    stands in `per_task`.

    Args:
        shrink: in [0, 1]; 1 keeps the params.
        perturb: at least 0; the weight of the noise, Gaussian noise's standard deviation.
        init: (key) -> params, such as `model.init`; None draws Gaussian noise.

    Stores: a counter.
    Place: left of whatever anchors params at a boundary, which should keep the shrunken ones.
    Scenario: any.

    >>> import jcl, optax
    >>> model = jcl.models.mlp(jcl.models.MLPConfig(inputs=4, hidden=(8,), classes=3))
    >>> method = jcl.chain(jcl.shrink_and_perturb(0.8, 0.1, model.init), optax.adamw(1e-3))
    """
    checks.number("shrink_and_perturb", "shrink", shrink, "[0, 1]")
    checks.number("shrink_and_perturb", "perturb", perturb)
    if init is not None:
        checks.function("shrink_and_perturb", "init", init, "model.init")

    def count(params, **_):
        return jnp.zeros((), jnp.int32)  # without a key, boundaries still differ in their noise

    def consolidate(boundaries, params, *, key, **_):
        key = jax.random.fold_in(jax.random.key(0), boundaries) if key is None else key
        noise = optax.tree.random_like(key, params) if init is None else init(key)

        def move(parameter, noise):
            return None if parameter is None else shrink * parameter + perturb * noise

        moved = jax.tree.map(move, params, noise, is_leaf=lambda leaf: leaf is None)
        return boundaries + 1, moved

    return strategy(name="shrink_and_perturb", init=count, consolidate=consolidate)
