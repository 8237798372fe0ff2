"""What privacy costs: CLINC150's 150 intents by a linear head over MiniLM's features, with DP-SGD.

All 15,000 training texts at once; all-MiniLM-L6-v2 stays as it is and gives a text's mean-pooled
features, once for the run; the head is learned by Adam from gradients that `jcl.private` cuts and
blurs (Abadi et al. 2016). noise 0 is the same optimizer without `private`. The epsilon, for the
delta 1e-5, stands in report.md and, with the accuracies, in docs/privacy.md. Only the default rate
and clip were tried.

Needs JCL_DATA (see configs/clinc150.py).

Command:  jcl run configs/private.py --noise 1 --seeds 3
"""

import os
from dataclasses import dataclass
from pathlib import Path

import jax
import optax

import jcl


@dataclass(frozen=True)
class Config:
    noise: float = 1.0  # the noise's deviation over the clip; 0 for no privacy
    clip: float = 1.0
    delta: float = 1e-5
    batch_size: int = 500
    epochs: float = 20.0
    rate: float = 1e-2
    seed: int = 0


def build(config: Config) -> jcl.Experiment:
    texts, encoder, params = pretrained()
    encode = jax.jit(
        lambda batch: encoder.features(
            params, batch["inputs"], attention_mask=batch["attention_mask"]
        )
    )
    model = jcl.models.mlp(jcl.models.MLPConfig(encoder.config.width, (), texts.classes))
    part = jcl.per_task(jcl.scheduled(optax.adam, jcl.cosine(config.rate, warmup=0.1)))
    if config.noise > 0:
        part = jcl.private(
            part, clip=config.clip, noise_multiplier=config.noise, delta=config.delta
        )
    return jcl.Experiment(
        name=f"noise_{config.noise:g}",
        model=model,
        loss_fn=jcl.losses.classify(model.apply),
        strategy=part,
        stream=jcl.data.joint(jcl.data.encoded(texts, encode)),
        measure=jcl.losses.accuracy(model.apply),
        batch_size=config.batch_size,
        epochs=config.epochs,
        seed=config.seed,
        boundary_batches=1,
        evaluation_batch_size=150,
        log_every=100,
    )


def pretrained():
    if not os.environ.get("JCL_DATA"):
        raise jcl.InputError("Set JCL_DATA to the folder that holds clinc150 and minilm_l6.")
    folder, key = Path(os.environ["JCL_DATA"]) / "minilm_l6", jax.random.key(0)
    texts = jcl.data.clinc150(tokenizer=jcl.models.tokenizer(folder))
    shape = {"head": "classes", "classes": texts.classes, "pooling": "mean"}
    return texts, *jcl.models.from_pretrained(folder, key=key, **shape)
