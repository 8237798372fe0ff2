"""Augmented texts: what each change does, and that a run meets the same versions again."""

import dataclasses
import re
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

import jcl
from jcl.data import ByteTokenizer, augmentation, augmented, text_classification, training_batches
from jcl.data.labelled_text import Encoding
from jcl.errors import InputError
from jcl.experiment import check
from jcl.grid import Replica
from jcl.program import Program

BYTES = ByteTokenizer()
SEED = 5
TEXT = "one two three four five six seven eight nine ten"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = [*SPECIAL, *TEXT.split(), "card", "cash"]


class Numbers:
    """Whole words with BERT's special tokens, as transformers' tokenizers name them."""

    pad_token_id, mask_token_id, all_special_ids = 0, 4, list(range(5))

    def __len__(self):
        return len(VOCABULARY)

    def encode(self, text, truncation=False, max_length=None):
        ids = [VOCABULARY.index(word) if word in VOCABULARY else 1 for word in text.split()]
        return [2, *ids[: max_length - 2 if truncation else None], 3]


def generator(number=0):
    return np.random.default_rng(number)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("table") / "t.tsv"
    words = TEXT.split()
    rows = ["text\tlabel\tsplit"]
    for place, label in enumerate("abcd"):
        for number in range(5):
            text = " ".join(words[place + number :] + words[: place + number])
            rows.append(f"{text}\t{label}\t{'train' if number < 4 else 'test'}")
    path.write_text("\n".join(rows))
    return path


def stream_of(table, **options):
    return text_classification(table, **{"tokenizer": BYTES, "tasks": 2, **options})


def always(make, strength=0.5, **options):
    return make(probability=1.0, strength=strength, **options)


SHUFFLED = [always(augmentation.swap), augmentation.deletion(probability=0.5, strength=0.3)]


def same(one, other):
    assert list(one) == list(other)
    for key, leaf in one.items():
        assert leaf.dtype == other[key].dtype, key
        np.testing.assert_array_equal(leaf, other[key], err_msg=key)


def texts(batch):
    pairs = zip(batch["inputs"], batch["attention_mask"], strict=True)
    return [BYTES.decode(ids[mask > 0]) for ids, mask in pairs]


def differences(one, other):
    return sum(a != b for a, b in zip(one.split(), other.split(), strict=True))


def test_a_version_depends_on_seed_epoch_and_example_alone(table):
    source = augmented(stream_of(table), SHUFFLED, seed=SEED).tasks[0].train
    every = np.arange(8)
    first = source.take_in_epoch(every, np.zeros(8, int))
    order = generator().permutation(8)
    one = {key: leaf[order] for key, leaf in first.items()}
    same(source.take_in_epoch(order, np.zeros(8, int)), one)
    again = augmented(stream_of(table), SHUFFLED, seed=SEED).tasks[0].train
    for index in every:  # in a batch by itself
        alone = again.take_in_epoch(np.array([index]), np.array([0]))
        same(alone, {key: leaf[[index]] for key, leaf in first.items()})
    second = source.take_in_epoch(every, np.ones(8, int))
    other = augmented(stream_of(table), SHUFFLED, seed=SEED + 1).tasks[0].train
    another_seed = other.take_in_epoch(every, np.zeros(8, int))
    plain = source.take(every)
    for changed in (second, another_seed, plain):
        assert sum(a != b for a, b in zip(texts(first), texts(changed), strict=True)) >= 6
        np.testing.assert_array_equal(first["targets"], changed["targets"])
    same(plain, stream_of(table).tasks[0].train.take(every))
    np.testing.assert_array_equal(source[3]["inputs"], plain["inputs"][3])


def test_two_tasks_with_equal_texts_draw_differently(tmp_path):
    rows = [f"{TEXT}\t{label}\t{part}" for label in "abcd" for part in ("train", "test")]
    path = tmp_path / "t.tsv"
    path.write_text("\n".join(["text\tlabel\tsplit", *rows]))
    stream = augmented(stream_of(path), [always(augmentation.swap)], seed=SEED)
    zeros = np.zeros(2, int)
    one, other = (texts(task.train.take_in_epoch(np.arange(2), zeros)) for task in stream.tasks)
    assert len({*one, *other}) == 4


