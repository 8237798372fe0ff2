"""Customer-service intents, online: each message is answered first and learned from when its label
is known.

Run as a program the file writes made-up traffic: 1,800 requests to a smart home in 30 intents, from
the templates of home-assistant-intents, whose topics follow each other and overlap. A small BERT
from scratch on hashed words says the intent of each message before it learns from it, once, at a
constant rate, and replays earlier ones; there are no tasks and no boundaries. What it shows:
README.md beside this file.

Needs home-assistant-intents (pip install "jcl[demo]").

Commands:  python configs/apps/customer_service/customer_service.py > traffic.jsonl
           jcl online configs/apps/customer_service/customer_service.py --input traffic.jsonl
"""

import functools
import json
import random
from dataclasses import dataclass

import optax

import jcl

WORDS = jcl.data.HashedWords()


@dataclass(frozen=True)
class Config:
    memory: int = 300  # messages; 0 keeps none
    length: int = 24
    width: int = 64
    layers: int = 2
    batch_size: int = 4  # messages that are answered together
    replayed: int = 16  # with every batch
    rate: float = 1e-3
    seed: int = 0


def build(config: Config) -> jcl.Experiment:
    labels = messages().labels
    model = jcl.models.bert(
        jcl.models.BertConfig(
            WORDS.vocab_size, config.length, config.width, config.layers, heads=4,
            inner=2 * config.width, head="classes", classes=len(labels), labels=labels,
            pooling="mean", dropout=0.0,
        )
    )  # fmt: skip
    replay = [jcl.replay(config.memory, config.replayed)] if config.memory else []
    return jcl.Experiment(
        name=f"memory_{config.memory}",
        model=model,
        loss_fn=jcl.losses.classify(model.apply),
        strategy=jcl.chain(*replay, optax.clip_by_global_norm(1.0), optax.adamw(config.rate)),
        measure=jcl.losses.accuracy(model.apply),
        lines=jcl.data.Lines(tokenizer=WORDS, length=config.length, labels=labels, label="intent"),
        batch_size=config.batch_size,
        seed=config.seed,
        tokenizer=WORDS,
    )


@functools.cache
def messages():
    return jcl.data.intents(tokenizer=WORDS)


def traffic(seed: int = 0) -> list[str]:
    """Lines of JSON, in the order of their time; a topic's time reaches into the next one's."""
    draw, timed = random.Random(seed), []
    for number, task in enumerate(messages().tasks):
        targets = jcl.data.held(task.train)["targets"]
        for text, target in zip(task.train.texts, targets, strict=True):
            timed.append((number + 1.5 * draw.random(), text, messages().labels[target]))
    return [json.dumps({"text": text, "intent": intent}) for _, text, intent in sorted(timed)]


if __name__ == "__main__":
    print("\n".join(traffic()))
