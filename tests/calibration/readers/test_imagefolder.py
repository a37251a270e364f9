from __future__ import annotations

import shutil

import cv2
import numpy as np
import pytest
from calibration_samples import NAMES, put, put_image

from paredown.calibration.datasets import First, classes_of, open_dataset
from paredown.targets.errors import InputError, UsageError

pytestmark = pytest.mark.unit


@pytest.fixture
def folder(tmp_path):
    for name, count in (("tree", 3), ("car", 1), ("dog", 2)):
        for index in range(count):
            put_image(tmp_path / "set" / name / f"{index}.png", seed=hash((name, index)) % 1000)
    put(tmp_path / "set" / "readme.txt", "not an image")
    put_image(tmp_path / "set" / ".cache" / "0.png")
    return tmp_path / "set"


def labels(data) -> list[int]:
    return [int(data[index].classes[0]) for index in range(len(data))]


def test_a_folder_is_the_class_of_its_images(folder):
    data = open_dataset("imagefolder", folder, names=NAMES, require_labels=True)
    assert len(data) == 6 and data.names == NAMES
    for index in range(6):
        sample = data[index]
        assert sample.labelled and sample.boxes.shape == (0, 4) and sample.classes.shape == (1,)
        assert sample.name.startswith(f"{NAMES[sample.classes[0]]}/")
        np.testing.assert_array_equal(sample.image, cv2.imread(str(folder / sample.name)))
        assert classes_of(data, index).tolist() == sample.classes.tolist()


def test_the_first_images_are_of_all_classes(folder):
    data = open_dataset("imagefolder", folder, names=NAMES)
    assert labels(data) == [0, 1, 2, 1, 2, 2]
    assert sorted(labels(First(data, 3))) == [0, 1, 2]


def test_images_lie_anywhere_below_the_class_folder(folder):
    put_image(folder / "car" / "red" / "front" / "7.JPG")
    data = open_dataset("imagefolder", folder, names=NAMES)
    assert {data[i].name for i in range(len(data)) if data[i].classes[0] == 0} == {
        "car/0.png", "car/red/front/7.JPG",
    }  # fmt: skip


def test_classes_are_matched_by_name_not_by_the_order_of_the_folders(folder):
    (folder / "tree").rename(folder / "Christmas_Tree")
    names = ("christmas tree", "dog", "car")  # the folders in order: Christmas_Tree, car, dog
    assert labels(open_dataset("imagefolder", folder, names=names)) == [0, 2, 1, 0, 1, 0]
    with pytest.raises(
        InputError, match="Christmas_Tree: class 'Christmas_Tree' is not one of the network's"
    ):
        open_dataset("imagefolder", folder, names=("dog", "car"))
    data = open_dataset("imagefolder", folder, names=("dog", "car"), label_names=names)
    assert labels(data) == [1, 0, 0] and data.names == ("dog", "car")


def test_a_class_without_images_is_no_error_but_a_set_without_any_is(folder):
    for image in (folder / "dog").iterdir():
        image.unlink()
    assert sorted(labels(open_dataset("imagefolder", folder, names=NAMES))) == [0, 2, 2, 2]
    for name in ("tree", "car"):
        shutil.rmtree(folder / name)
    with pytest.raises(InputError, match="no images of the network's classes in any of the 1 class folders"):
        open_dataset("imagefolder", folder, names=NAMES)


def test_images_without_class_folders_are_unlabelled(tmp_path):
    put_image(tmp_path / "a.png")
    data = open_dataset("imagefolder", tmp_path, names=NAMES)
    assert not data[0].labelled and classes_of(data, 0) is None
    with pytest.raises(InputError, match="sort them into a folder per class"):
        open_dataset("imagefolder", tmp_path, names=NAMES, require_labels=True)
    put_image(tmp_path / "dog" / "b.png")
    with pytest.raises(InputError, match=r"a\.png: an image beside the 1 class folders"):
        open_dataset("imagefolder", tmp_path, names=NAMES)


def test_a_fingerprint_sees_bytes_and_classes(folder):
    seen = {open_dataset("imagefolder", folder, names=NAMES).fingerprint()}
    assert open_dataset("imagefolder", folder, names=NAMES).fingerprint() in seen
    seen.add(open_dataset("imagefolder", folder, names=NAMES[::-1]).fingerprint())
    put_image(folder / "car" / "0.png", seed=99)
    seen.add(open_dataset("imagefolder", folder, names=NAMES).fingerprint())
    (folder / "car" / "0.png").rename(folder / "dog" / "9.png")
    seen.add(open_dataset("imagefolder", folder, names=NAMES).fingerprint())
    assert len(seen) == 4


def test_what_is_wrong_is_one_line(folder, tmp_path):
    data = open_dataset("imagefolder", folder, names=NAMES)
    path = folder / data[0].name
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(InputError, match=r"car/0\.png: truncated PNG"):
        data[0]
    with pytest.raises(InputError, match="no such folder of class folders"):
        open_dataset("imagefolder", path, names=NAMES)
    with pytest.raises(UsageError, match="has no 'labels'"):
        open_dataset("imagefolder", folder, names=NAMES, labels=tmp_path)
