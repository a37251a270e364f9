"""The data of a recovery: a validation part, and metrics of any network on it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_project import make_project

from paredown.calibration.datasets import Sample
from paredown.pipeline.compress.training.data import (
    ImageSubset,
    agreement,
    evaluator,
    nearness,
    preprocessed,
    run_network,
    split,
)
from paredown.pipeline.recipe.file import load_recipe
from paredown.pipeline.recipe.task import load_task
from paredown.targets.errors import InputError

pytestmark = pytest.mark.unit


class Numbered:
    """Images that say their number; labelled as empty."""

    names = ("a",)

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        image = np.full((4, 4, 3), index, np.uint8)
        return Sample(str(index), image, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), True)

    def fingerprint(self) -> str:
        return f"numbered {self.count}"


def numbers(part: ImageSubset) -> list[int]:
    return [int(part[index].name) for index in range(len(part))]


@settings(max_examples=40, deadline=None)
@given(count=st.integers(2, 60), share=st.floats(0, 1), seed=st.integers(0, 99), most=st.integers(1, 20))
def test_the_parts_share_no_image_and_leave_none_out(count, share, seed, most):
    train, validation = split(Numbered(count), share, seed, most)
    assert sorted(numbers(train) + numbers(validation)) == list(range(count))
    assert len(validation) == min(max(1, round(share * count)), most, count - 1)
    again = split(Numbered(count), share, seed, most)
    assert [numbers(part) for part in again] == [numbers(train), numbers(validation)]
    assert train.fingerprint() != validation.fingerprint()
    assert again[0].fingerprint() == train.fingerprint()


def test_another_seed_is_another_validation_part_and_one_image_cannot_be_split():
    assert numbers(split(Numbered(50), 0.2, 0)[1]) != numbers(split(Numbered(50), 0.2, 1)[1])
    with pytest.raises(InputError, match="1 training images cannot be split"):
        split(Numbered(1), 0.5, 0)
    with pytest.raises(IndexError):
        split(Numbered(3), 0.5, 0)[0][5]


@pytest.fixture
def task(tmp_path):
    return load_task(load_recipe(make_project(tmp_path)))


def test_a_network_is_run_in_batches_and_answers_one_by_one(task):
    network, inputs = task.network(), torch.rand(5, 3, 64, 64)
    outputs = run_network(network, inputs, batch=2)
    assert len(outputs) == 5
    with torch.no_grad():
        for x, got in zip(inputs, outputs, strict=True):
            for part, expected in zip(got, network(x[None]), strict=True):
                assert part.shape == expected.shape
                np.testing.assert_allclose(part, expected.numpy(), atol=1e-5)


def test_the_evaluator_is_the_tasks_score(task):
    network, data = task.network(), task.data("test")

    def predict(x):
        with torch.no_grad():
            return tuple(part.numpy() for part in network(torch.from_numpy(x)))

    assert evaluator(task, data)(network) == pytest.approx(task.score(predict, data)["map50"], abs=1e-3)
    assert preprocessed(data, task.preprocess).shape == (2, 3, 64, 64)


def test_without_labels_the_original_is_the_truth(task):
    from dataclasses import replace

    class Bare(ImageSubset):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            return replace(sample, boxes=sample.boxes[:0], classes=sample.classes[:0], labelled=False)

    data, original = Bare(task.data("train"), (0, 1, 2)), task.network()
    other = copy.deepcopy(original)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    metric, agrees = evaluator(task, data, original), agreement(task, data, original, batch=2)
    assert metric(original) > 0.95  # labels end at the image's edge, detections do not
    assert metric(other) < 0.9
    assert agrees(original) == pytest.approx(0, abs=1e-4)
    assert agrees(other) < agrees(original)
    inputs = preprocessed(data, task.preprocess)
    with torch.no_grad():
        whole = -float(task.distillation(other(inputs), original(inputs)))
    assert agrees(other) == pytest.approx(whole, rel=1e-4)


def test_outputs_are_as_near_as_the_network_that_made_them(task):
    data, original = task.data("train"), task.network()
    other = copy.deepcopy(original)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1 + 0.1 * torch.randn_like(parameter))
    inputs = preprocessed(data, task.preprocess)
    score = nearness(task, run_network(original, inputs))
    assert score(run_network(original, inputs)) == pytest.approx((0, 0, 0), abs=1e-4)
    mean, low, high = score(run_network(other, inputs))
    assert mean == pytest.approx(agreement(task, data, original)(other), rel=1e-3)
    assert low < mean < high
    assert score(run_network(other, inputs[:1]))[0] == pytest.approx(
        agreement(task, ImageSubset(data, (0,)), original)(other), rel=1e-3
    )
