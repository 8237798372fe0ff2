"""The per-example Fisher information of GPT-2: jcl's scan against PyTorch's loop over examples.

Command:  python benchmarks/fisher.py [--sizes byte small] [--repeats 5]

Milliseconds an example of 128 tokens, float32, dropout 0: forward, backward, squares added up. Both
see the same examples one at a time (jcl in one compiled scan, PyTorch with batches of one), timed
in turn; medians and their ratio. Run it on an idle machine.
"""

import argparse
import os
import statistics
import sys

import jax
import numpy as np
from step import SIZES, in_turn

import jcl
from jcl.allocator import keep_freed_memory
from jcl.strategies.ewc import fisher

EXAMPLES = {"byte": 64, "small": 4}


def ours(config, tokens):
    """A function that takes the Fisher information of all examples and waits for it."""
    model = jcl.models.gpt2(config)
    loss_fn = jcl.losses.causal_lm(model.apply)
    params = jax.jit(model.init)(jax.random.key(0))
    batches = {"inputs": tokens[None, :, :-1], "targets": tokens[None, :, 1:]}
    compiled = jax.jit(lambda params, batches: fisher(loss_fn, params, batches))
    return lambda: jax.block_until_ready(compiled(params, batches))


def theirs(torch, torch_peer, config, tokens):
    """The same by PyTorch, an example at a time."""
    model = torch_peer.gpt2(config)
    examples = torch.tensor(tokens, dtype=torch.long)

    def run():
        total = [torch.zeros_like(parameter) for parameter in model.parameters()]
        for example in examples:
            model.zero_grad(set_to_none=True)
            logits = model(example[None, :-1]).logits
            torch.nn.functional.cross_entropy(logits[0], example[1:]).backward()
            for square, parameter in zip(total, model.parameters(), strict=True):
                square.addcmul_(parameter.grad, parameter.grad)
        return [square / len(examples) for square in total]

    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    keep_freed_memory()
    try:
        import torch
        import torch_peer
    except ImportError:
        print('PyTorch is the peer of this benchmark: pip install "jcl[bench]"', file=sys.stderr)
        return 1
    for size in arguments.sizes:
        config, _, length = SIZES[size]
        number = EXAMPLES[size]
        tokens = np.random.default_rng(0).integers(0, config.vocab_size, (number, length + 1))
        tokens = tokens.astype(np.int32)
        runs = {"PyTorch": theirs(torch, torch_peer, config, tokens), "jcl": ours(config, tokens)}
        load = os.getloadavg()[0]
        median = {
            name: 1e3 * statistics.median(seconds) / number
            for name, seconds in in_turn(runs, arguments.repeats).items()
        }
        print(
            f"{size}: PyTorch {median['PyTorch']:.1f} ms an example, jcl {median['jcl']:.1f} ms: "
            f"{median['PyTorch'] / median['jcl']:.2f} times faster; load before {load:.2f}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
