"""The search over the fields of a config: every trial is a run, chosen by what those before gave.

No test set takes part. The tests of every task are examples held out of its training part, and the
rest is what a trial learns from. Trials whose fields differ in numbers alone, which are data to the
compiled step, are trained as one population, and all populations of the same other fields by the
same compiled functions.
"""

import dataclasses
import functools
import os
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jax.core import Tracer
from rich.console import Console

from jcl import checks, data, folder
from jcl.errors import Diverged, InputError, SaveError, Stopped
from jcl.experiment import Experiment, check, check_stream
from jcl.grid import Replica
from jcl.program import Program
from jcl.run import Position, run
from jcl.search import report as study_report
from jcl.search.study import PRUNERS, Group, Study, imported
from jcl.space import Space

SHARE = 0.2  # of every training part that is held out
POPULATION = 8
KEPT = 4  # programs, each compiled for a population of the same other fields


class _Hopeless(Exception):
    """No trial of a run is worth going on with."""


def search(
    build: Callable[[Any], Experiment],
    config: Any,
    spaces: Mapping[str, Space],
    *,
    config_file: Path,
    trials: int = 32,
    population: int = 1,
    first_tasks: int | None = None,
    pruner: str = "median",
    study: str | None = None,
    storage: str | None = None,
    out: Path | None = None,
    save_minutes: float = 5.0,
    console: Console | None = None,
) -> tuple[dict[str, Any], Path]:
    """Searches until the study has the trials asked for, from where it stands.

    Several processes or machines may call it alike with one storage, each training what no other
    does. Killed and called again it takes up what it left, from its last checkpoint; a finished
    trial is never trained again.

    Args:
        build: config -> experiment.
        config: a frozen dataclass: the fields that are not searched. With its `seed`, if it has
            one, the examples held out are drawn, and what is tried.
        spaces: of the fields that are; see `jcl.space.read`.
        config_file: where both come from.
        trials: of the whole study, rounded up to whole populations.
        population: trials trained together in one program, 1 for one after the other.
        first_tasks: choose on so many tasks alone (the protocol "first_tasks"); by default over the
            whole stream ("offline").
        pruner: what leaves a trial after a stage: "median" where the average so far is worse than
            the median of the trials before, "halving" where it is not among the better half of
            those that came as far after 1, 2, 4, ... stages (asynchronous successive halving), or
            "none".
        study: its name and its folder's; by default offline, or first_2_tasks.
        storage: the path of a journal or the URL of a database; by default journal.log in the
            study's folder.
        out: the folder of the config's studies; by default runs/<config>/search.
        save_minutes: minutes between checkpoints inside a stage.
        console: where the trials are told.

    Returns:
        The content of study.json, and the study's folder.

    Raises:
        InputError: what was given cannot be searched; nothing was written. Or the study was begun
            otherwise.
        Stopped: SIGTERM or SIGINT came, and the trials under way have a checkpoint.
    """
    imported()
    console = console or Console()
    checks.whole("jcl search", "--trials", trials)
    checks.whole("jcl search", "--population", population)
    checks.one_of("jcl search", "--pruner", pruner, PRUNERS)
    if first_tasks is not None:
        checks.whole("jcl search", "--first-tasks", first_tasks)
    together = [field for field, space in spaces.items() if space.number]
    if population > 1 and not together:
        raise InputError(
            f"--population {population}: a population differs in numbers alone, and "
            f"{', '.join(spaces)} decide what the program is: search one by one, --population 1."
        )
    seed = getattr(config, "seed", 0)
    validated = functools.partial(_validated, build, first_tasks, seed)
    first = validated(config)
    name = study or ("offline" if first_tasks is None else f"first_{first_tasks}_tasks")
    place = Path(out or Path("runs") / config_file.stem / "search") / name
    identity = {
        "config": folder.as_json(dataclasses.asdict(config)),
        "config_hash": folder.config_hash(config_file),
        "spaces": {field: str(space) for field, space in spaces.items()},
        "protocol": {
            "name": "offline" if first_tasks is None else "first_tasks",
            "tasks": len(first.stream.tasks),
        },
        "validation": {
            "share": SHARE,
            "seed": seed,
            "hashes": {task.name: task.hash for task in first.stream.tasks},
        },
        "measure": first.measure.name,
        "higher_is_better": first.measure.higher_is_better,
        "pruner": pruner,
        "population": population,
        "seed": seed,
    }
    if not (place / "study.json").exists():
        if population > 1:
            _check(validated, config, spaces, together, population)
        else:
            check(first)
    _make(place)
    opened = Study(
        name,
        storage or str(place / "journal.log"),
        place,
        spaces,
        together=together,
        size=population,
        higher_is_better=first.measure.higher_is_better,
        pruner=pruner,
        seed=seed,
    )
    opened.compare(identity)
    command = ["jcl", "run", str(config_file)]
    fixed = {field: each for field, each in study_report.changed(config).items()
             if field not in spaces}  # fmt: skip
    command += study_report.flags(fixed)

    def written() -> dict[str, Any]:
        with opened.locked():
            report = study_report.make(name, identity, opened.trials, spaces, command)
            study_report.write(place, report)
        return report

    report = written()
    console.print(
        f"{place}: {len(report['trials'])} of {trials} trials, "
        f"{population if population > 1 else 'one'} at a time",
        soft_wrap=True,
    )
    trainer = _Trainer(validated, config, together, opened, place, config_file, save_minutes)
    while True:
        with opened.next(trials) as group:
            if group is None:
                study_report.picture(place, report := written())
                return report, place
            failed = trainer.train(group)
            report = written()
            shutil.rmtree(place / group.label / "checkpoints", ignore_errors=True)
        for number in group.numbers:
            console.print(_told(report, number), soft_wrap=True)
        if failed is not None and report["best"] is None:
            raise failed


