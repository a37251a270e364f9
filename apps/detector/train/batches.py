"""The batches that a detector is trained on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from paredown.apps.detector.train.augment import mosaic
from paredown.apps.detector.train.config import TrainConfig
from paredown.apps.detector.train.loss import Target
from paredown.calibration.datasets import Dataset, Sample
from paredown.calibration.preprocess import Preprocess
from paredown.targets.errors import InputError, UsageError


class Batches:
    """Makes step's batch, a pure function of the step's number."""

    def __init__(
        self,
        dataset: Dataset,
        preprocess: Preprocess,
        config: TrainConfig,
        stride: int,
        require_labels: bool = True,
    ) -> None:
        """Takes what the batches are made of.

        Args:
            dataset: the images.
            preprocess: from an image to the network's input.
            config: batch size, augmentation and seed.
            stride: input pixels per cell.
            require_labels: refuse images without labels; else a batch with one of them has no targets.

        Raises:
            UsageError: fewer images than a batch.
        """
        self.require_labels = require_labels
        self.dataset, self.preprocess, self.config, self.stride = dataset, preprocess, config, stride
        self.per_epoch = len(dataset) // config.batch
        if self.per_epoch == 0:
            raise UsageError(
                f"{len(dataset)} images for batches of {config.batch}",
                where="train",
                hint="make the batch smaller",
            )
        self._cache: dict[int, Sample] = {}
        self._room = config.cache_mib * 2**20
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    def __call__(self, step: int) -> tuple[torch.Tensor, list[Target] | None]:
        """The images (N, C, H, W) float32 and their targets, None where an image has no labels."""
        epoch, position = divmod(step, self.per_epoch)
        if self._order[0] != epoch:
            self._order = (
                epoch,
                np.random.default_rng([self.config.seed, epoch]).permutation(len(self.dataset)),
            )
        chosen = self._order[1][position * self.config.batch : (position + 1) * self.config.batch]
        preprocess = self._scaled(step)
        images, targets, labelled = [], [], True
        for index in chosen:
            sample = self._sample(int(index))
            chance = np.random.default_rng([self.config.seed, epoch, int(index), 1])
            parts = self._put_together(sample, epoch, int(index))
            image, boxes, classes = self.config.augment(*parts, chance)
            images.append(preprocess(image))
            labelled &= sample.labelled
            targets.append(_target(preprocess, image, boxes, classes))
        return torch.from_numpy(np.stack(images)), targets if labelled else None

    def _put_together(
        self, sample: Sample, epoch: int, index: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The image with its boxes and classes, or with those of three more; not in the last tenth."""
        chance = np.random.default_rng([self.config.seed, epoch, index, 3])
        share = self.config.augment.mosaic if epoch < 0.9 * self.config.epochs else 0.0
        if not share or chance.random() >= share or not sample.labelled:
            return _objects(sample)
        others = chance.integers(0, len(self.dataset), 3)
        four = [sample, *(self._sample(int(other)) for other in others)]
        images, boxes, classes = zip(*map(_objects, four), strict=True)
        return mosaic(images, boxes, classes, self.preprocess, chance, self.config.augment.visible)

    def _sample(self, index: int) -> Sample:
        sample = self._cache.get(index)
        if sample is None:
            sample = self.dataset[index]
            if self.require_labels and not sample.labelled:
                raise InputError("an image without labels", where=sample.name, hint="training needs labels")
            if sample.image.nbytes <= self._room:
                self._room -= sample.image.nbytes
                self._cache[index] = sample
        return sample

    def _scaled(self, step: int) -> Preprocess:
        if not self.config.multi_scale:
            return self.preprocess
        cells = self.preprocess.width // self.stride
        chance = np.random.default_rng([self.config.seed, step // 10, 2])
        other = int(chance.integers(max(1, round(cells * 10 / 13)), round(cells * 19 / 13) + 1))
        height = max(1, round(self.preprocess.height * other / cells / self.stride)) * self.stride
        return replace(self.preprocess, width=other * self.stride, height=height)


def _objects(sample: Sample) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An image, its boxes and its classes; of objects that are ignored ~class, as the losses have it."""
    ignored = sample.ignored
    boxes = np.concatenate([sample.boxes, ignored.boxes])
    return sample.image, boxes, np.concatenate([sample.classes, ~ignored.classes])


def _target(preprocess: Preprocess, image: np.ndarray, boxes: np.ndarray, classes: np.ndarray) -> Target:
    corners = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1)
    corners = np.asarray(preprocess.geometry(*image.shape[:2]).to_input(corners), np.float32).reshape(-1, 4)
    corners = corners.clip(0, 1)  # a crop may have cut boxes, or lost them: the loss leaves out empty ones
    boxes = np.concatenate([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], axis=1)
    return torch.from_numpy(np.ascontiguousarray(classes, np.int64)), torch.from_numpy(boxes)
