"""The prequential step, the engine and the measures."""

import dataclasses
import json
import math
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
import toy

import jcl
from jcl.__main__ import load_config
from jcl.data import Example, Label, Lines
from jcl.experiment import check
from jcl.online import measures
from jcl.online.engine import Engine
from jcl.online.waiting import Entry, Timing

tiny = load_config(Path(__file__).parent / "configs" / "online.py")

LABELS = ("a", "b", "c")


@pytest.fixture(scope="module")
def stepped():
    """One compiled step of the toy problem, and how often it was traced."""
    traces = []
    learner = jcl.learner(toy.masked_loss_fn, optax.sgd(0.1))
    pure = jcl.online.prequential(learner)

    def step(state, batch):
        traces.append(1)
        return pure.step(state, batch)

    state = learner.init(jax.random.key(0), toy.params(), masked(toy.batch(0), 16))
    return jax.jit(pure.learn), jax.jit(step), state, traces


def masked(batch, counted):
    return {**batch, "mask": (np.arange(16) < counted).astype(np.float32)}


def test_the_step_predicts_by_what_was_learned_before_and_learns_in_one_trace(stepped):
    learn, step, state, traces = stepped
    for number in range(3):
        batch = masked(toy.batch(number), 16)
        expected = toy.loss_fn(state.params, batch, None)[1]
        learned, _ = learn(state, batch)
        state, outputs = step(state, batch)
        np.testing.assert_allclose(outputs["losses"], expected["losses"], atol=1e-5)
        chosen = np.argmax(expected["logits"], axis=1)
        np.testing.assert_array_equal(outputs["predictions"], chosen)
        np.testing.assert_array_equal(outputs["correct"], chosen == batch["targets"])
        chances = jax.nn.softmax(expected["logits"])
        np.testing.assert_allclose(outputs["probabilities"], chances.max(axis=1), rtol=1e-4)
        np.testing.assert_allclose(outputs["scores"], np.log(chances), atol=1e-5)
        for new, old in zip(*map(jax.tree.leaves, (state.params, learned.params)), strict=True):
            np.testing.assert_allclose(new, old, rtol=1e-4, atol=1e-6)
    assert len(traces) == 1


def test_rows_that_do_not_count_are_predicted_and_not_learned_from(stepped):
    _, step, state, _ = stepped
    batch = masked(toy.batch(0), 5)
    other = {**batch, "targets": np.where(batch["mask"] > 0, batch["targets"], 2)}
    first, outputs = step(state, batch)
    second, _ = step(state, other)
    for new, old in zip(*map(jax.tree.leaves, (first.params, second.params)), strict=True):
        np.testing.assert_array_equal(new, old)
    assert not np.any(outputs["losses"][5:])
    assert not np.any(outputs["correct"][5:])
    assert np.all(outputs["probabilities"] > 1 / 3)


def test_an_impossible_class_costs_what_a_chance_of_1e_15_does():
    apply = lambda params, inputs, key=None: inputs + params["w"]
    learner = jcl.learner(jcl.losses.classify(apply), optax.sgd(0.1))
    batch = {
        "inputs": np.array([[0.0, -1e9]], np.float32),
        "targets": np.array([1]),
        "mask": np.ones(1),
    }
    state = learner.init(None, {"w": np.zeros(2, np.float32)}, batch)
    outputs = jcl.online.prequential(learner).predict(state, batch)
    assert float(outputs["losses"][0]) == pytest.approx(-math.log(1e-15))


def test_measures_over_all_over_the_last_and_at_their_worst():
    found = measures.Measures(3, classes=True)
    assert found.running() == {"accuracy": None, "loss": None}
    for loss, right in [(1, True), (2, False), (3, False), (4, False), (5, True), (6, True)]:
        found.add(measures.Result(float(loss), 1, right, 0))
    assert found.running() == {"accuracy": 0.5, "loss": 3.5}
    assert found.windowed() == {"accuracy": 2 / 3, "loss": 5.0}
    assert found.worst == {"accuracy": 0.0, "loss": 3.0}
    again = measures.Measures(3, classes=True)
    again.restore(found.saved())
    for each in (found, again):
        each.add(measures.Result(0.0, 1, False, 0))
    assert again.saved() == found.saved()


