"""Streams of tasks: sources, batches, text, and the three domains of the demonstration."""

from jcl.data.domains import domains
from jcl.data.streams import (
    Batch,
    Concatenated,
    Source,
    Stream,
    Task,
    cumulative,
    evaluation_batches,
    joint,
    prefetch,
    stack,
    steps_per_epoch,
    training_batches,
)
from jcl.data.text import Blocks, text_files, text_task
from jcl.data.tokenization import ByteTokenizer, Tokenizer

__all__ = [
    "Batch",
    "Blocks",
    "ByteTokenizer",
    "Concatenated",
    "Source",
    "Stream",
    "Task",
    "Tokenizer",
    "cumulative",
    "domains",
    "evaluation_batches",
    "joint",
    "prefetch",
    "stack",
    "steps_per_epoch",
    "text_files",
    "text_task",
    "training_batches",
]
