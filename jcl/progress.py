"""What a person sees of a run: a live line on a terminal, plain lines elsewhere."""

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN_SECONDS = 10.0


class RunProgress:
    """Shows task, step, each loss term, tokens a second and the time left."""

    def __init__(self, total_steps: int, console: Console):
        self._console = console
        self._total = total_steps
        self._first: tuple[float, int] | None = None
        self._last_line = 0.0
        self._live = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[shown]}", markup=False),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._live.add_task("starting", total=total_steps, shown="")

    def __enter__(self) -> "RunProgress":
        self._live.start()
        return self

    def __exit__(self, *_) -> None:
        self._live.stop()

    def say(self, text: str) -> None:
        """One line that stays."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def step(
        self, task: str, done: int, task_step: str, terms: dict[str, float], rate: float | None
    ) -> None:
        """After a logged step.

        Args:
            task: the stage's name.
            done: steps of the whole run that are done.
            task_step: such as "40/200".
            terms: the loss and each of its terms.
            rate: tokens a second, once it is known.
        """
        now = time.monotonic()
        values = "  ".join(f"{name} {value:.4g}" for name, value in terms.items())
        shown = f"{task_step}  {values}" + (f"  {rate:,.0f} tokens/s" if rate else "")
        self._live.update(self._task, completed=done, description=task, shown=shown)
        if self._first is None:
            self._first = (now, done)
        if not self._console.is_terminal and now - self._last_line >= PLAIN_SECONDS:
            self._last_line = now
            seconds, steps = now - self._first[0], done - self._first[1]
            left = f"  {(self._total - done) * seconds / steps:.0f} s left" if steps else ""
            self.say(f"{task}  step {shown}{left}")