def test_a_language_models_measures():
    found = measures.Measures(2, classes=False)
    for loss, tokens, size in [(8 * math.log(2), 4, 2), (4 * math.log(2), 2, 4), (0.0, 2, 2)]:
        found.add(measures.Result(loss, tokens, None, size))
    assert found.running()["bits_per_byte"] == pytest.approx(12 / 8)
    assert found.running()["perplexity"] == pytest.approx(2 ** (12 / 8))
    assert found.windowed()["loss"] == pytest.approx(math.log(2))
    assert found.worst["bits_per_byte"] == pytest.approx(2)


@pytest.fixture(scope="module")
def lines():
    return Lines(tokenizer=jcl.data.ByteTokenizer(), length=8, labels=LABELS)


def text(lines, letters, label=None, **fields):
    record = {"text": letters, **fields} | ({} if label is None else {"label": label})
    return lines.read(json.dumps(record).encode())


def made(lines, **options):
    return begun(tiny.build(tiny.Config(method="sgd")), lines, **options)


def begun(experiment, lines, **options):
    found = Engine(experiment, lines.blank(), Timing(batch=2, window=4, **options))
    found.begin()
    return found


def entries(*said, start=1):
    return [Entry(start + place, 0, each) for place, each in enumerate(said)]


def test_labels_that_come_late_are_learned_then_and_judge_what_was_said(lines):
    found = made(lines, waiting=2)
    told = found.predict(entries(text(lines, "aaa", id=1), text(lines, "bbb", id="x")))
    assert [each["line"] for each in told] == [1, 2]
    assert "correct" not in told[0]
    assert found.learn() == []
    assert found.counts["waiting"] == 2
    scores = found._queues._open[1].scores
    before = jax.tree.map(np.asarray, found.state.params)
    # The third that waits takes the place of the first.
    later = [text(lines, "ccc", id=3), Label("x", 2), Label(1, 0), Label("y", 0)]
    told = found.predict(entries(*later, start=3))
    assert [each.get("unmatched", False) for each in told] == [False, False, True, True]
    assert told[1]["of"] == 2
    assert told[1]["target"] == 2
    assert told[1]["loss"] == pytest.approx(-float(scores[2]), rel=0.2)  # all are near log 3
    learned = found.learn()
    assert [each.lines for each in learned] == [[2]]
    assert learned[0].losses == [told[1]["loss"]]
    moved = jax.tree.leaves(jax.tree.map(lambda a, b: np.any(a != b), before, found.state.params))
    assert any(moved)
    assert found.counts == {
        "examples": 3, "learned": 1, "unlabelled": 0, "unmatched": 2, "waiting": 1, "dropped": 1,
        "alarms": 0,
    }  # fmt: skip
    # What waits outlives the process.
    again = made(lines, waiting=2)
    read = {entry.number: entry.said for entry in entries(*later, start=3)}
    again.restore(found.state, found.saved(), lambda offset: read[3], [])
    assert again.saved() == found.saved()
    assert again.predict(entries(Label(3, 1), start=7)) == found.predict(
        entries(Label(3, 1), start=7)
    )


@pytest.mark.parametrize("label", [None, "b"])
def test_a_text_takes_the_place_of_one_of_its_id_that_waits(label, lines):
    found = made(lines)
    found.predict(entries(text(lines, "aaa", id=3), text(lines, "ccc", label, id=3)))
    told = found.predict(entries(Label(3, 2), start=3))
    assert found.counts["dropped"] == 1
    assert told[0].get("of") == (2 if label is None else None)
    assert [each.lines for each in found.learn()] == [[2]]
    assert found.counts["unmatched"] == (label is not None)


def test_a_text_without_label_and_identity_is_predicted_alone(lines):
    found = made(lines)
    found.predict(entries(text(lines, "aaa"), text(lines, "abc", "a")))
    assert [each.lines for each in found.learn()] == [[2]]
    assert (found.counts["unlabelled"], found.counts["waiting"]) == (1, 0)


def test_a_delay_by_examples_and_by_time(lines):
    by_number = made(lines, delay=3)
    learned = []
    for start in range(1, 9, 2):
        by_number.predict(entries(text(lines, "aaa", "a"), text(lines, "bbb", "b"), start=start))
        learned.append([each.lines for each in by_number.learn()])
    assert learned == [[], [[1]], [[2, 3]], [[4, 5]]]
    by_time = made(lines, delay_seconds=10)
    learned = []
    for start, moment in ((1, 0), (3, 5.0), (5, 10), (7, 100)):
        said = [text(lines, "aaa", "a", time=moment + each) for each in range(2)]
        by_time.predict(entries(*said, start=start))
        learned.append([each.lines for each in by_time.learn()])
    assert learned == [[], [], [[1, 2]], [[3, 4], [5, 6]]]
    assert by_time.traces == {"predict": 1, "learn": 1}


