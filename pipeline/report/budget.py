"""The budget: limits of the recipe over those of the card, held against figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from paredown.pipeline.recipe.task import Metric
from paredown.pipeline.report.figures import Figure
from paredown.targets.cards.card import Budget


@dataclass(frozen=True)
class Violation:
    """A broken limit of the budget; that of accuracy may have a 95 % interval."""

    variant: str
    limit: str
    allowed: float
    found: float
    interval: tuple[float, float] | None = None

    def line(self) -> str:
        """One line for the table of what failed by how much."""
        over = self.found - self.allowed
        found, allowed = f"{self.found:.4g}", f"{self.allowed:.4g}"
        line = f"{self.variant}: {self.limit} is {found}, {over:.4g} over the budget of {allowed}"
        if self.interval is None:
            return line
        return "{}; 95 % interval {:.4g} to {:.4g}".format(line, *self.interval)


def check_budget(budget: Budget, figures: Sequence[Figure], metric: Metric) -> tuple[Violation, ...]:
    """Compares figures with the limits that are set; smoke figures prove nothing and break nothing.

    Args:
        budget: the recipe's over the card's.
        figures: of a run or a validation.
        metric: the one that `accuracy_drop` speaks of.
    """
    cells = {(f.variant, f.metric): f.value for f in figures if f.tag != "smoke"}
    variants = sorted({variant for variant, name in cells if name == "file_bytes" and "fp32" not in variant})
    found: list[Violation] = []

    def judge(variant: str, limit: str, allowed: float | None, value: float | None) -> None:
        if allowed is None or value is None or value <= allowed:
            return
        if not math.isclose(value, allowed, rel_tol=1e-9, abs_tol=1e-9):  # 0.5 - 0.49 is a little over 0.01
            ends = [cells.get((variant, f"{limit}_{end}")) for end in ("low", "high")]
            interval = None if ends[0] is None or ends[1] is None else (ends[0], ends[1])
            found.append(Violation(variant, limit, allowed, value, interval))

    original = cells.get(("fp32", metric.name))
    for variant in variants:
        score = cells.get((variant, metric.name))
        if original is not None and score is not None:
            judge(variant, "accuracy_drop", budget.accuracy_drop, metric.drop(original, score))
        judge(variant, "latency_ms", budget.latency_ms, cells.get((variant, "latency_p50")))
        judge(variant, "memory_mib", budget.memory_mib, cells.get((variant, "memory_peak")))
        size = cells.get((variant, "bundle_bytes"))
        judge(variant, "bundle_kib", budget.bundle_kib, None if size is None else size / 1024)
    return tuple(found)
