"""Sentiment over product domains: one classifier, five domains, words that change sides.

Books, kitchen, phones, shoes and games come one after the other, with made-up reviews (no set of
real ones can be installed without a download; see jcl.data.reviews). A small BERT from scratch on
hashed words learns each; naive fine-tuning takes what "thin" or "unpredictable" means in the newest
domain for all, replay keeps 20 reviews of a domain. What it shows: README.md beside this file.

Command:  jcl run configs/apps/product_reviews/product_reviews.py --method replay
"""

from dataclasses import dataclass
from typing import Literal

import optax

import jcl


@dataclass(frozen=True)
class Config:
    method: Literal["naive", "replay", "joint"] = "naive"
    width: int = 64
    layers: int = 2
    kept: int = 100  # reviews in the memory, of all domains together
    batch_size: int = 16
    epochs: float = 8.0
    rate: float = 1e-3
    seed: int = 0


def build(config: Config) -> jcl.Experiment:
    words = jcl.data.HashedWords()
    stream = jcl.data.reviews(tokenizer=words)
    if config.method == "joint":
        stream = jcl.data.joint(stream)
    model = jcl.models.bert(
        jcl.models.BertConfig(
            words.vocab_size, stream.length, config.width, config.layers, heads=4,
            inner=2 * config.width, head="classes", classes=stream.classes, labels=stream.labels,
            pooling="mean", dropout=0.1,
        )
    )  # fmt: skip
    replay = [jcl.replay(config.kept, config.batch_size)] if config.method == "replay" else []
    optimizer = jcl.per_task(jcl.scheduled(optax.adamw, jcl.cosine(config.rate, warmup=0.1)))
    return jcl.Experiment(
        name=config.method,
        model=model,
        loss_fn=jcl.losses.classify(model.apply),
        strategy=jcl.chain(*replay, optimizer),
        stream=stream,
        measure=jcl.losses.accuracy(model.apply),
        batch_size=config.batch_size,
        epochs=config.epochs,
        seed=config.seed,
        boundary_batches=1,
        evaluation_batch_size=104,
        tokenizer=words,
    )
