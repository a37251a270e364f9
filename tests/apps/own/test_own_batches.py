"""The order of training samples, and batches of arrays."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from paredown.apps.own.batches import Order, PlainBatches, level_values, valued
from paredown.apps.own.sheet import colours, picture
from paredown.calibration.array_input import ArrayInput
from paredown.calibration.datasets import Sample
from paredown.calibration.preprocess import Preprocess
from paredown.targets.errors import UsageError

pytestmark = pytest.mark.unit


class Rows:
    names = ()

    def __len__(self):
        return 10

    def __getitem__(self, index):
        row = np.full((1, 4), index, np.float32)
        return Sample(str(index), row, np.zeros(0), np.array([index]), True)

    def fingerprint(self):
        return "rows"


def test_an_epoch_has_every_sample_once_in_an_order_of_its_own():
    order = Order(10, 3, seed=4)
    assert order.per_epoch == 3
    epochs = [np.concatenate([order(3 * epoch + step)[0] for step in range(3)]) for epoch in range(3)]
    assert all(len(set(epoch.tolist())) == 9 for epoch in epochs) and len({tuple(e) for e in epochs}) == 3
    assert np.array_equal(Order(10, 3, seed=4)(5)[0], order(5)[0])  # whatever was asked before
    assert order(5)[1].random() == Order(10, 3, 4)(5)[1].random()
    with pytest.raises(UsageError, match="2 images for batches of 3"):
        Order(2, 3, 0)


def test_arrays_come_as_they_are_with_or_without_labels():
    plain = PlainBatches(Rows(), ArrayInput((1, 4)), 4, 0)
    inputs, labels = plain(0)
    assert inputs.shape == (4, 1, 4) and labels is None and plain.per_epoch == 2
    labelled = PlainBatches(Rows(), ArrayInput((1, 4)), 4, 0, lambda data, index: index)
    inputs, labels = labelled(1)
    assert labels is not None and torch.equal(inputs[:, 0, 0].long(), labels)
    some = PlainBatches(Rows(), ArrayInput((1, 4)), 10, 0, lambda data, index: index or None)
    assert some(0)[1] is None


def test_levels_are_the_preprocessing_s_own():
    preprocess = Preprocess(width=6, height=5, mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0), resize="crop")
    image = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
    pixels = preprocess.pixels(image).transpose(2, 0, 1)[None]
    assert np.array_equal(valued(pixels, level_values(preprocess))[0].numpy(), preprocess(image))


def test_arrays_are_pictures_too_and_classes_have_colours():
    for shape in ((40,), (2, 90), (3, 8, 9)):
        found = picture(np.random.default_rng(0).normal(size=shape).astype(np.float32))
        assert found.dtype == np.uint8 and found.ndim == 3 and found.shape[2] == 3
    assert picture(np.zeros((2, 3), np.float32)).shape[2] == 3
    assert len({tuple(colour) for colour in colours(21).tolist()}) == 21
