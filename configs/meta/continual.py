"""OML and ANML: a hundred classes learned one drawing after another, each drawing once.

phase train, on the meta-train classes. oml (Javed and White 2019): 15 drawings of one class are
learned one by one, by the head alone, from fresh weights for that class; the meta-loss is on five
others of it and on 64 drawings of other classes. anml (Beaulieu et al. 2020): a second network
gates the features, and the inner loop learns the whole first one. pretrained is plain training on
19 drawings of each class, 64 at a time.

phase test, on other classes in tasks of ten: 15 drawings of each class, class after class, each
drawing one step of plain SGD. Row i of the matrix is the accuracy on the five others of each class
of every task, of which i have been seen. oml, anml and pretrained learn the head alone, and
nearest_class_mean stores the means of the pretrained features; scratch learns all params; er
learns all the pretrained ones, ten stored drawings beside each new one. RATES and
INNER_RATES are those of the best accuracy on 30 further classes, the phase validate, with one seed:
of oml and anml after 1,500 meta-steps, of rates 0.001 to 0.1 and inner rates 0.01, 0.03 and 0.1,
the last of which is the end of its range (the glyphs prefer it too); of the others after 800
meta-steps, of rates 0.001 to 0.03 (pretrained 0.003 to 0.1).

Differs from the papers in: they choose the rate on the tested classes; have 964 characters to
train on, 256 filters, and 20,000 meta-steps and more; ANML's meta-loss is on the very drawings it
has learned.

Classes: of Omniglot's 242 characters at hand 112 train, 30 validate, 100 test; of the glyphs 100
Japanese ones test, 28 signs of meteorology and markers validate, and the 862 of the other fonts
train. What each gives: docs/meta.md.

Commands:  jcl run configs/meta/continual.py --method oml --seeds 3
           jcl run configs/meta/continual.py --phase test --method oml --seeds 3
"""

import functools
from dataclasses import dataclass
from typing import Literal

import optax

import jcl
from jcl.answer import learned_params

LEARNED, DRAWINGS, TASK = 15, 20, 10  # drawings of a class to learn, in all; classes of a task
TEST_SEED = 2**31
INNER_RATES = {"oml": 0.1, "anml": 0.1}
RATES = {"oml": 0.003, "anml": 0.01, "pretrained": 0.01, "scratch": 0.001, "er": 0.01}


@dataclass(frozen=True)
class Config:
    method: Literal["oml", "anml", "pretrained", "scratch", "er", "nearest_class_mean"] = "oml"
    phase: Literal["train", "validate", "test"] = "train"
    source: Literal["omniglot", "glyphs"] = "omniglot"
    start: str | None = None  # the run folder of the phase train; by default where that puts it
    meta_steps: int = 3000
    meta_rate: float = 1e-3
    inner_rate: float | None = None  # of oml's and anml's phase train; by default INNER_RATES
    rate: float | None = None  # of the phases validate and test; by default RATES
    filters: int = 64
    memory: int | None = None  # drawings that er stores, by default 500
    seed: int = 0


def build(config: Config) -> jcl.Experiment:
    return train(config) if config.phase == "train" else test(config)


