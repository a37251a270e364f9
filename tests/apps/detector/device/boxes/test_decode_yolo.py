"""device/boxes/decode.py for [yolo] heads: against loops after darknet's yolo layer and diounms_sort."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paredown.apps.detector.device.boxes import decode as module
from paredown.apps.detector.device.boxes.decode import YoloHead, YoloHeads, decode, decoder_of, detect
from paredown.targets.errors import InputError

pytestmark = pytest.mark.unit

WIDE = YoloHead(((30.0, 20.0), (50.0, 90.0)), 1.05)
NARROW = YoloHead(((8.0, 12.0),), 2.0, new_coords=True)
PLAIN = YoloHead(((10.0, 14.0), (23.0, 27.0), (37.0, 58.0)))
HEADS = YoloHeads((WIDE, NARROW, PLAIN), (96, 64))
GRIDS = ((2, 3), (4, 6), (3, 2))


def random_outputs(seed: int, heads: YoloHeads = HEADS, classes: int = 3, spread: float = 2.0):
    rng = np.random.default_rng(seed)
    shapes = [
        (n, *grid)
        for head, grid in zip(heads.heads, GRIDS, strict=False)
        for a in [len(head.anchors)]
        for n in (2 * a, 2 * a, a, classes * a)
    ]
    return [(rng.standard_normal(shape) * spread).astype(np.float32) for shape in shapes]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def decode_loop(outputs, decoder: YoloHeads, threshold: float):
    """Darknet's get_yolo_box and get_yolo_detections, one number at a time, in double."""
    found = []
    width, height = decoder.input
    for number, head in enumerate(decoder.heads):
        xy, wh, obj, cls = (a.astype(np.float64) for a in outputs[4 * number : 4 * number + 4])
        rows, columns = obj.shape[1:]
        classes = len(cls) // len(head.anchors)
        for n, (bias_w, bias_h) in enumerate(head.anchors):
            for j in range(rows):
                for i in range(columns):
                    # forward_yolo_layer: logistic, then x * scale_x_y - 0.5 * (scale_x_y - 1)
                    tx, ty = (
                        sigmoid(xy[2 * n + k, j, i]) * head.scale_x_y - 0.5 * (head.scale_x_y - 1)
                        for k in (0, 1)
                    )
                    tw, th = wh[2 * n, j, i], wh[2 * n + 1, j, i]
                    x, y = (i + tx) / columns, (j + ty) / rows
                    if head.new_coords:  # the convolution before it is logistic
                        w = sigmoid(tw) * sigmoid(tw) * 4 * bias_w / width
                        h = sigmoid(th) * sigmoid(th) * 4 * bias_h / height
                    else:
                        w, h = math.exp(tw) * bias_w / width, math.exp(th) * bias_h / height
                    for c in range(classes):
                        score = sigmoid(obj[n, j, i]) * sigmoid(cls[n * classes + c, j, i])
                        if score > threshold:
                            found.append(((x - w / 2, y - h / 2, x + w / 2, y + h / 2), score, c))
    return found


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.5])
def test_decode_is_darknets_formula(seed: int, threshold: float):
    outputs = random_outputs(seed)
    expected = decode_loop(outputs, HEADS, threshold)
    assert expected
    boxes, scores, classes = decode(outputs, HEADS, threshold)
    np.testing.assert_allclose(scores, [score for _, score, _ in expected], rtol=2e-5)
    np.testing.assert_allclose(boxes, [box for box, _, _ in expected], rtol=2e-5, atol=2e-6)
    np.testing.assert_array_equal(classes, [category for _, _, category in expected])
    assert boxes.dtype == scores.dtype == np.float32


def overlap(a, b) -> float:
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if w <= 0 or h <= 0:
        return 0.0
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h
    return w * h / union


def distance_overlap(a, b, beta: float) -> float:
    """box_diounms: the overlap less (distance^2 / diagonal^2) ^ beta."""
    c = (max(a[2], b[2]) - min(a[0], b[0])) ** 2 + (max(a[3], b[3]) - min(a[1], b[1])) ** 2
    dx, dy = (a[0] + a[2] - b[0] - b[2]) / 2, (a[1] + a[3] - b[1] - b[3]) / 2
    return overlap(a, b) - (((dx * dx + dy * dy) / c) ** beta if c else 0)


