"""Streams of tasks: sources, batches, text, labelled texts, images, and what needs no network."""

from jcl.data import augmentation
from jcl.data.arrays import Arrays, Chosen, blurry, encoded, fuzzy, labelled
from jcl.data.augmentation import augmented
from jcl.data.characters import Characters, quarter_turns
from jcl.data.classification import banking77, clinc150, text_classification
from jcl.data.domains import domains
from jcl.data.drifting import DriftStream, drifting
from jcl.data.episodes import ClassSplit, Episodes, class_tasks, split_classes
from jcl.data.glyphs import glyphs
from jcl.data.hashed_words import HashedWords
from jcl.data.images import Images, mnist, mnist_360, permuted, rotated, rotation, split
from jcl.data.intents import intents
from jcl.data.labelled_text import TextStream
from jcl.data.lines import Example, Label, Lines
from jcl.data.omniglot import omniglot
from jcl.data.reviews import reviews
from jcl.data.sinusoids import Sinusoids, sinusoids
from jcl.data.streams import (
    Batch,
    Concatenated,
    Source,
    Stream,
    Task,
    Walk,
    check_unchanging,
    cumulative,
    evaluation_batches,
    held,
    joint,
    prefetch,
    stack,
    steps_per_epoch,
    training_batches,
    walk,
)
from jcl.data.text import Blocks, text_files, text_task
from jcl.data.tokenization import ByteTokenizer, PretrainedTokenizer, Tokenizer
from jcl.data.trajectories import Trajectories, class_sequence
from jcl.data.validation import held_out

__all__ = [
    "Arrays",
    "Batch",
    "Blocks",
    "ByteTokenizer",
    "Characters",
    "Chosen",
    "ClassSplit",
    "Concatenated",
    "DriftStream",
    "Episodes",
    "Example",
    "HashedWords",
    "Images",
    "Label",
    "Lines",
    "PretrainedTokenizer",
    "Sinusoids",
    "Source",
    "Stream",
    "Task",
    "TextStream",
    "Tokenizer",
    "Trajectories",
    "Walk",
    "augmentation",
    "augmented",
    "banking77",
    "blurry",
    "check_unchanging",
    "class_sequence",
    "class_tasks",
    "clinc150",
    "cumulative",
    "domains",
    "drifting",
    "encoded",
    "evaluation_batches",
    "fuzzy",
    "glyphs",
    "held",
    "held_out",
    "intents",
    "joint",
    "labelled",
    "mnist",
    "mnist_360",
    "omniglot",
    "permuted",
    "prefetch",
    "quarter_turns",
    "reviews",
    "rotated",
    "rotation",
    "sinusoids",
    "split",
    "split_classes",
    "stack",
    "steps_per_epoch",
    "text_classification",
    "text_files",
    "text_task",
    "training_batches",
    "walk",
]
