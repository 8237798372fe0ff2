"""Drawings of the glyphs of the package Hershey-Fonts: characters that need no data set."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from jcl import checks
from jcl.data.characters import Characters
from jcl.data.draws import uniform
from jcl.errors import InputError

_SIZE = 28
_FINE = 3  # a pixel is drawn as 3 x 3 points
_EXTENT = 17.0  # pixels of the longer side of a glyph that is not scaled: none leaves the picture
_SHIFT, _DEGREES, _SCALE, _STROKE = 2.0, 20.0, (0.7, 1.1), (3, 5)
_NUMBERS = 6  # random numbers of one drawing
_ALIKE = 0.2  # of the ink: pictures that differ by less are one class

Strokes = list[np.ndarray]  # [points, 2] each, x to the right and y down


def glyphs(*, drawings: int = 20, seed: int = 0) -> Characters:
    """Every glyph of the 32 Hershey fonts, drawn at 28 x 28 with jitter; nothing is downloaded.

    pixel = matrix(turn, scale) * point + shift, for points along the strokes, under a square pen.

    Latin, Greek, Cyrillic, Gothic and Japanese letters, and signs of music, weather, mathematics
    and astrology. A glyph fills the picture whatever its size in the font, so that a dot is a disc.
    Blank ones are left out, and those that look like one before: without jitter less than a fifth
    of the ink lies elsewhere. 1,040 classes remain. Alphabets are the fonts, many of which share
    letters in other shapes: to test on letters that were never met, choose fonts of a script of
    their own, such as japanese.

    A drawing is shifted by up to 2 pixels each way, turned by up to 20 degrees, scaled by 0.7 to
    1.1 along each axis, and has strokes of 1 to 1.7 pixels, all uniform. Drawing n of a glyph is a
    function of the seed, the glyph and n. Names are such as "greek/A".

    Args:
        drawings: of each glyph.
        seed: of the jitter.

    Raises:
        InputError: the package Hershey-Fonts is not installed, or an argument is out of its range.

    >>> from jcl.data import glyphs
    >>> characters = glyphs(drawings=1)
    >>> len(characters), characters[0]["inputs"].shape, characters.names[0]
    (1040, (28, 28), 'astrology/!')
    """
    drawings = checks.whole("glyphs", "drawings", drawings)
    seed = checks.whole("glyphs", "seed", seed, least=0)
    chosen = _distinct(_fonts())
    inputs = np.empty((len(chosen), drawings, _SIZE, _SIZE), np.uint8)
    for index, points in enumerate(chosen.values()):
        numbers = uniform(seed, index * 2**32 + np.arange(drawings), _NUMBERS)
        inputs[index] = _draw(points, *_jitter(numbers))
    return Characters(
        inputs.reshape(-1, _SIZE, _SIZE),
        np.repeat(np.arange(len(chosen)), drawings),
        list(chosen),
        [name.split("/")[0] for name in chosen],
    )


def _fonts() -> dict[str, Strokes]:
    """Returns {"font/character": strokes} of all fonts, blank glyphs left out."""
    try:
        from HersheyFonts import HersheyFonts
    except ModuleNotFoundError:
        raise InputError('glyphs needs a package: pip install "jcl[demo]"') from None
    package: Any = HersheyFonts()
    found = {}
    for font in sorted(package.default_font_names):
        package.load_default_font(font)
        for character, glyph in package.all_glyphs.items():
            strokes = [np.array(stroke, float) for stroke in glyph.strokes]
            if strokes:
                found[f"{font}/{character}"] = strokes
    return found


def _distinct(fonts: dict[str, Strokes]) -> dict[str, np.ndarray]:
    """Returns the points of each glyph that does not look like one before, by its name."""
    points = {name: _points(strokes) for name, strokes in fonts.items()}
    pictures = _plain(list(points.values())).reshape(len(points), -1).astype(np.int16)
    ink = pictures.sum(axis=1)
    kept = np.empty(0, int)
    for index, own in enumerate(pictures):
        # Where the ink alone differs by so much, the pictures do.
        limits = _ALIKE * np.maximum(ink[kept], ink[index])
        near = np.abs(ink[kept] - ink[index]) < limits
        apart = np.abs(pictures[kept[near]] - own).sum(axis=1)
        if not (apart < limits[near]).any():
            kept = np.append(kept, index)
    names = list(points)
    return {names[index]: points[names[index]] for index in kept}


def _plain(points: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures [glyphs, 28, 28] uint8 without jitter, of strokes in the middle of their widths."""
    straight = np.eye(2)[None], np.zeros((1, 2)), np.array([np.mean(_STROKE)])
    return np.concatenate([_draw(each, *straight) for each in points])


