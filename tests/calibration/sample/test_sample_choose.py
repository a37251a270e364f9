"""Which images a bundle's sample has, and what of a photo is in it."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from blood_cells import NAMES, blood_cells

from paredown.calibration.datasets import First, open_dataset
from paredown.calibration.readers.images import decode_image, read_image
from paredown.calibration.readers.records import Sample
from paredown.calibration.sample.choose import BYTES, sample_files
from paredown.calibration.sample.records import MEMBER, open_sample

pytestmark = pytest.mark.unit


def none(sample: Sample) -> dict:
    return {}


def as_it_is(sample: Sample, arrays: dict) -> Sample:
    return sample


def tagged(path: Path, orientation: int, image: np.ndarray) -> None:
    """A JPEG as a phone writes it: EXIF with an orientation, and where it was."""
    ok, data = cv2.imencode(".jpg", image)
    assert ok
    entry = b"\x12\x01\x03\x00\x01\x00\x00\x00" + orientation.to_bytes(4, "little")
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + entry + b"\0\0\0\0" + b"GPS 52.1N 4.3E Alice"
    segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    path.write_bytes(data.tobytes()[:2] + segment + b"\xff\xfe\x00\x07Alice" + data.tobytes()[2:])


def test_images_and_labels_come_back(tmp_path):
    cells = blood_cells(tmp_path / "cells", {"test": 9})
    data = open_dataset("voc", cells / "ImageSets/Main/test.txt", names=NAMES)
    members = sample_files(First(data, 8), 8, 4, none, "ours")
    assert sorted(members) == [f"sample-0{n}.jpg" for n in range(4)] + [MEMBER]
    found = open_sample(members, NAMES, "a bundle", as_it_is)
    assert len(found) == 4 and found.listed.licence == "ours"
    for index, chosen in enumerate((0, 2, 5, 7)):  # evenly spread over the eight
        ours, theirs = found[index], data[chosen]
        assert np.array_equal(ours.image, theirs.image) and ours.labelled
        np.testing.assert_array_equal(ours.boxes, theirs.boxes)
        np.testing.assert_array_equal(ours.classes, theirs.classes)
        for key in ("boxes", "classes", "crowd"):
            np.testing.assert_array_equal(getattr(ours.ignored, key), getattr(theirs.ignored, key))
        assert found.classes_of(index).tolist() == theirs.classes.tolist()


def test_two_folders_give_the_same_bytes_and_no_name_of_theirs(tmp_path):
    made = []
    for user in ("alice", "bob"):
        cells = blood_cells(tmp_path / user, {"test": 5})
        data = open_dataset("voc", cells / "ImageSets/Main/test.txt", names=NAMES)
        made.append(sample_files(data, 5, 3, none, "ours"))
    assert made[0] == made[1]
    assert not any(
        word in b"".join(made[0].values()) for word in (b"alice", b"test_00", str(tmp_path).encode())
    )


@pytest.mark.parametrize(("orientation", "suffix"), [(1, "jpg"), (6, "png")])
def test_what_a_camera_wrote_beside_the_pixels_stays_at_home(tmp_path, orientation, suffix):
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    for kind in ("cat", "dog"):
        (tmp_path / kind).mkdir()
        tagged(tmp_path / kind / "0.jpg", orientation, image)
    data = open_dataset("imagefolder", tmp_path, names=("cat", "dog"))
    members = sample_files(data, 2, 2, none, "ours")
    stored = members[f"sample-00.{suffix}"]
    assert b"Alice" not in stored and b"Exif" not in stored
    shown = read_image(tmp_path / "cat" / "0.jpg")
    assert np.array_equal(decode_image(stored, "sample"), shown)
    assert shown.shape == ((40, 60, 3) if orientation == 1 else (60, 40, 3))


def test_large_photos_are_stored_smaller_and_the_whole_is_bounded(tmp_path):
    random = np.random.default_rng(0)
    for kind in ("cat", "dog"):
        (tmp_path / kind).mkdir()
        cv2.imwrite(str(tmp_path / kind / "0.png"), random.integers(0, 255, (900, 2048, 3), np.uint8))
    data = open_dataset("imagefolder", tmp_path, names=("cat", "dog"))
    members = sample_files(data, 2, 2, none, "ours")
    assert decode_image(members["sample-00.jpg"], "sample").shape == (450, 1024, 3)
    assert sum(map(len, members.values())) <= BYTES + len(members[MEMBER])
    masks = {"mask": np.zeros((900, 2048), np.uint8)}  # whose pixels are those of the image
    assert sample_files(data, 2, 2, lambda sample: masks, "ours") == {}


def test_unlabelled_images_are_no_sample(tmp_path):
    cells = blood_cells(tmp_path / "cells", {"test": 2})
    data = open_dataset("folder", cells / "JPEGImages", names=())
    assert sample_files(data, 2, 2, none, "ours") == {}
    arrays = {"output0": np.arange(6, dtype=np.float32).reshape(1, 6)}
    members = sample_files(data, 2, 1, lambda sample: arrays, "ours")
    assert json.loads(members[MEMBER])["images"][0]["arrays"] == {"output0": "sample-00.output0.npy"}
    found = open_sample(members, (), "a bundle", lambda sample, found: found)
    np.testing.assert_array_equal(found[0]["output0"], arrays["output0"])
