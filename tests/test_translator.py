"""Translation there and back by checkpoints of Hugging Face's, made here at random."""

import sys

import pytest

import jcl
from jcl.data import augmentation

WORDS = ["[PAD]", "[END]", "[UNK]", "where", "is", "my", "card", "karte", "konto"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A Marian that says karte of everything, and one that says card."""
    torch = pytest.importorskip("torch", reason="PyTorch is absent: pip install torch==2.13.0")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import MarianConfig, MarianMTModel, PreTrainedTokenizerFast

    tokens = Tokenizer(models.WordLevel({w: n for n, w in enumerate(WORDS)}, unk_token="[UNK]"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens.post_processor = processors.TemplateProcessing(
        single="$A [END]", special_tokens=[("[END]", 1)]
    )
    words = PreTrainedTokenizerFast(
        tokenizer_object=tokens, pad_token="[PAD]", eos_token="[END]", unk_token="[UNK]"
    )
    config = MarianConfig(
        vocab_size=len(WORDS), d_model=8, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=8, decoder_ffn_dim=8,
        max_position_embeddings=32, pad_token_id=0, eos_token_id=1, forced_eos_token_id=1,
        decoder_start_token_id=0,
    )  # fmt: skip
    made = {}
    for name, word in (("there", "karte"), ("back", "card"), ("silent", "[END]")):
        torch.manual_seed(0)
        model = MarianMTModel(config)
        model.final_logits_bias[0, WORDS.index(word)] = 100.0
        made[name] = tmp_path_factory.mktemp("marian") / name
        model.save_pretrained(made[name])
        words.save_pretrained(made[name])
    return made


def test_a_text_goes_there_and_back_in_the_same_way(folders):
    translate = jcl.models.translator(folders["there"], folders["back"], length=4)
    found = translate("where is my card")
    assert set(found.split()) == {"card"}
    assert 1 <= len(found.split()) <= 4
    assert translate("where is my card") == found
    one = jcl.models.translator(folders["there"], folders["there"], length=4)
    assert set(one("my card").split()) == {"karte"}
    silent = jcl.models.translator(folders["there"], folders["silent"], length=4)
    assert silent("where is my card") == "where is my card"


def test_its_name_holds_what_the_folders_hold(folders):
    pairs = [("there", "back"), ("back", "there"), ("there", "there")]
    names = [
        jcl.models.translator(folders[one], folders[other]).name
        for one, other in pairs
        for _ in "ab"
    ]
    assert names[0::2] == names[1::2]
    assert len({*names}) == 3
    assert names[0].startswith("there and back ")
    prefixed = jcl.models.translator(
        folders["there"], folders["back"], prefixes=("to German: ", "")
    )
    assert prefixed.name not in names
    change = augmentation.back_translation(prefixed, probability=1.0)
    assert change.settings == prefixed.name


def test_errors(folders, tmp_path, monkeypatch):
    there = folders["there"]
    (tmp_path / "empty").mkdir()
    for path in there.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / "empty" / path.name).write_bytes(path.read_bytes())
    for call, match in (
        (lambda: jcl.models.translator(there, tmp_path / "none"), "there is no folder .*none"),
        (lambda: jcl.models.translator(there, tmp_path / "empty"), "no translation checkpoint"),
        (lambda: jcl.models.translator(there, there, length=0), r"translator\(length=0\)"),
        (lambda: augmentation.back_translation(str.upper), "has no name"),
    ):
        with pytest.raises(jcl.InputError, match=match):
            call()
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(jcl.InputError, match="pip install torch sentencepiece"):
        jcl.models.translator(there, there)
