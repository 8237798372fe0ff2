"""`jcl online`: from lines to predictions and a run folder, in which it goes on after any end."""

import collections
import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from jcl import checkpoint, checks, folder, forgotten, strict
from jcl.allocator import keep_freed_memory
from jcl.data import Example, Lines
from jcl.errors import REMEDY, Diverged, InputError, Stopped
from jcl.experiment import Experiment
from jcl.online import report
from jcl.online.engine import Engine
from jcl.online.journal import Journal, Line
from jcl.online.waiting import Entry, Timing
from jcl.stopping import Stopping

LATENCIES_KEPT = 10_000
SAY_SECONDS = 10.0


@dataclasses.dataclass
class Position:
    """Where a run stands, beside the state and what the engine keeps.

    Attributes:
        lines: used so far.
        offset, ends: behind them in input.jsonl, and in batches.jsonl.
        predictions, metrics: the lengths of predictions.jsonl and metrics.jsonl.
        skipped: bad lines that were left out.
        wall_seconds: of all processes that worked on the run, waiting for input included.
        busy_seconds, busy_lines: of reading, predicting and learning, and how many lines that was.
        traces: of `predict` and `learn`, the largest of any process.
        engine: what `Engine.saved` gave.
    """

    lines: int = 0
    offset: int = 0
    ends: int = 0
    predictions: int = 0
    metrics: int = 0
    skipped: int = 0
    wall_seconds: float = 0.0
    busy_seconds: float = 0.0
    busy_lines: int = 0
    traces: dict[str, int] = dataclasses.field(default_factory=dict)
    engine: dict[str, Any] = dataclasses.field(default_factory=dict)


def online(
    build: Callable[[Any], Experiment],
    config: Any,
    *,
    config_file: Path,
    input: str,
    out: Path | None = None,
    fresh: bool = False,
    timing: Timing,
    wait_ms: float = 50.0,
    save_seconds: float = 60.0,
    follow: bool = False,
    skip_bad: bool = False,
    keep: int = 2,
    console: Console | None = None,
) -> tuple[dict[str, Any], Path]:
    """Predicts every line of the input, then learns from it, from where the run folder stands.

    Args:
        build: config -> experiment, which has `lines`.
        config: a frozen dataclass.
        config_file: where both come from.
        input: "-" for standard input, or the path of a file or a pipe.
        out: the run folder; by default runs/<config>/<name of the experiment>.
        fresh: starts again where the folder holds a run already.
        timing: the sizes of micro-batches and memories, and how late labels are.
        wait_ms: after which a micro-batch that is not full is closed, from its first line on; that
            of a file that is not followed is always as full as can be.
        save_seconds: between checkpoints.
        follow: waits for more at the end of a file.
        skip_bad: leaves out lines that cannot be used, and counts them.
        keep: complete checkpoints left in the run folder.
        console: where progress is shown.

    Returns:
        The report, as in report.json, and the run folder.

    Raises:
        InputError: what was given cannot be run, or a line cannot be used.
        Diverged: a prediction or the params are no longer numbers; the last good checkpoint stays.
        SaveError: something could not be written; what was written before stays.
        Stopped: SIGTERM or SIGINT came, and there is a checkpoint of the lines used by then.
    """
    console = console or Console(quiet=True)
    checks.whole("jcl online", "--keep", keep)
    checks.number("jcl online", "--wait-ms", wait_ms)
    checks.number("jcl online", "--save-seconds", save_seconds, "[0, inf]")
    experiment = build(config)
    if not isinstance(experiment, Experiment):
        raise InputError(
            f"build(config) returned {type(experiment).__name__}, not a jcl.Experiment."
        )
    lines = experiment.lines
    if lines is None:
        raise InputError(
            f"Experiment {experiment.name!r} does not say how a line becomes an example: give it "
            "lines=jcl.data.Lines(tokenizer=..., length=..., labels=...)."
        )
    engine = Engine(experiment, lines.blank(), timing)
    _check_sizes(experiment, lines, engine)
    path = Path(out) if out else Path("runs") / config_file.stem / experiment.name
    description = folder.describe(
        name=experiment.name,
        config=dataclasses.asdict(config),
        config_file=config_file,
        # Whose lines they are is told by what has come of them, not by the name of the source.
        hashes={name: str(each) for name, each in vars(timing).items()},
        seeds=[experiment.seed],
        known={
            "labels": list(lines.labels or ()),
            "fields": {name: getattr(lines, name) for name in ("text", "label", "identity")},
            "length": lines.length,
            "vocabulary": getattr(experiment.model.config, "vocab_size", None),
        },
        start=[experiment.model.start and experiment.model.start()],
    )
    with Stopping() as stopping, folder.opened(path, description, fresh=fresh):
        if told := forgotten.told(path):
            console.print(told)
        service = _Service(engine, lines, path, description, skip_bad, keep)
        with contextlib.closing(service):
            service.open(input, follow, console)
            service.run(wait_ms / 1000, save_seconds, stopping, console)
            return service.finish(), path


