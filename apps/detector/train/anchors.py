"""Anchors for YOLO-v2: k-means over box sizes with the distance 1 - IoU (arXiv 1612.08242, section 2)."""

from __future__ import annotations

import numpy as np

from paredown.calibration.datasets import Dataset
from paredown.calibration.preprocess import Preprocess
from paredown.targets.errors import InputError, UsageError


def size_iou(sizes: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """IoU of boxes that share their centre.

    Args:
        sizes: (N, 2) widths and heights.
        anchors: (K, 2), in the same unit.

    Returns:
        (N, K) float64.
    """
    shared = np.minimum(sizes[:, None], anchors[None]).prod(-1)
    return shared / (sizes.prod(-1)[:, None] + anchors.prod(-1)[None] - shared)


def kmeans_anchors(
    sizes: np.ndarray, count: int = 5, iterations: int = 300
) -> tuple[tuple[float, float], ...]:
    """Chooses anchors by k-means on 1 - IoU.

    There is no chance in it: the first centre is the size nearest to the mean, each further one the size that
    the centres so far fit worst (our design). Of all the centres the best are kept: the mean minimises
    squared distance and not 1 - IoU, so an iteration can be a step back.

    Args:
        sizes: (N, 2) widths and heights, for the network in cells.
        count: how many anchors.
        iterations: at most this many.

    Returns:
        `count` pairs (width, height) in the unit of `sizes`, by area.

    Raises:
        InputError: sizes that are not positive and finite, or fewer different ones than `count`.
        UsageError: a count below 1.
    """
    if count < 1:
        raise UsageError(f"{count} anchors", hint="ask for at least 1")
    sizes = np.asarray(sizes, np.float64)
    if sizes.ndim != 2 or sizes.shape[1] != 2 or not np.isfinite(sizes).all() or not (sizes > 0).all():
        raise InputError("box sizes must be (N, 2), finite and above 0", where="kmeans_anchors")
    different = len(np.unique(sizes, axis=0))
    if different < count:
        raise InputError(
            f"{different} different box sizes for {count} anchors",
            where="kmeans_anchors",
            hint="ask for fewer anchors",
        )
    seeds = sizes[size_iou(sizes, sizes.mean(0, keepdims=True)).argmax(0)]
    while len(seeds) < count:
        worst = np.argmin(size_iou(sizes, seeds).max(1))
        seeds = np.concatenate([seeds, sizes[worst][None]])
    centres, best, best_fit = seeds, seeds, -1.0
    previous: np.ndarray | None = None
    for _ in range(iterations):
        iou = size_iou(sizes, centres)
        nearest, fit = iou.argmax(1), float(iou.max(1).mean())
        if fit > best_fit:
            best, best_fit = centres, fit
        if previous is not None and np.array_equal(nearest, previous):
            break
        previous = nearest
        centres = np.stack(
            [sizes[nearest == k].mean(0) if (nearest == k).any() else centres[k] for k in range(count)]
        )
    best = best[np.lexsort((best[:, 0], best.prod(-1)))]
    return tuple((float(w), float(h)) for w, h in best)


def mean_iou(sizes: np.ndarray, anchors: tuple[tuple[float, float], ...]) -> float:
    """The mean, over the boxes, of the IoU with the best anchor: how well the anchors fit."""
    return float(size_iou(np.asarray(sizes, np.float64), np.asarray(anchors, np.float64)).max(1).mean())


def dataset_sizes(dataset: Dataset, preprocess: Preprocess, stride: int) -> np.ndarray:
    """The sizes of a data set's boxes as the network sees them.

    Args:
        dataset: labelled samples; unlabelled ones are passed over.
        preprocess: how an image becomes the network's input: a letterbox makes boxes smaller.
        stride: input pixels per cell.

    Returns:
        (N, 2) float64 widths and heights in cells.
    """
    sizes = [np.empty((0, 2))]
    for index in range(len(dataset)):
        sample = dataset[index]
        if sample.labelled and len(sample.boxes):
            centre, extent = sample.boxes[:, :2], sample.boxes[:, 2:]
            corners = np.concatenate([centre - extent / 2, centre + extent / 2], axis=1)
            corners = preprocess.geometry(*sample.image.shape[:2]).to_input(corners)
            sizes.append(
                (corners[:, 2:] - corners[:, :2]) * [preprocess.width / stride, preprocess.height / stride]
            )
    found = np.concatenate(sizes).astype(np.float64)
    return found[(found > 0).all(-1)]
