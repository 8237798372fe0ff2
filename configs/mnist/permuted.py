"""Permuted MNIST: 20 tasks, each a random permutation of the pixels; one epoch each, plain SGD.

Buzzega et al. 2020 (Dark Experience Replay), table 2; what this run gives stands beside the
published figures in docs/reproduction.md.

Command:  jcl run configs/mnist/permuted.py --method er --buffer 200 --seeds 10
"""

from dataclasses import dataclass
from typing import Literal

import optax

import jcl

Method = Literal["sgd", "joint", "er"]


@dataclass(frozen=True)
class Config:
    method: Method = "sgd"
    buffer: Literal[200, 500, 5120] = 200
    tasks: int = 20
    batch_size: int = 128
    learning_rate: float | None = None
    seed: int = 0


def build(config: Config) -> jcl.Experiment:
    stream = jcl.data.permuted(jcl.data.mnist(), config.tasks, seed=config.seed)
    joint = config.method == "joint"
    if joint:
        stream = jcl.data.joint(stream)
    model = jcl.models.mlp(jcl.models.MLPConfig(784, (100, 100), 10, scale=1 / 255))
    parts = {"er": [jcl.replay(capacity=config.buffer, size=config.batch_size)]}.get(
        config.method, []
    )
    rate = 0.1 if parts else 0.2
    return jcl.Experiment(
        name=config.method,
        model=model,
        loss_fn=jcl.losses.classify(model.apply),
        strategy=jcl.chain(*parts, optax.sgd(rate)),
        stream=stream,
        measure=jcl.losses.accuracy(model.apply),
        batch_size=config.batch_size,
        epochs=1,
        seed=config.seed,
        boundary_batches=1,
        evaluation_batch_size=2000,
        log_every=100,
        device_data=not joint,
    )
