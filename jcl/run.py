"""The only loop: from an experiment to its run folder.

for each stage: for each batch `step`; `consolidate`; evaluate all tasks -> one row of the matrix;
save. Killed anywhere and started again it ends with the same bits.
"""

import collections
import contextlib
import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from jcl import checkpoint, data, folder, report
from jcl.errors import InputError, SaveError
from jcl.experiment import Experiment, check, evaluation_batches, stage_name, stage_steps
from jcl.learner import LearnerState, learner, over_seeds, start_task
from jcl.progress import RunProgress
from jcl.sharding import Placement

RATES_KEPT = 1000


class Diverged(InputError):
    """The loss or the params are no longer finite."""


@dataclasses.dataclass
class Position:
    """Where a run stands; saved beside the state in every checkpoint.

    Attributes:
        stage: the stage under way, or the number of stages when all are done.
        step: training steps taken in it.
        matrix: [row][seed][task] so far.
        offset: the length of metrics.jsonl.
        wall_seconds: of all processes that worked on the run.
        step_seconds: per step, one number for each of the last logging intervals.
        traces: of each compiled function, the largest of any process.
    """

    stage: int = 0
    step: int = 0
    matrix: list[list[list[float]]] = dataclasses.field(default_factory=list)
    offset: int = 0
    wall_seconds: float = 0.0
    step_seconds: list[float] = dataclasses.field(default_factory=list)
    traces: dict[str, int] = dataclasses.field(default_factory=dict)


def run(
    build: Callable[[Any], Experiment],
    config: Any,
    *,
    config_file: Path,
    seeds: int = 1,
    out: Path | None = None,
    fresh: bool = False,
    save_minutes: float = 5.0,
    console: Console | None = None,
) -> tuple[dict[str, Any], Path]:
    """Runs an experiment to its end, from its last checkpoint if it has one.

    Args:
        build: config -> experiment.
        config: a frozen dataclass; with several seeds it needs a field `seed`.
        config_file: where both come from.
        seeds: replicas trained in one program, with the seeds config.seed, config.seed + 1, ...
        out: the run folder; by default runs/<config>/<name of the experiment>.
        fresh: starts again where the folder holds a run already.
        save_minutes: minutes between checkpoints inside a stage.
        console: where progress is shown.

    Returns:
        The report, as in report.json, and the run folder.

    Raises:
        InputError: what was given cannot be run; nothing was written.
        Diverged: the loss is no longer finite; the last good checkpoint stays.
        checkpoint.SaveError: a checkpoint could not be written; those before it stay.
    """
    console = console or Console()
    experiments = _build(build, config, seeds)
    first = experiments[0]
    path = Path(out) if out else Path("runs") / config_file.stem / first.name
    description = folder.describe(
        name=first.name,
        config=dataclasses.asdict(config),
        config_file=config_file,
        hashes={task.name: task.hash for task in first.stream.tasks},
        seeds=[experiment.seed for experiment in experiments],
    )
    program = _Program(experiments)
    with folder.opened(path, description, fresh=fresh):
        with contextlib.suppress(InputError):  # a damaged report is made again
            finished = report.read(path)
            if report.complete(path):
                console.print(f"{path} is finished already; --fresh starts it again.")
                return finished, path
        return _train(program, path, description, save_minutes, console), path


