"""The models, one file a family, and the wrappers that turn any of them into another."""

from jcl.models.adapters import adapters
from jcl.models.bert import BertConfig, bert
from jcl.models.cosine_head import cosine_head
from jcl.models.gpt2 import GPT2_SIZES, GPT2Config, gpt2
from jcl.models.lora import lora, merge_lora
from jcl.models.mlp import MLPConfig, mlp
from jcl.models.model import Model
from jcl.models.module_dropout import module_dropout
from jcl.models.prompts import prompts

__all__ = [
    "GPT2_SIZES",
    "BertConfig",
    "GPT2Config",
    "MLPConfig",
    "Model",
    "adapters",
    "bert",
    "cosine_head",
    "gpt2",
    "lora",
    "merge_lora",
    "mlp",
    "module_dropout",
    "prompts",
]
