"""The README's Python, executed as it stands there."""

import re
from pathlib import Path

import jax
import optax
import toy

import jcl

README = Path(__file__).parent.parent / "README.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_the_functional_api(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, sentence in [("english", "The cat sat on the mat. "), ("german", "Der Hund bellt. ")]:
        (tmp_path / f"{name}.txt").write_text(sentence * 200)
    exec(SNIPPETS[0], {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["english", "german"] * 2
    losses = [float(line.split()[1]) for line in lines]
    assert all(2 < value < 6 for value in losses)  # nats, from log(258) = 5.55
    assert losses[3] < losses[1]  # German was learned
    assert len(SNIPPETS[0].strip().splitlines()) <= 30


def test_a_strategy_of_ones_own():
    names = {}
    exec(SNIPPETS[1], names)
    learner = jcl.learner(toy.loss_fn, jcl.chain(names["l2"](0.1), optax.sgd(0.1)))
    state = learner.init(jax.random.key(0), toy.params(), toy.batch(0))
    state, metrics = learner.step(state, toy.batch(0))
    assert float(metrics["l2"]) == 0
    _, metrics = learner.step(state, toy.batch(1))
    assert float(metrics["l2"]) > 0


def test_the_modular_methods():
    names = {}
    exec(SNIPPETS[2], names)
    assert {"loss", "total", "olora"} <= set(names["metrics"])


def test_meta_learning():
    names = {}
    exec(SNIPPETS[3], names)
    assert 0 < float(names["metrics"]["total"]) < 10  # an amplitude of at most 5 squared, halved
    assert len(SNIPPETS) == 4
