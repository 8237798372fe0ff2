"""Baselines on class-incremental Split MNIST: 5 tasks of two digits, one epoch each, plain SGD.

naive, joint and cumulative (each stage trains on all examples so far) are the bounds. per_task
keeps a model for every task and is told the task in the test as well (task-incremental: its
numbers stand beside no other's). linear, cosine, nearest_class_mean and slda are four heads over
one frozen backbone: the hidden layers as they were initialised, random features that no task has
shaped. gdumb trains afresh on 500 examples at every boundary.

Command:  jcl run configs/mnist/baselines.py --method gdumb --seeds 10
"""

from dataclasses import dataclass
from typing import Literal

import optax

import jcl


@dataclass(frozen=True)
class Config:
    method: Literal[
        "naive", "joint", "cumulative", "per_task", "linear", "cosine", "nearest_class_mean",
        "slda", "gdumb",
    ] = "naive"  # fmt: skip
    rate: float = 0.03
    buffer: int = 500  # of gdumb
    steps: int = 1000  # of gdumb's training at a boundary
    seed: int = 0


def build(config: Config) -> jcl.Experiment:
    model = jcl.models.mlp(jcl.models.MLPConfig(784, (100, 100), 10, scale=1 / 255))
    if config.method == "cosine":
        model = jcl.models.cosine_head(model)
    optimizer, frozen = optax.sgd(config.rate), jcl.freeze("*")
    head = [jcl.only("head/*", optimizer), jcl.freeze("*", but="head/*")]
    parts = {
        "per_task": lambda: [jcl.separate("*", tasks=5), optimizer],
        "linear": lambda: head,
        "cosine": lambda: head,
        "nearest_class_mean": lambda: [frozen, jcl.nearest_class_mean(model.features, 10)],
        "slda": lambda: [frozen, jcl.slda(model.features, 10)],
        "gdumb": lambda: [
            jcl.gdumb(
                config.buffer, 10, steps=config.steps, size=16, optimizer=optimizer, init=model.init
            )
        ],
    }.get(config.method, lambda: [optimizer])()
    scenario = "task" if config.method == "per_task" else "class"
    stream = jcl.data.split(jcl.data.mnist(), scenario)
    stages = {"joint": jcl.data.joint, "cumulative": jcl.data.cumulative}
    return jcl.Experiment(
        name=config.method,
        model=model,
        loss_fn=jcl.losses.classify(model.apply),
        strategy=jcl.chain(*parts),
        stream=stages.get(config.method, lambda stream: stream)(stream),
        measure=jcl.losses.accuracy(model.apply),
        batch_size=10,
        epochs=1,
        seed=config.seed,
        boundary_batches=1,
        evaluation_batch_size=1000,
        log_every=200,
        device_data=True,
    )
