"""Allocation: one width per group, at the least predicted loss, within a budget (our design).

The predicted loss of a network is the sum over its groups of what their sensitivity curves lose. Choosing the
widths is a mixed-integer linear program, one binary per group and width, joint variables where a layer's cost
depends on several groups; HiGHS solves it and says whether the answer is proven optimal.

A curve measured on N images is flat where it loses less than one image. So that a flat curve does not let one
group be cut to the bone for nothing, every width also bears a small penalty: `resolution` times
-log(share of the group's importance that stays). Shares multiply along a network, so that their logarithms
add up, and the penalty grows without bound as a group vanishes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from paredown.pipeline.compress.allocate.cost import Cost, Widths, check_share, nearest
from paredown.pipeline.compress.allocate.program import Limit, Program
from paredown.pipeline.compress.coupling.flow import Group
from paredown.targets.errors import BudgetError, UsageError

if TYPE_CHECKING:
    from paredown.pipeline.compress.sensitivity.sensitivity import Sensitivity

#: Group -> width -> predicted drop of the metric; None where it was not measured.
Losses = Mapping[str, Mapping[int, float | None]]

SMALLEST_RESOLUTION = 1e-6  # so that ties are always broken
SECONDS = 20.0  # for the solver
TIGHTER = 1e-7  # a share below the solver's tolerance
ATTEMPTS = 5
SPLIT = "more than three groups touch one layer: its latency is a sum over pairs of them, not exact"


@dataclass(frozen=True)
class Allocation:
    """One width per group.

    Attributes:
        widths: group -> units that stay; every group is named.
        budget: what was limited: "macs", "bytes", "latency" or "accuracy_drop".
        requested: the limit: a share of the whole network's cost, or a drop of the metric.
        achieved: what was reached of it, in the same unit.
        cost: whose share follows.
        share: the cost as a share of the whole network's.
        predicted_drop: sum of the groups' drops; None where no curves were given.
        optimal: whether no better choice exists, proven.
        gap: how far a better one could be at most, relative; None where nothing is known.
        notes: what a reader should know, a line each.
    """

    widths: Mapping[str, int]
    budget: str
    requested: float
    achieved: float
    cost: str
    share: float
    predicted_drop: float | None
    optimal: bool
    gap: float | None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON has them."""
        return {**asdict(self), "widths": dict(self.widths), "notes": list(self.notes)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Allocation:
        """The inverse of `to_dict`."""
        return cls(**{**fields, "notes": tuple(fields["notes"])})


def predicted_losses(sensitivity: Sensitivity) -> dict[str, dict[int, float | None]]:
    """The drop at every point of every curve; None where it was not measured.

    The full width loses nothing; a wider width never counts as worse than a narrower one (what looks worse on
    a sample is noise).
    """
    losses: dict[str, dict[int, float | None]] = {}
    baseline = sensitivity.baseline.metric
    assert baseline is not None
    for curve in sensitivity.curves:
        least, found = math.inf, dict[int, float | None]()
        for point in sorted(curve.points, key=lambda p: p.width):
            if point.metric is not None:
                least = min(least, max(baseline - point.metric, 0.0))
            found[point.width] = None if point.metric is None else least
        losses[curve.group] = {**dict(reversed(found.items())), curve.units: 0.0}
    return losses


def allocate(
    groups: Sequence[Group],
    losses: Losses,
    cost: Cost,
    *,
    limit: float | None = None,
    tolerance: float | None = None,
    importance: Mapping[str, Sequence[float]] | None = None,
    resolution: float = 0.0,
    seconds: float = SECONDS,
) -> Allocation:
    """Chooses widths under a limit on the cost, or the least cost within a tolerated drop.

    Args:
        groups: those of the network; locked ones and those without losses stay whole.
        losses: group -> width -> drop; a width without a number is not chosen, but for the full one.
        cost: what is limited, or made small.
        limit: of the cost, as a share of the whole network's.
        tolerance: the largest sum of drops, in the unit of the metric.
        importance: group -> a score of every unit (any order); without it, or where all are zero or one is
            not finite, all units count alike.
        resolution: of the metric, one over the number of images: the weight of the penalty, which counts
            against the tolerance too.
        seconds: for the solver; then the best that it has is taken and its gap given.

    Raises:
        UsageError: not exactly one of limit and tolerance, or it is NaN, negative or over 1.
        BudgetError: the limit cannot be met; the line says the best reachable and what stands in the way.
    """
    problem = Problem(groups, losses, cost, importance or {}, resolution)
    return problem.choose(limit=limit, tolerance=tolerance, seconds=seconds)


def uniform(
    groups: Sequence[Group],
    allowed: Mapping[str, Sequence[int]],
    cost: Cost,
    limit: float,
    losses: Losses | None = None,
) -> Allocation:
    """The plain baseline: the same share of every group, the largest within the limit.

    Args:
        groups: those of the network; locked ones stay whole.
        allowed: group -> its widths; groups left out stay whole.
        cost: what is limited.
        limit: as a share of the whole network's cost.
        losses: where given, the drop is predicted, if every chosen width has one.

    Raises:
        UsageError: the limit is NaN, negative or over 1.
        BudgetError: even the narrowest widths cost more.
    """
    check_share(f"the budget {cost.name}", limit)
    free = {g.name: tuple(allowed[g.name]) for g in groups if not g.locked and g.name in allowed}
    # the rounding of some group changes only at the middle of two of its widths
    shares = {1.0, 0.0}
    for found in free.values():
        ordered = sorted(found)
        shares |= {(a + b) / 2 / ordered[-1] for a, b in zip(ordered, ordered[1:], strict=False)}
    best: dict[str, int] = {}
    for share in sorted(shares, reverse=True):
        # at the middle itself the wider one is nearest: step below it
        for step in (0.0, 1e-9):
            best = {name: nearest(max(share - step, 0.0), found) for name, found in free.items()}
            if (reached := cost.share(best)) <= limit:
                chosen = {g.name: best.get(g.name, g.units) for g in groups}
                drops = [(losses or {}).get(name, {}).get(width) for name, width in best.items()]
                known = [drop for drop in drops if drop is not None]
                drop = sum(known) if losses is not None and len(known) == len(drops) else None
                return Allocation(
                    chosen, cost.name, limit, reached, cost.name, reached, drop, False, None, ()
                )
    raise _unreachable(
        groups, {name: {w: 0.0 for w in found} for name, found in free.items()}, cost, limit, best
    )


class Problem:
    """One allocation: the choices of every group, their losses and penalties, and the cost's tables.

    Arguments as for `allocate`.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        losses: Losses,
        cost: Cost,
        importance: Mapping[str, Sequence[float]],
        resolution: float,
    ) -> None:
        self.groups, self.cost, self.resolution = groups, cost, resolution
        self.choices = {g.name: _choices(g, losses.get(g.name, {})) for g in groups}
        self.penalties = {
            g.name: _penalty(importance.get(g.name, ()), g.units, self.choices[g.name]) for g in groups
        }
        tables, constant, self.exact = cost.tables(self.choices)
        self.constant = constant / cost.unpruned
        shares = [replace(table, values=table.values / cost.unpruned) for table in tables]
        self.program = Program.of(self.choices, shares)
        self.know(losses)

    def know(self, losses: Losses) -> None:
        """Takes other losses of the same choices."""
        self.losses = losses
        self.drops = {
            name: np.array([losses.get(name, {}).get(w) or 0.0 for w in found])
            for name, found in self.choices.items()
        }

    def choose(
        self,
        *,
        limit: float | None = None,
        tolerance: float | None = None,
        seconds: float = SECONDS,
    ) -> Allocation:
        """See `allocate`.

        Args:
            limit: of the cost.
            tolerance: the largest sum of drops.
            seconds: for the solver.
        """
        name, requested = self._budget(limit, tolerance)
        within = self.within_drop if limit is None else self.within_cost
        chosen, left = within(requested, seconds)
        share, drop = self.cost.share(chosen), self.drop(chosen)
        notes = [] if self.exact else [SPLIT]
        if left is None:
            notes.append(f"the solver found nothing within {seconds:g} s: the same share everywhere")
        best = left is not None and left <= 1e-6 and self.exact
        return Allocation(
            chosen, name, requested, drop if limit is None else share, self.cost.name, share, drop, best,
            left, tuple(notes),
        )  # fmt: skip

    def drop(self, chosen: Widths) -> float:
        """The predicted drop."""
        return float(sum(self.drops[n][self.choices[n].index(w)] for n, w in chosen.items()))

    def loss(self, chosen: Widths, resolution: float) -> float:
        """The predicted drop and the penalties."""
        found = (self.penalties[n][self.choices[n].index(w)] for n, w in chosen.items())
        return self.drop(chosen) + resolution * float(sum(found))

    def within_cost(self, limit: float, seconds: float) -> tuple[dict[str, int], float | None]:
        """The least loss within a share of the cost."""
        loss = self._losses(max(self.resolution, SMALLEST_RESOLUTION))
        bound = limit
        for _ in range(ATTEMPTS):
            result = self.program.least(loss, self._within(bound), seconds)
            if result is None:
                break
            chosen, left = result
            # the solver's tolerance, or the error of a cost that was split into pairs
            if (excess := self.cost.share(chosen) - limit) <= 1e-12:
                return chosen, left
            bound -= excess + TIGHTER
        smallest = self.program.least(self.program.costs, None, seconds)
        best = smallest[0] if smallest else {n: found[-1] for n, found in self.choices.items()}
        if self.cost.share(best) > limit:
            raise _unreachable(self.groups, self.losses, self.cost, limit, best)
        try:
            return dict(uniform(self.groups, self.choices, self.cost, limit).widths), None
        except BudgetError:  # a measured cost may be the least somewhere else than at the narrowest widths
            return best, None

    def within_drop(self, tolerance: float, seconds: float) -> tuple[dict[str, int], float | None]:
        """The least cost within a tolerated loss."""
        loss = self._losses(self.resolution)
        bound = tolerance
        for _ in range(ATTEMPTS):
            result = self.program.least(self.program.costs, (loss, bound), seconds)
            if result is None:
                break
            chosen, left = result
            if (excess := self.loss(chosen, self.resolution) - tolerance) <= 1e-12:
                return chosen, left
            bound -= excess + TIGHTER
        return {n: found[0] for n, found in self.choices.items()}, None  # everything: it loses nothing

    def relaxed(self, *, limit: float | None, tolerance: float | None) -> set[tuple[str, int]]:
        """What the relaxed program uses; arguments as for `choose`, see `Program.relaxed`."""
        _, requested = self._budget(limit, tolerance)
        if limit is None:
            return self.program.relaxed(self.program.costs, (self._losses(self.resolution), requested))
        loss = self._losses(max(self.resolution, SMALLEST_RESOLUTION))
        return self.program.relaxed(loss, self._within(requested))

    def _budget(self, limit: float | None, tolerance: float | None) -> tuple[str, float]:
        """What is limited, and to how much."""
        if (limit is None) == (tolerance is None):
            raise UsageError("an allocation needs either a cost or a tolerated drop to keep within, not both")
        name = self.cost.name if limit is not None else "accuracy_drop"
        requested = limit if limit is not None else tolerance
        assert requested is not None
        check_share(f"the budget {name}", requested)
        return name, requested

    def _losses(self, resolution: float) -> NDArray[np.float64]:
        """Of every variable, the penalty included."""
        names = self.choices
        return self.program.losses({n: self.drops[n] + resolution * self.penalties[n] for n in names})

    def _within(self, limit: float) -> Limit:
        """A share of the cost."""
        return self.program.costs, limit - self.constant


def _choices(group: Group, losses: Mapping[int, float | None]) -> tuple[int, ...]:
    """The widths that can be chosen, widest first; the full one always."""
    if group.locked:
        return (group.units,)
    known = {width for width, drop in losses.items() if drop is not None and 0 < width < group.units}
    return (group.units, *sorted(known, reverse=True))


def _penalty(scores: Sequence[float], units: int, choices: Sequence[int]) -> Any:
    """-log of the share of importance that stays when the least important units go."""
    ordered = np.sort(np.abs(np.asarray(scores, np.float64)))[::-1]
    if len(ordered) != units or not np.isfinite(ordered).all() or ordered.sum() <= 0:
        ordered = np.ones(units)
    kept = np.cumsum(ordered)
    return -np.log(np.maximum([kept[width - 1] / kept[-1] for width in choices], 1e-9))


def _unreachable(
    groups: Sequence[Group], losses: Losses, cost: Cost, limit: float, best: Widths
) -> BudgetError:
    """Says what the best is and what stands in the way of less."""
    locked = [g.name for g in groups if g.locked]
    skipped = [n for n, found in losses.items() if any(drop is None for drop in found.values())]
    whole = [g.name for g in groups if not g.locked and best.get(g.name, g.units) == g.units]
    bone = sum(best.get(g.name, g.units) > 1 and g.name not in {*locked, *whole} for g in groups)
    reasons = [
        f"{_some(locked)} cannot be cut" if locked else "",
        f"{_some(whole)} has no narrower width to choose" if whole else "",
        f"too narrow widths were skipped in {_some(skipped)}" if skipped else "",
        f"{bone} more end at the narrowest allowed multiple" if bone else "",
    ]
    reached = math.ceil(cost.share(best) * 1e4) / 1e4
    return BudgetError(
        f"the budget {cost.name} = {limit:g} cannot be met: the best is {reached:g} of the original",
        hint="in the way: " + ", ".join(r for r in reasons if r) if any(reasons) else "ask for more",
    )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
