"""From the heads' logits to boxes, in numpy only: this file is copied into the bundle, to the board.

Decoding and suppression of [region] and [yolo] are darknet's: score = objectness * class probability, a box
may be reported once per class, and suppression happens within a class. Other heads are those of `heads.py`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from paredown.apps.detector.device.boxes.heads import (
    Heads,
    YoloHead,
    YoloHeads,
    check_version,
    from_dict,
    separated,
)

Array = np.ndarray
#: Of a [region]: width and height in cells.
Anchors = Sequence[tuple[float, float]]

MOST_AT_ONCE = 8000  # boxes whose pairs are compared at once: they take 64 million floats, several times


Decoder = Anchors | YoloHeads | Heads


def decoder_of(app: Mapping[str, Any]) -> Decoder:
    """How the outputs of a bundle's network are decoded.

    Args:
        app: the bundle's app.json, with "anchors" (of a [region]), "yolo" or "heads".

    Raises:
        InputError: a later version of paredown wrote it.
    """
    if "heads" in app:
        return from_dict(app["heads"])
    if "yolo" not in app:
        anchors: Anchors = app["anchors"]
        return anchors
    facts = app["yolo"]
    check_version(facts, "[yolo] heads")
    heads = tuple(
        YoloHead(tuple((w, h) for w, h in head["anchors"]), head["scale_x_y"], head["new_coords"])
        for head in facts["heads"]
    )
    width, height = facts["input"]
    return YoloHeads(heads, (width, height), facts["nms_beta"])


def check_thresholds(app: Mapping[str, Any]) -> None:
    """The scores and overlaps of a bundle's app.json are shares.

    Raises:
        ValueError: one is none.
        KeyError: one is missing.
    """
    for key in ("show_threshold", "nms_iou"):
        share = app[key]
        if not isinstance(share, int | float) or not 0 <= share <= 1:  # "0.5" is no number
            raise ValueError(f"{key} = {share!r}")


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


@dataclass(frozen=True, eq=False)
class _Boxes:
    """The logits of a head's boxes that can reach a threshold, box by box."""

    anchor: Array
    cell: Array  # (N, 2) column, row
    grid: Array  # columns, rows
    xy: Array
    wh: Array
    objectness: Array
    cls: Array


def _likely(outputs: Sequence[Array], count: int, threshold: float) -> _Boxes:
    """Returns the boxes of a head of `count` anchors whose objectness is over the threshold."""
    xy, wh, obj, cls = (np.asarray(output, dtype=np.float32) for output in outputs)
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
    cell = np.stack([column, row], axis=1).astype(np.float32)
    return _Boxes(anchor, cell, grid, xy, wh, objectness, cls)


def _region(outputs: Sequence[Array], anchors: Anchors, threshold: float) -> tuple[Array, Array]:
    """Returns boxes (N, 4) and scores (N, classes) of a [region]."""
    found = _likely(outputs, len(anchors), threshold)
    centre = (found.cell + _sigmoid(found.xy)) / found.grid
    # exp(40) is wider than any image, and its square still fits float32: no infinite area, no NaN in IoU.
    half = (
        np.asarray(anchors, dtype=np.float32)[found.anchor]
        * np.exp(np.minimum(found.wh, 40.0))
        / found.grid
        / 2
    )
    exponent = np.exp(found.cls - found.cls.max(axis=1, keepdims=True))
    scores = exponent * (found.objectness / exponent.sum(axis=1))[:, None]
    return np.concatenate([centre - half, centre + half], axis=1), scores


def _yolo(
    outputs: Sequence[Array], head: YoloHead, size: tuple[int, int], threshold: float
) -> tuple[Array, Array]:
    """Returns boxes (N, 4) and scores (N, classes) of a [yolo]."""
    found = _likely(outputs, len(head.anchors), threshold)
    scale = np.float32(head.scale_x_y)
    centre = (found.cell + (scale * _sigmoid(found.xy) - (scale - 1) / 2)) / found.grid
    grown = (2 * _sigmoid(found.wh)) ** 2 if head.new_coords else np.exp(np.minimum(found.wh, 40.0))
    sides = np.asarray(head.anchors, dtype=np.float32)[found.anchor] * grown
    half = sides / np.asarray(size, dtype=np.float32) / 2
    scores = _sigmoid(found.cls) * found.objectness[:, None]
    return np.concatenate([centre - half, centre + half], axis=1), scores


