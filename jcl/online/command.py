"""The command `jcl online`."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from jcl.errors import InputError
from jcl.online import report
from jcl.online.waiting import Timing

DESCRIPTION = """Predicts every line of JSON, then learns from it, each line once.

A line is {"text": "...", "label": "..."}; or {"id": 7, "text": "..."}, whose label may come in a
later line, {"id": 7, "label": "..."}; or, for a language model, {"text": "..."}. The fields may
have other names, by the config (jcl.data.Lines). Every line gets a line in predictions.jsonl before
it is learned from. The same command goes on after any end: at the very line, with the same bits.

Of a pipe a line is on disk, in the run's input.jsonl, before it is used, and the lines of a
producer that did not get so far are sent again by it: `wc -l RUN/input.jsonl` are there.

  printf '%s\\n' '{"text": "good", "label": "yes"}' '{"text": "bad", "label": "no"}' > lines.jsonl
  jcl online configs/online.py --input lines.jsonl --labels no yes
  tail -f -n +1 log.jsonl | jcl online configs/online.py --input - --labels no yes
  jcl online configs/online.py --input log.jsonl --follow --delay 100 --labels no yes
"""


@dataclasses.dataclass(frozen=True)
class OnlineOptions:
    """How to learn online.

    Attributes:
        input: a file or a pipe of lines, or - for standard input.
        batch: rows of a micro-batch; by default the experiment's batch_size.
        wait_ms: a micro-batch that is not full is closed so long after its first line came; that of
            a file without --follow is always filled.
        delay: a label counts as known once so many texts more have been predicted.
        delay_seconds: or once a line has come whose time is so much later.
        waiting: texts that may wait for their labels; of more, the oldest is dropped and counted.
        window: texts of the windowed measures.
        follow: wait for more at the end of the file, until SIGTERM or SIGINT.
        skip_bad: leave out lines that cannot be used, and count them; else such a line ends it.
        save_seconds: between checkpoints; what lies behind the last is done again after a kill.
        keep: complete checkpoints left in the run folder.
        out: the run folder; by default runs/<config>/<name of the experiment>.
        fresh: start again where the folder holds a run already; its input.jsonl is lost as well.
    """

    input: str
    batch: int | None = None
    wait_ms: float = 50.0
    delay: int = 0
    delay_seconds: float = 0.0
    waiting: int = 1000
    window: int = 500
    follow: bool = False
    skip_bad: bool = False
    save_seconds: float = 60.0
    keep: int = 2
    out: Path | None = None
    fresh: bool = False


def main(arguments: list[str], parse: Callable[..., tuple[Path, Any, Any]]) -> None:
    """`jcl online` with these arguments.

    Args:
        arguments: behind "online".
        parse: ("online", arguments, options) -> the config's path and module, and what was given.

    Raises:
        InputError, SaveError, Stopped: from `jcl.online.service.online`.
    """
    if arguments[:1] in (["-h"], ["--help"]):
        tyro.cli(
            OnlineOptions, args=["--help"], prog="jcl online CONFIG.py", description=DESCRIPTION
        )
    if not arguments or arguments[0].startswith("-"):
        raise InputError("name a config file first: jcl online configs/online.py --input -")
    path, module, given = parse("online", arguments, OnlineOptions)
    options = vars(given.options).copy()

    from jcl.online.service import online

    batch = options.pop("batch")
    built = module.build(given.config)  # once: it may read a large model
    fields = ("delay", "delay_seconds", "waiting", "window")
    timing = Timing(
        batch=getattr(built, "batch_size", 1) if batch is None else batch,
        **{name: options.pop(name) for name in fields},
    )
    console = Console(markup=False, highlight=False)
    made, place = online(
        lambda _: built, given.config, config_file=path, timing=timing, console=console, **options
    )
    report.show(made, console)
    names = ", ".join(sorted(file.name for file in place.iterdir() if file.name != "lock"))
    console.print(f"{place}: {names}", soft_wrap=True)
