"""A masked language model of short texts: MiniLM learns to fill in words of Banking77 or CLINC150.

Devlin et al. 2019, section 3.1, with the hidden tokens always the mask token: 15 % of a text's
tokens, and at least one, drawn anew in each of the versions of a text, once for all. Labels are not
looked at. all-MiniLM-L6-v2, which has no such head, begins with a fresh one, tied to its token
table, and all of it is trained; the measure is the share of hidden tokens that it guesses in the
twentieth of the texts that is held out. Made for the masked_lm of configs/augmentation.py.

Needs JCL_DATA (see configs/clinc150.py and configs/banking77.py).

Commands:  jcl run configs/masked_lm.py --texts banking77
           jcl export runs/masked_lm/banking77 runs/masked_lm/model
           jcl run configs/augmentation.py --method masked_lm --checkpoint runs/masked_lm/model
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import optax

import jcl

HIDDEN = 0.15


@dataclass(frozen=True)
class Config:
    texts: Literal["banking77", "clinc150"] = "banking77"
    length: int = 24
    versions: int = 10  # of every text
    batch_size: int = 64
    rate: float = 1e-4
    seed: int = 0


def build(config: Config) -> jcl.Experiment:
    if not os.environ.get("JCL_DATA"):
        raise jcl.InputError("Set JCL_DATA to the folder that holds the texts and minilm_l6.")
    folder = Path(os.environ["JCL_DATA"]) / "minilm_l6"
    tokenizer = jcl.models.tokenizer(folder)
    model, params = jcl.models.from_pretrained(
        folder, key=jax.random.key(config.seed), head="masked_lm", dropout=0.0
    )
    optimizer = jcl.per_task(jcl.scheduled(optax.adamw, jcl.cosine(config.rate, warmup=0.1)))
    return jcl.Experiment(
        name=config.texts,
        model=jcl.models.starting_from(model, params, fresh="predictions/*"),
        loss_fn=jcl.losses.masked_lm(model.apply),
        strategy=jcl.chain(optimizer),
        stream=hidden_words(config, tokenizer),
        measure=jcl.losses.accuracy(model.apply),
        batch_size=config.batch_size,
        epochs=1.0,
        seed=config.seed,
        boundary_batches=1,
        log_every=100,
        device_data=True,
        tokenizer=tokenizer,
    )


def hidden_words(config, tokenizer):
    """One task: the training texts of all classes, in several versions, and those held out."""
    load = {"banking77": jcl.data.banking77, "clinc150": jcl.data.clinc150}[config.texts]
    tasks = load(tokenizer=tokenizer, length=config.length).tasks
    every = [jcl.data.held(task.train) for task in tasks]
    names = ("inputs", "attention_mask")
    ids, there = (np.concatenate([part[name] for part in every]) for name in names)
    generator = np.random.default_rng(config.seed)
    order = generator.permutation(len(ids))
    apart = max(1, len(ids) // 20)
    test, train = order[:apart], np.tile(order[apart:], config.versions)

    def hidden(rows):
        words = (there[rows] > 0) & ~np.isin(ids[rows], tokenizer.all_special_ids)
        drawn = np.where(words, generator.random(words.shape), 2.0)
        rank = np.argsort(np.argsort(drawn, axis=1), axis=1)
        number = np.maximum(1, np.round(HIDDEN * words.sum(axis=1, keepdims=True)))
        mask = words & (rank < number)
        inputs = np.where(mask, tokenizer.mask_token_id, ids[rows]).astype(np.int32)
        leaves = {"inputs": inputs, "targets": ids[rows].astype(np.int32)}
        leaves |= {"mask": mask.astype(np.float32), "attention_mask": there[rows]}
        return jcl.data.Arrays(leaves)

    parts = hidden(train), hidden(test)
    return jcl.data.Stream(config.texts, (jcl.data.Task("words", *parts, parts[1].hash()),))
