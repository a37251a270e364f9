"""The drone app: what it tells an autopilot, and when it holds its tongue."""

from __future__ import annotations

import contextlib
import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from camera_command import pictures
from mavlink_peer import (
    ALTITUDE,
    HEIGHT,
    LATITUDE,
    LONGITUDE,
    Autopilot,
    attitude,
    heartbeat,
    position,
    wire,
)
from ports import free_port
from tiny_project import Done

from paredown.apps.detector.device.boxes.tracker import Track
from paredown.apps.detector.device.flight.geometry import Attitude, Camera, Lens, offset
from paredown.apps.detector.device.flight.mavlink import Fix
from paredown.apps.detector.device.flight.pilot import Motion, Orders, Pilot, locate
from paredown.apps.detector.device.flight.vehicle import Pose, Position, Trust, Vehicle
from paredown.apps.detector.device.frames.source import Frame
from paredown.apps.detector.device.processor import FrameResult

SIZE = (600, 800)
CAMERA = Camera(
    Lens.from_fov(90, 800, 600), Attitude(0, -math.pi / 2, 0)
)  # straight down, 400 pixels are 45°
POSE = Pose(Attitude(0, 0, 0), Position(LATITUDE, LONGITUDE, ALTITUDE, 20.0), None, 1000, px4=False)
TRUST = Trust()


def track(x: float, y: float, score: float = 0.9, id: int = 1, category: int = 0, side: float = 40) -> Track:
    """A track whose middle is at a pixel."""
    box = ((x - side / 2) / 800, (y - side / 2) / 600, (x + side / 2) / 800, (y + side / 2) / 600)
    return Track(id, category, score, box, 0.0)


def test_a_target_is_located_to_a_centimetre() -> None:
    """20 m up, level, nose to the east: 200 pixels up from the middle are 10 m east, 100 right 5 m south."""
    east = replace(POSE, attitude=Attitude(0, 0, math.pi / 2))
    fix = locate(track(500, 100), SIZE, CAMERA, east, TRUST)
    assert isinstance(fix, Fix)
    assert fix.ned == pytest.approx((-5, 10, 20), abs=0.01)
    assert fix.body == pytest.approx((10, 5, 20), abs=0.01)
    assert fix.angles == pytest.approx((math.atan(0.25), math.atan(-0.5)))
    assert fix.size == pytest.approx((2 * math.atan(0.05),) * 2)
    assert fix.distance == pytest.approx(math.sqrt(525))
    assert offset(LATITUDE, LONGITUDE, fix.place(east)) == pytest.approx((-5, 10), abs=0.01)


@pytest.mark.parametrize(
    ("seen", "pose", "mount", "reason"),
    [
        (track(400, 300, score=0.49), POSE, -90, "confidence 0.49 is below 0.5"),
        (track(20, 300), POSE, -90, "cut by the edge"),
        (track(400, 300), POSE, 0, "at the horizon or beyond"),
        (track(400, 200), POSE, 0, "at the horizon or beyond"),
        (track(400, 300), POSE, -9, "at the horizon or beyond"),
        (track(400, 300), replace(POSE, position=Position(47, 8, 500, 100)), -15, "386 m away"),
        (track(400, 300), replace(POSE, attitude=Attitude(0, -0.7, 0)), 10, "not below the vehicle"),
    ],
)
def test_targets_that_cannot_be_trusted(seen: Track, pose: Pose, mount: float, reason: str) -> None:
    camera = Camera(CAMERA.lens, Attitude(0, math.radians(mount), 0))
    said = locate(seen, SIZE, camera, pose, TRUST)
    assert isinstance(said, str)
    assert reason in said


def test_a_velocity_is_fitted_to_the_last_places() -> None:
    from paredown.apps.detector.device.flight.geometry import moved

    motion = Motion()
    for step in range(10):
        at = 0.1 * step
        velocity = motion.update(at, 1, moved(LATITUDE, LONGITUDE, 3 * at, -4 * at))
        assert (velocity is None) == (step < 5)  # half a second is the least
    assert velocity == pytest.approx((3, -4, 0), abs=0.01)
    assert motion.update(1.0, 2, (LATITUDE, LONGITUDE)) is None  # another target


