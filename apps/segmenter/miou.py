"""Mean intersection over union, from what each image adds to the sums of each class."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from paredown.apps.segmenter.device.class_map import IGNORED

HIT, TRUE, FOUND = range(3)


def counts(found: NDArray[np.uint8], mask: NDArray[np.uint8], classes: int) -> NDArray[np.float64]:
    """(classes, 3): pixels that are found and right, that are of the class, that are found to be of it.

    Args:
        found: (H, W), `IGNORED` where nothing was found.
        mask: (H, W), the truth; `IGNORED` is not scored.
        classes: how many there are.
    """
    scored = mask != IGNORED
    true, said = mask[scored], found[scored]
    parts = (true[true == said], true, said)
    return np.stack([np.bincount(part, minlength=256)[:classes] for part in parts], 1).astype(np.float64)


def miou(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the classes that are there or are found, of sums (..., classes, 3); NaN where none is."""
    shares = class_ious(sums)
    there = ~np.isnan(shares)
    count = there.sum(-1)
    return np.where(count > 0, np.where(there, shares, 0).sum(-1) / np.maximum(count, 1), np.nan)


def class_ious(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each class, of sums (..., classes, 3); NaN where it neither is there nor is found."""
    union = sums[..., TRUE] + sums[..., FOUND] - sums[..., HIT]
    return np.where(union > 0, sums[..., HIT] / np.where(union > 0, union, 1), np.nan)


def accuracy(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """The share of pixels that are right, of sums (..., classes, 3); NaN where none is scored."""
    scored = sums[..., TRUE].sum(-1)
    return np.where(scored > 0, sums[..., HIT].sum(-1) / np.maximum(scored, 1), np.nan)
