"""Text from a causal language model, token by token, in one compiled program."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, Shaped

from jcl import checks
from jcl.errors import InputError
from jcl.models.bert import BertConfig
from jcl.models.model import Model


class Generated(NamedTuple):
    """Attributes:
    tokens: [batch, steps]; behind a row's stop token stands the first of `stop`.
    lengths: [batch], how many of them count, the stop token included.
    """

    tokens: Int[Array, "batch steps"]
    lengths: Int[Array, " batch"]


def generate(
    model: Model,
    params: Any,
    inputs: Any,
    *,
    steps: int,
    key: jax.Array | None = None,
    temperature: float | int | None = None,
    top_k: int | None = None,
    top_p: float | int | None = None,
    stop: Sequence[int] = (),
    attention_mask: Shaped[Array | np.ndarray, "_ _"] | None = None,
) -> Generated:
    """What follows the inputs, as the model has it.

    With a key every token is drawn from `probabilities(logits, temperature, top_k, top_p)`; without
    one, or at temperature 0, it is the likeliest. The inputs are computed once, then one token a
    step over the keys and values kept of those before; a model without `decode` (one with
    learned prompts, say) computes all tokens at every step. It stops early where every row has met
    a stop token. The program is compiled for a model, shapes, steps and top_k; temperature, top_p
    and the ids of stop are data.

    Args:
        model: a causal language model.
        params: its params.
        inputs: the prompts, whole numbers [batch, length], padded on the left where they differ in
            length.
        steps: tokens to generate; together with the inputs at most the model's positions.
        key: of the draws; None is greedy.
        temperature: divides the logits; None is 1.
        top_k: see `probabilities`.
        top_p: see `probabilities`.
        stop: ids of tokens that end a text, such as the tokenizer's separator.
        attention_mask: 0 at the padding; None is none.

    Raises:
        InputError: an argument is out of range, draws are described but there is no key, the
            inputs are padded on the right or too long, or the model is no causal language model.

    >>> import jax, jax.numpy as jnp, jcl
    >>> model = jcl.models.gpt2(jcl.models.GPT2Config(258, positions=8, width=4, layers=1, heads=2))
    >>> params = model.init(jax.random.key(0))
    >>> found = jcl.models.generate(model, params, jnp.ones((2, 3), jnp.int32), steps=5)
    >>> found.tokens.shape, found.lengths.tolist()
    ((2, 5), [5, 5])
    """
    steps = checks.whole("generate", "steps", steps)
    if temperature is not None:
        checks.number("generate", "temperature", temperature)
    # A traced temperature may be 0 later, so only a number can ask for the likeliest.
    cold = temperature is not None and not isinstance(temperature, Tracer) and temperature == 0
    if top_k is not None:
        top_k = checks.whole("generate", "top_k", top_k)
    if top_p is not None:
        checks.number("generate", "top_p", top_p, "(0, 1]")
    shaped = top_k is not None or top_p is not None or not (temperature is None or cold)
    if key is None and shaped:
        raise InputError(
            "generate: temperature, top_k and top_p shape draws, which need a key: "
            "key=jax.random.key(0)."
        )
    _check_inputs(model, inputs, attention_mask, steps, stop)
    if model.decode is None:
        shapes = jax.eval_shape(model.apply, params, inputs)
        if shapes.ndim != 3:
            raise InputError(
                f"generate: the model gives logits of shape {list(shapes.shape)} and must give "
                "[batch, length, vocab], those of the next token at every place."
            )
    mask = None if attention_mask is None else jnp.asarray(attention_mask)
    greedy = key is None or cold
    temperature = 1.0 if temperature is None else temperature
    return Generated(
        *_generate(
            model.apply, model.decode, model.cache, params, jnp.asarray(inputs, jnp.int32), mask,
            None if greedy else key, jnp.asarray(temperature, jnp.float32),
            None if greedy or top_p is None else jnp.asarray(top_p, jnp.float32),
            jnp.asarray(stop, jnp.int32), steps=steps, top_k=None if greedy else top_k,
        )
    )  # fmt: skip


def probabilities(
    logits: Float[Array, "batch vocab"],
    temperature: Any = 1.0,
    top_k: int | None = None,
    top_p: Any = None,
) -> Float[Array, "batch vocab"]:
    """The distribution that a token is drawn from, filtered in Hugging Face's order.

    softmax(logits / temperature) over the top_k likeliest and all that equal the last of them (Fan
    et al. 2018, section 3.4); of what is left, over the likeliest whose chances reach top_p
    together, the one that reaches it included (Holtzman et al. 2020, section 3.1). Of tokens
    equally likely at that border those of the highest ids are kept.

    Args:
        logits: of the next token.
        temperature: above 0.
        top_k: None is all.
        top_p: in (0, 1]; None is 1.
    """
    return jax.nn.softmax(_filtered(logits, temperature, top_k, top_p), axis=-1)


def _filtered(logits, temperature, top_k, top_p):
    """The logits over the temperature, -inf where no token is drawn."""
    logits = logits.astype(jnp.float32) / temperature
    if top_k is not None:
        least = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))[0][:, -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if top_p is not None:
        order = jnp.argsort(logits, axis=-1)
        rising = jnp.take_along_axis(logits, order, axis=-1)
        # The sum runs from the unlikeliest, as Hugging Face's, so that it rounds alike.
        out = jnp.cumsum(jax.nn.softmax(rising, axis=-1), axis=-1) <= 1 - top_p
        out = out.at[:, -1].set(False)
        out = jnp.put_along_axis(out, order, out, axis=-1, inplace=False)
        logits = jnp.where(out, -jnp.inf, logits)
    return logits


@functools.partial(jax.jit, static_argnames=("apply", "decode", "cache", "steps", "top_k"))
def _generate(
    apply: Callable[..., Any],
    decode: Callable[..., Any] | None,
    cache: Callable[..., Any] | None,
    params: Any,
    inputs: jax.Array,
    mask: jax.Array | None,
    key: jax.Array | None,
    temperature: Any,
    top_p: Any,
    stop: jax.Array,
    *,
    steps: int,
    top_k: int | None,
) -> tuple[jax.Array, jax.Array]:
    batch, length = inputs.shape
    filler = stop[0] if len(stop) else jnp.zeros((), jnp.int32)
    whole = None if mask is None else jnp.pad(mask, ((0, 0), (0, steps)), constant_values=1)

    def begin():
        if decode is not None and cache is not None:
            empty = cache(params, batch, length + steps)
            return decode(params, inputs, cache=empty, attention_mask=mask)
        return again(jnp.pad(inputs, ((0, 0), (0, steps))), length)

    def again(tokens, number):
        """The logits behind the first so many tokens; a causal model does not see the others."""
        options = {} if whole is None else {"attention_mask": whole}
        logits = apply(params, tokens, None, **options)
        return jax.lax.dynamic_index_in_dim(logits, number - 1, 1, keepdims=False), tokens

    def follow(at, token, kept):
        if decode is not None:
            return decode(params, token, cache=kept)
        tokens = jax.lax.dynamic_update_slice(kept, token, (0, length + at))
        return again(tokens, length + at + 1)

    def add(at, logits, tokens, lengths, running):
        if key is None:
            token = jnp.argmax(logits, axis=-1)
        else:
            chances = _filtered(logits, temperature, top_k, top_p)
            token = jax.random.categorical(jax.random.fold_in(key, at), chances)
        token = jnp.where(running, token.astype(jnp.int32), filler)
        tokens = jax.lax.dynamic_update_slice(tokens, token[:, None], (0, at))
        return tokens, lengths + running, running & ~jnp.isin(token, stop)

    def step(carry):
        at, kept, written = carry
        token = jax.lax.dynamic_slice_in_dim(written[0], at - 1, 1, axis=1)
        logits, kept = follow(at - 1, token, kept)
        return at + 1, kept, add(at, logits, *written)

    def more(carry):
        at, _, (_, _, running) = carry
        return (at < steps) & jnp.any(running)

    logits, kept = begin()
    tokens = jnp.full((batch, steps), filler)
    written = add(0, logits, tokens, jnp.zeros(batch, jnp.int32), jnp.ones(batch, bool))
    _, _, (tokens, lengths, _) = jax.lax.while_loop(more, step, (1, kept, written))
    return tokens, lengths


def _check_inputs(
    model: Model, inputs: Any, attention_mask: Any, steps: int, stop: Sequence[int]
) -> None:
    if isinstance(model.config, BertConfig):
        raise InputError("generate: BERT sees both sides of a token; give a GPT-2 or a Llama.")
    whole = hasattr(inputs, "dtype") and jnp.issubdtype(inputs.dtype, jnp.integer)
    if not whole or inputs.ndim != 2:
        shown = type(inputs).__name__
        if hasattr(inputs, "dtype"):
            shown = f"{inputs.dtype} {list(inputs.shape)}"
        raise InputError(
            f"generate: the inputs are {shown}; give an array of whole numbers [batch, length], "
            "such as jnp.asarray([tokenizer.encode(text)])."
        )
    length = inputs.shape[1]
    positions = getattr(model.config, "positions", None)
    vocab = getattr(model.config, "vocab_size", None) or np.iinfo(np.int32).max
    if length < 1:
        raise InputError("generate: the inputs are empty; begin with the tokenizer's separator.")
    if positions is not None and length + steps > positions:
        raise InputError(
            f"generate: {length} tokens of the prompt and {steps} steps need {length + steps} "
            f"positions, and the model has {positions}: take fewer steps or a shorter prompt."
        )
    for number in stop:
        if checks.whole("generate", "stop", number, least=0) >= vocab:
            raise InputError(f"generate(stop): {number} is none of the model's {vocab} tokens.")
    if not isinstance(inputs, Tracer):
        least, most = int(np.min(inputs)), int(np.max(inputs))
        if least < 0 or most >= vocab:
            raise InputError(
                f"generate: the inputs have tokens from {least} to {most}, and the model a "
                f"vocabulary of {vocab}: give the tokenizer that the model was trained with."
            )
    if attention_mask is None:
        return
    if attention_mask.shape != inputs.shape:
        raise InputError(
            f"generate: the attention_mask is {list(attention_mask.shape)} and the inputs "
            f"{list(inputs.shape)}."
        )
    if not isinstance(attention_mask, Tracer) and not np.all(np.asarray(attention_mask)[:, -1] > 0):
        raise InputError(
            "generate: the attention_mask ends in padding, and new tokens follow the last token: "
            "pad on the left."
        )