class _Service:
    """The one who reads, tells, learns and saves, in this order."""

    def __init__(
        self,
        engine: Engine,
        lines: Lines,
        path: Path,
        description: dict[str, Any],
        skip_bad: bool,
        keep: int,
    ):
        self._engine, self._lines, self._path = engine, lines, path
        self._description, self._skip_bad = description, skip_bad
        self._identity = folder.fingerprint(description)
        self._stack = contextlib.ExitStack()
        self._saver = self._stack.enter_context(checkpoint.Saver(path / "checkpoints", keep=keep))
        self._latencies: collections.deque[float] = collections.deque(maxlen=LATENCIES_KEPT)
        self._finite = jax.jit(_all_finite)
        self._started = self._saved = time.monotonic()

    def open(self, source: str, follow: bool, console: Console) -> None:
        """Takes up the newest checkpoint, or makes the first; and opens the files."""
        place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        abstract = jax.tree.map(lambda leaf: leaf.update(sharding=place), self._engine.abstract)
        restored = checkpoint.restore(self._path / "checkpoints", abstract)
        self._position = Position()
        if restored:
            state, progress = restored
            self._position = _position(self._path, progress, self._identity)
            with (self._path / "input.jsonl").open("rb") as file:
                self._restore(state, lambda offset: self._lines.read(_line_at(file, offset)))
            console.print(
                f"{self._path}: going on behind line {self._position.lines}", soft_wrap=True
            )
        else:
            self._engine.begin()
        at = self._position
        self._journal = Journal(
            self._path, source, follow=follow, lines=at.lines, offset=at.offset, ends=at.ends
        )
        self._stack.callback(self._journal.close)
        self._predictions = folder.MetricsFile(self._path, at.predictions, "predictions.jsonl")
        self._metrics = folder.MetricsFile(self._path, at.metrics)
        self._stack.callback(self._predictions.close)
        self._stack.callback(self._metrics.close)
        self._started = time.monotonic() - at.wall_seconds
        if not restored:
            self._save()
            self._saver.wait()  # nothing is taken from a pipe before there is a place for it
        self._engine.compile()
        keep_freed_memory()
        self._journal.start()

    def run(
        self, wait_seconds: float, save_seconds: float, stopping: Stopping, console: Console
    ) -> None:
        """To the end of the input."""
        said, size = time.monotonic(), self._engine.timing.batch
        while True:
            lines = self._journal.next(size, wait_seconds, lambda: stopping.signal)
            if stopping.signal is not None:
                self._save()
                self._saver.wait()
                raise Stopped(
                    f"stopped by {stopping.signal} behind line {self._position.lines}; the same "
                    "command goes on"
                )
            if not lines:
                if self._journal.torn:
                    console.print(
                        f"line {self._position.lines + 1}, the last one, has no end yet and is "
                        "not used: the same command goes on with it once it is whole",
                        soft_wrap=True,
                    )
                return
            begun = time.monotonic()
            self._micro_batch(lines)
            now = time.monotonic()
            self._position.busy_seconds += now - begun
            self._position.busy_lines += len(lines)
            if now - self._saved >= save_seconds:
                self._save()
            if now - said >= SAY_SECONDS:
                said = now
                shown = report.shown(self._engine.measures.windowed())
                console.print(f"line {self._position.lines}: {shown}", soft_wrap=True)

    def finish(self) -> dict[str, Any]:
        """The last checkpoint, and the report."""
        self._save()
        self._saver.wait()
        at, engine = self._position, self._engine
        made = report.make(
            name=self._description["name"],
            engine=engine,
            lines=at.lines,
            skipped=at.skipped,
            latencies=list(self._latencies),
            seconds=at.wall_seconds,
            rate=at.busy_lines / at.busy_seconds if at.busy_seconds else None,
            traces=at.traces,
            description=self._description,
        )
        report.write(self._path, made)
        return made

    def close(self) -> None:
        self._stack.close()

    def _micro_batch(self, lines: list[Line]) -> None:
        """Nothing of it is used where one of its lines is refused."""
        entries, bad = [], {}
        for line in lines:
            try:
                said = self._read(line)
                if said is not None:
                    entries.append(Entry(line.number, line.offset, said))
            except ValueError as error:
                bad[line.number] = str(error)
        if bad and not self._skip_bad:
            self._refuse(*next(iter(bad.items())))
        told = {each["line"]: each for each in self._engine.predict(entries)}
        for line in lines:
            found = told.get(line.number) or {"line": line.number, "skipped": "it is empty"}
            if line.number in bad:
                found["skipped"] = bad[line.number]
            self._predictions.write(**self._named(found))
        now = time.monotonic()
        self._latencies.extend(now - line.arrived for line in lines if line.arrived is not None)
        for learned in self._engine.learn():
            self._metrics.write(
                kind="learned",
                **{name: each for name, each in learned._asdict().items() if each is not None},
                **self._engine.measures.windowed(),
            )
        self._position.lines += len(lines)
        self._position.skipped += len(bad)
        self._position.offset, self._position.ends = self._journal.offset, self._journal.ends

    def _read(self, line: Line) -> Any:
        """What the line says; None of an empty one.

        Raises:
            ValueError: it cannot be used.
        """
        if line.content is None:
            raise ValueError(f"it is longer than {strict.LINE_CHARACTERS:,} bytes")
        if not line.content.strip():
            return None
        said = self._lines.read(line.content)
        if self._engine.timing.delay_seconds and isinstance(said, Example) and said.time is None:
            raise ValueError(f"it has no {self._lines.time}, by which its label would be late")
        return said

    def _refuse(self, number: int, reason: str) -> None:
        self._save()
        self._saver.wait()
        raise InputError(
            f"line {number} cannot be used: {reason}. All lines up to {self._position.lines} are "
            f"learned and saved, and those behind that have come lie in {self._path}/input.jsonl. "
            "The same command with --skip-bad leaves such lines out, counts them and goes on."
        )

    def _named(self, found: dict[str, Any]) -> dict[str, Any]:
        """Classes by their names."""
        labels = self._lines.labels
        if labels:
            for name in ("prediction", "target"):
                if name in found:
                    found[name] = labels[found[name]]
        return found

    def _save(self) -> None:
        if not bool(self._finite(self._engine.state)):
            raise Diverged(
                f"The params, or the strategy's state, are not finite behind line "
                f"{self._position.lines}: {REMEDY}"
            )
        at = self._position
        at.predictions, at.metrics = self._predictions.offset(), self._metrics.offset()
        at.wall_seconds = time.monotonic() - self._started
        for name, number in self._engine.traces.items():
            at.traces[name] = max(at.traces.get(name, 0), number)
        at.engine = self._engine.saved()
        # The copy is for the thread that writes it.
        progress = json.loads(json.dumps(dataclasses.asdict(at)))
        self._saver.save(self._engine.state, {**progress, "run": self._identity})
        self._saved = time.monotonic()

    def _restore(self, state: Any, read: Callable[[int], Any]) -> None:
        losses = _losses(self._path / "metrics.jsonl", self._position.metrics)
        try:
            self._engine.restore(state, self._position.engine, read, losses)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise InputError(
                f"{self._path}: what the newest checkpoint says of the lines that wait does not "
                f"fit the run's files ({error}): get the folder again from where it comes from, or "
                "begin again with --fresh."
            ) from error


