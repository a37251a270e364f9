"""From a segmenter's logits to the class of every pixel of the image; numpy alone, the same everywhere."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from paredown.calibration.preprocess import Geometry

IGNORED = 255  # no class: of a label, a pixel that is not scored; of an output, one that is not a number


def class_map(logits: NDArray[np.float32], size: tuple[int, int], geometry: Geometry) -> NDArray[np.uint8]:
    """The likeliest class of each pixel: logits are interpolated bilinearly at the pixels' centres.

    Only multiplications and sums of two numbers, so that a score is the same on every machine. Of equal
    logits the lower class comes first, as in argmax.

    Args:
        logits: (classes, h, w), at most 255 classes.
        size: height and width of the image.
        geometry: where the image lies in the network's input.

    Returns:
        (height, width); `IGNORED` where a logit is not a number.
    """
    top, bottom, down = _between(size[0], logits.shape[1], geometry.scale_y, geometry.offset_y)
    left, right, across = _between(size[1], logits.shape[2], geometry.scale_x, geometry.offset_x)
    best = np.full(size, -np.inf, np.float32)
    found = np.zeros(size, np.uint8)
    for index, plane in enumerate(logits):
        rows = plane[top] + (plane[bottom] - plane[top]) * down[:, None]
        first = rows.take(left, 1)
        values = first + (rows.take(right, 1) - first) * across
        higher = ~(values <= best)  # a NaN is, and nothing is higher than it from then on
        higher &= best == best
        np.copyto(best, values, where=higher)
        found[higher] = index
    found[np.isnan(best)] = IGNORED
    return found


def _between(
    pixels: int, cells: int, scale: float, offset: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """For each pixel along an axis the two cells that it lies between, and how far from the first."""
    place = (np.arange(pixels) + 0.5) / pixels * scale + offset
    place = np.clip(place * cells - 0.5, 0, cells - 1)
    first = np.floor(place).astype(np.int64)
    return first, np.minimum(first + 1, cells - 1), (place - first).astype(np.float32)
