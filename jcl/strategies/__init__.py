"""The methods, one file each."""

from jcl.strategies.agem import agem
from jcl.strategies.der import der
from jcl.strategies.ewc import ewc
from jcl.strategies.gdumb import gdumb
from jcl.strategies.gem import gem
from jcl.strategies.gss import gss
from jcl.strategies.mir import mir
from jcl.strategies.replay import replay

__all__ = ["agem", "der", "ewc", "gdumb", "gem", "gss", "mir", "replay"]
