"""Another optimizer, with a learning rate and a weight decay of its own, for every module."""

from collections.abc import Mapping

import jax
import optax

from jcl.core import Params, Strategy, chain, check_patterns, lift, matches, only
from jcl.errors import InputError

Part = Strategy | optax.GradientTransformation


def by_path(parts: Mapping[str, Part], *, otherwise: Part | None = None) -> Strategy:
    """Each part on the params whose path matches its pattern, and on no others.

    Every parameter belongs to exactly one pattern, or to `otherwise`. So a learning rate, a weight
    decay and a schedule are chosen module by module; a dropout of its own for every module is
    `jcl.models.module_dropout`. A part's state is of the size of its own params, and a norm that
    it clips by is that of their gradients alone. Params whose part is `optax.set_to_zero()` are
    frozen, and XLA drops their backward pass where nothing else reads their gradient.

    Args:
        parts: {pattern of paths such as "layer_*/attention/*": optimizer, or a chain of parts};
            `*` also matches slashes.
        otherwise: for the params that no pattern matches.

    Raises:
        InputError: no pattern; at init, if a pattern matches no path, a parameter matches several
            patterns, or none while there is no `otherwise`, or if nothing is left for `otherwise`.

    >>> import jcl, optax
    >>> slow = jcl.scheduled(optax.adamw, jcl.cosine(1e-5, warmup=0.1), weight_decay=0.01)
    >>> plain = jcl.scheduled(optax.adamw, jcl.cosine(1e-5, warmup=0.1), weight_decay=0.0)
    >>> optimizer = jcl.by_path(
    ...     {
    ...         "layer_*/kernel": slow,  # the encoder's matrices
    ...         "classifier/*": optax.contrib.muon(1e-3),  # vectors go to the Adam within Muon
    ...         "embeddings/*": optax.set_to_zero(),  # as they are
    ...     },
    ...     otherwise=plain,  # biases and layer norms, which no weight decay should shrink
    ... )
    """
    lifted = {pattern: lift(part) for pattern, part in parts.items()}
    if not lifted:
        raise InputError(
            'by_path({}): no pattern; name at least one, as in by_path({"head/*": '
            "optax.adamw(1e-3)}, otherwise=optax.adamw(1e-5))."
        )
    members = [only(pattern, part) for pattern, part in lifted.items()]
    if otherwise is not None:
        members.append(only("*", otherwise, but=tuple(lifted)))
    sides = {part.side for part in members}
    # None of them sees what another does, so that their order has no meaning.
    whole = chain(*(part._replace(side="any") for part in members))

    def init(params, **rest):
        _check(tuple(lifted), params, otherwise)
        return whole.init(params, **rest)

    names = ", ".join([part.name for part in lifted.values()] + ["..."] * (otherwise is not None))
    side = next((side for side in ("step", "gradient") if side in sides), "any")
    return whole._replace(init=init, name=f"by_path({names})", side=side)


def _check(patterns: tuple[str, ...], params: Params, otherwise: Part | None) -> None:
    """Refuses params that do not each belong to one pattern or, where there is one, `otherwise`."""
    check_patterns("by_path", patterns, params)
    left = False
    for path, _ in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        found = [pattern for pattern in patterns if matches(path, (pattern,))]
        if len(found) > 1:
            raise InputError(
                f"by_path: {name} matches {' and '.join(map(repr, found))}, and would be moved by "
                "both: write the patterns so that each parameter matches one."
            )
        left = left or not found
        if otherwise is None and not found:
            raise InputError(
                f"by_path: {name} matches none of {', '.join(map(repr, patterns))}: add a pattern "
                "for it, or give otherwise=, such as optax.adamw(1e-3) or optax.set_to_zero()."
            )
    if otherwise is not None and not left:
        raise InputError(
            f"by_path: {', '.join(map(repr, patterns))} match every parameter, and nothing is left "
            "for otherwise=: leave it out."
        )
