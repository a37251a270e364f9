"""How a budget becomes a network: int8 alone, then channels for time, bits and zeros for bytes, epochs last.

What a choice costs is known before anything is trained: the time of a network does not hang on what its
weights are, nor do the bytes of its codes by much. So shares of MACs and sparsities come from models of
measured, untrained networks (secant steps over measured times; packed codes of each sparsity), and no search
is needed for them. What is left to find out is accuracy: candidates that keep both costs race by successive
halving over epochs (Jamieson and Talwalkar, 2016), and it ends as soon as one keeps the drop. Our design, but
for the race.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

MARGIN = 0.97  # of a time that is wanted: what was measured once may be a little more the next time
NEAR = 0.9  # of a time that is wanted: less than this wastes channels
PROBES = 5  # measured shares, at most
BITS = (4, 3, 2)
ZEROS = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9)
#: Epochs of each rung, as shares of the recipe's; 0 only accepts: it says nothing of who will be best.
RUNGS = (0.0, 0.25, 0.5, 1.0, 2.0)
THINNER = (0.8, 0.6, 0.4, 0.25, 0.1)  # shares of MACs to try where bits and zeros do not save enough


@dataclass(frozen=True)
class Wanted:
    """The budget; a limit that is None is not asked for.

    Attributes:
        cost: milliseconds or millions of instructions.
        kib: of the bundle.
        drop: of the metric.
    """

    cost: float | None = None
    kib: float | None = None
    drop: float | None = None


@dataclass(frozen=True)
class Candidate:
    """A network.

    Attributes:
        share: of the MACs that stay; None = all channels.
        bits: of weights; None = int8 alone.
        zeros: share of weights that are zero, where bits are chosen.
        epochs: as a share of the recipe's.
    """

    share: float | None = None
    bits: int | None = None
    zeros: float | None = None
    epochs: float = 0.0

    @property
    def trains(self) -> bool:
        """Whether there is anything to train."""
        return self.share is not None or self.bits is not None

    def line(self) -> str:
        """In words."""
        words = [] if self.share is None else [f"{self.share:.3g} of the MACs"]
        if self.bits is not None:
            words.append(f"{self.bits} bits with {self.zeros:.0%} zeros")
        if self.trains:
            words.append(f"{self.epochs:g} of the recipe's epochs")
        return ", ".join(words) or "int8 alone"


@dataclass(frozen=True)
class Measured:
    """A candidate and what it costs; the drop is that on held-out training images.

    Attributes:
        candidate: which.
        drop: of the metric.
        cost: in the unit of the budget; None where nothing is timed.
        kib: of the bundle.
    """

    candidate: Candidate
    drop: float
    cost: float | None
    kib: float

    def over(self, wanted: Wanted) -> dict[str, float]:
        """Limit -> by how much it is broken, in its own unit; empty where all are kept."""
        found = {}
        for name in ("cost", "kib", "drop"):
            limit, value = getattr(wanted, name), getattr(self, name)
            if limit is not None and value is not None and value > limit + 1e-9:
                found[name] = value - limit
        return found

    def excess(self, wanted: Wanted) -> tuple[float, float]:
        """How far from the budget: time and bytes over, as shares of their limits; then the drop over."""
        over = self.over(wanted)
        costs = sum(over[name] / getattr(wanted, name) for name in ("cost", "kib") if name in over)
        return costs, over.get("drop", 0.0)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


@dataclass(frozen=True)
class Found:
    """What came of a search.

    Attributes:
        chosen: what keeps the budget; None where nothing does.
        nearest: what was measured and comes nearest to it.
        seen: everything that was judged, in order.
        why: what cannot be met, and by how much; empty where the budget is met.
    """

    chosen: Measured | None
    nearest: Measured
    seen: tuple[Measured, ...]
    why: str = ""


class World(Protocol):
    """What measures; everything goes through the stage store."""

    def floor(self) -> float:
        """The least share of MACs that the target's channel multiples allow."""

    def cost(self, share: float) -> float:
        """Of the network with this share of its MACs, untrained."""

    def kib(self, candidate: Candidate) -> float:
        """Predicted bytes of a candidate's bundle, untrained."""

    def judge(self, candidate: Candidate) -> Measured:
        """Trains a candidate and measures it, on held-out training images."""

    def time_left(self, candidate: Candidate) -> bool:
        """Whether there is time to train one more."""


def search(world: World, wanted: Wanted, say: Callable[[str], None] = lambda line: None) -> Found:
    """Looks for the mildest network that keeps a budget.

    Args:
        world: measures.
        wanted: the budget.
        say: hears of every decision.
    """
    base = world.judge(Candidate())
    say(f"int8 alone: {told(base)}")
    if not base.over(wanted):
        return Found(base, base, (base,))
    seen = [base]
    share: float | None = None
    if wanted.cost is not None and base.cost is not None and base.cost > wanted.cost:
        share, least = _share_for(world, base.cost, wanted.cost, say)
        if share is None:
            nearest = world.judge(Candidate(world.floor()))
            why = (f"the time cannot be met: the narrowest network takes {least:.4g}, "
                   f"{least - wanted.cost:.4g} over {wanted.cost:g}")  # fmt: skip
            return Found(None, nearest, (base, nearest), why)
    candidates, least = _for_bytes(world, share, wanted.kib, say)
    if not candidates:
        assert wanted.kib is not None
        why = (f"the bundle cannot be met: the least that channels, bits and zeros reach is {least:.4g} KiB, "
               f"{least - wanted.kib:.4g} over {wanted.kib:g}")  # fmt: skip
        return Found(None, base, tuple(seen), why)
    if candidates == [Candidate()]:  # both costs are kept: only int8 itself loses too much
        candidates = [Candidate(bits=8, zeros=0.0)]
    return _race(world, candidates, wanted, seen, say)


