"""What an autopilot has said of its vehicle, and whether to believe it for the moment of a picture.

A wrong position is worse than none: whatever is missing, old or implausible is a reason to be silent, in
words. Our design. Heard by one thread and asked by another.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from paredown.apps.detector.device.flight.geometry import Attitude, moved, offset

REMEMBERED = 400  # messages of each kind: eight seconds at 50 Hz
RESTART_MS = 1000  # an autopilot's clock that falls by more has begun anew; by less, a message was late
MAV_AUTOPILOT_INVALID, MAV_AUTOPILOT_PX4, AUTOPILOT_COMPONENT = 8, 12, 1

T = TypeVar("T")


@dataclass(frozen=True)
class Trust:
    """What is believed; beyond any of these the app says nothing.

    Attributes:
        confidence: least score of a detection.
        sightings: pictures in which a track must have been seen.
        link_s: longest silence of the autopilot's heartbeat.
        attitude_s: longest time between a picture and the attitude that is used for it.
        position_s: likewise for the position.
        latency_s: greatest age of a picture when its result is sent.
        tilt: largest angle of the body against level, degrees.
        lowest: least height above home, metres.
        highest: greatest height above home, metres.
        depression: least angle of a target below the horizon, degrees.
        range: greatest distance of a target, metres.
    """

    confidence: float = 0.5
    sightings: int = 3
    link_s: float = 3.0
    attitude_s: float = 0.2
    position_s: float = 0.5
    latency_s: float = 1.0
    tilt: float = 45.0
    lowest: float = 1.0
    highest: float = 150.0
    depression: float = 10.0
    range: float = 300.0


@dataclass(frozen=True)
class Position:
    """GLOBAL_POSITION_INT: degrees, and metres above sea level and above home."""

    latitude: float
    longitude: float
    altitude: float
    height: float


@dataclass(frozen=True)
class Pose:
    """Where the vehicle was, and how it was turned, when a picture was taken.

    Attributes:
        attitude: of the body against NED.
        position: on the earth.
        local: (north, east, down) from the autopilot's own origin, metres; None where it does not say.
        boot_ms: the picture's time on the autopilot's clock.
        px4: whether the autopilot is PX4.
    """

    attitude: Attitude
    position: Position
    local: tuple[float, float, float] | None
    boot_ms: int
    px4: bool


class _Past(Generic[T]):
    """The last messages of a kind, by the time they came."""

    def __init__(self) -> None:
        self._kept: deque[tuple[float, T]] = deque(maxlen=REMEMBERED)

    def add(self, at: float, value: T) -> None:
        self._kept.append((at, value))

    def clear(self) -> None:
        self._kept.clear()

    def around(self, at: float, age: float) -> tuple[T, T, float] | None:
        """The messages before and after a time, and the time's share of the way; None where both are old."""
        before = next((one for one in reversed(self._kept) if one[0] <= at), None)
        after = next((one for one in self._kept if one[0] > at), None)
        near = [one for one in (before, after) if one and abs(one[0] - at) <= age]
        if not near:
            return None
        (t0, first), (t1, last) = near[0], near[-1]
        return first, last, (at - t0) / (t1 - t0) if t1 > t0 else 0.0

    def age(self, at: float) -> float:
        """Seconds from the nearest message to a time; infinite where there was none."""
        return min((abs(at - one) for one, _ in self._kept), default=math.inf)


