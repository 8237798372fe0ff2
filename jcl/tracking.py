"""Trackers: TensorBoard, Weights & Biases and MLflow get the lines of metrics.jsonl as well.

metrics.jsonl is always written and is the record; a tracker is a copy to look at. Each works in a
thread of its own, so that one that is missing, fails or hangs costs a warning and never the run.
What they write lies in the run folder, and no network is used unless the tracker's own environment
variable asks for it (WANDB_MODE=online, MLFLOW_TRACKING_URI).

A run that was killed goes on from its checkpoint, and lines after it come a second time:
metrics.jsonl is cut back to the checkpoint; TensorBoard hides the old ones (its purge step);
Weights & Biases and MLflow keep both at the same step. What a tracker had not yet written is lost
to it; TensorBoard's writer holds up to ten seconds of lines.
"""

import json
import os
import queue
import re
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from jcl.errors import InputError
from jcl.folder import MetricsFile

WAITING_LINES = 10_000  # of a tracker slower than the run; further ones are left out
GOODBYE_SECONDS = 30.0  # that a run waits at its end for a tracker


class Tracker(Protocol):
    """Where lines go; any error it raises ends it, not the run."""

    def __init__(self, folder: Path, description: Mapping[str, Any], step: int) -> None:
        """Opens it or goes on; the package is imported here.

        Args:
            folder: the run folder.
            description: as in config.json.
            step: the steps that the run has behind it, 0 for one that begins.
        """
        ...

    def write(self, scalars: Mapping[str, float], step: int) -> None:
        """Takes the numbers of one line; step counts over all stages."""
        ...

    def close(self) -> None: ...


class TensorBoard:
    """`tensorboard --logdir RUN/tensorboard`; by tensorboardX."""

    def __init__(self, folder: Path, description: Mapping[str, Any], step: int):
        from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]

        self._writer = SummaryWriter(
            str(folder / "tensorboard"),
            purge_step=step + 1 if step else 0,
            flush_secs=10,
            filename_suffix=f".{uuid.uuid4().hex[:8]}",  # else two of one second are one
        )
        if not step:
            text = json.dumps(description["config"], indent=1).replace("\n", "\n    ")
            self._writer.add_text("config", f"    {text}", 0)

    def write(self, scalars: Mapping[str, float], step: int) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandB:
    """Weights & Biases, offline unless WANDB_MODE says otherwise; `wandb sync RUN/wandb/offline-*`
    sends what lies there. Sessions of one run have one id."""

    def __init__(self, folder: Path, description: Mapping[str, Any], step: int):
        import wandb  # pyright: ignore[reportMissingImports]

        (folder / "wandb").mkdir(exist_ok=True)
        self._run = wandb.init(
            project="jcl",
            dir=str(folder),
            id=_kept(folder / "wandb" / "jcl_id", lambda: uuid.uuid4().hex),
            name=f"{folder.parent.name}/{folder.name}",
            config=dict(description["config"]),
            mode=os.environ.get("WANDB_MODE", "offline"),  # pyright: ignore
            # A run that goes on refuses a folder with links to elsewhere.
            settings=wandb.Settings(symlink=False, silent=True, console="off"),
        )
        # Their own step may not go back, as it does where a run goes on from a checkpoint.
        self._run.define_metric("*", step_metric="step")

    def write(self, scalars: Mapping[str, float], step: int) -> None:
        self._run.log({**scalars, "step": step})

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """Files in RUN/mlflow/runs, or MLFLOW_TRACKING_URI's server. To look at the files:
    `MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-store-uri RUN/mlflow/runs`."""

    def __init__(self, folder: Path, description: Mapping[str, Any], step: int):
        # A store of files needs no database; newer versions want to be told.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        import mlflow.entities  # pyright: ignore[reportMissingImports]

        (folder / "mlflow").mkdir(exist_ok=True)
        place = os.environ.get("MLFLOW_TRACKING_URI", (folder.resolve() / "mlflow/runs").as_uri())
        self._client, self._entities = mlflow.MlflowClient(tracking_uri=place), mlflow.entities
        known = self._client.get_experiment_by_name("jcl")
        experiment = known.experiment_id if known else self._client.create_experiment("jcl")
        name = f"{folder.parent.name}/{folder.name}"

        def begin() -> str:
            run = self._client.create_run(experiment, run_name=name).info.run_id
            for field, value in description["config"].items():
                self._client.log_param(run, field, str(value)[:500])
            return run

        self._run = _kept(folder / "mlflow" / "jcl_id", begin)
        self._client.update_run(self._run, status="RUNNING")

    def write(self, scalars: Mapping[str, float], step: int) -> None:
        now = int(1000 * time.time())
        metric = self._entities.Metric
        each = [metric(name[:250], value, now, step) for name, value in scalars.items()]
        self._client.log_batch(self._run, metrics=each)

    def close(self) -> None:
        self._client.set_terminated(self._run)


