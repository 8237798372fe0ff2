"""Omniglot and the glyphs that need no data set."""

import importlib.metadata
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import jcl
from jcl import InputError
from jcl.data import Characters, Episodes, quarter_turns, split_classes

MODULE = sys.modules["jcl.data.glyphs"]  # jcl.data.glyphs is the function


def few(classes=3, drawings=2):
    inputs = np.random.default_rng(0).integers(0, 256, (classes * drawings, 28, 28), np.uint8)
    names = [f"alphabet{number % 2}/character{number}" for number in range(classes)]
    targets = np.repeat(np.arange(classes), drawings)
    return Characters(inputs, targets, names, [name.split("/")[0] for name in names])


def test_quarter_turns_make_four_classes_of_one():
    plain = few()
    turned = quarter_turns(plain)
    assert (turned.classes, len(turned)) == (12, 24)
    leaves = turned.arrays()
    assert np.bincount(leaves["targets"]).tolist() == [2] * 12
    for turns in range(4):
        for index in range(6):
            example = turned[turns * 6 + index]
            picture = Image.fromarray(plain[index]["inputs"]).rotate(90 * turns)
            np.testing.assert_array_equal(example["inputs"], np.asarray(picture))
            assert example["targets"] == plain[index]["targets"] + 3 * turns
    # All turns of a character are on one side.
    split = split_classes(turned.names, test=1)
    assert len(split.test) == 4
    assert len(set(split.test % 3)) == 1
    assert turned.alphabets == plain.alphabets * 4
    assert turned.hash() != plain.hash()


def test_every_class_has_a_name():
    with pytest.raises(InputError, match="2 classes, 1 names and 2 alphabets"):
        Characters(np.zeros((2, 28, 28), np.uint8), np.arange(2), ["a"], ["x", "x"])


def save(path, names, images):
    np.savez(
        path, images=np.concatenate(images), character_names=np.array(names),
        character=np.repeat(np.arange(len(names)), [len(each) for each in images]),
    )  # fmt: skip


