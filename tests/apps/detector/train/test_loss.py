"""region_loss against a plain loop written after darknet's region_layer.c: its deltas are our gradient."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paredown.apps.detector.train.loss import WARM_IMAGES, RegionWeights, box_iou, region_loss, region_terms
from paredown.targets.errors import InputError

pytestmark = pytest.mark.unit

ANCHORS = ((1.04, 1.70), (1.66, 2.62), (2.61, 3.63))
CLASSES = 4


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def loop_iou(a, b):
    def overlap(x1, w1, x2, w2):
        return min(x1 + w1 / 2, x2 + w2 / 2) - max(x1 - w1 / 2, x2 - w2 / 2)

    w, h = overlap(a[0], a[2], b[0], b[2]), overlap(a[1], a[3], b[1], b[3])
    shared = w * h if w > 0 and h > 0 else 0.0
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


def darknet_delta(outputs, targets, seen):
    """The deltas of forward_region_layer with the logistic's gradient, as (xy, wh, obj, cls) arrays."""
    xy, wh, obj, cls = (part.detach().double().numpy() for part in outputs)
    deltas = [np.zeros_like(part) for part in (xy, wh, obj, cls)]
    images, boxes, height, width = obj.shape

    def region_box(b, n, j, i):
        return (
            (i + sigmoid(xy[b, 2 * n, j, i])) / width,
            (j + sigmoid(xy[b, 2 * n + 1, j, i])) / height,
            math.exp(wh[b, 2 * n, j, i]) * ANCHORS[n][0] / width,
            math.exp(wh[b, 2 * n + 1, j, i]) * ANCHORS[n][1] / height,
        )

    def box_delta(truth, b, n, j, i, scale):
        wanted = (
            truth[0] * width - i,
            truth[1] * height - j,
            math.log(truth[2] * width / ANCHORS[n][0]),
            math.log(truth[3] * height / ANCHORS[n][1]),
        )
        for k in range(2):
            s = sigmoid(xy[b, 2 * n + k, j, i])
            deltas[0][b, 2 * n + k, j, i] = scale * (wanted[k] - s) * s * (1 - s)
            deltas[1][b, 2 * n + k, j, i] = scale * (wanted[2 + k] - wh[b, 2 * n + k, j, i])

    def logistic(value):
        return value * (1 - value)

    for b in range(images):
        truths = [tuple(map(float, box)) for box in targets[b][1]]
        for j in range(height):
            for i in range(width):
                for n in range(boxes):
                    o = sigmoid(obj[b, n, j, i])
                    best = max((loop_iou(region_box(b, n, j, i), truth) for truth in truths), default=0)
                    deltas[2][b, n, j, i] = 0 if best > 0.6 else (0 - o) * logistic(o)
                    if seen < 12800:
                        w, h = ANCHORS[n][0] / width, ANCHORS[n][1] / height
                        box_delta(((i + 0.5) / width, (j + 0.5) / height, w, h), b, n, j, i, 0.01)
        for label, truth in zip(targets[b][0].tolist(), truths, strict=True):
            i, j = int(truth[0] * width), int(truth[1] * height)
            shifted = [loop_iou((0, 0, w / width, h / height), (0, 0, *truth[2:])) for w, h in ANCHORS]
            n = int(np.argmax(shifted))
            iou = loop_iou(region_box(b, n, j, i), truth)
            box_delta(truth, b, n, j, i, 2 - truth[2] * truth[3])
            o = sigmoid(obj[b, n, j, i])
            deltas[2][b, n, j, i] = 5 * (iou - o) * logistic(o)
            scores = cls[b, n * CLASSES : (n + 1) * CLASSES, j, i]
            soft = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
            deltas[3][b, n * CLASSES : (n + 1) * CLASSES, j, i] = np.eye(CLASSES)[label] - soft
    return deltas


