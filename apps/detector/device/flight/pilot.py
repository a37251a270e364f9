"""From tracks to what an autopilot is told: bearings, places on the ground, one chosen target. Or silence.

Objects are taken to be flat: the middle of a box is where the object lies. Of all the tracks that can be
trusted one is the target, the surest, and it stays the target for as long as it is seen. Our design.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from paredown.apps.detector.device.boxes.tracker import Track
from paredown.apps.detector.device.flight.geometry import Camera, bearing, ground, offset
from paredown.apps.detector.device.flight.mavlink import Fix, Link
from paredown.apps.detector.device.flight.vehicle import Pose, Trust, Vehicle
from paredown.apps.detector.device.frames.source import Clock
from paredown.apps.detector.device.processor import FrameResult

EDGE = 0.002  # of the image: a box that ends nearer to its edge is cut by it, and its middle is elsewhere
MOTION_S, MOTION_SPAN_S, MOTION_COUNT = 2.0, 0.5, 4  # what a velocity is fitted to, and the least it takes
LANDING, FOLLOW = "landing", "follow"

CameraOf = Callable[[tuple[int, int]], Camera]


def locate(track: Track, size: tuple[int, int], camera: Camera, pose: Pose, trust: Trust) -> Fix | str:
    """Where a track is, or why that cannot be said.

    Args:
        track: in this picture.
        size: the picture's height and width, pixels.
        camera: that took it.
        pose: of the vehicle, then.
        trust: what is believed.
    """
    height, width = size
    x1, y1, x2, y2 = track.box
    if track.score < trust.confidence:
        return f"confidence {track.score:.2f} is below {trust.confidence:g}"
    if min(x1, y1, 1 - x2, 1 - y2) < EDGE:
        return "cut by the edge of the picture"
    body = camera.body_ray((x1 + x2) / 2 * width, (y1 + y2) / 2 * height)
    ray = pose.attitude.matrix @ body
    ned = ground(ray, pose.position.height, math.radians(trust.depression))
    if ned is None:
        return f"at the horizon or beyond (less than {trust.depression:g} degrees below it)"
    distance = float(np.linalg.norm(ned))
    if distance > trust.range:
        return f"{distance:.0f} m away, more than {trust.range:g}"
    angles = bearing(body)
    if angles is None:
        return "not below the vehicle"
    lens = camera.lens
    across = 2 * math.atan((x2 - x1) * width / 2 / lens.fx), 2 * math.atan((y2 - y1) * height / 2 / lens.fy)
    (bx, by, bz), (north, east, down) = (body * distance).tolist(), ned.tolist()
    return Fix(track.id, (bx, by, bz), (north, east, down), angles, across)


class Motion:
    """How fast one target moves over the ground: a straight line through its last places."""

    def __init__(self) -> None:
        self._id = 0
        self._places: deque[tuple[float, float, float]] = deque()

    def update(self, at: float, id: int, place: tuple[float, float]) -> tuple[float, float, float] | None:
        """Takes the target's next place; gives its velocity, north, east, down, in metres per second.

        Args:
            at: when it was there, seconds.
            id: of its track; another one begins anew.
            place: latitude and longitude, degrees.
        """
        if id != self._id:
            self._id = id
            self._places.clear()
        self._places.append((at, *place))
        while at - self._places[0][0] > MOTION_S:
            self._places.popleft()
        if len(self._places) < MOTION_COUNT or at - self._places[0][0] < MOTION_SPAN_S:
            return None
        times = np.array([when - at for when, *_ in self._places])
        metres = np.array([offset(*place, (where[0], where[1])) for _, *where in self._places])
        north, east = np.polyfit(times, metres, 1)[0]
        return float(north), float(east), 0.0


@dataclass(frozen=True)
class Orders:
    """What is to be sent.

    Attributes:
        send: LANDING, FOLLOW, or both.
        classes: numbers of the classes that are targets.
    """

    send: Collection[str]
    classes: Collection[int]


class Pilot:
    """Tells an autopilot of what was seen, picture by picture; an `Output` of the camera app.

    Args:
        link: to the autopilot.
        vehicle: as the link hears it.
        camera: gives the camera of a picture by its height and width.
        orders: what to send of what.
        trust: what is believed.
        clock: seconds, as the pictures' and the link's.

    Attributes:
        sent: messages so far, by name.
        silent: pictures so far of which nothing was said.
    """

    picture = False

    def __init__(
        self,
        link: Link,
        vehicle: Vehicle,
        camera: CameraOf,
        orders: Orders,
        trust: Trust,
        clock: Clock = time.monotonic,
    ) -> None:
        self._link, self._vehicle, self._camera, self._clock = link, vehicle, camera, clock
        self._orders, self._trust = orders, trust
        self._sightings: dict[int, int] = {}
        self._target: int | None = None
        self._motion = Motion()
        self.sent: dict[str, int] = {}
        self.silent = 0

    def write(self, seen: FrameResult, document: dict[str, Any]) -> None:
        """Speaks of the next picture, or does not; adds `drone` to its document, reasons included."""
        now = self._clock()
        self._count(seen.tracks)
        pose: Pose | str = f"the picture is {now - seen.frame.taken:.2f} s old"
        if now - seen.frame.taken <= self._trust.latency_s:
            pose = self._vehicle.pose(seen.frame.taken, now, self._trust)
        if isinstance(pose, str):
            self.silent += 1
            document["drone"] = {"silent": pose}
            return
        camera = self._camera(seen.size)
        found = {track.id: self._judged(track, seen.size, camera, pose) for track in seen.tracks}
        fixes = {id: fix for id, fix in found.items() if isinstance(fix, Fix)}
        said = {"targets": [_described(id, fix, pose) for id, fix in found.items()]}
        if not fixes:
            self.silent += 1
            why = "no target that can be trusted" if found else "nothing seen"
            document["drone"] = {"silent": why, **said}
            return
        if self._target not in fixes:
            scores = {track.id: track.score for track in seen.tracks}
            self._target = max(fixes, key=lambda id: scores[id])
        fix = fixes[self._target]
        fix = replace(fix, velocity=self._motion.update(seen.frame.taken, fix.id, fix.place(pose)))
        sent = self._send(fix, pose)
        if not sent:
            self.silent += 1
            lost = not pose.px4 or pose.local is not None
            why = "link lost" if lost else "PX4 has no local position to refer to"
            document["drone"] = {"silent": why, **said}
            return
        document["drone"] = {"target": fix.id, "sent": sent, **said}

    def close(self, summary: dict[str, Any]) -> None:
        """Adds to the summary what was said."""
        summary["drone"] = {"sent": self.sent, "silent": self.silent}

    def _count(self, tracks: Sequence[Track]) -> None:
        self._sightings = {track.id: self._sightings.get(track.id, 0) + 1 for track in tracks}

    def _judged(self, track: Track, size: tuple[int, int], camera: Camera, pose: Pose) -> Fix | str:
        if track.category not in self._orders.classes:
            return "not a class to look for"
        if (count := self._sightings[track.id]) < self._trust.sightings:
            return f"unconfirmed: seen {count} of {self._trust.sightings} times in a row"
        return locate(track, size, camera, pose, self._trust)

    def _send(self, fix: Fix, pose: Pose) -> list[str]:
        sent = []
        if LANDING in self._orders.send and self._link.landing_target(fix, pose):
            sent.append("LANDING_TARGET")
        if FOLLOW in self._orders.send and self._link.follow_target(fix, pose):
            sent.append("FOLLOW_TARGET")
        for name in sent:
            self.sent[name] = self.sent.get(name, 0) + 1
        return sent


def _described(id: int, fix: Fix | str, pose: Pose) -> dict[str, Any]:
    if isinstance(fix, str):
        return {"id": id, "silent": fix}
    latitude, longitude = fix.place(pose)
    return {
        "id": id, "angles": [round(angle, 5) for angle in fix.angles],
        "ned": [round(metres, 3) for metres in fix.ned],
        "place": [round(latitude, 7), round(longitude, 7)], "distance": round(fix.distance, 3),
    }  # fmt: skip
