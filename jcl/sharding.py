"""Where arrays live: a mesh over the devices at hand, and the shardings of state and batches.

Nothing here knows of strategies: the state is replicated, batches are split along their batch
axis. On one device everything is the default placement.
"""

from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec, SingleDeviceSharding

from jcl.errors import InputError


class Placement:
    """The shardings of one run.

    Attributes:
        state: of every leaf of the learner's state.
        batch: of a batch [batch, ...], or [seeds, batch, ...] with `leading` 1, and so on.
    """

    def __init__(self, batch_size: int):
        devices = jax.devices()
        if batch_size % len(devices):
            raise InputError(
                f"A batch of {batch_size} cannot be split over {len(devices)} devices: choose a "
                f"multiple of {len(devices)}, or let the process see fewer devices."
            )
        if len(devices) == 1:
            self._mesh = None
            self.state: Any = SingleDeviceSharding(devices[0])
        else:
            self._mesh = jax.make_mesh(
                (len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices
            )
            self.state = NamedSharding(self._mesh, PartitionSpec())

    def batch(self, leading: int = 0) -> Any:
        """The sharding of a batch whose batch axis stands behind `leading` others."""
        if self._mesh is None:
            return self.state
        return NamedSharding(self._mesh, PartitionSpec(*[None] * leading, "data"))
