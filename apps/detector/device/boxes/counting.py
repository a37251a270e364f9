"""What cameras are for: how many crossed a line, how many are in a zone. Tracks in, numbers out.

An object is where its foot is, the middle of its box's lower edge. Coordinates are parts of the picture's
width and height, from the upper left corner. Our design.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from paredown.apps.detector.device.boxes.tracker import Track
from paredown.targets.errors import UsageError

Point = tuple[float, float]
CLEAR = 0.005  # of the picture: nearer to a line, an object is on neither side; boxes tremble by that


@dataclass(frozen=True)
class Line:
    """A line that is crossed; seen from its first point to its second, `in` is from left to right."""

    name: str
    start: Point
    end: Point

    def side(self, point: Point) -> float:
        """Distance from the endless line, positive on the right."""
        dx, dy = self.end[0] - self.start[0], self.end[1] - self.start[1]
        across = dx * (point[1] - self.start[1]) - dy * (point[0] - self.start[0])
        return across / float(np.hypot(dx, dy))

    def between(self, a: Point, b: Point) -> bool:
        """Whether the way from a to b, which lie on both sides, meets the line between its ends."""
        share = self.side(a) / (self.side(a) - self.side(b))
        x, y = a[0] + share * (b[0] - a[0]), a[1] + share * (b[1] - a[1])
        dx, dy = self.end[0] - self.start[0], self.end[1] - self.start[1]
        along = (x - self.start[0]) * dx + (y - self.start[1]) * dy
        return 0 <= along <= dx * dx + dy * dy


@dataclass(frozen=True)
class Zone:
    """A polygon."""

    name: str
    corners: tuple[Point, ...]

    def holds(self, point: Point) -> bool:
        """Whether a point is inside or on the edge."""
        return cv2.pointPolygonTest(np.array(self.corners, np.float32), point, measureDist=False) >= 0


class LineCounter:
    """Counts crossings; each track once per way across."""

    def __init__(self, line: Line) -> None:
        self.line, self.entered, self.left = line, 0, 0
        self._last: dict[int, Point] = {}  # id -> where it last was clear of the line

    def update(self, tracks: Sequence[Track], alive: Collection[int]) -> None:
        """Takes the next picture's tracks; those that are not alive are forgotten."""
        for track in tracks:
            side = self.line.side(track.foot)
            if abs(side) < CLEAR:
                continue
            last = self._last.get(track.id)
            if last and self.line.side(last) * side < 0 and self.line.between(last, track.foot):
                self.entered += side > 0
                self.left += side < 0
            self._last[track.id] = track.foot
        self._last = {id: point for id, point in self._last.items() if id in alive}

    def to_dict(self) -> dict[str, int]:
        """As JSON has it."""
        return {"in": self.entered, "out": self.left}


class ZoneCounter:
    """Counts who is inside, who came in, and how long the longest has been there."""

    def __init__(self, zone: Zone) -> None:
        self.zone, self.inside, self.entered, self.longest_s = zone, 0, 0, 0.0
        self._since: dict[int, float] = {}

    def update(self, tracks: Sequence[Track], alive: Collection[int], now: float) -> None:
        """Takes the next picture's tracks; one that is hidden for a moment stays where it was."""
        for track in tracks:
            if not self.zone.holds(track.foot):
                self._since.pop(track.id, None)
            elif track.id not in self._since:
                self._since[track.id] = now
                self.entered += 1
        self._since = {id: since for id, since in self._since.items() if id in alive}
        self.inside = len(self._since)
        self.longest_s = max((now - since for since in self._since.values()), default=0.0)

    def to_dict(self) -> dict[str, float]:
        """As JSON has it."""
        return {"inside": self.inside, "entered": self.entered, "longest_s": round(self.longest_s, 2)}


class Counting:
    """All lines and zones of a camera."""

    def __init__(self, lines: Sequence[Line] = (), zones: Sequence[Zone] = ()) -> None:
        self.lines = [LineCounter(line) for line in lines]
        self.zones = [ZoneCounter(zone) for zone in zones]

    def update(self, tracks: Sequence[Track], alive: Collection[int], now: float) -> None:
        """Takes the next picture's tracks.

        Args:
            tracks: in it.
            alive: ids that may be seen again.
            now: seconds of the scene.
        """
        for line in self.lines:
            line.update(tracks, alive)
        for zone in self.zones:
            zone.update(tracks, alive, now)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "lines": {counter.line.name: counter.to_dict() for counter in self.lines},
            "zones": {counter.zone.name: counter.to_dict() for counter in self.zones},
        }


def parse_line(text: str) -> Line:
    """Reads `NAME=x1,y1,x2,y2`.

    Raises:
        UsageError: it is none.
    """
    name, points = _points(text, "--line", "door=0.1,0.5,0.9,0.5")
    if len(points) != 2 or points[0] == points[1]:
        raise UsageError(f"`{text}`: a line has two points", where="--line", hint="door=0.1,0.5,0.9,0.5")
    return Line(name, points[0], points[1])


def parse_zone(text: str) -> Zone:
    """Reads `NAME=x1,y1,x2,y2,x3,y3,...`.

    Raises:
        UsageError: it is none.
    """
    example = "till=0.6,0.4,1,0.4,1,1,0.6,1"
    name, points = _points(text, "--zone", example)
    if len(points) < 3:
        raise UsageError(f"`{text}`: a zone has three corners or more", where="--zone", hint=example)
    return Zone(name, points)


def _points(text: str, option: str, example: str) -> tuple[str, tuple[Point, ...]]:
    name, _, rest = text.partition("=")
    try:
        numbers = [float(number) for number in rest.split(",")]
    except ValueError:
        numbers = []
    if not name or not numbers or len(numbers) % 2 or not all(0 <= number <= 1 for number in numbers):
        what = f"`{text}` is no name and points in parts of the picture, 0 to 1"
        raise UsageError(what, where=option, hint=f"write {example}")
    return name, tuple(zip(numbers[::2], numbers[1::2], strict=True))