def test_batch_i_is_the_same_from_any_start(table):
    stage = augmented(stream_of(table), SHUFFLED, seed=SEED).stages[0]
    in_order = [training_batches(stage, 3, seed=1)[index] for index in range(9)]
    backwards = training_batches(stage, 3, seed=1)
    for index in reversed(range(9)):
        same(backwards[index], in_order[index])
    for index, batch in enumerate(jcl.data.prefetch(training_batches(stage, 3, seed=1), 4, 9)):
        same(batch, in_order[4 + index])
    part = training_batches(stage, 3, seed=1, rows=np.array([2, 0]))[2]
    same(part, {key: leaf[[2, 0]] for key, leaf in in_order[2].items()})


def test_every_epoch_of_a_run_has_versions_of_its_own(table):
    stream = stream_of(table)
    stage = augmented(stream, [always(augmentation.swap)], seed=SEED).stages[0]
    order = jcl.data.walk(stage, 3, seed=1)
    assert order.epochs(2).tolist() == [0, 0, 1]  # eight examples: 6 and 7, and the next epoch's
    assert (
        np.concatenate([order.epochs(index) for index in range(8)]).tolist()
        == [0] * 8 + [1] * 8 + [2] * 8
    )
    met = {}
    for index in range(8):
        batch = training_batches(stage, 3, seed=1)[index]
        plain = training_batches(stream.stages[0], 3, seed=1)[index]
        np.testing.assert_array_equal(batch["targets"], plain["targets"])
        for example, text, own in zip(order[index], texts(batch), texts(plain), strict=True):
            assert sorted(text.split()) == sorted(own.split())
            met.setdefault(int(example), set()).add(text)
    assert all(len(versions) >= 2 for versions in met.values())
    assert sum(map(len, met.values())) > 20  # of 24
    unchanged = training_batches(stage, 3, seed=1, by_epoch=False)[0]
    same(unchanged, training_batches(stream.stages[0], 3, seed=1)[0])


@pytest.mark.parametrize("scenario", ["class", "task"])
def test_probability_or_strength_zero_is_the_stream_itself(table, scenario):
    stream = stream_of(table, scenario=scenario)
    parts = [
        augmentation.swap(probability=0.0, strength=1.0),
        augmentation.deletion(probability=1.0, strength=0.0),
        augmentation.token_cutoff(how="drop", probability=0.0, strength=1.0),
        augmentation.token_cutoff(how="drop", probability=1.0, strength=0.0),
    ]
    found = augmented(stream, parts, seed=SEED)
    for one, other in zip(found.stages, stream.stages, strict=True):
        same(training_batches(one, 4, seed=0)[3], training_batches(other, 4, seed=0)[3])
    assert (found.labels, found.length) == (stream.labels, stream.length)


def test_tests_are_as_they_were(table):
    stream = stream_of(table)
    found = augmented(stream, SHUFFLED, seed=SEED)
    for one, other in zip(found.tasks, stream.tasks, strict=True):
        assert one.test is other.test


def test_the_probability_is_that_of_an_example():
    change = augmentation.swap(probability=0.3, strength=0.5)
    changed = sum(change(TEXT, generator(number)) != TEXT for number in range(1000))
    assert 240 < changed < 360  # four standard deviations


def test_the_strength_is_a_share_of_the_words():
    lexicon = {word: ["new"] for word in TEXT.split()[:4]}
    for number in range(20):
        for strength, count in ((0.1, 1), (0.01, 1), (0.3, 3), (0.35, 4), (1.0, 4)):
            new = always(augmentation.synonyms, strength, lexicon=lexicon)(TEXT, generator(number))
            assert differences(new, TEXT) == new.split().count("new") == count
            assert new.split()[4:] == TEXT.split()[4:]
        for strength, count in ((0.1, 1), (0.3, 3), (1.0, 10)):
            longer = always(augmentation.insertion, strength, lexicon=lexicon)
            words = longer(TEXT, generator(number)).split()
            assert words.count("new") == count
            assert [word for word in words if word != "new"] == TEXT.split()
        for strength, left in ((0.1, 9), (0.3, 7), (1.0, 1)):
            shorter = always(augmentation.deletion, strength)(TEXT, generator(number)).split()
            assert len(shorter) == left
            assert shorter == [word for word in TEXT.split() if word in shorter]
        for strength, moved in ((0.1, 2), (0.2, 2), (0.4, 4), (0.5, 6), (1.0, 10)):
            swapped = always(augmentation.swap, strength)(TEXT, generator(number))
            assert differences(swapped, TEXT) == moved
            assert sorted(swapped.split()) == sorted(TEXT.split())


