"""The Llama family (Touvron et al. 2023) in Flax linen: Llama, Mistral, Qwen2, SmolLM.

RMS norms, rotary positions, gated feed-forward layers, queries in groups that share keys and
values. Parameters are named as Hugging Face names them; kernels are [in, out].
"""

import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int, Shaped

from jcl import checks
from jcl.errors import InputError
from jcl.models import efficient_attention, precision
from jcl.models.attention import (
    Slots,
    cached_attention,
    causal_attention,
    decoding,
    next_slots,
    places,
)
from jcl.models.efficient_attention import Linformer, Performer, features_of, performer
from jcl.models.layers import Alone, run, split
from jcl.models.model import Model, Tensor, setting
from jcl.models.precision import FLOAT32, Precision, matmul, matmul_transposed


@dataclass(frozen=True)
class Rope:
    """How fast the pairs of a head turn with the position (Su et al. 2021), and how they are
    slowed down for inputs longer than those of the first training.

    Attributes:
        kind: "default"; "linear" (all by the factor); "dynamic" (a larger base, once the input is
            longer than the model's positions); "llama3" (the slow pairs by the factor); "yarn"
            (Peng et al. 2023).
        base: theta, such as 10000 or 500000.
        factor: of the slowing.
        original: length of the inputs of the first training ("llama3" and "yarn").
        low, high: "llama3": pairs that turn less than `low` times in `original` are slowed by the
            factor, those that turn more than `high` times not at all.
        slow, fast: the same for "yarn".
        scale: "yarn": of cosine and sine; None is 0.1 ln(factor) + 1.
        truncate: "yarn": whether the bounds between pairs are whole.
    """

    kind: str = "default"
    base: float = 10000.0
    factor: float = 1.0
    original: int = 0
    low: float = 1.0
    high: float = 4.0
    slow: float = 1.0
    fast: float = 32.0
    scale: float | None = None
    truncate: bool = True

    def __post_init__(self):
        checks.one_of("Rope", "kind", self.kind, ROPES)
        checks.number("Rope", "base", self.base, "(1, inf)")
        checks.number("Rope", "factor", self.factor, "[1, inf)")
        if self.kind in ("llama3", "yarn"):
            checks.whole("Rope", "original", self.original)


ROPES = ("default", "linear", "dynamic", "llama3", "yarn")


@dataclass(frozen=True)
class LlamaConfig:
    """The shape of a model of the Llama family.

    Attributes:
        vocab_size: rows of the token table.
        positions: the longest input.
        width: of the residual stream.
        inner: of the feed-forward layers.
        layers: number of blocks.
        heads: of every attention.
        key_value_heads: heads of the keys and values, a divisor of heads; 0 is as many.
        head_width: even; 0 is width / heads.
        tied: whether the head is the token table.
        family: "llama", "mistral" or "qwen2", by which Hugging Face knows it; Qwen2 has biases at
            queries, keys and values.
        bias: "llama": whether the Dense modules of attention have biases.
        inner_bias: "llama": whether those of the feed-forward layers have.
        window: "mistral" and "qwen2": how many positions one attends to; None is all.
        whole_layers: "qwen2": how many of the first layers have no window.
        rope: see `Rope`.
        dropout: rate on the attention weights.
        epsilon: of the norms.
        precision: types of the params and products.
        remat: keep only what enters a block for the backward pass, which computes the rest again.
        attention: None is exact; a Performer needs dropout=0.0 and no window, and without a cache
            `generate` computes all tokens at every step.
    """

    vocab_size: int = 32000
    positions: int = 2048
    width: int = 4096
    inner: int = 11008
    layers: int = 32
    heads: int = 32
    key_value_heads: int = 0
    head_width: int = 0
    tied: bool = False
    family: str = "llama"
    bias: bool = False
    inner_bias: bool = False
    window: int | None = None
    whole_layers: int = 0
    rope: Rope = Rope()
    dropout: float = 0.0
    epsilon: float = 1e-6
    precision: Precision = FLOAT32
    remat: bool = False
    attention: Performer | Linformer | None = None

    def __post_init__(self):
        def refuse(why):
            raise InputError(f"LlamaConfig(family={self.family!r}): {why}.")

        for field in ("vocab_size", "positions", "width", "inner", "layers", "heads"):
            checks.whole("LlamaConfig", field, getattr(self, field))
        # Past the frozen dataclass's own guard, so that two ways to say the same shape are equal.
        if self.key_value_heads == 0:
            object.__setattr__(self, "key_value_heads", self.heads)
        if self.head_width == 0:
            if self.width % self.heads:
                refuse(f"width={self.width} is no multiple of heads={self.heads}; say head_width")
            object.__setattr__(self, "head_width", self.width // self.heads)
        if self.heads % checks.whole("LlamaConfig", "key_value_heads", self.key_value_heads):
            refuse(f"heads={self.heads} is no multiple of key_value_heads={self.key_value_heads}")
        if checks.whole("LlamaConfig", "head_width", self.head_width, least=2) % 2:
            refuse(f"head_width={self.head_width} must be even: its pairs are turned")
        checks.one_of("LlamaConfig", "family", self.family, tuple(CLASSES))
        if self.family != "llama" and (self.bias or self.inner_bias):
            refuse("only Llama may have bias or inner_bias")
        if self.window is not None:
            checks.whole("LlamaConfig", "window", self.window)
            if self.family == "llama":
                refuse("Llama has no window; Mistral and Qwen2 may")
        checks.whole("LlamaConfig", "whole_layers", self.whole_layers, least=0)
        if self.whole_layers and (self.family != "qwen2" or self.window is None):
            refuse("whole_layers is for Qwen2 with a window")
        checks.number("LlamaConfig", "dropout", self.dropout, "[0, 1)")
        checks.number("LlamaConfig", "epsilon", self.epsilon, "(0, 1)")
        for field in ("tied", "bias", "inner_bias"):
            checks.flag("LlamaConfig", field, getattr(self, field))
        precision.check("LlamaConfig", self)
        efficient_attention.check("LlamaConfig", self, causal=True)


CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
}


