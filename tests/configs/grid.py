"""A small perceptron on two tasks of points, with fields that a grid may and may not take."""

import functools
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jcl


@dataclass(frozen=True)
class Config:
    rate: float = 0.1
    warmup: float = 0.0
    strength: float | None = None
    width: int = 6  # a shape of the state
    chunk: int = 1  # a shape inside consolidate
    clip: float = 1.0  # chooses a branch
    shift: float = 0.0  # the argument of a cached function
    steps: int = 7
    method: Literal["ewc", "naive"] = "ewc"
    device_data: bool = False
    seed: int = 0


@functools.cache
def stream(shift):
    tasks = []
    for number, name in enumerate(("left", "right")):
        draw = np.random.default_rng(number)
        inputs = draw.normal(shift, 1, (56, 5)).astype(np.float32)
        leaves = {"inputs": inputs, "targets": (inputs[:, number] > 0).astype(np.int32)}
        parts = [jcl.data.Arrays({key: leaf[part] for key, leaf in leaves.items()})
                 for part in (slice(40), slice(40, 56))]  # fmt: skip
        tasks.append(jcl.data.Task(name, *parts, name))
    return jcl.data.Stream("points", tuple(tasks))


def perceptron(width):
    def init(key):
        key_body, key_head = jax.random.split(key)
        return {
            "body": jax.random.normal(key_body, (5, width)),
            "head": jax.random.normal(key_head, (width, 2)),
        }

    def apply(params, inputs, key=None):
        return jnp.tanh(inputs @ params["body"]) @ params["head"]

    return jcl.models.Model(init, apply, None)


def build(config):
    model = perceptron(config.width)
    optimizer = jcl.scheduled(optax.adamw, jcl.cosine(config.rate, warmup=config.warmup))
    strength = 1.0 if config.strength is None else config.strength
    parts = [jcl.replay(16, size=8), jcl.ewc(strength, chunk=config.chunk)]
    if config.clip < 1:
        parts.append(optax.clip_by_global_norm(config.clip))
    return jcl.Experiment(
        name=config.method,
        model=model,
        loss_fn=jcl.losses.classify(model.apply),
        strategy=jcl.chain(*(parts if config.method == "ewc" else []), optimizer),
        stream=stream(config.shift),
        measure=jcl.losses.accuracy(model.apply),
        batch_size=8,
        steps=config.steps,
        seed=config.seed,
        boundary_batches=2,
        log_every=2,
        device_data=config.device_data,
    )