def test_no_word_moves_further_than_the_window():
    where = {word: place for place, word in enumerate(TEXT.split())}
    moved = set()
    for number in range(50):
        change = always(augmentation.local_shuffle, 0.3, window=3)
        words = change(TEXT, generator(number)).split()
        assert sorted(words) == sorted(TEXT.split())
        touched = [place for place, word in enumerate(words) if where[word] != place]
        assert not touched or max(touched) - min(touched) < 3  # 0.3 of ten words is one window
        moved.update(touched)
    assert moved == set(range(10))
    change = always(augmentation.local_shuffle, 1.0, window=4)
    for number in range(50):
        words = change(TEXT, generator(number)).split()
        assert max(abs(where[word] - place) for place, word in enumerate(words)) < 4


def test_short_texts():
    lexicon = {"one": ["two"]}
    for make, options in (
        (augmentation.swap, {}), (augmentation.deletion, {}), (augmentation.local_shuffle, {}),
        (augmentation.synonyms, {"lexicon": {"other": ["word"]}}),
        (augmentation.insertion, {"lexicon": {"other": ["word"]}}),
    ):  # fmt: skip
        assert always(make, 1.0, **options)("one", generator()) == "one"
        assert always(make, 1.0, **options)(" \n", generator()) == " \n"
    assert always(augmentation.synonyms, 1.0, lexicon=lexicon)("one", generator()) == "two"


def test_synonyms_keep_signs_and_capitals(tmp_path):
    path = tmp_path / "lexicon.tsv"
    path.write_text("card\tplastic\n\nBank account \t deposit ,\nhi\thello there\n", "utf-8")
    change = always(augmentation.synonyms, 1.0, lexicon=path)
    assert change('Card, "CARD"  (card)?', generator()) == 'Plastic, "PLASTIC" (plastic)?'
    assert change("Hi! a  card's", generator()) == "Hello there! a card's"
    assert change("nothing  of it", generator()) == "nothing  of it"  # its spaces too