def test_the_detector_gets_every_loss_in_order_and_the_batch_behind_its_alarm_says_so(lines):
    met, said = [], []

    class Detector:
        def update(self, loss):
            met.append(loss)
            return len(met) in (2, 5, 6)

    def update(updates, state, params, *, batch, **_):
        return updates, state + batch["drift"].sum()

    counting = jcl.strategy(name="counting", init=lambda *_, **__: np.int32(0), update=update)
    experiment = dataclasses.replace(
        tiny.build(tiny.Config()), drift=Detector, strategy=jcl.chain(counting, optax.sgd(0.1))
    )
    found = begun(experiment, lines)
    losses, drift = [], []
    for start in range(1, 9, 2):
        found.predict(entries(text(lines, "a", "a"), text(lines, "b", "b"), start=start))
        for each in found.learn():
            losses += each.losses
            drift.append(each.drift)
        said.append(int(found.state.strategy[0]))
    assert met == losses
    assert drift == [0, 1, 0, 1]
    assert said == [0, 2, 2, 4]
    assert found.counts["alarms"] == 3  # two of them in one batch


def test_strategies_with_boundaries_are_refused_and_periodic_ones_are_not(lines):
    for method in ("ewc", "per_task"):
        with pytest.raises(jcl.InputError, match=r"boundaries.*jcl\.periodically.*per_task"):
            Engine(tiny.build(tiny.Config(method=method)), lines.blank(), Timing(batch=2))
    Engine(tiny.build(tiny.Config(method="periodic")), lines.blank(), Timing(batch=2))


REACTIONS = {
    "boost": lambda: jcl.chain(optax.sgd(0.1), jcl.only("out", jcl.boost(10.0, 20.0))),
    "reweighted": lambda: jcl.chain(jcl.reweighted(jcl.replay(9, 2), 2.0, 5.0), optax.sgd(0.1)),
    "on_drift": lambda: jcl.chain(jcl.on_drift(jcl.ewc(1.0)), optax.sgd(0.1)),
    "restarting": lambda: jcl.skip_nonfinite(jcl.restarting(optax.sgd, lambda step: 0.1), most=1),
    "own": lambda: jcl.strategy(name="own", alarms=True, optimizes=True),
}


@pytest.mark.parametrize("name", REACTIONS)
def test_a_reaction_to_alarms_that_nobody_gives_is_refused(name, lines):
    plain = tiny.build(tiny.Config())
    experiment = dataclasses.replace(plain, strategy=REACTIONS[name]())
    with pytest.raises(jcl.InputError, match="there is none, so that it would do nothing"):
        Engine(experiment, lines.blank(), Timing(batch=2))
    Engine(dataclasses.replace(experiment, drift=tiny.Sudden), lines.blank(), Timing(batch=2))
    # `jcl run` has no detector, whatever the experiment says.
    example = lines.read(b'{"text": "ab", "label": "a"}').leaves
    source = jcl.data.Arrays({key: np.stack([leaf] * 4) for key, leaf in example.items()})
    stream = jcl.data.Stream("letters", (jcl.data.Task("letters", source, source, "1"),))
    streamed = dataclasses.replace(experiment, stream=stream, steps=1, drift=tiny.Sudden)
    with pytest.raises(jcl.InputError, match="`jcl run` has no detector"):
        check(streamed)
    check(dataclasses.replace(streamed, strategy=plain.strategy))


