"""A small perceptron on three tasks of points, whose tests a test may change."""

from dataclasses import dataclass
from typing import Annotated, Literal

import jax
import numpy as np
import optax

import jcl

TESTS = "plain"  # or "others", which cannot be read either


@dataclass(frozen=True)
class Config:
    rate: Annotated[float, jcl.space.log_uniform(1e-3, 1.0)] = 0.1
    strength: float = 1.0
    share: float = 1.0  # decides how many steps there are
    width: Annotated[int | None, jcl.space.uniform(4, 6)] = 6
    method: Literal["l2", "naive"] = "l2"
    seed: int = 0


class Untouchable(jcl.data.Arrays):
    def take(self, indices):
        raise AssertionError("a test example was asked for")

    __getitem__ = arrays = take


def stream():
    tasks = []
    for number, name in enumerate(("left", "middle", "right")):
        draw = np.random.default_rng(number)
        inputs = draw.normal(0, 1, (56, 5)).astype(np.float32)
        targets = (inputs[:, number] > 0).astype(np.int32)
        train = jcl.data.Arrays({"inputs": inputs[:40], "targets": targets[:40]})
        if TESTS == "plain":
            test = jcl.data.Arrays({"inputs": inputs[40:], "targets": targets[40:]})
        else:
            test = Untouchable({"inputs": inputs[:7], "targets": 1 - targets[:7]})
        tasks.append(jcl.data.Task(name, train, test, train.hash() + test.hash()))
    return jcl.data.Stream("points", tuple(tasks))


def perceptron(width):
    def init(key):
        key_body, key_head = jax.random.split(key)
        return {
            "body": jax.random.normal(key_body, (5, width)),
            "head": jax.random.normal(key_head, (width, 2)),
        }

    def apply(params, inputs, key=None):
        return jax.nn.relu(inputs @ params["body"]) @ params["head"]

    return jcl.models.Model(init, apply, None)


def build(config):
    if config.method == "l2" and config.width == 5:
        raise jcl.InputError("l2 is not for a width of 5.")
    model = perceptron(config.width)
    parts = {"l2": [jcl.l2(config.strength)], "naive": []}[config.method]
    return jcl.Experiment(
        name=config.method,
        model=model,
        loss_fn=jcl.losses.classify(model.apply),
        strategy=jcl.chain(*parts, optax.sgd(config.rate)),
        stream=stream(),
        measure=jcl.losses.accuracy(model.apply),
        batch_size=8,
        epochs=config.share,
        seed=config.seed,
        boundary_batches=1,
        log_every=4,
        device_data=True,
    )
