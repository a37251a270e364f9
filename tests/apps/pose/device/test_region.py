"""The part of an image that a pose network looks at."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paredown.apps.pose.device.region import WIDER, Region, cut, region

pytestmark = pytest.mark.unit


@given(st.floats(-50, 500), st.floats(-50, 500), st.floats(1, 300), st.floats(1, 300), st.floats(0.3, 3))
def test_it_holds_the_box_wider_in_the_shape_of_the_input(left, top, width, height, ratio):
    found = region((left, top, width, height), ratio)
    assert found.width >= WIDER * width - 1 and found.height >= WIDER * height - 1
    assert found.width == pytest.approx(found.height * ratio, abs=1 + ratio)
    assert found.left + found.width / 2 == pytest.approx(left + width / 2, abs=1.01)
    assert found.top + found.height / 2 == pytest.approx(top + height / 2, abs=1.01)


def test_what_lies_outside_is_black():
    image = np.arange(60, dtype=np.uint8).reshape(4, 5, 3) + 1
    assert np.array_equal(cut(image, Region(1, 1, 3, 2)), image[1:3, 1:4])
    part = cut(image, Region(-2, -1, 9, 7))
    assert part.shape == (7, 9, 3) and np.array_equal(part[1:5, 2:7], image)
    assert not part[0].any() and not part[5:].any() and not part[:, :2].any() and not part[:, 7:].any()
    assert not cut(image, Region(50, 0, 3, 3)).any()
