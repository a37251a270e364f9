"""Mosaics and colours: boxes stay on their objects, which are found by their pixels."""

from __future__ import annotations

import numpy as np
import pytest
from blood_cells import NAMES, blood_cells
from hypothesis import given, settings
from hypothesis import strategies as st

from paredown.apps.detector.digits import Digits
from paredown.apps.detector.train.augment import Augment, mosaic
from paredown.apps.detector.train.batches import Batches
from paredown.apps.detector.train.config import TrainConfig
from paredown.calibration.datasets import open_dataset
from paredown.calibration.preprocess import Preprocess

SQUARE = Preprocess(64, 64)
COLOURS = np.array([[230, 0, 0], [0, 230, 0], [0, 0, 230], [230, 230, 230]])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_boxes_of_a_mosaic_stay_on_their_objects(seed):
    rng = np.random.default_rng(seed)
    images, boxes = [], []
    for number in range(4):
        height, width = (int(v) for v in rng.integers(60, 140, 2))
        x, y, w, h = (int(v) for v in rng.integers((0, 0, 15, 15), (40, 40, 20, 20)))
        image = np.zeros((height, width, 3), np.uint8)
        image[y : y + h, x : x + w] = COLOURS[number]
        images.append(image)
        boxes.append(
            np.array([[(x + w / 2) / width, (y + h / 2) / height, w / width, h / height]], np.float32)
        )
    classes = [np.array([number]) for number in range(4)]
    made, found, kinds = mosaic(images, boxes, classes, Preprocess(128, 96), rng, visible=0.3)
    assert made.shape == (96, 128, 3) and len(found) == len(kinds) <= 4
    assert found.dtype == np.float32 and (found[:, 2:] > 0).all()
    for (cx, cy, w, h), kind in zip(found * np.tile([128, 96], 2), kinds, strict=True):
        # resizing blurs an edge by a pixel or two
        apart = np.abs(made.astype(int) - COLOURS[kind]).max(axis=2)
        rows, columns = np.nonzero(apart <= 40)
        assert len(rows), "an object that cannot be seen has a box"
        expected = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        assert np.abs(np.array([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]) - expected).max() <= 3


def test_images_of_a_mosaic_are_resized_as_the_networks_input_is():
    """Columns of black and white, 16 times as many as there is room for: their mean is grey."""
    image = np.zeros((64, 1024, 3), np.uint8)
    image[:, ::2] = 255
    none, nobody = np.zeros((0, 4)), np.zeros(0, int)
    for resample in ("bilinear", "area"):
        look = Preprocess(64, 64, resample=resample)
        made, _, _ = mosaic([image] * 4, [none] * 4, [nobody] * 4, look, np.random.default_rng(0))
        spread = made[20:44, 20:44].astype(int)
        assert (np.abs(spread - 127.5).max() < 30) == (resample == "area")


def test_what_is_hardly_seen_in_a_mosaic_has_no_box():
    image = np.zeros((64, 64, 3), np.uint8)
    box = np.array([[0.05, 0.05, 0.1, 0.1]], np.float32)  # far from the middle: cut off in three of four
    counts = {
        len(mosaic([image] * 4, [box] * 4, [np.array([1])] * 4, SQUARE, np.random.default_rng(seed))[1])
        for seed in range(20)
    }
    assert max(counts) <= 4 and min(counts) < 4
    assert (
        len(mosaic([image] * 4, [box[:0]] * 4, [np.zeros(0, int)] * 4, SQUARE, np.random.default_rng(0))[1])
        == 0
    )


def test_colours_turn_and_nothing_else_does():
    image = np.full((8, 8, 3), (40, 90, 200), np.uint8)
    boxes, classes = np.array([[0.5, 0.5, 0.2, 0.2]], np.float32), np.array([3])
    plain = Augment(0, 0, False, 0, hsv=(0.0, 0.0, 0.0))
    assert np.array_equal(plain(image, boxes, classes, np.random.default_rng(0))[0], image)
    strong = Augment(0, 0, False, 0, hsv=(0.1, 0.5, 0.5))
    got, moved, kinds = strong(image, boxes, classes, np.random.default_rng(0))
    assert got.shape == image.shape and not np.array_equal(got, image) and len(np.unique(got)) <= 3
    assert np.array_equal(moved, boxes) and kinds.tolist() == [3]


@pytest.mark.parametrize(("epochs", "mixed"), [(10, True), (1, True)])
def test_batches_mix_images_but_in_the_last_tenth(epochs, mixed):
    data, plain = Digits("train", 8), Augment(0, 0, False, 0)
    config = TrainConfig(epochs=epochs, batch=4, augment=Augment(0, 0, False, 0, mosaic=1.0))
    several = Batches(data, Preprocess(64, 64), config, stride=16)
    alone = Batches(data, Preprocess(64, 64), TrainConfig(epochs=epochs, batch=4, augment=plain), stride=16)
    assert bool((several(0)[0] != alone(0)[0]).any()) is mixed
    again = Batches(data, Preprocess(64, 64), config, stride=16)
    assert bool((again(0)[0] == several(0)[0]).all())
    if epochs == 10:
        last = 9 * several.per_epoch
        assert bool((several(last)[0] == alone(last)[0]).all())


def test_what_is_ignored_stays_so_however_little_is_seen():
    """Also in a mosaic; labels that count are dropped there."""
    image = np.zeros((64, 64, 3), np.uint8)
    box = np.array([[0.5, 0.5, 0.9, 0.9]], np.float32)
    for seed in range(10):
        made = [
            mosaic([image] * 4, [box] * 4, [np.array([kind])] * 4, SQUARE, np.random.default_rng(seed), 0.99)
            for kind in (1, ~1)
        ]
        assert len(made[0][1]) < 4 == len(made[1][1]) and set(made[1][2].tolist()) == {~1}
        chance = np.random.default_rng(seed)
        _, found, kinds = Augment(shift=0.5, visible=0.99)(
            image, np.tile(box, (2, 1)), np.array([1, ~1]), chance
        )
        assert kinds.tolist()[-1] == ~1 and len(found) == len(kinds)


def test_batches_say_what_is_ignored(tmp_path):
    """The first cell of each image is difficult."""
    cells = blood_cells(tmp_path, {"train": 4})
    for file in (cells / "Annotations").glob("*.xml"):
        file.write_text(file.read_text().replace("<difficult>0", "<difficult>1", 1))
    data = open_dataset("voc", cells / "ImageSets/Main/train.txt", names=NAMES)
    assert all(len(record.ignored) for record in data.records)
    none = Augment(zoom=0, shift=0, flips=False, colour=0)
    _, targets = Batches(data, Preprocess(64, 64), TrainConfig(batch=4, augment=none), 16)(0)
    found = sorted(int(kind) for kinds, _ in targets for kind in kinds)
    expected = [c for r in data.records for c in (*r.classes, *~r.ignored.classes)]
    assert found == sorted(int(kind) for kind in expected) and found[0] < 0
