"""Intents, one text after another, while what they mean drifts at places that are known.

Of labels the class of a text is its topic, and every drift gives all topics other classes; of
domains new topics come and the old remain true. Each text is predicted, then learned from, once.

constant, cosine (restarts every 100 steps), floor (a rate that decays to a tenth) and restarting
(half a cosine anew at an alarm) differ in Adam's rate alone. boost raises the step after an alarm;
replay_more and replay_less weigh replay threefold, or not at all, for a while; ewc consolidates
every 100 steps, ewc_on_drift at alarms. head learns the last layer alone, slda a closed-form one.
The rates and strengths are first guesses. What each gives: docs/online.md.

small is a BERT of 2 layers of 64 over bytes, from scratch; minilm is a hidden layer of 256 (none of
head and slda) over what all-MiniLM-L6-v2 makes of the texts, computed once. That, clinc150 and
banking77 need JCL_DATA, as configs/clinc150.py does; detectors need pip install "jcl[drift]".

Command:  python benchmarks/drift_table.py
          jcl online configs/drift.py --input lines.jsonl --change domains --method boost
"""

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import optax

import jcl

ORDERS = {"abrupt": (0, 1, 2, 3), "gradual": (0, 1, 2, 3), "recurring": (0, 1, 0, 1)}
LENGTH = 80  # bytes of a text, for small


@dataclass(frozen=True)
class Config:
    method: Literal[
        "constant", "cosine", "floor", "restarting", "boost", "replay", "replay_boost",
        "replay_more", "replay_less", "ewc", "ewc_on_drift", "head", "slda",
    ] = "constant"  # fmt: skip
    drift: Literal["abrupt", "gradual", "recurring"] = "abrupt"
    change: Literal["labels", "domains"] = "labels"
    texts: Literal["intents", "clinc150", "banking77"] = "intents"
    backbone: Literal["small", "minilm"] = "small"
    detector: jcl.drift.Name | Literal["none"] = "adwin"
    segment: int = 1000  # examples from one drift to the next
    memory: int = 200  # examples, of replay
    batch_size: int = 8
    rate: float = 1e-3
    seed: int = 0


def build(config: Config) -> jcl.Experiment:
    texts, tokenizer = source(config.texts, config.backbone)
    width = config.segment // 2 if config.drift == "gradual" else 0
    stream = jcl.data.drifting(
        texts, ORDERS[config.drift], config.segment, change=config.change, width=width,
        seed=config.seed,
    )  # fmt: skip
    model, head = classifier(config.backbone, stream.classes, config.method in ("head", "slda"))
    steps = config.segment // config.batch_size
    adam, boost = optax.adam(config.rate), jcl.boost(factor=5.0, half_life=20.0)
    decay = optax.cosine_decay_schedule(config.rate, steps, alpha=0.1)
    floor = optax.exponential_decay(config.rate, steps, 0.5, end_value=config.rate / 10)
    replay, ewc = jcl.replay(config.memory, config.batch_size), jcl.ewc(1e3, decay=0.5)
    small, detector = config.backbone == "small", config.detector
    body = [jcl.freeze("*", but=f"{head}/*")] if small else []  # minilm is frozen as it is
    parts = {
        "constant": lambda: [adam],
        "cosine": lambda: [optax.adam(lambda step: decay(steps * (step % 100) // 100))],
        "floor": lambda: [optax.adam(floor)],
        "restarting": lambda: [jcl.restarting(optax.adam, decay)],
        "boost": lambda: [adam, boost],
        "replay": lambda: [replay, adam],
        "replay_boost": lambda: [replay, adam, boost],
        "replay_more": lambda: [jcl.reweighted(replay, factor=3.0, half_life=50.0), adam],
        "replay_less": lambda: [jcl.reweighted(replay, factor=0.0, half_life=50.0), adam],
        "ewc": lambda: [jcl.periodically(ewc, every=100, batches=32), adam],
        "ewc_on_drift": lambda: [jcl.on_drift(ewc, batches=32), adam],
        "head": lambda: [jcl.only(f"{head}/*", adam), *body],
        "slda": lambda: [jcl.freeze("*"), jcl.slda(model.features, stream.classes, head=head)],
    }[config.method]()
    labels = stream.labels or tuple(str(number) for number in range(stream.classes))
    return jcl.Experiment(
        name=config.method,
        model=model,
        loss_fn=jcl.losses.classify(model.apply),
        strategy=jcl.chain(*parts),
        stream=stream,
        measure=jcl.losses.accuracy(model.apply),
        batch_size=config.batch_size,
        epochs=1,
        seed=config.seed,
        tokenizer=tokenizer,
        lines=jcl.data.Lines(tokenizer=tokenizer, length=LENGTH, labels=labels) if small else None,
        drift=None if detector == "none" else functools.partial(jcl.drift.detector, detector),
    )


@functools.cache
def source(name, backbone):
    """The texts, of minilm what it makes of them, and their tokenizer."""
    read = getattr(jcl.data, name)
    if backbone == "small":
        tokenizer = jcl.data.ByteTokenizer()
        return read(tokenizer=tokenizer, length=LENGTH), tokenizer
    if not os.environ.get("JCL_DATA"):
        raise jcl.InputError("Set JCL_DATA to the folder that holds minilm_l6 and the texts.")
    folder = Path(os.environ["JCL_DATA"]) / "minilm_l6"
    tokenizer = jcl.models.tokenizer(folder)
    model, params = jcl.models.from_pretrained(folder, head="features", pooling="mean")
    encode = jax.jit(lambda tokens, mask: model.features(params, tokens, attention_mask=mask))
    return jcl.data.encoded(
        read(tokenizer=tokenizer), lambda batch: encode(batch["inputs"], batch["attention_mask"])
    ), tokenizer


def classifier(backbone, classes, shallow):
    """The model, and where its head is."""
    if backbone == "minilm":
        shape = jcl.models.MLPConfig(384, () if shallow else (256,), classes)
        return jcl.models.mlp(shape), "head"
    shape = {"head": "classes", "classes": classes, "pooling": "mean", "dropout": 0.0}
    return jcl.models.bert(jcl.models.BertConfig(258, LENGTH, 64, 2, 4, 128, **shape)), "classifier"
