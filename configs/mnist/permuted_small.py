"""Permuted MNIST with 1,000 images a task: 20 tasks, batches of ten, each met once.

The stream, network, batches and memory of 200 of Gupta et al. 2020 (La-MAML), in their released
commands: la_maml, with its authors' rates, beside er, agem and derpp, which draw ten as well; sgd
and joint bound them. The rates of er, agem and derpp are the best of 0.01, 0.03, 0.1 and 0.2 on the
seed 100, which is not reported; sgd and joint have er's, alpha and beta are those of
configs/mnist/permuted.py. Differs from them in: a batch is used once, where they look at it five
times; the memory holds the current task too. What each gives stands in docs/reproduction.md.

Command:  jcl run configs/mnist/permuted_small.py --method la_maml --seeds 10
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import optax

import jcl

EXAMPLES, BATCH = 1000, 10
# No figures of these are published. method: {buffer, 0 for none: settings}
TABLE = {}
BESIDE = {
    "sgd": {0: {"rate": 0.1}},
    "joint": {0: {"rate": 0.1}},
    "er": {200: {"rate": 0.1}},
    "agem": {200: {"rate": 0.03}},
    "derpp": {200: {"rate": 0.1}},
    "la_maml": {200: {"rate": 0.15}},
}
CHANCE = 10.0


@dataclass(frozen=True)
class Config:
    method: Literal["sgd", "joint", "er", "agem", "derpp", "la_maml"] = "la_maml"
    buffer: int = 200  # of all but sgd and joint
    tasks: int = 20
    rate: float | None = None  # by default as above
    evaluate: Literal["boundaries", "end"] = "boundaries"
    seed: int = 0


def build(config: Config) -> jcl.Experiment:
    (setting,) = BESIDE[config.method].values()
    rate = setting["rate"] if config.rate is None else config.rate
    parts = {
        # The mean over batch and draw is the sum of their means at half the rate.
        "er": lambda: [jcl.replay(config.buffer, BATCH), optax.scale(0.5), optax.sgd(rate)],
        "agem": lambda: [jcl.agem(config.buffer, BATCH), optax.sgd(rate)],
        "derpp": lambda: [
            jcl.der(config.buffer, BATCH, 1.0, replay_strength=1.0), optax.sgd(rate)
        ],
        "la_maml": lambda: [jcl.la_maml(config.buffer, BATCH, rate, 0.3)],
    }.get(config.method, lambda: [optax.sgd(rate)])()  # fmt: skip
    few = stream(config)
    model = jcl.models.mlp(jcl.models.MLPConfig(784, (100, 100), 10, scale=1 / 255))
    return jcl.Experiment(
        name=config.method,
        model=model,
        loss_fn=jcl.losses.classify(model.apply),
        strategy=jcl.chain(*parts),
        stream=jcl.data.joint(few) if config.method == "joint" else few,
        measure=jcl.losses.accuracy(model.apply),
        batch_size=BATCH,
        epochs=1,
        seed=config.seed,
        boundary_batches=1,
        evaluation_batch_size=2000,
        evaluate=config.evaluate,
        log_every=100,
        device_data=True,
    )


def stream(config):
    """Every task has images of its own to learn, and all test images."""
    tasks = []
    for number, task in enumerate(
        jcl.data.permuted(jcl.data.mnist(), config.tasks, seed=config.seed).tasks
    ):
        order = np.random.default_rng((config.seed, number, 1)).permutation(len(task.train))
        tasks.append(task._replace(train=jcl.data.Arrays(task.train.take(order[:EXAMPLES]))))
    return jcl.data.Stream("permuted, small", tuple(tasks))