def _train(
    program: "_Program",
    path: Path,
    description: dict[str, Any],
    save_minutes: float,
    console: Console,
) -> dict[str, Any]:
    experiment = program.experiments[0]
    lengths = stage_steps(experiment)
    restored = checkpoint.restore(path / "checkpoints", program.abstract)
    if restored:
        state, position = restored[0], Position(**restored[1])
    else:
        state, position = program.initial(), Position()
    lines = folder.MetricsFile(path, position.offset)
    started = time.monotonic() - position.wall_seconds
    saved = time.monotonic()

    def save(state: LearnerState) -> None:
        nonlocal saved
        program.check_finite(state, position)
        position.offset = lines.offset()
        position.wall_seconds = time.monotonic() - started
        program.count_traces(position)
        checkpoint.save(path / "checkpoints", state, dataclasses.asdict(position))
        saved = time.monotonic()

    def evaluate(state: LearnerState, after: str) -> None:
        row = program.evaluate(state)
        for task, values in zip(experiment.stream.tasks, np.transpose(row), strict=True):
            where = f"evaluating {task.name} after {after}"
            remedy = _FIRST_REMEDY if not position.matrix else _REMEDY
            _check_finite(experiment.measure.name, values, where, remedy)
            lines.write(
                kind="evaluation",
                after=after,
                task=task.name,
                **{experiment.measure.name: values.tolist()},
            )
        for task, values in zip(experiment.stream.tasks, program.probe(state), strict=True):
            if values:
                lines.write(kind="probe", after=after, task=task.name, **values)
        position.matrix.append(row)
        results = zip(experiment.stream.tasks, np.mean(row, axis=0), strict=True)
        progress.say(
            f"{experiment.measure.name} after {after}: "
            + "  ".join(f"{task.name} {value:.3f}" for task, value in results)
        )

    with contextlib.closing(lines), RunProgress(sum(lengths), console) as progress:
        if restored:
            at = f"stage {position.stage}, step {position.step}"
            progress.say(f"{path}: going on from {at}")
        else:
            progress.say(f"{path}: {sum(lengths)} steps, seeds {description['seeds']}")
            evaluate(state, "nothing")
            save(state)
        for stage in range(position.stage, len(lengths)):
            name = stage_name(experiment, stage)
            if position.step == 0:
                state = start_task(state, lengths[stage])
            log = _StepLog(name, lengths, position, lines, progress, experiment.log_every)
            for call in program.calls(stage, position.step, lengths[stage]):
                state, metrics = call.function(state, *call.arguments)
                position.step += call.steps
                log.add(metrics, call.steps, call.tokens)
                if time.monotonic() - saved > 60 * save_minutes and position.step < lengths[stage]:
                    log.flush()
                    save(state)
            log.flush()
            state = program.consolidate(state, program.boundary_batches(stage))
            evaluate(state, name)
            position.stage, position.step = stage + 1, 0
            save(state)
        finished = report.make(
            name=experiment.name,
            tasks=[task.name for task in experiment.stream.tasks],
            measure=experiment.measure.name,
            higher_is_better=experiment.measure.higher_is_better,
            seeds=description["seeds"],
            matrix=np.swapaxes(np.asarray(position.matrix), 0, 1).tolist(),
            wall_seconds=position.wall_seconds,
            steps=sum(lengths),
            step_seconds_median=statistics.median(position.step_seconds or [0.0]) or None,
            traces=position.traces,
            config=description["config"],
            versions=description["versions"],
        )
        try:
            report.write(path, finished)
        except OSError as error:
            raise SaveError(
                f"The report in {path} cannot be written ({error.strerror}); the checkpoints stay. "
                "Make room, then start the same command again."
            ) from error
    return finished


