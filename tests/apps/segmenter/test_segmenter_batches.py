"""A segmenter's batches: image and mask stay one picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from paredown.apps.own.task import MEAN, STD
from paredown.apps.segmenter.batches import Batches, placed
from paredown.apps.segmenter.masks import MaskSample
from paredown.calibration.preprocess import Preprocess
from paredown.targets.errors import UsageError

pytestmark = pytest.mark.unit


class Pictures:
    """Images whose red level is the mask's class times 50, everywhere."""

    names = ("a", "b", "c", "d")

    def __init__(self, count: int = 6, labelled: bool = True, size=(20, 30)) -> None:
        self.count, self.labelled, self.size = count, labelled, size

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> MaskSample:
        mask = np.zeros(self.size, np.uint8)
        mask[:, self.size[1] // 2 :] = 1
        mask[self.size[0] // 2 :, : index + 3] = 2
        mask[0] = 3
        image = np.stack([mask * 0, mask * 0, mask * 50], 2)
        none = np.zeros(0)
        return MaskSample(str(index), image, none, none, self.labelled, mask if self.labelled else None)

    def fingerprint(self) -> str:
        return "pictures"


@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
def test_the_mask_goes_with_the_image(resize):
    preprocess = Preprocess(width=24, height=24, resize=resize, mean=MEAN, std=STD, fill=0)
    batches = Batches(Pictures(), preprocess, 3, seed=1)
    flips = set()
    for step in range(8):
        images, masks = batches(step)
        assert images.shape == (3, 3, 24, 24) and masks.shape == (3, 24, 24) and masks.dtype == torch.int64
        levels = images[:, 0] * STD[0] + MEAN[0]
        scored = masks != 255
        near = (levels * 255 / 50 - masks).abs() < 0.3
        assert near[scored].float().mean() > 0.75  # all but the borders, which are interpolated
        flips |= {bool((mask[:, -4] == 1).float().mean() > 0.5) for mask in masks}
        again = batches(step)
        assert torch.equal(images, again[0]) and torch.equal(masks, again[1])
    assert flips == {True, False}


def test_a_placed_mask_has_nothing_beside_the_image():
    preprocess = Preprocess(width=24, height=24, resize="letterbox")
    mask = placed(np.ones((10, 30), np.uint8), preprocess)
    assert (mask[8:16] == 1).all() and (mask[:8] == 255).all() and (mask[16:] == 255).all()


def test_without_masks_there_are_no_labels_and_few_images_are_refused():
    preprocess = Preprocess(width=8, height=8)
    assert Batches(Pictures(labelled=False), preprocess, 2, 0)(0)[1] is None
    with pytest.raises(UsageError, match="6 images for batches of 7"):
        Batches(Pictures(), preprocess, 7, 0)
