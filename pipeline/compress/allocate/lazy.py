"""Lazy allocation: the sensitivity test measures only the points that the answer needs (our design).

An unmeasured width loses no less than the nearest wider one that was measured, and no more than the nearest
narrower one, since a wider width never counts as worse than a narrower one. So the allocation is solved with
the least that every width can lose; what it uses and is not known is measured, and it is solved again. If all
that it uses is known, no other choice can lose less, whatever the unmeasured points are: each of them already
counted as little as it can. Where the curves fall steadily, these are the widths that measuring every point
gives; a wider point that noise would have put below a narrower one is only noticed where both are measured.

Which points are asked for decides how many it takes, never the answer. First the narrowest width of every
group: where it loses nothing, all of the curve is known. Then, where the solution uses a width that is open,
the middle of what is open from there to the next narrower known one: a flat part of a curve is known by its
end. Points also carry a limit, beyond which they are given up early: a larger drop cannot be part of the
answer, because the best complete choice so far loses less than any with it. That is reduced-cost fixing, as
integer programming has it: the relaxed program's optimum plus the point's reduced cost bounds every choice
that has it. What was given up and is used after all is measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from paredown.pipeline.compress.allocate.allocate import (
    EXACT,
    SMALLEST_RESOLUTION,
    Allocation,
    Problem,
    allocate,
)
from paredown.pipeline.compress.allocate.cost import Cost, Widths
from paredown.pipeline.compress.coupling.flow import Group

Place = tuple[str, int]  # a group and a width of it
#: Places, each with the largest drop at which it still matters, to what they lose of the metric, and whether
#: that was measured on all images; else they lose at least so much.
Ask = Callable[[Mapping[Place, float]], Mapping[Place, tuple[float, bool]]]


#: First limit: whose narrowest width loses more seldom keeps it.
FIRST_LIMIT = 0.1
ROUGH = 1e-2  # relative gap of solutions that only say what to ask for


@dataclass
class Curves:
    """What is known of every group's losses.

    Attributes:
        widths: group -> its widths; the full one loses nothing.
        units: group -> its full width.
        drops: what was asked for.
    """

    widths: Mapping[str, Sequence[int]]
    units: Widths
    drops: dict[Place, tuple[float, bool]] = field(default_factory=dict)

    def most(self) -> dict[str, dict[int, float]]:
        """The most that every width can lose: infinity where no narrower one was measured."""
        found: dict[str, dict[int, float]] = {}
        for group in self.widths:
            least, curve = math.inf, dict[int, float]()
            for width in reversed(self._narrower(group)):
                drop, whole = self.drops.get((group, width), (math.inf, False))
                least = min(least, max(drop, 0.0)) if whole else least
                curve[width] = least
            found[group] = {**curve, self.units[group]: 0.0}
        return found

    def least(self) -> dict[str, dict[int, float | None]]:
        """The least that every width can lose."""
        most = self.most()
        found: dict[str, dict[int, float | None]] = {}
        for group in self.widths:
            worst = 0.0
            curve = found.setdefault(group, {self.units[group]: 0.0})
            for width in self._narrower(group):
                drop, whole = self.drops.get((group, width), (0.0, False))
                worst = most[group][width] if whole else max(worst, drop)
                curve[width] = min(worst, most[group][width])
        return found

    def ask_about(self, group: str, width: int) -> Place:
        """The point that tells most of an open width."""
        known = [w for w in self._narrower(group) if w < width and (group, w) in self.drops]
        fresh = [
            w for w in self._narrower(group)
            if max(known, default=0) < w <= width and (group, w) not in self.drops
        ]  # fmt: skip
        return group, fresh[len(fresh) // 2] if fresh else width

    def narrowest(self) -> dict[Place, float]:
        """What to ask for first, with its limit."""
        ends = ((group, self._narrower(group)) for group in self.widths)
        return {(group, found[-1]): FIRST_LIMIT for group, found in ends if found}

    def _narrower(self, group: str) -> list[int]:
        """Its widths below the full one, falling."""
        return sorted((w for w in self.widths[group] if w < self.units[group]), reverse=True)


def allocate_lazily(
    groups: Sequence[Group],
    widths: Mapping[str, Sequence[int]],
    ask: Ask,
    cost: Cost,
    *,
    limit: float | None = None,
    tolerance: float | None = None,
    importance: Mapping[str, Sequence[float]] | None = None,
    resolution: float = 0.0,
) -> Allocation:
    """What `allocate` chooses of complete curves, asking for few of their points.

    Args:
        groups: those of the network.
        widths: group -> the widths that it may have; groups that are not named stay whole.
        ask: measures points. A point is asked for once, or again where it was given up early.
        cost: as for `allocate`, and so is what follows.
        limit: of the cost.
        tolerance: the largest sum of drops.
        importance: of units.
        resolution: the weight of the penalty.

    Raises:
        UsageError, BudgetError: as `allocate`.
    """
    known = Curves(widths, {group.name: group.units for group in groups})
    known.drops |= ask(known.narrowest())
    best = math.inf  # what the best complete choice so far loses, penalties included
    gap = ROUGH
    while True:
        least, most = known.least(), known.most()
        found = allocate(groups, least, cost, limit=limit, tolerance=tolerance, importance=importance,
                         resolution=resolution, gap=gap)  # fmt: skip
        chosen = sorted(place for place in found.widths.items() if place[0] in widths)
        wanted = [known.ask_about(g, w) for g, w in chosen if most[g][w] > (least[g][w] or 0.0)]
        if not wanted and gap == EXACT:
            return found
        if not wanted:
            gap = EXACT
        elif limit is None:
            known.drops |= ask(dict.fromkeys(wanted, found.requested))
        else:
            problem = Problem(groups, least, cost, importance or {}, resolution)
            open_ends = sum(most[g][w] - (least[g][w] or 0.0) for g, w in chosen)
            best = min(best, problem.loss(found.widths, max(resolution, SMALLEST_RESOLUTION)) + open_ends)
            bounds = problem.bounds(limit) if best < math.inf else {}
            known.drops |= ask({
                (g, w): best - bounds.get((g, w), -math.inf) + (least[g][w] or 0.0) for g, w in wanted
            })  # fmt: skip