def test_neighbours_are_the_nearest_by_cosine():
    table = np.array([[1, 0], [5, 1], [0, 1], [1, 2], [1, 0.01], [1, 0.01], [9, 9]], np.float32)
    vocabulary = {"Red": 0, "crimson": 1, "one": 2, "two": 3, "##ing": 4, "[MASK]": 5, "red": 0}
    assert augmentation.neighbours(vocabulary, table, count=2) == {
        "red": ("crimson", "two"), "crimson": ("red", "two"), "one": ("two", "crimson"),
        "two": ("one", "crimson"),
    }  # fmt: skip
    only = augmentation.neighbours(vocabulary, table, count=1, words=["ONE", "absent"])
    assert only == {"one": ("two",)}
    begun = {"Ġred": 0, "Ġcrimson": 1, "ing": 4}
    found = augmentation.neighbours(begun, table, count=1)
    assert found == {"red": ("crimson",), "crimson": ("red",)}
    for count, broken, match in (
        (4, table, "has 4 whole words"), (1, table[:3], "has the row 5"), (0, table, "at least 1"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=match):
            augmentation.neighbours(vocabulary, broken, count=count)


def test_back_translation_is_asked_once_for_a_text(table):
    asked = []

    def translate(text):
        asked.append(text)
        return text.upper()

    change = augmentation.back_translation(translate, name="loud", probability=0.5)
    stage = augmented(stream_of(table), [change], seed=SEED).stages[0]
    batches = training_batches(stage, 8, seed=0)
    both = [text for epoch in range(4) for text in texts(batches[epoch])]
    assert 5 < sum(text.isupper() for text in both) < 27  # of 32
    assert len(asked) == len(set(asked)) <= 8
    for broken in ("", " ", None, ["x"]):
        change = augmentation.back_translation(lambda _: broken, name="m", probability=1.0)
        with pytest.raises(InputError, match="back_translation: m made .* of 'one two"):
            change(TEXT, generator())
    with pytest.raises(InputError, match="give a function"):
        augmentation.back_translation("model", name="m")  # type: ignore[arg-type]


ENCODING = Encoding(Numbers(), 14, 0)  # type: ignore[arg-type]


def encoded(*given):
    """Ids and lengths."""
    found = [ENCODING(text) for text in given]
    return np.stack([ids for ids, _ in found]), np.array([length for _, length in found])


@pytest.mark.parametrize(("strength", "count"), [(0.1, 1), (0.3, 3), (1.0, 10)])
def test_cutoff_masks_or_drops_a_share_of_the_tokens(strength, count):
    ids, lengths = encoded(TEXT, "card")
    for number in range(10):
        draws = [generator(number), generator(number)]
        masked, kept = always(augmentation.token_cutoff, strength)(ids, lengths, ENCODING, draws)
        assert kept.tolist() == lengths.tolist() == [12, 3]
        assert (masked[0] == 4).sum() == count
        np.testing.assert_array_equal(masked[0][masked[0] != 4], ids[0][masked[0] != 4])
        assert masked[1].tolist() == [2, 4, 3, *[0] * 11]
        draws = [generator(number), generator(number)]
        drop = always(augmentation.token_cutoff, strength, how="drop")
        dropped, left = drop(ids, lengths, ENCODING, draws)
        assert left.tolist() == [12 - min(count, 9), 3]  # one token stays
        row = dropped[0][: left[0]].tolist()
        assert (row[0], row[-1]) == (2, 3)
        assert row == [each for each in ids[0].tolist()[:12] if each in row]
        assert not dropped[0][left[0] :].any()
        np.testing.assert_array_equal(dropped[1], ids[1])


def test_dropped_tokens_are_masked_in_the_batch(table):
    stream = stream_of(table, tokenizer=Numbers())
    cut = always(augmentation.token_cutoff, 0.3, how="drop")
    batch = training_batches(augmented(stream, [cut], seed=SEED).stages[0], 8, seed=0)[0]
    assert batch["attention_mask"].sum(axis=1).tolist() == [12 - 3] * 8
    np.testing.assert_array_equal(batch["attention_mask"], batch["inputs"] != 0)
    assert batch["attention_mask"].dtype == batch["inputs"].dtype == np.int32


@pytest.fixture(scope="module")
def language_model():
    config = jcl.models.BertConfig(
        len(VOCABULARY), positions=16, width=4, layers=1, heads=1, inner=4, dropout=0.5
    )
    model = jcl.models.bert(config)
    draw = generator()
    params = jax.tree.map(
        lambda leaf: draw.normal(0, 0.1, leaf.shape).astype(leaf.dtype),
        jax.eval_shape(model.init, jax.random.key(0)),
    )
    bias = np.zeros(len(VOCABULARY), np.float32)
    bias[[VOCABULARY.index("card"), VOCABULARY.index("cash")]] = 100
    bias[:5] = 200  # special tokens, which it must not say
    params["predictions"]["bias"] = bias
    traces = []

    def apply(*arguments, **options):
        traces.append(1)
        return model.apply(*arguments, **options)

    counted = model._replace(apply=apply)
    return counted, params, jcl.models.mask_filler(counted, params, candidates=2), traces


def test_a_masked_language_model_fills_in(table, language_model):
    *_, filler, traces = language_model
    change = always(augmentation.masked_lm, 0.3, filler=filler, batch_size=3)
    source = augmented(stream_of(table, tokenizer=Numbers()), [change], seed=SEED).tasks[0].train
    every, zeros = np.arange(8), np.zeros(8, int)
    batch, plain = source.take_in_epoch(every, zeros), source.take(every)
    changed = batch["inputs"] != plain["inputs"]
    assert changed.sum(axis=1).tolist() == [3] * 8
    card, cash = VOCABULARY.index("card"), VOCABULARY.index("cash")
    assert set(batch["inputs"][changed].tolist()) == {card, cash}
    np.testing.assert_array_equal(batch["attention_mask"], plain["attention_mask"])
    for index in (5, 0):
        alone = source.take_in_epoch(np.array([index]), np.zeros(1, int))
        same(alone, {key: leaf[[index]] for key, leaf in batch.items()})
    assert (source.take_in_epoch(every, zeros + 1)["inputs"] != batch["inputs"]).any()
    assert len(traces) == 1
    ids, lengths = encoded("card", "cash")  # never the token itself
    found, _ = change(ids, lengths, ENCODING, [generator(1), generator(2)])
    assert found[0, 1] == cash
    assert found[1, 1] == card


def test_a_masked_language_model_must_suit_the_stream(table, language_model):
    model, params, filler, _ = language_model
    of = lambda **fields: model._replace(config=dataclasses.replace(model.config, **fields))
    with pytest.raises(InputError, match="no masked-LM head"):
        jcl.models.mask_filler(of(head="classes"), params)
    for candidates, match in ((0, "at least 1"), (17, "has 17 tokens: ask for fewer")):
        with pytest.raises(InputError, match=match):
            jcl.models.mask_filler(model, params, candidates=candidates)
    with pytest.raises(InputError, match="a Model does not fill in"):
        augmentation.masked_lm(model)
    stream = stream_of(table, tokenizer=Numbers())
    for own, fields, match in (
        (stream_of(table), {}, "no mask_token_id"),
        (stream, {"candidates": 12}, "there are 11 others"),
    ):
        with pytest.raises(InputError, match=match):
            augmented(own, [augmentation.masked_lm(filler._replace(**fields))], seed=0)
    for fields, match in (
        ({"positions": 11}, "12 tokens long and the model takes 11"),
        ({"vocab_size": 16}, "has 17 tokens and the model a vocabulary of 16"),
    ):
        other = jcl.models.mask_filler(of(**fields), params, candidates=2)
        with pytest.raises(InputError, match=match):
            augmented(stream, [augmentation.masked_lm(other)], seed=0)


def test_a_padded_vocabulary_gives_no_token_that_the_tokenizer_lacks(table):
    """The model likes its 3 surplus tokens best, and the tokenizer of the stream has none."""
    size = len(VOCABULARY) + 3
    model = jcl.models.bert(
        jcl.models.BertConfig(size, positions=16, width=4, layers=1, heads=1, inner=4)
    )
    empty = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, leaf.dtype),
        jax.eval_shape(model.init, jax.random.key(0)),
    )
    empty["predictions"]["bias"] = np.arange(size, dtype=np.float32)
    filler = jcl.models.mask_filler(model, empty, candidates=2)
    change = always(augmentation.masked_lm, 1.0, filler=filler, batch_size=2)
    ids, lengths = encoded("card", "cash")
    found, _ = change(ids, lengths, ENCODING, [generator(1), generator(2)])
    assert (found[:, 1] < len(VOCABULARY)).all()
    change = augmentation.masked_lm(filler._replace(candidates=12))
    with pytest.raises(InputError, match="there are 11 others"):
        augmented(stream_of(table, tokenizer=Numbers()), [change], seed=0)


