"""The link to an autopilot, against two real peers on loopback UDP: MAVSDK and pymavlink."""

from __future__ import annotations

import json
import math
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from mavlink_peer import ALTITUDE, HEIGHT, LATITUDE, LONGITUDE, Autopilot
from ports import free_port
from pymavlink.dialects.v20 import common

from paredown.apps.detector.device.flight.geometry import Attitude, offset
from paredown.apps.detector.device.flight.mavlink import Fix, Link
from paredown.apps.detector.device.flight.vehicle import Pose, Position, Trust, Vehicle
from paredown.apps.detector.device.flight.wire import Address, connect, parse_address
from paredown.targets.errors import DeviceError, UsageError

POSE = Pose(
    Attitude(0, 0, 0), Position(LATITUDE, LONGITUDE, ALTITUDE, HEIGHT), (3.0, 4.0, -HEIGHT), 12345, px4=False
)
FIX = Fix(7, (-1.5, 2.25, 19.0), (2.25, 1.5, 20.0), (0.125, -0.25), (0.03125, 0.0625), (3.0, -4.0, 0.0))


class Peer:
    """MAVSDK as a ground station; keeps every message of everybody that it discovers."""

    def __init__(self) -> None:
        from mavsdk import ComponentType, Configuration, Mavsdk

        self.port = free_port()
        self._got, self._came = [], threading.Condition()
        self._mavsdk = Mavsdk(Configuration.create_with_component_type(ComponentType.GROUND_STATION))
        self._mavsdk.add_any_connection(f"udpin://127.0.0.1:{self.port}")
        self._heard: set[int] = set()

    def listen(self) -> set[int]:
        """Takes the messages of systems that are new; gives the ids of all."""
        from mavsdk.plugins.mavlink_direct import MavlinkDirect

        for system in self._mavsdk.get_systems():
            if system.get_system_id() not in self._heard:
                self._heard.add(system.get_system_id())
                MavlinkDirect(system).subscribe_message("", self._take)
        return self._heard

    def has(self, name: str) -> bool:
        with self._came:
            return any(m.message_name == name for m in self._got)

    def of(self, name: str, seconds: float = 10) -> Any:
        """The last message of a name, header and fields."""
        with self._came:
            assert self._came.wait_for(lambda: any(m.message_name == name for m in self._got), seconds), name
            return next(m for m in reversed(self._got) if m.message_name == name)

    def close(self) -> None:
        self._mavsdk.destroy()

    def _take(self, message: Any, _: Any) -> None:
        with self._came:
            self._got.append(message)
            self._came.notify_all()


@pytest.fixture(scope="module")
def peer() -> Iterator[Peer]:
    made = Peer()
    yield made
    made.close()


@pytest.fixture(scope="module")
def told(peer: Peer) -> dict[str, Any]:
    """What MAVSDK received of one fix: as it is for ArduPilot, and then for PX4."""
    names = ("HEARTBEAT", "FOLLOW_TARGET", "LANDING_TARGET")
    with Link(connect(Address("udpout", "127.0.0.1", peer.port)), Vehicle(1), 200) as link:
        # again and again, until its subscription is there; with pauses, since a flood would hold up the rest
        while not (peer.listen() >= {1, 200} and all(peer.has(name) for name in names)):
            link.follow_target(FIX, POSE)
            assert link.landing_target(FIX, POSE)
            time.sleep(0.05)
        messages = {name: peer.of(name) for name in names}
        assert link.landing_target(FIX, replace(POSE, px4=True))
        while fields(peer.of("LANDING_TARGET"))["frame"] == common.MAV_FRAME_BODY_FRD:
            time.sleep(0.05)
        messages["PX4"] = peer.of("LANDING_TARGET")
        assert not link.landing_target(FIX, replace(POSE, px4=True, local=None))
    return messages


def fields(message: Any) -> dict[str, Any]:
    found = json.loads(message.fields_json)
    return {name: value for name, value in found.items() if name not in ("message_id", "message_name")}


def single(*values: float) -> list[float]:
    """As MAVLink carries them, in 32 bits."""
    return [struct.unpack("f", struct.pack("f", value))[0] for value in values]


def test_mavsdk_receives_a_landing_target_field_by_field(told) -> None:
    message = told["LANDING_TARGET"]
    assert (message.system_id, message.component_id) == (1, 191)
    assert fields(message) == {
        "time_usec": 12345000, "target_num": 0, "frame": common.MAV_FRAME_BODY_FRD, "angle_x": 0.125,
        "angle_y": -0.25, "distance": single(math.sqrt(2.25**2 + 1.5**2 + 20**2))[0], "size_x": 0.03125,
        "size_y": 0.0625, "x": -1.5, "y": 2.25, "z": 19.0, "q": [1.0, 0.0, 0.0, 0.0], "type": 3,
        "position_valid": 1,
    }  # fmt: skip


