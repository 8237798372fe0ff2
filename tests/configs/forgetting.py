"""Sentences of four classes, or blocks of a text, with a memory and a ring of batches."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax

import jcl
from jcl.data import ByteTokenizer


@dataclass(frozen=True)
class Config:
    table: str = ""
    text: str = ""
    tokenizer: bool = True
    seed: int = 0


def model(classes, *, language):
    def init(key):
        return {"table": 0.1 * jax.random.normal(key, (258, 6)), "out": jnp.ones((6, classes))}

    def apply(params, inputs, key=None, **_):
        hidden = params["table"][inputs]
        return (hidden if language else hidden.mean(axis=1)) @ params["out"]

    return jcl.models.Model(init, apply, None)


def build(config):
    tokenizer = ByteTokenizer()
    if config.text:
        stream = jcl.data.text_files([config.text], length=32, test_fraction=0.2)
        net = model(258, language=True)
        loss_fn = jcl.losses.causal_lm(net.apply)
        measure = jcl.losses.bits_per_byte(net.apply, tokenizer.bytes_per_token)
    else:
        stream = jcl.data.text_classification(
            config.table, tokenizer=tokenizer, tasks=2, scenario="task", length=32, test=0.25
        )
        net = model(4, language=False)
        loss_fn, measure = jcl.losses.classify(net.apply), jcl.losses.accuracy(net.apply)
    return jcl.Experiment(
        name="forgetting",
        model=net,
        loss_fn=loss_fn,
        strategy=jcl.chain(
            jcl.replay(capacity=12, size=2),
            jcl.periodically(jcl.ewc(1.0), every=2, batches=2),
            optax.sgd(0.1),
        ),
        stream=stream,
        measure=measure,
        batch_size=4,
        steps=6,
        seed=config.seed,
        tokenizer=tokenizer if config.tokenizer else None,
    )
