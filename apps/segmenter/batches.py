"""The batches that a segmenter is trained on: parts of images and of their labels, mirrored by chance."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from paredown.apps.own.batches import Order, level_values, valued
from paredown.apps.segmenter.device.class_map import IGNORED
from paredown.apps.segmenter.masks import MaskSample
from paredown.calibration.datasets import Dataset
from paredown.calibration.preprocess import Preprocess

LEAST = 0.5  # of a side: the smallest part that is cut out, of the image's own shape


class Batches:
    """Makes step's batch, a pure function of the step's number."""

    def __init__(self, dataset: Dataset, preprocess: Preprocess, batch: int, seed: int) -> None:
        """Takes what the batches are made of.

        Args:
            dataset: of masks, or unlabelled.
            preprocess: of the network.
            batch: images per step.
            seed: of order and augmentation.

        Raises:
            UsageError: fewer images than a batch.
        """
        self._data, self._preprocess = dataset, preprocess
        self._order = Order(len(dataset), batch, seed)
        self.per_epoch = self._order.per_epoch
        self._values = level_values(preprocess)

    def __call__(self, step: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The images (N, C, H, W) float32, and their masks (N, H, W) int64, None if one has none."""
        chosen, chance = self._order(step)
        images, masks = [], []
        for index, draws in zip(chosen, chance.random((len(chosen), 4)), strict=True):
            sample = self._data[int(index)]
            mask = sample.mask if isinstance(sample, MaskSample) else None
            place = _part(sample.image.shape[:2], draws)
            turn = -1 if draws[3] < 0.5 else 1
            images.append(self._preprocess.pixels(sample.image[place])[:, ::turn].transpose(2, 0, 1))
            if mask is not None:
                masks.append(placed(mask[place], self._preprocess)[:, ::turn])
        labels = torch.from_numpy(np.stack(masks).astype(np.int64)) if len(masks) == len(images) else None
        return valued(np.stack(images), self._values), labels


def placed(mask: NDArray[np.uint8], preprocess: Preprocess) -> NDArray[np.uint8]:
    """A mask where preprocessing puts its image, (height, width); `IGNORED` beside it."""
    geometry = preprocess.geometry(*mask.shape)
    width, height = round(geometry.scale_x * preprocess.width), round(geometry.scale_y * preprocess.height)
    left, top = round(geometry.offset_x * preprocess.width), round(geometry.offset_y * preprocess.height)
    whole = np.full((preprocess.height, preprocess.width), IGNORED, np.uint8)
    resized = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    whole[top : top + height, left : left + width] = resized
    return whole


def _part(size: tuple[int, ...], draws: NDArray[np.float64]) -> tuple[slice, slice]:
    """The part of an image that three numbers within 0..1 choose: its size and its place."""
    share = LEAST + (1 - LEAST) * draws[0]
    down, across = (max(1, round(share * side)) for side in size)
    top, left = int(draws[1] * (size[0] - down + 1)), int(draws[2] * (size[1] - across + 1))
    return slice(top, top + down), slice(left, left + across)
