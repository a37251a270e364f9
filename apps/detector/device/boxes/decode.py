"""From the region head's logits to boxes, in numpy only: this file is copied into the bundle, to the board.

Decoding and suppression are darknet's: score = objectness * class probability, a box may
be reported once per class, and suppression happens within a class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
Anchors = Sequence[tuple[float, float]]


@dataclass(frozen=True, eq=False)
class Detections:
    """What was found in one image, the best first.

    Attributes:
        boxes: float32 (N, 4), x1, y1, x2, y2 normalised to the network's input; may reach outside 0..1.
        scores: float32 (N,), objectness * class probability.
        classes: int64 (N,).
    """

    boxes: Array
    scores: Array
    classes: Array

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, threshold: float) -> Detections:
        """Returns the detections with a score over the threshold: .5 is darknet's for showing them."""
        keep = self.scores > threshold
        return Detections(self.boxes[keep], self.scores[keep], self.classes[keep])


def _sigmoid(x: Array) -> Array:
    return 0.5 * (1.0 + np.tanh(0.5 * x))  # never overflows


def _candidates(outputs: Sequence[Array], anchors: Anchors, threshold: float) -> tuple[Array, Array]:
    """Returns boxes (N, 4) and scores (N, classes) of the cells' anchors that can reach the threshold."""
    xy, wh, obj, cls = (np.asarray(output, dtype=np.float32) for output in outputs)
    count = len(anchors)
    rows, columns = obj.shape[-2:]
    cells = (rows, columns)
    fits = (xy.shape, wh.shape, obj.shape) == ((2 * count, *cells), (2 * count, *cells), (count, *cells))
    if not fits or cls.ndim != 3 or cls.shape[1:] != cells or cls.shape[0] % count or not cls.size:
        shapes = ", ".join(str(a.shape) for a in (xy, wh, obj, cls))
        raise ValueError(f"xy, wh, obj, cls of shapes {shapes} do not fit {count} anchors")
    objectness = _sigmoid(obj)
    anchor, row, column = np.nonzero(objectness > threshold)  # a class probability is at most 1
    objectness = objectness[anchor, row, column]
    xy = xy.reshape(count, 2, rows, columns)[anchor, :, row, column]
    wh = wh.reshape(count, 2, rows, columns)[anchor, :, row, column]
    cls = cls.reshape(count, -1, rows, columns)[anchor, :, row, column]

    grid = np.array([columns, rows], dtype=np.float32)
    centre = (np.stack([column, row], axis=1).astype(np.float32) + _sigmoid(xy)) / grid
    # exp(40) is wider than any image, and its square still fits float32: no infinite area, no NaN in IoU.
    half = np.asarray(anchors, dtype=np.float32)[anchor] * np.exp(np.minimum(wh, 40.0)) / grid / 2
    boxes = np.concatenate([centre - half, centre + half], axis=1)

    exponent = np.exp(cls - cls.max(axis=1, keepdims=True))
    scores = exponent * (objectness / exponent.sum(axis=1))[:, None]
    return boxes.astype(np.float32), scores.astype(np.float32)


def decode(outputs: Sequence[Array], anchors: Anchors, threshold: float) -> tuple[Array, Array, Array]:
    """Decodes the four outputs of ONE image, without suppression.

    Args:
        outputs: logits xy (2A, h, w), wh (2A, h, w), obj (A, h, w), cls (A * classes, h, w), anchor-major.
        anchors: A pairs (width, height) in cells.
        threshold: a (box, class) pair is kept if its score is over it; NaN never is.

    Returns:
        boxes float32 (N, 4), x1 y1 x2 y2 normalised to the network's input; scores float32 (N,);
        classes int64 (N,).

    Raises:
        ValueError: if the shapes do not fit the anchors.
    """
    boxes, scores = _candidates(outputs, anchors, threshold)
    box, category = np.nonzero(scores > threshold)
    return boxes[box], scores[box, category], category


def iou_matrix(a: Array, b: Array) -> Array:
    """Returns intersection over union (N, M) of boxes (N, 4) and (M, 4), x1 y1 x2 y2; 0 for empty ones."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    side = np.maximum(high - low, 0)
    intersection = side[..., 0] * side[..., 1]
    areas = [(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) for boxes in (a, b)]
    union = areas[0][:, None] + areas[1] - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)


def _greedy(overlaps: Array) -> list[int]:
    """Returns what survives of candidates in order of score; overlaps (N, N) says who suppresses whom."""
    alive = np.ones(len(overlaps), dtype=bool)
    keep = []
    for i in range(len(overlaps)):
        if alive[i]:
            keep.append(i)
            alive &= ~overlaps[i]
    return keep


def nms(boxes: Array, scores: Array, classes: Array, iou: float = 0.45) -> Array:
    """Greedy non-maximum suppression within each class.

    Args:
        boxes: (N, 4) x1, y1, x2, y2.
        scores: (N,).
        classes: (N,) integers.
        iou: a box that overlaps a better one of its class by more than this is dropped.

    Returns:
        int64 indices of the survivors, by descending score; equal scores by ascending index.
    """
    order = np.argsort(-scores, kind="stable")
    kept = []
    for category in np.unique(classes):
        members = order[classes[order] == category]
        kept.append(members[_greedy(iou_matrix(boxes[members], boxes[members]) > iou)])
    survivors = np.concatenate(kept) if kept else np.zeros(0, dtype=np.int64)
    survivors = np.sort(survivors)
    return survivors[np.argsort(-scores[survivors], kind="stable")]


def detect(
    outputs: Sequence[Array], anchors: Anchors, threshold: float = 0.005, iou: float = 0.45
) -> Detections:
    """Decodes and suppresses one image: `nms(*decode(...))`, but every pair of boxes is compared only once.

    A box is a candidate of up to all classes, so at the scoring threshold this saves most of the time.

    Args:
        outputs: as for `decode`.
        anchors: A pairs (width, height) in cells.
        threshold: .005 to score mAP, .5 to show.
        iou: see `nms`.

    Raises:
        ValueError: if the shapes do not fit the anchors.
    """
    boxes, scores = _candidates(outputs, anchors, threshold)
    overlaps = iou_matrix(boxes, boxes) > iou
    over = scores > threshold
    survivors = []
    for category in np.flatnonzero(over.any(axis=0)):
        members = np.flatnonzero(over[:, category])
        members = members[np.argsort(-scores[members, category], kind="stable")]
        kept = members[_greedy(overlaps[np.ix_(members, members)])]
        survivors.append(np.stack([kept, np.full_like(kept, category)]))
    box, category = np.concatenate(survivors, axis=1) if survivors else np.zeros((2, 0), dtype=np.int64)
    order = np.lexsort((category, box, -scores[box, category]))
    box, category = box[order], category[order]
    return Detections(boxes[box], scores[box, category], category)
