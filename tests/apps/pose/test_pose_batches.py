"""A pose network's batches: the keypoints stay on what they mark."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from paredown.apps.pose.batches import Batches, mirrored
from paredown.apps.pose.people import PoseSample
from paredown.calibration.datasets import Sample
from paredown.calibration.preprocess import Preprocess

pytestmark = pytest.mark.unit


class Dots:
    """A red, a green and a blue dot on black, marked in this order."""

    def __init__(self, names=("left_a", "right_a", "tip"), labelled=True) -> None:
        self.names, self.labelled = names, labelled

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Sample:
        image, none = np.zeros((60, 40, 3), np.uint8), np.zeros(0)
        points = np.array([(10, 20, 1), (30, 22, 1), (19, 44, 1)], np.float32)
        for (x, y, _), colour in zip(points.astype(int).tolist(), np.eye(3)[::-1] * 255, strict=True):
            cv2.circle(image, (x, y), 3, colour.tolist(), -1)
        if not self.labelled:
            return Sample(str(index), image, none, none, False)
        return PoseSample(str(index), image, none, none, True, points, 60.0)

    def fingerprint(self) -> str:
        return "dots"


@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
def test_keypoints_lie_on_their_dots_and_mirrored_ones_change_sides(resize):
    preprocess = Preprocess(width=48, height=48, resize=resize, fill=0)
    batches, turned = Batches(Dots(), preprocess, 3, seed=0), set()
    for step in range(8):
        images, labels = batches(step)
        assert images.shape == (3, 3, 48, 48) and labels is not None and labels.shape == (3, 3, 3)
        assert labels.dtype == torch.float32 and torch.equal(batches(step)[1], labels)
        for image, points in zip(images, labels, strict=True):
            colours = []
            for x, y, seen in points.tolist():
                assert seen == 1
                colours.append(int(image[:, round(y * 48 - 0.5), round(x * 48 - 0.5)].argmax()))
            assert sorted(colours) == [0, 1, 2] and colours[2] == 2  # the tip is its own mirror image
            turned.add(colours[0])
            assert points[0, 0] < points[1, 0]  # left stays left of right, in a mirror too
    assert turned == {0, 1}


def test_without_pairs_nothing_is_mirrored_and_without_labels_there_are_none():
    preprocess = Preprocess(width=48, height=48)
    batches = Batches(Dots(("a", "b", "c")), preprocess, 3, seed=0)
    assert all((batches(step)[1][:, 0, 0] < batches(step)[1][:, 1, 0]).all() for step in range(6))
    assert Batches(Dots(labelled=False), preprocess, 3, 0)(0)[1] is None


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("nose", "left_eye", "right_eye"), [0, 2, 1]),
        (("LeftHand", "RightHand", "tip"), [1, 0, 2]),
        (("a", "b"), None),
        (("left_eye", "nose"), None),
    ],
)
def test_sides_are_told_by_names(names, expected):
    assert mirrored(names) == expected
