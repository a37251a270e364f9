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
from paredown.apps.detector.device.flight.health import BootClock, Health, Limits

REMEMBERED = 400  # messages of each kind: eight seconds at 50 Hz
RESTART_MS = 1000  # an autopilot's clock that falls by more has begun anew; by less, a message was late
STRANGER_S = 10.0  # another autopilot that was heard within so many seconds is named
JUMP_S, JUMP_M = 3.0, 30.0  # how long a leap of the position is remembered, and what is none at any speed
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
        fix: least fix type of the GPS, as MAVLink counts; 0 takes a vehicle without one.
        accuracy: greatest uncertainty of the GPS, metres.
        speed: greatest speed over the ground, metres per second; a position that moves faster has leapt.
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
    fix: int = 3
    accuracy: float = 10.0
    speed: float = 100.0


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

    @property
    def last(self) -> tuple[float, T] | None:
        return self._kept[-1] if self._kept else None

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
        self._heard, self._autopilot, self._broken = -math.inf, 0, ""
        self._clock, self._health = BootClock(RESTART_MS), Health()
        self._attitudes: _Past[Attitude] = _Past()
        self._positions: _Past[Position] = _Past()
        self._locals: _Past[tuple[float, float, float]] = _Past()
        self._leap: tuple[float, float, float] = (-math.inf, 0.0, 0.0)  # when, metres, seconds
        self._strangers: dict[tuple[int, int], float] = {}  # other autopilots' system and component

    def hear(self, message: Any, now: float) -> None:
        """Takes a message; what is not from this vehicle's autopilot is passed over.

        Args:
            message: as pymavlink parses it.
            now: when it came, seconds.
        """
        source, kind = (message.get_srcSystem(), message.get_srcComponent()), message.get_type()
        with self._lock:
            if source != (self.system, AUTOPILOT_COMPONENT):
                if kind == "HEARTBEAT" and message.autopilot != MAV_AUTOPILOT_INVALID:
                    self._strangers[source] = now
                return
            if kind == "HEARTBEAT" and message.autopilot == MAV_AUTOPILOT_INVALID:
                return
            self._health.hear(message, now)
            if kind == "HEARTBEAT":
                self._heard, self._autopilot, self._broken = now, message.autopilot, ""
            elif kind in ("ATTITUDE", "GLOBAL_POSITION_INT", "LOCAL_POSITION_NED"):
                self._locate(kind, message, now)

    def broken(self, why: str) -> None:
        """Takes it that the link is broken: nothing is believed until the next heartbeat."""
        with self._lock:
            self._broken = why

    def _locate(self, kind: str, message: Any, now: float) -> None:
        """Takes where the vehicle is, unless its clock stands still: then it only repeats itself."""
        state = self._clock.take(kind, message.time_boot_ms, now)
        if state == "restarted":
            for past in (self._attitudes, self._positions, self._locals):
                past.clear()
            self._health.clear()
        if state == "old":
            return
        if kind == "ATTITUDE":
            self._attitudes.add(now, Attitude(message.roll, message.pitch, message.yaw))
        elif kind == "LOCAL_POSITION_NED":
            self._locals.add(now, (message.x, message.y, message.z))
        else:
            degrees, metres = (message.lat / 1e7, message.lon / 1e7), (message.alt, message.relative_alt)
            position = Position(*degrees, *(value / 1e3 for value in metres))
            if last := self._positions.last:
                came, before = last
                way = offset(before.latitude, before.longitude, (position.latitude, position.longitude))
                if (leap := math.hypot(*way)) > JUMP_M:
                    self._leap = (now, leap, now - came)
            self._positions.add(now, position)

    def connected(self, now: float, link_s: float) -> bool:
        """Whether the autopilot's heartbeat was heard within so many seconds."""
        with self._lock:
            return now - self._heard <= link_s and not self._broken

    def unheard(self, now: float, link_s: float) -> str:
        """Who else was heard, where this vehicle's autopilot never was; else nothing."""
        with self._lock:
            if not (math.isinf(self._heard) and self._strangers):
                return ""
            return self._unheard(now, Trust(link_s=link_s)) or ""

    def pose(self, at: float, now: float, trust: Trust) -> Pose | str:
        """The vehicle when a picture was taken, or why nobody knows.

        Args:
            at: when it was taken, seconds.
            now: likewise.
            trust: what is believed.
        """
        with self._lock:
            if reason := self._unheard(now, trust):
                return reason
            attitudes = self._attitudes.around(at, trust.attitude_s)
            if attitudes is None:
                return _old("attitude", self._attitudes.age(at))
            doubt = self._health.doubt(now, Limits(trust.fix, trust.accuracy))
            if reason := doubt or self._adrift(now, trust):
                return reason
            positions = self._positions.around(at, trust.position_s)
            if positions is None:
                return _old("position", self._positions.age(at))
            locals_ = self._locals.around(at, trust.position_s)
            boot = self._clock.boot_ms("ATTITUDE", at)
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

    def _unheard(self, now: float, trust: Trust) -> str | None:
        """Why the autopilot is not to be heard now."""
        if self._broken:
            return f"link lost: {self._broken}"
        if now - self._heard <= trust.link_s:
            return None
        if not math.isinf(self._heard):
            return f"link lost: no heartbeat for {now - self._heard:.1f} s"
        others = sorted(other for other, heard in self._strangers.items() if now - heard <= STRANGER_S)
        if not others:
            return "no autopilot was heard"
        if systems := sorted({system for system, part in others if part == AUTOPILOT_COMPONENT}):
            options = ", ".join(f"--system {system}" for system in systems)
            return f"no autopilot of system {self.system} was heard, but there is one for {options}"
        heard = ", ".join(f"{component} of system {system}" for system, component in others)
        return f"no autopilot (component {AUTOPILOT_COMPONENT}) was heard, but component {heard}"

    def _adrift(self, now: float, trust: Trust) -> str | None:
        """Why the last positions are not where the vehicle is now."""
        kind = "GLOBAL_POSITION_INT"
        if self._clock.stands_still(kind, now, trust.position_s):
            return "the clock of the position stands still"
        if (behind := self._clock.behind(kind, "ATTITUDE")) > trust.position_s:
            return f"the position is {behind:.1f} s older than the attitude, by the autopilot's clock"
        at, metres, seconds = self._leap
        if now - at <= JUMP_S and metres > JUMP_M + trust.speed * seconds:
            return f"the position leapt by {metres:.0f} m, {now - at:.1f} s ago"
        return None


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
