"""A model as a Hugging Face checkpoint, or as an adapter of one."""

import contextlib
import dataclasses
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcl import checks, paths
from jcl.errors import InputError, SaveError
from jcl.models import efficient_attention, wrapping
from jcl.models.hf.layout import (
    ADAPTER,
    ADAPTER_CONFIG,
    INDEX,
    SUFFIX,
    TYPES,
    WEIGHTS,
    family_of,
    flat,
    listed,
    shards_of,
)
from jcl.models.hf.loading import from_pretrained
from jcl.models.lora import merge_lora
from jcl.models.model import Model, Tensor

_NO_MEAN = {
    False: "Hugging Face has no classifier over the mean, so that AutoModel loads the bare encoder "
    "and AutoModelForSequenceClassification an untrained classifier. Only jcl reads the whole; for "
    'Hugging Face train with pooling="first".',
    True: "Hugging Face has no classifier over the mean, so that the adapter, one of the bare "
    'encoder, is without it. lora="merged" is for jcl whole; for Hugging Face train with '
    'pooling="first".',
}
"""What is told of a mean-pooled classifier, by whether it becomes an adapter."""


def save_pretrained(
    folder: str | os.PathLike[str],
    model: Model,
    params: Any,
    *,
    tokenizer: Any = None,
    lora: str | None = None,
    settings: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a checkpoint that Hugging Face loads; `from_pretrained` gives the same bits back.

    config.json comes last and every file is written beside its place and renamed, so that a folder
    with a config.json is whole. It says what the model's config says, labels included, and nothing
    else of the checkpoint that `from_pretrained` read: give the like of it as `settings`.
    Hugging Face has no classifier over the mean: it loads such a BERT as the bare encoder
    (AutoModel), without the classifier, and a warning says so.

    Args:
        folder: made if it is not there.
        model: of one of the families, plain or made of one by `jcl.models.lora`.
        params: its params.
        tokenizer: transformers' own, written beside the model; the ids of its special tokens go
            into config.json, which has none otherwise.
        lora: what becomes of LoRA's adapters: "merged" adds them to the kernels; "adapter" writes
            them alone, as a folder that PEFT loads on top of the model that was adapted. Several
            slots become one adapter of their summed rank. A classifier's head is in it, whole;
            what else was trained is not, and a warning names it where the checkpoint that the
            model came from is still there.
        settings: more fields of config.json, such as {"id2label": dict(enumerate(stream.labels)),
            "eos_token_id": 2}; they may not make another model of it.
        overwrite: whether the folder may hold a model or adapter already. A model takes the place
            of a model and an adapter of an adapter; all other files stay.

    Raises:
        InputError: the folder holds a model; a parameter is none of the family's, or missing, or
            of another shape, each by name; the params hold adapters and `lora` does not say what
            becomes of them, or they hold none; the tokenizer has more tokens than the model, or
            is another than the one a RoBERTa counts its positions by; the settings make another
            model, do not name each class, or are no JSON; its attention is not exact, of which
            Hugging Face knows nothing.
        SaveError: a file could not be written.
    """
    folder = Path(folder)
    if lora is not None:
        checks.one_of("save_pretrained", "lora", lora, ("merged", "adapter"))
    if lora == "adapter" and settings:
        raise InputError(
            "save_pretrained(settings=...): an adapter has no config.json; leave settings out."
        )
    family = family_of(model.config)
    efficient_attention.check_exact("save_pretrained", model.config)
    tensors = family.tensors(model.config)
    params = _base(model, params, lora)
    leaves = flat({name: leaf for name, leaf in params.items() if name != "lora"})
    _check_params(leaves, tensors, flat(wrapping.shapes(model)))
    fields, weights = family.to_hf(model.config), {}
    if fields.get("jcl", {}).get("head") == "classes":
        warnings.warn(f"{folder}: {_NO_MEAN[lora == 'adapter']}", stacklevel=2)
    if lora == "adapter":
        fields, weights = _adapter(fields, model, params, tensors, family)
    else:
        for path, tensor in tensors.items():
            weights[tensor.name] = (leaves[path], tensor.transpose)
        fields["dtype"] = str(jnp.result_type(*{leaf.dtype for leaf in leaves.values()}))
        if tokenizer is not None:
            fields |= _special_tokens(tokenizer, model.config)
        if settings:
            fields = _extended(fields, settings, family, getattr(model.config, "classes", None))
    text = json.dumps(fields, indent=2) + "\n"
    names = (ADAPTER_CONFIG, ADAPTER) if lora == "adapter" else ("config.json", WEIGHTS)
    links = [path.name for path in folder.iterdir() if path.is_symlink()] if folder.is_dir() else []
    if links:
        raise InputError(
            f"{folder} holds links ({listed(links)}), through which other places would be written "
            "to: choose another folder, or copy what they lead to."
        )
    held = _models_files(folder)
    if held and not overwrite:
        raise InputError(
            f"{folder} holds a model already ({', '.join(held)}): choose another folder, or give "
            "overwrite=True, by which a model takes the place of a model, an adapter that of an "
            "adapter."
        )
    old = _replaced(folder, names)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _beside(folder / names[1]) as partial:
            _write_tensors(partial, weights)
            for path in old:
                if path.suffix == ".json":
                    path.unlink()
        for path in old:
            if path.name != names[1]:
                path.unlink(missing_ok=True)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        with _beside(folder / names[0]) as partial:
            partial.write_text(text)
    except OSError as error:
        raise SaveError(
            f"{folder}: the model could not be written ({error}). Make room or choose another "
            "folder, and save again."
        ) from error


def _base(model: Model, params: Any, lora: str | None) -> Any:
    """The params as they are to be written: with adapters merged where asked."""
    adapted = "lora" in params
    if adapted and lora is None:
        raise InputError(
            'The params hold LoRA\'s adapters: say lora="merged", and they are added to the '
            'kernels, or lora="adapter", and they are written alone.'
        )
    if lora is None:
        return params
    if not adapted or model.lora_alpha is None:
        raise InputError(
            f'save_pretrained(lora="{lora}"): give the model that jcl.models.lora made and its '
            'params, with the entry "lora".'
        )
    if lora == "adapter":
        return params
    return merge_lora(params, model.lora_alpha)


def _adapter(
    fields: dict[str, Any],
    model: Model,
    params: Any,
    tensors: Mapping[str, Tensor],
    family: ModuleType,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What PEFT keeps of LoRA: x A^T B^T * lora_alpha / r beside each target, r of all slots; and
    of a classifier the head, whole, with what adapters of its own made of it."""
    alpha, weights, modules, sizes = model.lora_alpha, {}, [], set()
    assert alpha is not None
    heads = _classifiers(model, tensors, family)
    beneath = {path.rpartition("/")[0] for path in heads}
    adapters = flat(params["lora"])
    for path in sorted({name.rpartition("/")[0] for name in adapters} - beneath):
        tensor, a, b = tensors[f"{path}/kernel"], adapters[f"{path}/a"], adapters[f"{path}/b"]
        module = tensor.name.removesuffix(".weight")
        slots, inputs, rank = a.shape
        modules.append(module)
        sizes.add((slots, rank, tensor.transpose))
        prefix = f"base_model.model.{module}"
        weights[f"{prefix}.lora_A.weight"] = (a.transpose(0, 2, 1).reshape(-1, inputs), False)
        weights[f"{prefix}.lora_B.weight"] = (b.reshape(slots * rank, -1), True)
    if not modules:
        raise InputError(
            'save_pretrained(lora="adapter"): the adapters are beside the head alone, which PEFT '
            'keeps whole: save it by lora="merged".'
        )
    ((slots, rank, transposed),) = sizes
    if moved := _moved(model, params, heads):
        warnings.warn(
            f"The adapter is without what was trained beside it, {listed(moved)}, so that on the "
            f'model of {model.source} it answers otherwise: save the whole by lora="merged", or '
            "train the adapters and the head alone (jcl.freeze).",
            stacklevel=3,
        )
    kind, saved = fields["architectures"][0], []
    if kind.endswith("ForSequenceClassification"):
        entries = {path.partition("/")[0] for path in heads} | {"lora"}
        whole = flat(merge_lora({entry: params[entry] for entry in entries}, alpha))
        for path in heads:
            name = tensors[path].name
            weights[f"base_model.model.{name}"] = (whole[path], tensors[path].transpose)
            # The module of that name, or all of a head that lies outside the encoder.
            inside = name.startswith(family.PREFIX)
            saved.append(name.rpartition(".")[0] if inside else name.partition(".")[0])
    causal = kind.endswith(("ForCausalLM", "LMHeadModel"))
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if saved else "CAUSAL_LM" if causal else None,
        "base_model_name_or_path": model.source,
        "r": slots * rank,
        "lora_alpha": alpha * slots,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": modules,
        "modules_to_save": [*dict.fromkeys(saved)] or None,
        "fan_in_fan_out": not transposed,
        "inference_mode": True,
    }, weights