def scene(seed, images=2, size=(4, 5), truths=3):
    rng = np.random.default_rng(seed)
    h, w = size
    shapes = (2 * 3, 2 * 3, 3, CLASSES * 3)
    outputs = tuple(torch.from_numpy(rng.normal(0, 0.7, (images, c, h, w))) for c in shapes)
    targets = []
    for _ in range(images):
        count = int(rng.integers(0, truths + 1))
        boxes = np.concatenate([rng.uniform(0.05, 0.95, (count, 2)), rng.uniform(0.15, 0.8, (count, 2))], 1)
        labels = rng.integers(0, CLASSES, count)
        targets.append((torch.from_numpy(labels), torch.from_numpy(boxes.astype(np.float32))))
    return outputs, targets


def gradients(outputs, targets, seen, **options):
    leaves = tuple(part.clone().requires_grad_() for part in outputs)
    region_loss(leaves, targets, ANCHORS, seen, **options).backward()
    return [leaf.grad.numpy() for leaf in leaves]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), seen=st.sampled_from([0, 12799, 12800]))
def test_gradient_is_darknets_delta(seed, seen):
    outputs, targets = scene(seed)
    ours, theirs = gradients(outputs, targets, seen), darknet_delta(outputs, targets, seen)
    for gradient, delta in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(-2 * gradient, delta, atol=2e-6)  # 2 images: ours is the mean


def place(outputs, image, anchor, row, column, box):
    """Sets the logits of one box so that it predicts `box` (cx, cy, w, h normalised)."""
    h, w = outputs[2].shape[2:]
    fx, fy = box[0] * w - column, box[1] * h - row
    outputs[0][image, 2 * anchor, row, column] = math.log(fx / (1 - fx))
    outputs[0][image, 2 * anchor + 1, row, column] = math.log(fy / (1 - fy))
    outputs[1][image, 2 * anchor, row, column] = math.log(box[2] * w / ANCHORS[anchor][0])
    outputs[1][image, 2 * anchor + 1, row, column] = math.log(box[3] * h / ANCHORS[anchor][1])


def test_a_free_box_that_fits_well_is_not_background():
    outputs, _ = scene(1, images=1)
    box = (0.5, 0.6, 1.66 / 5, 2.62 / 4)
    targets = [(torch.tensor([1]), torch.tensor([box]))]
    place(outputs, 0, 2, 2, 2, box)  # anchor 1 answers for the truth; anchor 2 predicts it as well
    ours = gradients(outputs, targets, WARM_IMAGES)
    assert ours[2][0, 2, 2, 2] == 0
    assert ours[2][0, 1, 2, 2] != 0
    np.testing.assert_allclose(-ours[2], darknet_delta(outputs, targets, WARM_IMAGES)[2], atol=1e-6)


def test_two_truths_of_one_box_the_later_has_it():
    outputs, _ = scene(2, images=1)
    boxes = torch.tensor([[0.5, 0.5, 0.33, 0.65], [0.52, 0.55, 0.34, 0.64]])
    targets = [(torch.tensor([0, 3]), boxes)]
    ours, theirs = gradients(outputs, targets, 0), darknet_delta(outputs, targets, 0)
    for gradient, delta in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(-gradient, delta, atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32), seen=st.sampled_from([0, 12800]))
def test_an_ignored_object_is_neither_found_nor_background(seed, seen):
    """The gradients are those without it, but for objectness where it lies or a box overlaps it well."""
    outputs, targets = scene(seed, images=1)
    rng = np.random.default_rng(seed)
    box = np.concatenate([rng.uniform(0.1, 0.9, 2), rng.uniform(0.02, 0.6, 2)]).astype(np.float32)
    labels, boxes = targets[0]
    with_it = [(torch.cat([labels, torch.tensor([~2])]), torch.cat([boxes, torch.from_numpy(box[None])]))]
    without, ours = gradients(outputs, targets, seen), gradients(outputs, with_it, seen)
    for part in (0, 1, 3):
        np.testing.assert_array_equal(ours[part], without[part])
    delta = darknet_delta(outputs, targets, seen)  # only what answers for an object has a class
    answers = np.abs(delta[3].reshape(3, CLASSES, 4, 5)).sum(1) > 0
    as_truth = darknet_delta(outputs, [(torch.tensor([2]), torch.from_numpy(box[None]))], seen)[2][0]
    for n, j, i in np.ndindex(3, 4, 5):
        inside = abs(i + 0.5 - box[0] * 5) < box[2] * 2.5 and abs(j + 0.5 - box[1] * 4) < box[3] * 2
        inside |= (i, j) == (int(box[0] * 5), int(box[1] * 4))  # the middle's own cell
        free = not answers[n, j, i] and (inside or as_truth[n, j, i] == 0)
        assert ours[2][0, n, j, i] == (0 if free else without[2][0, n, j, i])