def llama(config: LlamaConfig) -> Model:
    """A model of the Llama family with random weights.

    >>> import jax, jax.numpy as jnp, jcl
    >>> config = jcl.models.LlamaConfig(
    ...     258, positions=8, width=8, inner=16, layers=1, heads=4, key_value_heads=2)
    >>> model = jcl.models.llama(config)
    >>> model.apply(model.init(jax.random.key(0)), jnp.zeros((2, 8), jnp.int32)).shape
    (2, 8, 258)
    """
    module = Llama(config)

    def init(key: jax.Array) -> Any:
        params = module.init(key, jnp.zeros((1, 1), jnp.int32), None)["params"]
        return precision.cast(params, config.precision)

    def apply(
        params: Any,
        inputs: Int[Array, "batch length"],
        key: jax.Array | None = None,
        *,
        attention_mask: Shaped[Array, "batch length"] | None = None,
    ) -> Float[Array, "batch length vocab"]:
        logits = module.apply({"params": params}, inputs, key, attention_mask)
        assert isinstance(logits, jax.Array)
        return logits

    def features(
        params: Any,
        inputs: Int[Array, "batch length"],
        key: jax.Array | None = None,
        *,
        attention_mask: Shaped[Array, "batch length"] | None = None,
    ) -> Float[Array, "batch length width"]:
        hidden = module.apply({"params": params}, inputs, key, attention_mask, head=False)
        assert isinstance(hidden, jax.Array)
        return hidden

    def head(
        params: Any, hidden: Float[Array, "*rows width"], key: jax.Array | None = None
    ) -> Float[Array, "*rows vocab"]:
        rows = hidden.reshape(-1, hidden.shape[-1])
        if config.tied:
            logits = matmul_transposed(rows, params["embed_tokens"], config.precision)
        else:
            logits = Alone(functools.partial(_lm_head, config)).apply({"params": params}, rows)
        assert isinstance(logits, jax.Array)
        return logits.reshape(*hidden.shape[:-1], -1)

    attentions = [f"layers_{layer}/self_attn" for layer in range(config.layers)]
    cached = decoding(module, attentions, config.key_value_heads, config.head_width)
    return Model(init, apply, config, features, head, **({} if config.attention else cached))


# What Hugging Face's checkpoints may hold beside the parameters: the frequencies of the rotation.
PREFIX = "model."
IGNORED = (r"rotary_emb\.inv_freq$",)