class _Call(NamedTuple):
    """One call of a compiled function: (state, *arguments) -> state, metrics of its last step."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    steps: int
    tokens: int  # of one step


class _Program:
    """The compiled functions of a run, and the batches and states they work on."""

    def __init__(self, experiments: list[Experiment]):
        self.experiments = experiments
        first = experiments[0]
        self._batch = _check_all(experiments)
        self._placement = Placement(first.batch_size)
        self._learner = learner(first.loss_fn, first.strategy, measure=first.measure.function)
        functions = self._learner
        if first.device_data:
            functions = functions._replace(
                step=_by_index(functions.step), evaluate=_over_batches(functions.evaluate)
            )
        if len(experiments) > 1:
            functions = over_seeds(functions, by=first.seeds_by)
        place = self._placement.state
        self._traces = collections.Counter()
        self._step = jax.jit(
            self._counted("step", functions.step), donate_argnums=0, out_shardings=place
        )
        self.consolidate = jax.jit(
            self._counted("consolidate", functions.consolidate),
            donate_argnums=0,
            out_shardings=place,
        )
        self._evaluate = jax.jit(self._counted("evaluate", functions.evaluate), out_shardings=place)
        self._tests: list[Any] = []  # of every task, once they are held on the device
        probe = functools.partial(_probe, dict(first.probes))
        self._probe = jax.jit(jax.vmap(probe) if len(experiments) > 1 else probe)
        self._finite = jax.jit(_all_finite)
        self.abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            jax.eval_shape(self._initial),
        )
        # Traced on shapes, so that a strategy refuses what it must before anything is compiled.
        plain = over_seeds(self._learner) if len(experiments) > 1 else self._learner
        jax.eval_shape(plain.step, self.abstract, self._abstract_batch())
        boundary = self._abstract_batch(first.boundary_batches)
        jax.eval_shape(functions.consolidate, self.abstract, boundary)

    def _abstract_batch(self, *leading: int) -> Any:
        seeds = (len(self.experiments),) if len(self.experiments) > 1 else ()
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((*seeds, *leading, *leaf.shape), leaf.dtype),
            self._batch,
        )

    def initial(self) -> LearnerState:
        """The state before the first step."""
        return jax.jit(self._initial, out_shardings=self._placement.state)()

    def calls(self, stage: int, start: int, stop: int) -> Iterator["_Call"]:
        """What takes the state from one step of a stage to another."""
        first, several = self.experiments[0], len(self.experiments) > 1
        if not first.device_data:
            sources = [
                data.prefetch(self._shuffled(experiment, stage, "train"), start, stop)
                for experiment in self.experiments
            ]
            for batches in zip(*sources, strict=True):
                batch = self._place(batches)
                yield _Call(self._step, (batch,), 1, batch["inputs"].size)
            return
        stages = [experiment.stream.stages[stage] for experiment in self.experiments]
        walks = [
            data.walk(source, first.batch_size, self._seed(experiment, stage, "train"))
            for experiment, source in zip(self.experiments, stages, strict=True)
        ]
        longest = max(len(source) for each in self.experiments for source in each.stream.stages)
        held = [_pad(data.held(source), longest) for source in stages]  # one shape for all stages
        arrays = self._place(held, whole=True)
        tokens = self._batch["inputs"].size * len(stages)
        for begin in range(start, stop, first.log_every):
            number = min(first.log_every, stop - begin)
            indices = np.zeros((len(walks), first.log_every, first.batch_size), np.int32)
            for seed, walk in enumerate(walks):
                indices[seed, :number] = [walk[begin + offset] for offset in range(number)]
            indices = indices if several else indices[0]
            yield _Call(self._step, ((arrays, indices),), number, tokens)

    def boundary_batches(self, stage: int) -> Any:
        """[number, batch, ...] of a stage's examples in an order of their own."""
        number = self.experiments[0].boundary_batches
        stacked = []
        for experiment in self.experiments:
            shuffled = self._shuffled(experiment, stage, "boundary")
            stacked.append(data.stack([shuffled[index] for index in range(number)]))
        return self._place(stacked, leading=1)

    def evaluate(self, state: LearnerState) -> list[list[float]]:
        """One row of the matrix: the measure of every seed on every task, [seed][task]."""
        row = []
        if self.experiments[0].device_data:
            self._tests = self._tests or self._held_tests()
            totals = jax.device_get([self._evaluate(state, test) for test in self._tests])
            ratios = [np.atleast_1d(np.divide(*total)) for total in totals]
            return np.transpose(ratios).tolist()
        for number in range(len(self.experiments[0].stream.tasks)):
            sources = [
                evaluation_batches(experiment, experiment.stream.tasks[number])
                for experiment in self.experiments
            ]
            sums = [
                self._evaluate(state, self._place(batch)) for batch in zip(*sources, strict=True)
            ]
            totals = np.sum(np.asarray(jax.device_get(sums), np.float64), axis=0)
            row.append(np.atleast_1d(totals[0] / totals[1]).tolist())
        return np.transpose(row).tolist()

    def probe(self, state: LearnerState) -> list[dict[str, list[float]]]:
        """What the probes say on each task's first test batch, {name: one number a seed}."""
        found = []
        for number in range(len(self.experiments[0].stream.tasks)):
            values = {}
            if self.experiments[0].probes:
                first = [
                    next(iter(evaluation_batches(each, each.stream.tasks[number])))
                    for each in self.experiments
                ]
                values = jax.device_get(self._probe(state.params, self._place(first)))
            found.append({name: np.atleast_1d(each).tolist() for name, each in values.items()})
        return found

    def check_finite(self, state: LearnerState, position: Position) -> None:
        """Refuses params that are not finite, so that none is ever saved."""
        if not bool(self._finite(state)):
            name = stage_name(self.experiments[0], max(0, position.stage - (position.step == 0)))
            raise Diverged(
                "The params are not finite, or the strategy's state is not a number, at task "
                f"{name}, step {position.step}: {_REMEDY}"
            )

    def count_traces(self, position: Position) -> None:
        for name in ("step", "consolidate", "evaluate"):
            position.traces[name] = max(position.traces.get(name, 0), self._traces[name])

    def _initial(self) -> LearnerState:
        states = []
        for experiment in self.experiments:
            key_params, key_run = jax.random.split(jax.random.key(experiment.seed))
            params = experiment.model.init(key_params)
            states.append(self._learner.init(key_run, params, self._batch))
        if len(states) == 1:
            return states[0]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        return stacked._replace(
            step=states[0].step, task_step=states[0].task_step, task_steps=states[0].task_steps
        )

    def _seed(self, experiment: Experiment, stage: int, purpose: str) -> int:
        entropy = (experiment.seed, stage, ("train", "boundary").index(purpose))
        return int(np.random.SeedSequence(entropy).generate_state(1)[0])

    def _shuffled(self, experiment: Experiment, stage: int, purpose: str) -> Any:
        seed = self._seed(experiment, stage, purpose)
        return data.training_batches(experiment.stream.stages[stage], experiment.batch_size, seed)

    def _held_tests(self) -> list[Any]:
        """Every task's test batches, [number, batch, ...] with one number for all tasks."""
        tasks = range(len(self.experiments[0].stream.tasks))
        every = [
            [list(evaluation_batches(each, each.stream.tasks[task])) for each in self.experiments]
            for task in tasks
        ]
        most = max(len(batches) for seeds in every for batches in seeds)
        for seeds in every:
            for batches in seeds:
                empty = {**batches[-1], "mask": np.zeros_like(batches[-1]["mask"])}
                batches.extend([empty] * (most - len(batches)))
        return [
            self._place([data.stack(batches) for batches in seeds], leading=1) for seeds in every
        ]

    def _place(self, batches: Any, leading: int = 0, *, whole: bool = False) -> Any:
        """One batch per seed -> one batch on the device; a whole one is not split over devices."""
        several = len(self.experiments) > 1
        batch = data.stack(batches) if several else batches[0]
        place = self._placement.state if whole else self._placement.batch(leading + several)
        return jax.device_put(batch, place)

    def _counted(self, name: str, function: Callable) -> Callable:
        def traced(*arguments):
            self._traces[name] += 1
            return function(*arguments)

        return traced


