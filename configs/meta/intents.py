"""A pretrained encoder learns to tell five intents of an unseen domain apart from 1 or 5 texts.

CLINC150 (Larson et al. 2019), by domains: seven meta-train, home validates, travel and meta test.
An episode has five of a part's intents, each with 1 or 5 texts to learn (1 in training) and three
to answer. The encoder is all-MiniLM-L6-v2 with mean pooling, a head of zeros, and LoRA of rank 8
beside the Dense modules of its last two layers; the outer loop learns LoRA and the head by Adam.

maml and fomaml adapt both by three steps of SGD; anil adapts the head alone by 20, over features
that are computed once an episode; prototypes (Snell et al. 2017) adapts nothing. Row 0 of the
matrix, before meta-training, is the baseline: of maml fine-tuning the pretrained encoder, of anil
a linear head over its frozen features, of prototypes their nearest class mean. INNER_RATES are
those of the best row 0 on the validating episodes (--meta_steps 1, seed 0), the baselines' own: of
0.1, 0.3 and 1 for maml, which fomaml shares, and of 0.3, 1 and 3 for anil. What each gives:
docs/meta.md.

Needs JCL_DATA, a folder with clinc150 and minilm_l6, as configs/clinc150.py does.

Command:  jcl run configs/meta/intents.py --method anil --seeds 3
"""

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import optax

import jcl

WAYS, SHOTS, QUERIES = 5, (1, 5), 3
TEST_SEED = 2**31
DOMAINS = {"validation": ["home"], "test": ["travel", "meta"]}
LEARNED = ("lora", "classifier")
INNER_RATES = {"maml": 0.3, "fomaml": 0.3, "anil": 1.0}


@dataclass(frozen=True)
class Config:
    method: Literal["maml", "fomaml", "anil", "prototypes"] = "anil"
    meta_steps: int = 200
    episodes: int = 2  # a meta-step
    rate: float = 1e-3
    inner_rate: float | None = None  # by default that of INNER_RATES
    tested: int = 40  # episodes of either number of shots, half as many to validate
    length: int = 24  # tokens of a text; 32 of the 15,000 are longer, and cut
    seed: int = 0


def build(config: Config) -> jcl.Experiment:
    if config.seed == TEST_SEED:
        raise jcl.InputError(f"--seed {TEST_SEED} draws the test's episodes: take another.")
    if config.method not in INNER_RATES and config.inner_rate is not None:
        raise jcl.InputError(f"--inner_rate: {config.method} has no inner loop, leave it out.")
    stream, model = texts(config.length), encoder()
    last = [f"layer_{layer}/*" for layer in range(model.config.layers)[-2:]]
    model = jcl.models.lora(model, 8, 16.0, last)
    meta_loss = adapting(config, model)
    own = [f"{name}/*" for name in LEARNED]
    return jcl.Experiment(
        name=config.method,
        model=model,
        loss_fn=meta_loss,
        strategy=jcl.chain(jcl.only(own, optax.adam(config.rate)), jcl.freeze("*", but=own)),
        stream=episodes(config, stream),
        measure=jcl.meta.accuracy(meta_loss),
        batch_size=config.episodes,
        steps=config.meta_steps,
        seed=config.seed,
        boundary_batches=1,
        log_every=10,
    )


def adapting(config, model):
    """The method's loss of episodes."""
    own = INNER_RATES.get(config.method, 0.0)  # prototypes have no inner loop
    inner = optax.sgd(own if config.inner_rate is None else config.inner_rate)
    loss_fn = jcl.losses.classify(model.apply)
    if config.method == "prototypes":
        meta_loss = jcl.prototypes(model.features, WAYS)
    elif config.method == "anil":
        loss_fn = jcl.losses.classify(
            lambda params, x, key=None: (
                x @ params["classifier"]["kernel"] + params["classifier"]["bias"]
            )
        )
        meta_loss = jcl.maml(loss_fn, steps=20, optimizer=inner, where="classifier/*")
    else:
        meta_loss = jcl.maml(
            loss_fn,
            steps=3,
            optimizer=inner,
            where=[f"{name}/*" for name in LEARNED],
            first_order=config.method == "fomaml",
        )

    def frozen(params, batch, key):
        # Else the inner loop would carry the gradient of all that is frozen as well.
        held = {name: jax.lax.stop_gradient(params[name]) for name in params.keys() - {*LEARNED}}
        params, batch = {**params, **held}, dict(batch)
        for part in ("", "support_") if config.method == "anil" else ():
            tokens, mask = batch[f"{part}inputs"], batch.pop(f"{part}attention_mask")
            flat, real = (leaf.reshape(-1, leaf.shape[-1]) for leaf in (tokens, mask))
            hidden = model.features(params, flat, key, attention_mask=real)
            batch[f"{part}inputs"] = hidden.reshape(*tokens.shape[:2], -1)
        return meta_loss(params, batch, key)

    return frozen


def episodes(config, stream):
    """One stage of episodes, and the tests of either number of shots on the other domains."""
    domains, (source,) = jcl.data.class_tasks(stream), jcl.data.joint(stream).stages
    split = jcl.data.split_classes(domains, **DOMAINS)
    made = functools.partial(jcl.data.Episodes, source, WAYS, queries=QUERIES)
    number = config.meta_steps * config.episodes
    train = made(SHOTS[0], number=number, seed=config.seed, classes=split.train)
    tasks = []
    for part, number in (("validation", config.tested // 2), ("test", config.tested)):
        for shots in SHOTS:
            own = made(
                shots, number=number, seed=TEST_SEED, classes=getattr(split, part),
                padded_shots=max(SHOTS),
            )  # fmt: skip
            tasks.append(jcl.data.Task(f"{part}/{shots}", train, own, own.hash()))
    return jcl.data.Stream("intents", tuple(tasks), stages=(train,))


def folder() -> Path:
    if not os.environ.get("JCL_DATA"):
        raise jcl.InputError("Set JCL_DATA to the folder that holds clinc150 and minilm_l6.")
    return Path(os.environ["JCL_DATA"]) / "minilm_l6"


@functools.cache
def texts(length):
    return jcl.data.clinc150(tokenizer=jcl.models.tokenizer(folder()), length=length)


@functools.cache
def encoder():
    """With a head of zeros, to which all ways of an episode are alike."""
    shape = {"head": "classes", "classes": WAYS, "pooling": "mean", "dropout": 0.0}
    model, params = jcl.models.from_pretrained(folder(), key=jax.random.key(0), **shape)
    zeros = jax.tree.map(jnp.zeros_like, params["classifier"])
    return jcl.models.starting_from(model, {**params, "classifier": zeros})
