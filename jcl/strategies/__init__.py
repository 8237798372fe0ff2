"""The methods, one file each."""

from jcl.strategies.anchored import l1, l2
from jcl.strategies.ewc import ewc
from jcl.strategies.mas import mas
from jcl.strategies.replay import replay
from jcl.strategies.si import si

__all__ = ["ewc", "l1", "l2", "mas", "replay", "si"]
