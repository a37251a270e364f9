"""The MAVLink side of the drone app: an address, a link that lives in a thread of its own, two messages.

We are an onboard computer: component 191 of the vehicle's own system, as the MAVLink guide has it. What
autopilots take, read in their sources: ArduPilot's AC_PrecLand_MAVLink wants LANDING_TARGET in
MAV_FRAME_BODY_FRD with distance > 0; PX4's mavlink_receiver takes a position in MAV_FRAME_LOCAL_NED alone.
ArduPilot's AP_Follow passes over what comes from its own system: FOLLOW_TARGET speaks for the target, under a
system id of its own.
pymavlink carries, packs and parses.
"""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from paredown.apps.detector.device.flight.geometry import moved
from paredown.apps.detector.device.flight.vehicle import AUTOPILOT_COMPONENT, Pose, Vehicle
from paredown.targets.errors import DeviceError, UsageError

Log = Callable[[str], None]

HEARTBEAT_S, REQUEST_S, POLL_S, LINK_S = 1.0, 5.0, 0.02, 3.0
RATES_HZ = {"ATTITUDE": 25, "GLOBAL_POSITION_INT": 10, "LOCAL_POSITION_NED": 10}
BAUD = 57600
HINT = "udp:HOST:PORT listens, udpout:HOST:PORT and tcp:HOST:PORT call, serial:/dev/ttyAMA0[,BAUD]"
POSITION, VELOCITY = 1, 2  # est_capabilities


@dataclass(frozen=True)
class Fix:
    """A target, located.

    Attributes:
        id: of its track.
        body: (3,) from the vehicle, body frame FRD, metres.
        ned: the same in north, east, down.
        angles: LANDING_TARGET's angle_x and angle_y, radians.
        size: angular width and height, radians.
        velocity: north, east, down, metres per second; None where it is not known yet.
    """

    id: int
    body: tuple[float, float, float]
    ned: tuple[float, float, float]
    angles: tuple[float, float]
    size: tuple[float, float]
    velocity: tuple[float, float, float] | None = None

    @property
    def distance(self) -> float:
        """Metres from the vehicle."""
        return math.hypot(*self.ned)

    def place(self, pose: Pose) -> tuple[float, float]:
        """Latitude and longitude, degrees."""
        return moved(pose.position.latitude, pose.position.longitude, self.ned[0], self.ned[1])


@dataclass(frozen=True)
class Address:
    """Where an autopilot is reached: `kind` is udp, udpout, tcp or serial; `number` a port or a baud rate."""

    kind: str
    place: str
    number: int


def parse_address(text: str) -> Address:
    """Reads what a user writes; `HINT` says how.

    Raises:
        UsageError: it is no address.
    """
    kind, _, rest = text.partition(":")
    if kind == "serial":
        place, _, number = rest.partition(",")
        number = number or str(BAUD)
    else:
        place, _, number = rest.rpartition(":")
    known = kind == "serial" or (kind in ("udp", "udpout", "tcp") and not {":", "/"} & set(place))
    limit = 10_000_000 if kind == "serial" else 65535
    if not (known and place and number.isdecimal() and 0 < int(number) <= limit):
        raise UsageError(f"`{text}` is no MAVLink address", where="--mavlink", hint=HINT)
    return Address(kind, place, int(number))


def connect(address: Address) -> Any:
    """Pymavlink's connection: `recv`, `write`, `select` and `close`.

    Raises:
        UsageError: pymavlink, or pyserial for a serial line, is not installed or cannot be loaded.
        DeviceError: the port is taken, nobody answers, or there is no such line.
    """
    try:
        from pymavlink import mavutil
    except ImportError as error:  # it, or something of the system that it needs
        what, hint = f"pymavlink cannot be loaded here: {error}", "`pip install pymavlink`"
        raise UsageError(what, where="--mavlink", hint=hint) from error
    place = f"{address.place}:{address.number}"
    try:
        if address.kind == "serial":
            return mavutil.mavserial(address.place, baud=address.number)
        if address.kind == "tcp":
            return mavutil.mavtcp(place, retries=1)
        if address.kind == "udpout":
            socket.getaddrinfo(
                address.place, address.number
            )  # pymavlink would keep an unknown host to itself
        return mavutil.mavudp(place, input=address.kind == "udp")
    except ImportError:
        what, hint = "pyserial is not installed here", "`pip install pyserial`"
        raise UsageError(what, where="--mavlink", hint=hint) from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise DeviceError(f"no MAVLink here: {reason}", where=f"{address.kind}:{place}", hint=HINT) from error


