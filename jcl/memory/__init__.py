"""Memories that live inside a strategy's state, on the device, filled and drawn inside the step."""

from jcl.memory.aged import aged
from jcl.memory.by_class import ByClass, balanced, class_balanced, greedy_balanced, herd, herding
from jcl.memory.files import save, shapes_alone, starting_from
from jcl.memory.forgetting import without
from jcl.memory.in_order import Prioritized, Ring, of, priority, reservoir, ring
from jcl.memory.policy import Policy, after, check_head, counted, write

__all__ = [
    "ByClass",
    "Policy",
    "Prioritized",
    "Ring",
    "after",
    "aged",
    "balanced",
    "check_head",
    "class_balanced",
    "counted",
    "greedy_balanced",
    "herd",
    "herding",
    "of",
    "priority",
    "reservoir",
    "ring",
    "save",
    "shapes_alone",
    "starting_from",
    "without",
    "write",
]
