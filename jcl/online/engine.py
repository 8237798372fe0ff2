"""Which examples are predicted and which are learned from, when: the host's side, without files."""

import base64
import collections
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jcl import checks, memory
from jcl.core import lift
from jcl.data import Batch, Example, Label, stack
from jcl.errors import REMEDY, Diverged, InputError
from jcl.experiment import Experiment, check_memories
from jcl.learner import Learner, LearnerState, check_needs, learner
from jcl.online.measures import Measures, Result
from jcl.online.step import prequential
from jcl.program import first_state


class Entry(NamedTuple):
    """What one line, or one example of a stream, says.

    Attributes:
        number: of the line, from 1.
        offset: of the line in its file; 0 where there is none.
        said: what it says.
    """

    number: int
    offset: int
    said: Example | Label


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
    """When what is predicted is learned from.

    Attributes:
        batch: rows of a micro-batch.
        delay: an example's label counts as known once so many examples more have been predicted.
        delay_seconds: or once a line has come whose time is so much later.
        waiting: examples that may wait for their labels; of more, the oldest is dropped.
        window: results in the window of the measures.
    """

    batch: int = 8
    delay: int = 0
    delay_seconds: float = 0.0
    waiting: int = 1000
    window: int = 500

    def __post_init__(self):
        for name in ("batch", "waiting", "window"):
            checks.whole("jcl online", f"--{name}", getattr(self, name))
        checks.whole("jcl online", "--delay", self.delay, least=0)
        checks.number("jcl online", "--delay-seconds", self.delay_seconds)
        if self.delay and self.delay_seconds:
            raise InputError(
                f"--delay {self.delay} and --delay-seconds {self.delay_seconds}: labels are late "
                "by a number of examples or by a time; leave one of them out."
            )
        if self.delay > self.waiting:
            raise InputError(
                f"--delay {self.delay}: {self.waiting} examples at most wait for their labels, so "
                f"that all would be dropped: give --waiting {self.delay}, or more."
            )


@dataclasses.dataclass
class _Waiting:
    """An example that was predicted and not learned from."""

    entry: Entry
    example: Example
    place: int  # among all examples, from 1
    loss: float | None  # a sum, in nats; None until the label is known
    prediction: int | None
    scores: np.ndarray | None  # of one whose label does not stand in its line

    def result(self) -> Result:
        assert self.loss is not None
        target = self.example.leaves["targets"]
        targets = int((self.example.leaves["mask"] > 0).sum())
        correct = None if self.prediction is None else self.prediction == int(target)
        return Result(self.loss, targets, correct, self.example.size)


class Learned(NamedTuple):
    """One batch that was learned from.

    Attributes:
        lines: the numbers of its examples' lines.
        losses: of each, the mean over its targets, in nats, when it was predicted.
        correct: whether each prediction was right; empty of a language model.
        drift: what the batch said of drift, 0 or 1; None where nobody asked.
    """

    lines: list[int]
    losses: list[float]
    correct: list[bool]
    drift: int | None