def _probe(probes: dict[str, Callable], params: Any, batch: Any) -> dict[str, jax.Array]:
    return {name: probe(params, batch) for name, probe in probes.items()}


def _pad(arrays: Any, length: int) -> Any:
    """The arrays with zeros behind, which no index reaches."""
    return {
        key: np.concatenate([leaf, np.zeros((length - len(leaf), *leaf.shape[1:]), leaf.dtype)])
        if len(leaf) < length
        else leaf
        for key, leaf in arrays.items()
    }


def _by_index(step: Callable) -> Callable:
    """(state, (arrays, indices [number, batch])) -> state, metrics of the last step.

    Where the task has fewer steps left than there are indices, it takes those: the remainder of a
    stage needs no program of its own.
    """

    def steps(state, data):
        arrays, indices = data
        gather = functools.partial(jnp.take, axis=0, mode="clip")

        def batch(index):
            return jax.tree.map(lambda leaf: gather(leaf, indices[index]), arrays)

        _, shapes = jax.eval_shape(step, state, jax.eval_shape(batch, 0))
        metrics = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
        number = jnp.minimum(len(indices), state.task_steps - state.task_step)
        return jax.lax.fori_loop(
            0, number, lambda index, carry: step(carry[0], batch(index)), (state, metrics)
        )

    return steps


def _over_batches(evaluate: Callable) -> Callable:
    """(state, batches [number, batch, ...]) -> sum, count over all of them."""

    def over(state, batches):
        sums, counts = jax.lax.map(lambda batch: evaluate(state, batch), batches)
        return sums.sum(), counts.sum()

    return over


