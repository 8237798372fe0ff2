"""Choosing a model: candidates against a budget, each measured on the user's own stream.

Every candidate is first counted on shapes alone, and left where that is over the budget; then its
training step is compiled for its memory, a prediction of one example and a training step are
timed; and what is still within the budget is trained, in a run folder of its own, on a part of the
training examples and judged on the rest. The test examples take no part.

select.json        what every candidate costs and reaches, and which to take
select.md          the same as tables
pareto.png         the measure against each cost
candidates/        the run folders, see `jcl.folder`
"""

import dataclasses
import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from jcl import checks, data, folder, strict
from jcl.errors import Diverged, InputError, OutOfMemory
from jcl.experiment import Experiment, check_stream, stage_steps
from jcl.grid import settings
from jcl.run import run
from jcl.search import report as study_report
from jcl.select import report as select_report
from jcl.select.choice import Budget, Candidate, named, over, recommend
from jcl.select.costs import counted, measure

SCHEMA = 1
_NUMBER = strict.NUMBER | None
SHAPE = {
    "config": {str: object}, "config_hash": str, "device": str, "limit_steps": int | None,
    "validation": strict.NUMBER, "seeds": int,
    "candidates": [
        {
            "setting": {str: object}, "config": {str: object}, "parameters": int, "state": int,
            "memory": int | None, "trained": int | None, "latency": _NUMBER, "step": _NUMBER,
            "measured": _NUMBER, "ci95": _NUMBER, "run": str | None, "failed": str | None,
        }
    ],
}  # fmt: skip


def select(
    build: Callable[[Any], Experiment],
    config: Any,
    candidates: Mapping[str, Sequence[Any]],
    *,
    config_file: Path,
    budget: Budget,
    limit_steps: int | None = None,
    validation: float = 0.2,
    seeds: int = 1,
    out: Path | None = None,
    fresh: bool = False,
    console: Console | None = None,
) -> tuple[dict[str, Any], Path]:
    """Measures the candidates and recommends one.

    Args:
        build: config -> experiment.
        config: a frozen dataclass.
        candidates: {field of the config: values}; all combinations.
        config_file: where build and config come from.
        budget: {one of `jcl.select.choice.COSTS`: the most of it, as a number, in seconds or in
            bytes}.
        limit_steps: training steps of a stage at most.
        validation: the share of the training examples that candidates are judged by.
        seeds: of every candidate.
        out: the folder of the selection; by default runs/<config>/select.
        fresh: starts again.
        console: where progress is shown.

    Returns:
        The content of select.json, and the folder.

    Raises:
        InputError: a candidate cannot be built, the folder is of another selection, or a run
            refuses; what was measured before stays.
        Stopped: as of `jcl.run.run`; the same command goes on.
    """
    console = console or Console(quiet=True)
    if limit_steps is not None:
        checks.whole("jcl select", "--limit-steps", limit_steps)
    checks.number("jcl select", "--validation", validation, "(0, 1)")
    place = Path(out) if out else Path("runs") / config_file.stem / "select"
    judged = _judged(build, validation, limit_steps, seed=getattr(config, "seed", 0))
    configs = [dataclasses.replace(config, **setting) for setting in settings(candidates)]
    asked = {
        "config": folder.as_json(dataclasses.asdict(config)),
        "config_hash": folder.config_hash(config_file),
        "device": f"{len(jax.devices())} {jax.devices()[0].device_kind}",
        "limit_steps": limit_steps,
        "validation": validation,
        "seeds": seeds,
    }
    known = {} if fresh else _known(place, asked)
    # All are built before anything is compiled or written.
    found, measures = [], []
    for own, setting in zip(configs, settings(candidates), strict=True):
        try:
            experiment = judged(own)
            old = known.get(_key(folder.as_json(dataclasses.asdict(own))))
            found.append(counted(experiment, setting) if old is None else old)
        except InputError as error:
            raise InputError(f"candidate {named(setting)}: {error}") from error
        found[-1].setting = setting
        measures.append((experiment.measure.name, experiment.measure.higher_is_better))
        if measures[-1] != measures[0]:
            raise InputError(
                f"The candidates are measured by {measures[0][0]} and by {measures[-1][0]}: choose "
                "among fields that leave the measure as it is."
            )
    measured_by, higher_is_better = measures[0]

    def written() -> dict[str, Any]:
        best, reasons = recommend(found, budget, higher_is_better=higher_is_better)
        content = {
            "schema": SCHEMA,
            **asked,
            "config_file": str(config_file),
            "measure": measured_by,
            "higher_is_better": higher_is_better,
            "budget": dict(budget),
            "candidates": [
                {
                    "name": str(each),
                    **dataclasses.asdict(each),
                    "setting": folder.as_json(each.setting),
                    "config": folder.as_json(dataclasses.asdict(own)),
                    "within": not over(each, budget),
                    "reason": reason,
                }
                for each, own, reason in zip(found, configs, reasons, strict=True)
            ],
            "recommended": None if best is None else str(found[best]),
            "command": None if best is None else command(config_file, configs[best]),
        }
        try:
            place.mkdir(parents=True, exist_ok=True)
            folder.write_json(place / "select.json", content)
        except OSError as error:
            raise InputError(
                f"{place}/select.json cannot be written ({error.strerror}): make room, or name "
                "another folder with --out."
            ) from error
        return content

    for number, (own, each) in enumerate(zip(configs, found, strict=True)):
        where = f"{each} ({number + 1} of {len(found)})"
        if over(each, budget) or each.failed or each.measured is not None:
            continue
        if each.latency is None:
            console.print(f"{where}: measuring what it takes", soft_wrap=True)
            measure(each, judged(own), budget)
            written()
        if over(each, budget) or each.failed:
            continue
        console.print(f"{where}: training", soft_wrap=True)
        each.run = each.run or f"candidates/{each}"
        try:
            report, _ = run(
                judged,
                own,
                config_file=config_file,
                seeds=seeds,
                out=place / each.run,
                fresh=fresh,
                console=console,
            )
        except (Diverged, OutOfMemory) as error:
            each.failed = str(error)
        else:
            average = report["metrics"]["average_accuracy"]
            each.measured, each.ci95 = average["mean"], average["ci95"]
        written()
    content = written()
    select_report.write(place, content)
    return content, place


