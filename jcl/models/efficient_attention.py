"""Attention in time and memory linear in the length: Performer and Linformer.

Either is a field `attention` of a model's config. Performer estimates the softmax by random
features and adds no params, so that one checkpoint serves exact attention and Performer alike.
Linformer learns to project keys and values along the length; since that mixes later tokens into
earlier ones, it is for bidirectional models alone.
"""

import functools
import zlib
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Shaped

from jcl import checks
from jcl.errors import InputError
from jcl.models.precision import FLOAT32, Precision, einsum

CHUNK = 128  # positions of a causal model whose products with each other are taken at once
_LOWEST = -1e9  # the exponent of a key that nobody attends to
_LEAST = 1e-18  # whose square is still a float32, since the backward pass divides by it


@dataclass(frozen=True)
class Performer:
    """FAVOR+ (Choromanski et al. 2021): softmax attention through positive random features.

    exp(q . k) = E[f(q) f(k)], f(x) = exp(w . x - |x|^2 / 2), w normal; the mean over `features`
    such w stands for the expectation, and sums over the keys are taken once for all queries. The w
    of a block of as many as a head is wide are orthogonal, each of the length that a normal vector
    would have (section 2.4), which lowers the variance. Every attention has its own w, one set for
    all its heads.

    The error falls as 1 / sqrt(features) and grows as the exponential of the norms of queries and
    keys: train with it, or train on, rather than put it into a trained model and leave it there.
    The features are no params, so no optimizer moves them. To redraw them by hand, make the model
    with another seed and keep the params.

    Differs from the paper in: no constant is added to the features; the largest exponent, which is
    taken out of the keys' features and cancels, is that of the keys up to a position where the
    model is causal, so that no later key matters even to the rounding.

    Attributes:
        features: how many; the paper takes 256 for heads of 64.
        seed: of the draw.
        redraw: draw anew from the key of each training step; without a key, as in evaluation, they
            are the seed's own.

    >>> import jcl
    >>> attention = jcl.models.Performer(features=256)
    >>> model = jcl.models.gpt2(jcl.models.GPT2Config(dropout=0.0, attention=attention))
    """

    features: int
    seed: int = 0
    redraw: bool = False

    def __post_init__(self):
        checks.whole("Performer", "features", self.features)
        checks.whole("Performer", "seed", self.seed, least=0)
        checks.flag("Performer", "redraw", self.redraw)


@dataclass(frozen=True)
class Linformer:
    """Wang et al. 2020: softmax(q (E K)^T) F V, with E and F [rank, length] learned.

    One pair E, F an attention, for all its heads (the paper's "headwise sharing"), as the params
    key_projection and value_projection [rank, positions]; a shorter input takes their first
    columns. Padded keys and values are zero before they are projected and so add nothing.

    Differs from the paper in: the first E and F are normal of deviation 1 / sqrt(positions), so
    that what is projected has the size of keys and values.

    Attributes:
        rank: to how many keys and values the length is reduced.

    >>> import jcl
    >>> model = jcl.models.bert(jcl.models.BertConfig(attention=jcl.models.Linformer(rank=128)))
    """

    rank: int

    def __post_init__(self):
        checks.whole("Linformer", "rank", self.rank)


def check(call: str, config: Any, *, causal: bool) -> None:
    """Passes a config whose attention can be had, with what else it asks for.

    Raises:
        InputError: it cannot.
    """
    attention = config.attention
    if attention is None:
        return
    if not isinstance(attention, Performer | Linformer):
        raise InputError(
            f"{call}(attention={attention!r}): None, which is exact, or such as "
            "jcl.models.Performer(features=256)."
        )
    if causal and isinstance(attention, Linformer):
        raise InputError(
            f"{call}(attention={attention}): Linformer mixes later tokens into earlier ones, so "
            "only a bidirectional model (BERT) can have it; take jcl.models.Performer."
        )
    if isinstance(attention, Performer) and config.dropout > 0:
        raise InputError(
            f"{call}(dropout={config.dropout}, attention={attention}): the rate is that of the "
            "attention weights too, which are never computed; give dropout=0.0."
        )
    if getattr(config, "window", None) is not None:
        raise InputError(
            f"{call}(window={config.window}, attention={attention}): sums over all earlier keys "
            "have no window; give window=None (and whole_layers=0), or leave attention exact."
        )


