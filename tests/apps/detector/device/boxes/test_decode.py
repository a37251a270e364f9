"""device/decode.py and draw.py: against loops written after darknet's region layer and do_nms_sort."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lines import lines_of

from paredown.apps.detector.device.boxes.decode import (
    Detections,
    check_thresholds,
    decode,
    detect,
    iou_matrix,
    nms,
)
from paredown.apps.detector.device.drawing.draw import class_colour, draw

pytestmark = pytest.mark.unit

ANCHORS = ((1.0, 1.5), (3.0, 2.0))


def random_outputs(
    seed: int, rows: int = 3, columns: int = 4, classes: int = 3, anchors: int = 2, spread: float = 2.0
):
    rng = np.random.default_rng(seed)
    shapes = [(n, rows, columns) for n in (2 * anchors, 2 * anchors, anchors, anchors * classes)]
    return tuple((rng.standard_normal(shape) * spread).astype(np.float32) for shape in shapes)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def decode_loop(outputs, anchors, threshold):
    """Darknet's formulas, one number at a time, in double: {(anchor, row, column, class): (box, score)}."""
    xy, wh, obj, cls = (a.astype(np.float64) for a in outputs)
    rows, columns = obj.shape[1:]
    classes = len(cls) // len(anchors)
    found = {}
    for a, (pw, ph) in enumerate(anchors):
        for j in range(rows):
            for i in range(columns):
                bx, by = (i + sigmoid(xy[2 * a, j, i])) / columns, (j + sigmoid(xy[2 * a + 1, j, i])) / rows
                bw, bh = pw * math.exp(wh[2 * a, j, i]) / columns, ph * math.exp(wh[2 * a + 1, j, i]) / rows
                e = [math.exp(cls[a * classes + c, j, i]) for c in range(classes)]
                for c in range(classes):
                    score = sigmoid(obj[a, j, i]) * e[c] / sum(e)
                    if score > threshold:
                        found[a, j, i, c] = ((bx - bw / 2, by - bh / 2, bx + bw / 2, by + bh / 2), score)
    return found


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.5])
def test_decode_is_the_formula(seed: int, threshold: float):
    outputs = random_outputs(seed)
    expected = decode_loop(outputs, ANCHORS, threshold)
    assert expected
    boxes, scores, classes = decode(outputs, ANCHORS, threshold)
    np.testing.assert_allclose(scores, [score for _, score in expected.values()], rtol=2e-5)
    np.testing.assert_allclose(boxes, [box for box, _ in expected.values()], rtol=2e-5, atol=2e-6)
    np.testing.assert_array_equal(classes, [key[3] for key in expected])
    assert boxes.dtype == scores.dtype == np.float32 and classes.dtype == np.int64


def test_one_box_by_hand():
    """Zero logits: the centre of the cell, the size of the anchor, objectness 1/2, all classes alike."""
    outputs = [np.zeros((n, 5, 10), np.float32) for n in (2, 2, 1, 4)]
    outputs[2] -= 20
    outputs[2][0, 3, 7] = 0
    boxes, scores, classes = decode(outputs, ((2.0, 1.0),), 0.005)
    np.testing.assert_allclose(scores, [0.125] * 4)
    assert classes.tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(boxes[0], [0.65, 0.6, 0.85, 0.8], rtol=1e-6)  # centre .75, .7; size .2, .2


def overlap(a, b) -> float:
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    if w <= 0 or h <= 0:
        return 0.0
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h
    return w * h / union


def nms_loop(boxes, scores, classes, iou):
    """darknet's do_nms_sort: class by class, best first, each kills what overlaps it more."""
    keep = []
    for c in sorted(set(classes.tolist())):
        order = sorted((i for i in range(len(scores)) if classes[i] == c), key=lambda i: -scores[i])
        while order:
            best = order.pop(0)
            keep.append(best)
            order = [i for i in order if overlap(boxes[best], boxes[i]) <= iou]
    return sorted(keep)


