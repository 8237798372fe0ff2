"""Few-shot episodes, sine waves, classes divided for meta-learning; small made-up sources."""

import time

import numpy as np
import pytest

import jcl
from jcl import InputError
from jcl.data import Arrays, Episodes, class_tasks, sinusoids, split_classes
from jcl.data.draws import distinct, uniform

CLASSES, EACH = 9, 12


def source(classes=CLASSES, each=EACH, **more):
    """inputs are the numbers of the examples; classes do not stand in order."""
    targets = np.random.default_rng(0).permutation(np.repeat(np.arange(classes), each))
    return Arrays({"inputs": np.arange(classes * each), "targets": targets, **more})


def episodes(**changes):
    arguments = {"ways": 4, "shots": 2, "queries": 3, "number": 200, "seed": 5, **changes}
    return Episodes(arguments.pop("source", source()), **arguments)


def same(one, other):
    assert set(one) == set(other)
    for key, leaf in one.items():
        np.testing.assert_array_equal(leaf, other[key])
        assert leaf.dtype == other[key].dtype


def test_numbers_depend_on_their_place_alone():
    every = uniform(3, np.arange(1000), 50)
    np.testing.assert_array_equal(uniform(3, np.array([700, 4]), 20), every[[700, 4], :20])
    assert len(np.unique(every)) == every.size
    assert not np.isin(uniform(4, np.arange(1000), 50), every).any()
    assert every.min() >= 0
    assert every.max() < 1
    share = np.histogram(every, bins=10, range=(0, 1))[0] / every.size
    np.testing.assert_allclose(share, 0.1, atol=0.006)  # 4.5 standard deviations
    assert abs(np.corrcoef(every[:, 0], every[:, 1])[0, 1]) < 0.13
    assert abs(np.corrcoef(every[1:, 0], every[:-1, 0])[0, 1]) < 0.13


def test_draws_without_replacement_meet_every_order_equally_often():
    drawn = distinct(uniform(0, np.arange(12000), 3), np.full(12000, 4))
    orders, counts = np.unique(drawn, axis=0, return_counts=True)
    assert len(orders) == 24
    assert all(len(set(order)) == 3 for order in orders.tolist())
    np.testing.assert_allclose(counts, 500, atol=100)  # 4.5 standard deviations
    np.testing.assert_array_equal(np.sort(distinct(uniform(0, np.arange(5), 7), 7)), [range(7)] * 5)
    assert distinct(np.full((2, 2), 1 - 2**-53), np.array([2, 9])).tolist() == [[1, 0], [8, 0]]


def test_an_episode_is_a_small_task_of_its_own():
    labels = source().arrays()["targets"]
    batch = episodes().take(np.arange(200))
    assert batch["targets"].dtype == batch["support_targets"].dtype == np.int32
    assert batch["inputs"].shape == batch["targets"].shape == (200, 12)
    assert batch["support_inputs"].shape == batch["support_targets"].shape == (200, 8)
    first_classes = []
    for inputs, targets, support, support_targets in zip(
        *(batch[k] for k in ("inputs", "targets", "support_inputs", "support_targets")), strict=True
    ):
        assert len({*inputs.tolist(), *support.tolist()}) == 20  # nothing is drawn twice
        home = dict(zip(support_targets.tolist(), labels[support].tolist(), strict=True))
        assert len(set(home.values())) == 4
        assert [home[way] for way in targets.tolist()] == labels[inputs].tolist()
        assert [home[way] for way in support_targets.tolist()] == labels[support].tolist()
        first_classes.append(home[0])
    # A way is no class of the source: way 0 is each of the nine in turn.
    assert np.bincount(first_classes, minlength=CLASSES).min() >= 8


def test_every_class_and_every_example_is_met_equally_often():
    batch = episodes(number=4000).arrays()
    for key, each in (("inputs", 4000 * 12 / 108), ("support_inputs", 4000 * 8 / 108)):
        counts = np.bincount(batch[key].ravel(), minlength=CLASSES * EACH)
        np.testing.assert_allclose(counts, each, atol=5 * np.sqrt(each))


def test_an_episode_is_a_function_of_the_arguments_and_of_its_number():
    whole = episodes().arrays()
    some = np.array([150, 3, 150])
    same(episodes().take(some), {key: leaf[some] for key, leaf in whole.items()})
    same(episodes(number=10_000)[150], {key: leaf[150] for key, leaf in whole.items()})
    assert not np.array_equal(episodes(seed=6)[3]["inputs"], whole["inputs"][3])
    assert not np.array_equal(whole["inputs"][4], whole["inputs"][3])
    more = episodes(shots=5).take(np.arange(200))
    np.testing.assert_array_equal(more["inputs"], whole["inputs"])
    nested = more["support_inputs"].reshape(200, 4, 5)[..., :2]
    np.testing.assert_array_equal(nested, whole["support_inputs"].reshape(200, 4, 2))
    for index in (-1, 200, 0.5):
        with pytest.raises(IndexError, match="of 200"):
            episodes()[index]


