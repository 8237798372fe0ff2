"""A run that is asked to end ends with a checkpoint: SIGTERM and SIGINT.

Before there is anything to save it ends at once. Python would have SIGINT raise KeyboardInterrupt
wherever the program is, and where that is a callback of a library, such as the one that JAX has at
every collection of garbage, it is printed and forgotten. So SIGINT is left to the system, as
SIGTERM is: in a process that is the command `jcl`, from here on, which is imported before JAX.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """SIGINT ends the process inside, whatever it does there."""
    before = signal.getsignal(signal.SIGINT)
    ours = before is signal.default_int_handler and _in_main_thread()
    if ours:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, before)


class Stopping:
    """Notes the first signal; a second one ends the process at once, as it does without this.

    As a context it takes the signals over, in the main thread, where alone Python hands them out.

    Attributes:
        signal: the name of the signal that came, such as "SIGTERM", or None.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Stopping":
        if _in_main_thread():
            self._before = {
                each: signal.signal(each, self._note)
                for each in SIGNALS
                # Ignored, as nohup and the & of a shell ask, they stay so.
                if signal.getsignal(each) not in (signal.SIG_IGN, None)
            }
        return self

    def __exit__(self, *_: Any) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)

    def _note(self, number: int, _: Any) -> None:
        self.signal = signal.Signals(number).name
        for each in self._before:
            signal.signal(each, signal.SIG_DFL)
        # Not print, which the signal may have interrupted.
        told = f"{self.signal}: one more checkpoint, then the end; again ends it at once\n"
        os.write(2, told.encode())


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _is_the_command() -> bool:
    """Whether this is `jcl ...` or `python -m jcl ...`."""
    name = sys.orig_argv[-len(sys.argv) :][:1]  # what stands before the arguments
    return [os.path.basename(each).removeprefix("-m") for each in name] == ["jcl"]


if _is_the_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