class Engine:
    """Predicts micro-batches and learns from what is known, in a fixed order.

    `predict` and `learn` alternate. Which rows make up a batch depends on what `predict` was given
    and on nothing else, so that the same micro-batches give the same bits.

    Args:
        experiment: its model, loss, strategy, seed and drift detector.
        example: of the shapes that all examples have.
        timing: when labels count as known.

    Raises:
        InputError: the strategy acts at boundaries or needs to know the task, or the model and the
            examples do not fit each other.

    Attributes:
        state: the learner's.
        measures: of all examples whose labels are known.
        counts: examples, learned, unlabelled (no label can come), unmatched (labels of no example
            that waits), dropped (of those that waited), alarms.
        traces: how often `predict` and `learn` were traced.
    """

    def __init__(self, experiment: Experiment, example: Example, timing: Timing):
        strategy = lift(experiment.strategy)
        self._experiment, self._timing = experiment, timing
        self._drifts = experiment.drift is not None
        self._detector = experiment.drift() if experiment.drift else None
        self._time, self._alarm = -float("inf"), False
        functions = learner(experiment.loss_fn, strategy)
        batch = self._batch([example])
        check_needs(strategy, batch)
        abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), batch)
        self._first = lambda: first_state(experiment, functions, abstract)
        with memory.shapes_alone():
            self.abstract = jax.eval_shape(lambda: self._first())
        if _acts_at_boundaries(functions, self.abstract, abstract):
            raise InputError(
                f"{strategy.name} acts at the boundaries of tasks, and what is learned online has "
                "none: wrap each part that does in jcl.periodically(part, every=500), and take "
                "jcl.per_task off an optimizer."
            )
        pure = prequential(functions)
        outputs = jax.eval_shape(pure.predict, self.abstract, batch)
        jax.eval_shape(pure.learn, self.abstract, batch)
        self.classes = outputs["scores"].shape[1] if "scores" in outputs else None
        self.traces: collections.Counter[str] = collections.Counter()
        self._predict = jax.jit(self._counted("predict", pure.predict))
        self._learn = jax.jit(self._counted("learn", pure.learn), donate_argnums=0)
        self.state: Any = None
        self.measures = Measures(timing.window)
        self.counts = dict.fromkeys(
            ("examples", "learned", "unlabelled", "unmatched", "dropped", "alarms"), 0
        )
        # Known but late, in order; without a label, by identity; known, to be learned from now.
        self._late: collections.deque[_Waiting] = collections.deque()
        self._open: dict[Any, _Waiting] = {}
        self._due: collections.deque[_Waiting] = collections.deque()

    def begin(self) -> None:
        """Makes the state before the first example."""
        self.state = jax.jit(self._first)()
        check_memories(self._experiment, self.state.strategy)

    def predict(self, entries: Sequence[Entry]) -> list[dict[str, Any]]:
        """What is to be told of each entry, at most one micro-batch of examples.

        Raises:
            Diverged: a prediction is not a number.
        """
        examples = [each.said for each in entries if isinstance(each.said, Example)]
        rows = iter(self._rows(examples) if examples else [])
        told = []
        for entry in entries:
            if isinstance(entry.said, Example):
                told.append(self._predicted(entry, entry.said, next(rows)))
            else:
                told.append(self._labelled(entry, entry.said))
            self._release(entry.said.time)
            self._drop()
        return told

    def learn(self) -> list[Learned]:
        """Learns from everything whose label is known by now, and says what that was."""
        learned = []
        while self._due:
            number = min(len(self._due), self._timing.batch)
            rows = [self._due.popleft() for _ in range(number)]
            batch = self._batch([row.example for row in rows])
            results = [row.result() for row in rows]
            losses = [result.loss / max(result.targets, 1) for result in results]
            for result in results:
                self.measures.add(result)
            correct = [each.correct for each in results if each.correct is not None]
            drift = int(self._alarm) if self._drifts else None
            self._feed(losses)
            self.state, _ = self._learn(self.state, batch)
            self.counts["learned"] += len(rows)
            learned.append(Learned([row.entry.number for row in rows], losses, correct, drift))
        return learned

    @property
    def waiting(self) -> int:
        """Examples that wait for their labels."""
        return len(self._late) + len(self._open)

    def saved(self) -> dict[str, Any]:
        """Everything beside the state, as JSON; nothing is due."""
        return {
            "counts": self.counts,
            "measures": self.measures.saved(),
            "time": None if self._time == -float("inf") else self._time,
            "alarm": self._alarm,
            "waiting": [_as_json(each) for each in (*self._late, *self._open.values())],
        }

    def restore(
        self,
        state: LearnerState,
        saved: dict[str, Any],
        read: Callable[[int], Any],
        losses: Iterable[float],
    ) -> None:
        """Takes up a state and what `saved` gave.

        Args:
            state: of the same examples.
            saved: what `saved` gave.
            read: what the line at an offset says.
            losses: all that the detector has met, in order.
        """
        self.state, self.counts = state, dict(saved["counts"])
        self.measures.restore(saved["measures"])
        self._time = -float("inf") if saved["time"] is None else saved["time"]
        for loss in losses if self._detector else ():
            self._detector.update(loss)
        self._alarm = saved["alarm"]
        for number, offset, place, loss, prediction, scores in saved["waiting"]:
            example = read(offset)
            known = np.frombuffer(base64.b64decode(scores), np.float32) if scores else None
            entry = Entry(number, offset, example)
            waiting = _Waiting(entry, example, place, loss, prediction, known)
            if loss is None:
                self._open[example.identity] = waiting
            else:
                self._late.append(waiting)

    def _feed(self, losses: Sequence[float]) -> None:
        self._alarm = False
        for loss in losses if self._detector else ():
            self._alarm |= bool(self._detector.update(loss))
        self.counts["alarms"] += self._alarm

    def _rows(self, examples: Sequence[Example]) -> list[dict[str, Any]]:
        outputs = jax.device_get(self._predict(self.state, self._batch(examples)))
        kept = {name: leaf[: len(examples)] for name, leaf in outputs.items()}
        if not all(np.isfinite(kept[name]).all() for name in {"losses", "scores"} & set(kept)):
            raise Diverged(
                f"A prediction is not a number after {self.counts['learned']} examples were "
                f"learned: {REMEDY}"
            )
        return [{name: leaf[row] for name, leaf in kept.items()} for row in range(len(examples))]

    def _predicted(self, entry: Entry, example: Example, row: dict[str, Any]) -> dict[str, Any]:
        self.counts["examples"] += 1
        loss = float(row["losses"]) * float(row.get("tokens", 1)) if example.labelled else None
        late = self.classes is not None and not example.labelled
        waiting = _Waiting(
            entry,
            example,
            self.counts["examples"],
            loss,
            None if self.classes is None else int(row["predictions"]),
            np.asarray(row["scores"]) if late else None,
        )
        if example.labelled:
            self._late.append(waiting)
        elif example.identity is None:
            self.counts["unlabelled"] += 1
        else:
            again = self._open.pop(example.identity, None)
            self.counts["dropped"] += again is not None
            self._open[example.identity] = waiting
        found: dict[str, Any] = {"line": entry.number}
        if example.identity is not None:
            found["id"] = example.identity
        if self.classes is not None:
            found["prediction"] = waiting.prediction
            found["probability"] = float(row["probabilities"])
        return {**found, **_told(waiting)} if example.labelled else found

    def _labelled(self, entry: Entry, label: Label) -> dict[str, Any]:
        waiting = self._open.pop(label.identity, None)
        found = {"line": entry.number, "id": label.identity}
        if waiting is None:
            self.counts["unmatched"] += 1
            return {**found, "unmatched": True}
        assert waiting.scores is not None
        waiting.example = waiting.example.with_target(label.target)
        waiting.loss, waiting.scores = -float(waiting.scores[label.target]), None
        self._due.append(waiting)
        return {**found, "of": waiting.entry.number, **_told(waiting)}

    def _release(self, time: float | None) -> None:
        """Those whose delay is over are due, none before those that came before it."""
        self._time = self._time if time is None else max(self._time, time)
        while self._late:
            first = self._late[0]
            if self._timing.delay_seconds:
                known = (first.example.time or 0.0) + self._timing.delay_seconds <= self._time
            else:
                known = first.place + self._timing.delay <= self.counts["examples"]
            if not known:
                return
            self._due.append(self._late.popleft())

    def _drop(self) -> None:
        while self.waiting > self._timing.waiting:
            opened = next(iter(self._open.values()), None)
            if opened is None or (self._late and self._late[0].place < opened.place):
                self._late.popleft()
            else:
                del self._open[opened.example.identity]
            self.counts["dropped"] += 1

    def _batch(self, examples: Sequence[Example]) -> Batch:
        """All of one size: what is missing is the last example again, with a mask of 0."""
        missing = self._timing.batch - len(examples)
        last = examples[-1].leaves
        filling = [{**last, "mask": np.zeros_like(last["mask"])}] * missing
        batch = stack([*(each.leaves for each in examples), *filling])
        if self._drifts:
            batch["drift"] = np.full(self._timing.batch, self._alarm, np.int32)
        return batch

    def _counted(self, name: str, function: Callable) -> Callable:
        def traced(*arguments):
            self.traces[name] += 1
            return function(*arguments)

        return traced


