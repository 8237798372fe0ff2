"""A model as a Hugging Face checkpoint, or as an adapter of one."""

import contextlib
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np

from jcl import checks
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
from jcl.models.lora import merge_lora
from jcl.models.model import Model, Tensor


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
    with a config.json is whole. It says what the model's config says and nothing else of the
    checkpoint that `from_pretrained` read: give the labels' names and the like as `settings`.
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
            slots become one adapter of their summed rank. What else was trained is not in it.
        settings: more fields of config.json, such as {"id2label": dict(enumerate(stream.labels)),
            "eos_token_id": 2}; they may not make another model of it.
        overwrite: whether the folder may hold a model or adapter already. A model takes the place
            of a model and an adapter of an adapter; all other files stay.

    Raises:
        InputError: the folder holds a model; a parameter is none of the family's, or missing, or
            of another shape, each by name; the params hold adapters and `lora` does not say what
            becomes of them, or they hold none; the tokenizer has more tokens than the model, or
            is another than the one a RoBERTa counts its positions by; the settings make another
            model; its attention is not exact, of which Hugging Face knows nothing.
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
    fields, weights = family.to_hf(model.config), {}
    if lora == "adapter":
        fields, weights = _adapter(fields, model.lora_alpha, params, tensors)
    else:
        leaves = flat(params)
        _check_params(leaves, tensors, flat(wrapping.shapes(model)))
        for path, tensor in tensors.items():
            weights[tensor.name] = (leaves[path], tensor.transpose)
        fields["dtype"] = str(jnp.result_type(*{leaf.dtype for leaf in leaves.values()}))
        if tokenizer is not None:
            fields |= _special_tokens(tokenizer, model.config)
        if settings:
            fields = _extended(fields, settings, family)
        if fields.get("jcl", {}).get("head") == "classes":
            warnings.warn(
                f"{folder}: Hugging Face has no classifier over the mean, so that AutoModel loads "
                "the bare encoder and AutoModelForSequenceClassification an untrained classifier. "
                'Only jcl reads the whole; for Hugging Face train with pooling="first".',
                stacklevel=2,
            )
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
    fields: dict[str, Any], alpha: Any, params: Any, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What PEFT keeps of LoRA: x A^T B^T * lora_alpha / r beside each target, r of all slots."""
    adapters, weights, modules, sizes = flat(params["lora"]), {}, [], set()
    for path in sorted({name.rsplit("/", 1)[0] for name in adapters}):
        tensor, a, b = tensors[f"{path}/kernel"], adapters[f"{path}/a"], adapters[f"{path}/b"]
        module = tensor.name.removesuffix(".weight")
        slots, inputs, rank = a.shape
        modules.append(module)
        sizes.add((slots, rank, tensor.transpose))
        prefix = f"base_model.model.{module}"
        weights[f"{prefix}.lora_A.weight"] = (a.transpose(0, 2, 1).reshape(-1, inputs), False)
        weights[f"{prefix}.lora_B.weight"] = (b.reshape(slots * rank, -1), True)
    ((slots, rank, transposed),) = sizes
    causal = fields["architectures"][0].endswith(("ForCausalLM", "LMHeadModel"))
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if causal else None,
        "base_model_name_or_path": None,
        "r": slots * rank,
        "lora_alpha": alpha * slots,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": modules,
        "fan_in_fan_out": not transposed,
        "inference_mode": True,
    }, weights


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
    fields: dict[str, Any], settings: Mapping[str, Any], family: ModuleType
) -> dict[str, Any]:
    """The fields of config.json and the caller's."""
    extended = {**fields, **settings}
    if "id2label" in settings and "label2id" not in settings:
        labels = settings["id2label"]
        extended["label2id"] = {label: int(number) for number, label in labels.items()}
    if family.from_hf(extended) != family.from_hf(fields):
        raise InputError(
            f"save_pretrained(settings={{{', '.join(settings)}}}): they say another shape, padding "
            "or number of labels than the model's; leave those fields out."
        )
    return extended


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
