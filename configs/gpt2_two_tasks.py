"""GPT-2 learns one text, keeps ten blocks of it, and learns another mixed with them.

The texts come with the installation: the Python language reference, then German sentences for a
smart home. With a checkpoint (a folder, or a name on the hub such as openai-community/gpt2) the
pretrained model goes on; without one a small GPT-2 on bytes begins from scratch. After task 1 ten
random blocks of it go into the memory; every step of task 2 sees its own batch and a draw from the
memory. The report's matrix has the loss of both tasks before and after each, in bits per byte;
--memory 0 is plain fine-tuning, for comparison. The second command shows samples of what the
model writes then.

Expected from scratch, seed 0, on a CPU (400 steps, some minutes):

| after | python_docs | german_home |
|---|---|---|
| (before) | 7.882 | 8.052 |
| python_docs | 3.593 | 4.884 |
| german_home | 5.223 | 3.250 |

and 400 steps of bytes make half German words: "azem d Laugube".

Commands:  jcl run configs/gpt2_two_tasks.py [--checkpoint openai-community/gpt2]
           jcl generate runs/gpt2_two_tasks/memory_10 --prompt "The function " --prompt "Schalte "
"""

from dataclasses import dataclass

import optax

import jcl


@dataclass(frozen=True)
class Config:
    checkpoint: str | None = None
    memory: int = 10  # blocks of task 1
    length: int = 128
    batch_size: int = 16
    drawn: int = 4  # blocks from the memory in every step of task 2
    steps: int = 200
    rate: float | None = None  # by default 1e-3 from scratch, 5e-5 for a checkpoint
    seed: int = 0


def build(config: Config) -> jcl.Experiment:
    if config.checkpoint:
        model = jcl.models.starting_from(*jcl.models.from_pretrained(config.checkpoint))
        tokenizer = jcl.data.PretrainedTokenizer(jcl.models.tokenizer(config.checkpoint))
    else:
        tokenizer = jcl.data.ByteTokenizer()
        shape = jcl.models.GPT2Config(
            tokenizer.vocab_size, config.length, width=128, layers=4, heads=4, dropout=0.0
        )
        model = jcl.models.gpt2(shape)
    texts = jcl.data.domains(length=config.length, tokenizer=tokenizer)
    stream = jcl.data.Stream("two tasks", (texts.tasks[0], texts.tasks[2]))
    rate = config.rate or (5e-5 if config.checkpoint else 1e-3)
    optimizer = jcl.per_task(jcl.scheduled(optax.adamw, jcl.cosine(rate, warmup=0.1)))
    memory = [jcl.replay(config.memory, config.drawn, insert="boundary")] if config.memory else []
    return jcl.Experiment(
        name=f"memory_{config.memory}",
        model=model,
        loss_fn=jcl.losses.causal_lm(model.apply),
        strategy=jcl.chain(*memory, optimizer),
        stream=stream,
        measure=jcl.losses.bits_per_byte(model.apply, tokenizer.bytes_per_token),
        batch_size=config.batch_size,
        steps=config.steps,
        seed=config.seed,
        boundary_batches=4,
        tokenizer=tokenizer,
    )
