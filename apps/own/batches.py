"""What training batches of all tasks share: an order, chance, and a table from levels to values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from paredown.calibration.array_input import AnyInput
from paredown.calibration.datasets import Dataset
from paredown.calibration.preprocess import Preprocess
from paredown.targets.errors import UsageError


class Order:
    """Which samples are in a step's batch, and the chance of that step: a pure function of its number."""

    def __init__(self, count: int, batch: int, seed: int) -> None:
        """Takes what the order is of.

        Args:
            count: of samples.
            batch: samples per step.
            seed: of everything.

        Raises:
            UsageError: fewer samples than a batch.
        """
        self._count, self._batch, self._seed = count, batch, seed
        self.per_epoch = count // batch
        if self.per_epoch == 0:
            raise UsageError(
                f"{count} images for batches of {batch}", where="train", hint="make the batch smaller"
            )
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, np.int64))

    def __call__(self, step: int) -> tuple[NDArray[np.int64], np.random.Generator]:
        """The samples' numbers, and where the step's chance comes from."""
        epoch, position = divmod(step, self.per_epoch)
        if self._order[0] != epoch:
            order = np.random.default_rng([self._seed, epoch]).permutation(self._count)
            self._order = (epoch, order)
        chosen = self._order[1][position * self._batch : (position + 1) * self._batch]
        return chosen, np.random.default_rng([self._seed, epoch, position, 1])


class PlainBatches:
    """Samples as they are, in an order by chance: of arrays nobody knows what may be done to them."""

    def __init__(
        self,
        data: Dataset,
        source: AnyInput,
        batch: int,
        seed: int,
        label: Callable[[Dataset, int], int | None] = lambda data, index: None,
    ) -> None:
        """Takes what the batches are made of.

        Args:
            data: images or arrays.
            source: makes the network's input of them.
            batch: samples per step.
            seed: of the order.
            label: the class of a sample, None without.

        Raises:
            UsageError: fewer samples than a batch.
        """
        self._data, self._source, self._label = data, source, label
        self._order = Order(len(data), batch, seed)
        self.per_epoch = self._order.per_epoch

    def __call__(self, step: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The inputs (N, ...) float32, and their classes (N,) int64, None if one has none."""
        chosen, _ = self._order(step)
        inputs = np.stack([self._source(self._data[int(index)].image) for index in chosen])
        labels = [self._label(self._data, int(index)) for index in chosen]
        known = [label for label in labels if label is not None]
        return torch.from_numpy(inputs), torch.tensor(known) if len(known) == len(labels) else None


def level_values(preprocess: Preprocess) -> NDArray[np.float32]:
    """(C, 256): what each level of each channel becomes, by the preprocessing of a picture of all levels."""
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    return replace(preprocess, width=256, height=1, resize="stretch", layout="nchw")(ramp)[:, 0]


def valued(pixels: NDArray[np.uint8], values: NDArray[np.float32]) -> torch.Tensor:
    """Pixels (N, C, H, W) as the network's input."""
    images = np.empty(pixels.shape, np.float32)
    for channel, table in enumerate(values):
        images[:, channel] = table[pixels[:, channel]]
    return torch.from_numpy(images)
