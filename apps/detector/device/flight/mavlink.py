"""The MAVLink side of the drone app: a link that lives in a thread of its own, and two messages.

We are an onboard computer: component 191 of the vehicle's own system, as the MAVLink guide has it. What
autopilots take, read in their sources: ArduPilot's AC_PrecLand_MAVLink wants LANDING_TARGET in
MAV_FRAME_BODY_FRD with distance > 0; PX4's mavlink_receiver takes a position in MAV_FRAME_LOCAL_NED alone.
ArduPilot's AP_Follow passes over what comes from its own system: FOLLOW_TARGET speaks for the target, under a
system id of its own.
pymavlink packs and parses; `wire.py` carries.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from paredown.apps.detector.device.flight.geometry import moved
from paredown.apps.detector.device.flight.vehicle import AUTOPILOT_COMPONENT, Pose, Vehicle
from paredown.apps.detector.device.flight.wire import Address, Wire, opened

Log = Callable[[str], None]

HEARTBEAT_S, REQUEST_S, POLL_S, LINK_S = 1.0, 5.0, 0.02, 3.0
RATES_HZ = {"ATTITUDE": 25, "GLOBAL_POSITION_INT": 10, "LOCAL_POSITION_NED": 10, "GPS_RAW_INT": 2,
            "SYS_STATUS": 1, "ESTIMATOR_STATUS": 1, "EKF_STATUS_REPORT": 1}  # fmt: skip
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 2.0  # between two attempts to open a broken wire; it doubles
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


class Link:
    """Hears an autopilot and speaks to it; a context manager, with a thread that ends with it.

    Args:
        wire: as `connect` opens it; closed at the end.
        vehicle: told every message.
        follow_system: system id that FOLLOW_TARGET comes from; ArduPilot's FOLL_SYSID.
        log: told when the autopilot is there, lost, and back.
        address: of the wire, to open it again when it breaks; None = it stays as it is.
    """

    def __init__(
        self,
        wire: Wire,
        vehicle: Vehicle,
        follow_system: int,
        log: Log = lambda line: None,
        address: Address | None = None,
    ) -> None:
        from pymavlink.dialects.v20 import ardupilotmega

        self._common, self._vehicle, self._log = ardupilotmega, vehicle, log
        self._wire: Wire | None = wire
        self._address = address
        ours = ardupilotmega.MAV_COMP_ID_ONBOARD_COMPUTER
        self._us = ardupilotmega.MAVLink(self, srcSystem=vehicle.system, srcComponent=ours)
        self._target = ardupilotmega.MAVLink(self, srcSystem=follow_system, srcComponent=ours)
        self._parser = self._new_parser()
        self._broken = ""  # why the wire is, until it was opened again
        self._heard, self._came = time.monotonic(), True  # whether anything did since it was opened
        self._pause_s = FIRST_PAUSE_S
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
        self._thread.join(timeout=5.0)
        if self._wire is not None:
            self._wire.close()

    def write(self, data: bytes) -> None:
        """Takes a packed message, from pymavlink; where the wire is broken, it is lost."""
        if self._wire is None or self._broken:
            return
        try:
            self._wire.write(bytes(data))
        except OSError as error:
            self._broken = _why(error)

    def landing_target(self, fix: Fix, pose: Pose) -> bool:
        """Sends LANDING_TARGET; False where PX4 has no local origin to refer to, or the wire is broken."""
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
            return not self._broken

    def follow_target(self, fix: Fix, pose: Pose) -> bool:
        """Sends FOLLOW_TARGET: a place on the ground, and how fast it moves where that is known; as above."""
        latitude, longitude = fix.place(pose)
        velocity, none = fix.velocity or (0.0, 0.0, 0.0), (0.0, 0.0, 0.0)
        with self._sending:
            self._target.follow_target_send(
                pose.boot_ms, POSITION | (VELOCITY if fix.velocity else 0), round(latitude * 1e7),
                round(longitude * 1e7), pose.position.altitude - pose.position.height, velocity, none,
                (0, 0, 0, 0), none, none, fix.id,
            )  # fmt: skip
            return not self._broken

    def _run(self) -> None:
        beat = asked = -math.inf
        there, told = False, ""
        while not self._over.is_set():
            try:
                self._hear()
            except OSError as error:  # a cable that was pulled; it may come back
                self._broken = self._broken or _why(error)
            if self._broken:
                self._vehicle.broken(self._broken)
            now = time.monotonic()
            if there != (there := self._vehicle.connected(now, LINK_S)):
                self._log("autopilot heard" if there else "autopilot lost")
                asked = -math.inf
            if self._broken:
                self._open_again()
                beat = -math.inf
                continue
            if not there and told != (told := self._vehicle.unheard(now, LINK_S)) and told:
                self._log(told)
            if now - beat >= HEARTBEAT_S:
                self._beat()
                beat = now
            if there and now - asked >= REQUEST_S:
                self._ask()
                asked = now

    def _hear(self) -> None:
        if self._wire is None:
            return
        until = time.monotonic() + POLL_S  # an autopilot that never pauses is answered nevertheless
        while data := self._wire.receive(max(0.0, until - time.monotonic())):
            self._heard = now = time.monotonic()
            self._came, self._pause_s = True, FIRST_PAUSE_S
            for message in self._parser.parse_buffer(data) or ():
                if message.get_type() != "BAD_DATA":
                    self._vehicle.hear(message, now)
            if now >= until or self._over.is_set() or self._broken:
                break
        if self._address is not None and self._wire.stale(silent := time.monotonic() - self._heard):
            raise OSError(f"nothing came for {silent:.0f} s")

    def _open_again(self) -> None:
        """Opens the wire anew, however long that takes; whoever speaks meanwhile speaks to nobody."""
        if self._address is None:
            self._over.wait(HEARTBEAT_S)
            self._broken = ""
            return
        tell = self._log if self._came else nobody  # not again and again of one that says nothing
        tell(f"{self._address}: {self._broken}, trying again")
        with self._sending:
            wire, self._wire = self._wire, None
        if wire is not None:
            wire.close()
        since = time.monotonic()
        while not self._over.wait(self._pause_s):
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
            try:
                opened_again = opened(self._address)
            except OSError:
                continue
            self._parser = self._new_parser()
            self._heard, self._came = time.monotonic(), False
            with self._sending:
                self._wire, self._broken = opened_again, ""
            tell(f"{self._address}: open again after {self._heard - since:.1f} s")
            return

    def _new_parser(self) -> Any:
        parser = self._common.MAVLink(None)
        parser.robust_parsing = True  # noise on a serial line is no reason to end
        return parser

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


def nobody(line: str) -> None:
    """Tells it nobody."""


def _why(error: OSError) -> str:
    return error.strerror or str(error)