class Vehicle:
    """One vehicle, by the messages of its autopilot.

    Args:
        system: its MAVLink system id.
    """

    def __init__(self, system: int) -> None:
        self.system = system
        self._lock = threading.Lock()
        self._heard, self._autopilot, self._boot_ms, self._boot_at = -math.inf, 0, -1, 0.0
        self._attitudes: _Past[Attitude] = _Past()
        self._positions: _Past[Position] = _Past()
        self._locals: _Past[tuple[float, float, float]] = _Past()

    def hear(self, message: Any, now: float) -> None:
        """Takes a message; what is not from this vehicle's autopilot is passed over.

        Args:
            message: as pymavlink parses it.
            now: when it came, seconds.
        """
        if (message.get_srcSystem(), message.get_srcComponent()) != (self.system, AUTOPILOT_COMPONENT):
            return
        kind = message.get_type()
        with self._lock:
            if kind == "HEARTBEAT" and message.autopilot != MAV_AUTOPILOT_INVALID:
                self._heard, self._autopilot = now, message.autopilot
            elif kind == "ATTITUDE" and self._new(message.time_boot_ms, now):
                self._attitudes.add(now, Attitude(message.roll, message.pitch, message.yaw))
            elif kind == "GLOBAL_POSITION_INT":
                degrees, metres = (message.lat / 1e7, message.lon / 1e7), (message.alt, message.relative_alt)
                self._positions.add(now, Position(*degrees, *(value / 1e3 for value in metres)))
            elif kind == "LOCAL_POSITION_NED":
                self._locals.add(now, (message.x, message.y, message.z))

    def _new(self, boot_ms: int, now: float) -> bool:
        """Whether an attitude is newer than the last: a clock that stands still only repeats itself."""
        restarted = boot_ms < self._boot_ms - RESTART_MS
        if restarted:
            for past in (self._attitudes, self._positions, self._locals):
                past.clear()
        fresh = restarted or boot_ms > self._boot_ms
        if fresh:
            self._boot_ms, self._boot_at = boot_ms, now
        return fresh

    def connected(self, now: float, link_s: float) -> bool:
        """Whether the autopilot's heartbeat was heard within so many seconds."""
        with self._lock:
            return now - self._heard <= link_s

    def pose(self, at: float, now: float, trust: Trust) -> Pose | str:
        """The vehicle when a picture was taken, or why nobody knows.

        Args:
            at: when it was taken, seconds.
            now: likewise.
            trust: what is believed.
        """
        with self._lock:
            if math.isinf(self._heard):
                return "no autopilot was heard"
            if now - self._heard > trust.link_s:
                return f"link lost: no heartbeat for {now - self._heard:.1f} s"
            attitudes = self._attitudes.around(at, trust.attitude_s)
            if attitudes is None:
                return _old("attitude", self._attitudes.age(at))
            positions = self._positions.around(at, trust.position_s)
            if positions is None:
                return _old("position", self._positions.age(at))
            locals_ = self._locals.around(at, trust.position_s)
            boot = self._boot_ms + round(1e3 * (at - self._boot_at))
            px4 = self._autopilot == MAV_AUTOPILOT_PX4
        attitude, position = _attitude_between(*attitudes), _position_between(*positions)
        if reason := _implausible(attitude, position, trust):
            return reason
        local = None
        if locals_ and all(math.isfinite(value) for value in (*locals_[0], *locals_[1])):
            pairs = zip(locals_[0], locals_[1], strict=True)
            north, east, down = (a + locals_[2] * (b - a) for a, b in pairs)
            local = (north, east, down)
        return Pose(attitude, position, local, max(boot, 0), px4)


def _old(what: str, age: float) -> str:
    return f"no {what} was heard" if math.isinf(age) else f"{what} is {age:.2f} s away from the picture"


def _implausible(attitude: Attitude, position: Position, trust: Trust) -> str | None:
    angles = (attitude.roll, attitude.pitch, attitude.yaw)
    if not all(math.isfinite(angle) and abs(angle) <= 2 * math.pi for angle in angles):
        return "implausible attitude: " + ", ".join(f"{angle:g}" for angle in angles)
    if (tilt := math.degrees(attitude.tilt)) > trust.tilt:
        return f"tilted by {tilt:.0f} degrees"
    if abs(position.latitude) > 90 or abs(position.longitude) > 180:
        return f"implausible position: {position.latitude:g}, {position.longitude:g}"
    if position.latitude == position.longitude == 0:
        return "no position fix"
    if not trust.lowest <= position.height <= trust.highest:
        return f"implausible height: {position.height:.1f} m, not {trust.lowest:g} to {trust.highest:g}"
    return None


def _attitude_between(a: Attitude, b: Attitude, share: float) -> Attitude:
    def between(one: float, other: float) -> float:
        return one + share * math.remainder(other - one, math.tau)

    return Attitude(between(a.roll, b.roll), between(a.pitch, b.pitch), between(a.yaw, b.yaw))


def _position_between(a: Position, b: Position, share: float) -> Position:
    north, east = offset(a.latitude, a.longitude, (b.latitude, b.longitude))
    latitude, longitude = moved(a.latitude, a.longitude, share * north, share * east)
    altitude = a.altitude + share * (b.altitude - a.altitude)
    return Position(latitude, longitude, altitude, a.height + share * (b.height - a.height))
