"""From heatmaps to keypoints: the highest cell of each, moved a quarter towards its higher neighbour.

The cell i of n lies at i / n of the input, as in the public networks (Xiao et al., arXiv 1804.06208).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from paredown.calibration.preprocess import Geometry

QUARTER = 0.25


def decode(heatmaps: NDArray[np.float32], size: tuple[int, int], geometry: Geometry) -> NDArray[np.float32]:
    """The keypoints of one image.

    Args:
        heatmaps: (keypoints, h, w).
        size: height and width of the image that went through preprocessing.
        geometry: where that image lies in the network's input.

    Returns:
        (keypoints, 3): x and y in pixels of the image, the height of the peak; NaN where that is no number.
    """
    height, width = heatmaps.shape[1:]
    found = np.empty((len(heatmaps), 3), np.float32)
    for index, plane in enumerate(heatmaps):
        row, column = divmod(int(plane.argmax()), width)
        x = (column + _towards(plane[row], column)) / width
        y = (row + _towards(plane[:, column], row)) / height
        found[index] = (
            (x - geometry.offset_x) / geometry.scale_x * size[1],
            (y - geometry.offset_y) / geometry.scale_y * size[0],
            plane[row, column],
        )
    found[~np.isfinite(found[:, 2])] = np.nan
    return found


def _towards(line: NDArray[np.float32], at: int) -> float:
    """A quarter of a cell to the higher neighbour; none at the edge, or where both are as high."""
    if not 0 < at < len(line) - 1 or line[at + 1] == line[at - 1]:
        return 0.0
    return QUARTER if line[at + 1] > line[at - 1] else -QUARTER