def _classifiers(model: Model, tensors: Mapping[str, Tensor], family: ModuleType) -> list[str]:
    """The paths of a classifier's head; of another model none."""
    if getattr(model.config, "head", None) != "classes":
        return []
    return [path for path in tensors if paths.matches(path, family.HEAD)]


def _moved(model: Model, params: Any, heads: list[str]) -> list[str]:
    """The params beside adapters and head that are no longer those of the model's checkpoint."""
    if model.source is None:
        return []
    names = [field.name for field in dataclasses.fields(model.config)]
    fields = {name: getattr(model.config, name) for name in names}
    try:
        _, base = from_pretrained(model.source, dtype="auto", key=jax.random.key(0), **fields)
    except InputError:  # it is there no longer, or is another by now
        return []
    own = flat({name: leaf for name, leaf in params.items() if name != "lora"})
    return [
        path
        for path, leaf in flat(base).items()
        if path not in heads and not jnp.array_equal(leaf.astype(own[path].dtype), own[path])
    ]


def _check_params(
    leaves: Mapping[str, Any], tensors: Mapping[str, Tensor], shapes: Mapping[str, Any]
) -> None:
    missing = [path for path in tensors if path not in leaves]
    surplus = [path for path in leaves if path not in tensors]
    wrong = [
        f"{path} is {list(leaf.shape)}, not {list(shapes[path].shape)}"
        for path, leaf in leaves.items()
        if path in tensors and leaf.shape != shapes[path].shape
    ]
    types = [
        f"{path} is {leaf.dtype}"
        for path, leaf in leaves.items()
        if leaf.dtype not in TYPES.values()
    ]
    problems = [
        f"{what}: {listed(names)}"
        for what, names in (
            ("missing", missing),
            ("without a place in Hugging Face's format", surplus),
            ("of another shape", wrong),
            ("of a type that is not written", types),
        )
        if names
    ]
    if problems:
        raise InputError(f"These are not the model's params. {'; '.join(problems)}.")


