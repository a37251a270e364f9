"""The batches that a classifier is trained on, cropped and mirrored by chance."""

from __future__ import annotations

import math
from dataclasses import replace

import cv2
import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from paredown.apps.classifier.labels import label_of
from paredown.apps.own.batches import Order, level_values, valued
from paredown.calibration.datasets import Dataset
from paredown.calibration.preprocess import Preprocess

SMALL = 64  # pixels: up to here images are shifted, above it a part of them is cut out and resized
SHIFT = 1 / 8  # of the side: 4 pixels of 32 (He et al., arXiv 1512.03385, section 4.2)
AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # of a random crop (Szegedy et al., arXiv 1409.4842, section 6)
STORED = 256 / 224  # shorter side of a stored large image, over the input's
CACHE_MIB = 1024


class Batches:
    """Makes step's batch, a pure function of the step's number.

    Small images are kept as one uint8 array once they were seen, and a batch of them is put together without
    a loop over its images.
    """

    def __init__(
        self, dataset: Dataset, preprocess: Preprocess, batch: int, seed: int, cache_mib: int = CACHE_MIB
    ) -> None:
        """Takes what the batches are made of.

        Args:
            dataset: of one class per image, or unlabelled.
            preprocess: of the network.
            batch: images per step.
            seed: of order and augmentation.
            cache_mib: how much memory large images may take that were decoded before.

        Raises:
            UsageError: fewer images than a batch.
        """
        self.dataset, self.preprocess = dataset, preprocess
        self._order = Order(len(dataset), batch, seed)
        self.per_epoch = self._order.per_epoch
        side, channels = (preprocess.height, preprocess.width), preprocess.channels
        self.small = max(side) <= SMALL
        self._seen = np.zeros(len(dataset), bool)
        self._labels = np.zeros(len(dataset), np.int64)  # -1 = none
        self._pixels = np.empty((len(dataset) if self.small else 0, *side, channels), np.uint8)
        self._large: dict[int, np.ndarray] = {}
        self._room = cache_mib * 2**20
        self._values = level_values(preprocess)

    def __call__(self, step: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The images (N, C, H, W) float32, and their classes (N,) int64, None if one has none."""
        chosen, chance = self._order(step)
        pixels = self._shifted(chosen, chance) if self.small else self._cropped(chosen, chance)
        flipped = chance.random(len(chosen)) < 0.5
        pixels[flipped] = pixels[flipped, :, :, ::-1]
        images, labels = valued(pixels, self._values), self._labels[chosen]
        return images, None if (labels < 0).any() else torch.from_numpy(labels)

    def _shifted(self, chosen: NDArray[np.int64], chance: np.random.Generator) -> NDArray[np.uint8]:
        """Small images, (N, C, H, W), each shifted by up to an eighth of its side; black comes in."""
        for index in chosen[~self._seen[chosen]]:
            self._pixels[index] = self.preprocess.pixels(self._decode(int(index)))
        height, width = self._pixels.shape[1:3]
        down, right = round(height * SHIFT), round(width * SHIFT)
        padded = np.pad(self._pixels[chosen], ((0, 0), (down, down), (right, right), (0, 0)))
        windows = sliding_window_view(padded, (height, width), axis=(1, 2))  # (N, shifts, shifts, C, H, W)
        top = chance.integers(0, 2 * down + 1, len(chosen))
        left = chance.integers(0, 2 * right + 1, len(chosen))
        return windows[np.arange(len(chosen)), top, left]

    def _cropped(self, chosen: NDArray[np.int64], chance: np.random.Generator) -> NDArray[np.uint8]:
        """Large images, (N, C, H, W): of each a part of random size, shape and place, resized."""
        whole = replace(self.preprocess, resize="stretch")
        parts = []
        for index, draws in zip(chosen, chance.random((len(chosen), 4)), strict=True):
            image = self._large.get(int(index))
            parts.append(whole.pixels(_part(self._stored(int(index)) if image is None else image, draws)))
        return np.ascontiguousarray(np.stack(parts).transpose(0, 3, 1, 2))

    def _stored(self, index: int) -> np.ndarray:
        """A decoded large image, made smaller where it is much larger than the network needs."""
        image = self._decode(index)
        scale = STORED * max(self.preprocess.height, self.preprocess.width) / min(image.shape[:2])
        if scale < 1:
            size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
            image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA))
        if image.nbytes <= self._room:
            self._room -= image.nbytes
            self._large[index] = image
        return image

    def _decode(self, index: int) -> np.ndarray:
        label = label_of(self.dataset, index)
        self._labels[index] = -1 if label is None else label
        image = self.dataset[index].image
        self._seen[index] = True
        return image


def _part(image: np.ndarray, draws: NDArray[np.float64]) -> np.ndarray:
    """The part of an image (H, W, 3) that four numbers within 0..1 choose: area, shape, place."""
    height, width = image.shape[:2]
    area = height * width * (AREA[0] + (AREA[1] - AREA[0]) * draws[0])
    ratio = math.exp(math.log(RATIO[0]) + math.log(RATIO[1] / RATIO[0]) * draws[1])
    across = min(width, max(1, round(math.sqrt(area * ratio))))
    down = min(height, max(1, round(math.sqrt(area / ratio))))
    top, left = int(draws[2] * (height - down + 1)), int(draws[3] * (width - across + 1))
    return image[top : top + down, left : left + across]
