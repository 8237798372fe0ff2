"""A stream as it would come in service: one example after the other, each met once, no files."""

import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcl import data
from jcl.data import Batch, Example
from jcl.data.streams import gather
from jcl.errors import InputError
from jcl.experiment import Experiment
from jcl.online.engine import Engine
from jcl.online.waiting import Entry, Timing


def run(
    experiment: Experiment,
    examples: data.Source | None = None,
    *,
    batch: int | None = None,
    delay: int = 0,
    window: int = 500,
) -> dict[str, Any]:
    """Predicts the examples in their order and learns from each once, as `jcl online` does.

    Args:
        experiment: model, loss, strategy, seed and drift detector; its steps do not count.
        examples: with targets; by default the stages of the experiment's stream, one behind the
            other.
        batch: rows of a micro-batch; by default the experiment's batch_size. A last batch that is
            short is filled up with rows that do not count.
        delay: a label counts as known once so many examples more have been predicted.
        window: examples of the windowed measures.

    Returns:
        {"name", "measures": over all examples whose label came to be known (accuracy and loss, or
        loss, perplexity and bits_per_byte), "window": over the last ones, "worst_window": the worst
        that there was, "counts", "seconds", "examples_per_second" (compiling left out),
        "state_bytes", "traces", and "series": {"loss": [...], "correct": [...], "alarms": [...]},
        one number an example in the order of learning, and before which of them (from 0) the
        detector's alarms were handed on}.

    Raises:
        InputError: from `Engine`.
        Diverged: a prediction is not a number.

    >>> import jax, jcl, numpy as np, optax
    >>> inputs = np.random.default_rng(0).normal(size=(400, 2)).astype(np.float32)
    >>> stream = jcl.data.Arrays({"inputs": inputs, "targets": (inputs[:, 0] > 0).astype(int)})
    >>> model = jcl.models.mlp(jcl.models.MLPConfig(inputs=2, hidden=(), classes=2))
    >>> task = jcl.data.Task("signs", stream, stream, stream.hash())
    >>> report = jcl.online.run(jcl.Experiment(
    ...     name="sgd", model=model, loss_fn=jcl.losses.classify(model.apply),
    ...     strategy=optax.sgd(1.0), measure=jcl.losses.accuracy(model.apply),
    ...     stream=jcl.data.Stream("signs", (task,)), batch_size=4, epochs=1))
    >>> report["counts"]["learned"], report["measures"]["accuracy"] > 0.8
    (400, True)
    """
    if examples is None:
        if experiment.stream is None:
            raise InputError("jcl.online.run: give examples, or the experiment a stream.")
        examples = data.Concatenated(experiment.stream.stages)
    data.check_unchanging("jcl.online.run", examples, "give the stream without augmentation")
    timing = Timing(
        batch=batch or experiment.batch_size, delay=delay, waiting=max(1000, delay), window=window
    )
    sizes = getattr(experiment.tokenizer, "bytes_per_token", None)
    first = next(_chunks(examples, 1, sizes))[0]
    engine = Engine(experiment, first, timing)
    engine.begin()
    engine.compile()
    losses, correct, alarms = [], [], []
    started = time.monotonic()
    for chunk in _chunks(examples, timing.batch, sizes):
        done = engine.counts["examples"]
        engine.predict([Entry(done + place + 1, 0, each) for place, each in enumerate(chunk)])
        for learned in engine.learn():
            if learned.drift:
                alarms.append(len(losses))
            losses += learned.losses
            correct += learned.correct
    jax.block_until_ready(engine.state.params)
    seconds = time.monotonic() - started
    return {
        "name": experiment.name,
        "measures": engine.measures.running(),
        "window": engine.measures.windowed(),
        "worst_window": engine.measures.worst,
        "counts": engine.counts,
        "seconds": seconds,
        "examples_per_second": engine.counts["examples"] / max(seconds, 1e-9),
        "state_bytes": sum(_bytes(leaf) for leaf in jax.tree.leaves(engine.state)),
        "traces": dict(engine.traces),
        "timing": dataclasses.asdict(timing),
        "series": {"loss": losses, "correct": correct, "alarms": alarms},
    }


def _chunks(examples: data.Source, size: int, sizes: Any) -> Iterator[list[Example]]:
    for begin in range(0, len(examples), size):
        batch = gather(examples, np.arange(begin, min(begin + size, len(examples))))
        yield [_example(batch, row, sizes) for row in range(len(batch["targets"]))]


def _example(batch: Batch, row: int, sizes: Any) -> Example:
    leaves = {name: leaf[row] for name, leaf in batch.items()}
    mask = np.asarray(leaves.get("mask", np.ones(leaves["targets"].shape)), np.float32)
    text = mask.ndim == 1 and sizes is not None
    size = int((np.asarray(sizes)[leaves["targets"]] * (mask > 0)).sum()) if text else 0
    return Example({**leaves, "mask": mask}, bool(mask.any()), size=size)


def _bytes(leaf: Any) -> int:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return int(leaf.nbytes)
