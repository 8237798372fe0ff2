"""The only loop: from an experiment to its run folder.

for each stage: for each batch `step`; `consolidate`; evaluate all tasks -> one row of the matrix;
save. Killed anywhere and started again it ends with the same bits.
"""

import contextlib
import dataclasses
import functools
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from jcl import checkpoint, checks, folder, forgotten, hosts, privacy, report, strict, tracking
from jcl.allocator import keep_freed_memory
from jcl.errors import FIRST_REMEDY, REMEDY, InputError, OutOfMemory, SaveError, Stopped
from jcl.experiment import Experiment, known, stage_name, stage_steps
from jcl.grid import Grid, Replica, settings
from jcl.learner import LearnerState, start_task
from jcl.program import Program
from jcl.progress import RunProgress
from jcl.sharding import Replicas
from jcl.stopping import Stopping
from jcl.survivors import Survivors

RATES_KEPT = 1000


@dataclasses.dataclass
class Position:
    """Where a run stands; saved beside the state in every checkpoint.

    Attributes:
        stage: the stage under way, or the number of stages when all are done.
        step: training steps taken in it.
        matrix: [row][replica][task] so far; None where the replica had diverged.
        offset: the length of metrics.jsonl.
        wall_seconds: of all processes that worked on the run.
        step_seconds: per step, one number for each of the last logging intervals.
        traces: of each compiled function, the largest of any process.
        diverged: for each replica None, or the task and step where it did.
    """

    stage: int = 0
    step: int = 0
    matrix: list[list[list[float | None]]] = dataclasses.field(default_factory=list)
    offset: int = 0
    wall_seconds: float = 0.0
    step_seconds: list[float] = dataclasses.field(default_factory=list)
    traces: dict[str, int] = dataclasses.field(default_factory=dict)
    diverged: list[dict[str, Any] | None] = dataclasses.field(default_factory=list)


def run(
    build: Callable[[Any], Experiment],
    config: Any,
    *,
    config_file: Path,
    seeds: int = 1,
    out: Path | None = None,
    fresh: bool = False,
    save_minutes: float = 5.0,
    keep: int = 2,
    mesh: str | None = None,
    replicas: Replicas = "auto",
    grid: Grid | None = None,
    track: Sequence[str] = (),
    console: Console | None = None,
    watch: Callable[[Position], None] | None = None,
    program_of: Callable[..., Program] = Program,
) -> tuple[dict[str, Any], Path]:
    """Runs an experiment to its end, from its last checkpoint if it has one.

    Where several processes have joined (`jcl.hosts`), each calls it alike; process 0 alone writes
    to the run folder, which all must see, and prints.

    Args:
        build: config -> experiment.
        config: a frozen dataclass; with several seeds it needs a field `seed`.
        config_file: where both come from.
        seeds: replicas trained in one program, with the seeds config.seed, config.seed + 1, ...
        out: the run folder; by default runs/<config>/<name of the experiment>.
        fresh: starts again where the folder holds a run already.
        save_minutes: minutes between checkpoints inside a stage.
        keep: complete checkpoints left in the run folder.
        mesh: how the devices are arranged, such as "data=4,fsdp=2"; see `jcl.sharding`.
        replicas: how several replicas share the devices; see `jcl.program.Program`.
        grid: {field of the config: values}; every combination is trained with every seed, in the
            same program; or the settings themselves, one {field: value} for each.
        track: trackers that get the lines of metrics.jsonl as well; see `jcl.tracking`.
        console: where progress is shown, by process 0.
        watch: is called with the position before every stage; what it raises ends the run, which
            has a checkpoint of that moment.
        program_of: makes the program of the replicas, (replicas, mesh, sharing=...), such as one
            that was compiled before.

    Returns:
        The report, as in report.json, and the run folder.

    Raises:
        InputError: what was given cannot be run; nothing was written.
        Diverged: the loss is no longer finite, in a grid that of all replicas; the last good
            checkpoint stays.
        SaveError: a checkpoint could not be written; those before it stay.
        OutOfMemory: a device has too little memory; the last checkpoint stays.
        Stopped: SIGTERM or SIGINT came, and there is a checkpoint of the step after it.
    """
    if console is None or not hosts.first():
        console = Console(quiet=not hosts.first())
    checks.whole("jcl run", "--keep", keep)
    checks.number("jcl run", "--save-minutes", save_minutes, "[0, inf]")
    tracking.check(track)
    with hosts.together():
        program = program_of(_build(build, config, seeds, grid), mesh, sharing=replicas)
        first = program.experiments[0]
        private = [privacy.accounted(experiment) for experiment in program.experiments]
        path = Path(out) if out else Path("runs") / config_file.stem / first.name
        description = folder.describe(
            name=first.name,
            config=dataclasses.asdict(dataclasses.replace(config, **settings(grid)[0])),
            config_file=config_file,
            hashes={task.name: task.hash for task in first.stream.tasks},
            seeds=[experiment.seed for experiment in program.experiments],
            known=known(first),
            mesh=program.mesh,
            replicas=None if replicas == "auto" else replicas,
            grid=grid,
            start=[each.model.start and each.model.start() for each in program.experiments],
        )
    with hosts.together():
        alike = {**folder.identity(description), "folder": str(path.absolute())}
        folder.check_alike(hosts.told(alike), alike)
    # From here on a signal waits for a checkpoint.
    with Stopping() as stopping, contextlib.ExitStack() as stack:
        hosts.by_first(lambda: stack.enter_context(folder.opened(path, description, fresh=fresh)))
        with hosts.together():
            folder.check_shared(path)
        if said := hosts.by_first(lambda: forgotten.told(path)):
            console.print(said, soft_wrap=True)
        finished = hosts.by_first(lambda: _finished(path))
        if finished:
            console.print(f"{path} is finished already; --fresh starts it again.")
            return finished, path
        try:
            trained = _train(
                program,
                path,
                description,
                private,
                save_minutes,
                keep,
                track,
                console,
                stopping,
                watch,
            )
            return trained, path
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise OutOfMemory(program.out_of_memory(error)) from error


