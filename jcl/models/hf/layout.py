"""A checkpoint's folder: the names of its files, the families known, and where tensors lie."""

import importlib
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcl import strict
from jcl.errors import InputError
from jcl.models import wrapping

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


def family_of_name(name: str) -> ModuleType:
    return importlib.import_module(f"jcl.models.{name}")


def family_of(config: Any) -> ModuleType:
    names = sorted(set(FAMILIES.values()))
    module = type(config).__module__
    if module not in {f"jcl.models.{name}" for name in names}:
        raise InputError(
            f"Hugging Face has no model of {type(config).__name__}; jcl writes {', '.join(names)}."
        )
    return importlib.import_module(module)


def shards_of(folder: Path) -> dict[str, list[str]]:
    """File -> its tensors, as the index says."""
    places, shards = read_json(folder / INDEX).get("weight_map"), {}
    for tensor, name in places.items() if isinstance(places, dict) else ():
        shards.setdefault(str(name), []).append(tensor)
    # An index names files beside it; a path would lead elsewhere.
    wrong = [name for name in shards if Path(name).name != name or Path(name).suffix != SUFFIX]
    if not shards or wrong:
        raise InputError(
            f"{folder / INDEX}: weight_map must name files of the folder (*{SUFFIX}), not {wrong}."
        )
    return dict(sorted(shards.items()))


def read_json(path: Path) -> dict[str, Any]:
    try:
        found = strict.read_json(path)
    except FileNotFoundError:
        raise InputError(
            f"{path.parent}: there is no {path.name}. A checkpoint is a folder with config.json "
            f"and {WEIGHTS}."
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is no JSON that can be read ({error}): fetch it again."
        ) from error
    if not isinstance(found, dict):
        raise InputError(f"{path} holds no JSON object: fetch it again.")
    return found


def flat(params: Any) -> dict[str, Any]:
    return dict(zip(wrapping.names(params), jax.tree.leaves(params), strict=True))


def listed(names: Iterable[str]) -> str:
    names = [*names]
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return ", ".join(names[:20]) + more
