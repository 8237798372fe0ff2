"""What is predicted and what is learned from, in which order: the host's side, without files."""

import collections
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jcl import memory
from jcl.core import lift
from jcl.data import Batch, Example, Label, stack
from jcl.errors import REMEDY, Diverged, InputError
from jcl.experiment import Experiment, check_alarms, check_memories
from jcl.learner import Learner, LearnerState, check_needs, learner
from jcl.online.measures import Measures
from jcl.online.step import prequential
from jcl.online.waiting import Entry, Queues, Timing, Waiting
from jcl.program import first_state


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
        InputError: the strategy acts at boundaries, needs to know the task or waits for alarms that
            nobody gives, or the model and the examples do not fit each other.

    Attributes:
        timing: as given.
        state: the learner's.
        abstract: its shapes.
        classes: of the model; None of a language model.
        measures: of all examples whose labels are known.
        traces: how often `predict` and `learn` were traced.
    """

    def __init__(self, experiment: Experiment, example: Example, timing: Timing):
        strategy = lift(experiment.strategy)
        self._experiment, self._example, self.timing = experiment, example, timing
        self._detector = experiment.drift() if experiment.drift else None
        self._alarm = False
        functions = learner(experiment.loss_fn, strategy)
        batch = self._batch([example])
        check_needs(strategy, batch)
        check_alarms(strategy, batch)
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
        self._predict: Any = jax.jit(self._counted("predict", pure.predict))
        self._learn: Any = jax.jit(self._counted("learn", pure.learn), donate_argnums=0)
        self.state: Any = None
        self.measures = Measures(timing.window, classes=self.classes is not None)
        self._counts = dict.fromkeys(("examples", "learned", "unlabelled", "unmatched"), 0)
        self._alarms, self._queues = 0, Queues(timing)

    @property
    def counts(self) -> dict[str, int]:
        """examples (predicted), learned, unlabelled (no label can come), unmatched (labels of no
        example that waits), waiting, dropped (of those that waited), alarms (how
        often the detector gave one)."""
        queues = {"waiting": len(self._queues), "dropped": self._queues.dropped}
        return {**self._counts, **queues, "alarms": self._alarms}

    def compile(self) -> None:
        """Compiles both functions, so that no line waits for that."""
        batch = self._batch([self._example])
        self._predict = self._predict.lower(self.abstract, batch).compile()
        self._learn = self._learn.lower(self.abstract, batch).compile()

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
            self._queues.release(self._counts["examples"], entry.said.time)
        return told

    def learn(self) -> list[Learned]:
        """Learns from everything whose label is known by now, and says what that was."""
        learned, due = [], self._queues.due
        while due:
            rows = [due.popleft() for _ in range(min(len(due), self.timing.batch))]
            batch = self._batch([row.example for row in rows])
            results = [row.result() for row in rows]
            losses = [result.loss / max(result.targets, 1) for result in results]
            correct = [each.correct for each in results if each.correct is not None]
            drift = None if self._detector is None else int(self._alarm)
            for result in results:
                self.measures.add(result)
            if self._detector is not None:
                alarms = sum(bool(self._detector.update(loss)) for loss in losses)
                self._alarm, self._alarms = alarms > 0, self._alarms + alarms
            self.state, _ = self._learn(self.state, batch)
            self._counts["learned"] += len(rows)
            learned.append(Learned([row.line for row in rows], losses, correct, drift))
        return learned

    def saved(self) -> dict[str, Any]:
        """Everything beside the state, as JSON; nothing is due."""
        return {
            "counts": self._counts,
            "measures": self.measures.saved(),
            "alarm": self._alarm,
            "alarms": self._alarms,
            "queues": self._queues.saved(),
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
        self.state, self._counts = state, dict(saved["counts"])
        self.measures.restore(saved["measures"])
        self._queues.restore(saved["queues"], read)
        if self._detector is not None:
            for loss in losses:
                self._detector.update(loss)
        self._alarm, self._alarms = saved["alarm"], saved["alarms"]

    def _rows(self, examples: Sequence[Example]) -> list[dict[str, Any]]:
        outputs = jax.device_get(self._predict(self.state, self._batch(examples)))
        kept = {name: leaf[: len(examples)] for name, leaf in outputs.items()}
        if not all(np.isfinite(kept[name]).all() for name in {"losses", "scores"} & set(kept)):
            raise Diverged(
                f"A prediction is not a number once {self._counts['learned']} examples were "
                f"learned: {REMEDY}"
            )
        return [{name: leaf[row] for name, leaf in kept.items()} for row in range(len(examples))]

    def _predicted(self, entry: Entry, example: Example, row: dict[str, Any]) -> dict[str, Any]:
        self._counts["examples"] += 1
        found: dict[str, Any] = {"line": entry.number}
        if example.identity is not None:
            found["id"] = example.identity
        prediction = None
        if self.classes is not None:
            prediction = found["prediction"] = int(row["predictions"])
            found["probability"] = float(row["probabilities"])
        place = (entry.number, entry.offset, self._counts["examples"], example, prediction)
        if example.labelled:
            loss = float(row["losses"]) * float(row.get("tokens", 1))
            self._queues.put(waiting := Waiting(*place, loss, None))
            return {**found, **_told(waiting)}
        if example.identity is None:
            self._counts["unlabelled"] += 1
        else:
            self._queues.put(Waiting(*place, None, np.asarray(row["scores"])))
        return found

    def _labelled(self, entry: Entry, label: Label) -> dict[str, Any]:
        waiting = self._queues.label(label)
        found = {"line": entry.number, "id": label.identity}
        if waiting is None:
            self._counts["unmatched"] += 1
            return {**found, "unmatched": True}
        return {**found, "of": waiting.line, **_told(waiting)}

    def _batch(self, examples: Sequence[Example]) -> Batch:
        """All of one size: what is missing is the last example again, with a mask of 0."""
        last = examples[-1].leaves
        filling = {**last, "mask": np.zeros_like(last["mask"])}
        missing = [filling] * (self.timing.batch - len(examples))
        batch = stack([*(each.leaves for each in examples), *missing])
        if self._detector is not None:
            batch["drift"] = np.full(self.timing.batch, self._alarm, np.int32)
        return batch

    def _counted(self, name: str, function: Callable) -> Callable:
        def traced(*arguments):
            self.traces[name] += 1
            return function(*arguments)

        return traced


def _told(waiting: Waiting) -> dict[str, Any]:
    """What is known once the label is."""
    result = waiting.result()
    known: dict[str, Any] = {"loss": result.loss / max(result.targets, 1)}
    if result.correct is not None:
        known |= {"target": int(waiting.example.leaves["targets"]), "correct": result.correct}
    return known


def _acts_at_boundaries(functions: Learner, state: Any, batch: Any) -> bool:
    """Whether consolidate changes anything: what it leaves alone passes the trace as it is."""

    def consolidate(strategy, params, state, batches):
        found = functions.consolidate(state._replace(strategy=strategy, params=params), batches)
        return found.strategy, found.params

    batches = jax.tree.map(lambda leaf: leaf.update(shape=(1, *leaf.shape)), batch)
    traced = jax.make_jaxpr(consolidate)(state.strategy, state.params, state, batches).jaxpr
    return any(new is not old for new, old in zip(traced.outvars, traced.invars, strict=False))
