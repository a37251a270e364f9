"""What a report shows of a detector's score: counted by hand, and against the score itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paredown.apps.detector.device.boxes.decode import Detections
from paredown.apps.detector.scoring.details import details, matches
from paredown.apps.detector.scoring.score import class_average_precisions, class_curves
from paredown.apps.detector.scoring.truth import Truth
from paredown.calibration.readers.records import Ignored

pytestmark = pytest.mark.unit
NAMES = ("cat", "dog")
LEFT, RIGHT = (0.0, 0.0, 0.4, 0.4), (0.6, 0.6, 1.0, 1.0)


def seen(*rows):
    """Rows of class, score and a box x1, y1, x2, y2."""
    boxes = np.array([row[2] for row in rows], np.float32).reshape(-1, 4)
    return Detections(boxes, np.array([r[1] for r in rows]), np.array([r[0] for r in rows], np.int64))


def truth(*rows):
    """Rows of class and a box x1, y1, x2, y2."""
    boxes = np.array([row[1] for row in rows], np.float32).reshape(-1, 4)
    centred = np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], axis=1)
    return Truth(centred, np.array([row[0] for row in rows], np.int64), True, (10, 10))


def test_a_box_is_found_confused_missed_or_made_up():
    labelled = truth((0, LEFT), (1, RIGHT))
    assert matches(seen((0, 0.9, LEFT), (1, 0.8, RIGHT)), labelled) == [(0, 0), (1, 1)]
    assert matches(seen((1, 0.9, LEFT)), labelled) == [(0, 1), (1, -1)]
    assert matches(seen((0, 0.9, LEFT), (0, 0.8, LEFT)), labelled) == [(0, 0), (-1, 0), (1, -1)]
    assert matches(seen(), labelled) == [(0, -1), (1, -1)] and matches(seen(), truth()) == []
    assert matches(seen((1, 0.5, LEFT)), truth()) == [(-1, 1)]


def test_what_is_found_on_an_ignored_object_counts_as_nothing():
    labelled = truth((0, LEFT))
    one = np.array([[0.8, 0.8, 0.4, 0.4]], np.float32)
    for crowd, box in ((False, RIGHT), (True, (0.7, 0.7, 0.8, 0.8))):
        spared = replace(labelled, ignored=Ignored(one, np.array([1]), np.array([crowd])))
        found = seen((0, 0.9, LEFT), (1, 0.8, box))
        assert matches(found, spared) == [(0, 0)]
        assert matches(found, labelled) == [(0, 0), (-1, 1)]
    far = replace(labelled, ignored=Ignored(one, np.array([1]), np.array([False])))
    assert matches(seen((1, 0.8, (0.7, 0.7, 0.8, 0.8))), far) == [(-1, 1), (0, -1)]  # small beside the object


def test_images_are_judged_by_what_is_shown():
    found = [seen((0, 0.9, LEFT), (1, 0.1, RIGHT)), seen(), seen()]
    told = details(found, [truth((0, LEFT), (1, RIGHT)), truth(), truth((0, LEFT))], NAMES, 0.5)
    assert [image["quality"] for image in told["images"]] == [0.5, 1.0, 0.0]
    assert told["images"][0]["found"] == [[0, 0.9, *np.float32(LEFT).round(4).tolist()]]
    assert told["confusion"] == [[0, -1, 1], [0, 0, 1], [1, -1, 1]] and told["names"] == ["cat", "dog"]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 6))
def test_the_classes_have_the_scores_average_precision(seed, images):
    random = np.random.default_rng(seed)
    boxes = lambda n: np.sort(random.random((n, 2, 2)), axis=1).reshape(n, 4)  # noqa: E731
    labelled = [truth(*((int(random.integers(2)), box) for box in boxes(3))) for _ in range(images)]
    found = []
    for one in labelled:
        centre, size = one.boxes[:, :2], one.boxes[:, 2:]
        near = np.concatenate([centre - size / 2, centre + size / 2], axis=1) + random.normal(0, 0.02, (3, 4))
        found.append(Detections(near, random.random(3), random.integers(0, 2, 3)))
    told = {one["name"]: one for one in details(found, labelled, NAMES, 0.5)["classes"]}
    expected = class_average_precisions(found, labelled)
    assert {NAMES[c]: value for c, value in expected.items()} == {n: one["score"] for n, one in told.items()}
    for one in told.values():
        recall = [point[0] for point in one["curve"]]
        assert recall == sorted(recall) and all(0 <= value <= 1 for p in one["curve"] for value in p)
        assert one["low"] is None or 0 <= one["low"] <= one["high"] <= 1
    curves = class_curves(found, labelled, np.ones((1, images)))
    for category, curve in curves.items():  # every image once is the set itself
        assert curve.interval == pytest.approx((expected[category],) * 2)
        steps = np.diff(np.concatenate([[0.0], curve.points[:, 0]]))
        assert float((steps * curve.points[:, 1]).sum()) == pytest.approx(curve.score)
