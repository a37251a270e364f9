"""Truths are read once, and labels that a network made up are cut to the image."""

from __future__ import annotations

import numpy as np
import pytest

from paredown.apps.detector.device.boxes.decode import Detections
from paredown.apps.detector.scoring.truth import PseudoLabelled, Truths
from paredown.calibration.datasets import Sample

pytestmark = pytest.mark.unit
BOX = np.array([[0.5, 0.5, 0.25, 0.25]], np.float32)


class Data:
    """Images of 6 x 8 pixels, the second without labels; counts what is decoded."""

    names = ("square", "disc")

    def __init__(self) -> None:
        self.decoded: list[int] = []

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Sample:
        self.decoded.append(index)
        labelled = index != 1
        boxes = BOX if labelled else np.zeros((0, 4), np.float32)
        classes = np.zeros(len(boxes), np.int64)
        return Sample(str(index), np.zeros((6, 8, 3), np.uint8), boxes, classes, labelled)

    def fingerprint(self) -> str:
        return "data"


def found(*boxes: tuple[float, float, float, float]) -> Detections:
    array = np.array(boxes, np.float32).reshape(-1, 4)
    return Detections(array, np.full(len(array), 0.9, np.float32), np.ones(len(array), np.int64))


def test_an_image_is_decoded_once() -> None:
    data = Data()
    truths = Truths(data)
    assert [truth.size for truth in truths.first(2)] == [(6, 8), (6, 8)]
    assert [truths[index].labelled for index in (0, 1, 0)] == [True, False, True]
    truths.note(2, data[2])
    assert np.array_equal(truths[2].boxes, BOX) and data.decoded == [0, 1, 2]


def test_what_was_found_stands_in_for_labels_that_are_absent() -> None:
    outside, across = (1.2, 0.1, 1.4, 0.3), (-0.5, 0.25, 0.5, 0.75)
    made = PseudoLabelled(Data(), [found((0, 0, 1, 1)), found(across, outside)])
    assert len(made) == 2 and made.names == ("square", "disc")
    assert np.array_equal(made[0].boxes, BOX) and made[0].classes.tolist() == [0]  # its own labels
    np.testing.assert_allclose(made[1].boxes, [[0.25, 0.5, 0.5, 0.5]])  # centre and size, cut
    assert made[1].labelled and made[1].classes.tolist() == [1]
    for index in (-1, 2):
        with pytest.raises(IndexError, match=f"image {index} of 2"):
            made[index]


def test_the_fingerprint_is_of_all_that_was_found() -> None:
    one, same = (PseudoLabelled(Data(), [found((0, 0, 1, 1))]).fingerprint() for _ in range(2))
    other = PseudoLabelled(Data(), [found((0, 0, 1, 0.5))]).fingerprint()
    longer = PseudoLabelled(Data(), [found((0, 0, 1, 1)), found()]).fingerprint()
    assert one == same and len({one, other, longer}) == 3