def from_hf(settings: dict[str, Any]) -> LlamaConfig:
    """The config.json of a Hugging Face Llama, Mistral or Qwen2.

    Raises:
        InputError: it asks for what this family has not, with the field.
    """
    family = settings["model_type"]
    read = functools.partial(setting, family, settings)
    read("hidden_act", "silu", only=("silu", "swish"))
    layers, window, whole = read("num_hidden_layers", 32), None, 0
    if family == "mistral":
        window = read("sliding_window", 4096)
    if family == "qwen2" and read("use_sliding_window", False):
        window, whole = read("sliding_window", 4096), min(read("max_window_layers", 28), layers)
        kinds = ["full_attention"] * whole + ["sliding_attention"] * (layers - whole)
        read("layer_types", kinds, only=(kinds, None))
        window, whole = (window, whole) if whole < layers else (None, 0)
    positions = read("max_position_embeddings", _POSITIONS[family])
    return LlamaConfig(
        vocab_size=read("vocab_size", 151936 if family == "qwen2" else 32000),
        positions=positions,
        width=read("hidden_size", 4096),
        inner=read("intermediate_size", _INNER[family]),
        layers=layers,
        heads=read("num_attention_heads", 32),
        key_value_heads=read("num_key_value_heads", 8 if family == "mistral" else 0) or 0,
        head_width=read("head_dim", 0) or 0,
        tied=read("tie_word_embeddings", False),
        family=family,
        bias=family == "llama" and read("attention_bias", False),
        inner_bias=family == "llama" and read("mlp_bias", False),
        window=window,
        whole_layers=whole,
        rope=_read_rope(family, settings, positions),
        dropout=float(read("attention_dropout", 0.0)),
        epsilon=read("rms_norm_eps", 1e-6),
    )


_POSITIONS = {"llama": 2048, "mistral": 131072, "qwen2": 32768}
_INNER = {"llama": 11008, "mistral": 14336, "qwen2": 22016}
# our field -> Hugging Face's, by the kind of rotation
_FIELDS = {
    "default": {},
    "linear": {"factor": "factor"},
    "dynamic": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "original": "original_max_position_embeddings",
        "low": "low_freq_factor",
        "high": "high_freq_factor",
    },
    "yarn": {
        "factor": "factor",
        "original": "original_max_position_embeddings",
        "slow": "beta_slow",
        "fast": "beta_fast",
        "scale": "attention_factor",
        "truncate": "truncate",
    },
}


def _read_rope(family: str, settings: dict[str, Any], positions: int) -> Rope:
    """From rope_parameters, or from rope_theta and rope_scaling as they were before."""
    found = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    found = {"rope_theta": settings.get("rope_theta", 10000.0), **found}
    found = {"original_max_position_embeddings": positions, **found}
    read = functools.partial(setting, family, found)
    nested = [field for field, value in found.items() if isinstance(value, dict)]
    if nested:
        raise InputError(
            f"config.json: the rotations differ by layer ({', '.join(nested)}), and jcl's {family} "
            "has one for all: take another checkpoint."
        )
    kind = found.get("rope_type", found.get("type", "default"))
    setting(family, {"rope_type": kind}, "rope_type", "default", only=ROPES)
    read("partial_rotary_factor", 1.0, only=(1.0,))
    for field in ("mscale", "mscale_all_dim"):
        read(field, None, only=(None,))
    given = {ours: found.get(theirs) for ours, theirs in _FIELDS[kind].items()}
    whole = {"original": int, "truncate": bool}
    given = {
        ours: whole.get(ours, float)(value) for ours, value in given.items() if value is not None
    }
    if kind == "yarn" and "factor" not in given:
        given["factor"] = positions / given["original"]
    return Rope(kind=kind, base=float(found["rope_theta"]), **given)


def to_hf(config: LlamaConfig) -> dict[str, Any]:
    """The config.json of this shape."""
    rope: dict[str, Any] = {"rope_type": config.rope.kind, "rope_theta": config.rope.base}
    for ours, theirs in _FIELDS[config.rope.kind].items():
        rope[theirs] = getattr(config.rope, ours)
    settings = {
        "architectures": [CLASSES[config.family]],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.positions,
        "hidden_size": config.width,
        "intermediate_size": config.inner,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.key_value_heads,
        "head_dim": config.head_width,
        "hidden_act": "silu",
        "rms_norm_eps": config.epsilon,
        "tie_word_embeddings": config.tied,
        "attention_dropout": config.dropout,
        "rope_parameters": rope,
    }
    if config.family == "llama":
        settings |= {"attention_bias": config.bias, "mlp_bias": config.inner_bias}
    if config.family == "mistral":
        settings |= {"sliding_window": config.window}
    if config.family == "qwen2":
        settings |= {
            "use_sliding_window": config.window is not None,
            "sliding_window": config.window,
            "max_window_layers": config.whole_layers,
        }
    return settings