def _finished(path: Path) -> dict[str, Any] | None:
    """The report of a run that is complete; a damaged one is made again."""
    with contextlib.suppress(InputError):
        found = report.read(path)
        return found if report.complete(path) else None
    return None


def _train(
    program: Program,
    path: Path,
    description: dict[str, Any],
    private: list[dict[str, Any] | None],
    save_minutes: float,
    keep: int,
    track: Sequence[str],
    console: Console,
    stopping: Stopping,
    watch: Callable[[Position], None] | None,
) -> dict[str, Any]:
    experiment = program.experiments[0]
    lengths = stage_steps(experiment)
    identity = folder.fingerprint(description)
    restored = checkpoint.restore(path / "checkpoints", program.abstract)
    if restored:
        state, position = restored[0], _position(path, restored[1], restored[0], program, identity)
    else:
        state, position = program.initial(), Position()
    position.diverged = position.diverged or [None] * len(program.replicas)

    def step_of(line: Mapping[str, Any]) -> int:
        return sum(lengths[: position.stage]) + line.get("step", position.step)

    lines = folder.NoFile()
    if hosts.first():
        lines = folder.MetricsFile(path, position.offset)
        lines = tracking.Tracked(lines, track, path, description, step_of) if track else lines
    saver = checkpoint.Saver(path / "checkpoints", keep=keep)
    started = time.monotonic() - position.wall_seconds
    saved = time.monotonic()

    def left(number: int, sentence: str) -> None:
        replica, where = program.replicas[number], position.diverged[number] or {}
        whose = {"setting": dict(replica.setting), "seed": replica.experiment.seed}
        lines.write(kind="diverged", replica=number, **whose, **where)
        if hosts.first():
            warnings.warn(sentence, stacklevel=2)

    survivors = Survivors(program.replicas, position.diverged, left)

    def due(taken: int) -> bool:
        """Whether it is time to save, by the clock of any process or a signal to it.

        Several processes agree on it, waiting for each other, every log_every steps.

        Args:
            taken: steps of the last call.
        """
        late = stopping.signal is not None or time.monotonic() - saved > 60 * save_minutes
        every = experiment.log_every
        if hosts.several() and position.step // every == (position.step - taken) // every:
            return False
        return hosts.anywhere(late)

    def check_state(state: LearnerState) -> None:
        """Lets no state be saved that is not finite, but for that of replicas that are left.

        Inside a stage one more may be: the loss of its next step tells, and where a replica is left
        does not depend on when the run is saved.
        """
        between = position.step == 0
        stage = max(0, position.stage - between)
        step = lengths[stage] if between and position.stage else position.step
        lost = survivors.left(program.finite(state))
        if lost and (between or survivors.all_lost(lost)):
            what = "The params are not finite, or the strategy's state is not a number,"
            survivors.leave(lost, what, stage_name(experiment, stage), step)

    def save(state: LearnerState) -> None:
        nonlocal saved
        check_state(state)
        position.offset = lines.offset()
        position.wall_seconds = time.monotonic() - started
        for name in ("step", "consolidate", "evaluate"):
            known = position.traces.get(name, 0)
            position.traces[name] = max(known, program.traces[name])
        saver.save(state, {**dataclasses.asdict(position), "run": identity})
        saved = time.monotonic()
        if hosts.anywhere(stopping.signal is not None) and position.stage < len(lengths):
            saver.wait()
            why = stopping.signal or "a signal to another process"
            where = f"stage {position.stage}, step {position.step}"
            raise Stopped(f"stopped by {why} at {where}; the same command goes on")

    def evaluate(state: LearnerState, after: str) -> None:
        row = program.evaluate(state)
        begun = bool(position.matrix)
        task = after if begun else stage_name(experiment, 0)
        for each, values in zip(experiment.stream.tasks, np.transpose(row), strict=True):
            where = f"evaluating {each.name} after {after}"
            remedy = REMEDY if begun else FIRST_REMEDY
            survivors.check(experiment.measure.name, values, task, position.step, where, remedy)
        columns = [survivors.numbers(values) for values in np.transpose(row)]
        for each, values in zip(experiment.stream.tasks, columns, strict=True):
            measured = {experiment.measure.name: values}
            lines.write(kind="evaluation", after=after, task=each.name, **measured)
        for each, probed in zip(experiment.stream.tasks, program.probe(state), strict=True):
            if probed:
                values = {name: survivors.numbers(found) for name, found in probed.items()}
                lines.write(kind="probe", after=after, task=each.name, **values)
        position.matrix.append([list(values) for values in zip(*columns, strict=True)])
        results = zip(experiment.stream.tasks, np.transpose(row), strict=True)
        progress.say(
            f"{experiment.measure.name} after {after}: "
            + "  ".join(f"{each.name} {survivors.mean(values):.3f}" for each, values in results)
        )

    with contextlib.closing(lines), saver, RunProgress(sum(lengths), console) as progress:
        if restored:
            at = f"stage {position.stage}, step {position.step}"
            progress.say(f"{path}: going on from {at}")
        else:
            progress.say(f"{path}: {sum(lengths)} steps, seeds {description['seeds']}")
            for number, replica in enumerate(program.replicas):
                if replica.setting:
                    progress.say(f"replica {number}: {replica}")
            if program.whole:
                shown = ", ".join(program.whole[:3]) + (", ..." if program.whole[3:] else "")
                progress.say(
                    f"{len(program.whole)} arrays that the mesh does not divide are whole on every "
                    f"device: {shown}"
                )
            if "length" in (texts := description["known"]):
                progress.say(
                    f"texts of {texts['length']} tokens, the longest had {texts['longest']}; "
                    f"{texts['truncated']} were cut"
                )
            evaluate(state, "nothing")
            save(state)
        keep_freed_memory()
        for stage in range(position.stage, len(lengths)):
            if watch is not None:
                watch(position)
            name = stage_name(experiment, stage)
            if position.step == 0:
                state = start_task(state, lengths[stage])
            log = _StepLog(
                name, lengths, position, lines, progress, experiment.log_every, survivors
            )
            for call in program.calls(stage, position.step, lengths[stage]):
                state, metrics = call.function(state, *call.arguments)
                position.step += call.steps
                log.add(metrics, call.steps, call.tokens)
                if position.step < lengths[stage] and due(call.steps):
                    log.flush()
                    save(state)
            log.flush()
            state = program.consolidate(state, program.boundary_batches(stage))
            if experiment.evaluate == "boundaries" or stage == len(lengths) - 1:
                evaluate(state, name)
            position.stage, position.step = stage + 1, 0
            save(state)
        saver.wait()
        made = report.make(
            name=experiment.name,
            tasks=[task.name for task in experiment.stream.tasks],
            measure=experiment.measure.name,
            higher_is_better=experiment.measure.higher_is_better,
            seeds=description["seeds"],
            matrix=[list(rows) for rows in zip(*position.matrix, strict=True)],
            wall_seconds=position.wall_seconds,
            steps=sum(lengths),
            step_seconds_median=statistics.median(position.step_seconds or [0.0]) or None,
            traces=position.traces,
            config=description["config"],
            versions=description["versions"],
            settings=[replica.setting for replica in program.replicas],
            diverged=position.diverged,
            privacy=private,
        )
        finished = hosts.by_first(lambda: _write(path, made))
    return finished


