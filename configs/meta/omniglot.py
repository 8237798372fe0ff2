"""Omniglot small: tell drawings of 5 or 20 characters apart from 1 or 5 examples of each.

The 242 characters of Omniglot's two small background sets: 182, with their quarter turns (728
classes), to learn from and 60, as they are, to test on, drawn once for all (`split_classes`, seed
0). Of the glyphs, which need no data, the 150 Japanese ones test; the 890 others are learned from.
The one measure is the accuracy over 1,000 episodes of unseen characters; the first row of the
matrix is that of no meta-training.

MAML, FOMAML and ANIL have the steps, rates and Adam of Finn et al. 2017, appendix A.1 (dense:
256-128-64-64, batch normalization), Reptile the outer rate, falling from 1 to 0, and the numbers of
inner steps, 5 and in the test 50, of Nichol et al. 2018 with transduction, ProtoNet Adam at 0.001
of Snell et al. 2017, section 3.1. Differs from them in: 2,000 meta-steps and not 60,000 or more; 8
episodes a meta-step (convolutional 4, and 1 at 20 ways), not 32 (16 at 20 ways; Reptile 5); 32
filters; 5 queries of a class; Reptile's inner steps are SGD's and not Adam's, and all see the same
5 shots of a class, in the test all shots, not batches of 10 and 5; ProtoNet is trained on as many
ways as it is tested on. Adam at 0.001, whose state begins anew in every episode here, learned
nothing in so few meta-steps (convolutional, 1 shot: 29.7 % before, 29.4 after); SGD at 0.1 and at
0.4 were alike on the glyphs (63.4 and 63.1 % from 1 shot). All predictions are transductive: an
episode's queries are normalized together (ProtoNet's with the support). What each gives stands in
docs/meta.md.

Command:  jcl run configs/meta/omniglot.py --method maml --ways 5 --shots 1 --backbone convolutional
"""

import functools
from dataclasses import dataclass
from typing import Literal

import optax

import jcl

MEASURED_TOGETHER = 250  # episodes
TEST_SEED = 2**31
TASKS = {("dense", 5): 8, ("dense", 20): 2, ("convolutional", 5): 4, ("convolutional", 20): 1}


@dataclass(frozen=True)
class Config:
    method: Literal["maml", "fomaml", "anil", "reptile", "prototypes"] = "maml"
    backbone: Literal["dense", "convolutional"] = "convolutional"
    source: Literal["omniglot", "glyphs"] = "omniglot"
    ways: Literal[5, 20] = 5
    shots: Literal[1, 5] = 1
    queries: int = 5  # of a class
    tasks: int | None = None  # a meta-step; by default those of TASKS
    meta_steps: int = 2000
    rate: float | None = None  # of the outer Adam, by default 0.001; Reptile's falls from 1
    inner_rate: float | None = None  # of Reptile's SGD, by default 0.4
    episodes: int = 1000  # to measure on
    seed: int = 0


def build(config: Config) -> jcl.Experiment:
    if config.seed == TEST_SEED:
        raise jcl.InputError(f"--seed {TEST_SEED} draws the test's episodes: take another.")
    if config.method != "reptile" and config.inner_rate is not None:
        raise jcl.InputError(f"--inner_rate: {config.method} has its own, leave it out.")
    if config.backbone == "dense":
        shape = jcl.models.MLPConfig(
            784, (256, 128, 64, 64), config.ways, scale=1 / 255, normalization="batch"
        )
        model = jcl.models.mlp(shape)
    else:
        shape = jcl.models.ConvolutionalConfig(filters=32, classes=config.ways, scale=1 / 255)
        model = jcl.models.convolutional(shape)
    over = "map"  # of either network the quicker on a CPU, and an episode's memory at a time
    loss_fn = jcl.losses.classify(model.apply)
    outer = optax.adam(1e-3 if config.rate is None else config.rate)
    if config.method == "prototypes":
        meta_loss = measured = jcl.prototypes(model.features, config.ways, over=over)
    elif config.method == "reptile":
        inner_rate = 0.4 if config.inner_rate is None else config.inner_rate
        inner = {"optimizer": optax.sgd(inner_rate), "over": over}
        meta_loss = jcl.reptile(loss_fn, steps=5, **inner)
        measured = jcl.maml(loss_fn, steps=50, **inner)
        first = 1.0 if config.rate is None else config.rate
        outer = optax.sgd(optax.linear_schedule(first, 0.0, config.meta_steps))
    else:
        inner_rate, training, testing = {5: (0.4, 1, 3), 20: (0.1, 5, 5)}[config.ways]
        adapted = functools.partial(
            jcl.maml,
            loss_fn,
            optimizer=optax.sgd(inner_rate),
            where="head/*" if config.method == "anil" else "*",
            over=over,
        )
        first_order = config.method == "fomaml"
        meta_loss = adapted(steps=training, first_order=first_order)
        measured = adapted(steps=testing)
    measure = jcl.meta.accuracy(measured)
    return jcl.Experiment(
        name=f"{config.source}_{config.ways}w{config.shots}s_{config.backbone}_{config.method}",
        model=model,
        loss_fn=meta_loss,
        strategy=outer,
        stream=drawings(config),
        measure=measure,
        probes={"deviation": jcl.meta.deviation(measure)},
        batch_size=tasks(config),
        steps=config.meta_steps,
        seed=config.seed,
        boundary_batches=1,
        evaluation_batch_size=min(config.episodes, MEASURED_TOGETHER),
        log_every=100,
    )


def tasks(config):
    number = TASKS[config.backbone, config.ways] if config.tasks is None else config.tasks
    if number < 1:
        raise jcl.InputError(f"--tasks {number}: a meta-step takes at least one episode.")
    return number


def drawings(config):
    """One stage of episodes, none of which comes twice, and a test on characters it has not."""
    source, split = characters(config.source)
    # Reptile learns from more shots than it is measured on.
    shots, queries = (5, 1) if config.method == "reptile" else (config.shots, config.queries)
    number = config.meta_steps * tasks(config)
    episodes = functools.partial(jcl.data.Episodes, source, config.ways)
    train = episodes(shots, queries, number=number, seed=config.seed, classes=split.train)
    test = episodes(
        config.shots, config.queries, number=config.episodes, seed=TEST_SEED, classes=split.test
    )
    name = f"{config.ways} ways, {config.shots} shot{'s' * (config.shots > 1)}"
    task = jcl.data.Task(name, train, test, test.hash())
    return jcl.data.Stream(config.source, (task,), stages=(train,))


@functools.cache
def characters(name):
    """The drawings, and which classes are for training and which for the test."""
    if name == "glyphs":
        source = jcl.data.glyphs()
        return source, jcl.data.split_classes(source.alphabets, test=["japanese"])
    drawn = jcl.data.omniglot()
    turned = jcl.data.quarter_turns(drawn)
    split = jcl.data.split_classes(turned.names, test=60)
    return turned, split._replace(test=split.test[split.test < drawn.classes])
