"""Which encoder for the intents of a smart home: its size, its attention, what of it is trained.

30 intents in 5 tasks, six new ones in each, with a replay memory of ten sentences of every intent;
all from the installation, no network. The encoders read bytes and begin with random weights, so
that LoRA and a head alone stand on features that were never trained: with a pretrained encoder
(configs/clinc150.py) they have more to build on. What was measured: docs/search.md.

Command:  jcl select configs/select.py --candidate size=small,base
          --candidate attention=exact,performer --candidate adaptation=full,lora,head
"""

import functools
from dataclasses import dataclass
from typing import Literal

import optax

import jcl


@dataclass(frozen=True)
class Config:
    size: Literal["small", "base"] = "small"
    attention: Literal["exact", "performer"] = "exact"
    adaptation: Literal["full", "lora", "head"] = "full"
    tasks: int = 5
    examples: int = 10  # stored of each intent
    batch_size: int = 30
    epochs: float = 10.0
    rate: float = 2e-3
    rank: int = 8  # of LoRA
    seed: int = 0


def build(config: Config) -> jcl.Experiment:
    stream = intents(config.tasks)
    width, layers, heads = {"small": (64, 2, 2), "base": (128, 4, 4)}[config.size]
    model = jcl.models.bert(
        jcl.models.BertConfig(
            vocab_size=jcl.data.ByteTokenizer.vocab_size,
            positions=stream.length,
            width=width,
            layers=layers,
            heads=heads,
            inner=4 * width,
            dropout=0.0,
            head="classes",
            classes=stream.classes,
            pooling="mean",
            padding=jcl.data.ByteTokenizer.pad,
            attention=jcl.models.Performer(64) if config.attention == "performer" else None,
        )
    )
    if config.adaptation == "lora":
        model = jcl.models.lora(model, config.rank, 2.0 * config.rank, "layer_*")
    trained = {"full": ["*"], "lora": ["lora/*", "classifier/*"], "head": ["classifier/*"]}
    # Clipped by the norm of their own gradients: one over all would need those of frozen params.
    optimizer = jcl.chain(
        optax.clip_by_global_norm(1.0),
        jcl.scheduled(optax.adamw, jcl.cosine(config.rate, warmup=0.1)),
    )
    memory = jcl.memory.class_balanced(config.examples * stream.classes, stream.classes)
    return jcl.Experiment(
        name=f"{config.size}_{config.attention}_{config.adaptation}",
        model=model,
        loss_fn=jcl.losses.classify(model.apply),
        strategy=jcl.chain(
            jcl.replay(memory, size=config.batch_size),
            jcl.per_task(
                jcl.by_path(
                    dict.fromkeys(trained[config.adaptation], optimizer),
                    otherwise=None if config.adaptation == "full" else optax.set_to_zero(),
                )
            ),
        ),
        stream=stream,
        measure=jcl.losses.accuracy(model.apply),
        batch_size=config.batch_size,
        epochs=config.epochs,
        seed=config.seed,
        boundary_batches=1,
        evaluation_batch_size=72,
        log_every=20,
    )


@functools.cache
def intents(tasks):
    return jcl.data.intents(tokenizer=jcl.data.ByteTokenizer(), tasks=tasks)
