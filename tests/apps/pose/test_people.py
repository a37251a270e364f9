"""COCO's keypoints: what is cut out, what is left out, and entries that are wrong."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from paredown.apps.pose.people import PoseSample, read_people
from paredown.targets.errors import InputError

pytestmark = pytest.mark.unit
NAMES = ("nose", "left_eye", "right_eye")


def document() -> dict:
    return {
        "images": [
            {"id": 7, "file_name": "a.png", "width": 60, "height": 40},
            {"id": 9, "file_name": "b.png", "width": 20, "height": 20},
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 3, "bbox": [10, 10, 20, 10], "iscrowd": 0, "area": 1,
             "num_keypoints": 2, "keypoints": [30, 20, 2, 12, 14, 1, 0, 0, 0]},
            {"id": 2, "image_id": 9, "category_id": 3, "keypoints": [5, 6, 2, 9, 16, 2, 1, 1, 1], "area": 1},
            {"id": 3, "image_id": 9, "category_id": 3, "iscrowd": 1, "segmentation": {}, "keypoints": []},
            {"id": 4, "image_id": 7, "category_id": 3, "bbox": [0, 0, 5, 5], "keypoints": [0] * 9},
        ],
        "categories": [{"id": 3, "name": "person", "keypoints": ["right_eye", "nose", "left_eye"]}],
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    random = np.random.default_rng(0)
    cv2.imwrite(str(tmp_path / "a.png"), random.integers(0, 256, (40, 60, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "b.png"), random.integers(0, 256, (20, 20, 3), np.uint8))
    return tmp_path


def opened(folder, content, names=NAMES, required=True, ratio=1.0):
    (folder / "p.json").write_text(json.dumps(content))
    return read_people(folder / "p.json", names, None, ratio, required)


def test_boxes_are_cut_out_and_keypoints_matched_by_name(folder):
    data = opened(folder, document())
    assert len(data) == 2 and data.names == NAMES
    first, second = data[0], data[1]
    assert isinstance(first, PoseSample) and isinstance(second, PoseSample)
    assert first.name == "a.png#0" and first.image.shape == (25, 25, 3) and first.length == 20
    left, top = 8, 2  # of the box about (20, 15), 25 pixels wide and high
    assert first.points.tolist() == [
        [12 - left, 14 - top, 1],
        [0 - left, 0 - top, 0],
        [30 - left, 20 - top, 1],
    ]
    whole = cv2.imread(str(folder / "a.png"))
    assert np.array_equal(first.image[:, :20], whole[top : top + 25, left : left + 20])
    assert first.classes.tolist() == data.classes_of(0).tolist() == [0, 2]
    # without a box: the whole image, and the longer side of the keypoints' own box
    assert second.image.shape == (20, 20, 3) and second.length == 15
    assert second.points.tolist() == [[9, 16, 1], [1, 1, 1], [5, 6, 1]]


def test_pycocotools_has_the_same_keypoints(folder):
    data = opened(folder, document(), ("right_eye", "nose", "left_eye"))
    theirs = COCO(str(folder / "p.json"))
    for index, annotation in enumerate(theirs.loadAnns([1, 2])):
        points = np.array(annotation["keypoints"], np.float32).reshape(-1, 3)
        ours = data._people[index].points
        assert np.array_equal(ours[:, :2], points[:, :2]) and np.array_equal(ours[:, 2], points[:, 2] > 0)


def test_a_file_without_annotations_is_unlabelled(folder):
    plain = document()
    del plain["annotations"]
    data = opened(folder, plain, required=False)
    assert len(data) == 2 and not data[0].labelled and data.classes_of(0) is None
    assert data[0].image.shape == (40, 60, 3)
    with pytest.raises(InputError, match="no 'annotations' in this file"):
        opened(folder, plain)


def test_the_fingerprint_follows_images_keypoints_and_the_input_s_shape(folder):
    first = opened(folder, document()).fingerprint()
    assert (
        opened(folder, document()).fingerprint() == first != opened(folder, document(), ratio=2).fingerprint()
    )
    changed = document()
    changed["annotations"][0]["keypoints"][0] = 31
    assert opened(folder, changed).fingerprint() != first


def test_an_image_of_another_size_is_named(folder):
    cv2.imwrite(str(folder / "b.png"), np.zeros((20, 21, 3), np.uint8))
    with pytest.raises(
        InputError, match=r"b\.png: the image is 21x20 pixels, its keypoints were made for 20x20"
    ):
        opened(folder, document())[1]


def wrong(change):
    made = document()
    change(made)
    return made


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["categories"][0]["keypoints"].append("tail"), "4 keypoints, and the network has 3"),
        (lambda d: d["categories"][0].update(keypoints=["nose", "left_eye", "a"]), "no keypoint 'right_eye'"),
        (lambda d: d["categories"][0].update(keypoints="nose"), "'keypoints' is no list of names"),
        (lambda d: d["annotations"][0]["keypoints"].pop(), r"annotations\[0\]: 'keypoints' has 8 numbers"),
        (lambda d: d["annotations"][0].pop("keypoints"), "no list 'keypoints' of finite numbers"),
        (lambda d: d["annotations"][0]["keypoints"].__setitem__(0, "x"), "no list 'keypoints' of finite"),
        (lambda d: d["annotations"][0]["keypoints"].__setitem__(2, 3), "a visibility of 3, not 0, 1 or 2"),
        (lambda d: d["annotations"][0].update(bbox=[1, 2, 0, 4]), "a box without area"),
        (lambda d: d["annotations"][0].update(bbox=[1, 2]), "is not four finite numbers"),
        (lambda d: d["annotations"][0].update(image_id=1), "image_id 1 is not among the images"),
        (lambda d: d["annotations"][0].update(category_id=1), "category_id 1 is not among the categories"),
        (lambda d: d["images"][0].update(file_name="c.png"), "no image 'c.png'"),
        (lambda d: d.update(annotations=[d["annotations"][3]]), "not one labelled keypoint"),
        (lambda d: d.pop("categories"), "no list 'categories'"),
    ],
)  # fmt: skip
def test_wrong_entries_are_named(folder, change, message):
    with pytest.raises(InputError, match=message) as caught:
        opened(folder, wrong(change))
    assert "p.json" in str(caught.value)
