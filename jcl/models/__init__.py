"""The models, one family a file."""

from jcl.models.gpt2 import GPT2_SIZES, GPT2Config, Model, gpt2

__all__ = ["GPT2_SIZES", "GPT2Config", "Model", "gpt2"]
