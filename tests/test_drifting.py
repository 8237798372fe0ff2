"""Streams whose drifts are known."""

import numpy as np
import pytest

import jcl
from jcl.data import Arrays, Stream, Task, drifting

TASKS, TRAIN, TEST = 4, 6, 2


def examples(task, number, start=0):
    """Inputs tell the task and the example; there are two classes a task."""
    inputs = 100 * task + start + np.arange(number)
    return Arrays({"inputs": inputs, "targets": (2 * task + inputs % 2).astype(np.int32)})


def plain(tasks=TASKS):
    built = [
        Task(f"task {task}", examples(task, TRAIN), examples(task, TEST, 50), str(task))
        for task in range(tasks)
    ]
    return Stream("plain", tuple(built))


def test_of_labels_every_text_has_another_class_in_another_concept():
    stream = drifting(plain(), (0, 1, 2), 24)  # as many as there are
    stage = stream.stages[0].arrays()
    tasks = stage["inputs"] // 100
    concepts = np.repeat([0, 1, 2], 24)
    np.testing.assert_array_equal(stream.concepts, concepts)
    np.testing.assert_array_equal(stage["targets"], (tasks + concepts) % 4)
    assert stage["targets"].dtype == np.int32
    assert (stream.drifts, stream.width, stream.order) == ((24, 48), 0, (0, 1, 2))
    assert stream.classes == 4
    for epoch in stage["inputs"].reshape(3, 24):
        assert len(set(epoch)) == 24  # each once before any again
    for concept, task in enumerate(stream.tasks):
        test = task.test.arrays()
        assert len(test["inputs"]) == TASKS * TEST
        np.testing.assert_array_equal(test["targets"], (test["inputs"] // 100 + concept) % 4)
        np.testing.assert_array_equal(task.train.arrays()["inputs"],
                                      stage["inputs"][concepts == concept])  # fmt: skip


def test_of_domains_a_concept_has_tasks_of_its_own_and_targets_stay():
    stream = drifting(plain(), (0, 1, 0), 12, change="domains")
    stage = stream.stages[0].arrays()
    np.testing.assert_array_equal(stage["targets"], 2 * (stage["inputs"] // 100)
                                  + stage["inputs"] % 2)  # fmt: skip
    tasks = (stage["inputs"] // 100).reshape(3, 12)
    assert [set(segment) for segment in tasks] == [{0, 1}, {2, 3}, {0, 1}]
    assert stream.classes == 8
    assert set(stream.tasks[1].test.arrays()["inputs"] // 100) == {2, 3}


def test_a_gradual_drift_rises_from_nothing_to_all():
    stream = drifting(plain(), (0, 1), 1000, width=600)
    concepts = np.array(stream.concepts)
    assert stream.drifts == (700,)
    assert concepts[:700].max() == 0
    assert concepts[1300:].min() == 1
    shares = concepts[700:1300].reshape(3, 200).mean(axis=1)
    np.testing.assert_allclose(shares, [1 / 6, 1 / 2, 5 / 6], atol=0.1)


def test_the_stage_is_met_in_its_own_order():
    stream = drifting(plain(), (0, 1), 8)
    batches = jcl.data.training_batches(stream.stages[0], 4, seed=7)
    met = np.concatenate([batches[index]["inputs"] for index in range(4)])
    np.testing.assert_array_equal(met, stream.stages[0].arrays()["inputs"])


def test_everything_follows_from_the_arguments():
    def content(**options):
        stream = drifting(plain(), (0, 1, 0), 12, **options)
        return stream.stages[0].hash(), [task.hash for task in stream.tasks]

    assert content(width=6) == content(width=6)
    assert content(width=6, seed=1) != content(width=6)
    stage, hashes = content()
    assert len(set(hashes)) == 2
    # The hash of a task covers the order of the whole stage, which its own examples do not tell.
    assert content(seed=1)[1][0] != hashes[0]
    assert stage != content(change="domains")[0]


def test_of_texts_and_of_what_an_encoder_makes_of_them():
    texts = jcl.data.intents(tokenizer=jcl.data.ByteTokenizer(), length=80)
    stream = drifting(texts, (0, 1), 50, change="domains")
    assert set(stream.stages[0][0]) == {"inputs", "attention_mask", "targets"}
    assert (stream.classes, stream.labels) == (30, texts.labels)
    encoded = jcl.data.encoded(texts, lambda batch: batch["inputs"][:, :2].astype(np.float32))
    features = drifting(encoded, (0, 1), 50, change="domains")
    assert features.classes == 30
    np.testing.assert_array_equal(
        features.stages[0].arrays()["inputs"], stream.stages[0].arrays()["inputs"][:, :2]
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": (0, 2)}, "none left out"),
        ({"order": ()}, "none left out"),
        ({"order": (0, 1, 1)}, "follows itself"),
        ({"order": range(5)}, "5 concepts of the 4 tasks"),
        ({"order": (0, -1)}, "order=-1"),
        ({"length": 0}, "length=0"),
        ({"width": 13}, "at most a segment's length, 12"),
        ({"change": "both"}, 'one of "labels", "domains"'),
        ({"stream": jcl.data.joint(plain())}, "drift the stream first"),
        ({"stream": jcl.data.labelled(plain())}, 'use scenario="class" or "domain"'),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(jcl.InputError, match=message):
        drifting(**{"stream": plain(), "order": (0, 1), "length": 12, **options})
