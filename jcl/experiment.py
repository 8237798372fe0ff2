"""What a config's `build` returns: everything one run needs, composed of library calls."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import numpy as np
import optax

from jcl import checks, data, strict
from jcl.core import Strategy, lift
from jcl.errors import InputError
from jcl.learner import LossFn, check_needs
from jcl.losses import Measure
from jcl.models import Model


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One method on one stream.

    Where several seeds share one program, the model's init and the stream are each seed's own; the
    loss, the strategy and the measure of the first seed serve all. Where the settings of a grid do,
    `build` is called with traced numbers as well, and may compute with them but not decide by them.

    Attributes:
        name: the method's, and its run folder's.
        model: (init, apply, config).
        loss_fn: of the task, made of the model's apply.
        strategy: from `jcl.chain`, or an optax transformation.
        stream: tasks, and the stages trained on.
        measure: what the matrix holds.
        batch_size: examples a training batch; the one shape of the run.
        steps: a stage's training steps; one number for all stages or one for each.
        epochs: instead of steps, passes over a stage's examples.
        seed: of the initial params, of dropout and draws, and of the data's order.
        boundary_batches: batches that `consolidate` gets, drawn from the stage's examples.
        evaluation_batch_size: examples an evaluation batch; by default `batch_size`.
        evaluate: "boundaries" fills the whole matrix; "end" only its first and last row, which
            leaves all metrics but the final average undefined.
        log_every: steps between two lines of metrics.
        seeds_by: how the seeds of one device share it, as in `jcl.over_seeds`; by default "map" on
            a CPU and "vmap" elsewhere.
        device_data: hold the stage's and the tests' examples on the device and take up to
            `log_every` steps in one call, each gathering its batch by index; for examples so small
            that handing over a batch costs as much as the step. The sources need `arrays()`.
        probes: {name: (params, batch) -> scalar}, such as those of `jcl.probes`; taken with every
            row of the matrix on each task's first test batch, and written to metrics.jsonl.
        tokenizer: of the texts, for `jcl generate` and `jcl export`: from `jcl.data` or
            transformers' own.
        lines: how a line becomes an example, for `jcl online`, which needs neither a stream nor
            steps.
        drift: () -> a detector with `update(loss: float) -> bool`, such as
            `functools.partial(jcl.drift.detector, "adwin")`: given the loss of every example that
            is learned online, in order, it says whether the data have changed. The batches that are
            learned from then hold `drift`, int32[batch]: 1 everywhere where it has said so of the
            batch before.
    """

    name: str
    model: Model
    loss_fn: LossFn
    strategy: Strategy | optax.GradientTransformation
    stream: data.Stream = None  # pyright: ignore[reportAssignmentType]
    measure: Measure
    batch_size: int
    steps: int | Sequence[int] | None = None
    epochs: float | None = None
    seed: int = 0
    boundary_batches: int = 8
    evaluation_batch_size: int | None = None
    evaluate: Literal["boundaries", "end"] = "boundaries"
    log_every: int = 10
    seeds_by: Literal["vmap", "map"] | None = None
    device_data: bool = False
    probes: Mapping[str, Callable[[Any, data.Batch], Any]] = field(default_factory=dict)
    tokenizer: Any = None
    lines: data.Lines | None = None
    drift: Callable[[], Any] | None = None

    def __post_init__(self):
        for name in ("batch_size", "boundary_batches", "log_every"):
            checks.whole("Experiment", name, getattr(self, name))
        checks.one_of("Experiment", "evaluate", self.evaluate, ("boundaries", "end"))
        if not isinstance(self.measure, Measure):
            raise InputError(
                f"Experiment(measure={self.measure!r}): give a jcl.losses.Measure, such as "
                "jcl.losses.accuracy(model.apply)."
            )
        if not 0 <= self.seed < 2**32:
            raise InputError(f"Experiment(seed={self.seed}): a whole number from 0 to 2**32 - 1.")
        if self.epochs is not None and not 0 < self.epochs < float("inf"):
            raise InputError(f"Experiment(epochs={self.epochs}): a finite number above 0.")
        if self.stream is None and self.lines is None:
            raise InputError(
                f"Experiment {self.name!r} has nothing to learn from: give it a stream, for "
                "`jcl run`, or lines=jcl.data.Lines(...), for `jcl online`."
            )
        if self.stream is not None and (self.steps is None) == (self.epochs is None):
            raise InputError(
                f"Experiment {self.name!r}: give either steps or epochs, "
                f"not steps={self.steps} and epochs={self.epochs}."
            )
        if not self.name or self.name[0] == "." or "/" in self.name or strict.control(self.name):
            raise InputError(f"Experiment(name={self.name!r}): the name becomes a folder's name.")


