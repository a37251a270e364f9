"""Which detections of many images are right: the matching that every score of boxes starts from.

The rules are those of the VOC development kit since 2010, see `score`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from paredown.apps.detector.device.boxes.decode import Detections
from paredown.calibration.readers.records import Ignored
from paredown.targets.errors import InputError

Array = np.ndarray
REAL, HARD, CROWD = 0, 1, 2  # kinds of labelled boxes; the last two are ignored


class Labelled(Protocol):
    """What scoring needs of an image: a Sample or a Record of `calibration.datasets` has it."""

    @property
    def boxes(self) -> Array:
        """Float (N, 4) cx, cy, w, h, normalised to the image."""

    @property
    def classes(self) -> Array:
        """Int (N,)."""

    @property
    def labelled(self) -> bool:
        """Whether somebody looked for objects in this image."""

    @property
    def ignored(self) -> Ignored:
        """Objects that no score counts."""


class Labels(Protocol):
    """A data set, or a list of samples; only boxes and classes are looked at."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Labelled: ...


@dataclass(frozen=True, eq=False)
class Flat:
    """Boxes of many images in one list: xyxy, class, image and kind of each."""

    boxes: Array
    classes: Array
    images: Array
    kinds: Array

    def of(self, category: int) -> Flat:
        """Those of a class."""
        return self.at(self.classes == category)

    def at(self, chosen: Array) -> Flat:
        """Those at these places, or where a mask is true."""
        return Flat(self.boxes[chosen], self.classes[chosen], self.images[chosen], self.kinds[chosen])

    @property
    def real(self) -> Array:
        """Classes of the boxes that are not ignored, each once."""
        return np.unique(self.classes[self.kinds == REAL])


def _corners(boxes: Array) -> Array:
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    return np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1)


def flatten(detections: Sequence[Detections], labels: Labels) -> tuple[Flat, Array, Flat]:
    """Returns detections, their scores and the boxes of the labels, ignored too, of the labelled images."""
    if len(detections) != len(labels):
        raise ValueError(f"detections of {len(detections)} images, labels of {len(labels)}")
    found: list[tuple[Array, Array, Array, Array]] = []
    truth: list[tuple[Array, Array, Array, Array]] = []
    for image, seen in enumerate(detections):
        label = labels[image]
        if not label.labelled:
            continue  # nobody knows what is there: a detection is neither right nor wrong
        found.append((seen.boxes, seen.classes, np.full(len(seen), image), seen.scores))
        ignored = label.ignored
        for objects, kinds in (
            (label, np.full(len(label.classes), REAL)),
            (ignored, np.where(ignored.crowd, CROWD, HARD)),
        ):
            images = np.full(len(objects.classes), image)
            truth.append((_corners(objects.boxes), objects.classes, images, kinds))
    if not sum((kinds == REAL).sum() for *_, kinds in truth):
        raise InputError("no labelled boxes to score against", hint="check data.test and data.label_names")
    boxes, classes, images, scores = (np.concatenate(part) for part in zip(*found, strict=True))
    kinds = np.full(len(classes), REAL)
    detected = Flat(boxes.astype(np.float64).reshape(-1, 4), classes, images, kinds)
    return (
        detected,
        scores.astype(np.float64),
        Flat(*(np.concatenate(part) for part in zip(*truth, strict=True))),
    )


def _pairs(found: Flat, truth: Flat, chosen: Array) -> tuple[Array, Array]:
    """Every pair of a detection and one of the chosen boxes in its image, by detection; places of both."""
    images = truth.images[chosen]
    first, last = (np.searchsorted(images, found.images, side) for side in ("left", "right"))
    counts = last - first
    mine = np.repeat(np.arange(len(counts)), counts)
    offsets = np.arange(len(mine)) - np.repeat(np.cumsum(counts) - counts, counts)
    return mine, chosen[np.repeat(first, counts) + offsets]


def _shared(a: Array, b: Array) -> Array:
    """The area (N,) that boxes (N, 4) and as many others have in common."""
    low, high = np.maximum(a[:, :2], b[:, :2]), np.minimum(a[:, 2:], b[:, 2:])
    side = np.maximum(high - low, 0)
    area: Array = side[:, 0] * side[:, 1]
    return area


def _area(boxes: Array) -> Array:
    area: Array = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return area


def matched(found: Flat, truth: Flat, iou: float) -> tuple[Array, Array]:
    """Says which detections are right, and which count at all.

    Args:
        found: of one class, by descending score.
        truth: boxes of that class, image by image.
        iou: the least overlap of a right detection.

    Returns:
        Two masks of the detections.
    """
    claimed = np.full(len(found.boxes), -1)
    excused = np.zeros(len(found.boxes), dtype=bool)
    mine, theirs = _pairs(found, truth, np.flatnonzero(truth.kinds != CROWD))
    a, b = found.boxes[mine], truth.boxes[theirs]
    shared = _shared(a, b)
    union = _area(a) + _area(b) - shared
    overlaps = np.divide(shared, union, out=np.zeros_like(union), where=union > 0)
    # of each detection the first of the boxes that it overlaps most
    order = np.lexsort((np.arange(len(mine)), -overlaps, mine))
    which, best = np.unique(mine[order], return_index=True)
    best = order[best]
    claimed[which] = np.where(overlaps[best] >= iou, theirs[best], -1)
    mine, theirs = _pairs(found, truth, np.flatnonzero(truth.kinds == CROWD))
    boxes = found.boxes[mine]
    area = (boxes[:, 2:] - boxes[:, :2]).clip(0).prod(axis=-1)
    shared = _shared(boxes, truth.boxes[theirs])
    share = np.divide(shared, area, out=np.zeros_like(shared), where=area > 0)
    excused[mine[share >= iou]] = True
    claims = claimed >= 0
    hard = claims.copy()
    hard[claims] = truth.kinds[claimed[claims]] == HARD
    _, first = np.unique(claimed, return_index=True)
    correct = np.zeros(len(claimed), dtype=bool)
    correct[first] = True
    correct &= claims & ~hard
    return correct, correct | ~(hard | excused)


@dataclass(frozen=True, eq=False)
class Ranked:
    """One class after matching: its detections by descending score, and its boxes; nothing ignored.

    Attributes:
        correct: bool (D,), which detections are right.
        found: (D,), the image of each detection.
        truth: (T,), the image of each labelled box.
    """

    category: int
    correct: Array
    found: Array
    truth: Array


def rank_classes(detections: Sequence[Detections], labels: Labels, iou: float) -> list[Ranked]:
    """Matches every class that has a box, in the order of the classes."""
    found, scores, truth = flatten(detections, labels)
    order = np.argsort(-scores, kind="stable")
    found, result = found.at(order), []
    for category in truth.real:
        mine, seen = truth.of(category), found.of(category)
        correct, counts = matched(seen, mine, iou)
        real = mine.images[mine.kinds == REAL]
        result.append(Ranked(int(category), correct[counts], seen.images[counts], real))
    return result
