"""A masked language model of short texts: MiniLM learns to fill in words of Banking77 or CLINC150.

Devlin et al. 2019, section 3.1, with the hidden tokens always the mask token: 15 % of a text's
tokens, and at least one, drawn anew for each version of a text. Labels are not looked at.
all-MiniLM-L6-v2 begins with a fresh head, tied to its token table, and is trained as a whole; the
measure is the share of hidden tokens that it guesses in a twentieth of the training texts, held
out. Made for the masked_lm of configs/augmentation.py; what it gave: docs/augmentation.md.

Needs JCL_DATA (see configs/clinc150.py and configs/banking77.py).

Commands:  jcl run configs/masked_lm.py --texts banking77
           jcl export runs/masked_lm/banking77 runs/augmentation/banking77_masked_lm
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import optax

import jcl

HIDDEN, HELD_OUT = 0.15, 0.05


@dataclass(frozen=True)
class Config:
    texts: Literal["banking77", "clinc150"] = "banking77"
    length: int = 24
    versions: int = 10  # of every text
    batch_size: int = 64
    rate: float = 1e-4
    seed: int = 0


def build(config: Config) -> jcl.Experiment:
    tokenizer, model, params = pretrained(config.seed)
    optimizer = jcl.per_task(jcl.scheduled(optax.adamw, jcl.cosine(config.rate, warmup=0.1)))
    return jcl.Experiment(
        name=config.texts,
        model=jcl.models.starting_from(model, params, fresh="predictions/*"),
        loss_fn=jcl.losses.masked_lm(model.apply),
        strategy=jcl.chain(optimizer),
        stream=stream(config, tokenizer),
        measure=jcl.losses.accuracy(model.apply),
        batch_size=config.batch_size,
        epochs=1.0,
        seed=config.seed,
        boundary_batches=1,
        log_every=100,
        device_data=True,
        tokenizer=tokenizer,
    )


def pretrained(seed):
    if not os.environ.get("JCL_DATA"):
        raise jcl.InputError("Set JCL_DATA to the folder that holds the texts and minilm_l6.")
    folder, key = Path(os.environ["JCL_DATA"]) / "minilm_l6", jax.random.key(seed)
    tokenizer = jcl.models.tokenizer(folder)
    return tokenizer, *jcl.models.from_pretrained(folder, key=key, head="masked_lm", dropout=0.0)


def stream(config, tokenizer):
    """One task: the training texts of all classes, in several versions, and those held out."""
    load = {"banking77": jcl.data.banking77, "clinc150": jcl.data.clinc150}[config.texts]
    tasks = load(tokenizer=tokenizer, length=config.length).tasks
    parts, names = [jcl.data.held(task.train) for task in tasks], ("inputs", "attention_mask")
    ids, there = (np.concatenate([part[name] for part in parts]) for name in names)
    generator = np.random.default_rng(config.seed)
    test, train = np.split(generator.permutation(len(ids)), [max(1, round(HELD_OUT * len(ids)))])
    train = np.tile(train, config.versions)
    train, test = (hidden(ids[rows], there[rows], tokenizer, generator) for rows in (train, test))
    return jcl.data.Stream(config.texts, (jcl.data.Task("words", train, test, test.hash()),))


def hidden(ids, there, tokenizer, generator):
    """The texts with some of their words hidden, which are the targets."""
    words = (there > 0) & ~np.isin(ids, tokenizer.all_special_ids)
    order = np.where(words, generator.random(words.shape), 2.0).argsort(axis=1).argsort(axis=1)
    mask = words & (order < np.maximum(1, np.round(HIDDEN * words.sum(axis=1, keepdims=True))))
    inputs = np.where(mask, tokenizer.mask_token_id, ids).astype(np.int32)
    return jcl.data.Arrays(
        {"inputs": inputs, "targets": ids, "mask": mask.astype(np.float32), "attention_mask": there}
    )
