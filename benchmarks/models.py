"""Training steps of GPT-2 and BERT, in float32 and bfloat16, against Hugging Face's in PyTorch.

Command:  python benchmarks/models.py [--cases gpt2 bert byte] [--types float32 bfloat16]
          [--repeats 9] [--skip "PyTorch bfloat16"] [--profile] [--out models.json]
          (--tiny: small shapes, to see that it runs)

gpt2 is GPT-2 small at 4 x 128, bert is BERT base as a classifier at 8 x 128, byte is the 4 x 128
byte model at 16 x 128. bfloat16 is `Precision(compute="bfloat16")` against PyTorch's autocast; the
params are float32 in both. Dropout 0, AdamW with the same settings, the allocator settings of
`jcl run` for both, one process, all steps of a case timed in turn (A B C D A B ...), medians, and
the fastest beside them. "share of peak" is the step's floating-point operations a second over the
best rate of a square matmul of the same type that JAX or PyTorch reaches in the same run, counted
as in benchmarks/step.py.

The peak of memory is that of a process of its own, which makes a GPT-2 small and takes three
steps: ru_maxrss, with all that its libraries load. "in chunks" is `causal_lm(model, chunk=128)`.
On a GPU, with PyTorch's CUDA build, both use it, float32 products are TF32 in both (JAX's default
there), each step ends when the GPU is done, and the peak is that of the memory given to arrays.
--skip leaves a step out: on a CPU without instructions for bfloat16 PyTorch's takes minutes.
--profile adds where the time of jcl's step goes, by the kinds of XLA's operations on a CPU, as its
profiler sees them in three more steps; "ynn" are the matmuls with what is fused into them.
Run it on an idle machine.
"""

import argparse
import collections
import dataclasses
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from step import in_turn, machine, operations, print_times, print_title

import jcl
from jcl.allocator import few_arenas, keep_freed_memory
from jcl.models import BertConfig, GPT2Config, Precision

HERE = Path(__file__).parent
RATE, DECAY = 1e-4, 1e-4
TYPES = ("float32", "bfloat16")
GPT2_SMALL = GPT2Config(dropout=0.0)
# name: (config, batch, length, types)
CASES = {
    "gpt2": (GPT2_SMALL, 4, 128, TYPES),
    "bert": (BertConfig(dropout=0.0, head="classes"), 8, 128, TYPES),
    "byte": (
        GPT2Config(258, positions=128, width=128, layers=4, heads=4, dropout=0.0), 16, 128, TYPES,
    ),
}  # fmt: skip
TINY = {
    "gpt2": (GPT2Config(61, positions=8, width=8, layers=1, heads=2, dropout=0.0), 2, 8, TYPES),
    "bert": (
        BertConfig(
            61, positions=8, width=8, layers=1, heads=2, inner=16, dropout=0.0, head="classes"
        ), 2, 8, TYPES,
    ),
    "byte": (GPT2Config(258, positions=8, width=8, layers=1, heads=2, dropout=0.0), 2, 8, TYPES),
}  # fmt: skip
# The largest ratio that is aimed at: (case, ours, the other).
TARGETS = {
    ("gpt2", "jcl float32", "PyTorch float32"): 0.5,
    ("gpt2", "jcl bfloat16", "PyTorch bfloat16"): 0.95,
    ("gpt2", "jcl bfloat16", "jcl float32"): 0.65,
    ("bert", "jcl float32", "PyTorch float32"): 0.5,
    ("bert", "jcl bfloat16", "PyTorch bfloat16"): 0.95,
    ("bert", "jcl bfloat16", "jcl float32"): 0.65,
    ("byte", "jcl float32", "PyTorch float32"): 0.9,
}
CHUNK = 128


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--types", nargs="+", choices=TYPES, default=list(TYPES))
    parser.add_argument("--repeats", type=int, default=9)
    names = [f"{library} {compute}" for compute in TYPES for library in ("PyTorch", "jcl")]
    parser.add_argument("--skip", nargs="+", choices=names, default=[])
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path)
    # For the processes whose memory is measured.
    parser.add_argument("--peak-of", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    few_arenas()
    cases = {
        name: (*shape[:3], tuple(arguments.types))
        for name, shape in (TINY if arguments.tiny else CASES).items()
    }
    if arguments.peak_of:
        compute, chunk = arguments.peak_of
        print(peak_memory(*cases["gpt2"][:3], compute, int(chunk) or None))
        return 0
    try:
        import torch
        import torch_peer
    except ImportError:
        print('PyTorch is the peer of this benchmark: pip install "jcl[bench]"', file=sys.stderr)
        return 1
    keep_freed_memory()
    results = {"command": " ".join(["python", *sys.argv]), "machine": machine(torch)}
    print(json.dumps(results["machine"]))
    if "gpt2" in arguments.cases:
        results["memory"] = memory(cases["gpt2"], arguments.skip, arguments.tiny)
    for case in arguments.cases:
        results[case] = compare(torch_peer, case, cases[case], arguments)
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1))
    return 0


