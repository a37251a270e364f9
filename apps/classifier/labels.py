"""Labels and outputs of a classifier: ranks, confidence, and data sets labelled by a network."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from paredown.calibration.datasets import Dataset, Sample, classes_of
from paredown.targets.errors import InputError

Z95 = 1.959963984540054  # of the normal distribution, two-sided


def label_of(data: Dataset, index: int) -> int | None:
    """A sample's one class, None where it is unlabelled.

    Raises:
        InputError: it has none, or several.
    """
    classes = classes_of(data, index)
    if classes is None:
        return None
    if len(classes) != 1:
        raise InputError(f"image {index} has {len(classes)} classes; a classifier's images have one each")
    return int(classes[0])


def ranks(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many classes come before the true one; of equal logits the lower class comes first, as in argmax.

    Args:
        logits: (N, classes).
        labels: (N,).

    Returns:
        (N,); 0 where the network is right.
    """
    true = logits[np.arange(len(labels)), labels][:, None]
    before = np.arange(logits.shape[1])[None] < labels[:, None]
    # Not "logits > true": a NaN beats everything, as it does in argmax.
    return ((~(logits <= true)) | ((logits == true) & before)).sum(1)


def wilson(right: int, count: int) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson 1927): sound for few samples and for shares near 1.

    Raises:
        ValueError: nothing was counted.
    """
    if count < 1:
        raise ValueError("no samples")
    share, square = right / count, Z95 * Z95
    middle = (share + square / (2 * count)) / (1 + square / count)
    half = Z95 / (1 + square / count) * math.sqrt(share * (1 - share) / count + square / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


class Relabelled:
    """The first images of a data set; those without a label get the one that is given here.

    Args:
        data: may be unlabelled.
        labels: a class for each of its first images.
    """

    def __init__(self, data: Dataset, labels: Sequence[int]) -> None:
        self.names = data.names
        self._data, self._labels = data, tuple(int(label) for label in labels)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        sample = self._data[index]
        if sample.labelled:
            return sample
        return replace(sample, classes=np.array([self._labels[index]], np.int64), labelled=True)

    def classes_of(self, index: int) -> NDArray[np.int64]:
        """(1,) int64, without decoding the image."""
        known = classes_of(self._data, index)
        return np.array([self._labels[index]], np.int64) if known is None else known

    def fingerprint(self) -> str:
        """Of the whole set and the labels."""
        return hashlib.sha256(f"{self._data.fingerprint()}:{self._labels}".encode()).hexdigest()