def test_the_hash_tells_what_is_drawn():
    base = episodes().hash()
    assert episodes().hash() == base
    changed = [
        episodes(ways=3), episodes(shots=1), episodes(queries=1), episodes(number=201),
        episodes(seed=1), episodes(classes=range(8)), episodes(padded_shots=3),
        episodes(source=source(each=13)),
    ]  # fmt: skip
    assert len({base, *(each.hash() for each in changed)}) == 9


def test_pixels_stay_bytes_and_further_keys_are_gathered_too():
    pixels = np.arange(108, dtype=np.uint8)[:, None, None] + np.zeros((1, 2, 3), np.uint8)
    made = episodes(source=source(inputs=pixels, attention_mask=np.arange(108) * 2))
    batch = made.take(np.arange(6))
    assert batch["inputs"].dtype == np.uint8
    assert batch["inputs"].shape == (6, 12, 2, 3)
    for prefix in ("", "support_"):
        first = batch[f"{prefix}inputs"][..., 0, 0].astype(int)
        np.testing.assert_array_equal(batch[f"{prefix}attention_mask"], first * 2)
    assert set(batch) == {
        *("inputs", "attention_mask", "targets", "support_inputs", "support_attention_mask"),
        "support_targets",
    }


def test_fewer_shots_are_padded_to_a_common_size():
    plain, padded = episodes(shots=2).arrays(), episodes(shots=2, padded_shots=5).arrays()
    assert padded["support_mask"].dtype == np.float32
    assert padded["support_mask"].tolist() == [[1, 1, 0, 0, 0] * 4] * 200
    real = padded["support_mask"] == 1
    for key, leaf in plain.items():
        ours = padded[key]
        np.testing.assert_array_equal(
            ours[real].reshape(leaf.shape) if key.startswith("support") else ours, leaf
        )
    by_way = padded["support_inputs"].reshape(200, 4, 5)
    np.testing.assert_array_equal(by_way[..., 2:], by_way[..., :1].repeat(3, axis=-1))
    assert {k: v.shape for k, v in padded.items()} == {
        k: v.shape for k, v in episodes(shots=5, padded_shots=5).arrays().items()
    }
    masked = episodes(source=source(mask=np.arange(108) % 2), padded_shots=5).arrays()
    expected = masked["support_inputs"] % 2 * padded["support_mask"]
    np.testing.assert_array_equal(masked["support_mask"], expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ways": 10}, r"ways=10\): there are 9 classes"),
        ({"classes": [1, 2, 3]}, "there are 3 classes"),
        ({"classes": [1, 2, 3, 40]}, "no example of class 40"),
        ({"classes": [1, 2, 3, 3]}, "name every class once"),
        ({"classes": ["a", "b"]}, "a list of class numbers"),
        ({"shots": 10}, "class 0 has 12 examples, fewer than 10 shots and 3 queries"),
        ({"padded_shots": 1}, r"padded_shots=1\): at least the 2 shots"),
        ({"ways": 0}, r"Episodes\(ways=0\): a whole number"),
        ({"queries": 1.5}, r"Episodes\(queries=1.5\): a whole number"),
        ({"seed": -1}, r"Episodes\(seed=-1\)"),
        ({"number": 0}, r"Episodes\(number=0\)"),
        ({"source": {"inputs": np.zeros(4)}}, r"this dict is no source.*jcl.data.Arrays"),
        ({"source": [{"inputs": 1, "targets": 2}]}, "this list is no source"),
        ({"source": None}, "this NoneType is no source"),
        ({"source": Arrays({"inputs": np.zeros(4)})}, "found: none"),
        ({"source": Arrays({"targets": np.zeros((4, 7))})}, r"found: float64\[7\]"),
        ({"source": source(label_mask=np.zeros((108, 9)))}, "'label_mask'.*scenario \"class\""),
        ({"source": source(task=np.zeros(108))}, "'task'"),
    ],
)
def test_what_cannot_be_drawn_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        episodes(**changes)


def test_a_class_of_too_few_examples_is_named_and_may_be_left_out():
    labels = np.append(np.repeat(np.arange(5), 6), 7)
    few = Arrays({"inputs": np.arange(31), "targets": labels})
    with pytest.raises(InputError, match="class 7 has 1 examples"):
        episodes(source=few)
    assert labels[episodes(source=few, classes=range(5)).arrays()["inputs"]].max() == 4


