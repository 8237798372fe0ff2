"""Image streams and soft boundaries, on small made-up images."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import jcl
from jcl import InputError
from jcl.data import Arrays, Chosen, Images


def images(classes=10, each=30, size=8):
    """The classes in turn; the first pixel of an image is its number, modulo 251."""
    draw = np.random.default_rng(0)

    def part(number):
        inputs = draw.integers(0, 256, (number, size, size)).astype(np.uint8)
        inputs[:, 0, 0] = np.arange(number) % 251
        return inputs, np.arange(number, dtype=np.int32) % classes

    return Images(*part(classes * each), *part(classes * 5))


@pytest.mark.parametrize("degrees", [0, 17.5, 45, 90, 133, 179.9])
@pytest.mark.parametrize("size", [28, 9])
def test_rotation_is_what_pillow_does(degrees, size):
    picture = np.random.default_rng(1).integers(1, 256, (size, size)).astype(np.uint8)
    positions = jcl.data.rotation((size, size), degrees)
    ours = np.where(positions < 0, 0, picture.ravel()[positions]).reshape(size, size)
    pillow = np.asarray(Image.fromarray(picture).rotate(degrees))
    assert np.mean(ours != pillow) <= 0.01  # a pixel whose origin falls on a border may differ


def test_every_permuted_task_moves_the_pixels_its_own_way():
    stream = jcl.data.permuted(images(), tasks=3, seed=4)
    base = images()
    trains = [task.train.arrays()["inputs"].reshape(300, -1) for task in stream.tasks]
    for task, train in zip(stream.tasks, trains, strict=True):
        np.testing.assert_array_equal(
            np.sort(train, axis=1), np.sort(base.train_inputs.reshape(300, -1), axis=1)
        )
        chosen = np.array([7, 7, 299])
        np.testing.assert_array_equal(
            task.train.take(chosen)["inputs"].reshape(3, -1), train[chosen]
        )
        np.testing.assert_array_equal(task.train[7]["inputs"].ravel(), train[7])
        # Train and test move alike.
        order = np.array([np.flatnonzero(np.all(pixel == train.T, axis=1))[0]
                          for pixel in base.train_inputs.reshape(300, -1).T])  # fmt: skip
        test = task.test.arrays()["inputs"].reshape(50, -1)
        np.testing.assert_array_equal(test[:, order], base.test_inputs.reshape(50, -1))
    assert not np.array_equal(trains[0], trains[1])
    assert len({task.hash for task in stream.tasks}) == 3
    again = jcl.data.permuted(images(), tasks=3, seed=4)
    assert [task.hash for task in again.tasks] == [task.hash for task in stream.tasks]
    assert jcl.data.permuted(images(), tasks=3, seed=5).tasks[0].hash != stream.tasks[0].hash


def test_a_rotated_task_turns_every_image_by_its_angle():
    stream = jcl.data.rotated(images(), tasks=2, seed=1)
    angles = np.random.default_rng(1).uniform(0, 180, 2)
    for task, degrees in zip(stream.tasks, angles, strict=True):
        turned = np.asarray(Image.fromarray(images().train_inputs[5]).rotate(degrees))
        ours = task.train[5]["inputs"]
        assert np.mean(ours != turned) < 0.01
    assert stream.tasks[0].name != stream.tasks[1].name


@pytest.mark.parametrize("make", [jcl.data.permuted, jcl.data.rotated])
def test_seeds_share_the_names_of_tasks_so_that_they_can_share_a_program(make):
    names = [[task.name for task in make(images(), 3, seed=seed).tasks] for seed in (0, 1)]
    assert names[0] == names[1]
    assert len(set(names[0])) == 3


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
def test_the_three_scenarios(scenario):
    stream = jcl.data.split(images(), scenario)
    assert [task.name for task in stream.tasks][1] == "classes 2 3"
    assert sum(len(task.train) for task in stream.tasks) == 300
    for number, task in enumerate(stream.tasks):
        for part in (task.train, task.test):
            batch = part.arrays()
            expected = {0, 1} if scenario == "domain" else {2 * number, 2 * number + 1}
            assert set(batch["targets"].tolist()) == expected
            assert ("task" in batch) == ("label_mask" in batch) == (scenario == "task")
            if scenario == "task":
                assert set(batch["task"].tolist()) == {number}
                assert set(np.flatnonzero(batch["label_mask"][0])) == expected
    if scenario == "task":
        only_test = jcl.data.split(images(), "task", masked="test").tasks[0]
        assert "label_mask" not in only_test.train[0]
        assert "label_mask" in only_test.test[0]


def test_mnist_360_meets_every_image_once_in_pairs_of_rising_digits():
    source = images(each=36)
    stream = jcl.data.mnist_360(source, seed=0, rounds=3)
    (stage,) = stream.stages
    assert stage.ordered
    batch = stage.arrays()
    assert len(stage) == 9 * 36  # digit 9 is left out
    assert np.bincount(batch["targets"]).tolist() == [36] * 9
    pairs = batch["targets"].reshape(27, 12)  # 27 visits of 6 images of each digit
    for visit, labels in enumerate(pairs):
        first = visit % 9
        assert np.bincount(labels, minlength=9)[[first, (first + 1) % 9]].tolist() == [6, 6]
    # Digit 1 starts upright: its first image met is one of the source's, unturned.
    first = batch["inputs"][batch["targets"] == 1][0]
    assert any(np.array_equal(first, each) for each in source.train_inputs)
    walk = jcl.data.walk(stage, 10, seed=3)
    np.testing.assert_array_equal(walk[2], np.arange(20, 30))
    assert len(stream.tasks) == 1
    assert len(stream.tasks[0].test) == 45


def test_mnist_360_with_replacement_draws_from_the_same_shares():
    source = images(each=60, size=9)
    source.train_inputs[:, 4, 4] = np.arange(600) % 251  # the middle pixel, which no turn moves
    met = []
    for replacement in (False, True):
        stream = jcl.data.mnist_360(source, rounds=1, replacement=replacement)
        batch = stream.stages[0].arrays()
        np.testing.assert_array_equal(np.bincount(batch["targets"]), [60] * 9)
        met.append(batch["inputs"][batch["targets"] == 0][:, 4, 4].reshape(2, 30))
    assert len(np.unique(met[0])) == 60
    for share, drawn in zip(*met, strict=True):  # the two episodes of digit 0
        assert set(drawn) < set(share)


def numbers_of(stream):
    """Which example (task, index) each of a stream's stages meets, by the inputs it holds."""
    return [stage.arrays()["inputs"].tolist() for stage in stream.stages]