def _special_tokens(tokenizer: Any, config: Any) -> dict[str, int]:
    if not hasattr(tokenizer, "save_pretrained"):
        raise InputError(
            f"{type(tokenizer).__name__} is none of transformers' tokenizers, which alone "
            "Hugging Face loads: leave tokenizer out."
        )
    if len(tokenizer) > config.vocab_size:
        raise InputError(
            f"The tokenizer has {len(tokenizer)} tokens and the model {config.vocab_size}: give "
            "the tokenizer that the model was trained with."
        )
    fields = ("bos_token_id", "eos_token_id", "pad_token_id")
    ids = {field: getattr(tokenizer, field, None) for field in fields}
    padding = ids["pad_token_id"]
    if getattr(config, "family", None) == "roberta" and padding not in (None, config.padding):
        raise InputError(
            f"The tokenizer pads with token {padding} and the RoBERTa with {config.padding}, by "
            "which its positions count: give the tokenizer that the model was trained with."
        )
    return {field: number for field, number in ids.items() if number is not None}


def _extended(
    fields: dict[str, Any], settings: Mapping[str, Any], family: ModuleType, classes: int | None
) -> dict[str, Any]:
    """The fields of config.json and the caller's."""
    for field, value in settings.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            raise InputError(
                f'save_pretrained(settings={{"{field}": a {type(value).__name__}}}): no JSON '
                f"({error}): give plain numbers, words, lists and dicts."
            ) from error
    others = {field: value for field, value in settings.items() if field != "id2label"}
    if family.from_hf({**fields, **others}) != family.from_hf(fields):
        raise InputError(
            f"save_pretrained(settings={{{', '.join(settings)}}}): they say another shape or "
            "padding than the model's; leave those fields out."
        )
    named = {}
    if "id2label" in settings:
        labels = _by_number(settings["id2label"], classes)
        named = {
            "id2label": labels, "label2id": {name: int(number) for number, name in labels.items()}
        }  # fmt: skip
    return {**fields, **named, **others}


def _by_number(labels: Any, classes: int | None) -> dict[str, str]:
    """An id2label as JSON has it, with a name of its own for each class."""
    found = labels if isinstance(labels, Mapping) else {}
    found = {str(number): name for number, name in found.items()}
    count, names = len(found) if classes is None else classes, [*found.values()]
    if (
        not found
        or {*found} != {str(number) for number in range(count)}
        or not all(isinstance(name, str) for name in names)
        or len({*names}) < count
    ):
        raise InputError(
            f'save_pretrained(settings={{"id2label": {labels}}}): give each of the '
            f"{count} classes a name of its own, from 0 on, such as "
            'dict(enumerate(["no", "yes"])).'
        )
    return found


def _models_files(folder: Path) -> list[str]:
    """The files of a model or adapter that are in a folder."""
    fixed = [name for name in ("config.json", ADAPTER_CONFIG, INDEX) if (folder / name).exists()]
    return sorted(fixed + [path.name for path in folder.glob(f"*{SUFFIX}")])


def _replaced(folder: Path, names: tuple[str, str]) -> list[Path]:
    """The old files, if any, that give way to those of these names: a config's and weights'."""
    model = WEIGHTS in names and (folder / INDEX).is_file()
    shards = [INDEX, *shards_of(folder)] if model else []
    return [folder / name for name in (*names, *shards) if (folder / name).exists()]


@contextlib.contextmanager
def _beside(path: Path):
    """A path to write to, that takes the place of `path` if all goes well."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _write_tensors(path: Path, tensors: Mapping[str, tuple[Any, bool]]) -> None:
    """A file of safetensors, from {name: (array, whether to transpose it)}, one in memory at a
    time."""
    # The widest numbers first, so that every tensor begins at a multiple of its numbers' size.
    order = sorted(tensors, key=lambda name: (-tensors[name][0].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    names, place = {dtype: name for name, dtype in TYPES.items()}, 0
    for name in order:
        array, transpose = tensors[name]
        end = place + array.size * array.dtype.itemsize
        shape = array.shape[::-1] if transpose else array.shape
        header[name] = {
            "dtype": names[array.dtype], "shape": list(shape), "data_offsets": [place, end]
        }  # fmt: skip
        place = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name in order:
            array, transpose = np.asarray(tensors[name][0]), tensors[name][1]
            file.write(np.ascontiguousarray(array.T if transpose else array).tobytes())
