"""The command line; its commands are in USAGE."""

import ast
import dataclasses
import importlib.util
import inspect
import math
import os
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import jax
import tyro
from rich.console import Console
from rich.table import Table

from jcl import checks, grid, hosts, sharding, stopping
from jcl.allocator import few_arenas
from jcl.errors import InputError, Stopped

USAGE = """jcl: continual and online learning for language models

  jcl run CONFIG.py [--field value ...] [--seeds N] [--out DIR] [--fresh]   train, or go on
                    [--mesh data=4,fsdp=2] [--replicas auto|vmap|map|pmap]
                    [--grid FIELD=VALUE,VALUE ...]   all combinations, in one program
                    [--track tensorboard|wandb|mlflow]   metrics for a tracker as well
                    [--coordinator HOST:PORT --processes N --process K]   on every host
  jcl online CONFIG.py --input - [--delay N] [--follow] [...]       predict each line, then learn
  jcl search CONFIG.py [--space FIELD=LOW..HIGH ...] [--trials N]   choose a config's fields
                    [--first-tasks K] [--population auto|N] [--storage journal|URL] [...]
  jcl select CONFIG.py --candidate FIELD=VALUE,VALUE ... [--budget latency=20ms memory=2GB ...]
                    [--field value ...]   which to take, by measuring; jcl select --help
  jcl plan CONFIG.py --mesh data=64,fsdp=4 [--field value ...]      what a step would take there
  jcl generate RUN --prompt TEXT [--prompt TEXT ...] [--steps N] [...]      what a run would write
  jcl report RUN [RUN ...] [--html FILE.html]               runs side by side, or as a page
  jcl memory RUN FILE.npz [--seed N] [--part STATE/PATH]   a run's memory, for another run
  jcl forget RUN --where text=TEXT [--where label=NAME ...]  takes examples out of what it keeps
  jcl export RUN FOLDER [--lora merged|adapter] [--seed N]     a run's model, for Hugging Face
  jcl list [FOLDER]                                                         what there is to use

jcl COMMAND --help says what a command does, with an example; jcl run CONFIG.py --help shows a
config's fields as well.
"""

RUN = """Trains the model of a config on its tasks, one after the other, and evaluates all of them.

  jcl run configs/quickstart.py --method replay

Everything is under runs/<config>/<method>: what was run, metrics.jsonl, report.json, a picture of
the matrix, checkpoints. Stopped or killed, the same command goes on, to the same bits. The fields
of a config are options as well: `jcl run configs/quickstart.py --help` shows them.
"""


PLAN = """Says what a training step would take on other devices: memory, work, communication.

  jcl plan configs/plan/gpt2_xl.py --mesh data=64,fsdp=4 --method full_ewc

A step is compiled for a CPU that passes for as many devices; nothing is trained or written. The
fields of a config are options as well: `jcl plan configs/plan/gpt2_xl.py --help` shows them.
"""


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """How to run.

    Attributes:
        seeds: replicas trained in one program.
        grid: a field of the config, a number, and the values to train it with, such as
            learning_rate=1e-3,1e-2; may be given several times: all combinations, with every seed,
            are replicas of one program.
        replicas: how they share the devices: pmap gives every device its own, one or several; vmap
            computes all of them together and map one after the other, each split over all devices;
            auto is pmap where every device gets as many.
        out: the run folder; by default runs/<config>/<method>.
        fresh: start again where the folder holds a run already.
        save_minutes: minutes between checkpoints inside a task.
        keep: complete checkpoints left in the run folder.
        cpu_devices: devices that a CPU passes for, over which seeds, or else batches, are dealt
            out; by default as many as the mesh has, else enough for several replicas to occupy
            every core, 1 for one replica or where they are not dealt out.
        cpu_threads: that XLA computes with on a CPU, by default one for every core. A small model's
            step can be quicker with 1; other numbers may give other bits.
        mesh: how the devices are arranged: data=8 splits batches and memories, data=4,fsdp=2 the
            params and all that is as large as well, tensor=2 the matmuls; by default all on data.
        deterministic: ask XLA for kernels that give the same bits at every run on a GPU; on a CPU
            they do anyway.
        coordinator: HOST:PORT of process 0, with a free port, where no launcher (Slurm, Open MPI, a
            TPU pod, an indexed Job of Kubernetes) tells the processes of a run of each other.
        processes: their number; 1 alone keeps this process out of a launcher's.
        process: which of them this is, from 0.
        track: a tracker that gets the lines of metrics.jsonl as well, in the run folder:
            tensorboard, wandb (offline unless WANDB_MODE says otherwise) or mlflow; may be given
            several times. One that fails costs a warning and not the run. Needs jcl[tracking].
    """

    seeds: int = 1
    grid: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    replicas: sharding.Replicas = "auto"
    out: Path | None = None
    fresh: bool = False
    save_minutes: float = 5.0
    keep: int = 2
    cpu_devices: int | None = None
    cpu_threads: int | None = None
    mesh: str | None = None
    deterministic: bool = False
    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None
    track: tyro.conf.UseAppendAction[tuple[Literal["tensorboard", "wandb", "mlflow"], ...]] = ()