def compare(torch_peer, case, shape, arguments):
    """Times every step of a case in turn and prints the table."""
    config, batch_size, length, types = shape
    skip, side = arguments.skip, 64 if arguments.tiny else 4096
    batch = random_batch(config, batch_size, length)
    make = torch_peer.bert if isinstance(config, BertConfig) else torch_peer.gpt2
    steps = {}
    for compute in types:
        if (name := f"PyTorch {compute}") not in skip:
            steps[name] = torch_peer.step(make(config), compute, *batch.values())
        if (name := f"jcl {compute}") not in skip:
            steps[name] = jcl_step(config, compute, batch)
    peak, load = matmul_peak(torch_peer, side, types), [os.getloadavg()[0]]
    every = in_turn(steps, arguments.repeats)
    load.append(os.getloadavg()[0])
    later = matmul_peak(torch_peer, side, types)  # the machine's rate may change in between
    peak = {compute: max(peak[compute], later[compute]) for compute in types}
    times = {name: statistics.median(seconds) for name, seconds in every.items()}
    fastest = {name: min(seconds) for name, seconds in every.items()}
    work = flops(config, length) * batch_size * length
    print_title(case, config, batch_size, length, load)
    for compute in types:
        print(f"  {'matmul ' + compute:18} {peak[compute] / 1e9:44.0f} GFLOP/s")
    shares = {}
    for name, seconds in times.items():
        own_peak = peak[name.split()[1]]
        print_times(name, seconds, fastest[name], work, own_peak)
        shares[name] = work / seconds / own_peak
    ratios = {}
    for (of, ours, other), target in TARGETS.items():
        if of == case and {ours, other} <= set(times):
            median, least = times[ours] / times[other], fastest[ours] / fastest[other]
            ratios[f"{ours} / {other}"] = [median, least, target]
            print(f"  {ours + ' / ' + other:34} {median:5.2f}    {least:5.2f}", end="")
            print(f"   aim {target}: {'reached' if median <= target else 'MISSED'}")
    parts = {}
    if arguments.profile:
        parts = {name: profile(step) for name, step in steps.items() if name.startswith("jcl")}
    for name, found in parts.items():
        print(f"  {name}: " + ", ".join(f"{part} {each:.0f} ms" for part, each in found.items()))
    gc.collect()
    return {
        "load": load, "matmul_peak": peak, "median_seconds": times, "fastest_seconds": fastest,
        "shares_of_peak": shares, "median_and_fastest_ratios_and_aim": ratios,
        "milliseconds_of_parts": parts,
    }  # fmt: skip