def plain(lengths=(100, 200, 50)):
    starts = np.cumsum([0, *lengths])
    tasks = []
    for number, length in enumerate(lengths):
        inputs = np.arange(starts[number], starts[number + 1])
        source = Arrays({"inputs": inputs, "targets": np.full(length, number)})
        tasks.append(jcl.data.Task(f"t{number}", source, source, str(number)))
    return jcl.data.Stream("plain", tuple(tasks))


def test_blurry_stages_share_a_part_and_lose_nothing():
    stream = jcl.data.blurry(plain(), 0.2, seed=1)
    stages = numbers_of(stream)
    assert sorted(each for stage in stages for each in stage) == list(range(350))
    owns = [(0, 100), (100, 300), (300, 350)]
    for (start, stop), stage, own in zip(owns, stages, (80, 160, 40), strict=True):
        assert sum(start <= each < stop for each in stage) == own
    assert numbers_of(jcl.data.blurry(plain(), 0.0))[1] != []
    with pytest.raises(InputError, match=r"share=1"):
        jcl.data.blurry(plain(), 1.0)


def test_labelled_examples_carry_their_task():
    stream = jcl.data.labelled(plain())
    for number, task in enumerate(stream.tasks):
        for source in (task.train, task.test):
            assert source[3]["task"] == number
            assert source.take(np.arange(4))["task"].tolist() == [number] * 4
            assert source.arrays()["task"].shape == (len(source),)
    met = jcl.data.joint(stream).stages[0].take(np.array([99, 100, 349]))
    assert met["task"].tolist() == [0, 1, 2]
    assert met["inputs"].tolist() == [99, 100, 349]
    with pytest.raises(InputError, match="label the stream first"):
        jcl.data.labelled(jcl.data.joint(plain()))


def test_fuzzy_tasks_fade_into_each_other():
    stream = jcl.data.fuzzy(plain((1000, 1000)), 0.5, seed=1)
    (order,) = numbers_of(stream)
    assert sorted(order) == list(range(2000))
    later = np.array(order) >= 1000
    assert not later[:740].any()
    assert later[1260:].all()
    shares = later[750:1250].reshape(5, 100).mean(axis=1)
    np.testing.assert_allclose(shares, [0.1, 0.3, 0.5, 0.7, 0.9], atol=0.12)
    (sharp,) = numbers_of(jcl.data.fuzzy(plain((100, 100)), 0.0))
    assert max(sharp[:100]) < 100
    assert jcl.data.walk(stream.stages[0], 8, seed=0)[1].tolist() == list(range(8, 16))
    with pytest.raises(InputError, match="no boundary"):
        jcl.data.fuzzy(plain((100,)), 0.5)


