"""Generation with the cache of keys and values, against Hugging Face's `generate` in PyTorch.

Command:  python benchmarks/generation.py [--batches 1 8] [--types float32 bfloat16] [--repeats 5]
          [--out generation.json]    (--tiny: a small shape, to see that it runs)

GPT-2 small, one checkpoint of random weights that both read, prompts of 32 random tokens, 128
greedy new ones, no token that ends a text; PyTorch in eval and inference mode with sdpa attention
and its own cache. bfloat16 is params and products in both (`Precision(params="bfloat16",
compute="bfloat16")` against weights of bfloat16). In float32 the tokens of the two are equal,
or the script ends. One process, the allocator settings of `jcl run` for both, all calls of a batch
size timed in turn (A B A B ...), medians and the fastest, in new tokens of all texts a second;
the first call, in which jcl compiles, stands apart. Run it on an idle machine: on a busy one the
ratio flatters jcl far more than in a training step, since PyTorch's two threads wait for each other
at every one of a token's hundred small products.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from step import in_turn, machine

import jcl
from jcl.allocator import keep_freed_memory
from jcl.models import GPT2Config, Precision

AIM = 1.5
PRECISIONS = {
    "float32": Precision(),
    "bfloat16": Precision(params="bfloat16", compute="bfloat16"),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--types", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    keep_freed_memory()
    try:
        import torch
        import torch_peer
    except ImportError:
        print('PyTorch is the peer of this benchmark: pip install "jcl[bench]"', file=sys.stderr)
        return 1
    config, length, steps = GPT2Config(dropout=0.0), 32, 128
    if arguments.tiny:
        config, length, steps = GPT2Config(61, 24, 16, layers=2, heads=2, dropout=0.0), 8, 16
    results = {"command": " ".join(["python", *sys.argv]), "machine": machine(torch)}
    print(json.dumps(results["machine"]))
    with tempfile.TemporaryDirectory() as folder:
        model = jcl.models.gpt2(config)
        params = jax.jit(model.init)(jax.random.key(0))
        jcl.models.save_pretrained(folder, model, params)
        ours = {
            compute: jcl.models.from_pretrained(folder, precision=PRECISIONS[compute])
            for compute in arguments.types
        }
        theirs = {compute: torch_peer.pretrained(folder, compute) for compute in arguments.types}
    for batch in arguments.batches:
        prompts = np.random.default_rng(0).integers(0, config.vocab_size, (batch, length), np.int32)
        results[batch] = compare(torch_peer, ours, theirs, prompts, steps, arguments.repeats)
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1))
    return 0


def compare(torch_peer, ours, theirs, prompts, steps, repeats):
    """Times both libraries in turn, prints the table, and checks that the tokens are equal."""
    runs, first = {}, {}
    for compute in ours:
        runs[f"PyTorch {compute}"] = torch_peer.generation(theirs[compute], prompts, steps)
        runs[f"jcl {compute}"] = generation(*ours[compute], prompts, steps)
    tokens = {}
    for name, run in runs.items():
        start = time.perf_counter()
        tokens[name] = run()
        first[name] = time.perf_counter() - start
    same = {
        compute: float(np.mean(tokens[f"jcl {compute}"] == tokens[f"PyTorch {compute}"]))
        for compute in ours
    }
    if same.get("float32", 1) < 1:
        raise SystemExit(f"only {same['float32']:.1%} of the tokens are PyTorch's")
    load = [os.getloadavg()[0]]
    every = in_turn(runs, repeats)
    load.append(os.getloadavg()[0])
    number = prompts.shape[0] * steps
    rates = {name: number / statistics.median(seconds) for name, seconds in every.items()}
    fastest = {name: number / min(seconds) for name, seconds in every.items()}
    print(f"\nbatch {len(prompts)}, {prompts.shape[1]} tokens and {steps} new ones", end="")
    print(f"; load before and after {load[0]:.2f} {load[1]:.2f}; tokens a second: median, fastest")
    for name, rate in rates.items():
        print(f"  {name:18} {rate:9.1f} {fastest[name]:9.1f}   first call {first[name]:6.1f} s")
    ratios = {}
    for compute in ours:
        ratios[compute] = [
            found[f"jcl {compute}"] / found[f"PyTorch {compute}"] for found in (rates, fastest)
        ]
        median, least = ratios[compute]
        print(f"  {'jcl / PyTorch ' + compute:24} {median:5.2f}     {least:5.2f}", end="")
        print(f"   aim {AIM}: {'reached' if median >= AIM else 'MISSED'}", end="")
        print(f"   equal tokens {same[compute]:.0%}")
    return {
        "load": load, "median_tokens_a_second": rates, "fastest_tokens_a_second": fastest,
        "seconds_of_first_call": first, "median_and_fastest_ratios": ratios, "equal_tokens": same,
    }  # fmt: skip


def generation(model, params, prompts, steps):
    """A function that generates and gives the tokens [batch, steps]."""
    inputs = jnp.asarray(prompts)
    return lambda: np.asarray(jcl.models.generate(model, params, inputs, steps=steps).tokens)


if __name__ == "__main__":
    sys.exit(main())
