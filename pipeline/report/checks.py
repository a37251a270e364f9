"""What a validation found: one line per check, figures, and what is over the budget."""

from __future__ import annotations

from dataclasses import dataclass

from paredown.pipeline.report.budget import Violation
from paredown.pipeline.report.figures import Figure


@dataclass(frozen=True)
class Check:
    """One line of a validation: what was checked, how it went, and the words for it."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Validation:
    """Everything a validation found."""

    checks: tuple[Check, ...]
    figures: tuple[Figure, ...]
    violations: tuple[Violation, ...]
    scored: int = 0

    @property
    def passed(self) -> bool:
        """Whether every check passed and the budget is kept."""
        return all(check.passed for check in self.checks) and not self.violations