def test_perfect_prediction_costs_nothing_but_what_the_logistic_cannot_reach():
    outputs = tuple(torch.zeros(1, c, 4, 4, dtype=torch.float64) for c in (6, 6, 3, 12))
    outputs[2].fill_(-40)
    box = (0.40, 0.60, 0.3, 0.5)
    anchor = 0  # 1.04 x 1.70 is nearest to 1.2 x 2.0 cells
    place(outputs, 0, anchor, 2, 1, box)
    outputs[2][0, anchor, 2, 1] = 40
    outputs[3][0, anchor * 4 + 2, 2, 1] = 60
    terms = region_terms(outputs, [(torch.tensor([2]), torch.tensor([box]))], ANCHORS, WARM_IMAGES)
    assert float(terms.total) < 1e-6
    assert float(terms.iou) == pytest.approx(1, abs=1e-4)


def test_no_truth_at_all_is_background_only():
    outputs, _ = scene(3)
    nothing = [(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))] * 2
    terms = region_terms(outputs, nothing, ANCHORS, WARM_IMAGES)
    assert float(terms.background) == pytest.approx(float(outputs[2].sigmoid().square().sum()) / 4)
    assert float(terms.total) == float(terms.background)


def test_box_on_the_far_edge_belongs_to_the_last_cell():
    outputs, _ = scene(4, images=1)
    target = [(torch.tensor([0]), torch.tensor([[1.0, 1.0, 0.2, 0.3]]))]
    gradient = gradients(outputs, target, WARM_IMAGES)[3]
    assert {(int(row), int(column)) for _, _, row, column in np.argwhere(gradient)} == {(3, 4)}


def test_squared_class_term_is_its_formula():
    outputs, targets = scene(5, images=1, truths=1)
    targets = [(torch.tensor([2]), torch.tensor([[0.5, 0.5, 0.33, 0.65]]))]
    terms = region_terms(outputs, targets, ANCHORS, WARM_IMAGES, RegionWeights(class_term="squared"))
    delta = darknet_delta(outputs, targets, WARM_IMAGES)[3]
    assert float(terms.classes) == pytest.approx((delta**2).sum() / 2, rel=1e-5)


def test_huge_logits_stay_finite():
    outputs = tuple(torch.full((1, c, 3, 3), 80.0) for c in (6, 6, 3, 12))
    loss = region_loss(outputs, [(torch.tensor([1]), torch.tensor([[0.5, 0.5, 0.3, 0.3]]))], ANCHORS, 0)
    assert torch.isfinite(loss)


def test_box_iou_agrees_with_the_loop():
    rng = np.random.default_rng(0)
    a, b = rng.uniform(0.1, 1, (50, 4)), rng.uniform(0.1, 1, (50, 4))
    expected = [loop_iou(x, y) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(box_iou(torch.tensor(a), torch.tensor(b)).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ((torch.tensor([4]), torch.tensor([[0.5, 0.5, 0.1, 0.1]])), "class outside 0..3"),
        ((torch.tensor([~4]), torch.tensor([[0.5, 0.5, 0.1, 0.1]])), "class outside 0..3"),
        ((torch.tensor([1]), torch.tensor([[0.5, math.nan, 0.1, 0.1]])), "not finite"),
        ((torch.tensor([1, 2]), torch.tensor([[0.5, 0.5, 0.1, 0.1]])), "image 0"),
        ((torch.tensor([1]), torch.tensor([[0.5, 0.5, 0.1]])), "image 0"),
    ],
)
def test_bad_targets_are_named(target, words):
    outputs, _ = scene(6, images=1)
    with pytest.raises(InputError, match=words):
        region_loss(outputs, [target], ANCHORS, 0)
    with pytest.raises(InputError, match="2 targets for 1 images"):
        region_loss(outputs, [target, target], ANCHORS, 0)
