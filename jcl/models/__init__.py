"""The models, one file a family, and the wrappers that turn any of them into another."""

from jcl.models.adapters import adapters
from jcl.models.bert import BertConfig, bert
from jcl.models.convolutional import ConvolutionalConfig, convolutional
from jcl.models.cosine_head import cosine_head
from jcl.models.efficient_attention import Linformer, Performer
from jcl.models.generate import Generated, generate, probabilities
from jcl.models.gpt2 import GPT2_SIZES, GPT2Config, gpt2
from jcl.models.hf import from_pretrained, save_pretrained, tokenizer
from jcl.models.llama import LlamaConfig, Rope, llama
from jcl.models.lora import lora, merge_lora
from jcl.models.mask_filler import mask_filler
from jcl.models.mlp import MLPConfig, mlp
from jcl.models.model import Model
from jcl.models.module_dropout import module_dropout
from jcl.models.neuromodulated import NeuromodulatedConfig, neuromodulated
from jcl.models.precision import Precision
from jcl.models.prompts import prompts
from jcl.models.random_features import random_expansion, random_features, second_head
from jcl.models.shortened import shortened
from jcl.models.starting_from import starting_from
from jcl.models.translator import Translator, translator

__all__ = [
    "GPT2_SIZES",
    "BertConfig",
    "ConvolutionalConfig",
    "GPT2Config",
    "Generated",
    "Linformer",
    "LlamaConfig",
    "MLPConfig",
    "Model",
    "NeuromodulatedConfig",
    "Performer",
    "Precision",
    "Rope",
    "Translator",
    "adapters",
    "bert",
    "convolutional",
    "cosine_head",
    "from_pretrained",
    "generate",
    "gpt2",
    "llama",
    "lora",
    "mask_filler",
    "merge_lora",
    "mlp",
    "module_dropout",
    "neuromodulated",
    "probabilities",
    "prompts",
    "random_expansion",
    "random_features",
    "save_pretrained",
    "second_head",
    "shortened",
    "starting_from",
    "tokenizer",
    "translator",
]
