"""Progress as events: what is at work, how it goes, and for how long it took."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Event:
    """Something began or ended.

    Attributes:
        stage: what it is about: a stage's name, or a step of validation or deployment.
        state: "reused" = its artefact was there already.
        seconds: how long it took, where that is known.
        detail: what else there is to say.
    """

    stage: str
    state: Literal["running", "done", "reused"]
    seconds: float | None = None
    detail: str = ""

    def line(self) -> str:
        """For people."""
        state: str = self.state
        if state == "done" and self.seconds is not None:
            state = f"done in {self.seconds:.1f} s"
        return f"{self.stage}: {state}" + (f" ({self.detail})" if self.detail else "")


#: Hears of events.
Tell = Callable[[Event], None]


def nobody(event: Event) -> None:
    """Hears of events and keeps them to itself."""


def steps(tell: Tell) -> Callable[[str], None]:
    """Takes a line for what has begun, as code below the pipeline tells it."""
    return lambda line: tell(Event(line, "running"))
