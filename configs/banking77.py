"""Banking77: 77 intents of bank customers in 7 tasks, class-incremental, with a pretrained encoder.

The encoders and the methods are those of configs/clinc150.py, on longer texts (98 tokens) with
classes of unequal size (35 to 187). Accuracy, forgetting, time and memory: docs/text.md, by
`make text`.

Needs JCL_DATA, a folder with banking77 (train.csv, test.csv and categories.json, as its authors
publish them) and minilm_l6 (sentence-transformers/all-MiniLM-L6-v2 as the hub has it).

Command:  jcl run configs/banking77.py --method best
"""

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import optax

import jcl

FROZEN = ("linear", "cosine", "nearest_class_mean", "slda", "random_slda")


@dataclass(frozen=True)
class Config:
    method: Literal[
        "naive", "joint", "replay", "ewc", "lwf", "derpp", "agem", "lora", "olora", "linear",
        "cosine", "nearest_class_mean", "slda", "random_slda", "best",
    ] = "naive"  # fmt: skip
    backbone: Literal["minilm", "small"] = "minilm"
    examples: int = 10  # stored of each intent, by the methods with a memory
    batch_size: int = 32
    epochs: float = 1.0
    rate: float | None = None  # of the encoder; by default 1e-4, and 1e-3 from scratch
    head_rate: float = 3e-3
    strength: float | None = None  # of ewc, lwf, derpp or olora
    seed: int = 0


def build(config: Config) -> jcl.Experiment:
    stream = texts()
    tasks, classes = len(stream.tasks), stream.classes
    model = encoder(config.backbone, classes)
    if config.method in FROZEN:
        stream = features(config.backbone)
        model = jcl.models.mlp(jcl.models.MLPConfig(model.config.width, (), classes))
    slow = 2e-5 if config.method == "best" else 1e-4
    rate = config.rate or {"minilm": slow, "small": 1e-3}[config.backbone]
    body = ["layer_*"] if config.backbone == "minilm" else ["layer_*", "embeddings/*"]

    def train(*trained, peak=rate, between=()):
        """Adam on these params and, at the head's rate, on the head; the others are held still."""

        def adam(peak):
            return jcl.per_task(jcl.scheduled(optax.adam, jcl.cosine(peak, warmup=0.1)))

        parts = [jcl.only(trained, adam(peak)), jcl.only("classifier/*", adam(config.head_rate))]
        rest = (
            [] if "embeddings/*" in trained else [jcl.freeze("*", but=[*trained, "classifier/*"])]
        )
        return [*parts, *between, *rest]

    def strength(default):
        return default if config.strength is None else config.strength

    def random_slda():
        wide = jcl.models.random_features(model, 2000)
        part = jcl.slda(wide.features, classes, shrinkage=1e-2, refresh="boundary")
        return wide, [jcl.freeze("*"), part]

    def best():
        expand = jcl.models.random_expansion(model.config.width, 4000)
        part = jcl.slda_replay(
            model.features, classes, capacity=capacity, size=size, shrinkage=1e-2,
            head="classifier", answer="wide", expand=expand,
        )  # fmt: skip
        wide = jcl.models.second_head(model, "wide", expand, width=4000, classes=classes)
        return wide, [part, optax.clip_by_global_norm(1.0), *train(*body)]

    def lora(slots=1):
        return jcl.models.lora(model, 8, 16.0, "layer_*", slots=slots)

    capacity, size = classes * config.examples, config.batch_size
    memory = jcl.memory.class_balanced(capacity, classes)
    head, frozen = [optax.adam(config.head_rate)], jcl.freeze("*")
    der = functools.partial(jcl.der, capacity, size, replay_strength=1.0)
    narrow = model
    model, parts = {
        "replay": lambda: (model, [jcl.replay(memory, size), *train(*body)]),
        "ewc": lambda: (
            model, [jcl.only([*body, "classifier/*"], jcl.ewc(strength(1e3))), *train(*body)]
        ),
        "lwf": lambda: (model, [jcl.lwf(strength(1.0)), *train(*body)]),
        "derpp": lambda: (model, [der(strength(0.3)), *train(*body)]),
        "agem": lambda: (model, [jcl.agem(capacity, size, insert="step"), *train(*body)]),
        "lora": lambda: (lora(), train("lora/*", peak=1e-3)),
        "olora": lambda: (
            lora(tasks),
            train("lora/*", peak=1e-3, between=[jcl.olora(strength(0.5), tasks)]),
        ),
        "linear": lambda: (model, head),
        "cosine": lambda: (jcl.models.cosine_head(model), head),
        "nearest_class_mean": lambda: (
            model, [frozen, jcl.nearest_class_mean(model.features, classes)]
        ),
        "slda": lambda: (model, [frozen, jcl.slda(model.features, classes)]),
        "random_slda": random_slda,
        "best": best,
    }.get(config.method, lambda: (model, train(*body)))()  # fmt: skip
    return jcl.Experiment(
        name=f"{config.backbone}_{config.method}",
        model=model,
        loss_fn=jcl.losses.classify(
            narrow.apply if config.method == "best" else model.apply, answer=model.apply
        ),
        strategy=jcl.chain(*parts),
        stream=jcl.data.joint(stream) if config.method == "joint" else stream,
        measure=jcl.losses.accuracy(model.apply),
        batch_size=size,
        epochs=config.epochs,
        seed=config.seed,
        boundary_batches=8 if config.method == "ewc" else 1,
        evaluation_batch_size=150,
        log_every=20,
        tokenizer=tokenizer(),
    )


def folder() -> Path:
    if not os.environ.get("JCL_DATA"):
        raise jcl.InputError("Set JCL_DATA to the folder that holds banking77 and minilm_l6.")
    return Path(os.environ["JCL_DATA"]) / "minilm_l6"


@functools.cache
def tokenizer():
    return jcl.models.tokenizer(folder())


@functools.cache
def texts():
    return jcl.data.banking77(tokenizer=tokenizer())


@functools.cache
def encoder(backbone, classes):
    shape = {"head": "classes", "classes": classes, "pooling": "mean", "dropout": 0.0}
    if backbone == "small":
        words = len(tokenizer())
        return jcl.models.bert(jcl.models.BertConfig(words, 128, 128, 2, 4, 512, **shape))
    model, params = jcl.models.from_pretrained(folder(), key=jax.random.key(0), **shape)
    return jcl.models.starting_from(model, params, fresh="classifier/*")


@functools.cache
def features(backbone):
    """What the encoder, as it begins, makes of every text."""
    stream = texts()
    model = encoder(backbone, stream.classes)
    params = jax.jit(model.init)(jax.random.key(0))
    encode = jax.jit(
        lambda params, inputs, mask: model.features(params, inputs, attention_mask=mask)
    )
    return jcl.data.encoded(
        stream, lambda batch: encode(params, batch["inputs"], batch["attention_mask"])
    )