@dataclasses.dataclass(frozen=True)
class PlanOptions:
    """Where to.

    Attributes:
        mesh: how the devices would be arranged, such as data=64,fsdp=4; at most 2,048 of them.
    """

    mesh: str


@dataclasses.dataclass(frozen=True)
class GenerateOptions:
    """What the model of a run, at its newest checkpoint, would write.

      jcl generate runs/quickstart/replay --prompt "The statement" --steps 40

    Attributes:
        prompt: a text to go on with; may be given several times.
        steps: tokens to generate, fewer where the text ends before.
        temperature: divides the logits; 0 takes the likeliest token every time.
        top_k: draw among so many of the likeliest tokens.
        top_p: draw among the likeliest tokens whose chances reach this together.
        seed: of the draws.
        config: the run's config file, if it was moved or does not lie in ./configs.
    """

    prompt: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    steps: int = 100
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    config: Path | None = None


def main(arguments: list[str] | None = None) -> int:
    """The entry point.

    Returns:
        The exit status: 0 done, 1 refused or failed, 2 bad usage, 75 (EX_TEMPFAIL) stopped by
        SIGTERM or SIGINT behind one more checkpoint. Before there is anything to save a signal ends
        `jcl run` at once, by itself: 130 or 143 to a shell.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if arguments else 2
    if arguments[0] not in COMMANDS:
        print(f"jcl: unknown command {arguments[0]!r}\n\n{USAGE}", file=sys.stderr)
        return 2
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    try:
        COMMANDS[arguments[0]](arguments[1:])
    except (InputError, OSError) as error:
        print(f"jcl {arguments[0]}: {error}", file=sys.stderr)
        return _failed(1)
    except Stopped as stopped:
        print(f"jcl {arguments[0]}: {stopped}", file=sys.stderr)
        return _failed(os.EX_TEMPFAIL)
    except jax.errors.JaxRuntimeError as error:
        if not hosts.several():
            raise
        print(
            f"jcl {arguments[0]}: another process of this run has ended, it seems "
            f"({_first_line(str(error))}). The same command, given on all hosts again, goes on "
            "from the last checkpoint.",
            file=sys.stderr,
        )
        return _failed(1)
    return 0


def _failed(status: int) -> int:
    if hosts.several():
        hosts.leave(status)
    return status


def load_config(path: Path) -> ModuleType:
    """Executes a config file; it is code, so run only those you trust.

    Raises:
        InputError: it is missing, or has no Config or build.
    """
    if not path.is_file():
        raise InputError(f"There is no config file {path}; `jcl list` shows those at hand.")
    specification = importlib.util.spec_from_file_location(f"jcl_config_{path.stem}", path)
    if specification is None or specification.loader is None:
        raise InputError(f"{path} is no Python file: a config's name ends in .py.")
    module = importlib.util.module_from_spec(specification)
    sys.modules[module.__name__] = module  # dataclasses look their module up
    try:
        specification.loader.exec_module(module)
    except SyntaxError as error:
        raise InputError(f"{path} is not valid Python: {error}.") from error
    for name, remedy in (
        ("Config", "a frozen dataclass of plain fields named Config"),
        ("build", "a function build(config) that returns a jcl.Experiment"),
    ):
        if not callable(getattr(module, name, None)):
            raise InputError(f"{path} has no {name}: give it {remedy}.")
    settings = getattr(module.Config, "__dataclass_params__", None)
    if settings is None or not settings.frozen:
        raise InputError(f"{path}: decorate Config with @dataclass(frozen=True).")
    taken = {field.name for field in dataclasses.fields(RunOptions)}
    for field in dataclasses.fields(module.Config):
        if field.name in taken:
            raise InputError(
                f"{path}: Config has a field {field.name!r}, which is an option of `jcl run` "
                f"({', '.join(sorted(taken))}): give it another name."
            )
    return module


@stopping.at_once()
def _run(arguments: list[str]) -> None:
    _help(arguments, "run", RunOptions, RUN)
    if not arguments or arguments[0].startswith("-"):
        raise InputError("name a config file first: jcl run configs/quickstart.py --method naive")
    few_arenas()
    path, module, parsed = _parsed("run", arguments, RunOptions)
    options = dataclasses.asdict(parsed.options)
    options["grid"] = grid.read(module.Config, parsed.options.grid)
    _set_cpu_threads(options.pop("cpu_threads"))
    if options.pop("deterministic"):
        _set_deterministic()
    processes = hosts.join(*(options.pop(name) for name in ("coordinator", "processes", "process")))
    number = options["seeds"] * len(grid.settings(options["grid"]))
    dealt = number if options["replicas"] in ("auto", "pmap") else 1
    _set_cpu_devices(options.pop("cpu_devices"), dealt, options["mesh"], processes)

    from jcl import report
    from jcl.run import run

    console = Console(markup=False, highlight=False, quiet=not hosts.first())
    finished, place = run(module.build, parsed.config, config_file=path, console=console, **options)
    report.show([finished], console)
    names = ", ".join(sorted(file.name for file in place.iterdir() if file.name != "lock"))
    console.print(f"{place}: {names}", soft_wrap=True)


@stopping.at_once()
def _online(arguments: list[str]) -> None:
    few_arenas()

    from jcl.online import command

    command.main(arguments, _parsed)


def _help(arguments: list[str], command: str, options: Any, description: str) -> None:
    """Shows what a command does and its options, and ends, where no config is named but help."""
    if arguments[:1] in (["-h"], ["--help"]):
        prog = f"jcl {command} CONFIG.py [--field value ...]"
        tyro.cli(options, args=["--help"], prog=prog, description=description)


def _parsed(command: str, arguments: list[str], options: Any) -> tuple[Path, ModuleType, Any]:
    """The config's file and module, and its Config and the command's options as they were given."""
    path, rest = Path(arguments[0]), arguments[1:]
    module = load_config(path)
    fields = {field.name for field in dataclasses.fields(module.Config)}
    if taken := sorted(fields & {field.name for field in dataclasses.fields(options)}):
        raise InputError(
            f"{path}: Config has a field {taken[0]!r}, which is an option of `jcl {command}`: give "
            "it another name."
        )
    flat: Any = tyro.conf.arg(name="")
    combined = dataclasses.make_dataclass(
        "Command",
        [("config", Annotated[module.Config, flat]), ("options", Annotated[options, flat])],
    )
    description = (module.__doc__ or "").strip()
    given = tyro.cli(combined, args=rest, prog=f"jcl {command} {path}", description=description)
    return path, module, given


@stopping.at_once()
def _search(arguments: list[str]) -> None:
    few_arenas()

    from jcl.search import command

    command.main(arguments, _parsed, _set_cpu_devices)


def _plan(arguments: list[str]) -> None:
    _help(arguments, "plan", PlanOptions, PLAN)
    if not arguments or arguments[0].startswith("-"):
        raise InputError(
            "name a config file first: jcl plan configs/plan/gpt2_xl.py --mesh data=64,fsdp=4"
        )
    path, module, parsed = _parsed("plan", arguments, PlanOptions)

    from jcl import plan

    plan.pretend(parsed.options.mesh)
    found = plan.plan(module.build, parsed.config, parsed.options.mesh)
    plan.show(found, f"{path}", _console())


@stopping.at_once()
def _select(arguments: list[str]) -> None:
    few_arenas()

    from jcl.select import command

    command.main(arguments, _parsed)


def _generate(arguments: list[str]) -> None:
    asked = arguments[:1] in (["-h"], ["--help"])
    if not asked and (not arguments or arguments[0].startswith("-")):
        raise InputError('name a run folder first: jcl generate runs/quickstart/naive --prompt "A"')
    options = tyro.cli(
        GenerateOptions,
        args=arguments if asked else arguments[1:],
        prog="jcl generate RUN",
    )
    if not options.prompt:
        raise InputError('give a text to go on with: --prompt "A"')

    from jcl.answer import answer, reopen

    choices = dataclasses.asdict(options)
    prompts, config = choices.pop("prompt"), choices.pop("config")
    reopened = reopen(Path(arguments[0]), load_config, config)
    texts = answer(reopened, prompts, **choices)
    print(f"{arguments[0]} {reopened.where}", file=sys.stderr)
    print("\n\n".join(texts))


def _set_cpu_devices(asked: int | None, seeds: int, mesh: str | None, processes: int) -> None:
    """Small matmuls do not fill several cores, but several seeds do, each on a device of its own;
    so do the settings of a grid, which are counted among the seeds.

    What XLA_FLAGS or JAX's own setting says of the number of devices stays. Each process has its
    part of a mesh.
    """
    told = "device_count" in os.environ.get("XLA_FLAGS", "") or "JAX_NUM_CPU_DEVICES" in os.environ
    if asked is None:
        number = enough_devices(seeds, len(os.sched_getaffinity(0)))
        if mesh is not None:
            number = max(1, math.prod(sharding.read_mesh(mesh).values()) // processes)
        if told or number == 1:
            return
    else:
        number = checks.whole("jcl run", "--cpu-devices", asked)
        if told:
            raise InputError(
                f"--cpu-devices {asked}: XLA_FLAGS or JAX_NUM_CPU_DEVICES gives the number of "
                "devices as well; leave one of them out."
            )
    try:
        jax.config.update("jax_num_cpu_devices", number)
    except RuntimeError as error:  # JAX was used before, as by a config at its top
        if asked is not None:
            raise InputError(
                f"--cpu-devices {asked}: JAX is in use already, which fixes its devices; let the "
                "config use JAX in build(config) only."
            ) from error


def _set_cpu_threads(asked: int | None) -> None:
    """XLA reads the environment's NPROC when JAX is first used."""
    if asked is not None:
        number = checks.whole("jcl run", "--cpu-threads", asked)
        _check_not_in_use("--cpu-threads")
        os.environ["NPROC"] = str(number)