corner = st.integers(0, 6).map(lambda v: v / 8)  # a coarse grid: exact arithmetic, many ties and equal boxes
side = st.integers(1, 6).map(lambda v: v / 8)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(corner, corner, side, side, st.integers(1, 9), st.integers(0, 2)), max_size=25))
def test_nms_is_darknets(rows):
    boxes = np.array([(x, y, x + w, y + h) for x, y, w, h, _, _ in rows], np.float32).reshape(-1, 4)
    scores = np.array([s / 10 for *_, s, _ in rows], np.float32)
    classes = np.array([c for *_, c in rows], np.int64)
    kept = nms(boxes, scores, classes, 0.45)
    assert sorted(kept.tolist()) == nms_loop(boxes.tolist(), scores, classes, 0.45)
    assert (np.diff(scores[kept]) <= 0).all()
    again = nms(boxes[kept], scores[kept], classes[kept], 0.45)
    assert again.tolist() == list(range(len(kept))), "suppressing twice changes nothing"


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4),
       st.sampled_from([0.005, 0.1, 0.5]), st.sampled_from([0.2, 0.45, 0.9]))  # fmt: skip
def test_detect_is_decode_then_nms(seed, rows, columns, classes, threshold, iou):
    outputs = random_outputs(seed, rows, columns, classes)
    found = detect(outputs, ANCHORS, threshold, iou)
    boxes, scores, labels = decode(outputs, ANCHORS, threshold)
    kept = nms(boxes, scores, labels, iou)
    expected = sorted(zip(scores[kept].tolist(), labels[kept].tolist(), boxes[kept].tolist(), strict=True))
    assert (
        sorted(zip(found.scores.tolist(), found.classes.tolist(), found.boxes.tolist(), strict=True))
        == expected
    )
    assert (np.diff(found.scores) <= 0).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(corner, corner, side, side), min_size=1, max_size=6))
def test_iou_is_symmetric_bounded_and_the_formula(rows):
    boxes = np.array([(x, y, x + w, y + h) for x, y, w, h in rows], np.float32)
    result = iou_matrix(boxes, boxes)
    np.testing.assert_array_equal(result, result.T)
    np.testing.assert_array_equal(np.diag(result), 1)
    assert (result >= 0).all() and (result <= 1).all()
    np.testing.assert_allclose(
        result, [[overlap(a, b) for b in boxes.tolist()] for a in boxes.tolist()], rtol=1e-6
    )


def test_a_box_at_exactly_the_threshold_stays():
    """Darknet drops what overlaps MORE: half of a box has an IoU of exactly .5 in binary."""
    boxes = np.array([(0, 0, 1, 1), (0, 0, 1, 0.5)], np.float32)
    scores, classes = np.array([0.9, 0.8], np.float32), np.zeros(2, np.int64)
    below = float(np.nextafter(np.float32(0.5), np.float32(0)))
    assert nms(boxes, scores, classes, 0.5).tolist() == [0, 1]
    assert nms(boxes, scores, classes, below).tolist() == [0]
    # the same two boxes of a network: one cell, anchors of one cell and of its half
    outputs = [np.zeros((count, 1, 1), np.float32) for count in (4, 4, 2, 2)]
    anchors = ((1.0, 1.0), (1.0, 0.5))
    assert len(detect(outputs, anchors, 0.1, 0.5)) == 2
    assert len(detect(outputs, anchors, 0.1, below)) == 1


def test_empty_boxes_overlap_nothing():
    assert iou_matrix(np.zeros((2, 4), np.float32), np.zeros((1, 4), np.float32)).tolist() == [[0.0], [0.0]]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [1e4, -1e4, 3e38, -3e38])
def test_extreme_logits_neither_overflow_nor_warn(value: float):
    outputs = tuple(np.full_like(a, value) for a in random_outputs(0))
    found = detect(outputs, ANCHORS)
    assert np.isfinite(found.boxes).all() and np.isfinite(found.scores).all()
    assert (len(found) > 0) == (value > 0)


