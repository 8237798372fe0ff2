"""The compiled functions of a run, and the batches and states that they work on."""

import collections
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jcl import data, grid, memory
from jcl.errors import InputError
from jcl.experiment import (
    Experiment,
    check,
    check_memories,
    evaluation_batches,
    stage_name,
    stage_steps,
)
from jcl.grid import Replica
from jcl.learner import Learner, LearnerState, by_index, learner, over_batches, over_seeds
from jcl.sharding import Placement, Replicas


class Call(NamedTuple):
    """One call of a compiled function: (state, *arguments) -> state, metrics of its last step."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    steps: int
    tokens: int  # of one step


class Program:
    """The compiled functions of a run, and the batches and states they work on.

    Args:
        replicas: what it trains together. The loss, the strategy and the measure of the first serve
            all; where their settings differ they are made of the settings as traced numbers.
        mesh: see `Placement`.
        sharing: how several replicas share the devices: "pmap" gives every device its own, "vmap"
            computes all of them together, "map" one after the other. "auto" is "pmap" where every
            device gets as many. The replicas of one device share it as `seeds_by` says.

    Raises:
        InputError: the replicas cannot share one program, or cannot share the devices so.
    """

    def __init__(
        self, replicas: Sequence[Replica], mesh: str | None = None, *, sharing: Replicas = "auto"
    ):
        self.experiments = experiments = [replica.experiment for replica in replicas]
        self.replicas, first = replicas, experiments[0]
        self._batch = _check_all(replicas)
        self._test_size = first.evaluation_batch_size or first.batch_size
        self._placement = Placement(
            first.batch_size,
            self._test_size,
            seeds=len(experiments),
            mesh=mesh,
            replicas=sharing,
        )
        self.mesh = self._placement.mesh
        self._own = [experiments[seed] for seed in self._placement.seeds()]
        # Where the replicas differ in them, they stand beside every batch: (settings, batch).
        settings = grid.stacked(replicas) if len(replicas) > 1 else {}
        self._settings = jax.device_put(settings, self._placement.batch(1, whole=True))
        plain, functions = self._of_settings(self._learner), self._of_settings(self._functions)
        if len(experiments) > 1:
            by = sharing if sharing in ("vmap", "map") else first.seeds_by or _quickest()
            plain, functions = over_seeds(plain), over_seeds(functions, by=by)
        with memory.shapes_alone():
            # Behind a function of its own: `initial`, which needs the files, is traced anew.
            shapes = jax.eval_shape(lambda: self._initial())
        place = self._placement.state(shapes)
        self.abstract = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            shapes,
            place,
        )
        self.whole = self._placement.whole(shapes)
        self.traces = collections.Counter()  # of each compiled function
        fetched = self._placement.fetched
        self._step = self._compiled("step", functions.step, (place, fetched))
        self.consolidate = self._compiled("consolidate", functions.consolidate, place)
        self._evaluate = self._compiled("evaluate", functions.evaluate, fetched, donated=())
        self._tests: list[Any] = []  # of every task, once they are held on the device
        spread = self._placement.spread
        probes = {name: spread(probe) for name, probe in first.probes.items()}
        probe = functools.partial(_probe, probes)
        probe = jax.vmap(probe) if len(experiments) > 1 else probe
        self._probe = jax.jit(probe, out_shardings=fetched)
        finite = _all_finite if len(experiments) == 1 else jax.vmap(_all_finite, in_axes=(_OWN,))
        self._finite = jax.jit(finite, out_shardings=fetched)
        # Traced on shapes, so that a strategy refuses what it must before anything is compiled.
        if self._settings:
            self._check_settings(plain)
        else:
            jax.eval_shape(plain.step, self.abstract, self._abstract_batch())
            boundary = self._abstract_batch(first.boundary_batches)
            jax.eval_shape(functions.consolidate, self.abstract, boundary)

    def _learner(self, experiment: Experiment) -> Learner:
        """Of one replica."""
        spread = self._placement.spread
        return learner(
            spread(experiment.loss_fn),
            experiment.strategy,
            measure=spread(experiment.measure.function),
        )

    def _functions(self, experiment: Experiment) -> Learner:
        """Of one replica; they work on the experiment's batches as they are handed over."""
        functions = self._learner(experiment)
        if not experiment.device_data:
            return functions
        return functions._replace(
            step=by_index(functions.step), evaluate=over_batches(functions.evaluate)
        )

    def _of_settings(self, make: Callable[[Experiment], Learner]) -> Learner:
        """What `make` makes, of the first experiment or, inside the trace, of the traced settings:
        then it takes (settings, batch) for a batch."""
        plain, remake = make(self.experiments[0]), self.replicas[0].remake
        if not self._settings or remake is None:
            return plain

        def of(name):
            def function(state, given):
                settings, batch = given
                return getattr(make(remake(settings)), name)(state, batch)

            return function

        return Learner(plain.init, *map(of, Learner._fields[1:]))

    def _check_settings(self, functions: Learner) -> None:
        """Traces everything on shapes, with the settings as traced numbers.

        Raises:
            InputError: a field of the grid is used as more than a number.
        """
        first = self.experiments[0]
        test = next(iter(evaluation_batches(first, first.stream.tasks[0])))
        batch, boundary = self._abstract_batch(), self._abstract_batch(first.boundary_batches)

        def trace(functions, *settings):
            for function, of in (
                (functions.step, batch),
                (functions.consolidate, boundary),
                (functions.evaluate, self._abstract_batch(of=test)),
            ):
                given = (*settings, of) if settings else of
                shapes = jax.eval_shape(function, self.abstract, given)
                state = shapes[0] if function is functions.step else shapes
                if function is not functions.evaluate and _kinds(state) != _kinds(self.abstract):
                    raise InputError("the learner's state would change in shape or type")

        def fault(*settings):
            try:
                trace(functions, *settings)
            except Exception as error:  # of the config or a library, which meet a tracer
                return error

        error = fault(self._settings)
        if error is None:
            return
        alone = self._learner(first)
        trace(over_seeds(alone) if len(self.experiments) > 1 else alone)  # what is wrong anyway
        fields = [field for field, each in self._settings.items() if fault({field: each})]
        names = " and ".join(fields or self._settings)
        raise InputError(
            f"--grid: {names} cannot be a number among others of one program, since the config or "
            f"what it builds reads it to choose a structure, such as a shape or a branch: run each "
            f"value by itself, with its own --out. (With a traced number: {_first_line(error)})"
        ) from error

    def _abstract_batch(self, *leading: int, of: Any = None) -> Any:
        seeds = (len(self.experiments),) if len(self.experiments) > 1 else ()
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((*seeds, *leading, *leaf.shape), leaf.dtype),
            of or self._batch,
        )

    def lowered_step(self) -> tuple[Any, Any]:
        """The step on shapes alone, for who asks what it would take, and its abstract batch."""
        batch = self._abstract_batch()
        sharding = self._placement.batch(len(self.experiments) > 1)
        placed = jax.tree.map(lambda leaf: leaf.update(sharding=sharding), batch)
        return self._step.lower(self.abstract, placed), batch

    def initial(self) -> LearnerState:
        """The state before the first step.

        Raises:
            InputError: it begins with a memory that does not fit, or whose file is not there.
        """
        place = self._placement.state(self.abstract)
        # Behind a function of its own: after `turn_to` that of the settings before would be found.
        state = jax.jit(lambda: self._initial(), out_shardings=place)()
        if _kinds(state) != _kinds(self.abstract):
            raise _apart(self.replicas[0], self.replicas[-1], "the shapes of the learner's state")
        check_memories(self.experiments[0], state.strategy)
        return state

    def turn_to(self, replicas: Sequence[Replica]) -> None:
        """Takes other values of the same settings; nothing but the first state is compiled anew.

        Args:
            replicas: as many as before, of the same config but for those values.

        Raises:
            InputError: they are other, or cannot share the program.
        """
        if len(replicas) != len(self.replicas) or any(
            each.setting.keys() != self._settings.keys() for each in replicas
        ):
            raise InputError("a program takes other values of its own settings alone.")
        _check_all([self.replicas[0], *replicas])
        self.replicas, self.experiments = replicas, [each.experiment for each in replicas]
        self._own = [self.experiments[seed] for seed in self._placement.seeds()]
        self._tests = []
        place = self._placement.batch(1, whole=True)
        self._settings = jax.device_put(grid.stacked(replicas), place)

    def calls(self, stage: int, start: int, stop: int) -> Iterator[Call]:
        """What takes the state from one step of a stage to another."""
        first, several = self.experiments[0], len(self.experiments) > 1
        if not first.device_data:
            sources = [
                data.prefetch(
                    self._shuffled(experiment, stage, "train"),
                    start,
                    stop,
                    name=stage_name(experiment, stage),
                )
                for experiment in self._own
            ]
            for batches in zip(*sources, strict=True):
                batch = self._place(batches, size=first.batch_size)
                yield Call(self._step, (batch,), 1, batch["inputs"].size)
            return
        stages = [experiment.stream.stages[stage] for experiment in self._own]
        walks = [
            data.walk(source, first.batch_size, self._seed(experiment, stage, "train"))
            for experiment, source in zip(self._own, stages, strict=True)
        ]
        longest = max(len(source) for each in self.experiments for source in each.stream.stages)
        held = [_pad(data.held(source), longest) for source in stages]  # one shape for all stages
        arrays = self._place(held, size=None)
        tokens = self._batch["inputs"].size * len(self.experiments)
        for begin in range(start, stop, first.log_every):
            number = min(first.log_every, stop - begin)
            indices = np.zeros((len(walks), first.log_every, first.batch_size), np.int32)
            for seed, walk in enumerate(walks):
                indices[seed, :number] = [walk[begin + offset] for offset in range(number)]
            indices = indices if several else indices[0]
            if not self._placement.alone:
                indices = self._placement.place(indices, size=None)
            yield Call(self._step, ((arrays, indices),), number, tokens)

    def boundary_batches(self, stage: int) -> Any:
        """[number, batch, ...] of a stage's examples in an order of their own."""
        number = self.experiments[0].boundary_batches
        stacked = []
        for experiment in self._own:
            shuffled = self._shuffled(experiment, stage, "boundary")
            stacked.append(data.stack([shuffled[index] for index in range(number)]))
        return self._place(stacked, leading=1, size=self.experiments[0].batch_size)

    def evaluate(self, state: LearnerState) -> list[list[float]]:
        """One row of the matrix: the measure of every seed on every task, [seed][task]."""
        row = []
        if self.experiments[0].device_data:
            self._tests = self._tests or self._held_tests()
            totals = jax.device_get([self._evaluate(state, test) for test in self._tests])
            ratios = [np.atleast_1d(np.divide(*total)) for total in totals]
            return np.transpose(ratios).tolist()
        for number in range(len(self.experiments[0].stream.tasks)):
            sources = self._tested(number)
            sums = [
                self._evaluate(state, self._place(batch, size=self._test_size))
                for batch in zip(*sources, strict=True)
            ]
            totals = np.sum(np.asarray(jax.device_get(sums), np.float64), axis=0)
            row.append(np.atleast_1d(totals[0] / totals[1]).tolist())
        return np.transpose(row).tolist()

    def probe(self, state: LearnerState) -> list[dict[str, list[float]]]:
        """What the probes say on each task's first test batch, {name: one number a seed}."""
        found = []
        for number in range(len(self.experiments[0].stream.tasks)):
            values = {}
            if self.experiments[0].probes:
                first = [next(iter(source)) for source in self._tested(number)]
                batch = self._place(first, size=self._test_size)
                values = jax.device_get(self._probe(state.params, batch))
            found.append({name: np.atleast_1d(each).tolist() for name, each in values.items()})
        return found

    def out_of_memory(self, error: Exception) -> str:
        """What to say of the error by which a device refuses to hold more."""
        sizes = sorted(_sizes(self.abstract).items(), key=lambda item: -item[1])
        shown = ", ".join(f"{name} {size:,} bytes" for name, size in sizes[:5])
        return (
            f"A device ran out of memory ({str(error).splitlines()[0][:300]}). Of the run's state "
            f"it holds {sum(size for _, size in sizes):,} bytes, the largest being {shown}; "
            "activations and gradients come on top. Split the state over more devices (--mesh "
            "fsdp=2), keep what enters a block alone (remat=True in the model's config), restrict "
            "a strategy to some params (jcl.only), compute the logits in chunks "
            "(jcl.losses.causal_lm(model, chunk=...)), or take a smaller batch or memory. "
            "`jcl plan` says what a step would take."
        )

    def finite(self, state: LearnerState) -> Any:
        """Of which replicas the state is finite, so that none that is not is ever saved."""
        return jax.device_get(self._finite(state))

    def _initial(self) -> LearnerState:
        own = self._learner(self.experiments[0])
        states = [
            first_state(each, self._learner(each) if self._settings else own, self._batch)
            for each in self.experiments
        ]
        if len(states) == 1:
            return states[0]
        for replica, state in zip(self.replicas, states, strict=True):
            if _kinds(state) != _kinds(states[0]):
                raise _apart(self.replicas[0], replica, "the shapes of the learner's state")
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        return stacked._replace(
            step=states[0].step, task_step=states[0].task_step, task_steps=states[0].task_steps
        )

    def _seed(self, experiment: Experiment, stage: int, purpose: str) -> int:
        entropy = (experiment.seed, stage, ("train", "boundary").index(purpose))
        return int(np.random.SeedSequence(entropy).generate_state(1)[0])

    def _shuffled(self, experiment: Experiment, stage: int, purpose: str) -> Any:
        seed = self._seed(experiment, stage, purpose)
        source, size = experiment.stream.stages[stage], experiment.batch_size
        rows, by_epoch = self._placement.rows(size), purpose == "train"
        return data.training_batches(source, size, seed, rows=rows, by_epoch=by_epoch)

    def _tested(self, number: int) -> list[Any]:
        """This process's part of the test batches of a task, for each of its seeds."""
        rows = self._placement.rows(self._test_size)
        return [evaluation_batches(each, each.stream.tasks[number], rows) for each in self._own]

    def _held_tests(self) -> list[Any]:
        """Every task's test batches, [number, batch, ...] with one number for all tasks."""
        tasks = range(len(self.experiments[0].stream.tasks))
        every = [[list(batches) for batches in self._tested(task)] for task in tasks]
        most = max(len(batches) for seeds in every for batches in seeds)
        for seeds in every:
            for batches in seeds:
                empty = {**batches[-1], "mask": np.zeros_like(batches[-1]["mask"])}
                batches.extend([empty] * (most - len(batches)))
        return [
            self._place([data.stack(batches) for batches in seeds], leading=1, size=self._test_size)
            for seeds in every
        ]

    def _place(self, batches: Any, leading: int = 0, *, size: int | None) -> Any:
        """One batch of each of this process's seeds -> one batch on the devices of all processes,
        of the size given; without one it is not split over devices."""
        several = len(self.experiments) > 1
        batch = data.stack(batches) if several else batches[0]
        return self._placement.place(batch, leading + several, size=size)

    def _compiled(
        self, name: str, function: Callable, place: Any, donated: int | tuple[int, ...] = 0
    ) -> Callable:
        """The function for all devices, with a place for its results; it is given its state."""
        function = self._placement.deal(function)

        def traced(*arguments):
            self.traces[name] += 1
            return function(*arguments)

        compiled = jax.jit(traced, donate_argnums=donated, out_shardings=place)
        if not self._settings:
            return compiled
        return lambda state, batch: compiled(state, (self._settings, batch))


