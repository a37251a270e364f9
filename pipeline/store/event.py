"""Progress as events: what is at work, how it goes, and for how long it took."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Event:
    """Something began or ended.

    Attributes:
        stage: what it is about: a stage's name, or a step of validation or deployment; "" = all of the work.
        state: "reused" = its artefact was there already; "put off" = it is tried again later.
        seconds: how long it took, where that is known.
        detail: what else there is to say.
    """

    stage: str
    state: Literal["running", "done", "reused", "put off"]
    seconds: float | None = None
    detail: str = ""

    def line(self) -> str:
        """For people."""
        state: str = self.state
        if state == "done" and self.seconds is not None:
            state = f"done in {self.seconds:.1f} s"
        about = f"{self.stage}: " if self.stage else ""
        return f"{about}{state}" + (f" ({self.detail})" if self.detail else "")


#: Hears of events.
Tell = Callable[[Event], None]


def nobody(event: Event) -> None:
    """Hears of events and keeps them to itself."""


def steps(tell: Tell) -> Callable[[str], None]:
    """Takes a line for what has begun, as code below the pipeline tells it."""
    return lambda line: tell(Event(line, "running"))


class EventLog:
    """A file that keeps every event of a run, with the time of day, and what ended it.

    Args:
        path: of the file; a new one is begun by `begin`.
        tell: hears of the events too.
    """

    def __init__(self, path: Path, tell: Tell) -> None:
        self._path, self._tell, self._open = path, tell, False

    def begin(self) -> None:
        """Empties the file; nothing is kept before that, so that a plan writes nothing."""
        self._open = True
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text("")

    def line(self, text: str) -> None:
        """Adds a line."""
        if self._open:
            with self._path.open("a") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def __call__(self, event: Event) -> None:
        """Hears of an event."""
        self.line(event.line())
        self._tell(event)
