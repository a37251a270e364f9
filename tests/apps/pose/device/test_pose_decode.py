"""Keypoints from heatmaps: the peak, the quarter, and where the image lies in the input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paredown.apps.pose.device.decode import decode
from paredown.apps.pose.heatmaps import hills
from paredown.calibration.preprocess import Preprocess

pytestmark = pytest.mark.unit
SHARES = st.floats(0.1, 0.85)


@settings(deadline=None)
@given(
    SHARES, SHARES, st.sampled_from([(16, 16), (24, 18), (32, 24)]), st.sampled_from(["stretch", "letterbox"])
)
def test_what_is_trained_is_found_again(x, y, cells, resize):
    """A hill's place, within the quarter of a cell that the decoding leaves, through any preprocessing."""
    preprocess = Preprocess(width=96, height=128, resize=resize)
    size = (200, 120)
    geometry = preprocess.geometry(*size)
    there = np.array([x * geometry.scale_x + geometry.offset_x, y * geometry.scale_y + geometry.offset_y, 1])
    heatmap = hills(torch.tensor(there, dtype=torch.float32)[None, None], *cells)[0].numpy()
    found = decode(heatmap, size, geometry)[0]
    cell = np.array([size[1] / (cells[1] * geometry.scale_x), size[0] / (cells[0] * geometry.scale_y)])
    assert (np.abs(found[:2] - (x * size[1], y * size[0])) <= 0.2501 * cell + 1e-3).all()
    assert 0.7 < found[2] <= 1


def test_the_quarter_goes_to_the_higher_neighbour_and_not_over_the_edge():
    geometry = Preprocess(width=8, height=8).geometry(8, 8)
    plane = np.zeros((1, 8, 8), np.float32)
    plane[0, 3, 3] = 1
    assert decode(plane, (8, 8), geometry)[0].tolist() == [3, 3, 1]
    plane[0, 3, 4], plane[0, 2, 3] = 0.5, 0.4
    assert decode(plane, (8, 8), geometry)[0].tolist() == [3.25, 2.75, 1]
    plane[0, 0, 0] = 2
    assert decode(plane, (8, 8), geometry)[0].tolist() == [0, 0, 2]


def test_nonsense_is_no_place():
    geometry = Preprocess(width=8, height=8).geometry(8, 8)
    plane = np.zeros((2, 8, 8), np.float32)
    plane[1, 2, 2] = np.nan
    found = decode(plane, (8, 8), geometry)
    assert np.isfinite(found[0]).all() and np.isnan(found[1]).all()
