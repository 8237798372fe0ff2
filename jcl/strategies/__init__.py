"""The methods, one file each."""

from jcl.strategies.ewc import ewc
from jcl.strategies.replay import replay

__all__ = ["ewc", "replay"]
