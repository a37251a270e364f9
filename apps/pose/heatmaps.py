"""What heatmaps are trained to be: a hill at every labelled keypoint; in torch."""

from __future__ import annotations

import torch
from torch import Tensor

WIDTH = 1 / 32  # of a hill, as a share of the heatmap's longer side: 2 cells of 64 (arXiv 1804.06208)


def hills(points: Tensor, height: int, width: int) -> Tensor:
    """The heatmaps of keypoints.

    Args:
        points: (N, keypoints, 3): x and y as shares of the input, and 1 if it is labelled, else 0.
        height: of a heatmap.
        width: of a heatmap.

    Returns:
        (N, keypoints, height, width), 1 at most.
    """
    spread = max(1.0, WIDTH * max(height, width))
    rows = torch.arange(height, device=points.device) - points[..., 1:2] * height
    columns = torch.arange(width, device=points.device) - points[..., 0:1] * width
    down, across = (torch.exp(-(line**2) / (2 * spread**2)) for line in (rows, columns))
    return down[..., :, None] * across[..., None, :]


def heatmap_loss(heatmaps: Tensor, points: Tensor) -> Tensor:
    """The mean squared distance from the hills of the labelled keypoints."""
    wanted = hills(points, heatmaps.shape[2], heatmaps.shape[3])
    apart = (heatmaps - wanted).square().mean((2, 3)) * points[..., 2]
    return apart.sum() / points[..., 2].sum().clamp(min=1)
