"""Exact attention, Performer and Linformer: time, memory and error as inputs and features grow.

Command:  python benchmarks/attention.py [--lengths 512 1024 2048 4096 8192] [--features 256]
              [--rank 256] [--repeats 5] [--out attention.json]  (--tiny: to see that it runs)

One attention layer with its four projections, batch 1, 8 heads of 64, float32, no dropout:
BERT's for the bidirectional kinds and GPT-2's for the causal ones, compiled with the gradient of
its input and params. For every length all kinds are timed in turn, medians; memory is what XLA sets
aside for temporaries. "growth" is the ratio to the length before, of which each is the double: 2 is
linear, 4 quadratic. The projections alone are linear, so the growth of exact attention comes near 4
only where the length outweighs the width.

The error is |estimate - exact| / |exact| over all positions of one input of 512 (root mean square
over draws), queries, keys and values normal with a deviation such that the scores have the one
given. Run it on an idle machine.
"""

import argparse
import itertools
import json
import os
import statistics
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from step import in_turn

from jcl.allocator import keep_freed_memory
from jcl.models import BertConfig, GPT2Config, Linformer, Performer
from jcl.models.attention import causal_attention
from jcl.models.bert import Attention as BertAttention
from jcl.models.efficient_attention import orthogonal, performer
from jcl.models.gpt2 import Attention as GPT2Attention

HEADS, WIDTH = 8, 64
LENGTHS = [512, 1024, 2048, 4096, 8192]
FEATURES = [16, 64, 256, 1024]
DEVIATIONS = [0.25, 1.0]
DRAWS, ERROR_LENGTH = 4, 512


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lengths", nargs="+", type=int, default=LENGTHS)
    parser.add_argument("--features", type=int, default=256)
    parser.add_argument("--rank", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    keep_freed_memory()
    lengths, features, error_length = arguments.lengths, FEATURES, ERROR_LENGTH
    if arguments.tiny:
        lengths, features, error_length = [16, 32, 64], [16, 64], 16
    kinds = {
        "exact": None,
        f"Performer({arguments.features})": Performer(arguments.features),
        f"Linformer({arguments.rank})": Linformer(arguments.rank),
    }
    layers = {f"{name}, bidirectional": (False, kind) for name, kind in kinds.items()}
    layers |= {
        f"{name}, causal": (True, kind)
        for name, kind in kinds.items()
        if not isinstance(kind, Linformer)
    }
    load = [os.getloadavg()[0]]
    found = {length: measured(layers, length, arguments.repeats) for length in lengths}
    load.append(os.getloadavg()[0])
    device = jax.devices()[0].device_kind
    print(f"{device}; load before and after {load[0]:.2f} {load[1]:.2f}")
    show("milliseconds, forward and backward", found, lambda each: 1e3 * each[0])
    show("MB of temporaries", found, lambda each: each[1] / 1e6)
    errors = {
        f"{'causal' if causal else 'bidirectional'}, scores {deviation}": {
            number: error(number, causal, deviation, error_length) for number in features
        }
        for causal in (False, True)
        for deviation in DEVIATIONS
    }
    print(f"\nerror of Performer at length {error_length}, features {features}")
    for name, row in errors.items():
        print(f"  {name:28}" + "".join(f"{value:9.3f}" for value in row.values()))
    if arguments.out:
        results = {"device": device, "load": load, "seconds_and_bytes": found, "errors": errors}
        arguments.out.write_text(json.dumps(results, indent=1))
    return 0


def measured(layers, length, repeats):
    """Name of a layer -> its median seconds and its bytes of temporaries."""
    runs, sizes = {}, {}
    for name, (causal, kind) in layers.items():
        runs[name], sizes[name] = layer(causal, kind, length)
    return {
        name: (statistics.median(seconds), sizes[name])
        for name, seconds in in_turn(runs, repeats).items()
    }


def layer(causal, kind, length):
    """A function that runs a layer forward and backward and waits for it; and the bytes of its
    temporaries."""
    width = HEADS * WIDTH
    shape = {"positions": length, "width": width, "heads": HEADS, "dropout": 0.0}
    if causal:
        module = GPT2Attention(GPT2Config(attention=kind, **shape))
    else:
        module = BertAttention(BertConfig(attention=kind, **shape))
    rest = (length, None, None)  # and neither a mask nor a key
    x, weights = jax.random.normal(jax.random.key(0), (2, length, width))
    params = jax.jit(lambda key: module.init(key, x, *rest))(jax.random.key(1))

    def loss(params, x, weights):
        return (module.apply(params, x, *rest) * weights).sum()

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(params, x, weights).compile()
    size = gradient.memory_analysis().temp_size_in_bytes
    return lambda: jax.block_until_ready(gradient(params, x, weights)), size


def show(title, table, value_of):
    """Prints length -> {name: ...} with a row a name, and the growth below each."""
    lengths = list(table)
    print(f"\n{title:40}" + "".join(f"{length:>9}" for length in lengths))
    for name in table[lengths[0]]:
        values = [value_of(table[length][name]) for length in lengths]
        print(f"  {name:38}" + "".join(f"{value:9.1f}" for value in values))
        growth = [after / before for before, after in itertools.pairwise(values)]
        print(f"    {'growth':36}" + " " * 9 + "".join(f"{value:9.2f}" for value in growth))


def error(features, causal, deviation, length):
    """Of Performer against exact attention, for scores of that deviation."""
    # A score is the sum of WIDTH products, divided by the root of WIDTH.
    query, keys = deviation**0.5 * jax.random.normal(
        jax.random.key(2), (2, 1, HEADS, length, WIDTH)
    )
    values = jax.random.normal(jax.random.key(3), keys.shape).swapaxes(2, 3)
    query, keys = query / WIDTH**0.5, keys.swapaxes(2, 3)
    if causal:
        exact = causal_attention(query, keys, values, None, 0.0, None)
    else:
        weights = jax.nn.softmax(query @ keys, axis=-1)
        exact = weights @ values.swapaxes(2, 3)

    @jax.jit
    def square(key):
        drawn = orthogonal(key, features, WIDTH)
        found = performer(query, keys, values, None, drawn, causal=causal)
        return jnp.mean((found - exact) ** 2)

    squares = [float(square(key)) for key in jax.random.split(jax.random.key(4), DRAWS)]
    return (statistics.mean(squares) / float(jnp.mean(exact**2))) ** 0.5


if __name__ == "__main__":
    sys.exit(main())