class _Trainer:
    """Trains groups of trials, with what was compiled for those before."""

    def __init__(
        self,
        validated: Callable[[Any], Experiment],
        config: Any,
        together: Sequence[str],
        study: Study,
        place: Path,
        config_file: Path,
        save_minutes: float,
    ):
        self._validated, self._config, self._together = validated, config, together
        self._study, self._place = study, place
        self._options = {"config_file": config_file, "save_minutes": save_minutes, "keep": 1}
        self._programs: dict[Any, Program] = {}

    def train(self, group: Group) -> InputError | None:
        """Trains a group to its end and tells what came of every trial.

        Returns:
            Why it could not be trained, if it could not.
        """
        study, several = self._study, len(group.numbers) > 1
        apart = {
            field: value
            for field, value in group.params[0].items()
            if not (several and field in self._together)
        }
        config = dataclasses.replace(self._config, **apart)
        settings = [{field: params[field] for field in self._together} for params in group.params]
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*has diverged")
                report, _ = run(
                    self._validated,
                    config,
                    out=self._place / group.label,
                    grid=settings if several else None,
                    program_of=functools.partial(self._program, tuple(apart.items())),
                    watch=functools.partial(self._watch, group),
                    console=Console(quiet=True),
                    **self._options,
                )
        except _Hopeless:
            return None
        except Diverged as error:
            for number in list(group.going):
                study.tell(group, number, "diverged", diverged=str(error).split(":")[0])
            return None
        except InputError as error:
            for number in list(group.going):
                study.tell(group, number, "failed", reason=str(error))
            return error
        except (Stopped, SaveError, imported().exceptions.OptunaError):
            raise  # no fault of the trial, which the same command goes on with
        except Exception as error:  # of the config's code
            reason = f"{type(error).__name__}: {error}"
            for number in list(group.going):
                study.tell(group, number, "failed", reason=reason)
            failed = InputError(reason)
            failed.__cause__ = error
            return failed
        values = report["metrics"]["average_accuracy"]["values"]
        diverged = report.get("diverged") or [None] * len(values)
        for number, value, gone in zip(group.numbers, values, diverged, strict=True):
            if number not in group.going:
                continue
            if gone is not None:
                study.tell(group, number, "diverged", diverged=_where(gone))
            else:
                study.tell(group, number, "finished", value)
        return None

    def _watch(self, group: Group, position: Position) -> None:
        """After every stage: which trials go on."""
        for index, (number, gone) in enumerate(zip(group.numbers, position.diverged, strict=True)):
            if number in group.going and gone is not None:
                self._study.tell(group, number, "diverged", diverged=_where(gone))
            if number in group.going and len(position.matrix) == position.stage + 1:
                for stage in range(1, position.stage + 1):
                    values = [
                        each for each in position.matrix[stage][index][:stage] if each is not None
                    ]
                    self._study.report(group, number, stage, sum(values) / len(values))
        for number in list(group.going):
            if position.stage and self._study.hopeless(group, number):
                self._study.tell(group, number, "pruned")
        if not group.going:
            raise _Hopeless

    def _program(self, key: Any, replicas: Sequence[Replica], mesh: Any, **options: Any) -> Program:
        """The program of these replicas, compiled before if one of the same other fields was."""
        if len(replicas) == 1:
            return Program(replicas, mesh, **options)
        program = self._programs.pop(key, None)
        if program is None:
            program = Program(replicas, mesh, **options)
        else:
            program.turn_to(replicas)
        self._programs[key] = program  # the last one used stands last
        while len(self._programs) > KEPT:
            del self._programs[next(iter(self._programs))]
        return program