TRACKERS: dict[str, Callable[[Path, Mapping[str, Any], int], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
}


def scalars(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line of metrics.jsonl by names that every tracker takes.

    A step's have the name of the metric, an evaluation's and a probe's the task's behind it; those
    of several replicas end in their numbers. Numbers that are not finite are left out.

    >>> scalars({"kind": "step", "task": "de", "step": 5, "loss": [2.5, None]})
    {'train/loss/replica_0': 2.5}
    >>> scalars({"kind": "evaluation", "after": "nothing", "task": "a<b", "accuracy": [0.5]})
    {'accuracy/a_b': 0.5}
    """
    train = line["kind"] == "step"
    found = {}
    for metric, values in line.items():
        if metric in ("kind", "task", "step", "after"):
            continue
        name = f"train/{metric}" if train else f"{metric}/{line['task']}"
        name = re.sub("[^A-Za-z0-9_. /-]", "_", name).replace("..", "__")
        values = values if isinstance(values, list) else [values]
        for number, value in enumerate(values):
            if value is not None:
                found[name if len(values) == 1 else f"{name}/replica_{number}"] = float(value)
    return found


def check(names: Sequence[str]) -> None:
    """Refuses what is no tracker.

    Raises:
        InputError: one of them is not, or stands there twice.
    """
    for name in names:
        if name not in TRACKERS or list(names).count(name) > 1:
            raise InputError(f"--track {name}: name each of {', '.join(TRACKERS)} at most once.")


class Tracked:
    """metrics.jsonl, whose lines go to trackers as well.

    Args:
        lines: the file; what it raises passes through.
        names: of TRACKERS.
        folder: the run folder.
        description: as in config.json.
        step: the step over all stages of a line, or of now for {}.
    """

    def __init__(
        self,
        lines: MetricsFile,
        names: Sequence[str],
        folder: Path,
        description: Mapping[str, Any],
        step: Callable[[Mapping[str, Any]], int],
    ):
        self._lines, self._step = lines, step
        self._workers = [_Worker(name, folder, description, step({})) for name in names]

    def write(self, **line: Any) -> None:
        """Appends one line."""
        self._lines.write(**line)
        for worker in self._workers:
            worker.write(line, self._step(line))

    def offset(self) -> int:
        """As that of the file."""
        return self._lines.offset()

    def close(self) -> None:
        """Closes the file, then the trackers."""
        self._lines.close()
        for worker in self._workers:
            worker.close()


class _Worker:
    """A tracker and its thread; the warning comes from the run's own thread, once."""

    def __init__(self, name: str, folder: Path, description: Mapping[str, Any], step: int):
        self._name = name
        self._queue: queue.Queue[tuple[Mapping[str, Any], int] | None] = queue.Queue(WAITING_LINES)
        self._failure: str | None = None
        self._warned = False
        self._thread = threading.Thread(
            target=self._work, args=(folder, description, step), daemon=True, name=f"jcl {name}"
        )
        self._thread.start()

    def write(self, line: Mapping[str, Any], step: int) -> None:
        if self._failure is None:
            try:
                self._queue.put_nowait((line, step))
            except queue.Full:
                self._failure = f"it takes lines too slowly, {WAITING_LINES:,} wait"
        self._warn()

    def close(self) -> None:
        try:
            self._queue.put_nowait(None)
            self._thread.join(GOODBYE_SECONDS)
        except queue.Full:
            pass
        if self._thread.is_alive():
            self._failure = self._failure or f"it does not end within {GOODBYE_SECONDS:.0f} s"
        self._warn()

    def _work(self, folder: Path, description: Mapping[str, Any], step: int) -> None:
        try:
            tracker = TRACKERS[self._name](folder, description, step)
            while (item := self._queue.get()) is not None:
                if self._failure is None:
                    line, at = item
                    tracker.write(scalars(line), at)
            tracker.close()
        except ImportError as error:
            self._failure = f"{error}; python -m pip install 'jcl[tracking]'"
        except BaseException as error:  # some leave by SystemExit
            self._failure = f"{type(error).__name__}: {error}"

    def _warn(self) -> None:
        if self._failure is not None and not self._warned:
            self._warned = True
            warnings.warn(
                f"--track {self._name}: {self._failure}. The run goes on without it; metrics.jsonl "
                "has every line.",
                stacklevel=4,
            )


def _kept(path: Path, make: Callable[[], str]) -> str:
    """The id in the file; made where there is none, and the folder may come from elsewhere."""
    found = path.read_text()[:100].strip() if path.exists() else ""
    if not re.fullmatch("[0-9a-f]{32}", found):
        path.write_text(found := make())
    return found
