"""Distilling a region head: the distance by its definition, its gradient, and what it wins back."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paredown.apps.detector.darknet.darknet import builtin_cfg
from paredown.apps.detector.device.boxes.heads import heads_of
from paredown.apps.detector.network import YoloV2
from paredown.apps.detector.train.distil import (
    DistilWeights,
    heads_distillation,
    region_distillation,
    yolo_distillation,
)
from paredown.targets.errors import InputError


def logits(seed: int, boxes: int = 2, classes: int = 3, images: int = 2, scale: float = 2.0):
    chance = torch.Generator().manual_seed(seed)

    def draw(channels: int) -> torch.Tensor:
        return scale * torch.randn(images, channels, 3, 4, generator=chance)

    return draw(2 * boxes), draw(2 * boxes), draw(boxes), draw(boxes * classes)


def by_definition(student, teacher, boxes: int, classes: int, weights: DistilWeights) -> float:
    """One box after the other, in numpy and float64."""
    student, teacher = ([part.double().numpy() for part in outputs] for outputs in (student, teacher))

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    def softmax(x):
        e = np.exp(x - x.max())
        return e / e.sum()

    total = 0.0
    for n, a, y, x in np.ndindex(student[2].shape):
        p, q = sigmoid(teacher[2][n, a, y, x]), sigmoid(student[2][n, a, y, x])
        total += weights.objectness * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))
        for axis in (2 * a, 2 * a + 1):
            miss = sigmoid(student[0][n, axis, y, x]) - sigmoid(teacher[0][n, axis, y, x])
            stretch = student[1][n, axis, y, x] - teacher[1][n, axis, y, x]
            total += weights.coordinates * p * (miss**2 + stretch**2) / 2
        mine = softmax(student[3][n, a * classes : (a + 1) * classes, y, x] / weights.temperature)
        theirs = softmax(teacher[3][n, a * classes : (a + 1) * classes, y, x] / weights.temperature)
        total += weights.classes * p * (theirs * np.log(theirs / mine)).sum() * weights.temperature**2
    return total / len(student[0])


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 999), boxes=st.integers(1, 3), classes=st.integers(1, 4),
    parts=st.tuples(*[st.floats(0, 3)] * 3), temperature=st.sampled_from((0.5, 1.0, 3.0)),
)  # fmt: skip
def test_it_is_what_the_definition_says(seed, boxes, classes, parts, temperature):
    student, teacher = logits(seed, boxes, classes), logits(seed + 1, boxes, classes)
    weights = DistilWeights(*parts, temperature)
    got = float(region_distillation(student, teacher, weights))
    assert got == pytest.approx(by_definition(student, teacher, boxes, classes, weights), rel=1e-4, abs=1e-4)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), scale=st.sampled_from((0.1, 2.0, 30.0)))
def test_it_is_zero_where_both_agree_and_never_below(seed, scale):
    one, other = logits(seed, scale=scale), logits(seed + 1, scale=scale)
    assert float(region_distillation(one, one)) == pytest.approx(0, abs=1e-4)
    assert float(region_distillation(one, other)) > 0


def test_the_objectness_gradient_is_the_difference_of_the_sigmoids():
    student, teacher = logits(1), logits(2)
    student[2].requires_grad_()
    region_distillation(student, teacher, DistilWeights(coordinates=0, classes=0)).backward()
    expected = (student[2].detach().sigmoid() - teacher[2].sigmoid()) / 2  # two images
    torch.testing.assert_close(student[2].grad, expected, atol=1e-6, rtol=1e-5)


def test_background_of_the_teacher_says_nothing_about_boxes_and_classes():
    student, teacher = logits(1), logits(2)
    teacher[2].fill_(-80.0)
    student[2].fill_(-80.0)
    for part in student:
        part.requires_grad_()
    loss = region_distillation(student, teacher)
    loss.backward()
    assert float(loss) == pytest.approx(0, abs=1e-6)
    assert all(float(part.grad.abs().max()) < 1e-6 for part in student)


def test_no_gradient_reaches_the_teacher():
    student, teacher = logits(1), logits(2)
    for part in (*student, *teacher):
        part.requires_grad_()
    region_distillation(student, teacher).backward()
    assert all(part.grad is not None and torch.isfinite(part.grad).all() for part in student)
    assert all(part.grad is None for part in teacher)


def test_other_shapes_are_refused():
    with pytest.raises(InputError, match="distil: the student's outputs"):
        region_distillation(logits(1, classes=3), logits(1, classes=4))


@pytest.mark.parametrize("name", ["yolov2-voc", "yolov2-tiny-voc", "yolov2-nano"])
def test_the_feature_is_what_the_head_reads(name):
    from paredown.apps.detector.origins.darknet import head_features

    cfg = builtin_cfg(name)
    (path,) = head_features(cfg)
    # Small channels: the graph is what counts.
    thin = replace(
        cfg, layers=tuple(replace(la, filters=min(la.filters, 8)) if hasattr(la, "filters") and la is not
                          cfg.layers[-1] else la for la in cfg.layers),
    )  # fmt: skip
    network = YoloV2(thin).eval()
    seen = {}
    network.get_submodule(path).register_forward_hook(lambda m, i, o: seen.update(made=o))
    network.head.register_forward_hook(lambda m, i, o: seen.update(read=i[0]))
    with torch.no_grad():
        network(torch.rand(1, 3, 64, 64))
    assert seen["made"] is seen["read"]


def test_distilling_wins_back_a_disturbed_detector():
    """The real loop, on unlabelled digits at a small size: nearer to the original on scenes it never saw."""
    from paredown.apps.detector.task import DetectorTask
    from paredown.pipeline.compress.training.config import RecoverConfig
    from paredown.pipeline.compress.training.data import agreement, split
    from paredown.pipeline.compress.training.features import FeatureTap
    from paredown.pipeline.compress.training.recover import recover
    from paredown.pipeline.recipe.schema import Recipe

    task = DetectorTask(Recipe.model_validate({"preprocess": {"width": 96, "height": 96}}))
    train, validation = split(Unlabelled(task.data("train"), 20), 0.2, 0)
    original = task.network()
    student = copy.deepcopy(original)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if parameter.ndim > 1 and not name.startswith("head"):
                parameter += 0.5 * parameter.std() * torch.randn_like(parameter)
    batches = task.batches(train, 4, 0)
    assert batches(0)[1] is None
    evaluate = agreement(task, validation, original)
    result = recover(
        student, batches, RecoverConfig(epochs=5, warmup=3, ema=0.9), teacher=original,
        distil=task.distillation, features=[FeatureTap(path) for path in task.features()], evaluate=evaluate,
    )  # fmt: skip
    assert evaluate(original) == pytest.approx(0, abs=1e-4)
    assert result.best > 0.5 * result.baseline  # both are negative


class Unlabelled:
    """The first samples of a data set, without labels."""

    def __init__(self, data, count: int) -> None:
        self.data, self.count, self.names = data, count, data.names

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int):
        sample = self.data[index]
        return replace(sample, boxes=sample.boxes[:0], classes=sample.classes[:0], labelled=False)

    def fingerprint(self) -> str:
        return f"{self.data.fingerprint()} {self.count}"


def kullback(p, q) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def softmax(values) -> list[float]:
    exponents = [math.exp(v) for v in values]
    return [e / sum(exponents) for e in exponents]


def level_loop(said: dict, ours, theirs) -> float:
    """The distance of one level's outputs of one image, box by box."""
    sig = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    coin = lambda x: (sig(x), 1 - sig(x))  # noqa: E731
    total = 0.0
    for j, i in np.ndindex(ours[-1].shape[1:]):
        one, other = ([part[:, j, i].tolist() for part in parts] for parts in (ours, theirs))
        if said["kind"] == "v8":
            (box, cls), (box_t, cls_t) = one, other
            sure, bins = max(map(sig, cls_t)), said["bins"]
            if bins == 1:
                total += sure * sum((a - b) ** 2 for a, b in zip(box, box_t, strict=True)) / 2
            else:
                for side in range(0, 4 * bins, bins):
                    own = slice(side, side + bins)
                    total += sure * kullback(softmax(box_t[own]), softmax(box[own]))
            total += sum(kullback(coin(b), coin(a)) for a, b in zip(cls, cls_t, strict=True))
        elif said["kind"] == "yolox":
            (box, obj, cls), (box_t, obj_t, cls_t) = one, other
            total += kullback(coin(obj_t[0]), coin(obj[0]))
            inner = sum((a - b) ** 2 for a, b in zip(box, box_t, strict=True)) / 2
            inner += sum(kullback(coin(b), coin(a)) for a, b in zip(cls, cls_t, strict=True))
            total += sig(obj_t[0]) * inner
        else:
            (box, cls), (box_t, cls_t) = one, other
            for prior in range(2):
                p, q = (softmax(c[4 * prior : 4 * prior + 4]) for c in (cls_t, cls))
                place = slice(4 * prior, 4 * prior + 4)
                miss = sum((a - b) ** 2 for a, b in zip(box[place], box_t[place], strict=True)) / 2
                total += kullback(p, q) + (1 - p[0]) * miss
    return total


