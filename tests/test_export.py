"""`jcl export`: a classifier with LoRA to Hugging Face. A plain run: test_generate."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import jcl
from jcl.__main__ import load_config, main
from jcl.answer import export, learned_params, reopen

CONFIG = '''
"""Two classes of texts."""
import dataclasses

import optax
import transformers

import jcl

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "blue", "green", "grey")


@dataclasses.dataclass(frozen=True)
class Config:
    texts: str = ""
    seed: int = 0


def build(config):
    tokenizer = transformers.BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)})
    shape = jcl.models.BertConfig(
        len(WORDS), positions=4, width=8, layers=1, heads=2, inner=8, dropout=0.0, head="classes"
    )
    model = jcl.models.lora(jcl.models.bert(shape), rank=2, alpha=4.0, where="*/query")
    trained = ["lora/*", "classifier/*"]
    return jcl.Experiment(
        name="lora", model=model, loss_fn=jcl.losses.classify(model.apply),
        strategy=jcl.chain(jcl.only(trained, optax.adam(0.1)), jcl.freeze("*", but=trained)),
        stream=jcl.data.text_classification(config.texts, tokenizer=tokenizer, tasks=1),
        measure=jcl.losses.accuracy(model.apply), batch_size=8, steps=2, seed=config.seed,
        boundary_batches=1, tokenizer=tokenizer,
    )
'''


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The finished run's folder, and its config file."""
    pytest.importorskip("transformers")
    place = tmp_path_factory.mktemp("export")
    (place / "config.py").write_text(CONFIG)
    rows = [
        f"{word},{label},{part}"
        for word, label in (("red", "warm"), ("blue", "cold"), ("green", "cold"), ("grey", "warm"))
        for part in ("train", "train", "test", "test")
    ]
    (place / "texts.csv").write_text("\n".join(["text,label,split", *rows]))
    arguments = ["--texts", str(place / "texts.csv"), "--out", str(place / "run")]
    assert main(["run", str(place / "config.py"), *arguments]) == 0
    return place / "run", place / "config.py"


def test_a_run_with_lora_becomes_a_model(run, tmp_path, capsys):
    folder, config = run
    assert main(["export", str(folder), str(tmp_path / "model"), "--config", str(config)]) == 0
    shown = capsys.readouterr().out
    assert shown.endswith("run after cold, warm, seed 0, with its tokenizer\n")
    model, found = jcl.models.from_pretrained(tmp_path / "model")
    learned = learned_params(folder, 0)
    assert np.any(learned["lora"]["layer_0"]["attn"]["query"]["b"])
    jax.tree.map(np.testing.assert_array_equal, found, jcl.models.merge_lora(learned, 4.0))
    assert model.config.labels == ("cold", "warm")
    assert jcl.models.tokenizer(tmp_path / "model").encode("blue grey") == [2, 6, 8, 3]


def test_a_run_with_lora_becomes_an_adapter(run, tmp_path, capsys):
    folder, config = run
    arguments = ["export", str(folder), str(tmp_path), "--config", str(config), "--lora", "adapter"]
    assert main(arguments) == 0
    written = load_file(tmp_path / "adapter_model.safetensors")
    classifier = learned_params(folder, 0)["classifier"]
    np.testing.assert_array_equal(
        written["base_model.model.classifier.weight"], classifier["kernel"].T
    )
    assert main(arguments) == 1
    assert "holds a model already" in capsys.readouterr().err
    assert main([*arguments, "--seed", "3"]) == 1
    assert "has the seeds [0], and not 3" in capsys.readouterr().err


def test_without_a_tokenizer_that_is_said(run, tmp_path):
    reopened = reopen(run[0], load_config, run[1])
    bare = dataclasses.replace(reopened.experiment, tokenizer=None)
    told = export(reopened._replace(experiment=bare), tmp_path)
    assert "the experiment has none: give it in the config" in told
    assert not [*tmp_path.glob("tokenizer*")]
    assert "bos_token_id" not in json.loads((tmp_path / "config.json").read_text())
