"""Sets of tensorflow-datasets that are on the disk already; nothing is downloaded or executed."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jcl import strict

_OWN = "tensorflow_datasets.core.features."


def prepared(name: str) -> Any:
    """tensorflow-datasets' builder of a prepared set, from its files alone.

    Building it by name would ask the network what can be downloaded. The files name the classes of
    the set's features, whose modules tensorflow-datasets imports, whichever they are: any but its
    own are refused.

    Raises:
        Exception: of many kinds, where there is no such set, or its files are not as they should
            be; the message says which.
    """
    from tensorflow_datasets.core import read_only_builder
    from tensorflow_datasets.core.utils import error_utils

    find = error_utils.reraise_with_context(Exception)(read_only_builder._find_builder_dir)
    folder = find(name)
    if folder is None:
        raise FileNotFoundError(f"no folder of tensorflow-datasets holds files of {name}")
    for file in ("features.json", "dataset_info.json"):
        path = Path(folder) / file
        for named in _classes(strict.read_json(path)) if path.exists() else ():
            if not (isinstance(named, str) and named.startswith(_OWN)):
                raise ValueError(f"{path} names {named!r}, none of tensorflow-datasets' features")
    return read_only_builder.builder_from_directory(folder)


def _classes(value: Any) -> Iterator[Any]:
    """The names of classes in a set's description, some of which is JSON in a string of JSON."""
    if isinstance(value, list):
        for each in value:
            yield from _classes(each)
    if isinstance(value, dict):
        for key, inner in value.items():
            dotted = isinstance(inner, str) and "." in inner
            if key in ("pythonClassName", "python_class_name") or (key == "type" and dotted):
                yield inner
            elif isinstance(inner, str) and _is_json(inner):
                yield from _classes(strict.parse_json(inner))
            else:
                yield from _classes(inner)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
