"""What differentially private training has spent: its epsilon, by Rényi accounting."""

import importlib.util
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from jcl.core import lift
from jcl.errors import InputError
from jcl.experiment import Experiment, stage_name, stage_steps

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


def installed() -> bool:
    """Whether dp-accounting is there."""
    return importlib.util.find_spec("dp_accounting") is not None


def epsilon(noise_multiplier: float, stages: Sequence[Stage], *, delta: float) -> float:
    """The epsilon of (epsilon, delta)-differential privacy after the steps of all stages.

    Rényi accounting of the Poisson-sampled Gaussian mechanism (Mironov et al. 2019), by
    dp-accounting, for data sets that differ by one example more or less. Stages add up, as if an
    example could be in all of them; where each is in one, the largest of the stages' own holds.

    Args:
        noise_multiplier: as in `jcl.private`.
        stages: in whatever order.
        delta: below 1 / the examples of every stage, or it would allow to publish one of them.

    Returns:
        infinity where there is no noise.

    Raises:
        InputError: dp-accounting is not installed, or delta is too large.
    """
    most = max(stage.examples for stage in stages)
    if not 0 < delta < 1 / most:
        raise InputError(
            f"private(delta={delta}): it must be above 0 and below 1 / {most}, one by the examples "
            f"of a stage: give delta={0.1 / most:.1g}."
        )
    try:
        import dp_accounting
        from dp_accounting import rdp
    except ImportError as error:
        raise InputError(
            "private(...) is accounted for by dp-accounting, which is not installed: "
            'pip install "jcl[privacy]".'
        ) from error
    if not noise_multiplier:
        return math.inf
    accountant = rdp.RdpAccountant()
    for stage in stages:
        chance = min(1.0, stage.batch_size / stage.examples)
        gaussian = dp_accounting.GaussianDpEvent(float(noise_multiplier))
        event = dp_accounting.PoissonSampledDpEvent(chance, gaussian)
        accountant.compose(event, stage.steps)
    return float(accountant.get_epsilon(delta))


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
