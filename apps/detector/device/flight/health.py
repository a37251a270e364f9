"""What an autopilot says of its own position: fix, accuracy, health, clock; and why not to believe it.

A position is sent ten times a second whether or not it is one: the last one again after the satellites were
lost, a guess of the estimator, or what a frozen sensor said. Each such state is a reason, in words.
Numbers are MAVLink's (common.xml; EKF_STATUS_REPORT is ArduPilot's).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

FIXES = ("NO_GPS", "NO_FIX", "2D_FIX", "3D_FIX", "DGPS", "RTK_FLOAT", "RTK_FIXED", "STATIC", "PPP")
KINDS = ("HEARTBEAT", "GPS_RAW_INT", "SYS_STATUS", "EKF_STATUS_REPORT", "ESTIMATOR_STATUS")
STATES = {1: "starting", 2: "calibrating", 7: "switching off", 8: "ending its flight"}
STALE_S = 5.0  # an autopilot sends each of these at least once a second, or not at all
SENSOR_GPS, SENSOR_AHRS = 0x20, 0x200000  # MAV_SYS_STATUS_SENSOR
POS_HORIZ_ABS, CONST_POS_MODE = 16, 128  # of both reports
ESTIMATOR_GPS_GLITCH = 1024
EKF_UNINITIALIZED, EKF_GPS_GLITCHING = 1024, 32768


@dataclass(frozen=True)
class Limits:
    """What is asked of a GPS.

    Attributes:
        fix: least fix type, GPS_FIX_TYPE: 3 is a fix in three dimensions; 0 takes a vehicle without GPS.
        accuracy: greatest horizontal uncertainty, metres, where the receiver says it.
    """

    fix: int
    accuracy: float


class Health:
    """The last message of each kind; one that was never heard is no reason: not every autopilot has all."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[float, Any]] = {}

    def hear(self, message: Any, now: float) -> None:
        """Takes a message of any kind; `now` is when it came, seconds."""
        kind = message.get_type()
        if kind in KINDS:
            self._last[kind] = (now, message)

    def clear(self) -> None:
        """The autopilot has begun anew."""
        self._last.clear()

    def doubt(self, now: float, limits: Limits) -> str | None:
        """Why its position is not to be believed now; None where nothing speaks against it."""
        for kind in KINDS[1:]:
            if kind in self._last and now - self._last[kind][0] > STALE_S:
                return f"{kind} is {now - self._last[kind][0]:.1f} s old"
        found = {kind: message for kind, (_, message) in self._last.items()}
        if (beat := found.get("HEARTBEAT")) and beat.system_status in STATES:
            return f"the autopilot is {STATES[beat.system_status]}"
        reasons = (
            _gps(found.get("GPS_RAW_INT"), limits),
            _sensors(found.get("SYS_STATUS"), limits),
            _ekf(found.get("EKF_STATUS_REPORT")),
            _estimator(found.get("ESTIMATOR_STATUS")),
        )
        return next((reason for reason in reasons if reason), None)


def _gps(message: Any, limits: Limits) -> str | None:
    if message is None:
        return None
    if message.fix_type < limits.fix:
        name = FIXES[message.fix_type] if message.fix_type < len(FIXES) else message.fix_type
        return f"no GPS fix: its fix type is {name}"
    accuracy = getattr(message, "h_acc", 0) / 1e3  # 0 where it is not said
    if limits.fix and accuracy > limits.accuracy:
        return f"the GPS is sure to {accuracy:.0f} m, more than {limits.accuracy:g}"
    return None


def _sensors(message: Any, limits: Limits) -> str | None:
    if message is None:
        return None
    ill = message.onboard_control_sensors_enabled & ~message.onboard_control_sensors_health
    if limits.fix and ill & SENSOR_GPS:
        return "the autopilot calls its GPS unhealthy"
    return "the autopilot calls its attitude and position unhealthy" if ill & SENSOR_AHRS else None


def _ekf(message: Any) -> str | None:
    if message is None:
        return None
    if message.flags & EKF_UNINITIALIZED:
        return "the autopilot's filter has not started"
    return _flags(message.flags, EKF_GPS_GLITCHING)


def _estimator(message: Any) -> str | None:
    return None if message is None else _flags(message.flags, ESTIMATOR_GPS_GLITCH)


def _flags(flags: int, glitch: int) -> str | None:
    if flags & glitch:
        return "the autopilot calls its GPS glitching"
    if flags & CONST_POS_MODE:
        return "the autopilot takes its position for constant: it measures none"
    return None if flags & POS_HORIZ_ABS else "the autopilot's filter has no position on the earth"


class BootClock:
    """The clocks of the messages that carry one: whether each goes on, and with the others.

    Args:
        restart_ms: a clock that falls by more has begun anew; by less, a message was late.
    """

    def __init__(self, restart_ms: int) -> None:
        self._restart_ms = restart_ms
        self._last: dict[str, tuple[int, float]] = {}
        self._repeated: dict[str, float] = {}

    def take(self, kind: str, boot_ms: int, now: float) -> str:
        """Takes a message's time: "new", "old" (late, or a repetition) or "restarted" (everything is)."""
        before, at = self._last.get(kind, (-1, -math.inf))
        if boot_ms < before - self._restart_ms:
            self._last, self._repeated = {kind: (boot_ms, now)}, {}
            return "restarted"
        if boot_ms > before:
            self._last[kind] = (boot_ms, now)
            self._repeated.pop(kind, None)
            return "new"
        if boot_ms == before:
            self._repeated[kind] = now
        return "old"

    def stands_still(self, kind: str, now: float, seconds: float) -> bool:
        """Whether messages of a kind have come lately, and all for so long with one time."""
        if kind not in self._repeated:
            return False
        return now - self._repeated[kind] <= seconds < self._repeated[kind] - self._last[kind][1]

    def behind(self, kind: str, of: str) -> float:
        """Seconds by which a kind's last message is older than another kind's, by the autopilot's clock."""
        if kind not in self._last or of not in self._last:
            return 0.0
        (boot, at), (other, other_at) = self._last[kind], self._last[of]
        return (other - boot) / 1e3 + at - other_at

    def boot_ms(self, kind: str, at: float) -> int:
        """The autopilot's clock at a time of ours, by the last message of a kind."""
        boot, came = self._last.get(kind, (0, at))
        return boot + round(1e3 * (at - came))