def stage_steps(experiment: Experiment) -> list[int]:
    """The training steps of every stage.

    Raises:
        InputError: a stage would have none, or the numbers do not match the stages.
    """
    stages = experiment.stream.stages
    if experiment.epochs is not None:
        steps = [
            data.steps_per_epoch(stage, experiment.batch_size, experiment.epochs)
            for stage in stages
        ]
    elif isinstance(experiment.steps, Sequence):
        steps = list(experiment.steps)
    else:
        steps = [experiment.steps] * len(stages)
    if not all(isinstance(number, int | np.integer) for number in steps):
        raise InputError(f"Experiment(steps={experiment.steps!r}): whole numbers of steps.")
    steps = [int(number) for number in steps]
    if len(steps) != len(stages):
        raise InputError(
            f"Experiment {experiment.name!r} has {len(stages)} stages and steps for {len(steps)}: "
            "give one number, or one for each stage."
        )
    if min(steps) < 1:
        raise InputError(
            f"Experiment {experiment.name!r}: stage {steps.index(min(steps))} has "
            f"{min(steps)} steps; every stage needs at least one."
        )
    return steps


def check_stream(experiment: Any) -> None:
    """Checks what `build` has returned: an experiment with a stream.

    Raises:
        InputError: it is something else, or has lines alone.
    """
    if not isinstance(experiment, Experiment):
        raise InputError(
            f"build(config) returned {type(experiment).__name__}, not a jcl.Experiment."
        )
    if experiment.stream is None:
        raise InputError(
            f"Experiment {experiment.name!r} has lines alone, which `jcl online` learns from: give "
            "it a stream for everything else."
        )


def check(experiment: Experiment) -> Any:
    """Runs the loss and the measure on shapes alone, before anything is compiled or written.

    Returns:
        The abstract training batch.

    Raises:
        InputError: from the data, the model or the loss, each naming what it refuses.
    """
    check_stream(experiment)
    training, testing = {}, {}
    for number, stage in enumerate(experiment.stream.stages):
        name = stage_name(experiment, number)
        batches = data.training_batches(stage, experiment.batch_size, experiment.seed, name=name)
        if experiment.device_data:
            remedy = "use device_data=False"
            data.check_unchanging("Experiment(device_data=True)", stage, remedy)
        training[name] = batches[0]
    stage_steps(experiment)
    strategy, stages = lift(experiment.strategy), len(experiment.stream.stages)
    if strategy.tasks is not None and stages > strategy.tasks:
        raise InputError(
            f"The strategy {strategy.name} has room for {strategy.tasks} tasks and the "
            f"stream has {stages} stages: give the part that counts tasks tasks={stages}."
        )
    for task in experiment.stream.tasks:
        testing[task.name] = next(iter(evaluation_batches(experiment, task)))
    for part, found in (("train", training), ("test", testing)):
        first = next(iter(found))
        for name, batch in found.items():
            _check_tokens(experiment, f"the {part} part of {name}", batch)
            if _abstract(batch) != _abstract(found[first]):
                raise InputError(
                    f"The {part} batches of {first} and {name} differ in keys, shapes or types "
                    f"({_abstract(found[first])} and {_abstract(batch)}): a run has one shape."
                )
    batch, test = _abstract(next(iter(training.values()))), next(iter(testing.values()))
    params = jax.eval_shape(experiment.model.init, jax.random.key(0))
    _, aux = jax.eval_shape(
        lambda params, batch: experiment.loss_fn(params, batch, None), params, batch
    )
    for part, found in (("train", training), ("test", testing)):
        for name, example in found.items():
            _check_targets(aux, f"the {part} part of {name}", example)
    check_needs(strategy, test)
    check_alarms(strategy, batch)
    if "task" in strategy.needs and stages != len(experiment.stream.tasks):
        raise InputError(
            f"{strategy.name} keeps what each task ended with, and the stream has {stages} stages "
            f"for {len(experiment.stream.tasks)} tasks: give it one stage for each task."
        )
    jax.eval_shape(experiment.measure.function, params, test)
    for name, probe in experiment.probes.items():
        shape = jax.eval_shape(probe, params, test)
        if getattr(shape, "shape", None) != ():
            raise InputError(f"The probe {name!r} gives {shape}: a probe gives one number.")
    return batch