def tensors(config: LlamaConfig) -> dict[str, Tensor]:
    """Path of each parameter -> where Hugging Face keeps it."""
    found = {
        "embed_tokens": Tensor("model.embed_tokens.weight"),
        "norm/scale": Tensor("model.norm.weight"),
    }
    if not config.tied:
        found["lm_head/kernel"] = Tensor("lm_head.weight", transpose=True)
    biased = {
        **dict.fromkeys(("q_proj", "k_proj", "v_proj"), config.bias or config.family == "qwen2"),
        "o_proj": config.bias,
    }
    for layer in range(config.layers):
        ours, theirs = f"layers_{layer}", f"model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            found[f"{ours}/{norm}/scale"] = Tensor(f"{theirs}.{norm}.weight")
        inner = dict.fromkeys(("gate_proj", "up_proj", "down_proj"), config.inner_bias)
        for part, modules in (("self_attn", biased), ("mlp", inner)):
            for name, bias in modules.items():
                place = f"{theirs}.{part}.{name}"
                found[f"{ours}/{part}/{name}/kernel"] = Tensor(f"{place}.weight", transpose=True)
                if bias:
                    found[f"{ours}/{part}/{name}/bias"] = Tensor(f"{place}.bias")
    return found


def copies(config: LlamaConfig) -> dict[str, str]:
    """Tensors that a checkpoint may hold as well -> path of the parameter they repeat."""
    return {"lm_head.weight": "embed_tokens"} if config.tied else {}


