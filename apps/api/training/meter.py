"""How far a training is: a bar in a terminal, else a line now and then."""

from __future__ import annotations

import time

EVERY = 20.0  # seconds between two lines where there is no terminal


class Meter:
    """Words on stderr, and a bar once it has taken more than two seconds.

    Attributes:
        opening: a line to print once the first step is done.
    """

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.progress = Progress(*columns, console=self.console, transient=True)
        self.task = self.progress.add_task("training", total=None)
        self.began = self.told = time.monotonic()
        self.first: int | None = None
        self.opening = ""

    def tick(self, done: int, total: int) -> None:
        """Moves the bar, or prints a line."""
        now = time.monotonic()
        if self.first is None:
            self.first = done - 1  # a resumed training starts in the middle
            self.report(self.opening)
        if self.console.is_terminal:
            if not self.progress.live.is_started and now - self.began > 2:
                self.progress.start()
            self.progress.update(self.task, completed=done, total=total)
        elif now - self.told >= EVERY:
            left = (now - self.began) / (done - self.first) * (total - done)
            self.report(f"step {done:,} of {total:,}, {left / 60:.0f} min left")

    def report(self, line: str) -> None:
        """Prints a line, above the bar."""
        self.told = time.monotonic()
        self.console.print(line, markup=False)

    def close(self) -> None:
        """Takes the bar away."""
        if self.progress.live.is_started:  # else it would print an empty line, of an error too
            self.progress.stop()
