"""States in which a position is sent and is none: each is a reason for silence, and goes when it ends."""

from __future__ import annotations

from typing import Any

import pytest
from mavlink_peer import LATITUDE, attitude, heartbeat, position, wire
from pymavlink.dialects.v20 import ardupilotmega as mav

from paredown.apps.detector.device.flight.health import BootClock
from paredown.apps.detector.device.flight.vehicle import Pose, Trust, Vehicle

pytestmark = pytest.mark.unit
TRUST = Trust()
GOOD_FLAGS = mav.ESTIMATOR_ATTITUDE | mav.ESTIMATOR_POS_HORIZ_ABS | mav.ESTIMATOR_POS_VERT_ABS


def ardupilot(message: Any) -> Any:
    """A message as its receiver parses it, ArduPilot's own kinds too."""
    data = message.pack(mav.MAVLink(None, srcSystem=1, srcComponent=1))
    return mav.MAVLink(None).parse_buffer(data)[0]


def gps(fix: int, h_acc_mm: int = 0) -> Any:
    return mav.MAVLink_gps_raw_int_message(0, fix, 0, 0, 0, 65535, 65535, 65535, 65535, 0, h_acc=h_acc_mm)


def sensors(enabled: int, healthy: int) -> Any:
    return mav.MAVLink_sys_status_message(enabled, enabled, healthy, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)


def estimator(flags: int) -> Any:
    return mav.MAVLink_estimator_status_message(0, flags, 0, 0, 0, 0, 0, 0, 0, 0)


def ekf(flags: int) -> Any:
    return mav.MAVLink_ekf_status_report_message(flags, 0, 0, 0, 0, 0)


def state(status: int) -> Any:
    return mav.MAVLink_heartbeat_message(2, 3, 0, 0, status, 3)


def fly(vehicle: Vehicle, at: float, *messages: Any) -> Pose | str:
    """Says the vehicle's place and these messages; gives what is believed then."""
    for message in (heartbeat(), attitude(int(1e3 * at)), position(int(1e3 * at)), *messages):
        vehicle.hear(ardupilot(message), at)
    return vehicle.pose(at, at, TRUST)


@pytest.mark.parametrize(
    ("bad", "good", "reason"),
    [
        (gps(0), gps(3), "no GPS fix: its fix type is NO_GPS"),
        (gps(1), gps(4), "no GPS fix: its fix type is NO_FIX"),
        (gps(2), gps(6), "no GPS fix: its fix type is 2D_FIX"),
        (gps(3, 25_000), gps(3, 2_000), "the GPS is sure to 25 m, more than 10"),
        (sensors(32, 0), sensors(32, 32), "the autopilot calls its GPS unhealthy"),
        (sensors(0x200000, 0), sensors(0x200020, 0x200020), "calls its attitude and position unhealthy"),
        (ekf(mav.EKF_ATTITUDE), ekf(mav.EKF_POS_HORIZ_ABS), "filter has no position on the earth"),
        (ekf(16 | mav.EKF_CONST_POS_MODE), ekf(16), "takes its position for constant"),
        (ekf(16 | mav.EKF_UNINITIALIZED), ekf(16), "filter has not started"),
        (ekf(16 | 32768), ekf(16), "calls its GPS glitching"),
        (estimator(mav.ESTIMATOR_ATTITUDE), estimator(GOOD_FLAGS), "filter has no position on the earth"),
        (estimator(GOOD_FLAGS | mav.ESTIMATOR_GPS_GLITCH), estimator(GOOD_FLAGS), "GPS glitching"),
        (estimator(GOOD_FLAGS | mav.ESTIMATOR_CONST_POS_MODE), estimator(GOOD_FLAGS), "for constant"),
        (state(mav.MAV_STATE_CALIBRATING), state(mav.MAV_STATE_ACTIVE), "the autopilot is calibrating"),
        (state(mav.MAV_STATE_BOOT), state(mav.MAV_STATE_STANDBY), "the autopilot is starting"),
        (state(mav.MAV_STATE_POWEROFF), state(mav.MAV_STATE_ACTIVE), "the autopilot is switching off"),
    ],
)
def test_each_state_silences_and_ends(bad: Any, good: Any, reason: str) -> None:
    vehicle = Vehicle(1)
    assert isinstance(fly(vehicle, 10.0), Pose)
    said = fly(vehicle, 10.1, bad)
    assert isinstance(said, str)
    assert reason in said
    assert isinstance(fly(vehicle, 10.2, good), Pose)


