"""The tables of docs/scaling.md: what a step would take on 8, 64, 256 and 2,048 devices.

Every plan is compiled in a process of its own, which a CPU lets pass for so many devices, and kept
in runs/scaling/, so that the command goes on where it was stopped:

    python benchmarks/scaling.py [--only gpt2_xl] [--devices 8 64]
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
CONFIGS = HERE.parent / "configs" / "plan"
KEPT = HERE.parent / "runs" / "scaling"
PAGE = HERE.parent / "docs" / "scaling.md"

MESHES = {8: "fsdp=8", 64: "data=8,fsdp=8", 256: "data=16,fsdp=16", 2048: "data=64,fsdp=32"}
MODELS = {"gpt2_xl": ("GPT-2 XL", 4), "llama_8b": ("Llama 8B", 1)}  # texts a device
METHODS = {"lora_replay": "LoRA + replay", "full_ewc": "full fine-tuning + EWC"}

HEAD = """# Scaling

**Compiled, not run.** No figure here was measured on the devices that it speaks of. `jcl plan`
compiles one training step for a mesh that a CPU passes for, and counts what XLA's program would
hold, multiply and move on each device:

```
jcl plan configs/plan/llama_8b.py --mesh data=64,fsdp=4 --batch-size 256 --method full_ewc
```

The tables come from `make scaling`. The batch grows with the devices: {texts}.
Both models keep what enters a block alone (`remat=True`) and multiply in bfloat16; with LoRA the
params are bfloat16 as well, with full fine-tuning float32. Replay draws as many texts as the batch
has, which doubles the tokens that are computed.

How to read them:

- State (params, optimizer, strategy, memory) is counted from shapes and shardings of the whole
  model, exactly. The memory of texts is split over `data`, all that is as large as the params over
  `fsdp`.
- Temporaries, matmuls and collectives are those of programs of {low} and {high} layers, extended in
  a straight line to the model's depth: its blocks are alike, and each adds the same
  (`tests/test_plan.py` compares the line with a deeper program).
- Temporaries are what the CPU's program and its order of work need, most likely more than a GPU's
  or TPU's: it computes bfloat16 in float32, holds attention's weights in full, and sums most weight
  gradients at the end of the step. What does not fit here may fit there.
- Matmuls (and convolutions) count loops as often as they run; one whose length the program does not
  say counts once, and `jcl plan` says so. Beside them stands 6 x params x tokens of the batch, a
  device's share. Full fine-tuning lies above it by the forward pass that remat repeats (nearly 8
  in place of 6) and by attention; LoRA has no gradients of frozen weights (6 in place of 8 with
  remat), on twice the tokens.
- Of a collective the larger of what goes in and what comes out counts. A CPU gathers bfloat16
  weights as float32, twice what they need, and sums a gradient in full before each device takes its
  part of it, where a GPU or TPU would reduce-scatter.
- Only the step is compiled: not the Fisher information at a boundary, not an evaluation.

What a mesh does not make smaller, and no figure here shows:

- Every process calls `build`: each host reads and tokenizes its text files whole, and holds all of
  the tokens. Only the batches are divided.
- `--device-data` puts the whole data set on every device.
- Params that a run begins with (`jcl.models.starting_from`) stand whole on every host, and are
  constants of the program that splits them over the devices; fresh params are made split.
- With several processes saving is synchronous: all wait while the arrays are written, and then
  while process 0 alone reads all of the checkpoint for its SHA-256 sums.
