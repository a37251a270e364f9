"""The budget: limits of the recipe over those of the card, held against figures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from paredown.pipeline.recipe.task import Metric
from paredown.pipeline.report.figures import CLASS, ORIGINAL, Figure
from paredown.targets.cards.card import Budget

LEAST, LEAST_CLASS = "least_score", "least_class_score"


@dataclass(frozen=True)
class Violation:
    """A broken limit of the budget; that of accuracy may have a 95 % interval.

    Attributes:
        variant: of the network.
        limit: key of the budget.
        allowed: by the budget.
        found: by measurement.
        interval: of `found`.
        of: the class, where a limit is of each class.
        floor: whether `found` is less than is allowed, not more.
    """

    variant: str
    limit: str
    allowed: float
    found: float
    interval: tuple[float, float] | None = None
    of: str = ""
    floor: bool = False

    def line(self) -> str:
        """One line for the table of what failed by how much."""
        apart = abs(self.found - self.allowed)
        found, allowed = f"{self.found:.4g}", f"{self.allowed:.4g}"
        limit = f"{self.limit} of class {self.of!r}" if self.of else self.limit
        how = f"below the floor of {allowed}" if self.floor else f"over the budget of {allowed}"
        line = f"{self.variant}: {limit} is {found}, {apart:.4g} {how}"
        if self.interval is None:
            return line
        return "{}; 95 % interval {:.4g} to {:.4g}".format(line, *self.interval)


@dataclass(frozen=True)
class Limit:
    """A limit that is set, and how a variant stands to it.

    Attributes:
        variant: that would ship.
        limit: key of the budget.
        allowed: by the budget.
        found: None where nothing measured says it.
        interval: of `found`, 95 %.
        of: the class, where a limit is of each class.
        floor: whether less than is allowed breaks it, not more.
    """

    variant: str
    limit: str
    allowed: float
    found: float | None
    interval: tuple[float, float] | None = None
    of: str = ""
    floor: bool = False

    @property
    def kept(self) -> bool | None:
        """Whether it is; None where that is not known."""
        if self.found is None:
            return None
        if math.isclose(self.found, self.allowed, rel_tol=1e-9, abs_tol=1e-9):
            return True  # 0.5 - 0.49 is a little over 0.01
        return self.found > self.allowed if self.floor else self.found < self.allowed

    @property
    def state(self) -> str:
        """In one word."""
        return {True: "kept", False: "BROKEN", None: "not known"}[self.kept]


def budget_limits(budget: Budget, figures: Sequence[Figure], metric: Metric) -> tuple[Limit, ...]:
    """Every limit that is set, for every variant that would ship; smoke figures say nothing.

    Args:
        budget: the recipe's over the card's.
        figures: of a run or a validation.
        metric: the one that `accuracy_drop` and the floors speak of.
    """
    cells = {(f.variant, f.metric): f.value for f in figures if f.tag != "smoke"}
    return tuple(limit for name in shipped(figures) for limit in _limits(name, budget, cells, metric))


def shipped(figures: Sequence[Figure]) -> tuple[str, ...]:
    """The variants that would ship: programs that are no original, rejected or float32 one beside them."""
    sized = {f.variant for f in figures if f.metric == "file_bytes" and "fp32" not in f.variant}
    return tuple(sorted(name for name in sized if not name.endswith((ORIGINAL, "-rejected"))))


def _limits(
    variant: str, budget: Budget, cells: Mapping[tuple[str, str], float], metric: Metric
) -> Iterator[Limit]:
    original, score = cells.get(("fp32", metric.name)), cells.get((variant, metric.name))
    size, count = cells.get((variant, "bundle_bytes")), cells.get((variant, "instructions"))
    drop = None if original is None or score is None else metric.drop(original, score)
    found = {
        "accuracy_drop": drop, "latency_ms": cells.get((variant, "latency_p50")),
        "instructions_m": None if count is None else count / 1e6,
        "memory_mib": cells.get((variant, "memory_peak")),
        "bundle_kib": None if size is None else size / 1024, LEAST: score,
    }  # fmt: skip
    for name, allowed in budget.limits().items():
        if name == LEAST_CLASS:
            yield from _class_limits(variant, allowed, cells)
            continue
        ends = [cells.get((variant, f"{name}_{end}")) for end in ("low", "high")]
        interval = None if ends[0] is None or ends[1] is None else (ends[0], ends[1])
        yield Limit(
            variant, name, allowed, found[name], interval, floor=name == LEAST and not metric.less_is_better
        )


def _class_limits(variant: str, allowed: float, cells: Mapping[tuple[str, str], float]) -> tuple[Limit, ...]:
    """Every class below the floor; of a variant that keeps it, the class that is nearest to it."""
    scores = {
        m.removeprefix(CLASS): v
        for (name, m), v in cells.items()
        if name == variant and m[: len(CLASS)] == CLASS
    }
    rows = [
        Limit(variant, LEAST_CLASS, allowed, value, of=name, floor=True) for name, value in scores.items()
    ]
    if not rows:
        return (Limit(variant, LEAST_CLASS, allowed, None, floor=True),)
    broken = tuple(row for row in rows if not row.kept)
    return broken or (min(rows, key=lambda row: row.found or 0.0),)


def violations(limits: Sequence[Limit]) -> tuple[Violation, ...]:
    """The limits that are broken."""
    return tuple(
        Violation(each.variant, each.limit, each.allowed, each.found, each.interval, each.of, each.floor)
        for each in limits
        if each.kept is False and each.found is not None
    )


def check_budget(budget: Budget, figures: Sequence[Figure], metric: Metric) -> tuple[Violation, ...]:
    """The limits that are broken; arguments as for `budget_limits`."""
    return violations(budget_limits(budget, figures, metric))


def _short(value: float, allowed: float) -> str:
    """Four digits; a thousandth of what is allowed is nothing."""
    text = f"{value:.4g}"
    return "0" if "e-" in text and abs(value) < allowed / 1000 else text


def limit_rows(limits: Sequence[Limit]) -> list[tuple[str, str, str, str, str]]:
    """Limit, variant, what is allowed, what was reached, and the state of each, as tables have it."""
    rows = []
    for each in limits:
        name = f"{each.limit} ({each.of})" if each.of else each.limit
        found = "-" if each.found is None else _short(each.found, each.allowed)
        sign = "at least" if each.floor else "at most"
        rows.append((name, each.variant, f"{sign} {each.allowed:.4g}", found, each.state))
    return rows
