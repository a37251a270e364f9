"""Camera geometry in cases that can be computed by hand, and there and back again."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paredown.apps.detector.device.flight.geometry import (
    Attitude,
    Camera,
    Lens,
    bearing,
    ground,
    moved,
    offset,
)
from paredown.targets.errors import UsageError

pytestmark = pytest.mark.unit

CENTIMETRE = 0.01
DOWN = Attitude(0, math.radians(-90), 0)
LEVEL = Attitude(0, 0, 0)
LENS = Lens.from_fov(90, 800, 600)  # tan 45 = 1: the focal length is half the width


def place(
    pixel: tuple[float, float], mount: Attitude, attitude: Attitude, height: float
) -> np.ndarray | None:
    return ground(attitude.matrix @ Camera(LENS, mount).body_ray(*pixel), height)


def degrees(roll: float, pitch: float, yaw: float) -> Attitude:
    return Attitude(math.radians(roll), math.radians(pitch), math.radians(yaw))


def test_a_field_of_view_is_a_focal_length() -> None:
    assert pytest.approx((400, 400, 400, 300)) == (LENS.fx, LENS.fy, LENS.cx, LENS.cy)


@pytest.mark.parametrize(
    ("pixel", "mount", "attitude", "expected"),
    [
        # straight down from 20 m, flying north: the image's top is north, 400 pixels are 45 degrees
        ((400, 300), DOWN, LEVEL, (0, 0)),
        ((800, 300), DOWN, LEVEL, (0, 20)),
        ((400, 100), DOWN, LEVEL, (10, 0)),
        # the same, flying east: what was north is east now
        ((400, 100), DOWN, degrees(0, 0, 90), (0, 10)),
        ((800, 300), DOWN, degrees(0, 0, 90), (-20, 0)),
        # the camera mounted sideways: the image's top is to the right
        ((400, 100), degrees(0, -90, 0), degrees(0, 0, 180), (-10, 0)),
        # looking 45 degrees ahead and down: the middle is as far away as it is below
        ((400, 300), degrees(0, -45, 0), LEVEL, (20, 0)),
        ((400, 300), degrees(0, -45, 0), degrees(0, 0, 30), (20 * math.cos(math.pi / 6), 10)),
        # nose up by 15 degrees: the same camera looks 30 degrees down, 20 / tan 30 ahead
        ((400, 300), degrees(0, -45, 0), degrees(0, 15, 0), (20 * math.sqrt(3), 0)),
        # looking down, rolled right wing down by 30 degrees: the view swings to the left
        ((400, 300), DOWN, degrees(30, 0, 0), (0, -20 / math.sqrt(3))),
        # a camera turned to the right wing, 60 degrees down
        ((400, 300), degrees(0, -60, 90), LEVEL, (0, 20 / math.sqrt(3))),
    ],
)
def test_places_that_can_be_computed_by_hand(
    pixel: tuple[float, float], mount: Attitude, attitude: Attitude, expected: tuple[float, float]
) -> None:
    found = place(pixel, mount, attitude, 20.0)
    assert found is not None
    assert np.abs(found - [*expected, 20.0]).max() < CENTIMETRE


def test_nothing_is_said_about_the_horizon_and_the_sky() -> None:
    ahead = degrees(0, 0, 0)
    assert place((400, 300), ahead, LEVEL, 20) is None  # the horizon itself
    assert place((400, 100), ahead, LEVEL, 20) is None  # the sky
    assert place((400, 301), ahead, LEVEL, 20) is not None
    assert place((400, 300), DOWN, LEVEL, 0) is None  # on the ground, or below it
    ray = LEVEL.matrix @ Camera(LENS, degrees(0, -10, 0)).body_ray(400, 300)
    assert ground(ray, 20, depression=math.radians(9.9)) is not None
    assert ground(ray, 20, depression=math.radians(10.1)) is None


def test_bearings_are_ardupilots() -> None:
    """Its unit vector is (-tan(angle_y), tan(angle_x), 1): AC_PrecLand_MAVLink.cpp."""
    ray = Camera(LENS, DOWN).body_ray(600, 200)
    angles = bearing(ray)
    assert angles == pytest.approx((math.atan(0.5), math.atan(-0.25)))
    vector = np.array([-math.tan(angles[1]), math.tan(angles[0]), 1])
    assert np.allclose(vector / np.linalg.norm(vector), ray)
    assert bearing(np.array([1.0, 0, 0])) is None


def test_a_degree_of_latitude_has_its_known_length() -> None:
    """110,574 m at the equator, 111,694 at the poles; of longitude 111,320 at the equator (WGS 84)."""
    assert offset(0, 0, (1e-3, 0))[0] * 1e3 == pytest.approx(110574, abs=1)
    assert offset(89.9, 0, (89.901, 0))[0] * 1e3 == pytest.approx(111694, abs=1)
    assert offset(0, 0, (0, 1e-3))[1] * 1e3 == pytest.approx(111320, abs=1)
    assert offset(60, 0, (60, 1e-3))[1] * 1e3 == pytest.approx(55800, abs=1)


def test_the_date_line_is_crossed() -> None:
    latitude, longitude = moved(10, 179.99999, 0, 100)
    assert -180 < longitude < -179.99
    assert offset(10, 179.99999, (latitude, longitude)) == pytest.approx((0, 100), abs=1e-6)


@pytest.mark.parametrize("angle", [0, 0.5, 171, 180, math.nan, math.inf])
def test_impossible_lenses(angle: float) -> None:
    with pytest.raises(UsageError):
        Lens.from_fov(angle, 640, 480)
    with pytest.raises(UsageError):
        Lens(math.nan, 100, 0, 0)


turn = st.floats(-math.pi, math.pi)
small = st.floats(-0.6, 0.6)


@given(
    roll=small, pitch=small, yaw=turn, mount_pitch=st.floats(-math.pi / 2, -0.3), mount_yaw=turn,
    height=st.floats(1, 500), x=st.floats(0, 800), y=st.floats(0, 600),
)  # fmt: skip
def test_ground_and_pixel_are_inverse(
    roll: float, pitch: float, yaw: float, mount_pitch: float, mount_yaw: float, height: float, x: float,
    y: float,
) -> None:  # fmt: skip
    camera, attitude = Camera(LENS, Attitude(0, mount_pitch, mount_yaw)), Attitude(roll, pitch, yaw)
    point = ground(attitude.matrix @ camera.body_ray(x, y), height, depression=math.radians(3))
    if point is None:
        return
    assert point[2] == pytest.approx(height)
    seen = camera.pixel(attitude.matrix.T @ point)
    assert seen is not None
    assert seen == pytest.approx((x, y), abs=1e-6)
    again = ground(attitude.matrix @ camera.body_ray(*seen), height)
    assert again is not None
    assert np.linalg.norm(again - point) < CENTIMETRE


@given(
    latitude=st.floats(-80, 80), longitude=st.floats(-180, 180), north=st.floats(-2000, 2000),
    east=st.floats(-2000, 2000),
)  # fmt: skip
def test_places_and_metres_are_inverse(latitude: float, longitude: float, north: float, east: float) -> None:
    there = moved(latitude, longitude, north, east)
    assert offset(latitude, longitude, there) == pytest.approx((north, east), abs=CENTIMETRE)


@given(roll=turn, pitch=st.floats(-1.5, 1.5), yaw=turn)
def test_attitudes_are_rotations(roll: float, pitch: float, yaw: float) -> None:
    attitude = Attitude(roll, pitch, yaw)
    assert np.allclose(attitude.matrix @ attitude.matrix.T, np.eye(3))
    assert np.linalg.det(attitude.matrix) == pytest.approx(1)
    assert math.cos(attitude.tilt) == pytest.approx(attitude.matrix[2, 2])
