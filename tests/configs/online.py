"""A classifier over the mean of byte embeddings, and a bigram model; they learn online."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import optax

import jcl


@dataclass(frozen=True)
class Config:
    kind: Literal["classifier", "language"] = "classifier"
    method: Literal["sgd", "replay", "ewc", "per_task", "periodic"] = "replay"
    drift: bool = False
    classes: int = 3
    batch_size: int = 4
    learning_rate: float = 0.3
    seed: int = 0


class Sudden:
    """Says so where a loss is twice the mean of those before."""

    def __init__(self):
        self.sum, self.number = 0.0, 0

    def update(self, loss):
        mean = self.sum / self.number if self.number else loss
        self.sum, self.number = self.sum + loss, self.number + 1
        return loss > 2 * mean


def model(kind, classes):
    def init(key):
        outputs = classes if kind == "classifier" else 258
        keys = jax.random.split(key)
        return {
            "table": 0.1 * jax.random.normal(keys[0], (258, 8)),
            "out": 0.1 * jax.random.normal(keys[1], (8, outputs)),
        }

    def apply(params, inputs, key=None, attention_mask=None):
        hidden = params["table"][inputs]
        if kind == "classifier":
            mask = jnp.ones(inputs.shape) if attention_mask is None else attention_mask
            hidden = (hidden * mask[..., None]).sum(1) / jnp.maximum(mask.sum(1), 1)[:, None]
        return hidden @ params["out"]

    return jcl.models.Model(init, apply, None)


def build(config):
    net, tokenizer = model(config.kind, config.classes), jcl.data.ByteTokenizer()
    classifier = config.kind == "classifier"
    optimizer = optax.sgd(config.learning_rate)
    strategy = {
        "sgd": lambda: optimizer,
        "replay": lambda: jcl.chain(jcl.replay(10, 4), optimizer),
        "ewc": lambda: jcl.chain(jcl.ewc(1.0), optimizer),
        "per_task": lambda: jcl.per_task(optax.adam(config.learning_rate)),
        "periodic": lambda: jcl.chain(
            jcl.periodically(jcl.ewc(1.0), every=2, batches=2), optimizer
        ),
    }[config.method]()
    loss_fn = jcl.losses.classify if classifier else jcl.losses.causal_lm
    return jcl.Experiment(
        name=config.kind,
        model=net,
        loss_fn=loss_fn(net.apply),
        strategy=strategy,
        measure=jcl.losses.accuracy(net.apply),
        lines=jcl.data.Lines(
            tokenizer=tokenizer,
            length=8,
            labels=tuple("abcdefghij"[: config.classes]) if classifier else None,
        ),
        drift=Sudden if config.drift else None,
        batch_size=config.batch_size,
        seed=config.seed,
    )