def _write(path: Path, finished: dict[str, Any]) -> dict[str, Any]:
    try:
        report.write(path, finished)
    except OSError as error:
        raise SaveError(
            f"The report in {path} cannot be written ({error.strerror}); the checkpoints stay. "
            "Make room, then start the same command again."
        ) from error
    return finished


def _position(
    path: Path, found: dict[str, Any], state: LearnerState, program: Program, identity: str
) -> Position:
    """The position that a checkpoint holds, which may come from elsewhere."""
    experiment, replicas = program.experiments[0], len(program.replicas)
    lengths, tasks = stage_steps(experiment), len(experiment.stream.tasks)
    number = strict.NUMBER
    shape = {
        "stage": int, "step": int, "matrix": [[[number | None]]], "offset": int,
        "wall_seconds": number, "step_seconds": [number], "traces": {str: int},
    }  # fmt: skip
    if found.get("run", identity) != identity:  # older versions did not write it
        raise InputError(
            f"{path}: the newest checkpoint is of another run, of another config, code, data or "
            "seeds: put this run's own checkpoints back, or begin again with --fresh."
        )
    try:
        strict.fits(found, shape)
        position = Position(**{name: value for name, value in found.items() if name != "run"})
        stage, step = position.stage, position.step
        ended = stage == len(lengths) and step == 0
        if min(stage, step, position.offset) < 0 or not (ended or step <= lengths[stage]):
            raise ValueError(f"the run has no step {step} of a stage {stage}")
        counted = tuple(map(int, jax.device_get((state.step, state.task_step))))
        if counted != (sum(lengths[:stage]) + step, step):
            raise ValueError(
                f"its state has taken {counted[0]} steps, {counted[1]} of the task, and it says "
                f"stage {stage}, step {step}"
            )
        rows = stage + 1 if experiment.evaluate == "boundaries" else 1 + ended
        diverged, matrix = position.diverged or [None] * replicas, position.matrix
        if (
            len(matrix) != rows
            or any([len(each) for each in row] != [tasks] * replicas for row in matrix)
            or len(diverged) != replicas
        ):
            raise ValueError("its matrix is not of the rows, replicas and tasks of this run")
        for number, entry in enumerate(diverged):
            if entry is not None:
                strict.fits(entry, {"task": str, "step": int}, f"its diverged[{number}]")
            elif any(None in row[number] for row in matrix):
                raise ValueError(f"its matrix lacks numbers of replica {number}")
        if any(diverged) and (all(diverged) or not program.replicas[0].setting):
            raise ValueError("its replicas are no grid of which some have diverged")
    except (TypeError, ValueError, LookupError) as error:
        raise InputError(
            f"{path}: the newest checkpoint's progress.json is not this run's ({error}): get the "
            "folder again from where it comes from, or begin again with --fresh."
        ) from error
    return position