def _told(waiting: _Waiting) -> dict[str, Any]:
    """What is known once the label is."""
    result = waiting.result()
    known: dict[str, Any] = {"loss": result.loss / max(result.targets, 1)}
    if result.correct is not None:
        known |= {"target": int(waiting.example.leaves["targets"]), "correct": result.correct}
    return known


def _as_json(waiting: _Waiting) -> list[Any]:
    scores = None
    if waiting.scores is not None:
        scores = base64.b64encode(waiting.scores.astype(np.float32).tobytes()).decode()
    entry = waiting.entry
    return [entry.number, entry.offset, waiting.place, waiting.loss, waiting.prediction, scores]


def _acts_at_boundaries(functions: Learner, state: Any, batch: Any) -> bool:
    """Whether consolidate changes anything: what it leaves alone goes through the trace as it is."""

    def consolidate(strategy, params, state, batches):
        found = functions.consolidate(state._replace(strategy=strategy, params=params), batches)
        return found.strategy, found.params

    batches = jax.tree.map(lambda leaf: leaf.update(shape=(1, *leaf.shape)), batch)
    traced = jax.make_jaxpr(consolidate)(state.strategy, state.params, state, batches).jaxpr
    return any(new is not old for new, old in zip(traced.outvars, traced.invars, strict=False))