def test_a_task_is_another_with_other_augmentations(table, language_model):
    model, params, *_ = language_model
    stream = stream_of(table, tokenizer=Numbers())
    changed = jax.tree.map(lambda leaf: leaf + 1, params)
    fillers = [jcl.models.mask_filler(model, each) for each in (params, changed)]
    lexicons = {"card": ["cash"]}, {"card": ["money"]}
    every = [
        [], *([augmentation.swap(strength=strength)] for strength in (0.1, 0.2)),
        [augmentation.swap(probability=0.4)], [augmentation.deletion()],
        [augmentation.swap(), augmentation.deletion()],
        [augmentation.deletion(), augmentation.swap()],
        *([augmentation.local_shuffle(window=window)] for window in (2, 3)),
        *([augmentation.synonyms(each)] for each in lexicons),
        *([augmentation.back_translation(str, name=name)] for name in ("one", "other")),
        *([augmentation.token_cutoff(how=how)] for how in ("mask", "drop")),
        *([augmentation.masked_lm(each)] for each in fillers),
    ]  # fmt: skip
    hashes = [task.hash for task in stream.tasks]
    for parts in every:
        hashes += [task.hash for task in augmented(stream, parts, seed=0).tasks]
        again = [task.hash for task in augmented(stream, parts, seed=0).tasks]
        assert again == hashes[-2:]
        hashes += [task.hash for task in augmented(stream, parts, seed=1).tasks]
    assert len(set(hashes)) == len(hashes)