"""


def one(model, method, devices):
    """The plan, in this process."""
    from jcl import plan
    from jcl.__main__ import load_config

    started = time.monotonic()
    plan.pretend(MESHES[devices])
    module = load_config(CONFIGS / f"{model}.py")
    config = module.Config(method=method, batch_size=devices * MODELS[model][1])
    found = plan.plan(module.build, config, MESHES[devices])
    seconds = {"cpu_seconds": time.process_time(), "wall_seconds": time.monotonic() - started}
    return found._asdict() | seconds


def kept(model, method, devices):
    return KEPT / f"{model}-{method}-{devices}.json"


def table(rows):
    """Markdown: a column for each number of devices."""
    plans = list(rows.values())
    lines = [["on each device", *(f"{number:,} ({MESHES[number]})" for number in rows)]]
    lines.append(["---", *("---:" for _ in rows)])
    for part in ("params", "optimizer", "strategy", "memory", "temporaries"):
        lines.append([f"{part}, GB", *(f"{plan[part] / 1e9:,.2f}" for plan in plans)])
    totals = [
        sum(plan[part] for part in ("params", "optimizer", "strategy", "memory", "temporaries"))
        for plan in plans
    ]
    lines.append(["all, GB", *(f"{total / 1e9:,.2f}" for total in totals)])
    fits = [[size for size in (16, 32, 80) if total <= size * 1e9] for total in totals]
    lines.append(["fits in, GB", *(str(sizes[0]) if sizes else "none" for sizes in fits)])
    lines.append(["matmuls, TFLOP a step", *(f"{plan['flops'] / 1e12:,.1f}" for plan in plans)])
    expected = [6 * plan["parameters"] * plan["tokens"] / plan["devices"] for plan in plans]
    lines.append(["6 x params x tokens, TFLOP", *(f"{number / 1e12:,.1f}" for number in expected)])
    for kind in sorted({kind for plan in plans for kind in plan["collectives"]}):
        sizes = [plan["collectives"].get(kind, 0.0) for plan in plans]
        if max(sizes) >= 1e7:
            lines.append([f"{kind}, GB a step", *(f"{size / 1e9:,.2f}" for size in sizes)])
    sums = [sum(plan["collectives"].values()) for plan in plans]
    lines.append(["collectives, GB a step", *(f"{size / 1e9:,.2f}" for size in sums)])
    whole = [size * plan["devices"] / 1e12 for size, plan in zip(sums, plans, strict=True)]
    lines.append(["on all devices together, TB", *(f"{size:,.2f}" for size in whole)])
    lines.append(["CPU seconds to plan", *(f"{plan['cpu_seconds']:.0f}" for plan in plans)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write():
    """The page, from what is kept."""
    parts, depths = [], (0, 0)
    for model, (title, texts) in MODELS.items():
        for method, called in METHODS.items():
            files = {number: kept(model, method, number) for number in MESHES}
            rows = {
                number: json.loads(file.read_text())
                for number, file in files.items()
                if file.exists()
            }
            if not rows:
                continue
            first = next(iter(rows.values()))
            depths = first["compiled"]
            length = first["tokens"] // first["devices"] // texts
            parts.append(
                f"## {title}, {called}\n\n{first['parameters']:,} params; {texts} text"
                f"{'s' * (texts > 1)} of {length:,} tokens a device.\n\n{table(rows)}\n"
            )
            missing = ", ".join(f"{number:,}" for number in files if number not in rows)
            if missing:
                parts.append(f"Not compiled: {missing} devices.\n")
    texts = ", ".join(f"{number} a device for {title}" for title, number in MODELS.values())
    head = HEAD.format(texts=texts, low=depths[0], high=depths[1])
    tail = GROWTH if parts else ""
    PAGE.write_text(head + "\n" + "\n".join(parts) + tail)


GROWTH = """
## The growth of collective bytes

With the batch a device fixed, what each device gathers and reduces a step hardly depends on their
number: it is the size of the params, once for every pass through the model, and of the gradients.
With LoRA there are next to no gradients to reduce. Together the devices move as many times more as
there are more of them. A larger `fsdp` shrinks the state of a device, not what it moves; a larger
`data` shrinks neither, but the memory of texts.
A loss in chunks reduces the gradient of the head once for every chunk: with `head_positions=256` in
place of 2048 the Llama's all-reduce on 8 devices, 2 layers deep, was 45 GB in place of 8.
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--devices", nargs="+", type=int, choices=MESHES, default=list(MESHES))
    parser.add_argument("--one", action="store_true", help="in this process, printed as JSON")
    arguments = parser.parse_args()
    for devices in arguments.devices:
        for model in arguments.only:
            for method in arguments.methods:
                if arguments.one:
                    print(json.dumps(one(model, method, devices)))
                    return
                file = kept(model, method, devices)
                if file.exists():
                    continue
                chosen = ["--only", model, "--methods", method, "--devices", str(devices)]
                done = subprocess.run(
                    [sys.executable, __file__, "--one", *chosen], stdout=subprocess.PIPE, text=True
                )
                if done.returncode:
                    print(f"{file.stem} failed", file=sys.stderr)
                    continue
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(done.stdout.splitlines()[-1] + "\n")
                found = json.loads(file.read_text())
                print(f"{file.stem}: {found['wall_seconds']:.0f} s", flush=True)
                write()
    write()


if __name__ == "__main__":
    main()
