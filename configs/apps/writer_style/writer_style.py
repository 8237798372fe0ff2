"""A writer's style for text generation: a model that writes learns to write like somebody, by LoRA.

base: a small GPT-2 on bytes learns English prose, the Python language reference. style: it goes on
from base's checkpoint with a writer's texts; of its params only low-rank adapters learn, so that
the style is a small file beside the model. The writer is, without texts of yours, whoever drafts
licences: those of the installed packages numpy, scipy, matplotlib and jaxlib. What it shows:
README.md beside this file. With --checkpoint openai-community/gpt2 and --texts FOLDER (of .txt
files) it is the same with a real model and your own writer.

Needs home-assistant-intents (pip install "jcl[demo]").

Commands:  jcl run configs/apps/writer_style/writer_style.py
           jcl export runs/writer_style/base runs/writer_style/base_model
           jcl run configs/apps/writer_style/writer_style.py --part style \
               --checkpoint runs/writer_style/base_model
           jcl generate runs/writer_style/style --prompt "The " --temperature 0.7
"""

from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import optax

import jcl
from jcl.data.text import group, paragraphs, split_documents, text_task

PACKAGES = ("numpy", "scipy", "matplotlib", "jaxlib")


@dataclass(frozen=True)
class Config:
    part: Literal["base", "style"] = "base"
    checkpoint: str | None = None  # what style begins with
    texts: str | None = None  # a folder of the writer's .txt files
    width: int = 128
    layers: int = 4
    length: int = 128
    rank: int = 8
    batch_size: int = 16
    steps: int = 300
    rate: float | None = None  # by default 1e-3, of adapters 3e-3
    seed: int = 0


def build(config: Config) -> jcl.Experiment:
    tokenizer, style = jcl.data.ByteTokenizer(), config.part == "style"
    if style and config.checkpoint is None:
        raise jcl.InputError("writer_style: --part style needs --checkpoint, see the docstring.")
    if style:
        model = jcl.models.starting_from(*jcl.models.from_pretrained(config.checkpoint))
        if model.config.vocab_size != tokenizer.vocab_size:
            tokenizer = jcl.data.PretrainedTokenizer(jcl.models.tokenizer(config.checkpoint))
        model = jcl.models.lora(model, config.rank, 2.0 * config.rank, where="h_*")
    else:
        shape = (tokenizer.vocab_size, config.length, config.width, config.layers)
        model = jcl.models.gpt2(jcl.models.GPT2Config(*shape, heads=4, dropout=0.0))
    general = jcl.data.domains(length=config.length, tokenizer=tokenizer).tasks[0]
    if config.texts:
        writer = jcl.data.text_files(
            {"writer": sorted(Path(config.texts).glob("*.txt"))},
            tokenizer=tokenizer, length=config.length,
        ).tasks[0]  # fmt: skip
    else:
        parts = split_documents(licences(), 0.1, config.seed)
        writer = text_task("writer", *parts, tokenizer, config.length)
    rate = config.rate or (3e-3 if style else 1e-3)
    optimizer = jcl.per_task(jcl.scheduled(optax.adamw, jcl.cosine(rate, warmup=0.1)))
    adapters = [jcl.only("lora/*", optimizer), jcl.freeze("*", but="lora/*")]
    return jcl.Experiment(
        name=config.part,
        model=model,
        loss_fn=jcl.losses.causal_lm(model.apply),
        strategy=jcl.chain(*(adapters if style else [optimizer])),
        stream=jcl.data.Stream(
            "a writer", (general, writer), stages=((writer if style else general).train,)
        ),
        measure=jcl.losses.bits_per_byte(model.apply, tokenizer.bytes_per_token),
        batch_size=config.batch_size,
        steps=config.steps,
        seed=config.seed,
        boundary_batches=1,
        tokenizer=tokenizer,
    )


def licences() -> list[str]:
    """What the packages' licence files say, each paragraph once."""
    files = [file for name in PACKAGES for file in metadata.files(name) or ()]
    own = [file for file in files if file.name.startswith("LICEN") and "dist-info" in str(file)]
    text = "\n\n".join(Path(str(file.locate())).read_text("utf-8", "replace") for file in own)
    return group(list(dict.fromkeys(paragraphs(text))), "\n\n")