def _free(outputs: Sequence[Array], heads: Heads, level: int, threshold: float) -> tuple[Array, Array]:
    """Returns boxes (N, 4) and scores (N, classes) of a level of "v8" or "yolox"."""
    box, *obj, cls = outputs
    scores = _sigmoid(cls)
    likely = _sigmoid(obj[0][0]) if obj else scores.max(axis=0)  # a class probability is at most 1
    row, column = np.nonzero(likely > threshold)
    box, scores = box[:, row, column], scores[:, row, column].T
    corner = np.stack([column, row]).astype(np.float32)
    if heads.kind == "v8":
        low, high = np.split(_distances(box.reshape(4, heads.bins, -1)), 2)
        corner += 0.5
        low, high = corner - low, corner + high
    else:
        centre, half = corner + box[:2], np.exp(np.minimum(box[2:], 40.0)) / 2
        low, high = centre - half, centre + half
        scores = scores * likely[row, column][:, None]
    size = np.asarray(heads.input, dtype=np.float32)[:, None]
    stride = np.float32(heads.strides[level])
    return np.concatenate([low * stride / size, high * stride / size]).T, scores


def _distances(bins: Array) -> Array:
    """Returns the mean (4, N) of a softmax over (4, bins, N); a single bin is the distance."""
    if bins.shape[1] == 1:
        return bins[:, 0]
    exponent = np.exp(bins - bins.max(axis=1, keepdims=True))
    places = np.arange(bins.shape[1], dtype=np.float32)[:, None]
    return np.asarray((exponent * places).sum(axis=1) / exponent.sum(axis=1))


def _prior(outputs: Sequence[Array], heads: Heads, level: int, threshold: float) -> tuple[Array, Array]:
    """Returns boxes (N, 4) and scores (N, classes) of a level of "ssd"."""
    box, cls = outputs
    rows, columns = cls.shape[-2:]
    sizes = np.asarray(heads.priors[level], dtype=np.float32)
    count = len(sizes)
    cls = cls.reshape(count, -1, rows, columns)
    exponent = np.exp(cls - cls.max(axis=1, keepdims=True))
    scores = exponent[:, 1:] / exponent.sum(axis=1, keepdims=True)
    which, row, column = np.nonzero(scores.max(axis=1) > threshold)
    box, scores = box.reshape(count, 4, rows, columns)[which, :, row, column], scores[which, :, row, column]
    size = np.asarray(heads.input, dtype=np.float32)
    # Cells of a stride may reach beyond the input; those without share it.
    step = heads.strides[level] / size if heads.strides else 1 / np.array([columns, rows], dtype=np.float32)
    near, scale = (np.float32(variance) for variance in heads.variances)
    sides = sizes[which] / size
    centre = (np.stack([column, row], axis=1).astype(np.float32) + 0.5) * step + near * box[:, :2] * sides
    half = sides * np.exp(np.minimum(scale * box[:, 2:], 40.0)) / 2
    return np.concatenate([centre - half, centre + half], axis=1), scores


def _level(outputs: Sequence[Array], heads: Heads, level: int, threshold: float) -> tuple[Array, Array]:
    outputs = [np.asarray(output, dtype=np.float32) for output in outputs]
    boxes, sizes = heads.layout(level)
    cells = outputs[-1].shape[1:]
    background = heads.kind == "ssd"
    fits = all(part.shape == (boxes * n, *cells) for part, n in zip(outputs, sizes, strict=False))
    classes, rest = divmod(len(outputs[-1]), boxes)
    if not fits or len(cells) != 2 or rest or classes <= background:
        shapes = ", ".join(str(part.shape) for part in outputs)
        raise ValueError(f"{', '.join(heads.parts)} of shapes {shapes} do not fit level {level + 1}")
    return (_prior if background else _free)(outputs, heads, level, threshold)


def _candidates(outputs: Sequence[Array], decoder: Decoder, threshold: float) -> tuple[Array, Array]:
    """Returns boxes (N, 4) and scores (N, classes) of the cells' anchors that can reach the threshold."""
    if not isinstance(decoder, YoloHeads | Heads):
        boxes, scores = _region(outputs, decoder, threshold)
    else:
        apart, n = separated(outputs, decoder), len(decoder.parts)
        parts = [
            _yolo(apart[n * i : n * i + n], decoder.heads[i], decoder.input, threshold)
            if isinstance(decoder, YoloHeads)
            else _level(apart[n * i : n * i + n], decoder, i, threshold)
            for i in range(decoder.levels)
        ]
        boxes, scores = (np.concatenate(part) for part in zip(*parts, strict=True))
    return boxes.astype(np.float32), scores.astype(np.float32)


