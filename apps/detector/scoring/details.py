"""What a report shows of a detector's score: each class, what is taken for what, each image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from paredown.apps.detector.device.boxes.decode import Detections, iou_matrix
from paredown.apps.detector.scoring.score import class_curves
from paredown.apps.detector.scoring.truth import Truth

Array = np.ndarray

IOU = 0.5
RESAMPLES, SEED = 200, 0
POINTS = 60  # of a curve, at most


def details(
    found: Sequence[Detections], truths: Sequence[Truth], names: Sequence[str], threshold: float
) -> dict[str, Any]:
    """As `pipeline.recipe.task.Scores.details` has it.

    Args:
        found: in each image, down to low scores.
        truths: of these images.
        names: of the classes.
        threshold: of the boxes that are shown; matches and images are judged by these.
    """
    weights = np.random.default_rng(SEED).multinomial(
        len(found), np.full(len(found), 1 / len(found)), RESAMPLES
    )
    classes = []
    for category, curve in class_curves(found, truths, weights).items():
        low, high = curve.interval or (None, None)
        every = max(1, -(-len(curve.points) // POINTS))
        points = np.concatenate([curve.points[::every], curve.points[-1:]])
        classes.append(
            {"name": names[category], "score": curve.score, "low": low, "high": high,
             "count": curve.labelled, "curve": points.round(4).tolist()}
        )  # fmt: skip
    pairs: dict[tuple[int, int], int] = {}
    images = []
    for index, (seen, truth) in enumerate(zip(found, truths, strict=True)):
        if not truth.labelled:
            continue
        shown = seen.above(threshold)
        matched = matches(shown, truth)
        for pair in matched:
            pairs[pair] = pairs.get(pair, 0) + 1
        right = sum(true == said for true, said in matched)
        images.append(
            {"index": index, "quality": 1.0 if not matched else right / len(matched),
             "found": [[int(c), round(float(s), 4), *np.round(box, 4).tolist()]
                       for c, s, box in zip(shown.classes, shown.scores, shown.boxes, strict=True)]}
        )  # fmt: skip
    confused = [[true, said, count] for (true, said), count in sorted(pairs.items())]
    return {"classes": classes, "names": list(names), "confusion": confused, "images": images}


def matches(found: Detections, truth: Truth) -> list[tuple[int, int]]:
    """Pairs of a labelled class and the class that was found in its place; -1 where there is none.

    Detections take labelled boxes by descending score, each the one that it overlaps most, of any class. One
    that takes none, and lies on an object that is ignored, counts as nothing.
    """
    overlaps, ignored = _overlaps(found, truth.boxes), truth.ignored
    boxes = truth.boxes
    spared = np.any(_overlaps(found, ignored.boxes, ignored.crowd) >= IOU, axis=1)
    free, pairs = np.ones(len(boxes), bool), []
    for index in np.argsort(-found.scores, kind="stable"):
        row = np.where(free, overlaps[index], 0.0)
        best = int(row.argmax()) if len(row) else -1
        if best >= 0 and row[best] >= IOU:
            free[best] = False
            pairs.append((int(truth.classes[best]), int(found.classes[index])))
        elif not spared[index]:
            pairs.append((-1, int(found.classes[index])))
    return pairs + [(int(truth.classes[index]), -1) for index in np.flatnonzero(free)]


def _overlaps(found: Detections, boxes: Array, crowd: Array | None = None) -> Array:
    """The IoU of detections (F) with boxes (T, 4) cx, cy, w, h; of a crowd how much of the detection it has.

    Returns:
        (F, T).
    """
    if not len(found) or not len(boxes):
        return np.zeros((len(found), len(boxes)))
    centre, size = boxes[:, :2], boxes[:, 2:]
    corners = np.concatenate([centre - size / 2, centre + size / 2], axis=1)
    iou = iou_matrix(found.boxes, corners)
    if crowd is None or not crowd.any():
        return iou
    own, theirs = (found.boxes[:, 2:] - found.boxes[:, :2]).prod(axis=1)[:, None], size.prod(axis=1)
    shared = iou * (own + theirs) / (1 + iou)
    return np.where(crowd, shared / np.maximum(own, 1e-12), iou)
