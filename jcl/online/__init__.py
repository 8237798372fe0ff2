"""Online learning: predict, then learn, from one example after the other."""

from jcl.online.step import Prequential, prequential
from jcl.online.streams import run

__all__ = ["Prequential", "prequential", "run"]
