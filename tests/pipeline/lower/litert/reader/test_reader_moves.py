"""Int8 operations that only move codes, of `.tflite` files: LiteRT's interpreter on the file."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from int8_tflite import Int8, check, numbers
from tflite_models import SAME, VALID

Make = Callable[[Int8], int]


def joined(w: Int8) -> int:
    a, b = w.window_of(w.input, "MAX", (3, 3), 1, SAME), w.input
    return w.made("CONCATENATION", [a, b], (1, 8, 7, 12), "Concatenation", axis=3)


def turned(w: Int8) -> int:
    made = w.made("TRANSPOSE", [w.input, numbers(w, 0, 3, 1, 2)], (1, 6, 8, 7), "Transpose")
    flat = w.made("RESHAPE", [made, numbers(w, 1, 336)], (1, 336), "Reshape")
    return w.full(flat, 5)


def padded(w: Int8) -> int:
    around = w.constant(np.array([[0, 0], [1, 2], [0, 3], [0, 0]], np.int32))
    return w.layer(w.made("PAD", [w.input, around], (1, 11, 10, 6), "Pad"), 4, padding=VALID)


def part(w: Int8) -> int:
    cut = w.made("SLICE", [w.input, numbers(w, 0, 1, 2, 0), numbers(w, 1, 6, -1, 4)], (1, 6, 5, 4), "Slice")
    places = [numbers(w, *each) for each in ((0, 1, 0, 1), (1, -1, 0, 3), (1, 2, 1, 1))]
    return w.made("STRIDED_SLICE", [cut, *places], (1, 2, 5, 2), "StridedSlice", endMask=0b0101)


def nearest(size: tuple[int, int], **more: bool) -> Make:
    def make(w: Int8) -> int:
        inputs = [w.input, numbers(w, *size)]
        return w.made("RESIZE_NEAREST_NEIGHBOR", inputs, (1, *size, 6), "ResizeNearestNeighbor", **more)

    return make


OPERATIONS: dict[str, Make] = {
    "concat": joined, "pad": padded, "part": part, "nearest": nearest((16, 14)), "turned": turned,
    "nearest half": nearest((13, 9), halfPixelCenters=True),
    "nearest corners": nearest((15, 13), alignCorners=True),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_has_the_codes_of_the_interpreter(tmp_path, name):
    w = Int8((1, 8, 7, 6), seed=len(name))
    check(tmp_path, w.data(OPERATIONS[name](w)))
