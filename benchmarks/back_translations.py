"""Writes the back-translations that benchmarks/augmentation.py gives to back_translation.

Command:  python benchmarks/back_translations.py [TEXTS ...] [--pair eng-cat --back cat-eng]
TEXTS are banking77 and clinc150; without names both. Every text that the table's runs learn from
goes into another language and back by Apertium, a translator by rules that needs no network
(Debian: apt install apertium apertium-eng-cat); what it makes nothing of stays as it is. Needs
JCL_DATA.
"""

import argparse
import json
import shutil
import subprocess

import augmentation as table
import reproduce

from jcl.__main__ import load_config


def translated(pair, lines):
    """Each line in the pair's other language, a word that it does not know as it is."""
    if shutil.which("apertium") is None:
        raise SystemExit("There is no apertium: apt install apertium apertium-eng-cat.")
    found = []
    # In parts, and every line a sentence, since Apertium's rules look as far as to the full stop.
    for begin in range(0, len(lines), 100):
        part = lines[begin : begin + 100]
        done = subprocess.run(
            ["apertium", "-u", "-f", "line", pair],
            input="".join(f"{line} .\n" for line in part),
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        made = [line.strip().removesuffix(".").strip() for line in done.stdout.splitlines()]
        if len(made) != len(part):
            raise SystemExit(f"apertium {pair} made {len(made)} lines of {len(part)}.")
        found += made
    return found


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="TEXTS")
    parser.add_argument("--pair", default="eng-cat")
    parser.add_argument("--back", default="cat-eng")
    options = parser.parse_args(arguments)
    if unknown := sorted({*options.names} - {*table.TEXTS}):
        parser.error(f"{unknown[0]!r} is no texts: name some of {', '.join(table.TEXTS)}.")
    config = load_config(reproduce.ROOT / "configs" / "augmentation.py")
    for name in options.names or table.TEXTS:
        settings = config.Config(texts=name)
        trains = [task.train for task in config.intents(name, settings.length).tasks]
        every = [text for train in trains for text in train.texts]
        rows = [config.drawn(trains, settings.shots, seed) for seed in range(table.SEEDS)]
        texts = sorted({every[row] for own in rows for row in own})
        there = translated(options.pair, [" ".join(text.split()) for text in texts])
        back = translated(options.back, there)
        found = {text: new or text for text, new in zip(texts, back, strict=True)}
        _, path = table.needed(name, "back_translation")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, ensure_ascii=False, indent=0))
        changed = sum(found[text] != text for text in texts)
        print(f"{path}: {len(texts)} texts, {changed} of them changed")


if __name__ == "__main__":
    main()