def _abstract(batch: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), batch)


def _check_tokens(experiment: Experiment, where: str, batch: Any) -> None:
    """An index beyond a table is not noticed on a device: it is looked for here."""
    limit = getattr(experiment.model.config, "vocab_size", None)
    inputs = np.asarray(batch.get("inputs"))
    if limit and np.issubdtype(inputs.dtype, np.integer) and inputs.max() >= limit:
        raise InputError(
            f"{where} has the token {inputs.max()} and the model a vocabulary of {limit}: give the "
            "model the tokenizer's vocab_size."
        )


def check_alarms(strategy: Strategy, batch: Any) -> None:
    """Refuses a strategy that reacts to alarms of drift where no batch tells of any."""
    if strategy.alarms and "drift" not in batch:
        raise InputError(
            f"{strategy.name} reacts to the alarms of a detector of drift, and there is none, so "
            "that it would do nothing: give the Experiment drift=functools.partial("
            'jcl.drift.detector, "adwin") and learn by `jcl online` or jcl.online.run. `jcl run` '
            "has no detector."
        )


def check_memories(experiment: Experiment, state: Any) -> None:
    """Refuses a memory that begins with tokens the model does not have."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if jax.tree_util.keystr(path, simple=True, separator="/").endswith("items/inputs"):
            _check_tokens(experiment, "the imported memory", {"inputs": leaf.max()})


def _check_targets(aux: Any, where: str, batch: Any) -> None:
    """A target beyond the head would silently be another one, or a NaN."""
    targets, classes = batch.get("targets"), aux["logits"].shape[-1]
    if (
        not isinstance(targets, np.ndarray)
        or not np.issubdtype(targets.dtype, np.integer)
        or aux["logits"].ndim != targets.ndim + 1
    ):
        return
    targets = targets[batch.get("mask", np.ones(targets.shape)) > 0]
    if len(targets) and not 0 <= targets.min() <= targets.max() < classes:
        raise InputError(
            f"{where} has targets from {targets.min()} to {targets.max()} and the model gives "
            f"{classes} logits: targets lie from 0 to the number of logits less one. "
            "One that does not count, such as -100, needs a mask of 0."
        )


def known(experiment: Experiment) -> dict[str, Any]:
    """What there is to know of the run's numbers: the names of the classes, the tokens of a text
    and how many texts were cut to them, the model's vocabulary."""
    stream = experiment.stream
    fields = ("labels", "classes", "length", "longest", "truncated")
    found = {name: getattr(stream, name) for name in fields if hasattr(stream, name)}
    vocabulary = getattr(experiment.model.config, "vocab_size", None)
    return found if vocabulary is None else {**found, "vocabulary": vocabulary}


def evaluation_batches(
    experiment: Experiment, task: data.Task, rows: np.ndarray | slice = slice(None)
) -> Any:
    """The task's test batches, all of one shape, or these rows of each."""
    size = experiment.evaluation_batch_size or experiment.batch_size
    return data.evaluation_batches(task.test, size, rows=rows)


def stage_name(experiment: Experiment, number: int) -> str:
    """The task's name where every stage is a task, else the stage's number."""
    tasks = experiment.stream.tasks
    return tasks[number].name if len(experiment.stream.stages) == len(tasks) else f"stage {number}"
