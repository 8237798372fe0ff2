"""What a run has learned, asked: from its folder and prompts to texts, or to Hugging Face."""

import dataclasses
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import traverse_util
from jax.sharding import SingleDeviceSharding

from jcl import checkpoint, folder, memory, strict
from jcl.core import lift
from jcl.errors import InputError
from jcl.experiment import Experiment, check, stage_name
from jcl.learner import LearnerState, learner
from jcl.models import generate, save_pretrained
from jcl.program import first_state


class Reopened(NamedTuple):
    """A run as its newest checkpoint has it.

    Attributes:
        experiment: of its first seed.
        state: of the seed asked for.
        task: the number of the stage that it learned last.
        where: what to call this point of the run.
    """

    experiment: Experiment
    state: LearnerState
    task: int
    where: str


def reopen(
    run: Path,
    load: Callable[[Path], ModuleType],
    config_file: Path | None = None,
    seed: int | None = None,
) -> Reopened:
    """The experiment and the newest intact state of a run folder.

    A config file is code, and config.json of a folder from elsewhere may name any file of this
    machine. So what it names is executed only if it lies in the folder `configs` of the working
    directory, where one's own configs are; else the caller has to name the file.

    Args:
        run: the folder.
        load: executes a config file.
        config_file: where it is, if it lies elsewhere, or no longer where the run found it.
        seed: which of the run's seeds; by default the first.

    Raises:
        InputError: the folder is no run's or holds no checkpoint, or the config file is not found,
            is another than the run's, does not make its config, or was not given and does not lie
            in `configs`; the run has no such seed.
    """
    if not (run / "config.json").is_file():
        raise InputError(f"{run} is no run folder: there is no config.json in it.")
    description = folder.read_config(run / "config.json")
    folder.check_no_grid(run, description)
    seeds = description["seeds"]
    which = _place(run, seeds, seeds[0] if seed is None else seed)
    experiment = rebuilt(run, load, config_file)
    functions = learner(
        experiment.loss_fn, experiment.strategy, measure=experiment.measure.function
    )
    batch = check(experiment)
    with memory.shapes_alone():
        shapes = jax.eval_shape(lambda: first_state(experiment, functions, batch))
    if len(seeds) > 1:
        own = jax.tree.map(lambda leaf: leaf.update(shape=(len(seeds), *leaf.shape)), shapes[:3])
        shapes = LearnerState(*own, *shapes[3:])
    place = SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(lambda leaf: leaf.update(sharding=place), shapes)
    identity = folder.fingerprint(description)
    restored = checkpoint.restore(run / "checkpoints", abstract, own=False)
    if restored is None:
        raise InputError(f"{run} holds no checkpoint yet: start the run, or wait for it.")
    state, position = restored
    if position.get("run", identity) != identity:  # older versions did not write it
        raise InputError(
            f"{run}: its newest checkpoint is of another run: put the run's own checkpoints back."
        )
    if len(seeds) > 1:
        state = LearnerState(*jax.tree.map(lambda leaf: leaf[which], state[:3]), *state[3:])
    try:
        strict.fits(position, {"stage": int, "step": int})
        stage, step = position["stage"], position["step"]
        if not 0 <= stage <= len(experiment.stream.stages) - (step > 0) or step < 0:
            raise ValueError(f"the run has no step {step} of a stage {stage}")
    except ValueError as error:
        raise InputError(
            f"{run}: the newest checkpoint's progress.json is not this run's ({error}): get the "
            "folder again from where it comes from."
        ) from error
    task = max(0, stage - (step == 0))
    where = f"after {step} steps of" if step else "after"
    where = f"{where} {stage_name(experiment, task)}" if stage or step else "before its first step"
    return Reopened(experiment, state, task, f"{where}, seed {seeds[which]}")


def rebuilt(
    run: Path, load: Callable[[Path], ModuleType], config_file: Path | None = None
) -> Experiment:
    """The experiment of a run folder; arguments and errors are those of `reopen`."""
    description = folder.read_config(run / "config.json")
    module = load(_config_file(run, description, config_file))
    return module.build(_config(run, module.Config, description.get("config", {})))


