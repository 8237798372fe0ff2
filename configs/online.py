"""A small model of bytes that learns from every line as it comes, with a memory of earlier lines.

classifier is a BERT of one layer of 64 with one output for each of --labels; language, a GPT-2 of
the same size that learns to predict the texts. A reservoir of 200 lines is replayed, since what
comes in a row is alike; the learning rate is constant, since nobody knows how long it will go on.
There is no published result. 200 lines of {"text": "good", "label": "yes"} and {"text": "bad",
"label": "no"} in turn by chance: 0.955 right before they were learned, seed 0, of the last 50 all.

Command:  jcl online configs/online.py --input lines.jsonl --labels no yes
"""

from dataclasses import dataclass
from typing import Literal

import optax

import jcl


@dataclass(frozen=True)
class Config:
    kind: Literal["classifier", "language"] = "classifier"
    labels: tuple[str, ...] = ()
    length: int = 64
    memory: int = 200
    learning_rate: float = 1e-3
    batch_size: int = 8
    seed: int = 0


def build(config: Config) -> jcl.Experiment:
    tokenizer = jcl.data.ByteTokenizer()
    shape = {"positions": config.length, "width": 64, "layers": 1, "heads": 4, "dropout": 0.0}
    if config.kind == "classifier":
        if len(config.labels) < 2:
            raise jcl.InputError("name the classes: --labels no yes")
        shape |= {"inner": 256, "head": "classes", "classes": len(config.labels)}
        model = jcl.models.bert(jcl.models.BertConfig(tokenizer.vocab_size, **shape))
        loss_fn, measure = jcl.losses.classify(model.apply), jcl.losses.accuracy(model.apply)
    else:
        model = jcl.models.gpt2(jcl.models.GPT2Config(tokenizer.vocab_size, **shape))
        loss_fn = jcl.losses.causal_lm(model.apply)
        measure = jcl.losses.bits_per_byte(model.apply, tokenizer.bytes_per_token)
    return jcl.Experiment(
        name=config.kind,
        model=model,
        loss_fn=loss_fn,
        strategy=jcl.chain(
            jcl.replay(config.memory, config.batch_size),
            optax.clip_by_global_norm(1.0),
            optax.adamw(config.learning_rate),
        ),
        measure=measure,
        lines=jcl.data.Lines(
            tokenizer=tokenizer,
            length=config.length,
            labels=config.labels if config.kind == "classifier" else None,
        ),
        batch_size=config.batch_size,
        seed=config.seed,
        tokenizer=tokenizer,
    )