def test_episodes_pass_through_the_pipeline():
    made = episodes(number=50)
    batches = jcl.data.training_batches(made, 8, seed=1)
    order = jcl.data.walk(made, 8, seed=1)
    same(batches[9], made.take(order[9]))
    (last,) = list(jcl.data.evaluation_batches(made, 32))[1:]
    assert last["mask"].shape == (32, 12)
    assert last["mask"].sum() == 18 * 12
    same(jcl.data.held(made), made.take(np.arange(50)))
    both = jcl.data.Concatenated([made, episodes(seed=9)])
    same(both[60], episodes(seed=9)[10])


def test_thousands_of_episodes_a_second():
    pixels = np.zeros((242 * 20, 28, 28), np.uint8)
    made = Episodes(
        Arrays({"inputs": pixels, "targets": np.arange(242 * 20) % 242}),
        *(5, 1, 15), number=10_000, seed=0,
    )  # fmt: skip
    begin = time.process_time()
    for start in range(0, 640, 32):
        made.take(np.arange(start, start + 32))
    assert time.process_time() - begin < 0.32  # it takes a tenth of that on an idle core


def test_sine_waves_lie_in_the_published_ranges():
    made = sinusoids(1000, shots=4, queries=6, seed=2)
    batch = made.arrays()
    assert {key: (leaf.shape, leaf.dtype) for key, leaf in batch.items()} == {
        "inputs": ((1000, 6, 1), np.float32), "targets": ((1000, 6, 1), np.float32),
        "support_inputs": ((1000, 4, 1), np.float32), "support_targets": ((1000, 4, 1), np.float32),
    }  # fmt: skip
    x = np.concatenate([batch["inputs"], batch["support_inputs"]], axis=1)[..., 0]
    y = np.concatenate([batch["targets"], batch["support_targets"]], axis=1)[..., 0]
    assert np.abs(x).max() <= 5
    np.testing.assert_allclose(x.mean(), 0, atol=0.12)
    np.testing.assert_allclose(x.std(), 10 / np.sqrt(12), atol=0.05)
    # y = a sin(x) + b cos(x) with a = amplitude cos(phase) and b = -amplitude sin(phase).
    amplitude, phase = np.empty(1000), np.empty(1000)
    for index in range(1000):
        waves = np.stack([np.sin(x[index]), np.cos(x[index])], axis=1)
        (a, b), *_ = np.linalg.lstsq(waves, y[index], rcond=None)
        np.testing.assert_allclose(waves @ [a, b], y[index], atol=1e-4)
        amplitude[index], phase[index] = np.hypot(a, b), np.arctan2(-b, a)
    for found, low, high in ((amplitude, 0.1, 5.0), (phase, 0.0, np.pi)):
        assert low - 1e-3 <= found.min() < low + 0.05
        assert high - 0.05 < found.max() <= high + 1e-3
        np.testing.assert_allclose(found.mean(), (low + high) / 2, atol=0.2)


def test_sine_waves_are_episodes_as_any():
    whole = sinusoids(300, 4, 6, seed=2).arrays()
    some = np.array([250, 7])
    same(sinusoids(300, 4, 6, seed=2).take(some), {k: leaf[some] for k, leaf in whole.items()})
    padded = sinusoids(300, 4, 6, seed=2, padded_shots=20).arrays()
    more = sinusoids(300, 10, 6, seed=2, padded_shots=20).arrays()
    np.testing.assert_array_equal(padded["inputs"], more["inputs"])
    np.testing.assert_array_equal(padded["support_inputs"][:, :4], more["support_inputs"][:, :4])
    np.testing.assert_array_equal(padded["support_inputs"][:, :4], whole["support_inputs"])
    assert padded["support_mask"].tolist() == [[1.0] * 4 + [0.0] * 16] * 300
    assert (padded["support_targets"][:, 4:] == padded["support_targets"][:, :1]).all()
    assert not np.array_equal(whole["inputs"], sinusoids(300, 4, 6, seed=3).arrays()["inputs"])
    hashes = [sinusoids(*each, seed=2).hash() for each in ((9, 4, 6), (9, 4, 6), (9, 5, 6))]
    assert hashes[0] == hashes[1] != hashes[2]
    long = sinusoids(40_000, 1, 1, seed=0)  # more than are drawn at a time
    same(long.take(np.arange(40_000)), long.arrays())
    with pytest.raises(InputError, match=r"sinusoids\(shots=0\)"):
        sinusoids(3, 0, 1, seed=0)


