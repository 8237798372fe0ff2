"""Question answering over new documents: which section of a growing manual answers a question.

The documents are the sections of the Python language reference that every Python has for help().
They arrive in five groups; a group's paragraphs are learned once, and questions are asked about all
groups. A section is a class and a text its words, hashed and counted, so that slda is a retriever
that never sees an old document again; naive trains a linear head by gradient steps. The questions
are made from sentences of the sections by one rule ("An assignment is ..." gives "What is ...?"),
keep their words, and so measure what is remembered rather than understood. What it shows: README.md
beside this file.

Commands:  jcl run configs/apps/document_questions/document_questions.py --method slda
           python configs/apps/document_questions/document_questions.py \
               runs/document_questions/slda "How do I catch an exception?"
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Literal

import jax
import numpy as np
import optax

import jcl
from jcl.data.labelled_text import labelled_texts
from jcl.data.tables import Row
from jcl.data.text import paragraphs

WORDS, LENGTH = jcl.data.HashedWords(2048), 160
QUESTION = re.compile(
    r"(?!(?:If|When|There|This|It|That|Note)\b)(?:The |A |An |All )?"
    r'[\w" .-]{3,60}? (is|are|can be|may be) ([^:]{25,160})\.'
)


@dataclass(frozen=True)
class Config:
    method: Literal["naive", "joint", "nearest_class_mean", "slda"] = "slda"
    groups: int = 5  # of documents, one after the other
    batch_size: int = 16
    epochs: float | None = None  # by default 20 of gradient steps, 1 of means
    rate: float = 1e-2
    seed: int = 0


def build(config: Config) -> jcl.Experiment:
    stream = jcl.data.encoded(manual(config.groups), counts)
    classes = sum(len(group) for group in sections(config.groups).values())
    model = jcl.models.mlp(jcl.models.MLPConfig(WORDS.vocab_size, (), classes))
    trained = [optax.adam(config.rate)]
    computed = {
        "nearest_class_mean": lambda: jcl.nearest_class_mean(model.features, classes),
        "slda": lambda: jcl.slda(model.features, classes, shrinkage=1e-2, refresh="boundary"),
    }.get(config.method)
    return jcl.Experiment(
        name=config.method,
        model=model,
        loss_fn=jcl.losses.classify(model.apply),
        strategy=jcl.chain(*([jcl.freeze("*"), computed()] if computed else trained)),
        stream=jcl.data.joint(stream) if config.method == "joint" else stream,
        measure=jcl.losses.accuracy(model.apply),
        batch_size=config.batch_size,
        epochs=config.epochs or (1 if computed else 20),
        seed=config.seed,
        boundary_batches=1,
        evaluation_batch_size=48,
    )


def counts(batch) -> np.ndarray:
    """Of every word how often it stands in the text, its logarithm, of length 1."""
    found = np.zeros((len(batch["inputs"]), WORDS.vocab_size), np.float32)
    rows = np.arange(len(found))[:, None]
    np.add.at(found, (rows, batch["inputs"]), batch["attention_mask"])
    found = np.log1p(found)
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-6)


def documents() -> dict[str, tuple[list[str], list[str]]]:
    """{title: paragraphs, questions}; a paragraph of several sections is the shortest one's."""
    found, seen = {}, set()
    for text in sorted(topics.values(), key=len):
        title, *own = (" ".join(each.split()) for each in paragraphs(text))
        fresh = [each for each in own if each not in seen and 8 < len(WORDS.encode(each)) <= LENGTH]
        seen.update(own)
        sentences = [part for each in fresh for part in re.split(r"(?<=[.:]) ", each)]
        asked = [made for made in map(question, sentences) if made]
        if len(fresh) >= 3 and len(asked) >= 2:
            found[re.sub(r"\W*\*+$", "", title)] = (fresh, asked[:8])
    return dict(sorted(found.items()))


def question(sentence: str) -> str | None:
    part = QUESTION.fullmatch(sentence)
    return part and f"What {part[1]} {part[2]}?"


def sections(groups: int) -> dict[str, list[str]]:
    parts = np.array_split([*documents()], groups)
    return {f"documents {number}": list(map(str, part)) for number, part in enumerate(parts, 1)}


def manual(groups: int):
    every, by_group = documents(), sections(groups)
    home = {title: group for group, titles in by_group.items() for title in titles}
    rows = [
        [Row(text, title, home[title], "", title) for title in home for text in every[title][part]]
        for part in (0, 1)
    ]
    return labelled_texts(
        "manual", *rows, by_group, [*home], "class", WORDS, LENGTH, positions=False
    )


def main(run: str, asked: str) -> None:
    """Prints the three sections that most likely answer."""
    from jcl.__main__ import load_config
    from jcl.answer import reopen

    reopened = reopen(Path(run), load_config, Path(__file__))
    ids = WORDS.encode(asked)[None, :LENGTH]
    batch = {"inputs": counts({"inputs": ids, "attention_mask": np.ones_like(ids)})}
    experiment = reopened.experiment
    predict = jax.jit(jcl.learner(experiment.loss_fn, experiment.strategy).predict)
    logits = np.asarray(predict(reopened.state, batch)["logits"][0])
    titles = [title for group in sections(5).values() for title in group]
    print("\n".join(titles[place] for place in np.argsort(-logits)[:3]))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f'Give a run folder and a question: python {sys.argv[0]} RUN "What is ...?"')
    main(*sys.argv[1:])