def test_what_is_made_of_a_stream_stays_augmented(table):
    stream = stream_of(table)
    found = augmented(stream, [always(augmentation.swap)], seed=SEED)
    for change in (
        jcl.data.joint, jcl.data.cumulative, jcl.data.labelled,
        lambda each: jcl.data.blurry(each, 0.25), lambda each: jcl.data.fuzzy(each, 0.5),
        lambda each: dataclasses.replace(
            each, stages=(jcl.data.Chosen(each.tasks[1].train, [3, 1, 2, 0]),)
        ),
    ):  # fmt: skip
        new, plain = change(found), change(stream)
        for one, other in zip(new.stages, plain.stages, strict=True):
            batch = training_batches(one, 4, seed=1)[0]
            own = training_batches(other, 4, seed=1)[0]
            assert list(batch) == list(own)
            for key in set(own) - {"inputs", "attention_mask"}:
                np.testing.assert_array_equal(batch[key], own[key])
            for text, before in zip(texts(batch), texts(own), strict=True):
                assert text != before
                assert sorted(text.split()) == sorted(before.split())
            same(training_batches(one, 4, seed=1, by_epoch=False)[0], own)
    joined = jcl.data.joint(found).stages[0]
    np.testing.assert_array_equal(
        joined.take_in_epoch(np.array([9]), np.array([2]))["inputs"],
        found.tasks[1].train.take_in_epoch(np.array([1]), np.array([2]))["inputs"],
    )


def bag_of_tokens(classes):
    def init(key):
        return {"table": jax.random.normal(key, (BYTES.vocab_size, classes))}

    def apply(params, inputs, key=None, *, attention_mask=None):
        return (params["table"][inputs] * attention_mask[..., None]).sum(axis=1)

    return jcl.models.Model(init, apply, None)


def experiment(stream, **options):
    model = bag_of_tokens(stream.classes)
    return jcl.Experiment(
        name="bag", model=model, loss_fn=jcl.losses.classify(model.apply), stream=stream,
        strategy=optax.sgd(0.1), measure=jcl.losses.accuracy(model.apply), batch_size=8, steps=5,
        boundary_batches=2, **options,
    )  # fmt: skip


def test_a_run_learns_from_versions_and_consolidates_on_the_texts(table):
    plain = stream_of(table)
    found = augmented(plain, [always(augmentation.swap)], seed=SEED)
    programs = [Program([Replica(experiment(each), {}, None)]) for each in (found, plain)]
    steps = [[call.arguments[0] for call in each.calls(1, 0, 5)] for each in programs]
    for one, other in zip(*steps, strict=True):
        assert (np.asarray(one["inputs"]) != np.asarray(other["inputs"])).any(axis=1).all()
        np.testing.assert_array_equal(one["targets"], other["targets"])
    (later,) = [call.arguments[0] for call in programs[0].calls(1, 4, 5)]
    np.testing.assert_array_equal(later["inputs"], steps[0][4]["inputs"])
    boundary = [each.boundary_batches(1) for each in programs]
    np.testing.assert_array_equal(boundary[0]["inputs"], boundary[1]["inputs"])


def test_who_reads_examples_once_refuses_augmented_ones(table):
    stream = augmented(stream_of(table), SHUFFLED, seed=SEED)
    source = jcl.data.Chosen(jcl.data.joint(stream).stages[0], np.arange(4))
    for call in (
        lambda: check(experiment(stream, device_data=True)),
        lambda: jcl.data.held(source),
        lambda: jcl.data.encoded(stream, lambda batch: batch["inputs"]),
        lambda: jcl.data.Episodes(source, 2, 1, 1, number=1, seed=0),
        lambda: jcl.data.class_sequence(source, [0, 1], task=1, learned=1),
    ):
        with pytest.raises(InputError, match="reads every example once, .* augmented"):
            call()