class Kept:
    """A link that keeps what it was to send."""

    def __init__(self) -> None:
        self.landing, self.follow = [], []

    def landing_target(self, fix: Fix, pose: Pose) -> bool:
        self.landing.append(fix)
        return not pose.px4

    def follow_target(self, fix: Fix, pose: Pose) -> bool:
        self.follow.append(fix)
        return True


class Flight:
    """A pilot whose vehicle speaks ten times a second, at the pace of the pictures."""

    def __init__(self, kind: int = 3, **orders: Any) -> None:
        self.now, self.link, self.vehicle, self.kind = 100.0, Kept(), Vehicle(1), kind
        told = Orders(**({"send": ("landing",), "classes": (0, 1)} | orders))
        self.pilot = Pilot(self.link, self.vehicle, lambda size: CAMERA, told, TRUST, lambda: self.now)

    def see(self, *tracks: Track, late: float = 0.0, speaks: bool = True) -> dict[str, Any]:
        self.now += 0.1
        if speaks:
            for message in (
                heartbeat(self.kind),
                attitude(int(1e3 * self.now)),
                position(int(1e3 * self.now)),
            ):
                self.vehicle.hear(wire(message), self.now)
        document: dict[str, Any] = {}
        frame = Frame(np.zeros((*SIZE, 3), np.uint8), 0, self.now - late, self.now)
        self.pilot.write(FrameResult(frame, SIZE, tracks, {}, {}, None), document)
        return document["drone"]


def test_a_track_is_told_once_it_was_seen_three_times_in_a_row() -> None:
    flight = Flight()
    assert flight.see(track(400, 300))["targets"] == [
        {"id": 1, "silent": "unconfirmed: seen 1 of 3 times in a row"}
    ]
    assert flight.see(track(400, 300))["silent"] == "no target that can be trusted"
    assert flight.see(track(400, 300)) == {
        "target": 1, "sent": ["LANDING_TARGET"],
        "targets": [
            {"id": 1, "angles": [0, 0], "ned": [0, 0, 20], "place": [LATITUDE, LONGITUDE], "distance": 20}
        ],
    }  # fmt: skip
    flight.see()
    assert "targets" in flight.see(track(400, 300))
    assert len(flight.link.landing) == 1  # it was away: three times again
    assert (flight.pilot.sent, flight.pilot.silent) == ({"LANDING_TARGET": 1}, 4)


def test_the_target_stays_the_target_while_it_is_seen() -> None:
    flight = Flight()
    for score in (0.8, 0.8, 0.8, 0.6, 0.6):
        flight.see(track(400, 300, 0.7, id=1), track(500, 300, score, id=2))
    assert [fix.id for fix in flight.link.landing] == [2, 2, 2]
    flight.see(track(400, 300, 0.7, id=1), track(500, 300, 0.4, id=2))
    assert flight.link.landing[-1].id == 1


def test_only_the_classes_that_were_asked_for() -> None:
    flight = Flight(classes=(1,))
    for _ in range(3):
        said = flight.see(track(400, 300, id=1, category=0), track(500, 300, id=2, category=1))
    assert said["target"] == 2
    assert said["targets"][0] == {"id": 1, "silent": "not a class to look for"}


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"late": 1.2}, "the picture is 1.20 s old"),
        ({"speaks": False, "wait": 0.3}, "attitude is 0.40 s away"),
        ({"speaks": False, "wait": 5}, "link lost"),
    ],
)
def test_what_is_old_is_not_told(how: dict[str, Any], reason: str) -> None:
    flight = Flight(send=("landing", "follow"))
    for _ in range(3):
        flight.see(track(400, 300))
    told = len(flight.link.landing)
    flight.now += how.pop("wait", 0)
    assert reason in flight.see(track(400, 300), **how)["silent"]
    assert (len(flight.link.landing), len(flight.link.follow)) == (told, told)
    flight.see(track(400, 300))
    assert len(flight.link.landing) == told + 1  # it is back


def test_px4_without_an_origin_is_told_nothing() -> None:
    flight = Flight(kind=12)
    for _ in range(3):
        said = flight.see(track(400, 300))
    assert said["silent"] == "PX4 has no local position to refer to"
    assert flight.pilot.sent == {}


PATIENT = "--trust-latency 60 --trust-attitude 5 --trust-position 5 --trust-link 60".split()  # when busy


# -- the command -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("frames")
    for index, image in enumerate(pictures(40)):
        cv2.imwrite(str(made / f"{index:03}.png"), image)
    return made


