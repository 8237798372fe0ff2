"""Hugging Face's checkpoints, in and out, without PyTorch.

A checkpoint is a folder: config.json, the weights in safetensors (one file, or shards with an
index), and the tokenizer's files. A family's file says what its config.json means (`from_hf`,
`to_hf`) and where each of its parameters is kept (`tensors`); here they are read and written.
"""

from jcl.models.hf.loading import from_pretrained, tokenizer
from jcl.models.hf.saving import save_pretrained

__all__ = ["from_pretrained", "save_pretrained", "tokenizer"]