def told(measured: Measured) -> str:
    """What was measured, in words."""
    cost = "" if measured.cost is None else f"cost {measured.cost:.4g}, "
    return f"{cost}bundle {measured.kib:.1f} KiB, drop {measured.drop:.4f} on held-out training images"


def next_share(points: Sequence[tuple[float, float]], wanted: float, floor: float) -> float | None:
    """The share of MACs to measure next; None where the points settle it.

    Args:
        points: share and cost of what was measured, the whole network among them.
        wanted: the cost.
        floor: the least share.
    """
    over = min((p for p in points if p[1] > wanted), default=None)
    under = max((p for p in points if p[1] <= wanted), default=None)
    if over is None or (under is not None and under[1] >= NEAR * wanted):
        return None
    if under is None:
        if over[0] <= floor:
            return None
        # A line through the last two points, or one that is steeper than any: time never falls faster.
        others = sorted(points)[1:2]
        slope = (others[0][1] - over[1]) / (others[0][0] - over[0]) if others else over[1] / over[0]
        step = over[0] - (over[1] - MARGIN * wanted) / slope if slope > 0 else floor
        return max(floor, min(step, 0.95 * over[0]))
    aim = (MARGIN * wanted - under[1]) / (over[1] - under[1])
    return under[0] + (over[0] - under[0]) * min(max(aim, 0.1), 0.9)


def _share_for(
    world: World, whole: float, wanted: float, say: Callable[[str], None]
) -> tuple[float | None, float]:
    """The largest measured share of MACs that keeps a time, and the least time; None where none does."""
    floor = world.floor()
    points = [(1.0, whole)]
    while len(points) <= PROBES and (share := next_share(points, wanted, floor)) is not None:
        points.append((share, world.cost(share)))
        say(f"{share:.3g} of the MACs, untrained: cost {points[-1][1]:.4g}")
    fits = [share for share, cost in points if cost <= wanted]
    if not fits and floor not in (share for share, _ in points):
        points.append((floor, world.cost(floor)))
        say(f"{floor:.3g} of the MACs, the least there is: cost {points[-1][1]:.4g}")
        fits = [floor] if points[-1][1] <= wanted else []
    return max(fits, default=None), min(cost for _, cost in points)


def _for_bytes(
    world: World, share: float | None, kib: float | None, say: Callable[[str], None]
) -> tuple[list[Candidate], float]:
    """The mildest candidates of each number of bits that keep the bytes, and the least bytes."""
    plain = Candidate(share)
    if kib is None or (least := world.kib(plain)) <= kib:
        return [plain], 0.0
    shares = [share, *(s for s in THINNER if s < (share or 1.0) and s >= world.floor())]
    for each in shares:
        found = []
        for bits in BITS:
            for zeros in ZEROS:
                size = world.kib(Candidate(each, bits, zeros))
                least = min(least, size)
                if size <= kib:
                    found.append(Candidate(each, bits, zeros))
                    say(f"{found[-1].line().rpartition(',')[0]}: {size:.1f} KiB predicted")
                    break
        if found:
            return found, least
    return [], least


def _race(
    world: World, candidates: Sequence[Candidate], wanted: Wanted, seen: list[Measured],
    say: Callable[[str], None],
) -> Found:  # fmt: skip
    """Successive halving: more epochs for fewer candidates, until one keeps the budget."""
    left, why = list(candidates), ""
    for rung in RUNGS:
        judged = []
        for candidate in (replace(each, epochs=rung) for each in left):
            if not world.time_left(candidate):
                why = "the time for the search is over"
                break
            judged.append(world.judge(candidate))
            say(f"{candidate.line()}: {told(judged[-1])}")
        seen += judged
        if fits := [each for each in judged if not each.over(wanted)]:
            return Found(min(fits, key=lambda each: each.drop), fits[0], tuple(seen))
        if why:
            break
        if rung:
            judged.sort(key=lambda each: (each.excess(wanted), each.drop))
            left = [replace(each.candidate, epochs=0.0) for each in judged[: math.ceil(len(judged) / 2)]]
    nearest = min(seen, key=lambda each: each.excess(wanted))
    over = ", ".join(f"{NAMES[name]} is {value:.4g} over" for name, value in nearest.over(wanted).items())
    return Found(None, nearest, tuple(seen), f"{why + ': ' if why else ''}the nearest is {over}")


NAMES = {"cost": "the time", "kib": "the bundle", "drop": "the drop on held-out training images"}