class _StepLog:
    """Collects the metrics of steps on the device and fetches them in bulk, one step late."""

    def __init__(
        self,
        name: str,
        lengths: list[int],
        position: Position,
        lines: folder.MetricsFile,
        progress: RunProgress,
        every: int,
    ):
        self._name, self._lengths, self._position = name, lengths, position
        self._lines, self._progress, self._every = lines, progress, every
        self._pending: list[tuple[int, int, Any]] = []
        self._fetched_at: float | None = None  # unknown until the first fetch: it compiles

    def add(self, metrics: dict[str, jax.Array], taken: int, tokens: int) -> None:
        """Takes the metrics of the last of so many steps, each of so many tokens."""
        self._pending.append((self._position.step, taken, metrics))
        self._tokens = tokens
        if sum(taken for _, taken, _ in self._pending) > self._every:
            self._fetch(len(self._pending) - 1)

    def flush(self) -> None:
        """Fetches everything, so that the state may be saved."""
        if self._pending:
            self._fetch(len(self._pending))

    def _fetch(self, number: int) -> None:
        steps = [step for step, _, _ in self._pending[:number]]
        taken = sum(taken for _, taken, _ in self._pending[:number])
        last_of_many = any(taken > 1 for _, taken, _ in self._pending[:number])
        fetched = jax.device_get([metrics for _, _, metrics in self._pending[:number]])
        del self._pending[:number]
        now = time.monotonic()
        rate = None
        if self._fetched_at is not None:
            seconds = (now - self._fetched_at) / taken
            rate = self._tokens / seconds
            del self._position.step_seconds[: 1 - RATES_KEPT]
            self._position.step_seconds.append(seconds)
        self._fetched_at = now
        for step, metrics in zip(steps, fetched, strict=True):
            for name, values in metrics.items():
                _check_finite(name, values, f"task {self._name}, step {step}")
            if step % self._every == 0 or last_of_many:
                values = {name: np.atleast_1d(value).tolist() for name, value in metrics.items()}
                self._lines.write(kind="step", task=self._name, step=step, **values)
        done = sum(self._lengths[: self._position.stage]) + steps[-1]
        terms = {name: float(np.mean(value)) for name, value in fetched[-1].items()}
        of = f"{steps[-1]}/{self._lengths[self._position.stage]}"
        self._progress.step(self._name, done, of, terms, rate)


_REMEDY = (
    "lower the learning rate or a strategy's strength, or clip the gradient "
    "(optax.clip_by_global_norm(1.0)). The last good checkpoint stays in the run folder."
)


_FIRST_REMEDY = (
    "the untrained model is at fault, or the data: look at its initial weights, and whether every "
    "token and label lies below the model's number of outputs."
)


def _check_finite(name: str, values: Any, where: str, remedy: str = _REMEDY) -> None:
    if not np.all(np.isfinite(values)):
        raise Diverged(f"{name} is {np.asarray(values)} at {where}: {remedy}")


def _all_finite(state: LearnerState) -> jax.Array:
    """Finite params, and no NaN in the strategy's state, where an infinity may have a meaning."""
    finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(state.params)]
    floats = [
        leaf for leaf in jax.tree.leaves(state.strategy) if jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    return jnp.all(jnp.stack(finite + [~jnp.any(jnp.isnan(leaf)) for leaf in floats]))


def _check_all(experiments: list[Experiment]) -> Any:
    """The abstract batch of all the seeds' experiments, which must agree in every shape."""
    shapes = [
        (
            check(experiment),
            stage_steps(experiment),
            [(task.name, len(task.test)) for task in experiment.stream.tasks],
        )
        for experiment in experiments
    ]
    for experiment, found in zip(experiments, shapes, strict=True):
        if found != shapes[0]:
            raise InputError(
                f"Seeds {experiments[0].seed} and {experiment.seed} differ in the shape of a batch,"
                " the steps of a stage or the examples of a test, so they cannot share one "
                "program: run them one by one, each with its own --seed and --out."
            )
    return shapes[0][0]


def _build(build: Callable[[Any], Experiment], config: Any, seeds: int) -> list[Experiment]:
    if seeds < 1:
        raise InputError(f"--seeds {seeds}: at least one.")
    if seeds == 1:
        experiments = [build(config)]
    elif hasattr(config, "seed"):
        experiments = [
            build(dataclasses.replace(config, seed=config.seed + number)) for number in range(seeds)
        ]
    else:
        raise InputError(f"--seeds {seeds} needs a field `seed` in the config's Config.")
    for experiment in experiments:
        if not isinstance(experiment, Experiment):
            raise InputError(
                f"build(config) returned {type(experiment).__name__}, not a jcl.Experiment."
            )
    if len({experiment.seed for experiment in experiments}) != seeds:
        raise InputError("build(config) must hand config.seed on: Experiment(seed=config.seed).")
    return experiments
