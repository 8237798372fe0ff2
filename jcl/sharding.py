"""Where arrays live: a mesh over the devices at hand, and the shardings of state and batches.

Nothing here knows of strategies. Of one replica the state is on every device and batches are split
along their batch axis; several replicas are dealt out over the devices where their number allows,
each with its state and batches. On one device everything is the default placement.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec, SingleDeviceSharding

from jcl.errors import InputError


class Placement:
    """The shardings of one run.

    Attributes:
        dealt: whether every device has seeds of its own.
    """

    def __init__(self, *batch_sizes: int, seeds: int = 1):
        devices = jax.devices()
        self.dealt = len(devices) > 1 and seeds % len(devices) == 0
        for size in batch_sizes:
            if not self.dealt and size % len(devices):
                raise InputError(
                    f"A batch of {size} cannot be split over {len(devices)} devices: choose a "
                    f"multiple of {len(devices)}, or let the process see fewer devices."
                )
        if len(devices) == 1:
            self._mesh = None
            self._everywhere: Any = SingleDeviceSharding(devices[0])
        else:
            self._mesh = jax.make_mesh(
                (len(devices),),
                ("seeds" if self.dealt else "data",),
                axis_types=(AxisType.Auto,),
                devices=devices,
            )
            self._everywhere = NamedSharding(self._mesh, PartitionSpec())

    def state(self, tree: Any) -> Any:
        """The shardings of a state's leaves, or of what was computed from it."""
        if self._mesh is None or not self.dealt:
            return jax.tree.map(lambda leaf: self._everywhere, tree)
        mesh = self._mesh
        return jax.tree.map(lambda spec: NamedSharding(mesh, spec), _by_seed(tree))

    def batch(self, leading: int = 0, *, whole: bool = False) -> Any:
        """The sharding of a batch whose batch axis stands behind `leading` others.

        Args:
            leading: 0 for [batch, ...], 1 for [seeds, batch, ...], and so on.
            whole: it is not to be split along its batch axis.
        """
        if self._mesh is None or (whole and not self.dealt):
            return self._everywhere
        if self.dealt:
            return NamedSharding(self._mesh, PartitionSpec("seeds"))
        return NamedSharding(self._mesh, PartitionSpec(*[None] * leading, "data"))

    def deal(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function of all seeds, computed by each device for its own without a word to others.

        Args:
            function: of trees whose leaves have a leading axis of seeds or no axis at all; so have
                the leaves of what it returns.
        """
        mesh = self._mesh
        if mesh is None or not self.dealt:
            return function

        def dealt(*arguments):
            shapes = jax.eval_shape(function, *arguments)
            spread = jax.shard_map(
                function,
                mesh=mesh,
                in_specs=_by_seed(arguments),
                out_specs=_by_seed(shapes),
                check_vma=False,
            )
            return spread(*arguments)

        return dealt


def _by_seed(tree: Any) -> Any:
    """Split along the first axis; what has none is the same for all seeds."""
    return jax.tree.map(lambda leaf: PartitionSpec("seeds") if leaf.ndim else PartitionSpec(), tree)
