from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np
import pytest
import torch

from paredown.apps.classifier.batches import Batches
from paredown.apps.own.task import MEAN, STD
from paredown.calibration.preprocess import Preprocess
from paredown.calibration.readers.records import Sample
from paredown.targets.errors import InputError, UsageError

pytestmark = pytest.mark.unit

SMALL = Preprocess(16, 16, mean=MEAN, std=STD)
LARGE = Preprocess(96, 72, "crop", mean=MEAN, std=STD)


@dataclass
class Pictures:
    """Random pictures whose class is their number."""

    count: int
    size: tuple[int, int] = (16, 16)
    labels: dict[int, list[int]] = field(default_factory=dict)
    flat: np.ndarray | None = None
    decoded: list[int] = field(default_factory=list)
    names = tuple(f"class{i}" for i in range(100))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        self.decoded.append(index)
        image = np.random.default_rng(index).integers(0, 256, (*self.size, 3), np.uint8)
        image = image if self.flat is None else self.flat
        classes = np.array(self.labels.get(index, [index]), np.int64)
        return Sample(str(index), image, np.zeros((0, 4), np.float32), classes, labelled=classes.sum() >= 0)

    def classes_of(self, index: int) -> np.ndarray | None:
        classes = np.array(self.labels.get(index, [index]), np.int64)
        return classes if classes.sum() >= 0 else None

    def fingerprint(self) -> str:
        return "pictures"


def variants(image: np.ndarray) -> list[bytes]:
    """Every shift by up to two pixels, mirrored or not, made one by one with OpenCV."""
    padded = cv2.copyMakeBorder(image, 2, 2, 2, 2, cv2.BORDER_CONSTANT, value=(0, 0, 0))
    shifted = [padded[y : y + 16, x : x + 16] for y in range(5) for x in range(5)]
    return [SMALL(np.ascontiguousarray(v)).tobytes() for s in shifted for v in (s, s[:, ::-1])]


def test_an_epoch_has_every_image_once_shifted_or_mirrored():
    data = Pictures(12)
    batches = Batches(data, SMALL, 4, seed=3)
    assert batches.per_epoch == 3
    seen, places = [], set()
    for step in range(6):
        images, labels = batches(step)
        assert (
            images.shape == (4, 3, 16, 16) and images.dtype == torch.float32 and labels.dtype == torch.int64
        )
        for image, label in zip(images.numpy(), labels.tolist(), strict=True):
            known = variants(data[label].image)
            assert image.tobytes() in known
            places.add(known.index(image.tobytes()))
            seen.append(label)
    assert sorted(seen[:12]) == sorted(seen[12:]) == list(range(12)) and seen[:12] != seen[12:]
    assert len(places) > 12  # of 50; chance is used


def test_a_batch_is_a_function_of_seed_and_step_alone():
    def batch(step: int, seed: int, *before: int) -> tuple[bytes, list[int]]:
        batches = Batches(Pictures(10), SMALL, 3, seed)
        for other in before:
            batches(other)
        images, labels = batches(step)
        return images.numpy().tobytes(), labels.tolist()

    assert batch(4, 1) == batch(4, 1, 0, 1, 2, 3) == batch(4, 1, 9, 4, 0)
    assert len({batch(4, 1)[0], batch(5, 1)[0], batch(4, 2)[0], batch(7, 1)[0]}) == 4


def test_small_images_are_decoded_once():
    data = Pictures(8)
    batches = Batches(data, SMALL, 4, 0)
    for step in range(10):
        batches(step)
    assert sorted(data.decoded) == list(range(8))


def test_large_images_are_cut_out_of_and_kept_as_memory_allows():
    for mib, decoded in ((0, 12), (64, 4)):
        data = Pictures(4, (300, 400))
        batches = Batches(data, LARGE, 4, 0, cache_mib=mib)
        for step in range(3):
            images, labels = batches(step)
            assert images.shape == (4, 3, 72, 96) and sorted(labels.tolist()) == [0, 1, 2, 3]
        assert len(data.decoded) == decoded
    again, _ = Batches(Pictures(4, (300, 400)), LARGE, 4, 0)(2)
    assert torch.equal(again, images)  # what was kept is what would be decoded again


def test_a_part_of_a_large_image_keeps_its_colours():
    """Every picture of one colour stays that colour, exactly as the preprocessing has it."""
    flat = np.full((200, 150, 3), (30, 90, 200), np.uint8)
    data = Pictures(2, flat=flat)
    images, _ = Batches(data, LARGE, 2, 0)(0)
    expected = LARGE(flat)
    np.testing.assert_array_equal(images.numpy(), np.stack([expected, expected]))


def test_labels():
    images, labels = Batches(Pictures(4, labels={2: [-1]}), SMALL, 4, 0)(0)
    assert labels is None and images.shape == (4, 3, 16, 16)  # one is unlabelled
    with pytest.raises(InputError, match="image 1 has 2 classes"):
        Batches(Pictures(4, labels={1: [3, 4]}), SMALL, 4, 0)(0)
    with pytest.raises(UsageError, match="3 images for batches of 4"):
        Batches(Pictures(3), SMALL, 4, 0)


def test_grey_networks_get_one_channel():
    grey = Preprocess(16, 16, colour="grey", mean=(0.5,), std=(0.25,))
    images, _ = Batches(Pictures(3), grey, 3, 0)(0)
    assert images.shape == (3, 1, 16, 16) and images.min() >= -2 and images.max() <= 2
