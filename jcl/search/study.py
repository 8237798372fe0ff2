"""A study of Optuna's: what is tried next, who does it, and what came of it.

Trials that are trained together make a group, which has a run folder and the lock of whoever trains
it. What is asked of the sampler depends on the seed, the trial's number and the trials before it
alone, so that a search that was killed goes on as if nothing had happened. The sampler is asked on
a copy of the study in memory, and a trial comes into the storage whole: what it tries, its group
and whose it is.
"""

import contextlib
import copy
import fcntl
import os
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jcl.errors import InputError
from jcl.space import Space

PRUNERS = ("median", "halving", "none")


class Group:
    """Trials that are trained together, by this process until it is closed.

    Attributes:
        label: of their run folder, the number of the first.
        numbers: of the trials.
        params: what each tries.
        going: the numbers of those that are not told yet.
    """

    def __init__(self, label: str, trials: Sequence[Any], lock: int):
        self.label, self._lock = label, lock
        self.numbers = [trial.number for trial in trials]
        self.params = [dict(trial.params) for trial in trials]
        self.going = [trial.number for trial in trials if not trial.state.is_finished()]
        self.ids = {trial.number: trial._trial_id for trial in trials}

    def close(self) -> None:
        """Lets go of the lock."""
        os.close(self._lock)