def test_chosen_examples_and_constants():
    source = Arrays({"inputs": np.arange(5)}, constants={"task": 2})
    chosen = Chosen(source, np.array([4, 1, 4]))
    assert chosen.arrays()["inputs"].tolist() == [4, 1, 4]
    assert chosen.take(np.array([1, 2]))["inputs"].tolist() == [1, 4]
    assert chosen[0] == {"inputs": 4, "task": 2}
    with pytest.raises(InputError, match="lengths"):
        Arrays({"inputs": np.arange(5), "targets": np.arange(4)})


def test_mnist_is_asked_for_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("JCL_DATA", str(tmp_path))
    with pytest.raises(InputError, match="set JCL_DATA to the folder"):
        jcl.data.mnist()
    (tmp_path / "broken.npz").write_bytes(b"no")
    with pytest.raises(InputError, match="x_train"):
        jcl.data.mnist(tmp_path / "broken.npz")


def test_mnist_of_tensorflow_datasets(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.utils import file_utils

    monkeypatch.delenv("JCL_DATA", raising=False)
    monkeypatch.setattr(file_utils, "list_data_dirs", lambda **_: [tmp_path])
    with pytest.raises(InputError, match="set JCL_DATA.*download_and_prepare"):
        jcl.data.mnist()
    pictures = np.random.default_rng(0).integers(0, 256, (7, 28, 28)).astype(np.uint8)

    with tfds.core.registered.skip_registration():  # the real one has the name

        class Mnist(tfds.core.GeneratorBasedBuilder):
            """As the real one: PNG pictures and the names of ten classes."""

            VERSION = tfds.core.Version("3.0.1")
            pkg_dir_path = tmp_path

            def _info(self):
                features = {
                    "image": tfds.features.Image(shape=(28, 28, 1)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
                return tfds.core.DatasetInfo(
                    builder=self,
                    features=tfds.features.FeaturesDict(features),
                    disable_shuffling=True,
                )

            def _split_generators(self, manager):
                return {
                    "train": self._generate_examples(range(5)),
                    "test": self._generate_examples(range(5, 7)),
                }

            def _generate_examples(self, numbers):
                for number in numbers:
                    path = tmp_path / f"{number}.png"
                    Image.fromarray(pictures[number]).save(path)
                    yield number, {"image": str(path), "label": 9 - number}

    Mnist(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    found = jcl.data.mnist()
    np.testing.assert_array_equal(found.train_inputs, pictures[:5])
    np.testing.assert_array_equal(found.test_inputs, pictures[5:])
    assert (found.train_targets.tolist(), found.test_targets.tolist()) == ([9, 8, 7, 6, 5], [4, 3])


def test_a_target_beyond_the_head_is_refused():
    from jcl.experiment import check

    model = jcl.models.mlp(jcl.models.MLPConfig(inputs=64, hidden=(4,), classes=9))
    experiment = jcl.Experiment(
        name="digits", model=model, loss_fn=jcl.losses.classify(model.apply),
        strategy=jcl.ewc(1.0), stream=jcl.data.permuted(images(), 1), batch_size=300, epochs=1,
        measure=jcl.losses.accuracy(model.apply),
    )  # fmt: skip
    with pytest.raises(InputError, match="targets from 0 to 9 and the model gives 9 logits"):
        check(experiment)


def test_a_target_out_of_range_passes_where_a_mask_leaves_it_out():
    from jcl.experiment import check

    def experiment(mask):
        leaves = {
            "inputs": np.zeros((4, 3), np.float32), "targets": np.array([0, 1, -100, 1], np.int32),
            "mask": np.array(mask, np.float32),
        }  # fmt: skip
        source = jcl.data.Arrays(leaves)
        model = jcl.models.mlp(jcl.models.MLPConfig(inputs=3, hidden=(4,), classes=2))
        return jcl.Experiment(
            name="masked", model=model, loss_fn=jcl.losses.classify(model.apply),
            strategy=jcl.ewc(1.0), batch_size=4, epochs=1,
            stream=jcl.data.Stream("one", (jcl.data.Task("one", source, source, ""),)),
            measure=jcl.losses.accuracy(model.apply),
        )  # fmt: skip

    check(experiment([1, 1, 0, 1]))
    check(experiment([0, 0, 0, 0]))
    with pytest.raises(InputError, match="targets from -100 to 1 .* needs a mask of 0"):
        check(experiment([1, 1, 1, 1]))


@pytest.mark.skipif(
    not (Path(os.environ.get("JCL_DATA", "")) / "mnist" / "mnist.npz").is_file(),
    reason="JCL_DATA holds no mnist/mnist.npz",
)
def test_the_real_mnist():
    digits = jcl.data.mnist()
    assert digits.train_inputs.shape == (60000, 28, 28)
    assert np.bincount(digits.test_targets).tolist() == [
        980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009,
    ]  # fmt: skip
