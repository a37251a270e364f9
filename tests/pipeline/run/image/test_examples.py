"""The worst images: which, and small."""

from __future__ import annotations

import base64

import cv2
import numpy as np
import pytest

from paredown.calibration.datasets import Sample
from paredown.calibration.preprocess import Preprocess
from paredown.pipeline.run.image.summary.examples import SIDE, by_details, by_outputs, examples, worst

pytestmark = pytest.mark.unit


def told(*qualities):
    return [{"index": i, "quality": q, "found": [i]} for i, q in enumerate(qualities)]


def test_the_lowest_quality_comes_first_then_the_largest_loss():
    pairs = worst(told(1.0, 0.5, 0.9, 1.0), told(1.0, 0.2, 0.5, 0.5), 3)
    assert [new["index"] for _, new in pairs] == [1, 3, 2]
    assert worst(told(1.0), told(0.9, 0.0)) == [(told(1.0)[0], told(0.9)[0])], "of what both have"
    assert worst(told(0.5, 1.0), told(1.0, 1.0)) == [], "in which all is right"


def test_pictures_are_small_and_drawn_thrice():
    image = np.zeros((900, 1200, 3), np.uint8)
    sample = Sample("far/folder/a.png", image, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), True)
    calls = []

    def drawn(small, found):
        calls.append((small.image.shape, found))
        return small.image

    made = examples(told(1.0), told(0.5), [sample], by_details(drawn), "litert")
    assert calls == [((225, SIDE, 3), found) for found in (None, [0], [0])]
    (row,) = made["rows"]
    assert (row["name"], row["before"], row["after"]) == ("folder/a.png", 1.0, 0.5)
    for picture in row["pictures"]:
        data = np.frombuffer(base64.b64decode(picture), np.uint8)
        assert cv2.imdecode(data, cv2.IMREAD_COLOR).shape == (225, SIDE, 3) and len(data) < 20_000


def test_pictures_of_what_networks_give_now():
    """Of a task whose details keep nothing to draw."""
    sample = Sample(
        "a", np.zeros((8, 8, 3), np.uint8), np.zeros((0, 4), np.float32), np.zeros(0, np.int64), True
    )
    shown = []

    def pictured(given, outputs):
        shown.append(outputs)
        return given.image

    entries = [{"index": 0, "quality": 0.5}]
    preprocess = Preprocess(8, 8)
    both = [lambda x: (x.shape, "before"), lambda x: (x.shape, "after")]
    pictures = by_outputs(pictured, both, preprocess)
    made = examples(entries, entries, [sample], pictures, "litert")
    assert shown == [None, ((1, 3, 8, 8), "before"), ((1, 3, 8, 8), "after")]
    assert len(made["rows"][0]["pictures"]) == 3