@pytest.mark.parametrize("groups", [60, [f"g{number % 15}" for number in range(60)]])
def test_classes_of_meta_train_and_meta_test_never_overlap(groups):
    for seed in range(20):
        split = split_classes(groups, test=4, validation=3, seed=seed)
        parts = [set(part.tolist()) for part in split]
        assert set.union(*parts) == set(range(60))
        assert sum(len(part) for part in parts) == 60  # so none stands in two
        if not isinstance(groups, int):
            assert sum(len({groups[label] for label in part}) for part in parts) == 15
    assert [len(part) for part in split] == (
        [53, 3, 4] if isinstance(groups, int) else [32, 12, 16]
    )
    again = split_classes(groups, test=4, validation=3, seed=19)
    assert all(np.array_equal(*pair) for pair in zip(split, again, strict=True))
    other = split_classes(groups, test=4, validation=3, seed=0)
    assert not np.array_equal(split.test, other.test)


def test_episodes_of_divided_classes_share_no_example():
    split = split_classes(CLASSES, test=4)
    met = [
        set(np.concatenate([batch["inputs"].ravel(), batch["support_inputs"].ravel()]).tolist())
        for part in (split.train, split.test)
        for batch in [episodes(classes=part, number=500).arrays()]
    ]
    assert not met[0] & met[1]
    assert [len(each) for each in met] == [5 * EACH, 4 * EACH]  # and leave none out


def test_groups_are_chosen_by_name():
    groups = ["a", "b", "a", "c", "d", "d"]
    split = split_classes(groups, test=["d"], validation=["b"])
    assert [part.tolist() for part in split] == [[0, 2, 3], [1], [4, 5]]
    drawn = split_classes(groups, test=["d"], validation=2)
    assert drawn.test.tolist() == [4, 5]
    assert len({groups[label] for label in drawn.validation}) == 2
    for arguments, message in (
        ({"test": ["x"]}, r"no group 'x'; there are a, b, c, d"),
        ({"test": ["a"], "validation": ["a"]}, "group 'a' stands in validation and in test"),
        ({"test": "d"}, r"test='d'\): a number, or a list of groups"),
        ({"test": 4}, "leaves no class for training"),
        ({"test": 3, "validation": ["a"]}, "leaves no class for training"),
        ({"test": -1}, r"split_classes\(test=-1\)"),
    ):
        with pytest.raises(InputError, match=message):
            split_classes(groups, **arguments)
    with pytest.raises(InputError, match=r"split_classes\('abc'\): a number of classes, or a list"):
        split_classes("abc", test=1)


def test_the_tasks_of_a_stream_are_the_groups_of_its_classes():
    parts = [Arrays({"inputs": np.arange(4), "targets": np.array([a, b, a, b])})
             for a, b in ((2, 0), (1, 3))]  # fmt: skip
    tasks = [jcl.data.Task(name, part, part, name) for name, part in zip("xy", parts, strict=True)]
    assert class_tasks(jcl.data.Stream("s", tuple(tasks))) == ("x", "y", "x", "y")
    again = jcl.data.Stream("s", (tasks[0], tasks[0]._replace(name="z")))
    with pytest.raises(InputError, match="'x' and 'z' of stream 's' share class 0.*\"class\""):
        class_tasks(again)
    with pytest.raises(InputError, match="no train example of class 0"):
        class_tasks(jcl.data.Stream("s", (tasks[1],)))


def test_episodes_of_texts_whose_domains_are_divided(tmp_path):
    rows = [
        f"{word} number {index} is {'long ' * (index % 3)},{word},{domain},{part}"
        for domain, words in {"sky": "sun moon star", "sea": "fish wave ship"}.items()
        for word in words.split()
        for part, count in (("train", 6), ("test", 1))
        for index in range(count)
    ]
    (tmp_path / "words.csv").write_text("\n".join(["text,label,domain,split", *rows]))
    stream = jcl.data.text_classification(
        tmp_path / "words.csv", tokenizer=jcl.data.ByteTokenizer(), by="domain"
    )
    split = split_classes(class_tasks(stream), test=["sea"])
    assert {stream.labels[label] for label in split.test} == {"fish", "wave", "ship"}
    (texts,) = jcl.data.joint(stream).stages
    made = Episodes(texts, 3, 1, 2, number=20, seed=0, classes=split.test)
    batch = made.arrays()
    assert batch["support_inputs"].shape == (20, 3, stream.length)
    decode = stream_decoder(batch, "support_")
    for index in range(20):
        firsts = [decode(index, way).split()[0] for way in range(3)]
        assert set(firsts) == {"fish", "wave", "ship"}
        texts_met = [stream_decoder(batch, "")(index, row) for row in range(6)]
        assert [text.split()[0] for text in texts_met] == [way for way in firsts for _ in range(2)]


def stream_decoder(batch, prefix):
    def decode(index, row):
        length = batch[f"{prefix}attention_mask"][index, row].sum()
        return jcl.data.ByteTokenizer().decode(batch[f"{prefix}inputs"][index, row, :length])

    return decode
