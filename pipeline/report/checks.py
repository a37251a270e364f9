"""What a validation found: one line per check, figures, and what is over the budget."""

from __future__ import annotations

from dataclasses import dataclass

from paredown.pipeline.report.budget import Limit, Violation
from paredown.pipeline.report.figures import Figure
from paredown.pipeline.report.verdict import Check as Check
from paredown.pipeline.report.verdict import Verdict


@dataclass(frozen=True)
class Validation:
    """Everything a validation found."""

    checks: tuple[Check, ...]
    figures: tuple[Figure, ...]
    violations: tuple[Violation, ...]
    scored: int = 0
    limits: tuple[Limit, ...] = ()
    verdict: Verdict | None = None

    @property
    def passed(self) -> bool:
        """Whether no check failed and the budget is kept."""
        return not any(check.passed is False for check in self.checks) and not self.violations
