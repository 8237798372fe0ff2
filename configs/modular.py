"""Parts added to a small GPT-2, and the params that train, on the quickstart's three text domains.

The base is a random network, not a pretrained one, and only what the method names trains (lora,
olora, adapters: with the embeddings; gradual: everything, from the head down): the figures compare
these methods with one another and stand beside no published ones.

Command:  jcl run configs/modular.py --method olora
"""

from dataclasses import dataclass
from typing import Literal

import optax

import jcl


@dataclass(frozen=True)
class Config:
    method: Literal[
        "lora", "lora_per_task", "olora", "adapters", "prompts", "progressive_prompts", "gradual",
        "dropout",
    ] = "lora"  # fmt: skip
    layers: int = 4
    width: int = 128
    heads: int = 4
    length: int = 128
    batch_size: int = 16
    steps: int = 200
    learning_rate: float = 1e-3
    rank: int = 8
    prompt: int = 8  # vectors
    strength: float = 0.5  # of olora
    seed: int = 0


def build(config: Config) -> jcl.Experiment:
    tokenizer = jcl.data.ByteTokenizer()
    stream = jcl.data.labelled(jcl.data.domains(length=config.length, tokenizer=tokenizer))
    tasks, length = len(stream.tasks), config.prompt
    optimizer = jcl.per_task(jcl.scheduled(optax.adamw, jcl.cosine(config.learning_rate)))
    base = jcl.models.GPT2Config(
        vocab_size=tokenizer.vocab_size,
        positions=config.length + tasks * length,
        width=config.width,
        layers=config.layers,
        heads=config.heads,
        dropout=0.0,
    )
    gpt2 = jcl.models.gpt2(base)

    def alone(*patterns, between=()):
        """The optimizer on these params, the others held still."""
        return [jcl.only(patterns, optimizer), *between, jcl.freeze("*", but=patterns)]

    def lora(slots=1):
        return jcl.models.lora(gpt2, config.rank, 2.0 * config.rank, slots=slots)

    embeddings = ("wte*", "wpe*")
    layers = range(config.layers)
    model, parts = {
        "lora": lambda: (lora(), alone("lora/*", *embeddings)),
        "lora_per_task": lambda: (
            lora(), [jcl.separate("lora/*", tasks=tasks), *alone("lora/*")]
        ),
        "olora": lambda: (
            lora(slots=tasks),
            alone("lora/*", *embeddings, between=[jcl.olora(config.strength, tasks)]),
        ),
        "adapters": lambda: (
            jcl.models.adapters(gpt2, config.rank), alone("adapters/*", *embeddings)
        ),
        "prompts": lambda: (jcl.models.prompts(jcl.models.gpt2, base, length), alone("prompt")),
        "progressive_prompts": lambda: (
            jcl.models.prompts(jcl.models.gpt2, base, length, slots=tasks),
            alone("prompt", between=[jcl.progressive_prompts(tasks)]),
        ),
        "gradual": lambda: (
            gpt2,
            [
                optimizer,
                jcl.freeze({f"h_{i}/*": 0.5 * (1 - (i + 1) / config.layers) for i in layers}),
            ],
        ),
        "dropout": lambda: (jcl.models.module_dropout(gpt2, {"*/mlp": 0.1}), [optimizer]),
    }[config.method]()  # fmt: skip
    return jcl.Experiment(
        name=config.method,
        model=model,
        loss_fn=jcl.losses.causal_lm(model.apply),
        strategy=jcl.chain(*parts),
        stream=stream,
        measure=jcl.losses.bits_per_byte(model.apply, tokenizer.bytes_per_token),
        batch_size=config.batch_size,
        steps=config.steps,
        seed=config.seed,
        tokenizer=tokenizer,
    )
