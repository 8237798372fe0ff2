"""GPT-2 XL, to plan for: LoRA with replay, or full fine-tuning with EWC.

Made for `jcl plan`, which compiles a step and runs nothing: the texts are zeros. The figures are in
docs/scaling.md.

Command:  jcl plan configs/plan/gpt2_xl.py --mesh data=64,fsdp=4 --method full_ewc
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal

import numpy as np
import optax

import jcl


@dataclass(frozen=True)
class Config:
    method: Literal["lora_replay", "full_ewc"] = "lora_replay"
    layers: int = 48
    length: int = 1024
    batch_size: int = 1024
    memory: int = 65536
    head_positions: int = 512  # of each text, whose logits stand in memory at once
    seed: int = 0


def stream(config: Config) -> jcl.data.Stream:
    zeros = np.broadcast_to(np.int32(0), (config.batch_size, config.length))
    texts = jcl.data.Arrays({"inputs": zeros, "targets": zeros})
    tasks = [jcl.data.Task(f"task {number}", texts, texts, "zeros") for number in range(2)]
    return jcl.data.Stream("zeros", tuple(tasks))


def build(config: Config) -> jcl.Experiment:
    lora = config.method == "lora_replay"
    types = jcl.models.Precision("bfloat16" if lora else "float32", compute="bfloat16")
    shape = dataclasses.replace(
        jcl.models.GPT2_SIZES["xl"],
        layers=config.layers,
        positions=config.length,
        dropout=0.0,
        precision=types,
        remat=True,
    )
    model, optimizer = jcl.models.gpt2(shape), optax.adamw(1e-4)
    if lora:
        model = jcl.models.lora(model, rank=16, alpha=32.0, where="*/attn/*")
        strategy = jcl.chain(
            jcl.replay(capacity=config.memory, size=config.batch_size),
            jcl.only("lora/*", optimizer),
            jcl.freeze("*", but="lora/*"),
        )
    else:
        strategy = jcl.chain(jcl.ewc(strength=1000.0), optimizer)
    chunk = config.head_positions * config.batch_size
    return jcl.Experiment(
        name=config.method,
        model=model,
        loss_fn=jcl.losses.causal_lm(model, chunk=chunk),
        strategy=strategy,
        stream=stream(config),
        measure=jcl.losses.bits_per_byte(model, np.ones(shape.vocab_size), chunk=chunk),
        batch_size=config.batch_size,
        steps=1000,
        seed=config.seed,
    )
