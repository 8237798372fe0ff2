"""GPT-2 (Radford et al. 2019) in Flax linen, behind pure functions of params.

Parameters are named as Hugging Face names them, kernels are [in, out] as its Conv1D's.
"""

import functools
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
from jcl.models.layers import Dense, LayerNorm, dropout, gelu_tanh, run, split
from jcl.models.model import Model, Tensor, setting
from jcl.models.precision import FLOAT32, Precision, matmul_transposed


@dataclass(frozen=True)
class GPT2Config:
    """The shape of a GPT-2.

    Attributes:
        vocab_size: rows of the token table, which is the head as well.
        positions: the longest input.
        width: of the residual stream; a multiple of heads.
        layers: number of blocks.
        heads: of every attention.
        dropout: rate after the embedding, the attention weights and both branches of a block.
        epsilon: of the layer norms.
        precision: types of the params and products.
        remat: keep only what enters a block for the backward pass, which computes the rest again.
        attention: None is exact; a Performer needs dropout=0.0, and without a cache `generate`
            computes all tokens at every step.
    """

    vocab_size: int = 50257
    positions: int = 1024
    width: int = 768
    layers: int = 12
    heads: int = 12
    dropout: float = 0.1
    epsilon: float = 1e-5
    precision: Precision = FLOAT32
    remat: bool = False
    attention: Performer | Linformer | None = None

    def __post_init__(self):
        for field in ("vocab_size", "positions", "width", "layers", "heads"):
            checks.whole("GPT2Config", field, getattr(self, field))
        if self.width % self.heads:
            raise InputError(
                f"GPT2Config(width={self.width}, heads={self.heads}): the width must be a multiple "
                "of the heads."
            )
        checks.number("GPT2Config", "dropout", self.dropout, "[0, 1)")
        checks.number("GPT2Config", "epsilon", self.epsilon, "(0, 1)")
        precision.check("GPT2Config", self)
        efficient_attention.check("GPT2Config", self, causal=True)


GPT2_SIZES = {
    "small": GPT2Config(),
    "medium": GPT2Config(width=1024, layers=24, heads=16),
    "large": GPT2Config(width=1280, layers=36, heads=20),
    "xl": GPT2Config(width=1600, layers=48, heads=25),
}