class Study:
    """What is known of all trials, in a storage that several machines may share.

    Args:
        name: in the storage.
        storage: the path of a journal, or the URL of a database, such as sqlite:///study.db.
        folder: for the run folders, which all see who work on this study, or each its own.
        spaces: of the fields that are chosen.
        together: the fields in which the trials of a group may differ.
        size: trials a group.
        higher_is_better: the direction of what is told.
        pruner: one of PRUNERS.
        seed: of what is tried.

    Raises:
        InputError: Optuna is not installed, or the storage cannot be opened.
    """

    def __init__(
        self,
        name: str,
        storage: str,
        folder: Path,
        spaces: Mapping[str, Space],
        *,
        together: Sequence[str],
        size: int,
        higher_is_better: bool,
        pruner: str,
        seed: int,
    ):
        self._optuna = optuna = imported()
        self._folder, self._together, self._size, self._seed = folder, together, size, seed
        self._direction = "maximize" if higher_is_better else "minimize"
        self._distributions = {field: _distribution(space) for field, space in spaces.items()}
        self._place = _place(folder)
        with self.locked(), _quiet():
            try:
                self._study = optuna.create_study(
                    storage=_storage(storage),
                    study_name=name,
                    direction=self._direction,
                    sampler=optuna.samplers.RandomSampler(seed=0),  # is never asked
                    pruner=_pruner(pruner),
                    load_if_exists=True,
                )
            except Exception as error:  # of the storage's own library
                raise InputError(
                    f"--storage {storage} cannot be opened ({type(error).__name__}: {error}): give "
                    "the path of a journal or the URL of a database, such as sqlite:///study.db."
                ) from error

    def compare(self, identity: Mapping[str, Any]) -> None:
        """Notes what makes this study, or passes one that it was begun with.

        Raises:
            InputError: it was begun with another.
        """
        with self.locked():
            found = self._study.user_attrs.get("jcl")
            if found is None:
                self._study.set_user_attr("jcl", dict(identity))
                return
        differing = [
            f"{name} was {found.get(name)!r} and is now {identity.get(name)!r}"
            for name in sorted(found.keys() | identity.keys())
            if found.get(name) != identity.get(name)
        ]
        if differing:
            raise InputError(
                f"The study was begun otherwise: {'; '.join(differing)}. Give the same settings to "
                "go on with it, or --study for another."
            )

    @property
    def trials(self) -> list[Any]:
        """All trials as Optuna has them, in their order."""
        return self._study.get_trials(deepcopy=False)

    @contextlib.contextmanager
    def next(self, trials: int) -> Iterator[Group | None]:
        """The group to train now: one that was left in the middle, or a new one where the study has
        fewer trials than asked for; None where there is nothing to do. It is this process's until
        the end of the context."""
        with self.locked():
            group = self._left() or self._new(trials)
        try:
            yield group
        finally:
            if group is not None:
                group.close()

    def report(self, group: Group, number: int, stage: int, value: float) -> None:
        """Notes what a trial has reached after a stage, from 1; again changes nothing."""
        if stage not in self.trials[number].intermediate_values:
            self._trial(group, number).report(value, stage)

    def hopeless(self, group: Group, number: int) -> bool:
        """Whether the pruner would rather not go on with a trial."""
        return self._trial(group, number).should_prune()

    def tell(
        self, group: Group, number: int, state: str, value: float | None = None, **notes: Any
    ) -> None:
        """Ends a trial.

        Args:
            group: of the trial.
            number: of the trial.
            state: "finished", which alone has a value, "pruned", "diverged" or "failed".
            value: what it has reached.
            **notes: what to keep beside it, as JSON knows it.
        """
        states = self._optuna.trial.TrialState
        for name, note in notes.items():
            self._trial(group, number).set_user_attr(name, note)
        ends = {"finished": states.COMPLETE, "pruned": states.PRUNED}
        with _quiet():
            self._study.tell(number, value, state=ends.get(state, states.FAIL))
        group.going.remove(number)

    def _trial(self, group: Group, number: int) -> Any:
        return self._optuna.trial.Trial(self._study, group.ids[number])

    def _left(self) -> Group | None:
        """A group of this folder whose trainer has ended before it, made whole."""
        for label in dict.fromkeys(
            trial.user_attrs["folder"]
            for trial in self.trials
            if trial.user_attrs.get("place") == self._place and not trial.state.is_finished()
        ):
            if (lock := self._claim(label)) is not None:
                return self._filled(label, lock)
        return None

    def _new(self, trials: int) -> Group | None:
        number = len(self.trials)
        label = f"{number:04d}"
        if number >= trials or (lock := self._claim(label)) is None:
            return None
        return self._filled(label, lock)

    def _filled(self, label: str, lock: int) -> Group:
        """The group, with new trials until it has its size."""
        optuna, group = self._optuna, self._of(label)
        with _quiet(), contextlib.ExitStack() as stack:
            stack.callback(os.close, lock)
            copy = optuna.create_study(direction=self._direction)
            copy.add_trials([self._seen(trial) for trial in self.trials])
            shared = self._shared(group[0]) if group else {}
            for _ in range(self._size - len(group)):
                entropy = np.random.SeedSequence((self._seed, len(copy.trials)))
                sampler = optuna.samplers.TPESampler(
                    seed=int(entropy.generate_state(1)[0]), constant_liar=True
                )
                if shared:
                    sampler = optuna.samplers.PartialFixedSampler(shared, sampler)
                copy.sampler = sampler
                asked = copy.ask(self._distributions)
                shared = self._shared(asked)
                self._study.add_trial(
                    optuna.trial.create_trial(
                        state=optuna.trial.TrialState.RUNNING,
                        params=asked.params,
                        distributions=self._distributions,
                        user_attrs={"folder": label, "place": self._place},
                    )
                )
            stack.pop_all()
        return Group(label, self._of(label), lock)

    def _of(self, label: str) -> list[Any]:
        whose = {"place": self._place, "folder": label}
        return [trial for trial in self.trials if whose.items() <= trial.user_attrs.items()]

    def _shared(self, trial: Any) -> dict[str, Any]:
        """What all trials of a group have in common, once there is a first."""
        together = self._together if self._size > 1 else self._distributions
        return {field: each for field, each in trial.params.items() if field not in together}

    def _seen(self, trial: Any) -> Any:
        """A trial as the sampler sees it: what has diverged counts as the worst of all."""
        if "diverged" not in trial.user_attrs:
            return trial
        return self._optuna.trial.create_trial(
            state=self._optuna.trial.TrialState.PRUNED,
            params=trial.params,
            distributions=trial.distributions,
        )

    def _claim(self, label: str) -> int | None:
        """The lock of a group, None where another process has it."""
        lock = os.open(self._folder / f"{label}.lock", os.O_CREAT | os.O_RDWR, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            return None
        return lock

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps all others of this folder waiting."""
        lock = os.open(self._folder / "lock", os.O_CREAT | os.O_RDWR, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


def imported() -> Any:
    """Optuna.

    Raises:
        InputError: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise InputError(
            f'jcl search needs Optuna ({error}): install it with pip install "jcl[search]".'
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _storage(text: str) -> Any:
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    return RDBStorage(text) if "://" in text else JournalStorage(JournalFileBackend(text))


def _pruner(name: str) -> Any:
    import optuna

    class Median(optuna.pruners.MedianPruner):
        """Of the last stage alone: Optuna's compares the best of all stages so far, and the average
        over the tasks seen is normally highest after the first."""

        def prune(self, study: Any, trial: Any) -> bool:
            trial, last = copy.copy(trial), trial.last_step
            if last is not None:
                trial.intermediate_values = {last: trial.intermediate_values[last]}
            return super().prune(study, trial)

    return {
        "median": lambda: Median(n_startup_trials=5, n_warmup_steps=0),
        "halving": lambda: optuna.pruners.SuccessiveHalvingPruner(
            min_resource=1, reduction_factor=2
        ),
        "none": optuna.pruners.NopPruner,
    }[name]()


def _distribution(space: Space) -> Any:
    import optuna

    if space.values:
        return optuna.distributions.CategoricalDistribution(space.values)
    kind = "FloatDistribution" if space.number else "IntDistribution"
    return getattr(optuna.distributions, kind)(space.low, space.high, log=space.log)


def _place(folder: Path) -> str:
    """What all who see the folder know it by, and nobody else."""
    path = folder / "place"
    if not path.exists():
        partial = folder / f"place.{os.getpid()}.partial"
        partial.write_text(uuid.uuid4().hex)
        with contextlib.suppress(FileExistsError):
            os.link(partial, path)  # of two that come at once the first
        partial.unlink()
    return path.read_text()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what Optuna says of parts of it that are still to change."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