def profile(step, steps=3, shown=6):
    """Milliseconds of a step by the kind of XLA's operations: the largest, and all the others."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(steps):
                step()
        (file,) = Path(folder).rglob("*.xplane.pb")
        lines = [
            line
            for plane in jax.profiler.ProfileData.from_file(str(file)).planes
            for line in plane.lines
            if "XLA" in line.name
        ]
    found = collections.Counter()
    for event in (event for line in lines for event in line.events):
        kind = event.name.split(".")[0]
        if "::" not in kind and not kind.startswith("end:"):  # the pool's own, and marks
            found[kind.split("_")[0] if kind.startswith("ynn") else kind] += event.duration_ns
    largest = dict(found.most_common(shown))
    largest["others"] = sum(found.values()) - sum(largest.values())
    return {kind: nanoseconds / steps / 1e6 for kind, nanoseconds in largest.items()}


def random_batch(config, batch_size, length):
    random = np.random.default_rng(0)
    tokens = random.integers(0, config.vocab_size, (batch_size, length + 1), np.int32)
    classifies = isinstance(config, BertConfig)
    targets = random.integers(0, config.classes, batch_size, np.int32) if classifies else None
    return {"inputs": tokens[:, :-1], "targets": targets if classifies else tokens[:, 1:]}


def jcl_step(config, compute, batch, chunk=None):
    """A function that takes one step and waits for it."""
    config = dataclasses.replace(config, precision=Precision(compute=compute))
    if isinstance(config, BertConfig):
        model = jcl.models.bert(config)
        loss_fn = jcl.losses.classify(model.apply)
    else:
        model = jcl.models.gpt2(config)
        loss_fn = jcl.losses.causal_lm(model, chunk=chunk)
    learner = jcl.learner(loss_fn, optax.adamw(RATE, weight_decay=DECAY))
    batch = jax.tree.map(jnp.asarray, batch)
    init = jax.jit(lambda: learner.init(jax.random.key(1), model.init(jax.random.key(0)), batch))
    state = init()
    compiled = jax.jit(learner.step, donate_argnums=0).lower(state, batch).compile()
    held = [state]
    del state

    def run():
        held[0], metrics = compiled(held[0], batch)
        jax.block_until_ready((held[0].params, metrics))

    return run


def memory(shape, skip, tiny):
    """The peak of memory of each library's GPT-2, in a process of its own, in bytes."""
    config, batch_size, length, types = shape
    fields = (config.vocab_size, config.positions, config.width, config.layers, config.heads)
    commands = {}
    for compute in types:
        peer = [",".join(map(str, fields)), compute, str(batch_size), str(length)]
        commands[f"PyTorch {compute}"] = [str(HERE / "torch_peer.py"), *peer]
        for name, chunk in (("", 0), (" in chunks", CHUNK)):
            ours = [str(HERE / "models.py"), "--peak-of", compute, str(chunk)]
            commands[f"jcl {compute}{name}"] = ours + ["--tiny"] * tiny
    commands = {name: each for name, each in commands.items() if name not in skip}
    found = {}
    print("\npeak of memory of a process with GPT-2's step")
    for name, command in commands.items():
        done = subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"{name}: {done.stderr[-2000:]}")
        found[name] = int(done.stdout.split()[-1])
        print(f"  {name:24} {found[name] / 2**20:8.0f} MiB")
    for compute in types:
        if not {f"jcl {compute}", f"PyTorch {compute}"} <= set(found):
            continue
        ratio = found[f"jcl {compute}"] / found[f"PyTorch {compute}"]
        print(f"  jcl / PyTorch {compute:10} {ratio:8.2f}   aim 1.0", end="")
        print(f": {'reached' if ratio <= 1 else 'MISSED'}")
    return found


def peak_memory(config, batch_size, length, compute, chunk):
    run = jcl_step(config, compute, random_batch(config, batch_size, length), chunk)
    keep_freed_memory()  # where jcl run does
    for _ in range(3):
        run()
    if on_gpu():
        return jax.devices()[0].memory_stats()["peak_bytes_in_use"]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def on_gpu():
    return jax.default_backend() == "gpu"


def matmul_peak(torch_peer, side, types):
    """The best rate of a square matmul by type, in operations a second; its sums are float32."""
    peak = {}
    for compute in types:
        # A CPU without instructions for bfloat16 would take minutes for a large one.
        own = side if compute == "float32" or on_gpu() else min(side, 512)
        square = jnp.ones((own, own), compute)
        multiply = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32))
        runs = {
            "torch": torch_peer.matmuls(own)[compute],
            "jax": lambda a=square, f=multiply: f(a, a).block_until_ready(),
        }
        peak[compute] = 2 * own**3 / min(map(min, in_turn(runs, 5).values()))
    return peak


def flops(config, length):
    """Floating-point operations of a training step per token."""
    if isinstance(config, GPT2Config):
        return operations(config, length)
    matmuls = config.layers * (4 * config.width**2 + 2 * config.width * config.inner)
    return 6 * matmuls + 12 * config.layers * length * config.width


if __name__ == "__main__":
    sys.exit(main())