def test_nan_logits_are_never_detections():
    outputs = random_outputs(3)
    outputs[2][0, 1, 2] = np.nan
    outputs[3][:3, 0, 0] = np.nan
    outputs[2][0, 0, 0] = 9
    found = detect(outputs, ANCHORS)
    assert len(found) and np.isfinite(found.scores).all()


def test_nothing_found_has_the_shapes_of_nothing():
    outputs = list(random_outputs(0))
    outputs[2] = np.full_like(outputs[2], -50)
    found = detect(outputs, ANCHORS)
    assert (found.boxes.shape, found.scores.shape, found.classes.shape) == ((0, 4), (0,), (0,))
    assert len(found) == 0 and len(found.above(0.5)) == 0
    boxes, scores, classes = decode(outputs, ANCHORS, 0.005)
    assert nms(boxes, scores, classes).shape == (0,)


def test_above_keeps_what_is_over_the_threshold():
    found = detect(random_outputs(1), ANCHORS)
    shown = found.above(0.5)
    assert 0 < len(shown) < len(found)
    assert shown.scores.min() > 0.5 and len(shown) == (found.scores > 0.5).sum()


@pytest.mark.parametrize("broken", range(4))
def test_outputs_that_do_not_fit_the_anchors(broken: int):
    outputs = list(random_outputs(0))
    outputs[broken] = outputs[broken][:-1]
    with pytest.raises(ValueError, match="do not fit 2 anchors"):
        detect(outputs, ANCHORS)
    with pytest.raises(ValueError, match="do not fit 2 anchors"):
        detect([a[None] for a in random_outputs(0)], ANCHORS)


def test_the_scoring_threshold_is_fast_enough_at_416():
    """169 cells, 5 anchors, 20 classes, nearly every pair a candidate: the worst that scoring meets."""
    outputs = random_outputs(0, 13, 13, 20, 5, spread=1.0)
    anchors = ((1.3, 1.7), (3.2, 4.0), (5.1, 8.1), (9.5, 4.8), (11.2, 10.0))
    assert len(detect(outputs, anchors)) > 500
    assert lines_of(lambda: detect(outputs, anchors)) < 100_000  # one a pair would be millions


def test_draw_puts_a_frame_where_the_box_is():
    image = np.full((80, 100, 3), 128, np.uint8)
    found = Detections(
        np.array([[0.2, 0.5, 0.7, 0.9]], np.float32), np.array([0.9], np.float32), np.array([1])
    )
    picture = draw(image, found, ["dog", "car"])
    assert (image == 128).all(), "the caller's image stays"
    assert picture.shape == image.shape
    assert tuple(picture[71, 45]) == class_colour(1)  # row .9 * 79, between columns .2 and .7
    assert tuple(picture[60, 69]) == class_colour(1)  # column .7 * 99
    assert (picture[60, 45] == 128).all(), "the inside is not painted"
    assert class_colour(0) != class_colour(1)


@pytest.mark.filterwarnings("error")
def test_draw_survives_boxes_beyond_the_image_and_unknown_classes():
    boxes = np.array([[-5, -5, 9, 9], [0, 0, np.nan, 1], [0.9, 0.9, 1e30, 2]], np.float32)
    found = Detections(boxes, np.array([0.9, 0.8, 0.7], np.float32), np.array([7, 0, 1]))
    picture = draw(np.zeros((40, 60, 3), np.uint8), found, ["only"])
    assert picture.any()
    nothing = detect(tuple(a * 0 - 50 for a in random_outputs(0)), ANCHORS)
    assert not draw(np.zeros((40, 60, 3), np.uint8), nothing, []).any()


@pytest.mark.parametrize("key", ["show_threshold", "nms_iou"])
@pytest.mark.parametrize("value", ["0.5", "1", None, [0.5], -0.1, 1.5, float("nan")])
def test_thresholds_are_shares(key, value):
    with pytest.raises(ValueError, match=key):
        check_thresholds({"show_threshold": 0.5, "nms_iou": 1, key: value})
    check_thresholds({"show_threshold": 0, "nms_iou": 1})