class Link:
    """Hears an autopilot and speaks to it; a context manager, with a thread that ends with it.

    Args:
        connection: as `connect` opens it; closed at the end.
        vehicle: told every message.
        follow_system: system id that FOLLOW_TARGET comes from; ArduPilot's FOLL_SYSID.
        log: told when the autopilot is there, lost, and back.
    """

    def __init__(
        self, connection: Any, vehicle: Vehicle, follow_system: int, log: Log = lambda line: None
    ) -> None:
        from pymavlink.dialects.v20 import common

        self._common, self._connection, self._vehicle, self._log = common, connection, vehicle, log
        ours = common.MAV_COMP_ID_ONBOARD_COMPUTER
        self._us = common.MAVLink(connection, srcSystem=vehicle.system, srcComponent=ours)
        self._target = common.MAVLink(connection, srcSystem=follow_system, srcComponent=ours)
        self._parser = common.MAVLink(None)
        self._parser.robust_parsing = True  # noise on a serial line is no reason to end
        self._sending = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mavlink", daemon=True)

    def __enter__(self) -> Link:
        """Starts to listen."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Ends."""
        self._over.set()
        self._thread.join(timeout=2.0)
        self._connection.close()

    def landing_target(self, fix: Fix, pose: Pose) -> bool:
        """Sends LANDING_TARGET; False where PX4 does not say where its local origin is."""
        common = self._common
        frame, place = common.MAV_FRAME_BODY_FRD, fix.body
        if pose.px4:
            if pose.local is None:
                return False
            north, east, down = (own + away for own, away in zip(pose.local, fix.ned, strict=True))
            frame, place = common.MAV_FRAME_LOCAL_NED, (north, east, down)
        with self._sending:
            self._us.landing_target_send(
                1000 * pose.boot_ms, 0, frame, *fix.angles, fix.distance, *fix.size, *place, (1, 0, 0, 0),
                common.LANDING_TARGET_TYPE_VISION_OTHER, 1,
            )  # fmt: skip
        return True

    def follow_target(self, fix: Fix, pose: Pose) -> None:
        """Sends FOLLOW_TARGET: a place on the ground, and how fast it moves where that is known."""
        latitude, longitude = fix.place(pose)
        velocity, none = fix.velocity or (0.0, 0.0, 0.0), (0.0, 0.0, 0.0)
        with self._sending:
            self._target.follow_target_send(
                pose.boot_ms, POSITION | (VELOCITY if fix.velocity else 0), round(latitude * 1e7),
                round(longitude * 1e7), pose.position.altitude - pose.position.height, velocity, none,
                (0, 0, 0, 0), none, none, fix.id,
            )  # fmt: skip

    def _run(self) -> None:
        beat = asked = -math.inf
        there = False
        while not self._over.is_set():
            try:
                self._hear()
                now = time.monotonic()
                if now - beat >= HEARTBEAT_S:
                    self._beat()
                    beat = now
                if there != (there := self._vehicle.connected(now, LINK_S)):
                    self._log("autopilot heard" if there else "autopilot lost")
                    asked = -math.inf
                if there and now - asked >= REQUEST_S:
                    self._ask()
                    asked = now
            except OSError as error:  # a cable that was pulled; it may come back
                self._log(f"MAVLink: {error.strerror or error}")
                self._over.wait(HEARTBEAT_S)

    def _hear(self) -> None:
        self._connection.select(POLL_S)
        while data := self._connection.recv():
            now = time.monotonic()
            for message in self._parser.parse_buffer(data) or ():
                if message.get_type() != "BAD_DATA":
                    self._vehicle.hear(message, now)

    def _beat(self) -> None:
        common = self._common
        with self._sending:
            kind, none = common.MAV_TYPE_ONBOARD_CONTROLLER, common.MAV_AUTOPILOT_INVALID
            self._us.heartbeat_send(kind, none, 0, 0, common.MAV_STATE_ACTIVE)

    def _ask(self) -> None:
        """Asks for what we need, again and again: an autopilot that restarts has forgotten."""
        common = self._common
        for name, rate in RATES_HZ.items():
            with self._sending:
                self._us.command_long_send(
                    self._vehicle.system, AUTOPILOT_COMPONENT, common.MAV_CMD_SET_MESSAGE_INTERVAL, 0,
                    getattr(common, f"MAVLINK_MSG_ID_{name}"), round(1e6 / rate), 0, 0, 0, 0, 0,
                )  # fmt: skip