def command(config_file: Path, config: Any) -> str:
    """What runs this config itself, on the whole training part, and tests it on the test part."""
    fields = study_report.flags(study_report.changed(config))
    return shlex.join(["jcl", "run", str(config_file), *fields])


def _judged(
    build: Callable[[Any], Experiment], validation: float, limit_steps: int | None, *, seed: int
) -> Callable[[Any], Experiment]:
    """build, of experiments that are judged on a part of their training examples, the same one
    whatever the seed of a replica."""

    def judged(config):
        experiment = build(config)
        check_stream(experiment)
        stream = data.held_out(experiment.stream, validation, seed=seed)
        experiment = dataclasses.replace(experiment, stream=stream)
        if limit_steps is None:
            return experiment
        steps = [min(limit_steps, steps) for steps in stage_steps(experiment)]
        return dataclasses.replace(experiment, steps=steps, epochs=None)

    return judged


def _known(place: Path, asked: Mapping[str, Any]) -> dict[str, Candidate]:
    """What an earlier call has measured, by the candidate's config.

    Raises:
        InputError: it was asked something else, or the file is damaged.
    """
    path = place / "select.json"
    if not path.exists():
        return {}
    try:
        found = strict.read_json(path)
        strict.fits(found, {"schema": int})
        if found["schema"] == SCHEMA:
            strict.fits(found, SHAPE)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is not of a selection ({error}): start again with --fresh, or name another "
            "folder with --out."
        ) from error
    if found["schema"] != SCHEMA:
        raise InputError(
            f"{path} has schema {found['schema']} and this version of jcl reads {SCHEMA}: start "
            "again with --fresh, or name another folder with --out."
        )
    old, new = (dict(_flat(each, asked)) for each in (found, asked))
    if old != new:
        changed = [
            f"{name} was {old.get(name, 'absent')!r} and is now {new.get(name, 'absent')!r}"
            for name in sorted({*old, *new})
            if old.get(name, "absent") != new.get(name, "absent")
        ]
        raise InputError(
            f"{place} holds another selection: {'; '.join(changed)}. Give the same settings to go "
            "on with it (other candidates and another budget may be given), --fresh to start "
            "again, or --out for another folder."
        )
    fields = [field.name for field in dataclasses.fields(Candidate)]
    return {
        _key(each["config"]): Candidate(**{name: each[name] for name in fields})
        for each in found["candidates"]
    }


def _flat(content: Mapping[str, Any], names: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name in names:
        inner = content[name] if name == "config" else {}
        yield from ((f"config.{field}", value) for field, value in inner.items())
        if name != "config":
            yield name, content[name]


def _key(config: Any) -> str:
    return json.dumps(config, sort_keys=True)
