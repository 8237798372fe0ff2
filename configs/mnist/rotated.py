"""Rotated MNIST: 20 tasks, each a random angle in [0, 180) degrees; one epoch each, plain SGD.

Buzzega et al. 2020 (Dark Experience Replay), the table of R-MNIST: protocol, settings and published
averages below. What jcl gives stands beside them in docs/reproduction.md (`make reproduce`).

Command:  jcl run configs/mnist/rotated.py --method er --buffer 200 --seeds 10
"""

from dataclasses import dataclass
from typing import Literal

import optax

import jcl

# method: {buffer, 0 for none: (published final average accuracy, settings)}
TABLE = {
    "sgd": {0: (67.66, {"rate": 0.2})},
    "joint": {0: (95.76, {"rate": 0.2})},  # its rate is not stated: that of sgd
    "oewc": {0: (77.35, {"rate": 0.1, "strength": 0.7})},
    "si": {0: (71.91, {"rate": 0.1, "strength": 1.0, "damping": 1.0})},
    "er": {200: (85.01, {"rate": 0.2}), 500: (88.91, {"rate": 0.2}), 5120: (93.45, {"rate": 0.2})},
    "gem": {200: (80.80, {"rate": 0.01, "margin": 0.5})},
    "agem": {200: (81.91, {"rate": 0.1})},
    "der": {
        200: (90.04, {"rate": 0.2, "alpha": 1.0}),
        500: (92.24, {"rate": 0.2, "alpha": 0.5}),
        5120: (94.14, {"rate": 0.2, "alpha": 0.5}),
    },
    "derpp": {
        200: (90.43, {"rate": 0.1, "alpha": 1.0, "beta": 0.5}),
        500: (92.77, {"rate": 0.2, "alpha": 0.5, "beta": 1.0}),
        5120: (94.65, {"rate": 0.2, "alpha": 0.5, "beta": 0.5}),
    },
}
WHY = {
    "agem, 200": "the authors' released code, written in PyTorch, gave 77.9 on three streams "
    "(74.9, 82.9, 75.8); with ten examples of each task in memory, as there, jcl gave 77.2",
    "si": "the authors' released code, written in PyTorch, gave 76.7 on three streams, and 71.6 "
    "for sgd, near jcl's 76.9 and 71.5; over jcl's ten streams the sd is 4.8, and the correlation "
    "with sgd .84",
}
CHANCE = 10.0


@dataclass(frozen=True)
class Config:
    method: Literal["sgd", "joint", "oewc", "si", "er", "gem", "agem", "der", "derpp"] = "sgd"
    buffer: int = 0
    tasks: int = 20
    strength: float | None = None  # of oewc and si; by default as in the table
    evaluate: Literal["boundaries", "end"] = "boundaries"  # the table needs the end alone
    seed: int = 0


def build(config: Config) -> jcl.Experiment:
    if config.buffer not in TABLE[config.method]:
        known = ", ".join(str(buffer) for buffer in TABLE[config.method])
        raise jcl.InputError(f"--buffer {config.buffer}: {config.method} has settings for {known}.")
    _, setting = TABLE[config.method][config.buffer]
    batch, buffer, rate = 128, config.buffer, setting["rate"]
    strength = setting.get("strength") if config.strength is None else config.strength
    # What stands left of the optimizer, and right of it. The published online EWC has no half in
    # its penalty and weighs an example's squared gradient by the chance of its label: hence
    # 2 * 1.5 of its strength. Of the factors 0.25, 1, 1.5, 2.14 and 3.57, tried on P-MNIST with
    # seed 100, none of those reported, 1.5 came nearest to the published figure (58.5, 74.0,
    # 76.4, 77.8 and 80.1 %). The published ER takes the mean over batch and draw, which is the sum
    # of their means at half the rate.
    left, right = {
        "oewc": lambda: ([jcl.ewc(2 * 1.5 * strength, recentre=True)], []),
        "si": lambda: ([optax.clip(1.0)], [jcl.si(strength, damping=setting["damping"])]),
        "er": lambda: ([jcl.replay(buffer, size=batch), optax.scale(0.5)], []),
        "gem": lambda: ([jcl.gem(buffer, tasks=config.tasks, margin=setting["margin"])], []),
        "agem": lambda: ([jcl.agem(buffer, size=batch)], []),
        "der": lambda: ([jcl.der(buffer, batch, setting["alpha"])], []),
        "derpp": lambda: (
            [jcl.der(buffer, batch, setting["alpha"], replay_strength=setting["beta"])],
            [],
        ),
    }.get(config.method, lambda: ([], []))()
    stream = jcl.data.rotated(jcl.data.mnist(), config.tasks, seed=config.seed)
    model = jcl.models.mlp(jcl.models.MLPConfig(784, (100, 100), 10, scale=1 / 255))
    joint = config.method == "joint"
    return jcl.Experiment(
        name=f"{config.method}_{buffer}" if buffer else config.method,
        model=model,
        loss_fn=jcl.losses.classify(model.apply),
        strategy=jcl.chain(*left, optax.sgd(rate), *right),
        stream=jcl.data.joint(stream) if joint else stream,
        measure=jcl.losses.accuracy(model.apply),
        batch_size=batch,
        epochs=1,
        seed=config.seed,
        boundary_batches=116 if config.method == "oewc" else 1,  # a quarter of the examples
        evaluation_batch_size=2000,
        evaluate=config.evaluate,
        log_every=117,
        device_data=not joint,  # 20 copies of MNIST a seed would not be worth their memory
    )
