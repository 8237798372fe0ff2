"""Hugging Face's models in PyTorch, as models.py and generation.py time them; it imports no JAX.

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


def pretrained(folder, compute):
    """A checkpoint for `generation`, its weights of that type."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, compute), attn_implementation="sdpa"
    )
    return model.to(DEVICE).eval()


def generation(model, prompts, steps):
    """A function that generates greedily with the cache and gives the tokens [batch, steps]."""
    prompts = torch.tensor(np.asarray(prompts)).long().to(DEVICE)
    settings = transformers.GenerationConfig(
        max_new_tokens=steps, do_sample=False, use_cache=True, eos_token_id=None, pad_token_id=0
    )
    # By itself, generate takes what the settings lack from the checkpoint.
    model.generation_config = settings

    def run():
        with torch.inference_mode():
            tokens = model.generate(
                prompts, attention_mask=torch.ones_like(prompts), generation_config=settings
            )
        return tokens[:, prompts.shape[1] :].cpu().numpy()

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
