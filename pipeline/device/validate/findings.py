"""What a validation works with, and what it has found so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from paredown.pipeline.bundle.archive import Bundle
from paredown.pipeline.device.executor import Executor
from paredown.pipeline.report.checks import Check
from paredown.pipeline.report.figures import Figure, Tag
from paredown.pipeline.store.event import Tell


@dataclass
class Findings:
    """One validation.

    Attributes:
        bundle: opened.
        executor: runs its programs.
        tell: hears of each step.
        tick: progress within a step.
        tag: what figures of the executor are.
        recorded: figures that the bundle carries.
        checks: made so far.
        figures: found so far.
    """

    bundle: Bundle
    executor: Executor
    tell: Tell
    tick: Callable[[int, int], None]
    tag: Tag
    recorded: tuple[Figure, ...]
    checks: list[Check] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)

    def figure(self, stage: str, variant: str, metric: str, value: float, unit: str) -> None:
        """Adds a figure of the executor's."""
        self.figures.append(Figure(stage, variant, metric, value, unit, self.tag, self.executor.machine))

    def known(self, variant: str, metric: str) -> float | None:
        """What the bundle says; nothing if a smoke run made it, which says nothing of a whole one."""
        for figure in self.recorded:
            if (figure.variant, figure.metric) == (variant, metric) and figure.tag != "smoke":
                return figure.value
        return None
