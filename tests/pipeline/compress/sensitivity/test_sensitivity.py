"""The record of a test: what JSON brings back."""

from __future__ import annotations

import json

import pytest

from paredown.pipeline.compress.sensitivity.sensitivity import GIVEN_UP, NOT_ASKED, Curve, Point, Sensitivity

pytestmark = pytest.mark.unit


def test_it_survives_json():
    points = (
        Point(8, 0.5, 0.4, 0.6), Point(4, 0.25, 0.1, 0.3), Point(2, None, None, None, NOT_ASKED),
        Point(1, None, None, None, f"{GIVEN_UP} 32 images: 0.1 at most, 0.5 unpruned"),
    )  # fmt: skip
    found = Sensitivity("top1", 64, Point(0, 0.5, 0.4, 0.6), (Curve("stem", 8, points),))
    assert Sensitivity.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False))) == found
    assert found.to_dict()["curves"][0]["points"][0]["skipped"] == ""
