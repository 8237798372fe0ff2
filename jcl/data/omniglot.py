"""Omniglot: handwritten characters of many alphabets, 20 drawings of each."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from jcl import strict
from jcl.data.characters import Characters
from jcl.data.prepared import prepared
from jcl.errors import InputError

_SIZE = 28
_KEYS = ("images", "character", "character_names")


def omniglot(folder: str | os.PathLike | None = None) -> Characters:
    """Omniglot's characters (Lake et al. 2015) at 28 x 28, 20 drawings each.

    Classes are in the alphabetical order of their names, such as "Greek/character01"; a character
    that two files hold counts once. The pixels are uint8, and 255 is ink.

    Args:
        folder: with files omniglot_*.npz, each with the arrays images [drawings, 28, 28] uint8 (255
            is ink), character [drawings] and character_names; by default omniglot in the folder
            that the environment variable JCL_DATA names, or else tensorflow-datasets' omniglot
            (all 1,623 characters, reduced by a box filter), where that has been prepared with the
            file format array_record.

    Raises:
        InputError: it is found nowhere, or a file lacks an array.
    """
    root = os.environ.get("JCL_DATA")
    if folder is None and root:
        folder = Path(root) / "omniglot"
    if folder is None:
        return _prepared()
    files = sorted(Path(folder).glob("omniglot_*.npz"))
    if not files:
        raise InputError(
            f"There is no omniglot_*.npz in {folder}: give jcl.data.omniglot the folder that holds "
            "them, or set JCL_DATA to the folder above an omniglot of such files."
        )
    drawings: dict[str, np.ndarray] = {}
    for file in files:
        images, numbers, names = _read(file)
        for number, name in enumerate(names):
            drawings.setdefault(name, images[numbers == number])
    return _characters(drawings)


def _characters(drawings: dict[str, np.ndarray]) -> Characters:
    names = sorted(drawings)
    return Characters(
        np.concatenate([drawings[name] for name in names]),
        np.repeat(np.arange(len(names)), [len(drawings[name]) for name in names]),
        names,
        [name.rsplit("/", 1)[0] for name in names],
    )


def _read(file: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    try:
        images, numbers, names = strict.read_npz(file, _KEYS).values()
        if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
            raise ValueError(f"character is {numbers.dtype}{[*numbers.shape]}")
        if names.ndim != 1 or names.dtype.kind != "U":
            raise ValueError(f"character_names are {names.dtype}{[*names.shape]}")
        if {*np.unique(numbers).tolist()} != {*range(len(names))}:
            raise ValueError("character and character_names are not of the same characters")
    except (ValueError, OSError) as error:
        raise InputError(f"{file} is no npz file with {', '.join(_KEYS)} ({error}).") from error
    if images.dtype != np.uint8 or images.shape != (len(numbers), _SIZE, _SIZE):
        raise InputError(
            f"{file}: images are {images.dtype}{list(images.shape)} for {len(numbers)} drawings: "
            f"they must be uint8[drawings, {_SIZE}, {_SIZE}]"
        )
    return images, numbers, [str(name) for name in names]


def _prepared() -> Characters:
    """From tensorflow-datasets, already on the disk; nothing is downloaded."""
    found: dict[str, list[np.ndarray]] = {}
    try:
        builder = prepared("omniglot")
        alphabets = builder.info.features["alphabet"]
        for part in ("train", "test"):
            source: Any = builder.as_data_source(part)
            for index in range(len(source)):
                example = source[index]
                alphabet = alphabets.int2str(int(example["alphabet"]))
                name = f"{alphabet}/character{int(example['alphabet_char_id']) + 1:02}"
                found.setdefault(name, []).append(_reduced(np.asarray(example["image"])))
    except Exception as error:
        raise InputError(
            f"omniglot is found neither in JCL_DATA (unset) nor in tensorflow-datasets "
            f"({type(error).__name__}): set JCL_DATA to a folder with omniglot/omniglot_*.npz, or "
            'run tfds.builder("omniglot", file_format="array_record").download_and_prepare() once.'
        ) from error
    return _characters({name: np.stack(drawings) for name, drawings in found.items()})


def _reduced(paper: np.ndarray) -> np.ndarray:
    """The ink, [28, 28], of black on white; what decodes a picture gives 1 or 255 to the white."""
    from PIL import Image

    ink = (paper.reshape(*paper.shape[:2], -1)[..., 0] == 0) * np.uint8(255)
    return np.asarray(Image.fromarray(ink).resize((_SIZE, _SIZE), Image.Resampling.BOX))
