"""What a candidate costs: counted on shapes, compiled, and timed on the devices at hand."""

import dataclasses
import statistics
import time
from typing import Any

import jax
import numpy as np

from jcl import memory
from jcl.experiment import Experiment, check, evaluation_batches, stage_steps
from jcl.grid import Replica
from jcl.learner import learner, start_task
from jcl.program import Program, first_state
from jcl.select.choice import Budget, Candidate, over

STEPS = 6  # that are timed; the first is left out
PREDICTIONS, SECONDS = 50, 2.0  # that are timed at most


def counted(experiment: Experiment, setting: dict[str, Any]) -> Candidate:
    """What is known of a candidate on shapes alone.

    Raises:
        InputError: of `jcl.experiment.check`, or of the strategy.
    """
    batch, functions = check(experiment), learner(experiment.loss_fn, experiment.strategy)
    with memory.shapes_alone():
        state = jax.eval_shape(lambda: first_state(experiment, functions, batch))
    held = jax.tree.leaves((state.params, state.strategy))
    return Candidate(
        setting,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        state=sum(leaf.size * leaf.dtype.itemsize for leaf in held),
    )


def measure(candidate: Candidate, experiment: Experiment, budget: Budget) -> None:
    """Compiles a training step for its memory, and where that is within the budget takes some, and
    predicts one example again and again. Where the device has too little memory, it has failed."""
    program = Program([Replica(dataclasses.replace(experiment, device_data=False))])
    try:
        compiled = program.lowered_step()[0].compile()
        told = compiled.memory_analysis()
        candidate.memory = (
            told.argument_size_in_bytes
            + told.output_size_in_bytes
            - told.alias_size_in_bytes
            + told.temp_size_in_bytes
        )
        if not over(candidate, budget):
            _take_steps(candidate, experiment, program, compiled)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        candidate.failed = program.out_of_memory(error)


def _take_steps(
    candidate: Candidate, experiment: Experiment, program: Program, compiled: Any
) -> None:
    state = start_task(program.initial(), stage_steps(experiment)[0])
    before = jax.tree.leaves(jax.device_get(state.params))
    seconds = []
    for call in program.calls(0, 0, STEPS):
        started = time.perf_counter()
        state, _ = jax.block_until_ready(compiled(state, *call.arguments))
        seconds.append(time.perf_counter() - started)
    candidate.step = statistics.median(seconds[1:])
    after = jax.tree.leaves(jax.device_get(state.params))
    candidate.trained = sum(
        old.size for old, new in zip(before, after, strict=True) if not np.array_equal(old, new)
    )
    candidate.latency = _latency(experiment, state)


def _latency(experiment: Experiment, state: Any) -> float:
    """The median seconds of a prediction of one example, from its arrays on the host."""
    predict = jax.jit(learner(experiment.loss_fn, experiment.strategy).predict)
    batch = next(iter(evaluation_batches(experiment, experiment.stream.tasks[0])))
    example = {key: leaf[:1] for key, leaf in batch.items() if key not in ("targets", "mask")}
    jax.block_until_ready(predict(state, example)["logits"])  # compiles it
    seconds, began = [], time.perf_counter()
    while len(seconds) < PREDICTIONS and time.perf_counter() - began < SECONDS:
        started = time.perf_counter()
        jax.block_until_ready(predict(state, example)["logits"])
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)
