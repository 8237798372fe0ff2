"""BERT (Devlin et al. 2019), RoBERTa (Liu et al. 2019) and DistilBERT (Sanh et al. 2019).

One encoder with blocks of attention and MLP, each behind a residual sum and a layer norm; the
families differ in positions, token types and heads. Kernels are [in, out].
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from jcl import checks
from jcl.errors import InputError
from jcl.models import efficient_attention, precision, wrapping
from jcl.models.efficient_attention import (
    Linformer,
    Performer,
    features_of,
    performer,
    projected,
)
from jcl.models.layers import Alone, Dense, LayerNorm, dropout, gelu, gelu_tanh, run, split
from jcl.models.model import Model, Tensor
from jcl.models.precision import FLOAT32, Precision, einsum, matmul_transposed

_ACTIVATIONS = {"gelu": gelu, "gelu_new": gelu_tanh, "relu": nn.relu}


@dataclass(frozen=True)
class BertConfig:
    """The shape of an encoder; the defaults are BERT base.

    Attributes:
        vocab_size: rows of the token table, which is the masked-LM head's as well.
        positions: the longest input.
        width: of the residual stream; a multiple of heads.
        layers: number of blocks.
        heads: of every attention.
        inner: width between an MLP's two layers.
        types: rows of the token type table, of which every token takes the first unless token_types
            are given; 0 for DistilBERT, which has none.
        dropout: rate after the embedding, the attention weights, both branches of a block and the
            pooling of a classifier.
        epsilon: of the layer norms.
        head: "masked_lm" (logits of every token), "classes" (logits of the input) or "features"
            (no head: the last hidden states).
        classes: logits of the head "classes".
        labels: the names of the classes, by class number, for config.json; they may be left out.
        pooling: of the hidden states for "classes" and for `Model.features`: "first" (the first
            token's, through the family's pooler) or "mean" (over the tokens that are no padding,
            as sentence encoders have it).
        activation: of the MLPs and of the masked-LM head: "gelu", "gelu_new" (GPT-2's) or "relu".
        family: "bert", "roberta" or "distilbert".
        padding: the token that fills up short inputs. RoBERTa gives positions to the others alone;
            in the other families it is only kept for Hugging Face.
        precision: types of the params and products.
        remat: keep only what enters a block for the backward pass, which computes the rest again.
        attention: None is exact; a Performer needs dropout=0.0. With a Linformer the dropout acts
            on the weights of the projected keys.
    """

    vocab_size: int = 30522
    positions: int = 512
    width: int = 768
    layers: int = 12
    heads: int = 12
    inner: int = 3072
    types: int = 2
    dropout: float = 0.1
    epsilon: float = 1e-12
    head: str = "masked_lm"
    classes: int = 2
    pooling: str = "first"
    activation: str = "gelu"
    family: str = "bert"
    padding: int = 0
    precision: Precision = FLOAT32
    remat: bool = False
    attention: Performer | Linformer | None = None
    labels: tuple[str, ...] = ()

    def __post_init__(self):
        for field in ("vocab_size", "positions", "width", "layers", "heads", "inner", "classes"):
            checks.whole("BertConfig", field, getattr(self, field))
        for field in ("types", "padding"):
            checks.whole("BertConfig", field, getattr(self, field), least=0)
        if self.width % self.heads:
            raise InputError(
                f"BertConfig(width={self.width}, heads={self.heads}): the width must be a multiple "
                "of the heads."
            )
        checks.number("BertConfig", "dropout", self.dropout, "[0, 1)")
        checks.number("BertConfig", "epsilon", self.epsilon, "(0, 1)")
        precision.check("BertConfig", self)
        efficient_attention.check("BertConfig", self, causal=False)
        checks.one_of("BertConfig", "head", self.head, ("masked_lm", "classes", "features"))
        checks.one_of("BertConfig", "pooling", self.pooling, ("first", "mean"))
        checks.one_of("BertConfig", "activation", self.activation, tuple(_ACTIVATIONS))
        checks.one_of("BertConfig", "family", self.family, ("bert", "roberta", "distilbert"))
        if (self.types == 0) != (self.family == "distilbert"):
            raise InputError(
                f'BertConfig(family="{self.family}", types={self.types}): DistilBERT has no token '
                "types (types=0), the others at least one."
            )
        if self.labels and not len(self.labels) == len({*self.labels}) == self.classes:
            raise InputError(
                f"BertConfig(classes={self.classes}, labels={self.labels}): give each class a name "
                "of its own, or none any, labels=()."
            )


def bert(config: BertConfig) -> Model:
    """An encoder with random weights.

    `apply` and `features` take `attention_mask` [batch, length], 1 where a token counts and 0 where
    it is padding, and `token_types` [batch, length], such as 0 in the first text of a pair and 1 in
    the second, which a DistilBERT leaves alone. `features` gives the pooled [batch, width], and
    [batch, length, width] for the masked-LM head. Dropout stands where BERT has it in every family.

    >>> import jax, jax.numpy as jnp, jcl
    >>> config = jcl.models.BertConfig(
    ...     258, positions=8, width=4, layers=1, heads=2, inner=8, head="classes", classes=3
    ... )
    >>> model = jcl.models.bert(config)
    >>> inputs = jnp.array([[5, 6, 7], [8, 9, 0]])
    >>> params = model.init(jax.random.key(0))
    >>> model.apply(params, inputs, attention_mask=jnp.sign(inputs)).shape
    (2, 3)
    """
    module = Bert(config)

    def init(key: jax.Array) -> Any:
        params = module.init(key, jnp.zeros((1, 1), jnp.int32), None, None, None)["params"]
        return precision.cast(params, config.precision)

    def apply(
        params: Any,
        inputs: Int[Array, "batch length"],
        key: jax.Array | None = None,
        *,
        attention_mask: Any = None,
        token_types: Any = None,
    ) -> Float[Array, "batch ..."]:
        output = module.apply({"params": params}, inputs, key, attention_mask, token_types)
        assert isinstance(output, jax.Array)
        return output

    def features(
        params: Any,
        inputs: Int[Array, "batch length"],
        key: jax.Array | None = None,
        *,
        attention_mask: Any = None,
        token_types: Any = None,
    ) -> Float[Array, "batch ... width"]:
        call = (inputs, key, attention_mask, token_types)
        hidden = module.apply({"params": params}, *call, head=False)
        assert isinstance(hidden, jax.Array)
        return hidden

    def head(
        params: Any, hidden: Float[Array, "*rows width"], key: jax.Array | None = None
    ) -> Float[Array, "*rows vocab"]:
        rows, words = hidden.reshape(-1, config.width), params["embeddings"]["word_embeddings"]
        predictions = Alone(functools.partial(Predictions, config, name="predictions"))
        logits = predictions.apply({"params": params}, rows, words)
        assert isinstance(logits, jax.Array)
        return logits.reshape(*hidden.shape[:-1], -1)

    return Model(init, apply, config, features, head if config.head == "masked_lm" else None)


class Embeddings(nn.Module):
    config: BertConfig

    def setup(self):
        config, initializer = self.config, nn.initializers.normal(0.02)

        def table(name, rows):
            return self.param(name, initializer, (rows, config.width))

        self.words = table("word_embeddings", config.vocab_size)
        self.places = table("position_embeddings", config.positions + _first_position(config))
        self.types = table("token_type_embeddings", config.types) if config.types else None
        self.norm = LayerNorm(config.epsilon, name="LayerNorm")

    def __call__(self, inputs, key, types):
        config = self.config
        places = jnp.arange(inputs.shape[1])
        if config.family == "roberta":
            real = (inputs != config.padding).astype(jnp.int32)
            places = config.padding + jnp.cumsum(real, axis=1) * real
        x = self.words[inputs].astype(jnp.float32) + self.places[places].astype(jnp.float32)
        if self.types is not None:
            x = x + (self.types[0] if types is None else self.types[types])
        return dropout(self.norm(x.reshape(-1, config.width)), config.dropout, key)


class Attention(nn.Module):
    config: BertConfig

    @nn.compact
    def __call__(self, x, length, mask, key):
        config, (rows, width) = self.config, x.shape
        key_weights, key_out = split(key, 2)

        def heads(name):
            return (
                Dense(width, precision=config.precision, name=name)(x)
                .reshape(rows // length, length, config.heads, width // config.heads)
                .transpose(0, 2, 1, 3)
            )

        query = heads("query") / np.sqrt(width // config.heads)
        # As in GPT-2: heads lead, the keys' positions come last, and the weights are divided by
        # their sum after the product with the values.
        keys, values = (heads(name).transpose(0, 1, 3, 2) for name in ("key", "value"))
        if isinstance(config.attention, Performer):
            drawn = features_of(config.attention, self, query.shape[-1], key_weights)
            out = performer(
                query, keys, values, mask, drawn, causal=False, precision=config.precision
            )
        else:
            if isinstance(config.attention, Linformer):
                keys, values = projected(
                    config.attention, self, config.positions, mask, keys, values, config.precision
                )
                mask = None
            out = _attend(config, query, keys, values, mask, key_weights)
        out = out.transpose(0, 2, 1, 3).reshape(rows, width)
        out = Dense(width, precision=config.precision, name="output")(out)
        return dropout(out, config.dropout, key_out)


def _attend(config, query, keys, values, mask, key):
    scores = einsum("bhqd,bhdk->bhqk", query, keys, config.precision)
    if mask is not None:
        scores = jnp.where(mask[:, None, None, :] > 0, scores, -1e9)
    largest = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    weights = jnp.exp(scores - largest)
    total = weights.sum(axis=-1, keepdims=True)
    weights = dropout(weights, config.dropout, key)
    return einsum("bhqk,bhdk->bhqd", weights, values, config.precision) / total


class MLP(nn.Module):
    config: BertConfig

    @nn.compact
    def __call__(self, x, key):
        config = self.config
        hidden = Dense(config.inner, precision=config.precision, name="intermediate")(x)
        hidden = _ACTIVATIONS[config.activation](hidden)
        out = Dense(config.width, precision=config.precision, name="output")(hidden)
        return dropout(out, config.dropout, key)


class Layer(nn.Module):
    config: BertConfig

    @nn.compact
    def __call__(self, x, length, mask, key):
        config = self.config
        key_attention, key_mlp = split(key, 2)
        x = x + Attention(config, name="attn")(x, length, mask, key_attention)
        x = LayerNorm(config.epsilon, name="attn_norm")(x)
        x = x + MLP(config, name="mlp")(x, key_mlp)
        return LayerNorm(config.epsilon, name="mlp_norm")(x)


class Predictions(nn.Module):
    """hidden [rows, width], token table -> logits [rows, vocab]."""

    config: BertConfig

    @nn.compact
    def __call__(self, hidden, words):
        config = self.config
        # RoBERTa's head has its own activation, whatever the MLPs'.
        activation = "gelu" if config.family == "roberta" else config.activation
        hidden = Dense(config.width, precision=config.precision, name="transform")(hidden)
        hidden = _ACTIVATIONS[activation](hidden)
        hidden = LayerNorm(config.epsilon, name="LayerNorm")(hidden)
        bias = self.param("bias", nn.initializers.zeros, (config.vocab_size,))
        return matmul_transposed(hidden, words, config.precision) + bias


class Bert(nn.Module):
    """inputs [batch, length] -> what the head gives or, without it, what it gets."""

    config: BertConfig

    @nn.compact
    def __call__(self, inputs, key, mask, types, head=True):
        config, (batch, length) = self.config, inputs.shape
        if length > config.positions:
            raise InputError(
                f"The input is {length} tokens long and the model has {config.positions} positions:"
                " cut the text shorter, or give the model more positions."
            )
        for name, each in (("attention_mask", mask), ("token_types", types)):
            if each is not None and each.shape != inputs.shape:
                raise InputError(
                    f"The {name} has the shape {each.shape} and the inputs {inputs.shape}: give "
                    "one number for each token: of the mask 1 where it counts and 0 where it is "
                    "padding, of the types that of its text."
                )
        key_embedding, key_pooled, *keys = split(key, 2 + config.layers)
        embeddings = Embeddings(config, name="embeddings")
        x = embeddings(inputs, key_embedding, types)
        for layer in range(config.layers):
            block = Layer(config, name=f"layer_{layer}")
            x = run(config.remat, block, x, length, mask, keys[layer])
        hidden = x.reshape(batch, length, config.width)
        if config.head == "masked_lm":
            if not head:
                return hidden
            return Predictions(config, name="predictions")(x, embeddings.words).reshape(
                batch, length, -1
            )
        pooled = self.pool(hidden, mask)
        if config.head == "features":
            return hidden if head else pooled
        pooled = dropout(pooled, config.dropout, key_pooled)
        if not head:
            return pooled
        return Dense(config.classes, precision=config.precision, name="classifier")(pooled)

    def pool(self, hidden, mask):
        config = self.config
        if config.pooling == "mean":
            real = jnp.ones(hidden.shape[:2]) if mask is None else (mask > 0).astype(hidden.dtype)
            total = jnp.einsum("bld,bl->bd", hidden, real)
            return total / jnp.maximum(real.sum(axis=1, keepdims=True), 1.0)
        first = hidden[:, 0]
        if config.family == "distilbert":
            if config.head == "features":
                return first
            return nn.relu(_pooler(config)(first))
        return jnp.tanh(_pooler(config)(first))


def _pooler(config):
    return Dense(config.width, precision=config.precision, name="pooler")


def _first_position(config: BertConfig) -> int:
    """The row of the position table that the first token gets."""
    return config.padding + 1 if config.family == "roberta" else 0


# Hugging Face: its configuration, and its names of the tensors.

PREFIX = ("bert.", "roberta.", "distilbert.")
"""Of the encoder's tensors where there is a head, by family."""

RENAMED = ((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias"))
"""Names of old checkpoints, among them BERT base's, and those of today."""

IGNORED = (
    r"^(bert\.|roberta\.|distilbert\.)?embeddings\.(position_ids|token_type_ids)$",
    r"^(bert\.|roberta\.)?pooler\.dense\.(weight|bias)$",
    r"^cls\.(predictions|seq_relationship)\..+$",
    r"^lm_head\..+$",
    r"^vocab_(transform|layer_norm|projector)\.(weight|bias)$",
    r"^(pre_)?classifier\..+$",
)
"""Names that a checkpoint may hold beside those of `tensors`: buffers, and the heads, of which a
model has one."""

HEAD = ("classifier/*", "pooler/*", "predictions/*", "layer_*/attn/*_projection")
"""Paths of params that a checkpoint of another head, or of exact attention where Linformer\'s is
wanted, lacks; with a key they begin afresh."""

# Ours: BERT's and RoBERTa's in config.json, and DistilBERT's.
_FIELDS = {
    "vocab_size": ("vocab_size", "vocab_size"),
    "positions": ("max_position_embeddings", "max_position_embeddings"),
    "width": ("hidden_size", "dim"),
    "layers": ("num_hidden_layers", "n_layers"),
    "heads": ("num_attention_heads", "n_heads"),
    "inner": ("intermediate_size", "hidden_dim"),
    "dropout": ("hidden_dropout_prob", "dropout"),
    "activation": ("hidden_act", "activation"),
}
_CLASSES = {"bert": "Bert", "roberta": "Roberta", "distilbert": "DistilBert"}
_HEADS = {"masked_lm": "ForMaskedLM", "classes": "ForSequenceClassification", "features": "Model"}

_LAYER = {
    "attn/query": ("attention.self.query", "attention.q_lin"),
    "attn/key": ("attention.self.key", "attention.k_lin"),
    "attn/value": ("attention.self.value", "attention.v_lin"),
    "attn/output": ("attention.output.dense", "attention.out_lin"),
    "attn_norm": ("attention.output.LayerNorm", "sa_layer_norm"),
    "mlp/intermediate": ("intermediate.dense", "ffn.lin1"),
    "mlp/output": ("output.dense", "ffn.lin2"),
    "mlp_norm": ("output.LayerNorm", "output_layer_norm"),
}
_TOP = {
    "bert": {
        "pooler": "bert.pooler.dense",
        "classifier": "classifier",
        "predictions": "cls.predictions",
        "predictions/transform": "cls.predictions.transform.dense",
        "predictions/LayerNorm": "cls.predictions.transform.LayerNorm",
    },
    "roberta": {
        "pooler": "classifier.dense",
        "classifier": "classifier.out_proj",
        "predictions": "lm_head",
        "predictions/transform": "lm_head.dense",
        "predictions/LayerNorm": "lm_head.layer_norm",
    },
    "distilbert": {
        "pooler": "pre_classifier",
        "classifier": "classifier",
        "predictions": "vocab_projector",
        "predictions/transform": "vocab_transform",
        "predictions/LayerNorm": "vocab_layer_norm",
    },
}


def from_hf(settings: dict[str, Any]) -> BertConfig:
    """The config of a parsed config.json.

    One rate of dropout serves all places: the hidden states', not the attention's or the
    classifier's. The head is that of the architecture; a bare encoder has "features".

    Raises:
        InputError: what this file cannot do, with the field's name.
    """
    family = settings.get("model_type")
    if family not in _CLASSES:
        raise _refused("model_type", family, f"one of {', '.join(_CLASSES)}")
    for field, wanted in (
        ("is_decoder", False), ("add_cross_attention", False), ("tie_word_embeddings", True),
        ("position_embedding_type", "absolute"),
    ):  # fmt: skip
        if settings.get(field, wanted) != wanted:
            raise _refused(field, settings[field], f"only {wanted!r} is known")
    distil = family == "distilbert"
    found = {}
    for ours, names in _FIELDS.items():
        if names[distil] not in settings:
            raise InputError(f"config.json lacks the field {names[distil]!r}.")
        found[ours] = settings[names[distil]]
    if found["activation"] == "gelu_pytorch_tanh":
        found["activation"] = "gelu_new"
    if found["activation"] not in _ACTIVATIONS:
        known = f"one of {', '.join(_ACTIVATIONS)}"
        raise _refused(_FIELDS["activation"][distil], found["activation"], known)
    padding = settings.get("pad_token_id", int(family == "roberta"))
    if padding is None:
        padding = 0
    if family == "roberta":
        found["positions"] -= padding + 1
    own, named = settings.get("jcl", {}), settings.get("id2label") or {}
    head = own.get("head") or _head(family, settings.get("architectures"))
    return BertConfig(
        **found,
        types=0 if distil else settings.get("type_vocab_size", 2),
        epsilon=1e-12 if distil else settings.get("layer_norm_eps", 1e-12),
        head=head,
        classes=len(named) or settings.get("num_labels", 2),
        pooling=own.get("pooling", "first"),
        family=family,
        padding=padding,
        labels=_labels(named) if head == "classes" else (),
    )


def to_hf(config: BertConfig) -> dict[str, Any]:
    """The config.json that Hugging Face reads.

    Hugging Face has no classifier over the mean: for pooling "mean" it gets the bare encoder, and
    the field "jcl" tells `from_hf` the rest.

    Raises:
        InputError: a DistilBERT with another epsilon than the one that Hugging Face knows.
    """
    distil = config.family == "distilbert"
    if distil and config.epsilon != 1e-12:
        raise InputError(
            f"BertConfig(epsilon={config.epsilon}): Hugging Face's DistilBERT has 1e-12 only."
        )
    settings = {names[distil]: getattr(config, ours) for ours, names in _FIELDS.items()}
    settings["max_position_embeddings"] += _first_position(config)
    if distil:
        settings |= {"attention_dropout": config.dropout, "seq_classif_dropout": config.dropout}
    else:
        settings["attention_probs_dropout_prob"] = config.dropout
        settings |= {"type_vocab_size": config.types, "layer_norm_eps": config.epsilon}
    if config.head == "classes":
        names = config.labels or _unnamed(config.classes)
        settings["id2label"] = {str(number): name for number, name in enumerate(names)}
        settings["label2id"] = {name: number for number, name in enumerate(names)}
    head = _served(config)
    if config.pooling == "mean" and head == "features":
        settings["jcl"] = {"head": config.head, "pooling": "mean"}
    return settings | {
        "model_type": config.family,
        "architectures": [_CLASSES[config.family] + _HEADS[head]],
        "pad_token_id": config.padding,
    }


def tensors(config: BertConfig) -> dict[str, Tensor]:
    """Where Hugging Face keeps every parameter, by its path."""
    distil = config.family == "distilbert"
    prefix = "" if _served(config) == "features" else f"{config.family}."

    def module_name(path):
        top, _, rest = path.partition("/")
        if top.startswith("layer_"):
            stack = "transformer.layer" if distil else "encoder.layer"
            return f"{prefix}{stack}.{top.removeprefix('layer_')}.{_LAYER[rest][distil]}"
        if top == "embeddings":
            return prefix + path.replace("/", ".")
        if path == "pooler" and config.head == "features":
            return f"{prefix}pooler.dense"
        return _TOP[config.family][path]

    found = {}
    for path in wrapping.names(wrapping.shapes(bert(config))):
        module, _, leaf = path.rpartition("/")
        if leaf.endswith("_projection"):
            found[path] = Tensor(path)  # in no checkpoint of Hugging Face's
        elif leaf.endswith("_embeddings"):
            found[path] = Tensor(f"{module_name(path)}.weight")
        else:
            last = "bias" if leaf == "bias" else "weight"
            found[path] = Tensor(f"{module_name(module)}.{last}", transpose=leaf == "kernel")
    return found


def copies(config: BertConfig) -> dict[str, str]:
    """Tensors that a checkpoint may hold as well -> path of the parameter they repeat."""
    if config.head != "masked_lm":
        return {}
    decoder, words = _TOP[config.family]["predictions"], "embeddings/word_embeddings"
    if config.family == "distilbert":
        return {f"{decoder}.weight": words}
    return {f"{decoder}.decoder.weight": words, f"{decoder}.decoder.bias": "predictions/bias"}


def _unnamed(classes: int) -> tuple[str, ...]:
    """What Hugging Face calls classes without a name."""
    return tuple(f"LABEL_{number}" for number in range(classes))


def _labels(named: dict[str, Any]) -> tuple[str, ...]:
    """The names of an id2label by class number; none where they are not one for each class."""
    names: Any = tuple(named.get(str(number)) for number in range(len(named)))
    own = all(isinstance(name, str) for name in names) and len({*names}) == len(names)
    return names if own and names != _unnamed(len(names)) else ()


def _served(config: BertConfig) -> str:
    """The head with which Hugging Face loads it: the mean's classifier it has not."""
    mean = config.head == "classes" and config.pooling == "mean"
    return "features" if mean else config.head


def _head(family: str, architectures: list[str] | None) -> str:
    if not architectures:
        return "features"
    name = architectures[0]
    heads = {_CLASSES[family] + ending: head for head, ending in _HEADS.items()}
    heads["BertForPreTraining"] = "masked_lm"
    if name not in heads:
        raise _refused("architectures", name, f"one of {', '.join(heads)}")
    return heads[name]


def _refused(field: str, value: Any, known: str) -> InputError:
    return InputError(f"config.json has {field}={value!r}: {known}.")
