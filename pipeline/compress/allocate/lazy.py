"""Lazy allocation: the sensitivity test measures only the points that the answer needs (our design).

An unmeasured width loses no less than the nearest wider one that was measured, and no more than the nearest
narrower one, since a wider width never counts as worse than a narrower one. So the allocation is solved with
the least that every width can lose; what it uses and is not known is measured, and it is solved again. If all
that it uses is known, no other choice can lose less, whatever the unmeasured points are: each of them already
counted as little as it can. Where the curves fall steadily, these are the widths that measuring every point
gives; a wider point that noise would have put below a narrower one is only noticed where both are measured.

Which points are asked for, and how far, decides what it costs, never the answer. First the narrowest width of
every group: where it loses nothing, all of the curve is known. Then, where the solution uses a width that is
open, the middle of what is open from there to the next narrower known one: a flat part of a curve is known by
its end. Each is asked for with a limit a little above what it is known to lose. Beyond that limit it stops,
and counts as what it has lost by then: mostly the solution then uses something else. If it does not, the
point is asked for again with a higher limit. The solutions in between are those of the relaxed program, which
may take fractions of widths: they take milliseconds. If all that such a one uses is known, the whole program
is solved, and in most cases it uses nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from paredown.pipeline.compress.allocate.allocate import Allocation, Problem
from paredown.pipeline.compress.allocate.cost import Cost, Widths
from paredown.pipeline.compress.coupling.flow import Group

Place = tuple[str, int]  # a group and a width of it
#: Places, each with the largest drop at which it still matters, to what they lose of the metric, and whether
#: that was measured on all images; else they lose at least so much.
Ask = Callable[[Mapping[Place, float]], Mapping[Place, tuple[float, bool]]]


FIRST_LIMIT = 2  # in images
GROWTH = 1.3  # of a limit over what a point is known to lose
SMALLEST_LIMIT = 0.002  # of the metric, where an image is less than a half of it


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

    def narrowest(self) -> list[Place]:
        """What to ask for first."""
        ends = ((group, self._narrower(group)) for group in self.widths)
        return [(group, found[-1]) for group, found in ends if found]

    def limits(self, places: Iterable[Place], smallest: float) -> dict[Place, float]:
        """How far to go with these places: a little beyond what each loses at least."""
        least = self.least()
        found = {}
        for group, width in places:
            known = max(self.drops.get((group, width), (0.0, False))[0], least[group][width] or 0.0)
            found[group, width] = max(smallest, GROWTH * known)
        return found

    def open(self, places: Iterable[Place]) -> list[Place]:
        """Those of these places that may lose more than they do at least."""
        least, most = self.least(), self.most()
        mine = sorted(place for place in places if place[0] in self.widths)
        return [(group, width) for group, width in mine if most[group][width] > (least[group][width] or 0.0)]

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
        ask: measures points. One is asked for again, with a higher limit, where it stopped at the last.
        cost: as for `allocate`, and so is what follows.
        limit: of the cost.
        tolerance: the largest sum of drops.
        importance: of units.
        resolution: the weight of the penalty.

    Raises:
        UsageError, BudgetError: as `allocate`.
    """
    known = Curves(widths, {group.name: group.units for group in groups})
    problem = Problem(groups, known.least(), cost, importance or {}, resolution)
    smallest = max(FIRST_LIMIT * resolution, SMALLEST_LIMIT)
    places = known.narrowest()
    while True:
        known.drops |= ask(known.limits(places, smallest))
        problem.know(known.least())
        used = known.open(problem.relaxed(limit=limit, tolerance=tolerance))
        if not used:
            found = problem.choose(limit=limit, tolerance=tolerance)
            used = known.open(found.widths.items())
            if not used:
                return found
        places = [known.ask_about(group, width) for group, width in used]