def classes_of(outputs: Sequence[Array], decoder: Decoder) -> int:
    """How many classes the outputs of one image tell apart; see `decode`."""
    return int(_candidates(outputs, decoder, math.inf)[1].shape[1])


def decode(outputs: Sequence[Array], decoder: Decoder, threshold: float) -> tuple[Array, Array, Array]:
    """Decodes the outputs of ONE image, without suppression.

    Args:
        outputs: logits xy (2A, h, w), wh (2A, h, w), obj (A, h, w), cls (A * classes, h, w), anchor-major; of
            one head after the other; of other heads their parts, or one output per level.
        decoder: the A pairs (width, height) in cells of a [region], or the heads of another network.
        threshold: a (box, class) pair is kept if its score is over it; NaN never is.

    Returns:
        boxes float32 (N, 4), x1 y1 x2 y2 normalised to the network's input; scores float32 (N,);
        classes int64 (N,).

    Raises:
        ValueError: if the shapes do not fit the anchors.
    """
    boxes, scores = _candidates(outputs, decoder, threshold)
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


def distance_iou(a: Array, b: Array, beta: float) -> Array:
    """Returns `iou_matrix` less the distance of the centres (over the diagonal of both, squared) ^ beta."""
    spread = np.maximum(a[:, None, 2:], b[None, :, 2:]) - np.minimum(a[:, None, :2], b[None, :, :2])
    apart = (a[:, None, :2] + a[:, None, 2:] - b[None, :, :2] - b[None, :, 2:]) / 2
    diagonal, distance = (spread * spread).sum(-1), (apart * apart).sum(-1)
    share = np.divide(distance, diagonal, out=np.zeros_like(distance), where=diagonal > 0)
    return iou_matrix(a, b) - share**beta


def _overlaps(a: Array, b: Array, decoder: Decoder) -> Array:
    if isinstance(decoder, YoloHeads) and decoder.nms_beta is not None:
        return distance_iou(a, b, decoder.nms_beta)
    return iou_matrix(a, b)


def _row(boxes: Array, decoder: Decoder, iou: float, i: int) -> Array:
    return _overlaps(boxes[i : i + 1], boxes, decoder)[0] > iou


def _greedy(overlaps: Array) -> list[int]:
    """Returns what survives of candidates in order of score; overlaps (N, N) says who suppresses whom."""
    return _survivors(len(overlaps), lambda i: overlaps[i])


def _survivors(count: int, suppressed: Callable[[int], Array]) -> list[int]:
    alive = np.ones(count, dtype=bool)
    keep = []
    for i in range(count):
        if alive[i]:
            keep.append(i)
            alive &= ~suppressed(i)
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
    outputs: Sequence[Array], decoder: Decoder, threshold: float = 0.005, iou: float = 0.45
) -> Detections:
    """Decodes and suppresses one image: `nms(*decode(...))`, but every pair of boxes is compared only once.

    A box is a candidate of up to all classes, so at the scoring threshold this saves most of the time.

    Args:
        outputs: as for `decode`.
        decoder: as for `decode`.
        threshold: .005 to score mAP, .5 to show.
        iou: see `nms`; of heads with `nms_beta` the limit of `distance_iou`.

    Raises:
        ValueError: if the shapes do not fit the anchors.
    """
    boxes, scores = _candidates(outputs, decoder, threshold)
    over = scores > threshold
    if isinstance(decoder, YoloHeads | Heads):  # many heads make many boxes, and most of them reach no class
        boxes, scores, over = (part[over.any(axis=1)] for part in (boxes, scores, over))
    overlaps = _overlaps(boxes, boxes, decoder) > iou if len(boxes) <= MOST_AT_ONCE else None
    survivors = []
    for category in np.flatnonzero(over.any(axis=0)):
        members = np.flatnonzero(over[:, category])
        members = members[np.argsort(-scores[members, category], kind="stable")]
        if overlaps is not None:
            kept = members[_greedy(overlaps[np.ix_(members, members)])]
        else:
            some = boxes[members]
            rows = functools.partial(_row, some, decoder, iou)
            kept = members[_survivors(len(members), rows)]
        survivors.append(np.stack([kept, np.full_like(kept, category)]))
    box, category = np.concatenate(survivors, axis=1) if survivors else np.zeros((2, 0), dtype=np.int64)
    order = np.lexsort((category, box, -scores[box, category]))
    box, category = box[order], category[order]
    return Detections(boxes[box], scores[box, category], category)
