"""Dropout of its own for every module of any model."""

from collections.abc import Mapping

from jcl import checks
from jcl.errors import InputError
from jcl.models import wrapping
from jcl.models.model import Model


def module_dropout(model: Model, rates: Mapping[str, float]) -> Model:
    """The model with dropout on the outputs of the chosen modules, beside its own.

    output = y * mask / (1 - rate), the mask Bernoulli with the chance 1 - rate.

    Srivastava et al. 2014. Off where the key is None. Each module's mask has a key folded with its
    path, so that it does not depend on which others are chosen.

    Args:
        model: any model made of Flax linen modules.
        rates: {pattern of paths such as "h_*/mlp": rate in [0, 1)}; the first that matches counts.

    Raises:
        InputError: a pattern matches no module, when the message lists the nearest, or none that
            is left by those before it.

    >>> import jcl
    >>> model = jcl.models.mlp(jcl.models.MLPConfig(inputs=4, hidden=(8, 8), classes=3))
    >>> model = jcl.models.module_dropout(model, {"layer_1": 0.5, "layer_*": 0.1})
    """
    for pattern, rate in rates.items():
        checks.number("module_dropout", repr(pattern), rate, "[0, 1)")
    names = list(wrapping.widths(model))
    by_path: dict[str, float] = {}
    for pattern, rate in rates.items():
        chosen = wrapping.chosen("module_dropout", pattern, names)
        if not set(chosen) - set(by_path):
            raise InputError(
                f"module_dropout: all that {pattern!r} matches is matched by a pattern before it, "
                f"and its rate of {rate} would count nowhere: put it first, or leave it out."
            )
        by_path |= {path: rate for path in chosen if path not in by_path}

    def change(params, path, x, output, key):
        return wrapping.dropout(output, by_path[path], key, path) if path in by_path else output

    return wrapping.changed(model, change)
