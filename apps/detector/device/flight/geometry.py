"""From a pixel to a bearing and a place on the ground, and back: a pinhole camera on a flying vehicle.

Frames, as MAVLink and the autopilots have them: the camera's is OpenCV's (x right, y down in the image, z
along the view); the body's is FRD (x forward, y right, z down); the earth's is NED (north, east, down) with
its origin at the vehicle. Angles are radians, aerospace order: yaw, then pitch, then roll. The ground is flat
and level, at the height that the caller gives. Lens distortion is not undone. Our design; the formulas are
textbook (Hartley and Zisserman, chapter 6; Stevens and Lewis, section 1.3; WGS 84, NIMA TR8350.2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from paredown.targets.errors import UsageError

Array = np.ndarray

SEMI_MAJOR_M, ECCENTRICITY_2 = 6378137.0, 6.69437999014e-3  # WGS 84
#: Camera axes in FRD when it looks straight ahead.
_FORWARD = ((0.0, 0.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0))


@dataclass(frozen=True)
class Attitude:
    """How one frame is turned against another, as ATTITUDE has the body against NED; radians."""

    roll: float
    pitch: float
    yaw: float

    @property
    def matrix(self) -> Array:
        """(3, 3): takes a vector of the turned frame to the other one."""
        (sr, cr), (sp, cp), (sy, cy) = ((math.sin(a), math.cos(a)) for a in (self.roll, self.pitch, self.yaw))
        return np.array(
            [
                [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
                [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
                [-sp, cp * sr, cp * cr],
            ]
        )

    @property
    def tilt(self) -> float:
        """Angle between the body's down and the earth's, radians."""
        return math.acos(max(-1.0, min(1.0, math.cos(self.roll) * math.cos(self.pitch))))


@dataclass(frozen=True)
class Lens:
    """A pinhole camera; pixels are measured from the image's upper left edge, not from a pixel's middle.

    Attributes:
        fx: focal length along x, in pixels.
        fy: along y.
        cx: where the optical axis meets the image, in pixels.
        cy: likewise.

    Raises:
        UsageError: a focal length that is none.
    """

    fx: float
    fy: float
    cx: float
    cy: float

    def __post_init__(self) -> None:
        """Checks what would divide by zero or turn the image over."""
        if not (all(map(math.isfinite, (self.fx, self.fy, self.cx, self.cy))) and min(self.fx, self.fy) > 0):
            raise UsageError(f"{self} cannot be", hint="focal lengths are pixels, above 0")

    @classmethod
    def from_fov(cls, degrees: float, width: int, height: int) -> Lens:
        """A lens of square pixels whose axis meets the middle.

        Args:
            degrees: horizontal field of view.
            width: of the image, in pixels.
            height: likewise.

        Raises:
            UsageError: an angle that no pinhole has.
        """
        if not 1 <= degrees <= 170:
            raise UsageError(f"a field of view of {degrees:g} degrees", hint="1 to 170, across the image")
        focal = width / 2 / math.tan(math.radians(degrees) / 2)
        return cls(focal, focal, width / 2, height / 2)

    def ray(self, x: float, y: float) -> Array:
        """The unit vector (3,), camera frame, to what is seen at a pixel."""
        direction = np.array([(x - self.cx) / self.fx, (y - self.cy) / self.fy, 1.0])
        return direction / np.linalg.norm(direction)

    def pixel(self, direction: Array) -> tuple[float, float] | None:
        """Where a direction (3,), camera frame, of any length, is seen; None behind the camera."""
        x, y, z = (float(value) for value in direction)
        if z <= 0:
            return None
        return self.cx + self.fx * x / z, self.cy + self.fy * y / z


@dataclass(frozen=True)
class Camera:
    """A camera that is fixed to the vehicle.

    Attributes:
        lens: of its image.
        mount: how it is turned against the body; all zero looks ahead, pitch -pi/2 looks straight down with
            the top of the image ahead.
    """

    lens: Lens
    mount: Attitude

    def body_ray(self, x: float, y: float) -> Array:
        """The unit vector (3,), body frame, to what is seen at a pixel."""
        return self.mount.matrix @ np.array(_FORWARD) @ self.lens.ray(x, y)

    def pixel(self, body: Array) -> tuple[float, float] | None:
        """Where a body-frame vector (3,) is seen; None behind the camera."""
        return self.lens.pixel(np.array(_FORWARD).T @ self.mount.matrix.T @ body)


def bearing(body: Array) -> tuple[float, float] | None:
    """LANDING_TARGET's angle_x and angle_y of a body-frame vector (3,), radians; None at or above the wings.

    ArduPilot takes them for the vector (-tan(angle_y), tan(angle_x), 1): x is to the right, y to the rear. Of
    a camera that looks straight down they are the offsets from the middle of the image.
    """
    x, y, z = (float(value) for value in body)
    if z <= 0:
        return None
    return math.atan2(y, z), math.atan2(-x, z)


def ground(ned: Array, height: float, depression: float = 0.0) -> Array | None:
    """Where a ray meets flat ground.

    Args:
        ned: its direction (3,), of any length.
        height: of its origin above the ground, metres.
        depression: least angle below the horizon, radians: further out every degree of error is a long way.

    Returns:
        (3,) north, east, down of that place from the origin, metres; None where the ray does not reach the
        ground, or only at a flatter angle.
    """
    down = float(ned[2] / np.linalg.norm(ned))
    if height <= 0 or down <= max(math.sin(depression), 1e-9):
        return None
    return np.asarray(ned * (height / ned[2]))


def radii(latitude: float) -> tuple[float, float]:
    """Metres per radian of latitude and of longitude on the ellipsoid at a latitude in degrees."""
    sine, cosine = math.sin(math.radians(latitude)), math.cos(math.radians(latitude))
    bent = 1 - ECCENTRICITY_2 * sine * sine
    return SEMI_MAJOR_M * (1 - ECCENTRICITY_2) / bent**1.5, SEMI_MAJOR_M / math.sqrt(bent) * cosine


def moved(latitude: float, longitude: float, north: float, east: float) -> tuple[float, float]:
    """The latitude and longitude, degrees, of a place some metres away; for kilometres at most."""
    per_latitude, per_longitude = radii(latitude)
    far = longitude + math.degrees(east / per_longitude)
    return latitude + math.degrees(north / per_latitude), (far + 180) % 360 - 180


def offset(latitude: float, longitude: float, to: tuple[float, float]) -> tuple[float, float]:
    """Metres north and east from one place to another (latitude, longitude in degrees): undoes `moved`."""
    per_latitude, per_longitude = radii(latitude)
    around = (to[1] - longitude + 180) % 360 - 180
    return math.radians(to[0] - latitude) * per_latitude, math.radians(around) * per_longitude
