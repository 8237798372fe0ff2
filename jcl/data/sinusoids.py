"""Few-shot regression of sine waves."""

import hashlib

import numpy as np

from jcl import checks
from jcl.data.draws import Drawn, uniform
from jcl.data.episodes import slots
from jcl.data.streams import Batch

_AMPLITUDE, _PHASE, _INPUTS = (0.1, 5.0), (0.0, np.pi), (-5.0, 5.0)


class Sinusoids(Drawn):
    """Episodes of sine waves; see `sinusoids`."""

    def __init__(self, number: int, shots: int, queries: int, seed: int, padded_shots: int | None):
        super().__init__("sinusoids", number, seed)
        self._shots = checks.whole("sinusoids", "shots", shots)
        self._queries = checks.whole("sinusoids", "queries", queries)
        self._slots, self._mask = slots("sinusoids", self._shots, padded_shots)

    def hash(self) -> str:
        """SHA-256 (hex) of the arguments."""
        slots = self._slots.tolist()
        arguments = ("sinusoids", len(self), self._shots, self._queries, self._seed, slots)
        return hashlib.sha256(repr(arguments).encode()).hexdigest()

    def _draw(self, indices: np.ndarray) -> Batch:
        numbers = uniform(self._seed, indices, 2 + self._queries + self._shots)
        numbers = numbers.astype(np.float32)[..., None]
        amplitude, phase = _within(numbers[:, :1], _AMPLITUDE), _within(numbers[:, 1:2], _PHASE)
        # The queries are drawn first, so that the same task with more shots has the same queries.
        inputs = _within(numbers[:, 2:], _INPUTS)
        targets = amplitude * np.sin(inputs - phase)
        support = self._queries + self._slots
        batch = {
            "inputs": inputs[:, : self._queries],
            "targets": targets[:, : self._queries],
            "support_inputs": inputs[:, support],
            "support_targets": targets[:, support],
        }
        if self._mask is not None:
            batch["support_mask"] = np.tile(self._mask, (len(indices), 1))
        return batch


def sinusoids(
    number: int, shots: int, queries: int, *, seed: int, padded_shots: int | None = None
) -> Sinusoids:
    """Episodes of sine waves to regress (Finn et al. 2017, section 5.1).

    y = amplitude * sin(x - phase), amplitude U[0.1, 5], phase U[0, pi], x U[-5, 5].

    The paper names the ranges; the minus is that of the authors' released code. An episode has
    `inputs` and `targets` [queries, 1], `support_inputs` and `support_targets` [shots, 1], all
    float32. Episode i is a function of the seed and of i alone; with other shots it is the same
    wave with the same queries.

    Args:
        number: how many episodes.
        shots: points to adapt to.
        queries: points to predict.
        seed: of the draws.
        padded_shots: pad the support to so many points, which repeat the first, with a
            `support_mask` [padded_shots] (float32) that is 0 at them.

    Raises:
        InputError: an argument is out of its range.

    >>> from jcl.data import sinusoids
    >>> episodes = sinusoids(1000, shots=5, queries=10, seed=0, padded_shots=20)
    >>> episodes[3]["inputs"].shape, episodes[3]["support_mask"].sum().item()
    ((10, 1), 5.0)
    """
    return Sinusoids(number, shots, queries, seed, padded_shots)


def _within(numbers: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    low, high = (np.float32(limit) for limit in limits)
    return low + (high - low) * numbers
