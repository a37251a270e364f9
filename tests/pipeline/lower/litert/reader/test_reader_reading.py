"""Scales, clamps and shapes while a `.tflite` of codes is read."""

from __future__ import annotations

import pytest

from paredown.pipeline.lower.integer import Affine
from paredown.pipeline.lower.litert.reader.reading import Reading, limits, ours
from paredown.pipeline.recipe.imports.keras.tflite.file import Graph, Tensor
from paredown.targets.errors import InputError

pytestmark = pytest.mark.unit


def test_a_clamp_is_in_codes():
    assert limits("NONE", Affine(0.1, 4)) == (-128, 127)
    assert limits("RELU", Affine(0.1, 4)) == (4, 127)
    assert limits("RELU6", Affine(0.1, 4)) == (4, 64)
    assert limits("RELU6", Affine(0.01, -128)) == (-128, 127)


def test_shapes_are_channels_first_where_they_are_maps():
    assert (ours((1, 5, 6, 3)), ours((1, 6, 3)), ours((1, 7))) == ((1, 3, 5, 6), (1, 6, 3), (1, 7))


@pytest.mark.parametrize(
    ("tensor", "line"),
    [
        (Tensor("x", (1, 2), "FLOAT32", (), None), "its tensor x is float32, not int8 or uint8"),
        (Tensor("x", (1, 2), "INT8", (), None), "has 0 scales, not one"),
        (Tensor("x", (1, 2), "INT8", (), None, (0.0,), (0,)), "has the scale 0 and the zero point 0"),
        (Tensor("x", (1, 2), "INT8", (), None, (0.1,), (200,)), "the zero point 200"),
    ],
)
def test_a_tensor_without_a_sane_scale_is_refused(tensor, line):
    with pytest.raises(InputError, match=line):
        Reading(Graph((tensor,), (), (0,), (0,), {})).affine(0)


def test_uint8_is_int8_of_another_zero_point():
    tensor = Tensor("x", (1, 2), "UINT8", (), None, (0.5,), (127,))
    reading = Reading(Graph((tensor,), (), (0,), (0,), {}))
    reading.take(0)
    assert reading.nodes["input"].out == Affine(0.5, -1)