def test_px4_receives_it_from_its_own_origin(told) -> None:
    found = fields(told["PX4"])
    assert found["frame"] == common.MAV_FRAME_LOCAL_NED
    assert (found["x"], found["y"], found["z"]) == (5.25, 5.5, 0.0)


def test_mavsdk_receives_a_follow_target_field_by_field(told) -> None:
    """From a system of its own: ArduPilot's AP_Follow ignores what comes from its own."""
    message = told["FOLLOW_TARGET"]
    assert (message.system_id, message.component_id) == (200, 191)
    found = fields(message)
    place = found.pop("lat") / 1e7, found.pop("lon") / 1e7
    assert offset(LATITUDE, LONGITUDE, place) == pytest.approx((2.25, 1.5), abs=0.01)
    assert found == {
        "timestamp": 12345, "est_capabilities": 3, "alt": ALTITUDE - HEIGHT, "vel": [3.0, -4.0, 0.0],
        "acc": [0.0] * 3, "attitude_q": [0.0] * 4, "rates": [0.0] * 3, "position_cov": [0.0] * 3,
        "custom_state": 7,
    }  # fmt: skip


def test_we_are_an_onboard_computer(told) -> None:
    message = told["HEARTBEAT"]
    assert (message.system_id, message.component_id) == (1, 191)
    found = fields(message)
    assert found["type"] == common.MAV_TYPE_ONBOARD_CONTROLLER
    assert found["autopilot"] == common.MAV_AUTOPILOT_INVALID


def test_an_autopilot_is_heard_asked_and_counted_for() -> None:
    """It is asked for its messages at our rates; ours are numbered without a gap."""
    port, log, vehicle = free_port(), [], Vehicle(1)
    with Link(connect(Address("udp", "127.0.0.1", port)), vehicle, 200, log.append) as link:
        with Autopilot(port) as autopilot:
            asked = autopilot.waits_for("COMMAND_LONG", 3)[:3]
            for _ in range(5):
                link.landing_target(FIX, POSE)
            autopilot.waits_for("LANDING_TARGET", 5)
        ours = [m for m in autopilot.received if m.get_srcSystem() == 1]
    assert {int(m.param1): round(1e6 / m.param2) for m in asked} == {
        common.MAVLINK_MSG_ID_ATTITUDE: 25,
        common.MAVLINK_MSG_ID_GLOBAL_POSITION_INT: 10,
        common.MAVLINK_MSG_ID_LOCAL_POSITION_NED: 10,
    }
    assert {(m.command, m.target_system, m.target_component) for m in asked} == {(511, 1, 1)}
    numbers = [m.get_seq() for m in ours]
    assert numbers == [(numbers[0] + i) % 256 for i in range(len(numbers))]
    assert {m.get_srcComponent() for m in ours} == {191}
    assert log == ["autopilot heard"]


def test_noise_on_the_line_is_no_message() -> None:
    port, vehicle = free_port(), Vehicle(1)
    with Link(connect(Address("udp", "127.0.0.1", port)), vehicle, 200):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as noise:
            for data in (b"\xfd" * 300, bytes(range(256)), b"hello"):
                noise.sendto(data, ("127.0.0.1", port))
        with Autopilot(port) as autopilot:
            assert autopilot.waits_for("COMMAND_LONG", 3)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("udp:127.0.0.1:14550", Address("udp", "127.0.0.1", 14550)),
        ("udpout:drone.local:14540", Address("udpout", "drone.local", 14540)),
        ("tcp:10.0.0.2:5760", Address("tcp", "10.0.0.2", 5760)),
        ("serial:/dev/ttyAMA0", Address("serial", "/dev/ttyAMA0", 57600)),
        ("serial:/dev/ttyUSB0,921600", Address("serial", "/dev/ttyUSB0", 921600)),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text",
    ["", "udp", "udp:14550", "udp:127.0.0.1:", "udp:127.0.0.1:x", "udp:h:0", "udp:h:65536", "ftp:h:1",
     "udp://127.0.0.1:14550", "serial:", "serial:/dev/ttyAMA0,fast"],
)  # fmt: skip
def test_what_is_no_address_is_told_in_one_line(text: str) -> None:
    with pytest.raises(UsageError, match="no MAVLink address; udp:HOST:PORT") as error:
        parse_address(text)
    assert "\n" not in str(error.value)


def test_addresses_that_cannot_be_opened() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(DeviceError, match="in use"):
            connect(Address("udp", "127.0.0.1", taken.getsockname()[1]))
    with pytest.raises(DeviceError, match="no MAVLink here"):
        connect(Address("udpout", "no.such.host.invalid", 14550))


def test_every_limit_is_an_option() -> None:
    from paredown.apps.detector.device.drone import parser, trust_of

    options = parser("drone").parse_args(["--source", "0", "--fov", "60", "--mavlink", "udp:h:1"])
    assert trust_of(options) == Trust()
