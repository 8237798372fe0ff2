"""Learned prompts in front of the inputs of any token model."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jcl import checks
from jcl.errors import InputError
from jcl.models import wrapping
from jcl.models.model import Model


def prompts(
    make: Callable[[Any], Model], config: Any, length: int, *, slots: int = 1, table: str = "wte"
) -> Model:
    """The model that make(config) gives, with learned vectors in front of its inputs.

    logits = model([P_used ... P_1; inputs]) at the places of the inputs.

    Prompt tuning, Lester et al. 2021, section 2, with params["prompt"] [slots, length, width];
    rows of the token table drawn at random begin it (section 3.2). With several slots the latest
    stands first (progressive prompts, see `jcl.progressive_prompts`), and slots not yet used stand
    behind the inputs, where causal attention keeps them from acting, or an attention_mask. All
    positions are computed whichever are used. Of a model that gives one output for the whole input,
    such as a BERT classifier, the head reads the first vector of the latest prompt, or the mean
    over prompts and inputs. Pretrained params p go in by `{**model.init(key), **p}`. To train the
    prompt alone: `chain(only("prompt", adamw(...)), freeze("*", but="prompt"))`.

    Args:
        make: config -> model, such as `jcl.models.gpt2`. It is called twice: the model that runs
            has slots * length tokens more, with the prompt as their rows of the table.
        config: with the fields vocab_size and positions, or the name of one.
        length: vectors a slot.
        slots: prompts.
        table: path of the token table [vocab, width] in the params.

    Raises:
        InputError: the table is not there, or the positions are too few, with the numbers.

    >>> import jax, jax.numpy as jnp, jcl
    >>> config = jcl.models.GPT2Config(258, positions=8, width=4, layers=1, heads=2)
    >>> model = jcl.models.prompts(jcl.models.gpt2, config, length=3)
    >>> model.apply(model.init(jax.random.key(0)), jnp.zeros((2, 5), jnp.int32)).shape
    (2, 5, 258)
    """
    length = checks.whole("prompts", "length", length)
    slots = checks.whole("prompts", "slots", slots)
    model, total = make(config), slots * length
    config = model.config
    vocab, positions = config.vocab_size, config.positions
    _check_positions(slots, length, 1, positions)
    wider = make(dataclasses.replace(config, vocab_size=vocab + total))
    wider_shapes, ahead = wrapping.shapes(wider), wider.decode is None
    wrapping.chosen("prompts", table, wrapping.names(wider_shapes))

    def begin(key, params):
        rows = jax.random.randint(key, (slots, length), 0, vocab)
        return wrapping.at(params, table)[rows]

    def widen(params):
        def pad(path, leaf, shape):
            if wrapping.name(path) == table:
                return jnp.concatenate([leaf, params["prompt"].reshape(total, -1)])
            return jnp.pad(
                leaf, [(0, new - old) for old, new in zip(leaf.shape, shape.shape, strict=True)]
            )

        own = {entry: params[entry] for entry in wider_shapes}
        return jax.tree_util.tree_map_with_path(pad, own, wider_shapes)

    def around(function):
        def call(params, inputs, key=None, *, attention_mask=None, token_types=None):
            size = inputs.shape[1]
            _check_positions(slots, length, size, positions)
            front = length * params.get("prompts_used", slots)
            place = jnp.arange(total + size)
            newest_first = front - length * (place // length + 1) + place % length
            prompt = vocab + jnp.where(place < front, newest_first, place - size)
            inside = (place >= front) & (place < front + size)

            def behind_prompt(tokens, others):
                shifted = jnp.take(tokens, jnp.clip(place - front, 0, size - 1), axis=1)
                return jnp.where(inside, shifted, others)

            options = {}
            if attention_mask is None and ahead:
                attention_mask = jnp.ones_like(inputs)
            if attention_mask is not None:
                options["attention_mask"] = behind_prompt(attention_mask, place < front)
            if token_types is not None:
                options["token_types"] = behind_prompt(token_types, 0)
            output = function(widen(params), behind_prompt(inputs, prompt), key, **options)
            if output.ndim < 3:
                return output
            return jax.lax.dynamic_slice_in_dim(output, front, size, axis=1)

        return call

    def apply(params, inputs, key=None, **rest):
        logits = around(wider.apply)(params, inputs, key, **rest)
        return logits if logits.ndim < 3 else logits[..., :vocab]

    # The slots behind the inputs would stand in the way of what follows them in a cache.
    model = model._replace(apply=apply, features=around(wider.features), decode=None, cache=None)
    return wrapping.extended(model, "prompt", begin)


def _check_positions(slots: int, length: int, size: int, positions: int) -> None:
    if slots * length + size > positions:
        raise InputError(
            f"prompts: {slots} * {length} prompt tokens and {size} of the input need "
            f"{slots * length + size} positions, and the model has {positions}: give it more, or "
            "take shorter prompts or blocks."
        )