HEADS = (
    {"kind": "v8", "strides": [8], "bins": 4},
    {"kind": "v8", "strides": [8], "bins": 1},
    {"kind": "yolox", "strides": [8]},
    {"kind": "ssd", "sizes": [[9, 12]], "ratios": [[]]},
)


@pytest.mark.parametrize("said", HEADS, ids=lambda said: f"{said['kind']}-{said.get('bins')}")
def test_distillation_of_other_heads_is_its_definition(said: dict) -> None:
    heads, random = heads_of(said, (24, 16)), np.random.default_rng(3)
    boxes, sizes = heads.layout(0)
    channels = [boxes * n for n in (*sizes, 3 + (heads.kind == "ssd"))]
    one, other = ([random.standard_normal((2, n, 2, 3)) for n in channels] for _ in range(2))
    expected = sum(level_loop(said, [p[i] for p in one], [p[i] for p in other]) for i in (0, 1)) / 2
    student, teacher = ([torch.from_numpy(part) for part in parts] for parts in (one, other))
    assert float(heads_distillation(student, teacher, heads)) == pytest.approx(expected)
    assert float(heads_distillation(student, student, heads)) == pytest.approx(0, abs=1e-9)
    if heads.kind != "ssd":
        whole = [[torch.cat(parts, 1)] for parts in (student, teacher)]
        assert float(heads_distillation(*whole, heads)) == pytest.approx(expected)
    with pytest.raises(InputError, match="the student's outputs are"):
        heads_distillation([part[:, :1] for part in student], teacher, heads)


def test_distillation_of_v5_heads_is_that_of_yolo() -> None:
    heads = heads_of({"kind": "v5", "strides": [8], "anchors": [[[9, 9], [12, 7]]]}, (24, 16))
    torch.manual_seed(0)
    student, teacher = ([torch.randn(2, n, 2, 3) for n in (4, 4, 2, 6)] for _ in range(2))
    found = heads_distillation(student, teacher, heads)
    assert float(found) == float(yolo_distillation(student, teacher, [True]))
