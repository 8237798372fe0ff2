"""Predict and learn, one micro-batch after the other: jcl against PyTorch, beside river.

Command:  python benchmarks/online.py [--cases minilm byte] [--batch 8] [--batches 200]
          [--out online.json]   (--tiny: small shapes and made-up texts, to see that it runs)

Needs JCL_DATA, a folder with clinc150 and minilm_l6, and pip install "jcl[bench,drift]".

The texts of CLINC150's train part, shuffled by one seed, are met once: every loop predicts a
micro-batch, hands the classes to the host, learns from it and waits for that. minilm is
all-MiniLM-L6-v2 with mean pooling and a new head of 150 classes, its embeddings held still as in
configs/clinc150.py; byte is a BERT of 4 layers of 128 over bytes, from scratch, all of it trained.
float32, dropout 0, AdamW with the same settings, the
same shapes, the allocator settings of `jcl run` for both.

"predict, learn" are two passes over a micro-batch, as in `jcl online`, which tells before it
learns. "in one" shares the forward pass: jcl.online.prequential's step, and one forward pass in
PyTorch from which the classes are read. "shortened" pads each micro-batch to its longest text only:
PyTorch to its very length, jcl by jcl.models.shortened to the next of five. The loops take turns of
ten micro-batches, with a pause between them in which threads stop spinning; medians over all but
the first turn. river's loop is a softmax regression over hashed words, one example at a time, on
the same texts. Run it on an idle machine.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

import jax
import numpy as np
import optax
from step import machine

import jcl
from jcl.allocator import keep_freed_memory
from jcl.models import BertConfig

RATE, DECAY, TURN = 1e-4, 1e-2, 10
LENGTHS = {"minilm": (12, 16, 20, 24), "byte": (48, 64, 80, 96)}  # besides the whole
PAIRS = {
    "predict, learn": ("jcl predict, learn", "PyTorch predict, learn"),
    "in one": ("jcl in one", "PyTorch in one"),
    "predict, learn, jcl's shortened": ("jcl predict, learn, short", "PyTorch predict, learn"),
    "predict, learn, both shortened": (
        "jcl predict, learn, short",
        "PyTorch predict, learn, short",
    ),
    "in one, both shortened": ("jcl in one, short", "PyTorch in one, short"),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--cases", nargs="+", choices=("minilm", "byte"), default=["minilm", "byte"]
    )
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--batches", type=int, default=200)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    keep_freed_memory()
    try:
        import torch
    except ImportError:
        print('PyTorch is the peer of this benchmark: pip install "jcl[bench]"', file=sys.stderr)
        return 1
    batches = 2 * TURN if arguments.tiny else arguments.batches
    texts, labels = made_up() if arguments.tiny else clinc150()
    texts, labels = texts[: batches * arguments.batch], labels[: batches * arguments.batch]
    results = {"command": " ".join(["python", *sys.argv]), "machine": machine(torch)}
    print(json.dumps(results["machine"]))
    for case in arguments.cases:
        results[case] = compare(torch, case, texts, labels, arguments.batch, arguments.tiny)
    results["river"] = river_loop(texts, labels)
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1))
    return 0


def compare(torch, case, texts, labels, size, tiny):
    """Times all loops of a case over the same micro-batches, in turn, and prints the table."""
    model, params, tokenizer, length, peer = (byte if tiny or case == "byte" else minilm)(
        torch, max(labels) + 1, tiny
    )
    held_still = not (tiny or case == "byte")
    lines = jcl.data.Lines(
        tokenizer=tokenizer, length=length, labels=[str(each) for each in range(max(labels) + 1)]
    )
    read = [
        lines.read(json.dumps({"text": text, "label": label}).encode()).leaves
        for text, label in zip(texts, labels, strict=True)
    ]
    batches = [jcl.data.stack(read[at : at + size]) for at in range(0, len(read), size)]

    def seeded():
        torch.manual_seed(0)
        return peer()

    short = jcl.models.shortened(model, *((4, 8) if tiny else LENGTHS[case]))
    loops = {}
    for ending, each in (("", model), (", short", short)):
        for kind, together in (("predict, learn", False), ("in one", True)):
            name, shorten = f"{kind}{ending}", each is short
            loops[f"jcl {name}"] = jcl_loop(each, params, batches[0], held_still, together=together)
            loops[f"PyTorch {name}"] = torch_loop(
                torch, seeded(), together=together, shorten=shorten
            )
    load = [os.getloadavg()[0]]
    seconds, right = {name: [] for name in loops}, dict.fromkeys(loops, 0)
    for turn in range(0, len(batches), TURN):
        for name, loop in loops.items():
            time.sleep(0 if tiny else 0.3)
            for batch in batches[turn : turn + TURN]:
                begun = time.perf_counter()
                predictions = loop(batch)
                if turn:
                    seconds[name].append(time.perf_counter() - begun)
                right[name] += int((predictions == batch["targets"]).sum())
    load.append(os.getloadavg()[0])
    found = {
        name: {
            "median_seconds": statistics.median(each),
            "p99_seconds": float(np.percentile(each, 99)),
            "fastest_seconds": min(each),
            "examples_per_second": size / statistics.median(each),
            "accuracy": right[name] / len(texts),
        }
        for name, each in seconds.items()
    }
    ratios = {
        name: [
            found[other][which] / found[ours][which]
            for which in ("median_seconds", "fastest_seconds")
        ]
        for name, (ours, other) in PAIRS.items()
    }
    print(f"\n{case}: micro-batches of {size} x {length}, {len(texts)} texts; ", end="")
    print(f"load before and after {load[0]:.2f} {load[1]:.2f}")
    print(
        f"  {'':29} {'examples/s':>10} {'median':>10} {'99th':>10} {'fastest':>10} {'accuracy':>9}"
    )
    for name, each in found.items():
        times = (1e3 * each[f"{kind}_seconds"] for kind in ("median", "p99", "fastest"))
        shown = " ".join(f"{value:7.1f} ms" for value in times)
        print(f"  {name:29} {each['examples_per_second']:10.1f} {shown} {each['accuracy']:9.3f}")
    for name, (median, least) in ratios.items():
        print(f"  throughput of jcl / PyTorch, {name}: {median:.2f} (of the fastest {least:.2f})")
    return {"loops": found, "median_and_fastest_ratios": ratios, "load": load}


def jcl_loop(model, params, batch, held_still, *, together):
    optimizer = optax.adamw(RATE, weight_decay=DECAY)
    if held_still:
        trained = ["layer_*", "classifier/*"]
        optimizer = jcl.chain(jcl.only(trained, optimizer), jcl.freeze("*", but=trained))
    learner = jcl.learner(jcl.losses.classify(model.apply), optimizer)
    pure = jcl.online.prequential(learner)
    held = [learner.init(jax.random.key(0), params, batch)]
    predict = jax.jit(pure.predict)
    learn = jax.jit(pure.step if together else pure.learn, donate_argnums=0)

    def run(batch):
        predictions = None if together else np.asarray(predict(held[0], batch)["predictions"])
        held[0], outputs = learn(held[0], batch)
        jax.block_until_ready(held[0].params)
        return np.asarray(outputs["predictions"]) if together else predictions

    return run


def torch_loop(torch, model, *, together, shorten=False):
    trained = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=DECAY, fused=True)

    def run(batch):
        longest = int(batch["attention_mask"].sum(axis=1).max()) if shorten else None
        inputs, mask = (
            torch.tensor(batch[name][:, :longest]).long() for name in ("inputs", "attention_mask")
        )
        targets = torch.tensor(batch["targets"]).long()
        predictions = None
        if not together:
            with torch.inference_mode():
                predictions = model(inputs, mask).argmax(dim=1).numpy()
        optimizer.zero_grad(set_to_none=True)
        logits = model(inputs, mask)
        if together:
            predictions = logits.detach().argmax(dim=1).numpy()
        torch.nn.functional.cross_entropy(logits, targets).backward()
        optimizer.step()
        return predictions

    return run


def byte(torch, classes, tiny):
    """The model over bytes: ours, its params, its tokenizer, the length, and PyTorch's."""
    import torch_peer

    shape = (258, 16, 32, 2, 2, 64) if tiny else (258, 128, 128, 4, 4, 512)
    config = BertConfig(*shape, dropout=0.0, head="classes", classes=classes)
    model = jcl.models.bert(config)

    class Peer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.bert = torch_peer.bert(config)

        def forward(self, inputs, mask):
            return self.bert(inputs, attention_mask=mask).logits

    params = jax.jit(model.init)(jax.random.key(0))
    return model, params, jcl.data.ByteTokenizer(), config.positions, Peer


