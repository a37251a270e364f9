"""Matching all images of a class at once is matching them one by one."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from paredown.apps.detector.device.boxes.decode import iou_matrix
from paredown.apps.detector.scoring.matching import CROWD, HARD, REAL, Flat, matched

ends = st.tuples(st.integers(0, 6), st.integers(0, 6)).map(lambda pair: tuple(sorted(pair)))
box = st.tuples(ends, ends).map(lambda b: (b[0][0], b[1][0], b[0][1], b[1][1]))  # some without area
seen = st.lists(st.tuples(st.integers(0, 3), box), max_size=9)
labelled = st.lists(st.tuples(st.integers(0, 3), st.sampled_from([REAL, HARD, CROWD]), box), max_size=9)


def flat(images: list[int], kinds: list[int], boxes: list[tuple[int, ...]]) -> Flat:
    corners = np.array(boxes, np.float64).reshape(-1, 4) / 8
    return Flat(corners, np.zeros(len(boxes), int), np.array(images, int), np.array(kinds, int))


def one_by_one(found: Flat, truth: Flat, iou: float) -> tuple[list[bool], list[bool]]:
    """The rules as the docstring of `score` says them, a detection at a time."""
    right, counts, taken = [], [], set()
    for box_, image in zip(found.boxes, found.images, strict=True):
        here = np.flatnonzero(truth.images == image)
        single, crowds = here[truth.kinds[here] != CROWD], here[truth.kinds[here] == CROWD]
        overlaps = iou_matrix(box_[None], truth.boxes[single])[0]
        claimed = int(single[overlaps.argmax()]) if len(single) and overlaps.max() >= iou else None
        good = claimed is not None and truth.kinds[claimed] == REAL and claimed not in taken
        taken |= {claimed}
        lies = False
        for region in truth.boxes[crowds]:
            sides = np.minimum(box_[2:], region[2:]) - np.maximum(box_[:2], region[:2])
            area = (box_[2] - box_[0]) * (box_[3] - box_[1])
            lies |= bool(area > 0 and sides.clip(0).prod() / area >= iou)
        hard = claimed is not None and truth.kinds[claimed] == HARD
        right.append(good)
        counts.append(good or not (hard or lies))
    return right, counts


@settings(max_examples=300, deadline=None)
@given(seen, labelled, st.sampled_from([0.25, 0.5, 0.75]))
def test_it_is_matching_one_by_one(detections, labels, iou):
    labels = sorted(labels, key=lambda label: label[0])
    found = flat([i for i, _ in detections], [REAL] * len(detections), [b for _, b in detections])
    truth = flat([i for i, *_ in labels], [k for _, k, _ in labels], [b for *_, b in labels])
    right, counts = matched(found, truth, iou)
    assert (right.tolist(), counts.tolist()) == one_by_one(found, truth, iou)