def drone(*arguments: object) -> Done:
    """Runs the command in this process."""
    from paredown.apps.cli.main import app

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as end:
        app(["drone", *map(str, arguments)])
    return Done(end.value.code or 0, out.getvalue(), err.getvalue())


def test_an_autopilot_receives_what_the_lines_say(tiny, folder) -> None:
    """From a bundle through tiles, tracks and geometry to a peer: the positions are those of the boxes."""
    port = free_port()
    with Autopilot(port, yaw=math.pi / 2) as autopilot:
        done = drone(
            tiny.bundle, "--source", folder, "--fov", 60, "--mavlink", f"udp:127.0.0.1:{port}",
            "--send", "both", "--realtime", "--frames", 4, "--trust-sightings", 1,
            "--min-confidence", 0.3, "--json", *PATIENT,
        )  # fmt: skip
        assert done.code == 0, done.err
        documents = [json.loads(line) for line in done.out.splitlines()]
        said = [d for d in documents if d.get("drone", {}).get("sent")]
        assert said, documents
        landing = autopilot.waits_for("LANDING_TARGET", len(said))
        follow = autopilot.waits_for("FOLLOW_TARGET", len(said))
    assert len(landing) == len(follow) == len(said)
    count = len(said)
    assert documents[-1]["summary"]["drone"]["sent"] == {"LANDING_TARGET": count, "FOLLOW_TARGET": count}
    focal = 48 / math.tan(math.radians(30))
    for document, target, followed in zip(said, landing, follow, strict=True):
        chosen = document["drone"]["target"]
        box = next(d["box"] for d in document["detections"] if d["id"] == chosen)
        right = ((box[0] + box[2]) / 2 * 96 - 48) / focal * HEIGHT
        ahead = (36 - (box[1] + box[3]) / 2 * 72) / focal * HEIGHT
        assert (target.x, target.y, target.z) == pytest.approx((ahead, right, HEIGHT), abs=0.01)
        place = followed.lat / 1e7, followed.lon / 1e7  # nose to the east: ahead is east, right is south
        assert offset(LATITUDE, LONGITUDE, place) == pytest.approx((-right, ahead), abs=0.02)
        assert followed.custom_state == chosen


def test_without_an_autopilot_it_says_nothing_and_why(tiny, folder) -> None:
    done = drone(
        tiny.bundle, "--source", folder, "--fov", 60, "--mavlink", f"udp:127.0.0.1:{free_port()}",
        "--frames", 3, "--tiles", "off", "--trust-latency", 60, "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    documents = [json.loads(line) for line in done.out.splitlines()]
    assert [d["drone"] for d in documents[:-1]] == [{"silent": "no autopilot was heard"}] * 3
    assert documents[-1]["summary"]["drone"] == {"sent": {}, "silent": 3}


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"--mavlink": "udp:14550"}, "`udp:14550` is no MAVLink address"),
        ({"--mavlink": "tcp:127.0.0.1:1"}, "no MAVLink here"),
        ({"--fov": "200"}, "--fov: `200` is not a number from 1 to 170"),
        ({"--fov": None}, "give one of --fov, --intrinsics"),
        ({"--fov": None, "--intrinsics": "1,2,3"}, "`1,2,3` is no camera matrix"),
        ({"--fov": None, "--intrinsics": "0,5,1,1,640"}, "cannot be"),
        ({"--tiles": "many"}, "`many` is no size of a tile"),
        ({"--tiles": "8"}, "tiles of 8 pixels"),
        ({"--target": "tank"}, "no class `tank`; there are: square, disc"),
        ({"--follow-system": "1"}, "system ids are two different numbers"),
        ({"--system": "300"}, "system ids are two different numbers"),
        ({"--mirror": ""}, "a mirrored picture shows no bearing"),
        ({"--trust-range": "-1"}, "is not a number from 0"),
        ({"--source": "nothing/here"}, "no such file or folder"),
        ({"--send": "parcels"}, "`parcels` is none of landing, follow, both"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(tiny, folder, changed: dict[str, Any], line: str) -> None:
    options = {"--source": str(folder), "--fov": "60", "--mavlink": f"udp:127.0.0.1:{free_port()}"}
    given = [(name, value) for name, value in (options | changed).items() if value is not None]
    done = drone(tiny.bundle, *(part for pair in given for part in pair if part))
    assert done.code in (2, 4, 5)
    assert line in done.line()