def detect_loop(outputs, decoder: YoloHeads, threshold: float, iou: float):
    kept = []
    found = decode_loop(outputs, decoder, threshold)
    for category in sorted({c for _, _, c in found}):
        order = sorted((f for f in found if f[2] == category), key=lambda f: -f[1])
        while order:
            best = order.pop(0)
            kept.append(best)
            beta = decoder.nms_beta
            order = [
                f
                for f in order
                if (overlap(best[0], f[0]) if beta is None else distance_overlap(best[0], f[0], beta)) <= iou
            ]
    return sorted(kept, key=lambda f: -f[1])


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.sampled_from([None, 0.6, 1.0]), st.sampled_from([0.05, 0.3]),
    st.sampled_from([0.1, 0.45]),
)  # fmt: skip
def test_detect_is_darknets(seed: int, beta: float | None, threshold: float, iou: float):
    decoder = YoloHeads(HEADS.heads, HEADS.input, beta)
    outputs = random_outputs(seed, spread=1.5)
    expected = detect_loop(outputs, decoder, threshold, iou)
    found = detect(outputs, decoder, threshold, iou)
    assert len(found) == len(expected)
    np.testing.assert_allclose(found.scores, [score for _, score, _ in expected], rtol=2e-5)
    np.testing.assert_allclose(found.boxes, [box for box, _, _ in expected], rtol=1e-4, atol=1e-5)
    assert found.classes.tolist() == [category for _, _, category in expected]


@pytest.mark.parametrize("beta", [None, 0.6])
def test_many_boxes_are_suppressed_alike_row_by_row(beta: float | None, monkeypatch):
    decoder = YoloHeads(HEADS.heads, HEADS.input, beta)
    outputs = random_outputs(3)
    whole = detect(outputs, decoder)
    monkeypatch.setattr(module, "MOST_AT_ONCE", 0)
    rows = detect(outputs, decoder)
    np.testing.assert_array_equal(whole.boxes, rows.boxes)
    np.testing.assert_array_equal(whole.scores, rows.scores)


def test_one_box_by_hand():
    """Zero logits: the centre of the cell, the size of the anchor, objectness and every class 1/2."""
    outputs = [np.zeros((n, 2, 4), np.float32) for n in (2, 2, 1, 3)]
    outputs[2] -= 20
    outputs[2][0, 1, 2] = 0
    for head, side in ((YoloHead(((32.0, 16.0),), 1.2), 1.0), (YoloHead(((32.0, 16.0),), 2.0, True), 1.0)):
        boxes, scores, classes = decode(outputs, YoloHeads((head,), (128, 64)), 0.005)
        np.testing.assert_allclose(scores, [0.25] * 3)
        assert classes.tolist() == [0, 1, 2]
        w, h = side * 32 / 128, side * 16 / 64
        np.testing.assert_allclose(boxes[0], [0.625 - w / 2, 0.75 - h / 2, 0.625 + w / 2, 0.75 + h / 2])


def test_huge_and_broken_logits_are_no_numbers_of_the_result():
    outputs = random_outputs(0)
    outputs[1][:] = 1e30
    outputs[4][0, 0, 0] = np.nan
    outputs[6][0, 1, 1] = np.nan
    found = detect(outputs, HEADS)
    assert np.isfinite(found.scores).all() and len(found)


@pytest.mark.parametrize("count", [4, 8, 13])
def test_another_number_of_outputs(count: int):
    outputs = (random_outputs(0) * 2)[:count]
    with pytest.raises(ValueError, match=f"{count} outputs do not fit 3 heads"):
        detect(outputs, HEADS)


def test_outputs_that_do_not_fit_the_anchors():
    outputs = random_outputs(0)
    with pytest.raises(ValueError, match="do not fit 1 anchors"):
        detect([*outputs[4:8], *outputs[:4], *outputs[8:]], YoloHeads((NARROW, NARROW, PLAIN), (96, 64)))


def test_a_bundle_holds_all_of_it():
    decoder = YoloHeads(HEADS.heads, (96, 64), 0.6)
    facts = json.loads(json.dumps({"yolo": decoder.to_dict(), "nms_iou": 0.45}))
    assert decoder_of(facts) == decoder
    assert decoder_of({"anchors": [[1.0, 2.0]]}) == [[1.0, 2.0]]
    facts["yolo"]["version"] = 2
    with pytest.raises(
        InputError, match=r"app.json: describes \[yolo\] heads in version 2, known is 1; update"
    ):
        decoder_of(facts)
