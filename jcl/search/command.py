"""The command `jcl search`."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import tyro
from rich.console import Console

from jcl import space
from jcl.errors import InputError

DESCRIPTION = """Chooses fields of a config by validation; no test set takes part.

  jcl search configs/quickstart.py --method replay --space learning_rate=1e-4..1e-2:log --trials 16

A fifth of every training part is held out, and takes the place of the tests. Every trial is a run
under runs/<config>/search/<study>; its study.md has all of them, a picture, and the command that
runs the best on the real tests. Stopped or killed, the same command goes on; given in several
terminals or on several machines with one --storage, they share the work.
"""


@dataclasses.dataclass(frozen=True)
class SearchOptions:
    """How to search.

    Attributes:
        space: a field of the config and what it may be: a range, learning_rate=1e-4..1e-2:log or
            layers=2..6 (both ends included), or values, method=naive,replay; the name alone of a
            field that the config annotates (jcl.space) or whose values its type names. May be given
            several times; without any, all annotated fields are searched.
        trials: of the whole study, rounded up to whole populations; more of them go on with it.
        population: trials trained together in one program, whose fields differ in fractional
            numbers alone; the other fields they share. 1 trains one after the other. auto is 8, on
            a CPU only for a config with device_data, whose steps are that small.
        first_tasks: choose by the first so many tasks alone, the protocol first_tasks, as one has
            to who does not know what comes. Without it by the whole stream: the protocol offline.
        pruner: what gives a trial up after a task: median, where its average so far is worse than
            the median of those before it; halving, where it is not in the better half after 1, 2,
            4, ... tasks; or none.
        study: its name, and that of its folder; by default that of the protocol.
        storage: where the trials are kept: the path of a journal, or the URL of a database, such as
            sqlite:///study.db. Several machines that give the same one share the study; by default
            journal.log in the study's folder.
        out: the folder of the studies; by default runs/<config>/search.
        save_minutes: minutes between checkpoints inside a task.
        cpu_devices: devices that a CPU passes for, over which a population is dealt out; by default
            enough to occupy every core.
    """

    space: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    trials: int = 32
    population: Literal["auto"] | int = "auto"
    first_tasks: int | None = None
    pruner: Literal["median", "halving", "none"] = "median"
    study: str | None = None
    storage: str | None = None
    out: Path | None = None
    save_minutes: float = 5.0
    cpu_devices: int | None = None


def main(
    arguments: list[str],
    parse: Callable[..., tuple[Path, Any, Any]],
    set_cpu_devices: Callable[[int | None, int, str | None, int], None],
) -> None:
    """`jcl search` with these arguments.

    Args:
        arguments: behind "search".
        parse: ("search", arguments, options) -> the config's path and module, and what was given.
        set_cpu_devices: (number asked for, replicas, mesh, processes) -> None, before JAX is used.

    Raises:
        InputError, Stopped: from `jcl.search.trials.search`.
    """
    if arguments[:1] in (["-h"], ["--help"]):
        prog = "jcl search CONFIG.py [--field value ...]"
        tyro.cli(SearchOptions, args=["--help"], prog=prog, description=DESCRIPTION)
    if not arguments or arguments[0].startswith("-"):
        raise InputError(
            "name a config file first: jcl search configs/quickstart.py --space "
            "learning_rate=1e-4..1e-2:log"
        )
    path, module, parsed = parse("search", arguments, SearchOptions)
    options = dataclasses.asdict(parsed.options)
    spaces = space.read(module.Config, options.pop("space"))

    from jcl.search.report import show
    from jcl.search.trials import POPULATION, search, suits_population

    numbers = any(each.number for each in spaces.values())
    population = on_cpu = options.pop("population")
    if population == "auto":  # before JAX is asked, which fixes its devices
        suits = numbers and suits_population(module.build(parsed.config))
        on_cpu = POPULATION if suits else 1
    set_cpu_devices(options.pop("cpu_devices"), on_cpu, None, 1)
    if population == "auto":
        population = POPULATION if numbers and jax.default_backend() != "cpu" else on_cpu
    console = Console(markup=False, highlight=False)
    found, place = search(
        module.build,
        parsed.config,
        spaces,
        config_file=path,
        population=population,
        console=console,
        **options,
    )
    show(found, console)
    console.print(f"{place}: study.json, study.md, study.png", soft_wrap=True)