def test_a_stream_is_met_once_in_its_order():
    """Closed form: the mean of what came so far, by a bias alone and a rate of 1 over the count."""
    targets = np.array([0, 1, 1, 0, 1, 1, 0, 1], np.int32)
    source = jcl.data.Arrays({"inputs": np.zeros((8, 1), np.float32), "targets": targets})
    stream = jcl.data.Stream("coins", (jcl.data.Task("coins", source, source, "1"),))
    apply = lambda params, inputs, key=None: inputs @ np.zeros((1, 2)) + params["bias"]
    experiment = jcl.Experiment(
        name="coins",
        model=jcl.models.Model(lambda key: {"bias": np.zeros(2, np.float32)}, apply, None),
        loss_fn=jcl.losses.classify(apply),
        strategy=optax.sgd(1.0),
        stream=stream,
        measure=jcl.losses.accuracy(apply),
        batch_size=3,
        steps=1,
    )
    report = jcl.online.run(experiment, delay=2, window=4)
    bias, expected, learned = np.zeros(2), [], 0
    for begin in (0, 3, 6):
        batch = targets[begin : begin + 3]
        chance = np.exp(bias) / np.exp(bias).sum()
        expected += [-np.log(chance[each]) for each in batch]
        known = max(0, begin + len(batch) - 2)
        while learned < known:
            own = targets[learned : min(learned + 3, known)]
            chance = np.exp(bias) / np.exp(bias).sum()
            bias -= np.mean([chance - np.eye(2)[each] for each in own], axis=0)
            learned += len(own)
    assert report["counts"]["learned"] == learned == 6
    np.testing.assert_allclose(report["series"]["loss"], expected[:6], rtol=1e-5)
    assert report["measures"]["loss"] == pytest.approx(np.mean(expected[:6]), rel=1e-5)
    assert report["traces"] == {"predict": 1, "learn": 1}


def test_a_line_is_read_as_it_was_meant(lines):
    example = lines.read('{"text": "Grüße an alle", "label": "b", "id": "7", "time": 3}'.encode())
    assert isinstance(example, Example)
    np.testing.assert_array_equal(example.leaves["inputs"], list("Grüße an".encode())[:8])
    assert (example.identity, example.time, int(example.leaves["targets"])) == ("7", 3, 1)
    assert lines.read(b'{"id": 7, "label": "c"}') == Label(7, 2)
    short = lines.read(b'{"text": "ab"}')
    assert short.leaves["attention_mask"].tolist() == [1, 1, 0, 0, 0, 0, 0, 0]
    assert not short.labelled
    assert short.leaves["mask"] == 0


def test_a_line_of_a_language_model():
    tokenizer = jcl.data.ByteTokenizer()
    example = Lines(tokenizer=tokenizer, length=4).read(b'{"text": "ab"}')
    assert example.leaves["inputs"].tolist() == [256, 97, 98, 257]
    assert example.leaves["targets"].tolist()[:2] == [97, 98]
    assert example.leaves["mask"].tolist() == [1, 1, 0, 0]
    assert example.labelled
    assert example.size == 2


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "Expecting"),
        (b"\xff", "UTF-8"),
        (b"[1]", "no object"),
        (b'{"txt": "a"}', "no text, nor id and label"),
        (b'{"label": "a"}', "no text, nor id and label"),
        (b'{"text": 3}', "its text is 3, which should be str"),
        (b'{"text": ""}', "no token"),
        (b'{"text": "\\ud800"}', "surrogate"),
        (b'{"text": "a", "label": "d"}', "its label is none of the 3 classes"),
        (b'{"text": "a", "label": [1]}', "is none of the 3 classes"),
        (b'{"text": "a", "id": [1]}', "its id is a list"),
        (b'{"text": "a", "time": "now"}', "its time is 'now'"),
        (b'{"text": "a", "text": "b"}', "twice"),
    ],
)
def test_a_line_that_cannot_be_used_says_why(line, reason, lines):
    with pytest.raises(ValueError, match=reason):
        lines.read(line)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": ("a",)}, "at least two"),
        ({"labels": ("a", "a")}, "each once"),
        ({"labels": "ab"}, "at least two"),
        ({"length": 0}, "at least 1"),
        ({"tokenizer": "bert"}, "give a tokenizer"),
        ({"tokenizer": toy}, "give a tokenizer"),
    ],
)
def test_how_lines_are_read_is_checked(options, message):
    given = {"tokenizer": jcl.data.ByteTokenizer(), "length": 8, "labels": LABELS} | options
    with pytest.raises(jcl.InputError, match=message):
        Lines(**given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "--batch=0"),
        ({"delay": 5, "delay_seconds": 1.0}, "leave one of them out"),
        ({"delay": 5, "waiting": 4}, "--waiting 5"),
    ],
)
def test_timings_are_checked(options, message):
    with pytest.raises(jcl.InputError, match=message):
        Timing(**options)


def test_an_experiment_needs_a_stream_or_lines():
    experiment = tiny.build(tiny.Config())
    with pytest.raises(jcl.InputError, match=r"lines=jcl\.data\.Lines"):
        dataclasses.replace(experiment, lines=None)
    with pytest.raises(jcl.InputError, match="give it a stream"):
        check(experiment)