def test_what_cannot_be_augmented(table):
    stream, swap = stream_of(table), augmentation.swap()
    numbers = {"inputs": np.zeros((4, 3), np.int32), "targets": np.arange(4)}
    source = jcl.data.Arrays(numbers)
    arrays = jcl.data.Stream("numbers", (jcl.data.Task("own", source, source, "0"),))
    cut = augmentation.token_cutoff
    for given, parts, match in (
        (arrays, [swap], "'own' holds no texts .it is of type Arrays"),
        (jcl.data.labelled(stream), [swap], "type Labelled"),
        (jcl.data.joint(stream), [swap], "augment the stream first"),
        (augmented(stream, [swap], seed=0), [swap], "augmented already"),
        (stream, [cut(how="drop"), swap], "of token_cutoff, swap, one that changes tokens stands"),
        (stream, [cut()], 'no mask_token_id: use token_cutoff.how="drop"'),
        (stream, [str.upper], "is no augmentation"),
    ):
        with pytest.raises(InputError, match=match):
            augmented(given, parts, seed=0)
    with pytest.raises(InputError, match="seed=-1"):
        augmented(stream, [swap], seed=-1)


def test_errors_of_the_factories(tmp_path):
    make = augmentation
    for call, match in (
        (lambda: make.swap(probability=1.5), r"swap\(probability=1.5\): a number in \[0, 1\]"),
        (lambda: make.deletion(strength=-0.1), r"deletion\(strength=-0.1\)"),
        (lambda: make.token_cutoff(strength=2), r"token_cutoff\(strength=2\)"),
        (lambda: make.token_cutoff(how="hide"), 'one of "mask", "drop"'),
        (lambda: make.local_shuffle(window=1), "at least 2"),
        (lambda: make.synonyms({}), "lexicon is empty"),
        (lambda: make.synonyms({"a": "b"}), "'b' for 'a': give a list"),
        (lambda: make.synonyms({"a": ["b", ""]}), "none of them empty"),
        (lambda: make.insertion(["a"]), "the lexicon is a list"),
        (lambda: make.synonyms(tmp_path / "none.tsv"), "does not exist"),
    ):
        with pytest.raises(InputError, match=match):
            call()
    path = tmp_path / "lexicon.tsv"
    for text, match in (
        ("card\tplastic\ncash money\n", r"lexicon.tsv, line 2 is 'cash money': write word<TAB>"),
        ("card\t , \n", "line 1"),
        ("\n\n", "holds no word"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=match):
            make.synonyms(path)


def test_long_texts_are_cut_and_empty_ones_left(table):
    grow = augmentation.OfText("grow", 1.0, "", lambda text, _: f"{text} {text}")
    vanish = augmentation.OfText("vanish", 1.0, "", lambda text, _: "")
    stream = stream_of(table)
    zeros = np.zeros(2, int)
    for change in (grow, vanish):
        source = augmented(stream, [change], seed=0).tasks[0].train
        batch = source.take_in_epoch(np.arange(2), zeros)
        assert batch["inputs"].shape == (2, stream.length)
        if change is grow:
            assert batch["attention_mask"].all()
        else:
            same(batch, source.take(np.arange(2)))
    ids, length = ENCODING(f"{TEXT} {TEXT}")  # the tokenizer's closing token stays
    assert (length, ids[0], ids[-1]) == (14, 2, 3)


def test_the_page_runs(monkeypatch, tmp_path, capsys):
    page = (Path(__file__).parent.parent / "docs" / "augmentation.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (shown,) = re.findall(r"```text\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert capsys.readouterr().out == shown
    for name in augmentation.__dict__:
        function = getattr(augmentation, name)
        own = getattr(function, "__module__", "") == augmentation.__name__ and name.islower()
        if own and not name.startswith("_"):
            assert f"`{name}`" in page, name
