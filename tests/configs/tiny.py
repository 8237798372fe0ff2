"""A byte model of one hidden layer on three small texts that differ in size, for the tests."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jcl
from jcl.data import ByteTokenizer, Stream, text_task


@dataclass(frozen=True)
class Config:
    method: Literal["replay_ewc", "replay_ewc_si", "naive", "joint"] = "replay_ewc"
    steps: int | None = None
    epochs: float = 2.0
    batch_size: int = 8
    learning_rate: float = 3e-3
    width: int = 16
    text_seed: int = 0
    device_data: bool = False
    evaluate: Literal["boundaries", "end"] = "boundaries"
    seed: int = 0


def model(width):
    def init(key):
        key_table, key_out = jax.random.split(key)
        return {
            "table": 0.1 * jax.random.normal(key_table, (258, width)),
            "out": 0.1 * jax.random.normal(key_out, (width, 258)),
        }

    def apply(params, inputs, key=None):
        return jnp.tanh(params["table"][inputs]) @ params["out"]

    return jcl.models.Model(init, apply, None)


def stream(seed):
    tokenizer, tasks = ByteTokenizer(), []
    for number, (name, size) in enumerate([("vowels", 30), ("digits", 50), ("signs", 20)]):
        letters = np.array(list(("aeiou", "0123456789", "+-*/=<>")[number]))
        draw = np.random.default_rng((seed, number))
        documents = ["".join(draw.choice(letters, 60)) for _ in range(size)]
        tasks.append(text_task(name, documents[4:], documents[:4], tokenizer, 16))
    return Stream("tiny", tuple(tasks))


def build(config):
    net = model(config.width)
    texts = stream(config.text_seed)
    if config.method == "joint":
        texts = jcl.data.joint(texts)
    parts = [jcl.replay(capacity=20, size=8), jcl.ewc(strength=10.0)]
    path = [jcl.si(strength=0.1)] if config.method == "replay_ewc_si" else []
    optimizer = jcl.per_task(jcl.scheduled(optax.adamw, jcl.cosine(config.learning_rate)))
    return jcl.Experiment(
        name=config.method,
        model=net,
        loss_fn=jcl.losses.causal_lm(net.apply),
        strategy=jcl.chain(*(parts if "ewc" in config.method else []), optimizer, *path),
        stream=texts,
        measure=jcl.losses.bits_per_byte(net.apply, ByteTokenizer().bytes_per_token),
        batch_size=config.batch_size,
        steps=config.steps,
        epochs=config.epochs if config.steps is None else None,
        seed=config.seed,
        boundary_batches=3,
        evaluate=config.evaluate,
        log_every=5,
        device_data=config.device_data,
        probes={
            "rank": lambda params, batch: jcl.probes.effective_rank(
                params["table"][batch["inputs"]]
            )
        },
    )