def learned_params(run: str | Path, seed: int) -> dict[str, Any]:
    """The params that one seed of a finished run ended with.

    For another run that begins with them: `jcl.models.starting_from(model, learned_params(...))`.

    Raises:
        InputError: the folder is no finished run's, or the run has no such seed.
    """
    run = Path(run)
    if not (run / "report.json").is_file():
        raise InputError(
            f"{run} is no folder of a finished run: there is no report.json in it. Start that run, "
            "or let it come to its end, first."
        )
    description = folder.read_config(run / "config.json")
    folder.check_no_grid(run, description)
    seeds = description["seeds"]
    which = _place(run, seeds, seed)
    with jax.ensure_compile_time_eval():  # a grid builds while it traces
        found = {
            path.removeprefix("params/"): leaf
            for path, leaf in checkpoint.read(run / "checkpoints").items()
            if path.startswith("params/")
        }
        if len(seeds) > 1:
            found = {path: leaf[which] for path, leaf in found.items()}
    return traverse_util.unflatten_dict(found, sep="/")


def _place(run: Path, seeds: list[int], seed: int) -> int:
    if seed not in seeds:
        raise InputError(f"{run} has the seeds {seeds}, and not {seed}: run it for that seed too.")
    return seeds.index(seed)


def answer(
    reopened: Reopened,
    prompts: Sequence[str],
    *,
    steps: int = 100,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
) -> list[str]:
    """Each prompt and what the run's model has it followed by, up to the end of the text.

    The model is seen as the strategy shows it in an evaluation of the task learned last. The
    numbers are those of `jcl.models.generate`.

    Raises:
        InputError: the experiment has no tokenizer, or from `jcl.models.generate`.
    """
    experiment = reopened.experiment
    tokenizer = experiment.tokenizer
    if tokenizer is None:
        raise InputError(
            f"The experiment {experiment.name!r} has no tokenizer to read a prompt with: give it "
            "one in the config, jcl.Experiment(tokenizer=...)."
        )
    ids = [_ids(tokenizer, prompt) for prompt in prompts]
    longest = max(len(each) for each in ids)
    inputs = np.zeros((len(ids), longest), np.int32)
    mask = np.zeros((len(ids), longest), np.int32)
    for row, each in enumerate(ids):
        inputs[row, longest - len(each) :] = each
        mask[row, longest - len(each) :] = 1
    found = generate(
        experiment.model,
        _seen(reopened, inputs),
        inputs,
        steps=steps,
        key=jax.random.key(seed),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        stop=_stop(tokenizer),
        attention_mask=None if mask.all() else mask,
    )
    texts = []
    for each, tokens, length in zip(ids, *map(np.asarray, found), strict=True):
        texts.append(_text(tokenizer, np.concatenate([each, tokens[:length]])))
    return texts


def export(reopened: Reopened, folder: Path, *, lora: str | None = "merged") -> str:
    """Writes the run's model as a checkpoint that Hugging Face loads, with the experiment's
    tokenizer where that is transformers' own, and the names of the classes.

    Its params are those that the strategy shows in an evaluation of the task learned last.

    Args:
        reopened: the run.
        folder: made if it is not there.
        lora: what becomes of the adapters, where the model has some, as in `save_pretrained`.

    Returns:
        What is to be told of the tokenizer.

    Raises:
        InputError, SaveError: from `jcl.models.save_pretrained`.
    """
    experiment, model = reopened.experiment, reopened.experiment.model
    params = _seen(reopened, np.zeros((1, 1), np.int32))
    given = experiment.tokenizer
    tokenizer = getattr(given, "tokenizer", given)  # transformers' own, within ours
    if not hasattr(tokenizer, "save_pretrained"):
        tokenizer = None
    if "lora" not in params and lora != "adapter":
        lora = None
    labels = getattr(experiment.stream, "labels", ())
    named = len(labels) == getattr(model.config, "classes", None) and lora != "adapter"
    save_pretrained(
        folder,
        model,
        params,
        tokenizer=tokenizer,
        lora=lora,
        settings={"id2label": dict(enumerate(labels))} if named else None,
    )
    if tokenizer is not None:
        return "with its tokenizer"
    if given is not None:
        return f"without a tokenizer: a {type(given).__name__} is none of Hugging Face's"
    return (
        "without a tokenizer, since the experiment has none: give it in the config, "
        "jcl.Experiment(tokenizer=...), or save the one that the texts were read with by its own "
        "save_pretrained"
    )


