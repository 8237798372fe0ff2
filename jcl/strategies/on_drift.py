"""Consolidation at an alarm."""

from jcl import checks
from jcl.core import Strategy, alarmed, consolidating, lift


def on_drift(part: Strategy, *, batches: int = 8) -> Strategy:
    """The part, consolidated when a drift is detected instead of at task boundaries.

    state <- consolidate(state, the last batches) at an alarm, the batch that tells of it left out

    Aljundi et al. 2019 (task-free continual learning) find the moment to update importances by the
    loss as well. Differs from the paper in: the detector is any of `jcl.drift`, and what is
    consolidated on are the last batches, not a buffer of hard examples. An alarm comes some time
    after the drift: a ring that is longer than this delay holds batches of before as well. Alarms
    in the first `batches` steps pass, since the ring is not full. Over seeds in one program, which
    have alarms of their own, every step computes the consolidation.

    Args:
        part: a strategy whose consolidate leaves the params as they are, such as `ewc(...)`.
        batches: how many of the last batches it consolidates on.

    Raises:
        InputError: the part consolidates nothing; in the first step, if it changes the params.

    Stores: what the part stores, and a ring of batches.
    Place: the part's.
    Scenario: a stream without boundaries, whose batches tell of alarms (`drift`).

    >>> import jcl, optax
    >>> method = jcl.chain(jcl.on_drift(jcl.ewc(strength=10.0), batches=16), optax.sgd(0.01))
    """
    batches = checks.whole("on_drift", "batches", batches)

    def due(batch, step):
        return alarmed(batch) & (step >= batches)

    made = consolidating("on_drift", lift(part), due, batches, newest=False)
    return made._replace(alarms=True)