def _check_sizes(experiment: Experiment, lines: Lines, engine: Engine) -> None:
    """Refuses tokens and classes that the model does not have: no device would notice."""
    tokens = getattr(lines.tokenizer, "vocab_size", 0)
    if hasattr(lines.tokenizer, "get_vocab"):
        tokens = max(lines.tokenizer.get_vocab().values(), default=0) + 1
    known = getattr(experiment.model.config, "vocab_size", None)
    if known and tokens > known:
        raise InputError(
            f"The tokenizer of the lines has {tokens} tokens and the model {known}: give the model "
            "the tokenizer's."
        )
    named = len(lines.labels) if lines.labels else None
    if (named is None) != (engine.classes is None) or (named and named != engine.classes):
        has = f"{engine.classes} classes" if engine.classes else "logits for every token"
        raise InputError(
            f"The lines have {f'{named} labels' if named else 'no labels'} and the model gives "
            f"{has}: give jcl.data.Lines the labels of the model's classes, or none for a "
            "language model."
        )


def _position(path: Path, found: dict[str, Any], identity: str) -> Position:
    if found.get("run") != identity:
        raise InputError(
            f"{path}: the newest checkpoint is of another run, of another config, code, input or "
            "seed: put this run's own checkpoints back, or begin again with --fresh."
        )
    try:
        shape = dict.fromkeys(("lines", "offset", "ends", "predictions", "metrics", "skipped"), int)
        strict.fits(found, {**shape, "engine": {str: object}, "traces": {str: int}})
        return Position(**{name: value for name, value in found.items() if name != "run"})
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{path}: the newest checkpoint's progress.json is not this run's ({error}): get the "
            "folder again from where it comes from, or begin again with --fresh."
        ) from error


def _line_at(file: Any, offset: int) -> bytes:
    file.seek(offset)
    return file.readline()


def _losses(path: Path, length: int) -> Iterator[float]:
    """What the drift detector has met, in order."""
    with path.open("rb") as file:
        while file.tell() < length:
            yield from strict.parse_json(file.readline().decode())["losses"]


def _all_finite(state: Any) -> jax.Array:
    """Finite params, and no NaN in the strategy's state, where an infinity may have a meaning."""
    floats = [
        leaf for leaf in jax.tree.leaves(state.strategy) if jnp.issubdtype(leaf.dtype, np.floating)
    ]
    params = jax.tree.leaves(state.params)
    finite = [jnp.all(jnp.isfinite(leaf)) for leaf in params]
    return jnp.all(jnp.stack(finite + [~jnp.any(jnp.isnan(leaf)) for leaf in floats]))
