"""Translation there and back by two checkpoints of Hugging Face's, run by PyTorch."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jcl import checks
from jcl.errors import InputError
from jcl.models.hf import tokenizer

_CONTENT = (".safetensors", ".json", ".spm", ".model", ".txt")


class Translator(NamedTuple):
    """A function of a text, as `jcl.data.augmentation.back_translation` takes it.

    Attributes:
        function: text -> the same text, translated there and back.
        name: the folders' names and a SHA-256 of what they hold, for the hash of a task.
    """

    function: Callable[[str], str]
    name: str

    def __call__(self, text: str) -> str:
        return self.function(text)


def translator(
    there: str | os.PathLike[str],
    back: str | os.PathLike[str],
    *,
    prefixes: tuple[str, str] = ("", ""),
    length: int = 128,
) -> Translator:
    """Translates a text into another language and back, always in the same way.

    text' = back(there(text)), each the likeliest token after the other.

    jcl has no encoder-decoder of its own: the checkpoints are loaded by transformers and run by
    PyTorch on the CPU, in float32, one text at a time, so that a translation depends on no other
    text. The same folders, versions and machine give the same translation. A text of which no word
    comes back stays as it is.

    Args:
        there: the folder of a checkpoint in safetensors with its tokenizer: Marian (Opus-MT, a
            folder for each direction) or another that transformers.AutoModelForSeq2SeqLM loads and
            that needs no code for its target language.
        back: of the other direction; T5 has one folder for both.
        prefixes: put before a text, there and back, such as T5's "translate English to German: ".
        length: tokens of a text and of its translation, at most; the rest is cut.

    Raises:
        InputError: torch is not installed; a folder is missing, or holds no such checkpoint.
    """
    length = checks.whole("translator", "length", length)
    folders = [Path(there), Path(back)]
    directions = [
        _direction(folder, prefix, length) for folder, prefix in zip(folders, prefixes, strict=True)
    ]

    def function(text):
        found = text
        for direction in directions:
            found = direction(found)
        return found if found.strip() else text

    digest = hashlib.sha256(repr((prefixes, length)).encode())
    for folder in folders:
        for path in sorted(each for each in folder.iterdir() if each.suffix in _CONTENT):
            digest.update(f"{path.name} {path.stat().st_size}".encode())
            digest.update(path.read_bytes())
    names = " and ".join(folder.resolve().name for folder in folders)
    return Translator(function, f"{names} {digest.hexdigest()}")


def _direction(folder: Path, prefix: str, length: int) -> Callable[[str], str]:
    if not folder.is_dir():
        raise InputError(
            f"translator: there is no folder {folder}: give one with config.json, "
            "model.safetensors and the tokenizer's files."
        )
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        raise InputError(
            "translator: a translation checkpoint needs PyTorch, and Marian's tokenizer "
            "sentencepiece: pip install torch sentencepiece."
        ) from None
    from transformers import AutoModelForSeq2SeqLM

    words = tokenizer(folder)
    try:
        model: Any = AutoModelForSeq2SeqLM.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, local_files_only=True,
            trust_remote_code=False,
        )  # fmt: skip
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"translator: {folder} holds no translation checkpoint that transformers loads from "
            f"safetensors ({reason}). A pickle that you trust becomes one by transformers' "
            "AutoModelForSeq2SeqLM.from_pretrained(...).save_pretrained(...)."
        ) from error
    model.eval()

    def direction(text):
        given = words(prefix + text, return_tensors="pt", truncation=True, max_length=length)
        with torch.no_grad():
            (ids,) = model.generate(
                given["input_ids"], attention_mask=given["attention_mask"], do_sample=False,
                num_beams=1, max_new_tokens=length,
            )  # fmt: skip
        return words.decode(ids, skip_special_tokens=True)

    return direction
