"""Split MNIST: 5 tasks of two digits, class- or task-incremental; one epoch each, plain SGD.

Buzzega et al. 2020 (Dark Experience Replay), the tables of S-MNIST: protocol, settings and
published averages below. Both scenarios train one head of ten classes alike; task-incremental
masks the other tasks' logits in the test. docs/reproduction.md has what jcl gives.

Command:  jcl run configs/mnist/split.py --scenario class --method er --buffer 200 --seeds 10
"""

from dataclasses import dataclass
from typing import Literal

import optax

import jcl

# method: {buffer, 0 for none: (published class-, task-incremental accuracy, settings)}
TABLE = {
    "sgd": {0: (19.60, 94.94, {"rate": 0.03})},
    "joint": {0: (95.57, 99.51, {"rate": 0.03})},  # its rate is not stated: that of sgd
    "oewc": {0: (20.46, 98.39, {"rate": 0.03, "strength": 90.0})},
    "si": {0: (19.27, 96.00, {"rate": 0.1, "strength": 1.0, "damping": 0.9})},
    "lwf": {0: (19.62, 94.11, {"rate": 0.03, "strength": 1.0, "decay": 5e-4})},
    "er": {
        200: (80.43, 97.86, {"rate": 0.01, "size": 10}),
        500: (86.12, 99.04, {"rate": 0.1, "size": 10}),
        5120: (93.40, 99.33, {"rate": 0.1, "size": 10}),
    },
    "gem": {200: (80.11, 97.78, {"rate": 0.01, "margin": 1.0})},
    "agem": {200: (45.72, 98.61, {"rate": 0.1, "size": 128})},
    "der": {
        200: (84.55, 98.80, {"rate": 0.03, "size": 10, "alpha": 0.2}),
        500: (90.54, 98.84, {"rate": 0.03, "size": 128, "alpha": 1.0}),
        5120: (94.90, 99.29, {"rate": 0.1, "size": 128, "alpha": 0.5}),
    },
    "derpp": {
        200: (85.61, 98.76, {"rate": 0.03, "size": 128, "alpha": 0.2, "beta": 1.0}),
        500: (91.00, 98.94, {"rate": 0.03, "size": 10, "alpha": 1.0, "beta": 0.5}),
        5120: (95.30, 99.47, {"rate": 0.1, "size": 64, "alpha": 0.2, "beta": 0.5}),
    },
}
# Not in the published tables: its authors' rates for permuted MNIST.
BESIDE = {"la_maml": {200: {"rate": 0.15, "size": 10}}}
CHANCE = {"class": 10.0, "task": 50.0}
WHY = {
    "lwf, task": "the protocol of the authors' released code, written in PyTorch (its warm-up of "
    "the new classes' weights, masks, weight decay), gave 98.7 over three seeds too, and 96.2 "
    "without the distillation: the published figure does not follow from it",
}


@dataclass(frozen=True)
class Config:
    scenario: Literal["class", "task"] = "class"
    method: Literal[
        "sgd", "joint", "oewc", "si", "lwf", "er", "gem", "agem", "der", "derpp", "la_maml"
    ] = "sgd"
    buffer: int = 0
    strength: float | None = None  # of oewc, si and lwf; by default as in the table
    seed: int = 0


def build(config: Config) -> jcl.Experiment:
    settings = BESIDE.get(config.method) or {
        buffer: setting for buffer, (*_, setting) in TABLE[config.method].items()
    }
    if config.buffer not in settings:
        known = ", ".join(map(str, settings))
        raise jcl.InputError(f"--buffer {config.buffer}: {config.method} has settings for {known}.")
    setting = settings[config.buffer]
    batch, buffer, size = 10, config.buffer, setting.get("size")
    strength = setting.get("strength") if config.strength is None else config.strength
    # What stands left of the optimizer, and right of it. The published penalty has no half, which
    # ewc has: hence twice the strength. The published ER takes the mean over batch and draw, which
    # is the sum of their means at half the rate.
    left, right = {
        "oewc": lambda: ([jcl.ewc(2 * strength, recentre=True)], []),
        "si": lambda: ([optax.clip(1.0)], [jcl.si(strength, damping=setting["damping"])]),
        "lwf": lambda: ([jcl.lwf(strength), optax.add_decayed_weights(setting["decay"])], []),
        "er": lambda: ([jcl.replay(buffer, size), optax.scale(0.5)], []),
        "gem": lambda: ([jcl.gem(buffer, tasks=5, margin=setting["margin"])], []),
        "agem": lambda: ([jcl.agem(buffer, size)], []),
        "der": lambda: ([jcl.der(buffer, size, setting["alpha"])], []),
        "derpp": lambda: (
            [jcl.der(buffer, size, setting["alpha"], replay_strength=setting["beta"])],
            [],
        ),
        "la_maml": lambda: ([], [jcl.la_maml(buffer, size, setting["rate"], 0.3)]),
    }.get(config.method, lambda: ([], []))()
    stream = jcl.data.split(jcl.data.mnist(), config.scenario, masked="test")
    model = jcl.models.mlp(jcl.models.MLPConfig(784, (100, 100), 10, scale=1 / 255))
    return jcl.Experiment(
        name=f"{config.method}_{buffer}" if buffer else config.method,
        model=model,
        loss_fn=jcl.losses.classify(model.apply),
        strategy=jcl.chain(*left, optax.sgd(setting["rate"]), *right),
        stream=jcl.data.joint(stream) if config.method == "joint" else stream,
        measure=jcl.losses.accuracy(model.apply),
        batch_size=batch,
        epochs=1,
        seed=config.seed,
        boundary_batches=1120 if config.method == "oewc" else 20,
        evaluation_batch_size=1000,
        log_every=200,
        device_data=True,
    )