def _check_not_in_use(option: str) -> None:
    devices = jax.config.values["jax_num_cpu_devices"]
    try:
        jax.config.update("jax_num_cpu_devices", devices + 2)  # which JAX refuses from then on
        jax.config.update("jax_num_cpu_devices", devices)
    except RuntimeError as error:
        raise InputError(
            f"{option}: JAX is in use already; let the config use JAX in build(config) only."
        ) from error


def _set_deterministic() -> None:
    """The flag is read when JAX is first used."""
    _check_not_in_use("--deterministic")
    flags = os.environ.get("XLA_FLAGS", "").split()
    os.environ["XLA_FLAGS"] = " ".join([*flags, "--xla_gpu_deterministic_ops=true"])


def enough_devices(seeds: int, cores: int) -> int:
    """The smallest divisor of the seeds that is no smaller than the cores, else the seeds.

    >>> [enough_devices(seeds, cores=2) for seeds in (1, 2, 3, 10)]
    [1, 2, 3, 2]
    """
    return min(
        n for n in range(1, max(1, seeds) + 1) if seeds % n == 0 and (n >= cores or n >= seeds)
    )


@dataclasses.dataclass(frozen=True)
class ReportOptions:
    """Finished runs side by side: their matrices and metrics, as tables here or as a page.

      jcl report runs/quickstart/naive runs/quickstart/replay --html methods.html

    Attributes:
        runs: the run folders; in the page the others are compared with the first.
        html: write one self-contained page to this file: matrices, every task over time, forgetting
            and transfer with intervals, cost, differences over common seeds, configs; of runs of
            `jcl run` alone.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    html: Path | None = None


def _report(arguments: list[str]) -> None:
    from jcl import report

    if not arguments:
        raise InputError("name the folders of finished runs: jcl report runs/quickstart/naive")
    options = tyro.cli(ReportOptions, args=arguments, prog="jcl report")
    from jcl.online import report as online

    learned = {place: found for place in options.runs if (found := online.read(place))}
    if options.html is None:
        for found in learned.values():
            online.show(found, _console())
        if others := [place for place in options.runs if place not in learned]:
            report.show([report.read(place) for place in others], _console())
        return
    if learned:
        raise InputError(
            f"--html: {next(iter(learned))} is a run of `jcl online`, and the page shows runs of "
            "`jcl run` alone: leave it out, or leave out --html to see its tables here."
        )

    from jcl import page

    page.write(options.html, options.runs)
    _console().print(f"{options.html}: open it in a browser", soft_wrap=True)


@dataclasses.dataclass(frozen=True)
class MemoryOptions:
    """Writes the memory of a run to a file, from which jcl.memory.starting_from takes it up.

      jcl memory runs/quickstart/replay memory.npz

    Attributes:
        run: the run folder.
        file: what is written, .npz.
        seed: which of the run's seeds; by default the first.
        part: which memory, where the strategy keeps several, such as strategy/0.
    """

    run: tyro.conf.Positional[Path]
    file: tyro.conf.Positional[Path]
    seed: int | None = None
    part: str | None = None


def _memory(arguments: list[str]) -> None:
    from jcl import checkpoint, folder, memory

    options = tyro.cli(MemoryOptions, args=arguments, prog="jcl memory")
    leaves = checkpoint.read(options.run / "checkpoints")
    parts = [
        path.removesuffix("/seen")
        for path in leaves
        if path.endswith("/seen")
        and any(each.startswith(path.removesuffix("seen") + "items/") for each in leaves)
    ]
    if (options.part is None and len(parts) != 1) or options.part not in (None, *parts):
        raise InputError(
            f"{options.run} keeps {len(parts)} memories ({', '.join(parts) or 'none'})"
            + (": name one with --part." if parts else ": its method stores no examples.")
        )
    part = options.part or parts[0]
    arrays = {
        path.removeprefix(f"{part}/"): leaf
        for path, leaf in leaves.items()
        if path.startswith(f"{part}/")
    }
    description = folder.read_config(options.run / "config.json")
    folder.check_no_grid(options.run, description)
    seeds, known = description["seeds"], description.get("known", {})
    seed = seeds[0] if options.seed is None else options.seed
    if seed not in seeds:
        raise InputError(f"--seed {seed}: the run has the seeds {', '.join(map(str, seeds))}.")
    if len(seeds) > 1:
        arrays = {path: leaf[seeds.index(seed)] for path, leaf in arrays.items()}
    memory.save(
        options.file,
        arrays,
        labels=known.get("labels", ()),
        vocabulary=known.get("vocabulary"),
    )
    told = f"{options.file}: {part} of seed {seed}, {arrays['seen']} examples offered"
    _console().print(told, soft_wrap=True)


def _forget(arguments: list[str]) -> None:
    from jcl.forget import command

    command.main(arguments, load_config)


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """Writes the model of a run, at its newest checkpoint, as a folder that Hugging Face loads.

      jcl export runs/quickstart/replay exported

    Attributes:
        run: the run folder.
        folder: what is written; it must hold no model yet.
        lora: adds LoRA's adapters to the kernels, or writes them alone, for PEFT.
        seed: which of the run's seeds; by default the first.
        config: the run's config file, if it was moved or does not lie in ./configs.
    """

    run: tyro.conf.Positional[Path]
    folder: tyro.conf.Positional[Path]
    lora: Literal["merged", "adapter"] = "merged"
    seed: int | None = None
    config: Path | None = None


def _export(arguments: list[str]) -> None:
    options = tyro.cli(ExportOptions, args=arguments, prog="jcl export")

    from jcl.answer import export, reopen

    reopened = reopen(options.run, load_config, options.config, options.seed)
    told = export(reopened, options.folder, lora=options.lora)
    told = f"{options.folder}: {options.run} {reopened.where}, {told}"
    _console().print(told, soft_wrap=True)


@dataclasses.dataclass(frozen=True)
class ListOptions:
    """What there is to use: the configs of a folder, and jcl's strategies, models and streams.

      jcl list configs/mnist

    Attributes:
        folder: that holds the configs.
    """

    folder: tyro.conf.Positional[Path] = Path("configs")


def _list(arguments: list[str]) -> None:
    place = tyro.cli(ListOptions, args=arguments, prog="jcl list").folder

    from jcl import data, models, strategies

    console = _console()
    if not place.is_dir():
        raise InputError(f"There is no folder {place}: name the one that holds your configs.")
    table = Table("config", "what it is", title=f"configs in {place}", title_justify="left")
    for path in sorted(place.rglob("*.py")):
        name = str(path.relative_to(place))  # short, so that a narrow terminal does not break it
        try:
            table.add_row(name, _first_line(ast.get_docstring(ast.parse(path.read_bytes()))))
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            table.add_row(name, f"(cannot be read: {error})")
    console.print(table)
    streams = [
        name
        for name in data.__all__
        if inspect.isfunction(getattr(data, name))
        and inspect.signature(getattr(data, name)).return_annotation is data.Stream
    ]
    for title, module, names in (
        ("strategies", strategies, strategies.__all__),
        ("models", models, [name for name in models.__all__ if name.islower()]),
        ("streams", data, streams),
    ):
        table = Table("name", "what it is", title=title, title_justify="left")
        for name in names:
            table.add_row(name, _first_line(getattr(module, name).__doc__))
        console.print(table)


def _console() -> Console:
    return Console(markup=False, highlight=False)  # names may hold brackets


def _first_line(docstring: str | None) -> str:
    return (docstring or "").strip().split("\n")[0]


COMMANDS = {
    "run": _run,
    "online": _online,
    "search": _search,
    "select": _select,
    "plan": _plan,
    "generate": _generate,
    "report": _report,
    "memory": _memory,
    "forget": _forget,
    "export": _export,
    "list": _list,
}

if __name__ == "__main__":
    sys.exit(main())
