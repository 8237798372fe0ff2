"""Detectors of drift: on the host, on the loss, by the package river.

A detector reads the loss of one example after another and says when it has risen for good. Its
alarm reaches a strategy as data, `batch["drift"]`, which is 1 in all rows of the batch after it;
`jcl.boost`, `jcl.reweighted`, `jcl.on_drift` and `jcl.restarting` react.
"""

import importlib
import math
from typing import Any, Literal, get_args

from jcl import checks
from jcl.errors import InputError

Name = Literal["adwin", "page_hinkley", "kswin", "ddm", "hddm_a", "hddm_w"]

# name: (class of river, settings that are not river's own)
_OF_LOSSES: dict[str, tuple[str, dict[str, Any]]] = {
    "adwin": ("ADWIN", {}),
    "page_hinkley": ("PageHinkley", {"mode": "up"}),
    "kswin": ("KSWIN", {"seed": 0}),
}
_OF_ERRORS = {"ddm": "DDM", "hddm_a": "HDDMA", "hddm_w": "HDDMW"}
_TWO_SIDED = ("adwin", "kswin")


class Detector:
    """One detector; a function of the losses alone, so that feeding them again rebuilds it.

    Args:
        inner: a detector of river, fresh.
        above: where it reads right and wrong: a loss above this one is wrong.
        two_sided: it finds falls of the loss as well, which are left out here.
    """

    def __init__(self, inner: Any, *, above: float | None = None, two_sided: bool = False):
        self._inner, self._above, self._two_sided = inner, above, two_sided
        self._recent = self._mean = 0.0
        self._seen = 0

    def update(self, loss: float) -> bool:
        """Whether there is an alarm at this loss; one that is not finite is left out."""
        loss = float(loss)
        if not math.isfinite(loss):
            return False
        self._seen += 1
        self._mean += (loss - self._mean) / self._seen
        self._recent += (loss - self._recent) / min(self._seen, 20)
        self._inner.update(loss if self._above is None else loss > self._above)
        if not self._inner.drift_detected:
            return False
        self._seen = 0  # the mean that follows is that since this change
        return not self._two_sided or self._recent > self._mean


def detector(name: Name, *, above: float = math.log(2), **settings: Any) -> Detector:
    """A fresh detector of drift, which alarms where the loss rises and not where it falls.

    "adwin" (Bifet and Gavaldà 2007) compares the means of two parts of a window of its own length,
    "page_hinkley" (Page 1954) sums what exceeds the mean, "kswin" (Raab et al. 2020) compares two
    windows by a Kolmogorov-Smirnov test. "ddm" (Gama et al. 2004), "hddm_a" and "hddm_w"
    (Frías-Blanco et al. 2015) read right and wrong: a loss above `above` counts as wrong, which at
    ln 2 is a chance below one half for the true class.

    A falling loss is learning. adwin and kswin find any change: an alarm of theirs counts where the
    mean of about the last 20 losses lies above that since the change before.

    Args:
        name: which.
        above: for those that read right and wrong.
        **settings: river's own, such as `delta=0.002` of ADWIN.

    Raises:
        InputError: an unknown name or setting, or river is not installed.

    >>> import jcl.drift
    >>> detector = jcl.drift.detector("adwin")  # doctest: +SKIP
    >>> [detector.update(loss) for loss in 300 * [0.1] + 100 * [2.0]].count(True)  # doctest: +SKIP
    1
    """
    checks.one_of("jcl.drift.detector", "name", name, get_args(Name))
    checks.number("jcl.drift.detector", "above", above)
    module = "river.drift" if name in _OF_LOSSES else "river.drift.binary"
    kind, own = _OF_LOSSES.get(name) or (_OF_ERRORS[name], {})
    try:
        made = getattr(importlib.import_module(module), kind)
    except ModuleNotFoundError:
        raise InputError(
            f'jcl.drift.detector("{name}") needs a package: pip install "jcl[drift]"'
        ) from None
    try:
        inner = made(**{**own, **settings})
    except (TypeError, ValueError) as error:
        raise InputError(
            f'jcl.drift.detector("{name}"): {error}. Settings are those of {module}.{kind}.'
        ) from None
    return Detector(
        inner, above=None if name in _OF_LOSSES else above, two_sided=name in _TWO_SIDED
    )