def network(config, classes):
    shape = jcl.models.ConvolutionalConfig(
        filters=config.filters, blocks=3, classes=classes, normalization="instance", scale=1 / 255
    )
    if config.method != "anml":
        return jcl.models.convolutional(shape)
    return jcl.models.neuromodulated(jcl.models.NeuromodulatedConfig(shape, config.filters // 2))


def refuse_unused(config, *used):
    for field in ("start", "inner_rate", "rate", "memory"):
        if field not in used and getattr(config, field) is not None:
            raise jcl.InputError(
                f"--{field}: the phase {config.phase} of {config.method} has none, leave it out."
            )


def train(config):
    if config.method not in ("oml", "anml", "pretrained"):
        raise jcl.InputError(f"{config.method} has no phase train: give it --phase test.")
    refuse_unused(config, *(["inner_rate"] if config.method in INNER_RATES else []))
    if config.seed == TEST_SEED:
        raise jcl.InputError(f"--seed {TEST_SEED} draws what is measured: take another.")
    source, (classes, _, _) = drawings(config.source)
    model = network(config, len(classes))
    loss_fn, plain = jcl.losses.classify(model.apply), config.method == "pretrained"
    if plain:
        (own,) = jcl.data.class_sequence(
            source, classes, task=len(classes), learned=DRAWINGS - 1
        ).tasks
        stage = jcl.data.Arrays(own.train.arrays())
        task, measure = own._replace(train=stage), jcl.losses.accuracy(model.apply)
    else:
        made = functools.partial(
            jcl.data.Trajectories, source, 1, LEARNED, DRAWINGS - LEARNED, 64, classes=classes
        )
        stage = made(number=config.meta_steps, seed=config.seed)
        task = jcl.data.Task("train", stage, made(number=20, seed=TEST_SEED), stage.hash())
        inner_rate = INNER_RATES[config.method] if config.inner_rate is None else config.inner_rate
        loss_fn = jcl.maml(
            loss_fn,
            steps=LEARNED,
            optimizer=optax.sgd(inner_rate),
            where="head/*" if config.method == "oml" else ["prediction/*", "head/*"],
            one_by_one=True,
            start=jcl.meta.fresh_classes(),
            over="map",
        )
        measure = jcl.meta.accuracy(loss_fn)
    return jcl.Experiment(
        name=f"train_{config.method}_{config.source}",
        model=model,
        loss_fn=loss_fn,
        strategy=jcl.chain(optax.clip_by_global_norm(10.0), optax.adam(config.meta_rate)),
        stream=jcl.data.Stream("meta-train", (task,)),
        measure=measure,
        batch_size=64 if plain else 1,
        steps=config.meta_steps,
        seed=config.seed,
        boundary_batches=1,
        evaluation_batch_size=56 if plain else 1,
        log_every=100,
    )


def test(config):
    own = {"scratch": ["rate"], "nearest_class_mean": ["start"], "er": ["start", "rate", "memory"]}
    refuse_unused(config, *own.get(config.method, ["start", "rate"]))
    source, split = drawings(config.source)
    classes = split.validation if config.phase == "validate" else split.test
    model = network(config, len(classes))
    if config.method != "scratch":
        before = config.method if config.method in INNER_RATES else "pretrained"
        run = config.start or f"runs/continual/train_{before}_{config.source}"
        params = learned_params(run, config.seed)
        model = jcl.models.starting_from(model, params, fresh="head/*")
    step = optax.sgd(RATES.get(config.method, 0.0) if config.rate is None else config.rate)
    means = jcl.nearest_class_mean(model.features, len(classes))
    parts = {
        "scratch": [step],
        "er": [jcl.replay(500 if config.memory is None else config.memory, 10), step],
        "nearest_class_mean": [jcl.freeze("*"), means],
    }.get(config.method, [jcl.only("head/*", step), jcl.freeze("*", but="head/*")])
    return jcl.Experiment(
        name=f"{config.phase}_{config.method}_{config.source}",
        model=model,
        loss_fn=jcl.losses.classify(model.apply),
        strategy=jcl.chain(*parts),
        stream=jcl.data.class_sequence(source, classes, task=TASK, learned=LEARNED),
        measure=jcl.losses.accuracy(model.apply),
        batch_size=1,
        epochs=1,
        seed=config.seed,
        boundary_batches=1,
        evaluation_batch_size=TASK * (DRAWINGS - LEARNED),
        log_every=TASK * LEARNED,
        device_data=True,
    )


@functools.cache
def drawings(source):
    """Twenty drawings of every character, and the characters divided."""
    if source == "omniglot":
        found = jcl.data.omniglot()
        return found, jcl.data.split_classes(found.classes, test=100, validation=30)
    found = jcl.data.glyphs(drawings=DRAWINGS)
    signs, letters = ["markers", "meteorology"], ["japanese"]
    split = jcl.data.split_classes(found.alphabets, validation=signs, test=letters)
    return found, split._replace(test=split.test[:100])