def check_exact(call: str, config: Any) -> None:
    """Passes a config of exact attention, which is all that Hugging Face has.

    Raises:
        InputError: it is another.
    """
    attention = getattr(config, "attention", None)
    if isinstance(attention, Performer):
        raise InputError(
            f"{call}: Hugging Face has no model with attention={attention}. The params are also "
            "those of exact attention; to write them as such give "
            "model._replace(config=dataclasses.replace(model.config, attention=None)), and "
            "from_pretrained the attention again."
        )
    if attention is not None:
        raise InputError(
            f"{call}: Hugging Face has no model with attention={attention} and no place for its "
            "projections: keep the params in the checkpoints of a run."
        )


def features_of(
    attention: Any, module: nn.Module, width: int, key: jax.Array | None
) -> Float[Array, "features width"]:
    """The w of one attention, told from others by its path: of the key, or of the seed."""
    if attention.redraw and key is not None:
        return orthogonal(key, attention.features, width)
    number = zlib.crc32("/".join(module.path).encode())
    with jax.ensure_compile_time_eval():  # a constant of the program, not drawn at every step
        own = jax.random.fold_in(jax.random.key(attention.seed), number)
        return orthogonal(own, attention.features, width)


def orthogonal(key: jax.Array, features: int, width: int) -> Float[Array, "features width"]:
    """Normal vectors, orthogonal to each other within each block of `width`."""
    key_direction, key_norm = jax.random.split(key)
    blocks = -(-features // width)
    normal = jax.random.normal(key_direction, (blocks, width, width))
    direction, upper = jnp.linalg.qr(normal)
    # Of all orthogonal matrices alike, which those of QR alone are not.
    direction = direction * jnp.sign(jnp.diagonal(upper, axis1=1, axis2=2))[:, None, :]
    rows = direction.swapaxes(1, 2).reshape(-1, width)[:features]
    norm = jnp.linalg.norm(jax.random.normal(key_norm, (features, width)), axis=1, keepdims=True)
    return rows * norm


def performer(
    query: Float[Array, "batch heads length width"],
    keys: Float[Array, "batch heads width length"],
    values: Float[Array, "batch heads width length"],
    mask: Shaped[Array, "batch length"] | None,
    features: Float[Array, "features width"],
    *,
    causal: bool,
    precision: Precision = FLOAT32,
) -> Float[Array, "batch heads length width"]:
    """The estimate of softmax attention by these features.

    out_t = sum_j (f(q_t) . f(k_j)) v_j / sum_j (f(q_t) . f(k_j)), over all j or, where it is
    causal, over j <= t: then within a chunk by the products of its queries and keys, and for those
    before it by the running sums of f(k) v and f(k), which a scan carries.

    Args:
        query: divided by the root of the width.
        keys: undivided.
        values: as the keys.
        mask: 0 at the keys nobody attends to, or None.
        features: such as `orthogonal` draws.
        causal: whether no position attends to a later one.
        precision: of all products.
    """
    batch, _, length, width = query.shape
    # q . k is what the estimate is of; its error is least where both share the division.
    query = query * width**0.25
    keys, values = keys.swapaxes(2, 3) * width**-0.25, values.swapaxes(2, 3)
    real = jnp.ones((batch, length), bool) if mask is None else mask > 0
    real = real[:, None, :, None]
    if causal:
        return _causal(query, keys, values, real, features, precision)
    exponents = _key_exponents(keys, real, features, precision)
    largest = jax.lax.stop_gradient(exponents.max(axis=(2, 3), keepdims=True))
    of_keys = jnp.exp(exponents - largest)
    of_query = _query_features(query, features, precision)
    sums = einsum("bhkm,bhkd->bhmd", of_keys, values, precision)
    total = einsum("bhqm,bhm->bhq", of_query, of_keys.sum(axis=2), precision)
    return einsum("bhqm,bhmd->bhqd", of_query, sums, precision) / _some(total[..., None])


def _query_features(query, features, precision):
    """f(q) up to a factor for each query, which cancels: |q|^2 is part of it."""
    exponents = einsum("bhld,md->bhlm", query, features, precision)
    return jnp.exp(exponents - jax.lax.stop_gradient(exponents.max(axis=-1, keepdims=True)))


def _key_exponents(keys, real, features, precision):
    """ln f(k), [batch, heads, length, features]."""
    exponents = einsum("bhld,md->bhlm", keys, features, precision)
    exponents = exponents - 0.5 * jnp.square(keys).sum(axis=-1, keepdims=True)
    return jnp.where(real, exponents, _LOWEST)


def _some(total):
    """The sum of a query's weights, or a small number where all of them are too small for float32,
    so that there is no division by 0."""
    return jnp.maximum(total, _LEAST)


def _causal(query, keys, values, real, features, precision):
    batch, heads, length, width = query.shape
    # At least two: XLA takes a loop of one turn apart, and on a CPU (jax 0.10.2) what it makes of
    # that read memory that nobody had written, and gave NaN in some compilations.
    number = max(-(-length // CHUNK), 2)
    size = -(-length // number)

    def cut(array):
        padding = [(0, 0), (0, 0), (0, number * size - length), (0, 0)]
        array = jnp.pad(array, padding).reshape(*array.shape[:2], number, size, array.shape[-1])
        return jnp.moveaxis(array, 2, 0)

    up_to = jnp.tri(size, dtype=bool)

    # The features of a chunk, many times the size of its queries and keys, are not kept for the
    # backward pass but computed again; the loop keeps XLA from seeing that.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def step(before, chunk):
        sums, total, largest = before
        query, keys, values, real = chunk
        exponents = _key_exponents(keys, real, features, precision)
        # The largest exponent of the keys up to each position: [batch, heads, size, 1].
        own = jax.lax.stop_gradient(exponents).max(axis=-1, keepdims=True)
        running = jnp.maximum(largest, jax.lax.cummax(own, axis=2))
        of_keys = jnp.exp(exponents - running)
        of_query = _query_features(query, features, precision)
        rescaled = jnp.exp(jnp.where(up_to, running.swapaxes(2, 3) - running, _LOWEST))
        weights = einsum("bhqm,bhkm->bhqk", of_query, of_keys, precision) * rescaled
        earlier = jnp.exp(largest - running)
        out = einsum("bhqk,bhkd->bhqd", weights, values, precision)
        out += earlier * einsum("bhqm,bhmd->bhqd", of_query, sums, precision)
        norm = weights.sum(axis=-1, keepdims=True)
        norm += earlier * einsum("bhqm,bhm->bhq", of_query, total, precision)[..., None]
        last = running[:, :, -1:]
        of_keys, kept = of_keys * jnp.exp(running - last), jnp.exp(largest - last)
        sums = kept * sums + einsum("bhkm,bhkd->bhmd", of_keys, values, precision)
        total = kept[..., 0] * total + of_keys.sum(axis=2)
        return (sums, total, last), out / _some(norm)

    shape = (batch, heads, len(features))
    before = jnp.zeros((*shape, width)), jnp.zeros(shape), jnp.full((batch, heads, 1, 1), _LOWEST)
    _, out = jax.lax.scan(step, before, tuple(cut(each) for each in (query, keys, values, real)))
    return jnp.moveaxis(out, 0, 2).reshape(batch, heads, number * size, width)[:, :, :length]


def projected(
    attention: Linformer,
    module: nn.Module,
    positions: int,
    mask: Shaped[Array, "batch length"] | None,
    keys: Float[Array, "batch heads width length"],
    values: Float[Array, "batch heads width length"],
    precision: Precision,
) -> tuple[Float[Array, "batch heads width rank"], Float[Array, "batch heads width rank"]]:
    """The keys and values of exact attention without a mask, projected by the module's params."""
    initializer, length = nn.initializers.normal(positions**-0.5), keys.shape[-1]

    def project(name, each):
        table = module.param(name, initializer, (attention.rank, positions))
        if mask is not None:
            each = jnp.where(mask[:, None, None, :] > 0, each, 0.0)
        return einsum("bhdl,kl->bhdk", each, table[:, :length], precision)

    return project("key_projection", keys), project("value_projection", values)
