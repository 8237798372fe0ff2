"""Prototypical networks: classes are the means of their support's features."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jcl import checks
from jcl.losses import HIDDEN, OF_TOKENS, mask_labels, of_labels, outputs
from jcl.meta.episodes import divided, over_episodes, without_batch_statistics


def prototypes(
    features: Callable[..., jax.Array], ways: int, *, over: Literal["vmap", "map"] = "vmap"
) -> Callable[..., Any]:
    """The loss of the queries under a softmax of their distances to the classes' means.

    logit_c = -|f(x) - mean of f(support of c)|^2.

    Snell et al. 2017. Nothing adapts but the means, so it is cheap, and on images hard
    to beat. Support and queries are one batch of the features, which tells where these normalize
    over a batch. A class without support is never chosen.

    Args:
        features: (params, inputs, key) -> [examples, width], such as `model.features`; the head of
            the model is not used and has no gradient.
        ways: classes of an episode.
        over: as in `jcl.maml`; "map" has the activations of one episode in memory at a time.

    The batch holds episodes, as in `jcl.maml`.

    Raises:
        InputError: the number of ways is no whole number, or `over` is neither; at the first call,
            no support.

    >>> import jcl, optax
    >>> model = jcl.models.mlp(jcl.models.MLPConfig(inputs=4, hidden=(8,), classes=3))
    >>> learner = jcl.learner(jcl.prototypes(model.features, ways=3), optax.adam(1e-3))
    """
    ways = checks.whole("prototypes", "ways", ways)
    checks.function("prototypes", "features", features, "model.features")
    checks.one_of("prototypes", "over", over, ("vmap", "map"))

    def meta_loss(params, batch, key):
        def one(episode, key):
            support, queries = divided(episode)
            member = jax.nn.one_hot(support["targets"], ways)
            if "mask" in support:
                member = member * support["mask"][:, None]
            count = member.sum(axis=0)
            both = {
                name: jnp.concatenate([support[name], queries[name]])
                for name in ("inputs", *OF_TOKENS)
                if name in support
            }
            with without_batch_statistics(support):
                hidden = outputs(features, params, both, key)
            given, asked = jnp.split(hidden, [member.shape[0]])
            means = member.T @ given / jnp.maximum(count, 1.0)[:, None]
            distance = jnp.sum((asked[:, None] - means) ** 2, axis=-1)
            known = jnp.broadcast_to(count > 0, distance.shape)
            # Below any distance, however large the features.
            farthest = jax.lax.stop_gradient(distance.max(axis=-1, keepdims=True))
            logits = jnp.where(known, -distance, HIDDEN - 2 * farthest)
            if "targets" in queries:
                return of_labels(logits, queries, ~known)
            return jnp.zeros(()), {"logits": mask_labels(logits, queries.get("label_mask"))}

        values, aux = over_episodes(one, batch, key, over)
        return jnp.mean(values), {"logits": aux["logits"], "losses": values}

    return meta_loss