def test_omniglot_unites_the_files_of_a_folder(tmp_path, monkeypatch):
    pictures = np.random.default_rng(0).integers(0, 256, (5, 4, 28, 28), np.uint8)
    (tmp_path / "omniglot").mkdir()
    save(tmp_path / "omniglot" / "omniglot_a.npz", ["Latin/2", "Greek/1"], pictures[:2])
    save(tmp_path / "omniglot" / "omniglot_b.npz", ["Greek/1", "Korean/1"], pictures[1:3])
    monkeypatch.setenv("JCL_DATA", str(tmp_path))
    found = jcl.data.omniglot()
    assert found.names == ("Greek/1", "Korean/1", "Latin/2")
    assert found.alphabets == ("Greek", "Korean", "Latin")
    leaves = found.arrays()
    np.testing.assert_array_equal(leaves["inputs"], pictures[[1, 2, 0]].reshape(12, 28, 28))
    assert leaves["targets"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    with pytest.raises(InputError, match="no omniglot_.*npz in .*set JCL_DATA"):
        jcl.data.omniglot(tmp_path)
    (tmp_path / "omniglot_broken.npz").write_bytes(b"no")
    with pytest.raises(InputError, match=r"omniglot_broken.npz is no npz file with images"):
        jcl.data.omniglot(tmp_path)
    save(tmp_path / "omniglot_broken.npz", ["a/1"], [np.zeros((2, 105, 105), np.uint8)])
    with pytest.raises(InputError, match=r"uint8\[2, 105, 105\] .* they must be uint8\[drawings"):
        jcl.data.omniglot(tmp_path)


def test_omniglot_of_tensorflow_datasets(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.utils import file_utils

    monkeypatch.delenv("JCL_DATA", raising=False)
    monkeypatch.setattr(file_utils, "list_data_dirs", lambda **_: [tmp_path])
    with pytest.raises(InputError, match="set JCL_DATA.*download_and_prepare"):
        jcl.data.omniglot()
    paper = np.random.default_rng(0).random((4, 105, 105)) < 0.9

    with tfds.core.registered.skip_registration():  # the real one has the name

        class Omniglot(tfds.core.GeneratorBasedBuilder):
            """As the real one: black and white PNG pictures, 255 the paper."""

            VERSION = tfds.core.Version("3.0.0")
            pkg_dir_path = tmp_path

            def _info(self):
                features = {
                    "image": tfds.features.Image(shape=(105, 105, 3), encoding_format="png"),
                    "alphabet": tfds.features.ClassLabel(names=["Greek", "Latin"]),
                    "alphabet_char_id": np.int64,
                    "label": tfds.features.ClassLabel(num_classes=3),
                }
                return tfds.core.DatasetInfo(
                    builder=self,
                    features=tfds.features.FeaturesDict(features),
                    disable_shuffling=True,
                )

            def _split_generators(self, manager):
                return {
                    "train": self._generate_examples(range(3)),
                    "test": self._generate_examples(range(3, 4)),
                }

            def _generate_examples(self, numbers):
                for number in numbers:
                    path = tmp_path / f"{number}.png"
                    Image.fromarray(paper[number]).save(path)  # one bit a pixel, as the originals
                    alphabet, character = [(1, 0), (0, 11), (1, 0), (0, 2)][number]
                    yield number, {
                        "image": str(path), "alphabet": alphabet, "alphabet_char_id": character,
                        "label": 0,
                    }  # fmt: skip

    Omniglot(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    found = jcl.data.omniglot()
    assert found.names == ("Greek/character03", "Greek/character12", "Latin/character01")
    leaves = found.arrays()
    assert leaves["targets"].tolist() == [0, 1, 2, 2]
    ink = 255.0 * ~paper[[3, 1, 0, 2]]
    # A box filter: a pixel is the mean of 3.75 x 3.75 points, so of 15 x 15 quarters of them.
    expected = ink.repeat(4, axis=1).repeat(4, axis=2).reshape(4, 28, 15, 28, 15).mean(axis=(2, 4))
    # Pillow gives every point to whole pixels, hence not 1.
    assert np.corrcoef(leaves["inputs"].ravel(), expected.ravel())[0, 1] > 0.9
    np.testing.assert_allclose(leaves["inputs"].mean(), ink.mean(), rtol=0.05)


@pytest.mark.parametrize("white", [1, 255])
def test_ink_is_what_is_black_whatever_decodes_it(white):
    from jcl.data.omniglot import _reduced

    paper = np.full((105, 105), white, np.uint8)
    paper[15:30, 45:60] = 0
    for picture in (paper, np.repeat(paper[..., None], 3, axis=2)):
        ink = _reduced(picture)
        assert ink.dtype == np.uint8
        assert ink[4:8, 12:16].tolist() == [[255] * 4] * 4
        assert ink.sum() == 255 * 16


@pytest.mark.skipif(
    not list((Path(os.environ.get("JCL_DATA", "")) / "omniglot").glob("omniglot_*.npz")),
    reason="JCL_DATA holds no omniglot/omniglot_*.npz",
)
def test_the_real_omniglot():
    found = jcl.data.omniglot()
    assert (found.classes, len(set(found.alphabets)), len(found)) == (242, 8, 4840)
    leaves = found.arrays()
    assert leaves["inputs"].dtype == np.uint8
    assert np.bincount(leaves["targets"]).tolist() == [20] * 242
    assert 0.05 < leaves["inputs"].mean() / 255 < 0.12  # ink is the rarer
    assert leaves["inputs"].max() == 255
    # One drawing of a character is nearer to another of it than to one of another.
    made = Episodes(found, 5, 1, 1, number=300, seed=0)
    assert nearest(made.arrays()) > 0.3


def nearest(batch):
    """The accuracy of the nearest support picture."""
    inputs, support = (
        batch[key].reshape(*batch[key].shape[:2], -1) / 255 for key in ("inputs", "support_inputs")
    )
    distance = ((inputs[:, :, None] - support[:, None]) ** 2).sum(axis=-1)
    found = np.take_along_axis(batch["support_targets"], distance.argmin(axis=-1), axis=1)
    return np.mean(found == batch["targets"])


@pytest.fixture(scope="module")
def fonts():
    pytest.importorskip("HersheyFonts", reason='needs pip install "jcl[demo]"')
    return MODULE._fonts()  # which takes most of the time


@pytest.fixture(scope="module")
def drawn(fonts):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODULE, "_fonts", lambda: fonts)
        return jcl.data.glyphs(drawings=4)


def test_glyphs_are_many_classes_of_their_own(drawn):
    assert (drawn.classes, len(drawn)) == (1040, 4 * 1040)
    assert len(set(drawn.names)) == 1040
    leaves = drawn.arrays()
    pictures = leaves["inputs"]
    assert pictures.dtype == np.uint8
    assert leaves["targets"].tolist() == np.repeat(np.arange(1040), 4).tolist()
    assert pictures.sum(axis=(1, 2)).min() > 8 * 255  # none is blank
    assert pictures.mean() / 255 < 0.15  # ink is the rarer
    # Jitter makes every drawing its own, and leaves its class to be seen.
    assert len({picture.tobytes() for picture in pictures}) > 0.998 * len(pictures)
    assert 0.4 < nearest(Episodes(drawn, 5, 1, 2, number=200, seed=0).arrays()) < 0.7


def test_glyphs_stay_within_the_picture(drawn):
    pictures = drawn.arrays()["inputs"]
    rows, columns = np.mgrid[:28, :28]
    mass = pictures.sum(axis=(1, 2), dtype=float)
    for place in (rows, columns):
        middle = (pictures * place).sum(axis=(1, 2)) / mass
        assert 5 < middle.min() < middle.max() < 22
        assert abs(middle.mean() - 13.5) < 0.5
    edge = np.concatenate([pictures[:, [0, -1]].ravel(), pictures[:, :, [0, -1]].ravel()])
    assert np.mean(edge > 0) < 0.01


def test_drawings_are_a_function_of_the_seed(fonts, drawn, monkeypatch):
    pictures = drawn.arrays()["inputs"].reshape(1040, 4, 28, 28)
    first = dict(list(fonts.items())[:60])
    monkeypatch.setattr(MODULE, "_fonts", lambda: first)
    again = jcl.data.glyphs(drawings=2)
    number = again.classes
    assert 30 < number <= 60
    fewer = again.arrays()["inputs"].reshape(number, 2, 28, 28)
    np.testing.assert_array_equal(fewer, pictures[:number, :2])
    other = jcl.data.glyphs(drawings=2, seed=1).arrays()["inputs"].reshape(number, 2, 28, 28)
    assert np.mean(np.all(other == fewer, axis=(2, 3))) < 0.02


def test_a_glyph_without_jitter_is_its_strokes():
    _distinct, _draw, _points = MODULE._distinct, MODULE._draw, MODULE._points
    square = [np.array([[0, 0], [40, 0], [40, 20], [0, 20], [0, 0]], float)]
    points = _points(square)
    assert np.abs(points).max(axis=0).tolist() == [8.5, 4.25]
    gaps = np.linalg.norm(np.diff(points, axis=0), axis=1)
    assert gaps.max() < 1 / 3
    plain = np.eye(2)[None], np.zeros((1, 2))
    (picture,) = _draw(points, *plain, np.array([3]))
    # 14 -+ 8.5 and 14 -+ 4.25 pixels, in thirds, a pen of three thirds around the point.
    expected = np.zeros((84, 84))
    expected[28:58, 15:69] = 1
    expected[31:55, 18:66] = 0
    expected = np.round(expected.reshape(28, 3, 28, 3).mean(axis=(1, 3)) * 255)
    assert np.abs(picture - expected).max() <= 85  # a third of a pixel
    assert [_draw(points, *plain, np.array([w])).sum() > picture.sum() for w in (4, 5)] == [1, 1]
    # Size, place, and the order of the strokes do not make another glyph.
    moved = [3.0 * square[0][::-1] + 5]
    other = [square[0][:3]]
    assert list(_distinct({"a": square, "b": moved, "c": other})) == ["a", "c"]


def test_glyphs_need_their_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "HersheyFonts", None)
    with pytest.raises(InputError, match=r'pip install "jcl\[demo\]"'):
        jcl.data.glyphs()
    with pytest.raises(InputError, match=r"glyphs\(drawings=0\)"):
        jcl.data.glyphs(drawings=0)


def test_the_package_is_the_one_whose_glyphs_were_counted():
    pytest.importorskip("HersheyFonts", reason='needs pip install "jcl[demo]"')
    root = Path(__file__).parent.parent
    version = importlib.metadata.version("Hershey-Fonts")
    for file in ("pyproject.toml", "constraints.txt"):
        assert f"Hershey-Fonts=={version}" in (root / file).read_text(), file