def suits_population(experiment: Experiment) -> bool:
    """Whether a population pays on a CPU: where the config holds its data on the device, since its
    step is so small that what stands around it costs as much. Larger matmuls fill the cores by
    themselves, and several trials of them are no quicker together."""
    return experiment.device_data


def _validated(
    build: Callable[[Any], Experiment], first_tasks: int | None, seed: int, config: Any
) -> Experiment:
    """The experiment without its tests."""
    experiment = build(config)
    check_stream(experiment)
    fields = [getattr(config, field.name) for field in dataclasses.fields(config)]
    if any(isinstance(value, Tracer) for value in fields):
        return experiment  # inside a trace, which reads no data
    stream = data.held_out(experiment.stream, SHARE, seed=seed, tasks=first_tasks)
    steps = experiment.steps
    if isinstance(steps, Sequence):
        steps = list(steps)[:first_tasks]
    return dataclasses.replace(experiment, stream=stream, steps=steps)


def _check(
    validated: Callable[[Any], Experiment],
    config: Any,
    spaces: Mapping[str, Space],
    together: Sequence[str],
    population: int,
) -> None:
    """Traces the program of a population on shapes, before anything is written.

    Raises:
        InputError: it cannot be.
    """
    replicas = []
    for setting in [{field: _ends(spaces[field])[end] for field in together} for end in (0, 1)]:
        own = dataclasses.replace(config, **setting)

        def remake(values: Mapping[str, Any], own: Any = own) -> Experiment:
            return validated(dataclasses.replace(own, **values))

        replicas.append(Replica(validated(own), setting, remake))
    try:
        Program([replicas[number % 2] for number in range(population)])
    except InputError as error:
        raise InputError(f"{error} Or search one by one: --population 1.") from error


def _ends(space: Space) -> tuple[Any, Any]:
    return (space.values[0], space.values[-1]) if space.values else (space.low, space.high)


def _make(place: Path) -> None:
    try:
        place.mkdir(parents=True, exist_ok=True)
        writable = os.access(place, os.W_OK)
    except OSError as error:
        raise InputError(
            f"The folder {place} cannot be made ({error.strerror}): name another with --out."
        ) from error
    if not writable:
        raise InputError(f"The folder {place} cannot be written: name another with --out.")


def _where(gone: Mapping[str, Any]) -> str:
    return f"task {gone['task']}, step {gone['step']}"


def _told(report: Mapping[str, Any], number: int) -> str:
    """A sentence on a trial."""
    trial = report["trials"][number]
    shown = ", ".join(f"{field} {value}" for field, value in trial["params"].items())
    value = "" if trial["value"] is None else f" {report['measure']} {trial['value']:.4f}"
    best = "" if report["best"] != number else ", the best so far"
    why = f" ({trial['reason']})" if "reason" in trial else ""
    return f"trial {number}, {shown}: {trial['state']}{value}{best}{why}"
