"""MNIST-360: slowly rotating digits in a stream without task boundaries, met once; plain SGD.

Buzzega et al. 2020 (Dark Experience Replay), section 4 and its table of general continual learning.
The published settings are not at hand: rate, batch, draw and strengths are those of P-MNIST's
kind, chosen by hand. docs/reproduction.md has what jcl gives beside the published averages.

Command:  jcl run configs/mnist/mnist_360.py --method er --buffer 200 --seeds 10
"""

from dataclasses import dataclass
from typing import Literal

import optax

import jcl

# method: {buffer, 0 for none: published final accuracy}
TABLE = {
    "sgd": {0: 19.09},
    "joint": {0: 82.98},
    "er": {200: 49.27, 500: 65.04, 1000: 75.18},
    "der": {200: 55.22, 500: 69.11, 1000: 75.97},
    "derpp": {200: 54.16, 500: 69.62, 1000: 76.03},
}
CHANCE = 100 / 9


@dataclass(frozen=True)
class Config:
    method: Literal["sgd", "joint", "er", "der", "derpp"] = "sgd"
    buffer: int = 0
    learning_rate: float = 0.1
    batch_size: int = 16
    size: int = 16  # of a draw
    alpha: float = 0.5
    beta: float = 0.5
    seed: int = 0


def build(config: Config) -> jcl.Experiment:
    if config.buffer not in TABLE[config.method]:
        known = ", ".join(str(buffer) for buffer in TABLE[config.method])
        raise jcl.InputError(f"--buffer {config.buffer}: {config.method} has settings for {known}.")
    buffer, size = config.buffer, config.size
    parts = {
        "er": lambda: [jcl.replay(buffer, size), optax.scale(0.5)],
        "der": lambda: [jcl.der(buffer, size, config.alpha)],
        "derpp": lambda: [jcl.der(buffer, size, config.alpha, replay_strength=config.beta)],
    }.get(config.method, list)()
    stream = jcl.data.mnist_360(jcl.data.mnist(), seed=config.seed)
    if config.method == "joint":  # the same examples, shuffled
        everything = jcl.data.Chosen(stream.stages[0], range(len(stream.stages[0])))
        stream = jcl.data.Stream(stream.name, stream.tasks, (everything,))
    model = jcl.models.mlp(jcl.models.MLPConfig(784, (100, 100), 9, scale=1 / 255))
    return jcl.Experiment(
        name=f"{config.method}_{buffer}" if buffer else config.method,
        model=model,
        loss_fn=jcl.losses.classify(model.apply),
        strategy=jcl.chain(*parts, optax.sgd(config.learning_rate)),
        stream=stream,
        measure=jcl.losses.accuracy(model.apply),
        batch_size=config.batch_size,
        epochs=1,
        seed=config.seed,
        boundary_batches=1,
        evaluation_batch_size=1000,
        log_every=200,
        device_data=True,
    )
