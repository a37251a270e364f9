"""An autopilot played by pymavlink: it says where it is, and keeps what it is told."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any

from pymavlink import mavutil
from pymavlink.dialects.v20 import common

LATITUDE, LONGITUDE, ALTITUDE, HEIGHT = 47.3977418, 8.5455939, 500.0, 20.0


def wire(message: Any, system: int = 1, component: int = 1) -> Any:
    """A message as its receiver parses it."""
    data = message.pack(common.MAVLink(None, srcSystem=system, srcComponent=component))
    return common.MAVLink(None).parse_buffer(data)[0]


def heartbeat(autopilot: int = common.MAV_AUTOPILOT_ARDUPILOTMEGA) -> Any:
    return common.MAVLink_heartbeat_message(common.MAV_TYPE_QUADROTOR, autopilot, 81, 0, 3, 3)


def attitude(boot_ms: int, roll: float = 0, pitch: float = 0, yaw: float = 0) -> Any:
    return common.MAVLink_attitude_message(boot_ms, roll, pitch, yaw, 0, 0, 0)


def position(
    boot_ms: int, latitude: float = LATITUDE, longitude: float = LONGITUDE, height: float = HEIGHT
) -> Any:
    e7, mm = (round(latitude * 1e7), round(longitude * 1e7)), (round(ALTITUDE * 1e3), round(height * 1e3))
    return common.MAVLink_global_position_int_message(boot_ms, *e7, *mm, 0, 0, 0, 0)


def local(boot_ms: int, north: float, east: float, down: float) -> Any:
    return common.MAVLink_local_position_ned_message(boot_ms, north, east, down, 0, 0, 0)


@dataclass
class Autopilot:
    """Speaks 50 times a second to a port of this machine, until it is closed.

    Attributes:
        port: of the drone app.
        kind: ArduPilot, unless told otherwise.
        yaw: of the vehicle, radians.
        mute: says nothing while it is set.
    """

    port: int
    kind: int = common.MAV_AUTOPILOT_ARDUPILOTMEGA
    yaw: float = 0.0
    mute: bool = False

    def __enter__(self) -> Autopilot:
        self.received: list[Any] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def of(self, kind: str) -> list[Any]:
        return [message for message in tuple(self.received) if message.get_type() == kind]

    def waits_for(self, kind: str, count: int = 1, seconds: float = 120) -> list[Any]:
        end = time.monotonic() + seconds
        while len(self.of(kind)) < count and time.monotonic() < end:
            time.sleep(0.02)
        return self.of(kind)

    def _run(self) -> None:
        connection = mavutil.mavudp(f"127.0.0.1:{self.port}", input=False)
        us = common.MAVLink(connection, srcSystem=1, srcComponent=1)
        parser, began = common.MAVLink(None), time.monotonic()
        while not self._over.wait(0.02):
            boot = 1000 + int(1e3 * (time.monotonic() - began))
            said = (attitude(boot, yaw=self.yaw), position(boot), local(boot, 3, 4, -HEIGHT))
            messages = (heartbeat(self.kind), *said)
            for message in () if self.mute else messages:
                us.send(message)
            while data := connection.recv():
                self.received += parser.parse_buffer(data) or ()
        connection.close()
