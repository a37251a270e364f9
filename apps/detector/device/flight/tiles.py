"""Detection in frames larger than the network's input: overlapping tiles, and one box per object again.

Runs on the board: numpy only. Our design; tiles with an overlap are common practice (SAHI, arXiv 2202.06934),
the merging is ours: two tiles see the same thing where they overlap, so two boxes are of one object if they
agree on that part, however much of the object each tile has. A group of such boxes has one box per tile at
most, and of each side it takes what a tile saw that did not cut it there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from paredown.apps.detector.device.boxes.decode import Detections, iou_matrix, nms
from paredown.apps.detector.device.detect import Detector
from paredown.targets.errors import UsageError

Array = np.ndarray

SAME_IOU = 0.5  # of two boxes, where both tiles see, to be one object
SAME_PART = 0.7  # or of a cut box, the part that the other one covers there
MOST = 200  # boxes of a tile, the best: a model that sees things everywhere must not fill the memory
BORDER = 3.0  # pixels; a box that ends this near to a tile's border may go on behind it


@dataclass(frozen=True)
class Window:
    """A tile's place in the frame, in whole pixels: left, top, right, bottom (the last two exclusive)."""

    left: int
    top: int
    right: int
    bottom: int

    def cut(self, frame: Array) -> Array:
        """The tile's pixels, a view of the frame (H, W, 3)."""
        return frame[self.top : self.bottom, self.left : self.right]


@dataclass(frozen=True)
class Tiling:
    """How frames are cut.

    Attributes:
        size: side of a tile, in pixels of the frame; a frame that is smaller is one tile.
        overlap: least share of a tile that it has in common with the next one, 0 to 0.9.

    Raises:
        UsageError: a value out of range.
    """

    size: int
    overlap: float = 0.25

    def __post_init__(self) -> None:
        """Checks both."""
        if self.size < 32:
            raise UsageError(f"tiles of {self.size} pixels", hint="32 at least")
        if not 0 <= self.overlap <= 0.9:
            raise UsageError(f"tiles that overlap by {self.overlap:g}", hint="0 to 0.9")

    def windows(self, height: int, width: int) -> tuple[Window, ...]:
        """The tiles of a frame of that size, row by row: as few as cover it, spread evenly."""
        rows, columns = (self._starts(length) for length in (height, width))
        return tuple(
            Window(x, y, min(x + self.size, width), min(y + self.size, height))
            for y, x in itertools.product(rows, columns)
        )

    def _starts(self, length: int) -> list[int]:
        if length <= self.size:
            return [0]
        step = self.size - math.ceil(self.overlap * self.size)
        count = math.ceil((length - self.size) / step) + 1
        return [round(i * (length - self.size) / (count - 1)) for i in range(count)]


class Tiled:
    """A detector that looks at a frame tile by tile; takes the steps of a `Detector`.

    Args:
        detector: of one tile.
        tiling: how frames are cut.
    """

    def __init__(self, detector: Detector, tiling: Tiling) -> None:
        self._detector, self._tiling = detector, tiling
        self.names, self._iou = detector.names, float(detector.app["nms_iou"])

    def prepare(self, image: Array) -> list[Any]:
        """The model's inputs, one per tile, of a frame (H, W, 3) BGR."""
        windows = self._tiling.windows(image.shape[0], image.shape[1])
        return [self._detector.prepare(window.cut(image)) for window in windows]

    def infer(self, x: list[Any]) -> list[Any]:
        """The model's outputs, tile by tile."""
        return [self._detector.infer(each) for each in x]

    def decode(self, outputs: list[Any], size: tuple[int, int], threshold: float) -> Detections:
        """What is in a frame of this height and width, boxes normalised to it."""
        windows = self._tiling.windows(*size)
        found = [
            self._detector.decode(each, (window.bottom - window.top, window.right - window.left), threshold)
            for window, each in zip(windows, outputs, strict=True)
        ]
        return merge(found, windows, size, self._iou)


def merge(
    found: Sequence[Detections], windows: Sequence[Window], size: tuple[int, int], iou: float = 0.45
) -> Detections:
    """Makes the detections of a frame of those of its tiles.

    Args:
        found: per tile, boxes normalised to the tile.
        windows: the tiles.
        size: height and width of the frame, pixels.
        iou: for the suppression that follows, as `decode.nms` has it.

    Returns:
        One box per object, normalised to the frame, by descending score. No box reaches beyond the frame.
    """
    pieces = _Pieces(found, windows, size)
    groups = pieces.groups()
    boxes = np.array([pieces.whole(group) for group in groups]).reshape(-1, 4)
    scores = np.array([pieces.scores[group].max() for group in groups], np.float32)
    classes = np.array([pieces.classes[group[0]] for group in groups], np.int64)
    kept = nms(boxes, scores, classes, iou)
    height, width = size
    unit = boxes[kept] / [width, height, width, height]
    return Detections(unit.astype(np.float32), scores[kept], classes[kept])


