"""A run that is asked to end ends with a checkpoint: SIGTERM and SIGINT."""

import os
import signal
import threading
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)


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
        if threading.current_thread() is threading.main_thread():
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