def first_state(experiment: Experiment, functions: Learner, batch: Any) -> LearnerState:
    """The state of one seed before its first step."""
    key_params, key_run = jax.random.split(jax.random.key(experiment.seed))
    return functions.init(key_run, experiment.model.init(key_params), batch)


def _quickest() -> Literal["vmap", "map"]:
    """How seeds share a device: matmuls of several seeds are no faster together on a CPU."""
    return "map" if jax.default_backend() == "cpu" else "vmap"


def _probe(probes: dict[str, Callable], params: Any, batch: Any) -> dict[str, jax.Array]:
    return {name: probe(params, batch) for name, probe in probes.items()}


def _pad(arrays: Any, length: int) -> Any:
    """The arrays with zeros behind, which no index reaches."""
    return {
        key: np.concatenate([leaf, np.zeros((length - len(leaf), *leaf.shape[1:]), leaf.dtype)])
        if len(leaf) < length
        else leaf
        for key, leaf in arrays.items()
    }


_OWN: Any = LearnerState(0, 0, 0, None, None, None)  # pyright: ignore[reportArgumentType]


def _all_finite(state: LearnerState) -> jax.Array:
    """Finite params, and no NaN in the strategy's state, where an infinity may have a meaning."""
    finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(state.params)]
    floats = [
        leaf for leaf in jax.tree.leaves(state.strategy) if jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    return jnp.all(jnp.stack(finite + [~jnp.any(jnp.isnan(leaf)) for leaf in floats]))


def _sizes(state: LearnerState) -> dict[str, int]:
    """Bytes on one device of the params, and of every tree and array of the strategy's state."""
    names = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(state.params)
    ]
    sizes: collections.Counter[str] = collections.Counter()
    for path, leaf in jax.tree_util.tree_leaves_with_path((state.params, state.strategy)):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            continue
        name = "strategy/" + jax.tree_util.keystr(path[1:], simple=True, separator="/")
        own = max((each for each in names if name.endswith("/" + each)), key=len, default=None)
        if path[0].idx == 0:
            name = "params"
        elif own is not None:
            name = name.removesuffix("/" + own)
        sizes[name] += math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    return sizes


def _kinds(state: LearnerState) -> Any:
    return jax.tree.structure(state), [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(state)]


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".split("\n")[0]


def _apart(one: Replica, other: Replica, what: str) -> InputError:
    return InputError(
        f"The replicas ({one}) and ({other}) differ in {what}, so they cannot share one program: "
        "run them one by one, each with its own settings (--seed, for a seed) and --out."
    )


def _check_all(replicas: Sequence[Replica]) -> Any:
    """The abstract batch of all the replicas' experiments, which must agree in every shape."""
    shapes = [
        (
            check(experiment),
            stage_steps(experiment),
            [(task.name, len(task.test)) for task in experiment.stream.tasks],
        )
        for experiment in (replica.experiment for replica in replicas)
    ]
    for replica, found in zip(replicas, shapes, strict=True):
        if found != shapes[0]:
            what = (
                "the names of tasks, the shape of a batch, the steps of a stage or the examples of "
                "a test"
            )
            raise _apart(replicas[0], replica, what)
    return shapes[0][0]
