"""A small classification problem that every test of the core shares."""

import functools

import jax
import jax.numpy as jnp
import optax

import jcl

INPUTS, HIDDEN, CLASSES, BATCH = 5, 8, 3, 16


def loss_fn(params, batch, key):
    hidden = jnp.tanh(batch["inputs"] @ params["body"]["kernel"] + params["body"]["bias"])
    if key is not None:
        hidden = hidden * jax.random.bernoulli(key, 0.9, hidden.shape) / 0.9
    logits = hidden @ params["head"]["kernel"]
    if "targets" not in batch:
        return jnp.zeros(()), {"logits": logits}
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])
    return losses.mean(), {"logits": logits, "losses": losses}


# `loss_fn` that heeds batch["label_mask"].
masked_loss_fn = jcl.losses.classify(
    lambda params, inputs, key: loss_fn(params, {"inputs": inputs}, key)[1]["logits"]
)


def adapted_loss_fn(params, batch, key):
    """`loss_fn` of a body with a low-rank product for each slot of params["lora"]["body"]."""
    product = jnp.einsum("sir,sro->io", *map(params["lora"]["body"].get, "ab"))
    body = {**params["body"], "kernel": params["body"]["kernel"] + product}
    return loss_fn({**params, "body": body}, batch, key)


def adapted_params(seed=0):
    a = jax.random.normal(jax.random.key(seed), (3, INPUTS, 2))
    return {**params(seed), "lora": {"body": {"a": a, "b": jnp.zeros((3, 2, HIDDEN))}}}


def prompted_loss_fn(params, batch, key):
    """`loss_fn` of inputs moved by the prompts in use, params["prompt"] [slots, length, INPUTS]."""
    prompt = params["prompt"]
    used = jnp.arange(len(prompt)) < params.get("prompts_used", len(prompt))
    moved = batch["inputs"] + jnp.sum(prompt.sum(axis=1), axis=0, where=used[:, None])
    return loss_fn(params, {**batch, "inputs": moved}, key)


def prompted_params(seed=0):
    prompt = 0.1 * jax.random.normal(jax.random.key(seed), (3, 2, INPUTS))
    return {**params(seed), "prompt": prompt}


def features(params, inputs):
    return jnp.tanh(inputs @ params["body"]["kernel"] + params["body"]["bias"])


def inputs(params, inputs, key=None):
    """The features that the body gets."""
    return inputs


def params(seed=0):
    return initial(jax.random.key(seed))


def initial(key):
    """Fresh params, as a model's init makes them of a key."""
    key_body, key_head = jax.random.split(key)
    return {
        "body": {
            "kernel": jax.random.normal(key_body, (INPUTS, HIDDEN)),
            "bias": jnp.zeros(HIDDEN),
        },
        "head": {"kernel": jax.random.normal(key_head, (HIDDEN, CLASSES))},
    }


@functools.cache
def batch(number, task=0, size=BATCH):
    inputs = jax.random.normal(jax.random.key(1000 * task + number), (size, INPUTS))
    targets = (inputs[:, task % INPUTS] > 0).astype(jnp.int32) + (inputs[:, -1] > 0)
    return {"inputs": inputs, "targets": targets}


@functools.cache
def stacked(task=0, number=4, size=BATCH):
    return jax.tree.map(
        lambda *leaves: jnp.stack(leaves),
        *[batch(100 + index, task, size) for index in range(number)],
    )
