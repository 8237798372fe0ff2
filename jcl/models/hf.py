"""Hugging Face's checkpoints, in and out, without PyTorch.

A checkpoint is a folder: config.json, the weights in safetensors (one file, or shards with an
index), and the tokenizer's files. A family's file says what its config.json means (`from_hf`,
`to_hf`) and where each of its parameters is kept (`tensors`); here they are read and written.
"""

import contextlib
import dataclasses
import importlib
import json
import os
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh, Sharding
from safetensors import SafetensorError, safe_open

from jcl import checks, paths
from jcl.errors import InputError, SaveError
from jcl.models import efficient_attention, wrapping
from jcl.models.lora import merge_lora
from jcl.models.model import Model, Tensor

# model_type of a config.json -> the file of its family, beside this one
FAMILIES = {
    "gpt2": "gpt2",
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "llama",
    "bert": "bert",
    "roberta": "bert",
    "distilbert": "bert",
}

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
SUFFIX = ".safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
TYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": jnp.dtype("bfloat16")}


def from_pretrained(
    source: str | os.PathLike[str],
    *,
    sharding: Sharding | Callable[[str], Sharding] | None = None,
    dtype: Any = None,
    key: jax.Array | None = None,
    **changes: Any,
) -> tuple[Model, Any]:
    """A model and its params from a Hugging Face checkpoint.

    Tensors are read one by one, so that the host never holds the model twice.

    Args:
        source: a folder, or a name on the hub, such as "openai-community/gpt2".
        sharding: where the params are put: one for all, or a function of a parameter's path, such
            as "h_0/attn/c_attn/kernel". None is the default device.
        dtype: of the params, such as jnp.bfloat16, or "auto" for that of the checkpoint; by default
            what the config's precision says, float32 where it says nothing. Adam turns float16
            params into NaN, so train in another type.
        key: for the first weights of a head, or of Linformer's projections, that the checkpoint
            lacks or has in another shape, as after classes=5; without it such a checkpoint is
            refused.
        changes: fields of the family's config to be other than the checkpoint's, such as
            dropout=0.0 or, with it, attention=jcl.models.Performer(features=256).

    Returns:
        (model, params); the model's config is its family's.

    Raises:
        InputError: there is no such checkpoint, it is a pickle, of a family that is not known, it
            asks for what the family has not, or tensors are missing, left over, or of another
            shape or type than the config says, or a tied head differs from the token table, each
            by name; a parameter does not fit the sharding.

    >>> import jax, jcl, tempfile
    >>> shape = jcl.models.GPT2Config(258, positions=8, width=4, layers=1, heads=2)
    >>> model = jcl.models.gpt2(shape)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     jcl.models.save_pretrained(folder, model, model.init(jax.random.key(0)))
    ...     model, params = jcl.models.from_pretrained(folder)
    >>> model.config == shape, params["wte"].shape
    (True, (258, 4))
    """
    if dtype is None:
        dtype = getattr(changes.get("precision"), "params", "float32")
    dtype = None if dtype == "auto" else jnp.dtype(dtype)
    if dtype is not None and dtype not in TYPES.values():
        raise InputError(f'from_pretrained(dtype={dtype}): float32, float16, bfloat16 or "auto".')
    folder = _local(source, ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"))
    if (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file():
        raise InputError(
            f"{folder} holds an adapter and no model: load the model it was made for, or save the "
            'adapter merged into it (save_pretrained(..., lora="merged")).'
        )
    settings = _read_json(folder / "config.json")
    kind = settings.get("model_type")
    if kind not in FAMILIES:
        raise InputError(
            f"{folder}/config.json: model_type is {kind!r}, and jcl knows {', '.join(FAMILIES)}."
        )
    if settings.get("quantization_config"):
        raise InputError(
            f"{folder}/config.json has a quantization_config, so that its tensors are packed: take "
            "the checkpoint it was made from, or unpack it with PyTorch, by transformers' "
            "model.dequantize(), and save that."
        )
    family = _family(FAMILIES[kind])
    config = _changed(family.from_hf(settings), changes)
    model = getattr(family, FAMILIES[kind])(config)
    shapes = _flat(wrapping.shapes(model))
    places = {path: _placed(sharding, path, leaf.shape) for path, leaf in shapes.items()}
    with contextlib.ExitStack() as opened:
        # Today's name of every tensor -> its file and its name there.
        files: dict[str, tuple[Any, str]] = {}
        for path, listed in _weights(folder).items():
            file = opened.enter_context(_open(path))
            held = [*file.keys()]
            lacking = [name for name in listed or () if name not in held]
            if lacking:
                raise InputError(
                    f"{path} lacks {_listed(lacking)}, which {INDEX} says is there: fetch both "
                    "again."
                )
            files |= {_renamed(family, name): (file, name) for name in listed or held}
        tensors, fresh = _find(folder, family, config, shapes, files, key is not None)
        params = {}
        for path, tensor in tensors.items():
            file, name = files[tensor.name]
            array = file.get_tensor(name)
            array = array.T if tensor.transpose else array
            array = array if dtype is None else array.astype(dtype)
            # Waiting, since the host keeps what is on its way.
            params[path] = jax.block_until_ready(jax.device_put(array, places[path]))
    if fresh:
        first = jax.jit(lambda key: {path: _flat(model.init(key))[path] for path in fresh})(key)
        for path, leaf in first.items():
            leaf = leaf if dtype is None else leaf.astype(dtype)
            params[path] = jax.device_put(leaf, places[path])
    return model, traverse_util.unflatten_dict(params, sep="/")


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
    family = _family_of(model.config)
    efficient_attention.check_exact("save_pretrained", model.config)
    tensors = family.tensors(model.config)
    params = _base(model, params, lora)
    fields, weights = family.to_hf(model.config), {}
    if lora == "adapter":
        fields, weights = _adapter(fields, model.lora_alpha, params, tensors)
    else:
        leaves = _flat(params)
        _check_params(leaves, tensors, _flat(wrapping.shapes(model)))
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


def tokenizer(source: str | os.PathLike[str]) -> Any:
    """The tokenizer of a Hugging Face checkpoint, transformers' own.

    Args:
        source: a folder, or a name on the hub.

    Raises:
        InputError: there is none, or its vocabulary is empty: transformers makes such a one
            without a word where a vocabulary's file is missing or not found under its name.
    """
    from transformers import AutoTokenizer

    folder = _local(source, ("*.json", "*.txt", "*.model", "*.jinja"))
    remedy = (
        "The folder needs tokenizer.json, or the vocabulary's files: vocab.json and merges.txt "
        "(GPT-2), vocab.txt (BERT), tokenizer.model (Llama); and beside them a config.json, at "
        'least {"model_type": "gpt2"}, or a tokenizer_config.json.'
    )
    try:
        found = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise InputError(f"{folder}: no tokenizer could be read ({error}). {remedy}") from error
    ordinary = set(found.get_vocab()) - set(found.get_added_vocab()) - set(found.all_special_tokens)
    if len(ordinary) < 2:
        raise InputError(
            f"{folder}: the vocabulary of the tokenizer there is empty but for special tokens. "
            f"{remedy}"
        )
    return found


def _local(source: str | os.PathLike[str], patterns: tuple[str, ...]) -> Path:
    """The folder of a checkpoint, fetched from the hub where it is none here."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.suffix in PICKLES and folder.is_file():
        raise InputError(_pickled(folder.parent, [folder.name]))
    if folder.exists():
        raise InputError(f"{folder} is a file: give the folder that holds it and config.json.")
    if not re.fullmatch(r"(\w[\w.-]*/)?\w[\w.-]*", str(source)):
        raise InputError(f"{folder}: there is no such folder.")
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.snapshot_download(
                str(source), allow_patterns=[*patterns], ignore_patterns=["*/*", "consolidated*"]
            )
        )
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise InputError(
            f"{str(source)!r} is no folder here, and fetching it from the hub failed ({reason}). "
            "Check the name, the connection and, for a model behind a login, that you are logged "
            "in; or fetch it on another machine and give its folder."
        ) from error


def _weights(folder: Path) -> dict[Path, list[str] | None]:
    """The files of safetensors of a checkpoint, each with the tensors to be read from it; None is
    all."""
    if (folder / WEIGHTS).is_file():
        return {folder / WEIGHTS: None}
    if (folder / INDEX).is_file():
        shards = _shards(folder)
        missing = [name for name in shards if not (folder / name).is_file()]
        if missing:
            raise InputError(f"{folder}: the index names {_listed(missing)}, not there. Fetch it.")
        return {folder / name: tensors for name, tensors in shards.items()}
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if pickles:
        raise InputError(_pickled(folder, pickles))
    raise InputError(f"{folder}: neither {WEIGHTS} nor {INDEX} is there.")


def _shards(folder: Path) -> dict[str, list[str]]:
    """File -> its tensors, as the index says."""
    places, shards = _read_json(folder / INDEX).get("weight_map"), {}
    for tensor, name in places.items() if isinstance(places, dict) else ():
        shards.setdefault(str(name), []).append(tensor)
    # An index names files beside it; a path would lead elsewhere.
    wrong = [name for name in shards if Path(name).name != name or Path(name).suffix != SUFFIX]
    if not shards or wrong:
        raise InputError(
            f"{folder / INDEX}: weight_map must name files of the folder (*{SUFFIX}), not {wrong}."
        )
    return dict(sorted(shards.items()))


def _pickled(folder: Path, names: list[str]) -> str:
    return (
        f"{folder}: {_listed(names)} may be a pickle, which can run any program when it is read, "
        "so jcl reads none. Where you trust it, turn it into safetensors, with PyTorch: "
        f"transformers.AutoModelForCausalLM.from_pretrained({str(folder)!r})"
        '.save_pretrained("converted").'
    )


def _find(
    folder: Path,
    family: ModuleType,
    config: Any,
    shapes: Mapping[str, Any],
    files: Mapping[str, tuple[Any, str]],
    fresh_allowed: bool,
) -> tuple[dict[str, Tensor], list[str]]:
    """Each parameter's tensor under its name in the files, and the parameters to be made afresh."""
    prefixes = (family.PREFIX,) if isinstance(family.PREFIX, str) else family.PREFIX
    found, fresh, wrong = {}, [], []
    missing, surplus, heads = [], dict.fromkeys(files), 0
    for path, tensor in family.tensors(config).items():
        head = paths.matches(path, getattr(family, "HEAD", ()))
        afresh = head and fresh_allowed
        bare = tensor.name
        for prefix in prefixes:
            bare = bare.removeprefix(prefix)
        possible = (tensor.name, bare, *[prefix + bare for prefix in prefixes])
        names = [name for name in possible if name in files]
        if not names:
            (fresh if afresh else missing).append(path)
            heads += head and not afresh
            continue
        surplus.pop(names[0])
        file, name = files[names[0]]
        kept = file.get_slice(name)
        shape = tuple(kept.get_shape()[::-1] if tensor.transpose else kept.get_shape())
        if shape != shapes[path].shape:
            if afresh:
                fresh.append(path)
                continue
            heads += head
            wrong.append(
                f"{name} is {list(kept.get_shape())}, and {path} {list(shapes[path].shape)}"
            )
        elif kept.get_dtype() not in TYPES:
            wrong.append(f"{name} is {kept.get_dtype()}, none of {', '.join(TYPES)}")
        found[path] = tensor._replace(name=names[0])
    copies = {
        name: found[path].name for name, path in family.copies(config).items() if path in found
    }
    own = [
        f"{name} differs from {table}"
        for name, table in copies.items()
        if name in files and not wrong and not _same(files[name], files[table])
    ]
    surplus = [name for name in surplus if name not in copies]
    surplus = [name for name in surplus if not any(re.search(p, name) for p in family.IGNORED)]
    problems = []
    if missing:
        places = family.tensors(config)
        problems.append(f"missing: {_listed([places[path].name for path in missing])}")
    if surplus:
        problems.append(f"left over: {_listed(surplus)}")
    if wrong:
        problems.append(f"of the wrong shape or type: {_listed(wrong)}")
    if heads and heads == len(missing) + len(wrong):
        problems.append("give key=jax.random.key(0), and the head begins afresh")
    if own:
        problems.append(
            f"a head of its own, where config.json ties it to the token table: {_listed(own)}; "
            + (
                "set tie_word_embeddings to false in config.json"
                if hasattr(config, "tied")
                else "this family's head is tied always, so take another checkpoint"
            )
        )
    if problems:
        raise InputError(
            f"{folder}: the tensors are not those that config.json tells of. {'; '.join(problems)}."
        )
    return found, fresh


def _same(one: tuple[Any, str], other: tuple[Any, str]) -> bool:
    """Whether two tensors, each a file and a name, are numerically equal."""
    return np.array_equal(*(file.get_tensor(name) for file, name in (one, other)))


def _renamed(family: ModuleType, name: str) -> str:
    for pattern, today in getattr(family, "RENAMED", ()):
        name = re.sub(pattern, today, name)
    return name


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
    adapters, weights, modules, sizes = _flat(params["lora"]), {}, [], set()
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
        f"{what}: {_listed(names)}"
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
    shards = [INDEX, *_shards(folder)] if model else []
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


def _family(name: str) -> ModuleType:
    return importlib.import_module(f"jcl.models.{name}")


def _family_of(config: Any) -> ModuleType:
    names = sorted(set(FAMILIES.values()))
    module = type(config).__module__
    if module not in {f"jcl.models.{name}" for name in names}:
        raise InputError(
            f"Hugging Face has no model of {type(config).__name__}; jcl writes {', '.join(names)}."
        )
    return importlib.import_module(module)


def _changed(config: Any, changes: Mapping[str, Any]) -> Any:
    fields = [field.name for field in dataclasses.fields(config)]
    for name in changes:
        if name not in fields:
            raise InputError(
                f"from_pretrained({name}=...): {type(config).__name__} has {', '.join(fields)}."
            )
    return dataclasses.replace(config, **changes)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(
            f"{path.parent}: there is no {path.name}. A checkpoint is a folder with config.json "
            f"and {WEIGHTS}."
        ) from None
    except ValueError as error:
        raise InputError(f"{path} is no JSON ({error}): fetch it again.") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} holds no JSON object: fetch it again.")
    return found


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="numpy")
    except SafetensorError as error:
        raise InputError(
            f"{path} is no whole file of safetensors ({error}): fetch it again."
        ) from error


def _placed(sharding: Any, path: str, shape: tuple[int, ...]) -> Sharding | None:
    given: Any = sharding if sharding is None or isinstance(sharding, Sharding) else None
    if callable(sharding) and not isinstance(sharding, Mesh):
        given = sharding(path)
    elif given is not sharding:
        raise InputError(
            f"from_pretrained(sharding=a {type(sharding).__name__}): give a sharding, such as "
            "NamedSharding(mesh, PartitionSpec()), which puts every parameter on each device, or a "
            "function of a parameter's path."
        )
    try:
        if given is not None:
            given.shard_shape(shape)
    except (IndexError, ValueError) as error:
        raise InputError(
            f"from_pretrained(sharding=...): {path} is {list(shape)}, which {given} does not fit: "
            "give a function of the path, such as lambda path: NamedSharding(mesh, "
            "PartitionSpec()), with another sharding for it."
        ) from error
    return given


def _flat(params: Any) -> dict[str, Any]:
    return dict(zip(wrapping.names(params), jax.tree.leaves(params), strict=True))


def _listed(names: Iterable[str]) -> str:
    names = [*names]
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return ", ".join(names[:20]) + more