class _StepLog:
    """Collects the metrics of steps on the device and fetches them in bulk, one step late."""

    def __init__(
        self,
        name: str,
        lengths: list[int],
        position: Position,
        lines: folder.MetricsFile | folder.NoFile | tracking.Tracked,
        progress: RunProgress,
        every: int,
        survivors: Survivors,
    ):
        self._name, self._lengths, self._position = name, lengths, position
        self._lines, self._progress, self._every = lines, progress, every
        self._survivors = survivors
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
            left_out = metrics.get("skipping", 0)
            for name, values in metrics.items():
                self._survivors.check(name, np.where(left_out, 0, values), self._name, step)
            if step % self._every == 0 or last_of_many:
                values = {name: self._survivors.numbers(each) for name, each in metrics.items()}
                self._lines.write(kind="step", task=self._name, step=step, **values)
        done = sum(self._lengths[: self._position.stage]) + steps[-1]
        terms = {name: self._survivors.mean(value) for name, value in fetched[-1].items()}
        of = f"{steps[-1]}/{self._lengths[self._position.stage]}"
        self._progress.step(self._name, done, of, terms, rate)


def _build(
    build: Callable[[Any], Experiment], config: Any, seeds: int, grid: Grid | None = None
) -> list[Replica]:
    """Every setting of the grid with every seed."""
    if seeds < 1:
        raise InputError(f"--seeds {seeds}: at least one.")
    if seeds > 1 and not hasattr(config, "seed"):
        raise InputError(f"--seeds {seeds} needs a field `seed` in the config's Config.")
    replicas = []
    for setting in settings(grid):
        for number in range(seeds):
            seed = {"seed": config.seed + number} if seeds > 1 else {}
            own = dataclasses.replace(config, **setting, **seed)
            experiment = build(own)
            if not isinstance(experiment, Experiment):
                raise InputError(
                    f"build(config) returned {type(experiment).__name__}, not a jcl.Experiment."
                )
            remake = functools.partial(_remake, build, own)
            replicas.append(Replica(experiment, setting, remake))
    if len({replica.experiment.seed for replica in replicas}) != seeds:
        raise InputError("build(config) must hand config.seed on: Experiment(seed=config.seed).")
    return replicas


def _remake(build: Callable[[Any], Experiment], config: Any, values: Any) -> Experiment:
    return build(dataclasses.replace(config, **values))
