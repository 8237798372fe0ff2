"""Hugging Face's models in PyTorch, as benchmarks/models.py times them; it imports no JAX.

Command:  python benchmarks/torch_peer.py SHAPE TYPE BATCH LENGTH

takes three training steps of a GPT-2 of that shape (vocab,positions,width,layers,heads) and prints
the peak of the process's memory in bytes; on a GPU that of the GPU's.
"""

import resource
import sys
from types import SimpleNamespace

import numpy as np
import torch
import transformers

RATE, DECAY = 1e-4, 1e-4
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# As JAX multiplies float32 on a GPU by default; nothing changes on a CPU.
torch.set_float32_matmul_precision("high")


def gpt2(config):
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=config.vocab_size, n_positions=config.positions, n_embd=config.width,
            n_layer=config.layers, n_head=config.heads, resid_pdrop=0.0, embd_pdrop=0.0,
            attn_pdrop=0.0, use_cache=False, attn_implementation="sdpa", bos_token_id=0,
            eos_token_id=0,
        )
    ).train()  # fmt: skip


def bert(config):
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=config.vocab_size, max_position_embeddings=config.positions,
            hidden_size=config.width, num_hidden_layers=config.layers,
            num_attention_heads=config.heads, intermediate_size=config.inner,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=config.classes,
            attn_implementation="sdpa",
        )
    ).train()  # fmt: skip


def step(model, compute, inputs, targets):
    """A function that takes one step and waits for it: fused AdamW, bfloat16 by autocast."""
    model = model.to(DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY, fused=True)
    inputs, targets = (
        torch.tensor(np.asarray(array)).long().to(DEVICE) for array in (inputs, targets)
    )
    narrow = compute == "bfloat16"

    def run():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(DEVICE, torch.bfloat16, enabled=narrow):
            logits = model(inputs).logits
            loss = torch.nn.functional.cross_entropy(
                logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)
            )
        loss.backward()
        optimizer.step()
        wait()

    return run


def wait():
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def matmuls(side):
    """Functions that multiply two square matrices, by type."""

    def one(dtype):
        square = torch.ones(side, side, dtype=dtype, device=DEVICE)

        def run():
            _ = square @ square
            wait()

        return run

    return {"float32": one(torch.float32), "bfloat16": one(torch.bfloat16)}


def main():
    shape, compute, batch, length = sys.argv[1:]
    names = ("vocab_size", "positions", "width", "layers", "heads")
    config = SimpleNamespace(**dict(zip(names, map(int, shape.split(",")), strict=True)))
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (int(batch), int(length) + 1))
    run = step(gpt2(config), compute, tokens[:, :-1], tokens[:, 1:])
    for _ in range(3):
        run()
    if DEVICE == "cuda":
        print(torch.cuda.max_memory_allocated())
    else:
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


if __name__ == "__main__":
    main()