def gpt2(config: GPT2Config | str) -> Model:
    """GPT-2 with random weights, of a given shape or a published size.

    Args:
        config: a GPT2Config, or "small", "medium", "large" or "xl".

    >>> import jax, jax.numpy as jnp, jcl
    >>> model = jcl.models.gpt2(jcl.models.GPT2Config(258, positions=8, width=4, layers=1, heads=2))
    >>> model.apply(model.init(jax.random.key(0)), jnp.zeros((2, 8), jnp.int32)).shape
    (2, 8, 258)
    """
    if isinstance(config, str):
        if config not in GPT2_SIZES:
            raise InputError(f"gpt2({config!r}): the published sizes are {', '.join(GPT2_SIZES)}.")
        config = GPT2_SIZES[config]
    module = GPT2(config)

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
        return matmul_transposed(hidden, params["wte"], config.precision)

    attentions = [f"h_{layer}/attn" for layer in range(config.layers)]
    cached = decoding(module, attentions, config.heads, config.width // config.heads)
    return Model(init, apply, config, features, head, **({} if config.attention else cached))


# What Hugging Face's GPT-2 keeps beside the parameters: causal masks.
PREFIX = "transformer."
IGNORED = (r"^(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)$",)


def from_hf(settings: dict[str, Any]) -> GPT2Config:
    """The config.json of a Hugging Face GPT-2.

    Raises:
        InputError: it asks for what this GPT-2 has not, with the field.
    """
    read = functools.partial(setting, "gpt2", settings)
    width = read("n_embd", 768)
    read("activation_function", "gelu_new", only=("gelu_new", "gelu_pytorch_tanh"))
    read("n_inner", None, only=(None, 4 * width))
    for field, value in (
        ("scale_attn_weights", True), ("scale_attn_by_inverse_layer_idx", False),
        ("add_cross_attention", False), ("tie_word_embeddings", True),
    ):  # fmt: skip
        read(field, value, only=(value,))
    rate = read("resid_pdrop", 0.1)
    for field in ("embd_pdrop", "attn_pdrop"):
        read(field, 0.1, only=(rate,))
    return GPT2Config(
        vocab_size=read("vocab_size", 50257),
        positions=read("n_positions", 1024),
        width=width,
        layers=read("n_layer", 12),
        heads=read("n_head", 12),
        dropout=float(rate),
        epsilon=read("layer_norm_epsilon", 1e-5),
    )


def to_hf(config: GPT2Config) -> dict[str, Any]:
    """The config.json of this shape."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_positions": config.positions,
        "n_embd": config.width,
        "n_layer": config.layers,
        "n_head": config.heads,
        "activation_function": "gelu_new",
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "layer_norm_epsilon": config.epsilon,
        "tie_word_embeddings": True,
    }


def tensors(config: GPT2Config) -> dict[str, Tensor]:
    """Path of each parameter -> where Hugging Face keeps it."""
    found = {"wte": Tensor("transformer.wte.weight"), "wpe": Tensor("transformer.wpe.weight")}

    def add(path, *leaves):
        module = "transformer." + path.replace("h_", "h.").replace("/", ".")
        for ours, theirs in leaves:
            found[f"{path}/{ours}"] = Tensor(f"{module}.{theirs}")

    for layer in range(config.layers):
        for norm in ("ln_1", "ln_2"):
            add(f"h_{layer}/{norm}", ("scale", "weight"), ("bias", "bias"))
        for dense in ("attn/c_attn", "attn/c_proj", "mlp/c_fc", "mlp/c_proj"):
            add(f"h_{layer}/{dense}", ("kernel", "weight"), ("bias", "bias"))
    add("ln_f", ("scale", "weight"), ("bias", "bias"))
    return found


def copies(config: GPT2Config) -> dict[str, str]:
    """Tensors that a checkpoint may hold as well -> path of the parameter they repeat."""
    return {"lm_head.weight": "wte"}


class Attention(nn.Module):
    config: GPT2Config

    @nn.compact
    def __call__(self, x, length, key, mask):
        config, (rows, width) = self.config, x.shape
        key_weights, key_out = split(key, 2)
        mixed = Dense(3 * width, 0.02, config.precision, name="c_attn")(x)
        mixed = mixed.reshape(rows // length, length, 3, config.heads, width // config.heads)
        # Heads lead and the keys' positions come last, so that every product, in the backward pass
        # too, is a batched matmul of the order a CPU is fastest at.
        query = mixed[:, :, 0].transpose(0, 2, 1, 3)
        keys, values = mixed[:, :, 1:].transpose(2, 0, 3, 4, 1)
        query = query / np.sqrt(query.shape[-1])
        if isinstance(mask, Slots):
            keys, values = keys.swapaxes(2, 3), values.swapaxes(2, 3)
            out = cached_attention(self, query, keys, values, mask)
        elif config.attention is not None:
            drawn = features_of(config.attention, self, query.shape[-1], key_weights)
            out = performer(
                query, keys, values, mask, drawn, causal=True, precision=config.precision
            )
        else:
            out = causal_attention(
                query, keys, values, mask, config.dropout, key_weights, precision=config.precision
            )
        out = out.transpose(0, 2, 1, 3).reshape(rows, width)
        out = Dense(width, _residual_scale(config), config.precision, name="c_proj")(out)
        return dropout(out, config.dropout, key_out)


class MLP(nn.Module):
    config: GPT2Config

    @nn.compact
    def __call__(self, x, key):
        config, width = self.config, x.shape[-1]
        hidden = gelu_tanh(Dense(4 * width, 0.02, config.precision, name="c_fc")(x))
        out = Dense(width, _residual_scale(config), config.precision, name="c_proj")(hidden)
        return dropout(out, config.dropout, key)


class Block(nn.Module):
    config: GPT2Config

    @nn.compact
    def __call__(self, x, length, key, mask):
        key_attention, key_mlp = split(key, 2)
        norm = LayerNorm(self.config.epsilon, name="ln_1")(x)
        x = x + Attention(self.config, name="attn")(norm, length, key_attention, mask)
        norm = LayerNorm(self.config.epsilon, name="ln_2")(x)
        return x + MLP(self.config, name="mlp")(norm, key_mlp)


class GPT2(nn.Module):
    """inputs [batch, length] -> logits [batch, length, vocab]; the head is the token table."""

    config: GPT2Config

    @nn.compact
    def __call__(self, inputs, key, mask=None, head=True, cached=False):
        config, (batch, length) = self.config, inputs.shape
        if length > config.positions:
            raise InputError(
                f"The input is {length} tokens long and the model has {config.positions} positions:"
                " cut the text in shorter blocks, or give the model more positions."
            )
        if cached:
            mask = next_slots(self, inputs, mask)
        initializer = nn.initializers.normal(0.02)
        wte = self.param("wte", initializer, (config.vocab_size, config.width))
        wpe = self.param("wpe", initializer, (config.positions, config.width))
        key_embedding, *keys = split(key, 1 + config.layers)
        place = wpe[:length] if mask is None else wpe[places(mask)]
        x = wte[inputs].astype(jnp.float32) + place.astype(jnp.float32)
        x = dropout(x.reshape(batch * length, config.width), config.dropout, key_embedding)
        for layer in range(config.layers):
            block = Block(config, name=f"h_{layer}")
            x = run(config.remat and not cached, block, x, length, keys[layer], mask)
        if cached:
            x, length = x.reshape(batch, length, -1)[:, -1], 1
        x = LayerNorm(config.epsilon, name="ln_f")(x)
        x = matmul_transposed(x, wte, config.precision) if head else x
        return x.reshape(batch, length, -1)


def _residual_scale(config: GPT2Config) -> float:
    """Projections into the residual stream start smaller, by 1 / sqrt of their number."""
    return 0.02 / float(np.sqrt(2 * config.layers))
