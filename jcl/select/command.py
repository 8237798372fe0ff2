"""The command `jcl select`."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from jcl.errors import InputError

HELP = """jcl select CONFIG.py --candidate FIELD=VALUE,VALUE [--candidate ...]
                     [--budget parameters=10M latency=20ms memory=2GB] [--field value ...]

Tries every combination of the candidates' values, and says which to take within a budget, and why
not each of the others. A config's fields are sizes of the model, kinds of attention, what is
trained of it (all, LoRA, the head): whatever `build(config)` makes of them.

  jcl select configs/select.py --candidate adaptation=full,head --budget parameters=10M latency=1s

counts each candidate's parameters and state on shapes, compiles a training step for its memory,
times a prediction of one example, and trains those within the budget, one by one, on the config's
stream, each in a run folder of its own. They are judged on a part of the training examples
(--validation 0.2), which they do not learn; the test examples take no part. What is written, in
runs/CONFIG/select: select.json, select.md, pareto.png, candidates/. The same command goes on where
it stopped and runs nothing twice, also with more candidates or another budget.

`jcl select CONFIG.py --help` shows the options and the config's fields.
"""


@dataclasses.dataclass(frozen=True)
class SelectOptions:
    """What to choose among, and within what.

    Attributes:
        candidate: a field of the config and the values to try, such as size=small,base; may be
            given several times: every combination is a candidate.
        budget: what the model may take at most, such as parameters=10M latency=20ms memory=2GB:
            latency of predicting one example, memory of a training step; may be given several
            times.
        limit_steps: training steps of a stage at most, for a quicker look; by default as many as
            the config says.
        validation: the share of the training examples that candidates are judged by.
        seeds: of every candidate, in one program.
        out: the folder; by default runs/<config>/select.
        fresh: start again where the folder holds a selection already.
    """

    candidate: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    budget: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    limit_steps: int | None = None
    validation: float = 0.2
    seeds: int = 1
    out: Path | None = None
    fresh: bool = False


def main(arguments: list[str], parse: Callable[..., tuple[Path, Any, Any]]) -> None:
    """`jcl select` with these arguments.

    Args:
        arguments: behind "select".
        parse: ("select", arguments, options) -> the config's path and module, and what was given.

    Raises:
        InputError, Stopped: from `jcl.select.candidates.select`.
    """
    if arguments[:1] in (["-h"], ["--help"]):
        print(HELP)
        return
    if not arguments or arguments[0].startswith("-"):
        raise InputError(
            "name a config file first: jcl select configs/select.py --candidate size=small,base"
        )

    from jcl.select import choice
    from jcl.select.candidates import select
    from jcl.select.report import show

    path, module, parsed = parse("select", arguments, SelectOptions)
    options = dataclasses.asdict(parsed.options)
    candidates = choice.read_candidates(module.Config, options.pop("candidate"))
    options["budget"] = choice.read_budget(sum(options["budget"], ()))
    console = Console(markup=False, highlight=False)
    content, place = select(
        module.build, parsed.config, candidates, config_file=path, console=console, **options
    )
    show(content, console)
    console.print(f"{place}: select.json, select.md, pareto.png, candidates", soft_wrap=True)
