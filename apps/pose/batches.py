"""The batches that a pose network is trained on: turned, scaled, shifted and mirrored people."""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from paredown.apps.own.batches import Order, level_values, valued
from paredown.apps.pose.people import Points, PoseSample
from paredown.calibration.datasets import Dataset
from paredown.calibration.preprocess import Preprocess

TURN, SCALE, SHIFT = 20, 0.2, 0.05  # degrees, and shares of the size and of the side; at most, either way


class Batches:
    """Makes step's batch, a pure function of the step's number."""

    def __init__(self, dataset: Dataset, preprocess: Preprocess, batch: int, seed: int) -> None:
        """Takes what the batches are made of.

        Args:
            dataset: of people, or unlabelled.
            preprocess: of the network.
            batch: people per step.
            seed: of order and augmentation.

        Raises:
            UsageError: fewer people than a batch.
        """
        self._data, self._preprocess = dataset, preprocess
        self._order = Order(len(dataset), batch, seed)
        self.per_epoch = self._order.per_epoch
        self._values = level_values(preprocess)
        self._swap = mirrored(dataset.names)

    def __call__(self, step: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The images (N, C, H, W), and (N, keypoints, 3) for `heatmaps.hills`, None if one has none."""
        chosen, chance = self._order(step)
        images, labels = [], []
        for index, draws in zip(chosen, chance.random((len(chosen), 5)), strict=True):
            sample = self._data[int(index)]
            height, width = sample.image.shape[:2]
            flip = self._swap is not None and draws[4] < 0.5
            moved = _move(height, width, draws, flip)
            image = np.asarray(cv2.warpAffine(sample.image, moved, (width, height)))
            images.append(self._preprocess.pixels(image).transpose(2, 0, 1))
            if isinstance(sample, PoseSample):
                points = sample.points[self._swap] if flip and self._swap else sample.points
                labels.append(self._placed(points, moved, (height, width)))
        whole = torch.from_numpy(np.stack(labels)) if len(labels) == len(images) else None
        return valued(np.stack(images), self._values), whole

    def _placed(self, points: Points, moved: NDArray[np.float64], size: tuple[int, int]) -> Points:
        """Keypoints as shares of the input; what moved out of it is not labelled any more."""
        geometry = self._preprocess.geometry(*size)
        there = points[:, :2] @ moved[:, :2].T + moved[:, 2]
        x = there[:, 0] / size[1] * geometry.scale_x + geometry.offset_x
        y = there[:, 1] / size[0] * geometry.scale_y + geometry.offset_y
        inside = (x >= 0) & (x < 1) & (y >= 0) & (y < 1)
        return np.stack([x, y, points[:, 2] * inside], 1).astype(np.float32)


def mirrored(names: tuple[str, ...]) -> list[int] | None:
    """Which keypoint each becomes in a mirror, by "left" and "right" in the names; None without pairs.

    A thing without pairs may look otherwise in a mirror.
    """
    swapped = [_other_side(name) for name in names]
    if all(name == other for name, other in zip(names, swapped, strict=True)):
        return None
    return [names.index(other) for other in swapped] if set(swapped) == set(names) else None


def _other_side(name: str) -> str:
    for one, other in (("left", "right"), ("Left", "Right"), ("LEFT", "RIGHT")):
        if one in name:
            return name.replace(one, other)
        if other in name:
            return name.replace(other, one)
    return name


def _move(height: int, width: int, draws: NDArray[np.float64], flip: bool) -> NDArray[np.float64]:
    """(2, 3): where a pixel of the image goes, about the image's middle."""
    most = (math.radians(TURN), SCALE, SHIFT * width, SHIFT * height)
    turn, scale, right, down = (2 * draws[:4] - 1) * most
    across, along = (1 + scale) * math.cos(turn), (1 + scale) * math.sin(turn)
    turned = np.array([[across, along], [-along, across]])
    if flip:
        turned[:, 0] *= -1
    middle = np.array([(width - 1) / 2, (height - 1) / 2])
    return np.concatenate([turned, (middle - turned @ middle + (right, down))[:, None]], 1)