def test_a_status_that_is_sent_no_more_is_a_reason() -> None:
    vehicle = Vehicle(1)
    fly(vehicle, 10.0, gps(3))
    assert isinstance(fly(vehicle, 14.9), Pose)
    assert fly(vehicle, 15.2) == "GPS_RAW_INT is 5.2 s old"


def test_a_vehicle_without_gps_is_believed_where_that_was_said() -> None:
    vehicle = Vehicle(1)
    fly(vehicle, 10.0, gps(0), sensors(32, 0))
    assert isinstance(vehicle.pose(10.0, 10.0, Trust(fix=0)), Pose)


def test_a_position_whose_clock_stands_still() -> None:
    """Attitudes go on; the position is repeated with its old time, as a frozen sensor's is."""
    vehicle = Vehicle(1)
    for step in range(12):
        at = 10 + 0.1 * step
        for message in (heartbeat(), attitude(int(1e3 * at)), position(1234)):
            vehicle.hear(wire(message), at)
        said = vehicle.pose(at, at, TRUST)
        assert isinstance(said, Pose) == (step == 0) or step < 6
    assert said == "the clock of the position stands still"
    assert isinstance(fly(vehicle, 11.3), Pose)


def test_a_position_that_is_older_than_the_attitude() -> None:
    """Its clock goes on, three seconds behind the attitude's: a replay, or a queue."""
    vehicle = Vehicle(1)
    for step in range(3):
        at = 10 + 0.1 * step
        for message in (heartbeat(), attitude(int(1e3 * at)), position(int(1e3 * (at - 3)))):
            vehicle.hear(wire(message), at)
    said = vehicle.pose(at, at, TRUST)
    assert said == "the position is 3.0 s older than the attitude, by the autopilot's clock"


def test_a_position_that_leaps() -> None:
    """500 m in 0.1 s is no flight; three seconds later the new place is believed."""
    vehicle = Vehicle(1)
    fly(vehicle, 10.0)
    for step in range(1, 40):
        at = 10 + 0.1 * step
        for message in (
            heartbeat(), attitude(int(1e3 * at)), position(int(1e3 * at), latitude=LATITUDE + 0.0045)
        ):  # fmt: skip
            vehicle.hear(wire(message), at)
        said = vehicle.pose(at, at, TRUST)
        if step <= 30:
            assert isinstance(said, str)
            assert "the position leapt by 5" in said
    assert isinstance(said, Pose)


def test_a_gap_is_no_leap() -> None:
    vehicle = Vehicle(1)
    fly(vehicle, 10.0)
    for message in (heartbeat(), attitude(20_000), position(20_000, latitude=LATITUDE + 0.0045)):
        vehicle.hear(wire(message), 20.0)
    assert isinstance(vehicle.pose(20.0, 20.0, TRUST), Pose)  # 500 m in 10 s


def test_a_broken_wire_is_believed_again_after_a_heartbeat() -> None:
    vehicle = Vehicle(1)
    fly(vehicle, 10.0)
    vehicle.broken("closed by the other end")
    assert vehicle.pose(10.0, 10.0, TRUST) == "link lost: closed by the other end"
    assert not vehicle.connected(10.0, 3.0)
    assert isinstance(fly(vehicle, 10.1), Pose)


def test_a_clock_that_wraps_begins_anew() -> None:
    clock = BootClock(1000)
    assert clock.take("A", 2**32 - 100, 10.0) == "new"
    assert clock.take("A", 50, 10.15) == "restarted"
    assert clock.take("A", 50, 10.2) == "old"
    assert clock.take("A", 40, 10.2) == "old"
    assert clock.take("A", 60, 10.2) == "new"
    assert clock.boot_ms("A", 10.3) == 160
