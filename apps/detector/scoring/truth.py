"""What is in the images: labels without the images themselves, and labels that a network made up."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from paredown.apps.detector.device.boxes.decode import Detections
from paredown.calibration.datasets import Dataset, Sample
from paredown.calibration.readers.records import Ignored

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Truth:
    """One image's labels and size.

    Attributes:
        boxes: (N, 4) cx, cy, w, h, normalised to the image.
        classes: (N,).
        labelled: whether somebody looked for objects in this image.
        size: height and width in pixels.
        ignored: objects that no score counts.
    """

    boxes: Array
    classes: Array
    labelled: bool
    size: tuple[int, int]
    ignored: Ignored = field(default_factory=Ignored)


class Truths:
    """The truths of a data set; an image is decoded once at most, for its size."""

    def __init__(self, data: Dataset) -> None:
        self._data = data
        self._known: dict[int, Truth] = {}

    def __getitem__(self, index: int) -> Truth:
        if index not in self._known:
            self.note(index, self._data[index])
        return self._known[index]

    def note(self, index: int, sample: Sample) -> Truth:
        """Keeps the truth of a sample that was decoded for something else."""
        height, width = sample.image.shape[:2]
        labels = sample.boxes, sample.classes, sample.labelled
        known = Truth(*labels, (height, width), sample.ignored)
        self._known[index] = known
        return known

    def first(self, count: int) -> list[Truth]:
        """Those of the first images."""
        return [self[index] for index in range(count)]


class PseudoLabelled:
    """A data set in which images without labels have those that a network gave them.

    Args:
        data: its first images.
        found: in each of these images; boxes x1, y1, x2, y2 normalised to the image.
    """

    def __init__(self, data: Dataset, found: Sequence[Detections]) -> None:
        self._data, self._found = data, tuple(found)
        self.names = data.names

    def __len__(self) -> int:
        return len(self._found)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self._found):
            raise IndexError(f"image {index} of {len(self._found)}")
        sample = self._data[index]
        if sample.labelled:
            return sample
        found = self._found[index]
        low, high = found.boxes[:, :2].clip(0, 1), found.boxes[:, 2:].clip(0, 1)
        boxes = np.concatenate([(low + high) / 2, high - low], axis=1).astype(np.float32)
        solid = (boxes[:, 2:] > 0).all(axis=1)  # a box outside the image is none
        classes = found.classes[solid].astype(np.int64)
        return replace(sample, boxes=boxes[solid], classes=classes, labelled=True)

    def fingerprint(self) -> str:
        """Of the data and of all that was found."""
        return self._fingerprint

    @functools.cached_property
    def _fingerprint(self) -> str:
        total = hashlib.sha256(f"{self._data.fingerprint()}:{len(self)}".encode())
        for found in self._found:
            for part in (found.boxes, found.scores, found.classes):
                total.update(f"{part.shape}".encode() + np.ascontiguousarray(part).tobytes())
        return total.hexdigest()
