"""Models and tokenizers from a Hugging Face checkpoint."""

import contextlib
import dataclasses
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh, Sharding
from safetensors import SafetensorError, safe_open

from jcl import paths, strict
from jcl.errors import InputError
from jcl.models import wrapping
from jcl.models.hf.layout import (
    ADAPTER_CONFIG,
    FAMILIES,
    INDEX,
    PICKLES,
    TYPES,
    WEIGHTS,
    family_of_name,
    flat,
    listed,
    read_json,
    shards_of,
)
from jcl.models.model import Model, Tensor

# No axis of a model is longer without a tensor that has it, but for positions that turn.
_ANY_AXIS, _MOST_LAYERS = 2**24, 10_000


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
            by name; a tensor holds a NaN or an infinity; a parameter does not fit the sharding.

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
    dtype = None if dtype == "auto" else _type(dtype)
    folder = _local(source, ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"))
    if (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file():
        raise InputError(
            f"{folder} holds an adapter and no model: load the model it was made for, or save the "
            'adapter merged into it (save_pretrained(..., lora="merged")).'
        )
    settings = read_json(folder / "config.json")
    kind = settings.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise InputError(
            f"{folder}/config.json: model_type is {kind!r}, and jcl knows {', '.join(FAMILIES)}."
        )
    if settings.get("quantization_config"):
        raise InputError(
            f"{folder}/config.json has a quantization_config, so that its tensors are packed: take "
            "the checkpoint it was made from, or unpack it with PyTorch, by transformers' "
            "model.dequantize(), and save that."
        )
    family = family_of_name(FAMILIES[kind])
    config = _changed(_config(folder, family, settings), changes)
    model = getattr(family, FAMILIES[kind])(config)
    with contextlib.ExitStack() as opened:
        # Today's name of every tensor -> its file and its name there.
        files: dict[str, tuple[Any, str]] = {}
        weights = _weights(folder)
        for path, wanted in weights.items():
            file = opened.enter_context(_open(path))
            held = [*file.keys()]
            lacking = [name for name in wanted or () if name not in held]
            if lacking:
                raise InputError(
                    f"{path} lacks {listed(lacking)}, which {INDEX} says is there: fetch both "
                    "again."
                )
            files |= {_renamed(family, name): (file, name) for name in wanted or held}
        held_bytes = sum(path.stat().st_size for path in weights)
        _check_sizes(folder, config, changes, len(files), held_bytes)
        shapes = flat(wrapping.shapes(model))
        places = {path: _placed(sharding, path, leaf.shape) for path, leaf in shapes.items()}
        tensors, fresh = _find(folder, family, config, shapes, files, key is not None)
        if not changes:
            _check_fresh(folder, fresh, shapes, held_bytes)
        params = {}
        for path, tensor in tensors.items():
            file, name = files[tensor.name]
            array = file.get_tensor(name)
            if not np.isfinite(array).all():
                raise InputError(
                    f"{folder}: {name} holds a NaN or an infinity: fetch it again, or take "
                    "a checkpoint of an earlier step."
                )
            array = array.T if tensor.transpose else array
            array = array if dtype is None else array.astype(dtype)
            # Waiting, since the host keeps what is on its way.
            params[path] = jax.block_until_ready(jax.device_put(array, places[path]))
    if fresh:
        first = jax.jit(lambda key: {path: flat(model.init(key))[path] for path in fresh})(key)
        for path, leaf in first.items():
            leaf = leaf if dtype is None else leaf.astype(dtype)
            params[path] = jax.device_put(leaf, places[path])
    model = model._replace(source=str(source))
    return model, traverse_util.unflatten_dict(params, sep="/")


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
        # Asked for nothing, it would ask the user whether to execute what the folder brings.
        found = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        vocabulary = found.get_vocab()
    except BaseException as error:
        # A panic of the tokenizers' library is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise InputError(f"{folder}: no tokenizer could be read ({error}). {remedy}") from error
    ordinary = set(vocabulary) - set(found.get_added_vocab()) - set(found.all_special_tokens)
    if len(ordinary) < 2:
        raise InputError(
            f"{folder}: the vocabulary of the tokenizer there is empty but for special tokens. "
            f"{remedy}"
        )
    # Tables of the vocabulary's length are made of its largest id.
    if (largest := max(vocabulary.values())) > 4 * len(vocabulary) + 1000:
        raise InputError(
            f"{folder}: the tokenizer has {len(vocabulary):,} tokens and among them the id "
            f"{largest:,}: fetch it again."
        )
    return found


def _local(source: Any, patterns: tuple[str, ...]) -> Path:
    """The folder of a checkpoint, fetched from the hub where it is none here."""
    if not isinstance(source, str | os.PathLike):
        raise InputError(
            f"{source!r} is no checkpoint: give its folder, or its name on the hub, such as "
            '"openai-community/gpt2".'
        )
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
        shards = shards_of(folder)
        missing = [name for name in shards if not (folder / name).is_file()]
        if missing:
            raise InputError(f"{folder}: the index names {listed(missing)}, not there. Fetch it.")
        return {folder / name: tensors for name, tensors in shards.items()}
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if pickles:
        raise InputError(_pickled(folder, pickles))
    raise InputError(f"{folder}: neither {WEIGHTS} nor {INDEX} is there.")


def _pickled(folder: Path, names: list[str]) -> str:
    try:
        (kind,) = read_json(folder / "config.json")["architectures"]
    except (InputError, LookupError, TypeError, ValueError):
        kind = None
    if not isinstance(kind, str) or not re.fullmatch(r"\w+", kind):
        kind = "AutoModel"
    return (
        f"{folder}: {listed(names)} may be a pickle, which can run any program when it is read, "
        "so jcl reads none. Where you trust it, turn it into safetensors, with PyTorch: "
        f"transformers.{kind}.from_pretrained({str(folder)!r})"
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
        problems.append(f"missing: {listed([places[path].name for path in missing])}")
    if surplus:
        problems.append(f"left over: {listed(surplus)}")
    if wrong:
        problems.append(f"of the wrong shape or type: {listed(wrong)}")
    if heads and heads == len(missing) + len(wrong):
        problems.append("give key=jax.random.key(0), and the head begins afresh")
    if own:
        problems.append(
            f"a head of its own, where config.json ties it to the token table: {listed(own)}; "
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
    if any(file.get_slice(name).get_dtype() not in TYPES for file, name in (one, other)):
        return False
    return np.array_equal(*(file.get_tensor(name) for file, name in (one, other)))


def _renamed(family: ModuleType, name: str) -> str:
    for pattern, today in getattr(family, "RENAMED", ()):
        name = re.sub(pattern, today, name)
    return name


def _config(folder: Path, family: ModuleType, settings: dict[str, Any]) -> Any:
    """The family's config of a config.json, whose fields may be of any type."""
    for field in ("n_layer", "n_layers", "num_hidden_layers"):
        layers = settings.get(field)
        if isinstance(layers, int) and layers > _MOST_LAYERS:  # some families list them
            raise InputError(f"{folder}/config.json: {field} is {layers:,}: fetch it again.")
    try:
        return family.from_hf(settings)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from error
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        raise InputError(
            f"{folder}/config.json has a field of another kind than a {settings['model_type']}'s "
            f"({type(error).__name__}: {error}): fetch it again."
        ) from error


def _check_sizes(
    folder: Path, config: Any, changes: Mapping[str, Any], tensors: int, held: int
) -> None:
    """Refuses a shape that cannot be the files', before so many layers or numbers are made."""
    if config.layers > tensors and "layers" not in changes:
        raise InputError(
            f"{folder}/config.json says {config.layers:,} layers, where the files hold {tensors:,} "
            "tensors: fetch both again."
        )
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, int) and value > max(held, _ANY_AXIS) and field.name not in changes:
            raise InputError(
                f"{folder}/config.json: {field.name} is {value:,}, where the files hold {held:,} "
                "bytes: fetch both again."
            )


def _check_fresh(folder: Path, fresh: list[str], shapes: Mapping[str, Any], held: int) -> None:
    """Refuses to make more afresh than the checkpoint holds, unless the caller asks for it."""
    for path in fresh:
        made = 4 * shapes[path].size
        if made > max(held, strict.UNPACKED_BYTES):
            raise InputError(
                f"{folder}/config.json asks for {path} of {list(shapes[path].shape)} anew, "
                f"{made:,} bytes, where the files hold {held:,}: if that is meant, say it, as in "
                f"classes={shapes[path].shape[-1]}."
            )


def _type(dtype: Any) -> np.dtype:
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        found = None
    if found is None or found not in TYPES.values():
        shown = dtype if found is None else found
        raise InputError(f'from_pretrained(dtype={shown}): float32, float16, bfloat16 or "auto".')
    return found


def _changed(config: Any, changes: Mapping[str, Any]) -> Any:
    fields = [field.name for field in dataclasses.fields(config)]
    for name in changes:
        if name not in fields:
            raise InputError(
                f"from_pretrained({name}=...): {type(config).__name__} has {', '.join(fields)}."
            )
    if changes.get("classes") not in (None, getattr(config, "classes", None)):
        changes = {"labels": (), **changes}  # the names of other classes
    return dataclasses.replace(config, **changes)


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
