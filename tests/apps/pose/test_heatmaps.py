"""What heatmaps are trained to be."""

from __future__ import annotations

import math

import pytest
import torch

from paredown.apps.pose.heatmaps import heatmap_loss, hills

pytestmark = pytest.mark.unit


def test_a_hill_is_a_normal_curve_about_the_keypoint():
    points = torch.tensor([[[0.5, 0.25, 1.0]]])
    found = hills(points, 64, 48)
    assert found.shape == (1, 1, 64, 48) and found[0, 0, 16, 24] == 1
    for row, column in ((16, 26), (20, 24), (13, 20)):
        squared = (row - 16) ** 2 + (column - 24) ** 2
        assert found[0, 0, row, column].item() == pytest.approx(math.exp(-squared / 8), rel=1e-5)


def test_the_loss_is_of_labelled_keypoints_alone():
    points = torch.tensor([[[0.5, 0.5, 1.0], [0.1, 0.1, 0.0]]])
    wanted = hills(points, 16, 16)
    assert heatmap_loss(wanted, points).item() == 0
    wrong = wanted.clone()
    wrong[0, 1] += 3
    assert heatmap_loss(wrong, points).item() == 0
    wrong[0, 0] += 0.5
    assert heatmap_loss(wrong, points).item() == pytest.approx(0.25)
    assert heatmap_loss(wrong, points * torch.tensor([1.0, 1.0, 0.0])).item() == 0  # and no NaN