class _Pieces:
    """All boxes of all tiles, in pixels of the frame: what each tile can know of the objects."""

    def __init__(self, found: Sequence[Detections], windows: Sequence[Window], size: tuple[int, int]) -> None:
        found = [_best(each) for each in found]
        self.edges = np.array([[w.left, w.top, w.right, w.bottom] for w in windows], float)
        self.tiles = np.repeat(np.arange(len(found)), [len(each) for each in found])
        self.scores = np.concatenate([each.scores for each in found])
        self.classes = np.concatenate([each.classes for each in found])
        edge = self.edges[self.tiles]
        extent = np.tile(edge[:, 2:] - edge[:, :2], 2)
        boxes = np.concatenate([each.boxes.reshape(-1, 4) for each in found]).astype(float)
        self.boxes = _clipped(boxes * extent + np.tile(edge[:, :2], 2), edge)
        inner = edge != [0, 0, size[1], size[0]]  # the frame's own edge cuts nothing that anybody else sees
        self.cut = inner & (np.abs(self.boxes - edge) <= BORDER)

    def groups(self) -> list[list[int]]:
        """The boxes of each object, best agreement first, one per tile at most."""
        group = {index: [index] for index in range(len(self.boxes))}
        for _, a, b in sorted(self._agreeing(), reverse=True):
            mine, theirs = group[a], group[b]
            if not {self.tiles[i] for i in mine} & {self.tiles[i] for i in theirs}:
                mine.extend(theirs)
                group.update(dict.fromkeys(theirs, mine))
        return list({id(members): members for members in group.values()}.values())

    def whole(self, group: list[int]) -> Array:
        """The box (4,) of an object: a side is the surest tile's that has not cut it, else the outermost."""
        order = sorted(group, key=lambda index: -self.scores[index])
        sides = []
        for side, outermost in enumerate((min, min, max, max)):
            seen = [self.boxes[i, side] for i in order if not self.cut[i, side]]
            sides.append(seen[0] if seen else outermost(self.boxes[i, side] for i in order))
        return np.array(sides)

    def _agreeing(self) -> list[tuple[float, int, int]]:
        """Pairs of boxes of one class from two tiles that agree where both see, with how well they do."""
        pairs: list[tuple[float, int, int]] = []
        for s, t in itertools.combinations(range(len(self.edges)), 2):
            low = np.maximum(self.edges[s, :2], self.edges[t, :2])
            zone = np.concatenate([low, np.minimum(self.edges[s, 2:], self.edges[t, 2:])])
            if (zone[:2] >= zone[2:]).any():
                continue
            mine, theirs = (self._within(tile, zone) for tile in (s, t))
            a, b = _clipped(self.boxes[mine], zone), _clipped(self.boxes[theirs], zone)
            shared = iou_matrix(a, b)
            areas = np.add.outer(_areas(a), _areas(b))
            common = shared * areas / (1 + shared)
            part_a = self.cut[mine].any(axis=1)[:, None] * common / _areas(a)[:, None]
            part_b = self.cut[theirs].any(axis=1)[None] * common / _areas(b)[None]
            agreement = np.maximum(shared / SAME_IOU, np.maximum(part_a, part_b) / SAME_PART)
            agreement[self.classes[mine][:, None] != self.classes[theirs]] = 0
            rows, columns = np.nonzero(agreement >= 1)
            pairs += zip(
                agreement[rows, columns].tolist(), mine[rows].tolist(), theirs[columns].tolist(), strict=True
            )
        return pairs

    def _within(self, tile: int, zone: Array) -> Array:
        """Indices of a tile's boxes of which something lies in a zone (4,)."""
        mine = np.flatnonzero(self.tiles == tile)
        return mine[_areas(_clipped(self.boxes[mine], zone)) > 0]


def _best(found: Detections) -> Detections:
    order = np.argsort(-found.scores, kind="stable")[:MOST]
    return Detections(found.boxes[order], found.scores[order], found.classes[order])


def _clipped(boxes: Array, edge: Array) -> Array:
    """Boxes (N, 4) cut to an edge (4,), or each to its own (N, 4); empty where they lie outside."""
    low, high = edge[..., :2], edge[..., 2:]
    return np.concatenate([boxes[:, :2].clip(low, high), boxes[:, 2:].clip(low, high)], axis=1)


def _areas(boxes: Array) -> Array:
    return np.asarray((boxes[:, 2:] - boxes[:, :2]).prod(axis=1))