def minilm(torch, classes, tiny):
    """The same of all-MiniLM-L6-v2, whose longest text here has 32 tokens or fewer."""
    import transformers

    place = data() / "minilm_l6"
    model, params = jcl.models.from_pretrained(
        place, key=jax.random.key(0), head="classes", classes=classes, pooling="mean", dropout=0.0
    )

    class Peer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = transformers.AutoModel.from_pretrained(
                place, attn_implementation="sdpa", hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0, add_pooling_layer=False,
            ).train()  # fmt: skip
            self.encoder.embeddings.requires_grad_(False)
            self.head = torch.nn.Linear(self.encoder.config.hidden_size, classes)

        def forward(self, inputs, mask):
            hidden = self.encoder(inputs, attention_mask=mask).last_hidden_state
            weights = mask[..., None].to(hidden.dtype)
            return self.head((hidden * weights).sum(dim=1) / weights.sum(dim=1))

    return model, params, jcl.models.tokenizer(place), 32, Peer


def river_loop(texts, labels):
    """river's predict-and-learn, one text at a time; None where it is not installed."""
    try:
        from river import feature_extraction, linear_model, optim, preprocessing
    except ImportError:
        print('\nriver: not run; pip install "jcl[drift]"')
        return None
    model = (
        feature_extraction.BagOfWords(lowercase=True)
        | preprocessing.FeatureHasher(n_features=2**14, seed=0)
        | linear_model.SoftmaxRegression(optimizer=optim.SGD(0.5))
    )
    right, seconds = 0, []
    for text, label in zip(texts, labels, strict=True):
        begun = time.perf_counter()
        right += model.predict_one(text) == label
        model.learn_one(text, label)
        seconds.append(time.perf_counter() - begun)
    found = {
        "examples_per_second": len(texts) / sum(seconds),
        "median_seconds": statistics.median(seconds),
        "p99_seconds": float(np.percentile(seconds, 99)),
        "accuracy": right / len(texts),
    }
    print(
        f"\nriver, softmax regression over hashed words: {found['examples_per_second']:.1f} ",
        end="",
    )
    print(f"examples/s, 99th {1e3 * found['p99_seconds']:.1f} ms, accuracy {found['accuracy']:.3f}")
    return found


def clinc150():
    """The train texts and class numbers, in an order of seed 0."""
    found = json.loads((data() / "clinc150" / "data_full.json").read_text())["train"]
    names = {label: number for number, label in enumerate(sorted({label for _, label in found}))}
    order = np.random.default_rng(0).permutation(len(found))
    return [found[place][0] for place in order], [names[found[place][1]] for place in order]


def made_up():
    draw = np.random.default_rng(0)
    labels = [int(each) for each in draw.integers(0, 3, 400)]
    return [
        ("red", "green", "blue")[each] + " " * int(draw.integers(1, 9)) for each in labels
    ], labels


def data():
    if not os.environ.get("JCL_DATA"):
        sys.exit("Set JCL_DATA to the folder that holds clinc150 and minilm_l6.")
    return Path(os.environ["JCL_DATA"])


if __name__ == "__main__":
    sys.exit(main())
