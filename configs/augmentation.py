"""Few-shot intents with augmented texts: some examples of each class and a pretrained encoder.

All classes of Banking77 or CLINC150 are learned at once from a few texts each, drawn by the seed,
by all-MiniLM-L6-v2 with mean pooling: its upper layers and a new head are trained, without dropout.
Texts are cut to `length` tokens, and a fixed part of the tests is asked. Synonyms are the nearest
words in MiniLM's own token table, unless a lexicon is given. What each augmentation is worth:
docs/augmentation.md, by `make augmentation`. None of the settings was tuned.

Needs JCL_DATA (see configs/clinc150.py and configs/banking77.py); masked_lm a checkpoint with a
masked-LM head and MiniLM's tokenizer, such as configs/masked_lm.py makes; back_translation two
translation checkpoints or, of any other translator, a JSON file {text: its back-translation}.

Command:  jcl run configs/augmentation.py --method swap --seeds 3
"""

import functools
import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import optax

import jcl
from jcl import strict
from jcl.data import augmentation


@dataclass(frozen=True)
class Config:
    method: Literal[
        "none", "synonyms", "insertion", "deletion", "swap", "local_shuffle", "token_cutoff",
        "mixup", "masked_lm", "back_translation",
    ] = "none"  # fmt: skip
    texts: Literal["banking77", "clinc150"] = "banking77"
    shots: int = 5  # examples of a class to learn from
    tests: int = 5  # of a class, the same for all seeds
    length: int = 24
    trained: int = 3  # of the encoder's layers, the upper ones
    batch_size: int = 32
    epochs: float = 6.0
    rate: float = 1e-4
    head_rate: float = 3e-3
    probability: float = 0.5
    strength: float = 0.2
    alpha: float = 0.2  # of mixup
    lexicon: str | None = None  # a file, for synonyms and insertion
    checkpoint: str | None = None  # a folder, for masked_lm
    there: str | None = None  # folders, for back_translation
    back: str | None = None
    translations: str | None = None  # a file, in their place
    seed: int = 0


def build(config: Config) -> jcl.Experiment:
    stream, (model, params) = intents(config.texts, config.length), encoder(config.texts)
    chance = {"probability": config.probability}
    share = {**chance, "strength": config.strength}

    def words():
        return config.lexicon or neighbours(config.texts, config.length)

    parts = {
        "synonyms": lambda: augmentation.synonyms(words(), **share),
        "insertion": lambda: augmentation.insertion(words(), **share),
        "deletion": lambda: augmentation.deletion(**share),
        "swap": lambda: augmentation.swap(**share),
        "local_shuffle": lambda: augmentation.local_shuffle(**share),
        "token_cutoff": lambda: augmentation.token_cutoff(**share),
        "masked_lm": lambda: augmentation.masked_lm(filler(config.checkpoint), **share),
        "back_translation": lambda: augmentation.back_translation(
            translator(config.there, config.back, config.translations), **chance
        ),
    }
    used = [parts[config.method]()] if config.method in parts else []
    loss_fn = jcl.losses.classify(model.apply)
    body = [f"layer_{model.config.layers - 1 - number}/*" for number in range(config.trained)]

    def adam(peak):
        return jcl.per_task(jcl.scheduled(optax.adam, jcl.cosine(peak, warmup=0.1)))

    return jcl.Experiment(
        name=f"{config.texts}_{config.method}",
        model=jcl.models.starting_from(model, params, fresh="classifier/*"),
        loss_fn=jcl.mixup(loss_fn, alpha=config.alpha) if config.method == "mixup" else loss_fn,
        strategy=jcl.chain(
            jcl.only(body, adam(config.rate)),
            jcl.only("classifier/*", adam(config.head_rate)),
            jcl.freeze("*", but=[*body, "classifier/*"]),
        ),
        stream=few(stream, used, config),
        measure=jcl.losses.accuracy(model.apply),
        batch_size=config.batch_size,
        epochs=config.epochs,
        seed=config.seed,
        boundary_batches=1,
        evaluation_batch_size=77,
        log_every=20,
        tokenizer=tokenizer(),
    )


def few(stream, augmentations, config):
    """One task of all classes, with some examples of each."""
    changed = jcl.data.augmented(stream, augmentations, seed=config.seed)

    def some(sources, number, seed, plain):
        return jcl.data.Chosen(jcl.data.Concatenated(sources), drawn(plain, number, seed))

    trains, tests = zip(*[(task.train, task.test) for task in stream.tasks], strict=True)
    train = some([task.train for task in changed.tasks], config.shots, config.seed, trains)
    test = some(tests, config.tests, 0, tests)
    content = " ".join(task.hash for task in changed.tasks)
    task = jcl.data.Task("few", train, test, hashlib.sha256(content.encode()).hexdigest())
    return replace(stream, tasks=(task,), stages=())


def drawn(sources, number, seed):
    """The places, among all examples of the sources, of so many of each class."""
    targets = np.concatenate([jcl.data.held(source)["targets"] for source in sources])
    order = np.random.default_rng(seed).permutation(len(targets))
    own = [order[targets[order] == label][:number] for label in range(targets.max() + 1)]
    return np.concatenate(own)


def folder() -> Path:
    if not os.environ.get("JCL_DATA"):
        raise jcl.InputError("Set JCL_DATA to the folder that holds the texts and minilm_l6.")
    return Path(os.environ["JCL_DATA"]) / "minilm_l6"


@functools.cache
def tokenizer():
    return jcl.models.tokenizer(folder())


@functools.cache
def intents(name, length):
    load = {"banking77": jcl.data.banking77, "clinc150": jcl.data.clinc150}[name]
    return load(tokenizer=tokenizer(), length=length)


@functools.cache
def encoder(name):
    classes = {"banking77": 77, "clinc150": 150}[name]
    shape = {"head": "classes", "classes": classes, "pooling": "mean", "dropout": 0.0}
    return jcl.models.from_pretrained(folder(), key=jax.random.key(0), **shape)


@functools.cache
def neighbours(name, length):
    """Of every word of the texts, those nearest to it in the encoder's token table."""
    every = [task.train.texts for task in intents(name, length).tasks]
    words = {
        word.strip("?!.,").casefold() for texts in every for text in texts for word in text.split()
    }
    table = encoder(name)[1]["embeddings"]["word_embeddings"]
    return augmentation.neighbours(tokenizer().get_vocab(), table, words=words)


@functools.cache
def filler(checkpoint):
    if checkpoint is None:
        raise jcl.InputError("masked_lm: give --checkpoint, a folder with a masked-LM head.")
    return jcl.models.mask_filler(*jcl.models.from_pretrained(checkpoint))


@functools.cache
def translator(there, back, translations):
    if translations is not None:
        return translated(Path(translations))
    if there is None or back is None:
        raise jcl.InputError(
            "back_translation: give --there and --back, translation checkpoints, or --translations."
        )
    return jcl.models.translator(there, back)


def translated(path):
    """What a file has for a text, by its content's name."""
    try:
        found = strict.read_json(path)
        strict.fits(found, {str: str})
    except (OSError, ValueError) as error:
        raise jcl.InputError(f"--translations {path}: {error}") from None

    def translate(text):
        if text not in found:
            raise jcl.InputError(f"{path} has no translation of {text!r}: add one.")
        return found[text]

    translate.name = hashlib.sha256(path.read_bytes()).hexdigest()
    return translate