class Linear(nn.Module):
    """x kernel (+ bias) on [rows, in]: see `jcl.models.layers.Dense`."""

    features: int
    bias: bool = False
    precision: Precision = FLOAT32

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.normal(0.02), (x.shape[-1], self.features))
        mixed = matmul(x, kernel, self.precision)
        if not self.bias:
            return mixed
        return mixed + self.param("bias", nn.initializers.zeros, (self.features,))


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + epsilon) * scale, the root in float32 (Zhang and Sennrich 2019)."""

    epsilon: float

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        wide = x.astype(jnp.float32)
        root = jax.lax.rsqrt(jnp.square(wide).mean(axis=-1, keepdims=True) + self.epsilon)
        return (wide * root).astype(x.dtype) * scale


class Attention(nn.Module):
    config: LlamaConfig
    window: int | None

    @nn.compact
    def __call__(self, x, turn, key, mask):
        config, (rows, width), length = self.config, x.shape, turn[0].shape[-2]
        bias, size = config.bias or config.family == "qwen2", config.head_width

        def heads(name, number):
            mixed = Linear(number * size, bias, config.precision, name=name)(x)
            return mixed.reshape(rows // length, length, number, size).transpose(0, 2, 1, 3)

        query = _turned(heads("q_proj", config.heads), turn) * size**-0.5
        keys = _turned(heads("k_proj", config.key_value_heads), turn)
        values = heads("v_proj", config.key_value_heads)
        if isinstance(mask, Slots):
            out = cached_attention(self, query, keys, values, mask, self.window)
        else:
            keys, values = (
                jnp.repeat(each.swapaxes(2, 3), config.heads // config.key_value_heads, axis=1)
                for each in (keys, values)
            )
            if config.attention is not None:
                drawn = features_of(config.attention, self, size, key)
                out = performer(
                    query, keys, values, mask, drawn, causal=True, precision=config.precision
                )
            else:
                out = causal_attention(
                    query, keys, values, mask, config.dropout, key, self.window, config.precision
                )
        out = out.transpose(0, 2, 1, 3).reshape(rows, config.heads * size)
        return Linear(width, config.bias, config.precision, name="o_proj")(out)


class MLP(nn.Module):
    config: LlamaConfig

    @nn.compact
    def __call__(self, x):
        config = self.config
        options = {"bias": config.inner_bias, "precision": config.precision}
        gate = Linear(config.inner, name="gate_proj", **options)(x)
        up = Linear(config.inner, name="up_proj", **options)(x)
        return Linear(x.shape[-1], name="down_proj", **options)(nn.silu(gate) * up)


class Block(nn.Module):
    config: LlamaConfig
    window: int | None

    @nn.compact
    def __call__(self, x, turn, key, mask):
        norm = RMSNorm(self.config.epsilon, name="input_layernorm")(x)
        x = x + Attention(self.config, self.window, name="self_attn")(norm, turn, key, mask)
        norm = RMSNorm(self.config.epsilon, name="post_attention_layernorm")(x)
        return x + MLP(self.config, name="mlp")(norm)


class Llama(nn.Module):
    """inputs [batch, length] -> logits [batch, length, vocab]."""

    config: LlamaConfig

    @nn.compact
    def __call__(self, inputs, key, mask=None, head=True, cached=False):
        config, (batch, length) = self.config, inputs.shape
        if length > config.positions and config.rope.kind != "dynamic":
            raise InputError(
                f"The input is {length} tokens long and the model has {config.positions} positions:"
                " cut the text in shorter blocks, or give the model more positions, on which no "
                "weight depends."
            )
        if cached:
            mask = next_slots(self, inputs, mask)
        table = self.param(
            "embed_tokens", nn.initializers.normal(0.02), (config.vocab_size, config.width)
        )
        x = table[inputs].astype(jnp.float32).reshape(batch * length, config.width)
        place = jnp.arange(length)[None] if mask is None else places(mask)
        turn = _turns(config, place)
        for layer, key_layer in enumerate(split(key, config.layers)):
            window = None if layer < config.whole_layers else config.window
            block = Block(config, window, name=f"layers_{layer}")
            x = run(config.remat and not cached, block, x, turn, key_layer, mask)
        if cached:
            x, length = x.reshape(batch, length, -1)[:, -1], 1
        x = RMSNorm(config.epsilon, name="norm")(x)
        if head and config.tied:
            x = matmul_transposed(x, table, config.precision)
        elif head:
            x = _lm_head(config)(x)
        return x.reshape(batch, length, -1)


def _lm_head(config):
    return Linear(config.vocab_size, precision=config.precision, name="lm_head")


def _turned(x, turn):
    """Pairs (i, i + width / 2) of the heads [batch, heads, length, width], each turned by the angle
    of its position."""
    cosine, sine = turn
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate(
        [first * cosine - second * sine, second * cosine + first * sine], axis=-1
    )


def _turns(config, place):
    """Cosine and sine for positions [batch, length]: [batch, 1, length, head_width / 2]."""
    rope, size = config.rope, config.head_width
    share = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
    base = rope.base
    if rope.kind == "dynamic":
        longest = jnp.maximum(place.max() + 1, config.positions)
        longer = rope.factor * longest / config.positions - (rope.factor - 1)
        base = base * longer ** (size / (size - 2))
        speed = 1.0 / base**share
    else:
        speed = 1.0 / np.float32(base) ** share
    scale = 1.0
    if rope.kind == "linear":
        speed = speed / np.float32(rope.factor)
    if rope.kind == "llama3":
        laps = rope.original * speed / (2 * np.pi)
        keep = np.clip((laps - rope.low) / (rope.high - rope.low), 0, 1)
        speed = (1 - keep) * speed / rope.factor + keep * speed
    if rope.kind == "yarn":

        def pair(laps):
            """The pair that turns so often in the original length; a fraction, between pairs."""
            return size * math.log(rope.original / (laps * 2 * np.pi)) / (2 * math.log(base))

        low, high = pair(rope.fast), pair(rope.slow)
        if rope.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, size - 1)
        width = (high - low) or 0.001
        keep = 1 - np.clip((np.arange(size // 2) - low) / width, 0, 1)
        speed = (1 - keep) * speed / rope.factor + keep * speed
        scale = 0.1 * math.log(rope.factor) + 1 if rope.scale is None else rope.scale
    angle = place[:, None, :, None] * jnp.asarray(speed, jnp.float32)
    return scale * jnp.cos(angle), scale * jnp.sin(angle)
