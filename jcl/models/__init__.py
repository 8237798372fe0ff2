"""The models, one file a family."""

from jcl.models.gpt2 import GPT2_SIZES, GPT2Config, gpt2
from jcl.models.mlp import MLPConfig, mlp
from jcl.models.model import Model

__all__ = ["GPT2_SIZES", "GPT2Config", "MLPConfig", "Model", "gpt2", "mlp"]