def _points(strokes: Strokes) -> np.ndarray:
    """Points along the strokes: [points, 2], in pixels from the middle of the glyph."""
    corners = np.concatenate(strokes)
    low, high = corners.min(axis=0), corners.max(axis=0)
    scale = _EXTENT / (high - low).max()
    starts = (np.concatenate([stroke[:-1] for stroke in strokes]) - (low + high) / 2) * scale
    lines = np.concatenate([np.diff(stroke, axis=0) for stroke in strokes]) * scale
    # At most a fine point apart, also where the drawing is scaled up and turned.
    parts = np.ceil(np.abs(lines).max(axis=1) * _FINE * _SCALE[1] * np.sqrt(2)).astype(int) + 1
    line = np.repeat(np.arange(len(lines)), parts + 1)
    first = np.cumsum(parts + 1) - (parts + 1)
    share = (np.arange(len(line)) - first[line]) / parts[line]
    return starts[line] + share[:, None] * lines[line]


def _jitter(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """From [drawings, 6] in [0, 1): matrices [drawings, 2, 2], shifts [drawings, 2], strokes."""
    angle = np.deg2rad(_DEGREES) * (2 * numbers[:, 0] - 1)
    scale = _SCALE[0] + (_SCALE[1] - _SCALE[0]) * numbers[:, 1:3]
    cosine, sine = np.cos(angle), np.sin(angle)
    turn = np.stack([cosine, -sine, sine, cosine], axis=-1).reshape(-1, 2, 2)
    shift = _SHIFT * (2 * numbers[:, 3:5] - 1)
    thin, thick = _STROKE
    return turn * scale[:, None], shift, thin + np.floor(numbers[:, 5] * (thick - thin + 1))


def _draw(
    points: np.ndarray, matrices: np.ndarray, shifts: np.ndarray, strokes: np.ndarray
) -> np.ndarray:
    """Pictures [drawings, 28, 28] uint8 of points; `strokes` are widths in fine points."""
    size = _SIZE * _FINE
    moved = points @ matrices.swapaxes(1, 2) + shifts[:, None] + _SIZE / 2
    column, row = np.moveaxis(np.floor(moved * _FINE).astype(int), -1, 0)
    fine = np.zeros((len(shifts), size, size), bool)
    fine[np.arange(len(shifts))[:, None], row, column] = True
    # A square pen, which grows by a fine point at a time, back and forth in turn.
    for width in range(2, _STROKE[1] + 1):
        chosen = strokes >= width
        wider = fine[chosen]
        for axis in (1, 2):
            earlier = (slice(None),) * axis + (slice(None, -1),)
            later = (slice(None),) * axis + (slice(1, None),)
            to, of = (later, earlier) if width % 2 else (earlier, later)
            wider[to] |= wider[of].copy()
        fine[chosen] = wider
    # Slices are added several times faster than a sum over short axes is taken.
    count = fine.view(np.uint8)
    count = functools.reduce(np.add, (count[:, start::_FINE] for start in range(_FINE)))
    count = functools.reduce(np.add, (count[:, :, start::_FINE] for start in range(_FINE)))
    return np.round(np.arange(_FINE**2 + 1) * 255 / _FINE**2).astype(np.uint8)[count]
