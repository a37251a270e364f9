"""When a vehicle's word is taken, and every reason for which it is not."""

from __future__ import annotations

import math
from typing import Any

import pytest
from mavlink_peer import ALTITUDE, HEIGHT, LATITUDE, LONGITUDE, attitude, heartbeat, local, position, wire
from pymavlink.dialects.v20 import common

from paredown.apps.detector.device.flight.vehicle import Pose, Trust, Vehicle

pytestmark = pytest.mark.unit

TRUST = Trust()


def flying(*messages: tuple[float, Any], beat: float = 10.0, kind: int = 3) -> Vehicle:
    """A vehicle that said these at these seconds, and was fine before."""
    vehicle = Vehicle(1)
    vehicle.hear(wire(heartbeat(kind)), beat)
    for at, message in messages:
        vehicle.hear(wire(message), at)
    return vehicle


def good(at: float = 10.0, boot: int = 5000, **turned: float) -> tuple[tuple[float, Any], ...]:
    return (at, attitude(boot, **turned)), (at, position(boot))


def test_what_was_said_is_known() -> None:
    pose = flying(*good(yaw=1.0), (10.0, local(5000, 1, 2, -20))).pose(10.0, 10.0, TRUST)
    assert isinstance(pose, Pose)
    assert pose.attitude.yaw == pytest.approx(1)
    assert (pose.position.latitude, pose.position.longitude) == pytest.approx((LATITUDE, LONGITUDE), abs=1e-9)
    assert (pose.position.altitude, pose.position.height) == (ALTITUDE, HEIGHT)
    assert pose.local == (1, 2, -20)
    assert (pose.boot_ms, pose.px4) == (5000, False)
    assert flying(*good(), kind=common.MAV_AUTOPILOT_PX4).pose(10, 10, TRUST).px4


def test_between_two_messages_the_vehicle_is_in_between() -> None:
    """The picture is older than the last attitude: the model took its time. Yaw goes the short way round."""
    later = (10.1, attitude(5100, roll=0.2, yaw=-3.1)), (10.1, position(5100, LATITUDE + 1e-5, height=22))
    pose = flying(*good(yaw=3.1), *later).pose(10.05, 10.5, TRUST)
    assert isinstance(pose, Pose)
    assert pose.attitude.roll == pytest.approx(0.1)
    assert abs(math.remainder(pose.attitude.yaw - math.pi, math.tau)) < 1e-6
    assert pose.position.latitude == pytest.approx(LATITUDE + 5e-6, abs=1e-9)
    assert pose.position.height == pytest.approx(21)
    assert pose.boot_ms == 5050


@pytest.mark.parametrize(
    ("vehicle", "at", "now", "reason"),
    [
        (Vehicle(1), 10, 10, "no autopilot was heard"),
        (flying(*good()), 10, 13.1, "link lost: no heartbeat for 3.1 s"),
        (flying((10, position(5000))), 10, 10, "no attitude was heard"),
        (flying(*good()), 10.25, 10.3, "attitude is 0.25 s away from the picture"),
        (flying(*good(), (10.9, attitude(5900))), 10.4, 11, "attitude is 0.40 s away"),
        (flying((10, attitude(5000))), 10, 10, "no position was heard"),
        (flying(*good(), (10.6, attitude(5600))), 10.6, 10.6, "position is 0.60 s away"),
        (flying(*good(roll=0.9)), 10, 10, "tilted by 52 degrees"),
        (flying(*good(pitch=math.nan)), 10, 10, "implausible attitude"),
        (flying(*good(roll=40)), 10, 10, "implausible attitude"),
        (flying((10, attitude(1)), (10, position(1, 0, 0))), 10, 10, "no position fix"),
        (flying((10, attitude(1)), (10, position(1, 91, 0))), 10, 10, "implausible position"),
        (flying((10, attitude(1)), (10, position(1, height=0.2))), 10, 10, "implausible height: 0.2 m"),
        (flying((10, attitude(1)), (10, position(1, height=-3))), 10, 10, "implausible height: -3.0 m"),
        (flying((10, attitude(1)), (10, position(1, height=151))), 10, 10, "implausible height: 151.0 m"),
    ],
)
def test_reasons_for_silence(vehicle: Vehicle, at: float, now: float, reason: str) -> None:
    said = vehicle.pose(at, now, TRUST)
    assert isinstance(said, str)
    assert reason in said


def test_an_autopilot_that_repeats_itself_is_not_believed() -> None:
    """Its link lives, its clock stands still: its attitude is old."""
    vehicle = flying(*good(), (10.5, attitude(5000)), (10.5, position(5000)), beat=10.5)
    assert "attitude is 0.50 s away" in str(vehicle.pose(10.5, 10.5, TRUST))


def test_an_autopilot_that_restarts_begins_anew_and_late_messages_are_passed_over() -> None:
    vehicle = flying(*good(), (10.05, attitude(4990, yaw=2)))
    assert vehicle.pose(10.05, 10.05, TRUST).attitude.yaw == 0
    vehicle.hear(wire(attitude(100, yaw=1)), 10.1)
    assert vehicle.pose(10.1, 10.1, TRUST) == "no position was heard"
    vehicle.hear(wire(position(100)), 10.1)
    assert vehicle.pose(10.1, 10.1, TRUST).attitude.yaw == 1


def test_only_this_vehicles_autopilot_is_heard() -> None:
    """Not another vehicle, not its gimbal, not a ground station, nor ourselves."""
    vehicle = Vehicle(1)
    for system, component in ((2, 1), (1, 154), (255, 190), (1, 191)):
        for message in (heartbeat(), attitude(1), position(1)):
            vehicle.hear(wire(message, system, component), 10)
    vehicle.hear(wire(heartbeat(common.MAV_AUTOPILOT_INVALID)), 10)
    said = vehicle.pose(10, 10, TRUST)
    assert said == "no autopilot of system 1 was heard, but there is one for --system 2"
    assert vehicle.pose(25, 25, TRUST) == "no autopilot was heard"
    assert not vehicle.connected(10, 3)
