"""Sentences of four classes, with a memory and a ring of batches, for the tests."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax

import jcl
from jcl.data import ByteTokenizer


@dataclass(frozen=True)
class Config:
    table: str = ""
    tokenizer: bool = True
    seed: int = 0


def init(key):
    return {"table": 0.1 * jax.random.normal(key, (258, 6)), "out": jnp.ones((6, 4))}


def apply(params, inputs, key=None, **_):
    return params["table"][inputs].mean(axis=1) @ params["out"]


def build(config):
    tokenizer, net = ByteTokenizer(), jcl.models.Model(init, apply, None)
    stream = jcl.data.text_classification(
        config.table, tokenizer=tokenizer, tasks=2, scenario="task", length=32, test=0.25
    )
    return jcl.Experiment(
        name="forgetting",
        model=net,
        loss_fn=jcl.losses.classify(apply),
        strategy=jcl.chain(
            jcl.replay(capacity=12, size=2),
            jcl.periodically(jcl.l2(1.0), every=2, batches=2),
            optax.sgd(0.1),
        ),
        stream=stream,
        measure=jcl.losses.accuracy(apply),
        batch_size=8,
        steps=6,
        seed=config.seed,
        tokenizer=tokenizer if config.tokenizer else None,
        lines=jcl.data.Lines(tokenizer=tokenizer, length=32, labels=stream.labels),
    )
