"""Sinusoids: fit a sine of unknown amplitude and phase from a few points.

Finn et al. 2017 (MAML), section 5.1: amplitude in [0.1, 5], phase in [0, pi], x in [-5, 5]; two
layers of 40; one inner step at 0.01 on K = 10 points; 25 sines a meta-step; Adam at 0.001; 70,000
meta-steps. The one model is measured on 600 new sines, by the mean squared error after 1, 5 and 10
steps on K = 5, 10 and 20 of their points. An error of 100, the largest that an answer within the
range of all sines can have, is the most that a point counts: now and then a sine is thrown off, and
its error then knows no bound.

joint is trained on all sines at once, without adapting (and adapts when it is measured); what no
training at all gives, from scratch, is the first row of any method's matrix. What each gives stands
in docs/meta.md.

Command:  jcl run configs/meta/sinusoid.py --method maml --seeds 3
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import optax

import jcl
from jcl import checks

SHOTS, STEPS = (5, 10, 20), (1, 5, 10)
LARGEST = 100.0  # squared error: 5 in place of -5
TEST_SEED = 2**31


@dataclass(frozen=True)
class Config:
    method: Literal["maml", "fomaml", "anil", "meta_sgd", "reptile", "joint"] = "maml"
    meta_steps: int = 70_000
    inner_steps: int | None = None  # by default 1, of reptile 5; joint has none
    inner_rate: float = 0.01
    rate: float | None = None  # of the outer Adam, by default 0.001; Reptile's falls from 1
    sines: int = 25  # a meta-step
    shots: int = 10
    seed: int = 0


def build(config: Config) -> jcl.Experiment:
    if config.seed == TEST_SEED:
        raise jcl.InputError(f"--seed {TEST_SEED} draws the test's sines: take another.")
    if config.method == "joint" and config.inner_steps is not None:
        raise jcl.InputError("--inner_steps: joint is trained without any, leave it out.")
    for field in ("inner_rate", "rate"):
        if (value := getattr(config, field)) is not None:
            checks.number("sinusoid", f"--{field}", value)
    rate, steps = config.rate, config.inner_steps
    model = jcl.models.mlp(jcl.models.MLPConfig(inputs=1, hidden=(40, 40), classes=1))
    loss_fn = jcl.losses.squared_error(model.apply)
    inner = {"optimizer": optax.sgd(config.inner_rate)}
    outer = optax.adam(1e-3 if rate is None else rate)
    if config.method == "meta_sgd":
        model = jcl.meta.learned_rates(model, config.inner_rate)
        inner = {"optimizer": optax.sgd(1.0), "rates": "rates"}
    if config.method == "anil":
        inner["where"] = "head/*"
    if config.method == "reptile":
        # Its inner steps are more than one, since one is no more than joint training.
        meta_loss = jcl.reptile(loss_fn, steps=5 if steps is None else steps, **inner)
        first = 1.0 if rate is None else rate
        outer = optax.sgd(optax.linear_schedule(first, 0.0, config.meta_steps))
    else:
        usual = 0 if config.method == "joint" else 1
        meta_loss = jcl.maml(
            loss_fn,
            steps=usual if steps is None else steps,
            first_order=config.method == "fomaml",
            **inner,
        )
    return jcl.Experiment(
        name=config.method,
        model=model,
        loss_fn=meta_loss,
        strategy=outer,
        stream=sines(config),
        measure=jcl.meta.squared_error(jcl.maml(loss_fn, steps=None, **inner), at_most=LARGEST),
        batch_size=config.sines,
        steps=config.meta_steps,
        seed=config.seed,
        boundary_batches=1,
        evaluation_batch_size=100,
        log_every=1000,
        device_data=True,
    )


def sines(config):
    """One stage of sines, none of which comes twice, and a test for all shots and steps."""
    number = config.meta_steps * config.sines
    train = jcl.data.sinusoids(number, config.shots, config.shots, seed=config.seed)
    tasks = []
    for shots in SHOTS:
        test = jcl.data.sinusoids(600, shots, 100, seed=TEST_SEED, padded_shots=max(SHOTS))
        for steps in STEPS:
            own = jcl.data.Arrays(test.arrays(), constants={"steps": np.int32(steps)})
            tasks.append(jcl.data.Task(f"{shots}/{steps}", train, own, own.hash()))
    return jcl.data.Stream("sinusoids", tuple(tasks), stages=(train,))
