"""train/v8_loss.py against loops, one number at a time, and against torch's own gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paredown.apps.detector.device.boxes.heads import Heads, heads_of
from paredown.apps.detector.train.v8_loss import V8Weights, assign, complete_iou, v8_loss, v8_terms
from paredown.targets.errors import InputError

pytestmark = pytest.mark.unit

SIZE, CLASSES = (64, 48), 3


def heads_with(bins: int) -> Heads:
    return heads_of({"kind": "v8", "strides": [8, 16], "bins": bins}, SIZE)


def random_case(seed: int, bins: int, images: int = 2):
    random = np.random.default_rng(seed)
    outputs = []
    for rows, columns in ((6, 8), (3, 4)):
        box = random.standard_normal((images, 4 * bins, rows, columns))
        outputs += [
            np.abs(box) if bins == 1 else box,
            random.standard_normal((images, CLASSES, rows, columns)),
        ]
    targets = []
    for image in range(images):
        count = int(random.integers(0, 4)) if image else 3
        extent = random.uniform(0.02, 0.6, (count, 2))
        centre = random.uniform(0.2, 0.8, (count, 2))
        boxes = torch.from_numpy(np.concatenate([centre, extent], 1))
        targets.append((torch.from_numpy(random.integers(0, CLASSES, count)), boxes))
    return [torch.from_numpy(output).requires_grad_() for output in outputs], targets


def overlap(a, b) -> float:
    w, h = (max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1))
    area = lambda box: max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])  # noqa: E731
    union = area(a) + area(b) - w * h
    return w * h / union if union > 0 else 0.0


def complete(a, b) -> float:
    iou = overlap(a, b)
    spread = [max(a[i + 2], b[i + 2]) - min(a[i], b[i]) for i in (0, 1)]
    apart = [(a[i] + a[i + 2] - b[i] - b[i + 2]) / 2 for i in (0, 1)]
    v = 4 / math.pi**2 * (
        math.atan((b[2] - b[0]) / (b[3] - b[1])) - math.atan((a[2] - a[0]) / (a[3] - a[1]))
    ) ** 2  # fmt: skip
    trade = v / (1 - iou + v) if v else 0.0
    return iou - sum(d * d for d in apart) / sum(s * s for s in spread) - trade * v


def loss_loop(outputs, targets, bins: int, rule: V8Weights):
    """The three sums, over images, before their weights; and how many cells were taken."""
    cells = []
    for level, stride in enumerate((8, 16)):
        rows, columns = outputs[2 * level].shape[2:]
        cells += [(level, stride, row, column) for row in range(rows) for column in range(columns)]
    classes = 0.0
    weights: list[float] = []
    misses: list[float] = []
    focal: list[float] = []
    truths = 0
    for image, (labels, boxes) in enumerate(targets):
        truth = []
        for cx, cy, w, h in boxes.tolist():
            x, y, w, h = cx * 64, cy * 48, w * 64, h * 48
            truth.append((x - w / 2, y - h / 2, x + w / 2, y + h / 2))
        truths += len(truth)
        predicted, likely, logits = [], [], []
        for level, stride, row, column in cells:
            raw = outputs[2 * level][image, :, row, column].tolist()
            sides = [raw[side * bins : side * bins + bins] for side in range(4)]
            far = []
            for own in sides:
                e = [math.exp(v) for v in own]
                far.append(own[0] if bins == 1 else sum(k * v for k, v in enumerate(e)) / sum(e))
            x, y = (column + 0.5) * stride, (row + 0.5) * stride
            predicted.append(
                (x - far[0] * stride, y - far[1] * stride, x + far[2] * stride, y + far[3] * stride)
            )
            logits.append(sides)
            likely.append(outputs[2 * level + 1][image, :, row, column].tolist())
        aligned: dict[tuple[int, int], float] = {}
        for t, box in enumerate(truth):
            inside = []
            distance = []
            for p, (_, stride, row, column) in enumerate(cells):
                x, y = (column + 0.5) * stride, (row + 0.5) * stride
                if box[0] < x < box[2] and box[1] < y < box[3]:
                    inside.append(p)
                distance.append((2 * x - box[0] - box[2]) ** 2 + (2 * y - box[1] - box[3]) ** 2)
            inside = inside or [distance.index(min(distance))]
            score = {
                p: (1 / (1 + math.exp(-likely[p][int(labels[t])]))) ** rule.score_power
                * overlap(box, predicted[p]) ** rule.iou_power
                for p in inside
            }  # fmt: skip
            for p in sorted(inside, key=lambda p: -score[p])[: rule.most]:
                aligned[t, p] = score[p]
        for p in range(len(cells)):
            rivals = [t for t in range(len(truth)) if (t, p) in aligned]
            for t in rivals:
                if t != max(rivals, key=lambda t: overlap(truth[t], predicted[p])):
                    del aligned[t, p]
        wanted = np.zeros((len(cells), CLASSES))
        for (t, p), value in aligned.items():
            own = [q for s, q in aligned if s == t]
            top = max(aligned[t, q] for q in own)
            weight = value / max(top, 1e-7) * max(overlap(truth[t], predicted[q]) for q in own)
            wanted[p, int(labels[t])] = weight
            weights.append(weight)
            misses.append(1 - complete(predicted[p], truth[t]))
            _, stride, row, column = cells[p]
            x, y = (column + 0.5) * stride, (row + 0.5) * stride
            entropy = 0.0
            for side, far in enumerate((x - truth[t][0], y - truth[t][1], truth[t][2] - x, truth[t][3] - y)):
                far = min(max(far / stride, 0.0), bins - 1.01)
                left = int(far)
                if bins > 1:
                    own_logits = logits[p][side]
                    total = math.log(sum(math.exp(v) for v in own_logits))
                    entropy -= (1 - far + left) * (own_logits[left] - total) / 4
                    entropy -= (far - left) * (own_logits[left + 1] - total) / 4
            focal.append(entropy)
        for p in range(len(cells)):
            for c in range(CLASSES):
                s = likely[p][c]
                classes += math.log1p(math.exp(s)) - wanted[p, c] * s
    share = truths / max(sum(weights), 1e-7)
    boxes_sum = share * sum(w * m for w, m in zip(weights, misses, strict=True))
    bins_sum = share * sum(w * f for w, f in zip(weights, focal, strict=True))
    return boxes_sum, bins_sum, classes


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), bins=st.sampled_from([1, 4, 8]), most=st.integers(1, 12))
def test_the_loss_is_its_definition(seed: int, bins: int, most: int) -> None:
    outputs, targets = random_case(seed, bins)
    rule = V8Weights(most=most)
    boxes, focal, classes = loss_loop([o.detach() for o in outputs], targets, bins, rule)
    terms = v8_terms(outputs, targets, heads_with(bins), rule)
    assert float(terms.boxes) == pytest.approx(rule.boxes * boxes / 2, rel=1e-5, abs=1e-6)
    assert float(terms.bins) == pytest.approx(rule.bins * focal / 2 if bins > 1 else 0, rel=1e-5, abs=1e-6)
    assert float(terms.classes) == pytest.approx(rule.classes * classes / 2, rel=1e-5)
    terms.total.backward()
    assert all(o.grad is not None and torch.isfinite(o.grad).all() for o in outputs)


@settings(max_examples=60, deadline=None)
@given(values=st.lists(st.floats(1, 40), min_size=8, max_size=8))
def test_complete_iou_is_its_formula(values: list[float]) -> None:
    a, b = ([v[0], v[1], v[0] + v[2], v[1] + v[3]] for v in (values[:4], values[4:]))
    found = complete_iou(torch.tensor([a], dtype=torch.float64), torch.tensor([b], dtype=torch.float64))
    assert float(found) == pytest.approx(complete(a, b), rel=1e-6, abs=1e-9)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32), bins=st.sampled_from([1, 4]))
def test_an_ignored_object_is_neither_found_nor_background(seed: int, bins: int) -> None:
    """Only its own class has no target, in the cells that it covers and that answer for nothing."""
    outputs, targets = random_case(seed, bins)
    heads, random = heads_with(bins), np.random.default_rng(seed)
    box = torch.from_numpy(np.concatenate([random.uniform(0.2, 0.8, 2), random.uniform(0.05, 0.5, 2)]))
    labels, boxes = targets[1]
    more = [targets[0], (torch.cat([labels, torch.tensor([~1])]), torch.cat([boxes, box[None]]))]
    without = torch.autograd.grad(v8_loss(outputs, targets, heads), outputs)
    ours = torch.autograd.grad(v8_loss(outputs, more, heads), outputs)
    reach = (box[2:] * torch.tensor(SIZE) / 2).clamp(min=4)  # a small box has the nearest cell of 8 pixels
    changed = False
    for level, stride in enumerate((8, 16)):
        assert ours[2 * level].equal(without[2 * level])
        for image, kind, row, column in (ours[2 * level + 1] != without[2 * level + 1]).nonzero().tolist():
            middle = torch.tensor([(column + 0.5) * stride, (row + 0.5) * stride])
            assert (image, kind) == (1, 1) and ours[2 * level + 1][image, kind, row, column] == 0
            assert ((middle - box[:2] * torch.tensor(SIZE)).abs() <= reach).all()
            changed = True
    assert (v8_loss(outputs, more, heads) < v8_loss(outputs, targets, heads)) == changed


def test_a_box_between_the_cells_has_the_nearest_one() -> None:
    points = torch.tensor([[4.0, 4.0], [12.0, 4.0], [20.0, 4.0]])
    boxes = torch.cat([points - 4, points + 4], 1)[None]
    truth = torch.tensor([[[9.0, 1.0, 10.0, 2.0], [0.0, 0.0, 0.0, 0.0]]])
    given_ = assign(
        boxes, torch.full((1, 3, 2), 0.5), points, truth, torch.tensor([[1, 0]]),
        torch.tensor([[True, False]]), V8Weights(),
    )  # fmt: skip
    assert given_.taken.tolist() == [[False, True, False]] and given_.truth[0, 1] == 0


@pytest.mark.parametrize("bins", [1, 8])
def test_descending_it_finds_the_boxes(bins: int) -> None:
    """Free outputs, trained on their own: the boxes are found, so every gradient points the right way."""
    from paredown.apps.detector.device.boxes.decode import detect

    heads = heads_with(bins)
    shapes = [(1, n, *grid) for grid in ((6, 8), (3, 4)) for n in (4 * bins, CLASSES)]
    outputs = [torch.full(shape, 1.0 if shape[1] != CLASSES else -4.0).requires_grad_() for shape in shapes]
    targets = [(torch.tensor([0, 2]), torch.tensor([[0.3, 0.4, 0.3, 0.4], [0.75, 0.6, 0.2, 0.5]]))]
    optimizer = torch.optim.Adam(outputs, 0.1)
    for _ in range(150):
        optimizer.zero_grad()
        v8_loss(outputs, targets, heads).backward()
        optimizer.step()
    found = detect([o.detach()[0].numpy() for o in outputs], heads.decoder, 0.5)
    assert sorted(found.classes.tolist()) == [0, 2]
    wanted = {0: [0.15, 0.2, 0.45, 0.6], 2: [0.65, 0.35, 0.85, 0.85]}
    for box, category in zip(found.boxes, found.classes, strict=True):
        np.testing.assert_allclose(box, wanted[int(category)], atol=0.02)


def test_nothing_in_the_images_and_targets_that_do_not_fit() -> None:
    outputs, _ = random_case(0, 4)
    nothing = [(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))] * 2
    terms = v8_terms(outputs, nothing, heads_with(4))
    assert float(terms.boxes) == float(terms.bins) == float(terms.iou) == 0 < float(terms.classes)
    terms.total.backward()
    with pytest.raises(InputError, match="1 targets for 2 images"):
        v8_loss(outputs, nothing[:1], heads_with(4))
    with pytest.raises(InputError, match=r"a class outside 0\.\.2"):
        v8_loss(
            outputs, [nothing[0], (torch.tensor([3]), torch.tensor([[0.5, 0.5, 0.1, 0.1]]))], heads_with(4)
        )


def test_one_output_per_level_has_the_same_loss() -> None:
    outputs, targets = random_case(3, 4)
    whole = [torch.cat(outputs[i : i + 2], 1) for i in (0, 2)]
    assert float(v8_loss(whole, targets, heads_with(4))) == pytest.approx(
        float(v8_loss(outputs, targets, heads_with(4)))
    )
