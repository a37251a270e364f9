"""Sensitivity: the task's metric at every width of every group, without retraining (our design).

What is asked is in `experiment`. `plain` is what anybody would do: mask the group, run the whole network on
the whole sample, point by point. `meter` gives the same numbers sooner. Both compute each convolution with
the same kernel on the same chunk, so a point that both report is the same to the last bit; a point that is
not measured says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

NOT_ASKED = "the answer did not need it"
GIVEN_UP = "not part of the answer, after"


@dataclass(frozen=True)
class Point:
    """One width of one group.

    Attributes:
        width: in units.
        metric: of the masked network on the sample; None if it was not measured.
        low: of its 95 % confidence interval, from the sample's size.
        high: likewise.
        skipped: why it was not measured; empty if it was.
    """

    width: int
    metric: float | None
    low: float | None
    high: float | None
    skipped: str = ""


@dataclass(frozen=True)
class Curve:
    """The widths of one group, the full one first.

    Attributes:
        group: its name.
        units: how many it has.
        points: in falling width.
    """

    group: str
    units: int
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Sensitivity:
    """What a network loses when one group alone gets thinner.

    Attributes:
        metric: its name.
        images: in the sample.
        baseline: the original network; its width is 0.
        curves: in the order of the groups.
    """

    metric: str
    images: int
    baseline: Point
    curves: tuple[Curve, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Sensitivity:
        """The inverse of `to_dict`, also after JSON."""
        curves = tuple(
            Curve(c["group"], c["units"], tuple(Point(**point) for point in c["points"]))
            for c in fields["curves"]
        )
        return cls(fields["metric"], fields["images"], Point(**fields["baseline"]), curves)
