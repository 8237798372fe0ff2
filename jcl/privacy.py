"""What differentially private training has spent: its epsilon, by Rényi accounting."""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import gammaln, logsumexp

from jcl.core import lift
from jcl.errors import InputError
from jcl.experiment import Experiment, stage_name, stage_steps

ORDERS = (*range(2, 257), 320, 384, 512, 768, 1024)
ASSUMED = (
    "Poisson sampling is assumed, where every example enters a batch by itself with the chance "
    "batch size / examples; the run's batches are of a fixed size and a shuffled order"
)


class Stage(NamedTuple):
    """Attributes:
    examples: of the stage.
    batch_size: of its steps.
    steps: that were taken.
    """

    examples: int
    batch_size: int
    steps: int


def epsilon(
    noise_multiplier: float,
    stages: Sequence[Stage],
    *,
    delta: float,
    orders: Sequence[int] = ORDERS,
) -> float:
    """The epsilon of (epsilon, delta)-differential privacy after the steps of all stages.

    min over a of sum_stages steps R_a + log((a - 1) / a) - (log delta + log a) / (a - 1),
    R_a = log(sum_k C(a, k) (1 - q)^(a - k) q^k exp((k^2 - k) / (2 noise^2))) / (a - 1),
    q = batch size / examples.

    R_a is the Rényi divergence of the Poisson-sampled Gaussian mechanism at the whole order a
    (Mironov et al. 2019, section 3.3), for data sets that differ by one example more or less; the
    conversion is that of Canonne et al. 2020. Orders between the whole ones could only lower the
    result. Stages add up, as if an example could be in all of them; where each is in one, the
    largest of the stages' own holds.

    Args:
        noise_multiplier: as in `jcl.private`.
        stages: in whatever order.
        delta: below 1 / the examples of every stage, or it would allow to publish one of them.
        orders: whole numbers above 1.

    Returns:
        infinity where there is no noise.

    Raises:
        InputError: delta is too large.

    >>> round(epsilon(1.0, [Stage(10_000, 100, 300)], delta=1e-5), 2)
    1.48
    """
    most = max(stage.examples for stage in stages)
    if not 0 < delta < 1 / most:
        raise InputError(
            f"private(delta={delta}): it must be above 0 and below 1 / {most}, one by the examples "
            f"of a stage: give delta={0.1 / most:.1g}."
        )
    if not noise_multiplier:
        return math.inf
    found = []
    for order in orders:
        spent = sum(
            stage.steps * _divergence(order, float(noise_multiplier), stage) for stage in stages
        )
        conversion = math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)
        found.append(spent + conversion)
    return max(0.0, min(found))


@functools.cache
def _divergence(order: int, noise_multiplier: float, stage: Stage) -> float:
    chance = min(1.0, stage.batch_size / stage.examples)
    if chance == 1:
        return order / (2 * noise_multiplier**2)
    k = np.arange(order + 1)
    chosen = gammaln(order + 1) - gammaln(k + 1) - gammaln(order - k + 1)
    terms = chosen + k * math.log(chance) + (order - k) * math.log1p(-chance)
    total = logsumexp(terms + (k**2 - k) / (2 * noise_multiplier**2))
    return np.asarray(total).item() / (order - 1)


def accounted(experiment: Experiment) -> dict[str, Any] | None:
    """What the report says of an experiment's privacy; None where its strategy promises none.

    Raises:
        InputError: from `epsilon`.
    """
    promise = lift(experiment.strategy).privacy
    if promise is None:
        return None
    stages = [
        Stage(len(source), experiment.batch_size, steps)
        for source, steps in zip(experiment.stream.stages, stage_steps(experiment), strict=True)
    ]

    def spent(stages: Sequence[Stage]) -> float | None:
        found = epsilon(promise.noise_multiplier, stages, delta=promise.delta)
        return found if math.isfinite(found) else None

    return {
        "epsilon": spent(stages),
        "delta": float(promise.delta),
        "clip": float(promise.clip),
        "noise_multiplier": float(promise.noise_multiplier),
        "stages": [
            {"name": stage_name(experiment, number), **stage._asdict(), "epsilon": spent([stage])}
            for number, stage in enumerate(stages)
        ],
        "assumed": ASSUMED,
    }
