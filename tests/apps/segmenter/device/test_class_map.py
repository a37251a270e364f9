"""The class of every pixel, against torch's own interpolation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from paredown.apps.segmenter.device.class_map import IGNORED, class_map
from paredown.calibration.preprocess import Preprocess

pytestmark = pytest.mark.unit
SIDES = st.integers(1, 12)


@settings(deadline=None)
@given(st.integers(2, 5), SIDES, SIDES, SIDES, SIDES, st.integers(0, 2**32 - 1))
def test_stretched_images_get_what_torch_interpolates(classes, h, w, height, width, seed):
    logits = np.random.default_rng(seed).normal(size=(classes, h, w)).astype(np.float32)
    geometry = Preprocess(width=16, height=16).geometry(height, width)
    wide = F.interpolate(torch.from_numpy(logits)[None], (height, width), mode="bilinear")[0].numpy()
    best = np.sort(wide, 0)
    clear = best[-1] - best[-2] > 1e-5
    found = class_map(logits, (height, width), geometry)
    assert found.dtype == np.uint8 and found.shape == (height, width)
    assert np.array_equal(found[clear], wide.argmax(0)[clear])


def test_a_letterboxed_image_is_looked_up_where_it_lies():
    preprocess = Preprocess(width=8, height=8, resize="letterbox")
    logits = np.zeros((2, 8, 8), np.float32)
    logits[1, 2:6, :4] = 1  # of an image twice as wide as high: its left half
    found = class_map(logits, (8, 16), preprocess.geometry(8, 16))
    assert found[:, :7].all() and not found[:, 9:].any()


def test_of_equal_logits_the_lower_class_wins_and_nonsense_is_none():
    geometry = Preprocess(width=4, height=4).geometry(4, 4)
    logits = np.zeros((3, 4, 4), np.float32)
    logits[1:, 0] = 1
    assert class_map(logits, (4, 4), geometry).tolist() == [[1] * 4] + [[0] * 4] * 3
    for index in range(3):
        broken = logits.copy()
        broken[index, 3, 3] = np.nan
        found = class_map(broken, (4, 4), geometry)
        assert found[3, 3] == IGNORED and found[0, 0] == 1