def _seen(reopened: Reopened, inputs: np.ndarray) -> Any:
    """The params as the strategy shows them in an evaluation of the task learned last."""
    strategy = lift(reopened.experiment.strategy)
    batch: dict[str, Any] = {"inputs": inputs}
    if "task" in strategy.needs:
        batch["task"] = np.full(len(inputs), reopened.task, np.int32)
    return strategy.view(reopened.state.strategy, reopened.state.params, batch)[0]


def _config_file(run: Path, description: dict[str, Any], given: Path | None) -> Path:
    known = description.get("config_file")
    path = given or (Path(known) if known else None)
    if path is None or not path.is_file():
        missing = f"{path} is not there" if path else f"{run} does not say where it is"
        raise InputError(f"The run's config file is needed, and {missing}: give --config PATH.")
    home = Path("configs").resolve()
    inside = path.resolve().is_relative_to(home) and run.resolve() not in path.resolve().parents
    if given is None and not inside:
        raise InputError(
            f"{run}/config.json names the config file {path}. That is code, and a folder from "
            f"elsewhere could name any: jcl executes unasked only what lies in {home}. If it is "
            f"the file you expect, say so by --config {path}."
        )
    if folder.config_hash(path) != description.get("config_hash"):
        commit = description.get("git_commit")
        raise InputError(
            f"{path} is not the config file that {run} was made with, or was changed since: give "
            "it as it was by --config PATH"
            + (f" (the repository stood at commit {commit})." if commit else ".")
        )
    return path


def _config(run: Path, config: type, fields: dict[str, Any]) -> Any:
    """The Config of the fields in config.json, which knows neither tuples nor paths."""
    kinds = typing.get_type_hints(config)

    def plain(name, value):
        kind = kinds.get(name)
        if isinstance(value, list):
            return tuple(value)
        among = {kind, *typing.get_args(kind)}
        for special in (Path, float):  # an infinite number became a word
            if isinstance(value, str) and special in among and str not in among:
                return special(value)
        return value

    try:
        made = config(**{name: plain(name, value) for name, value in fields.items()})
    except (TypeError, ValueError) as error:
        raise InputError(f"{run}/config.json does not fit its config file: {error}.") from error
    found = folder.as_json(dataclasses.asdict(made))
    differing = sorted(name for name in fields if found.get(name) != fields[name])
    if differing:
        raise InputError(
            f"{run}/config.json: {', '.join(differing)} cannot be read back; fields of a Config "
            "are to be numbers, words, truth values or tuples of them."
        )
    return made


def _ids(tokenizer: Any, prompt: str) -> np.ndarray:
    """A prompt's ids, behind the mark that stands before a text where the tokenizer has one."""
    ids = np.asarray(tokenizer.encode(prompt), np.int32)
    first = getattr(tokenizer, "separator", getattr(tokenizer, "bos_token_id", None))
    if first is not None and not (len(ids) and ids[0] == first):
        ids = np.concatenate([np.asarray([first], np.int32), ids])
    if not len(ids):
        raise InputError("The prompt is empty, and the tokenizer has no mark that begins a text.")
    return ids


def _stop(tokenizer: Any) -> tuple[int, ...]:
    last = getattr(tokenizer, "separator", getattr(tokenizer, "eos_token_id", None))
    return () if last is None else (int(last),)


def _text(tokenizer: Any, ids: np.ndarray) -> str:
    if hasattr(tokenizer, "separator"):
        return tokenizer.decode(ids)
    return tokenizer.decode(ids, skip_special_tokens=True)
