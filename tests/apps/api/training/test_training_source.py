"""Layouts of data sets are recognised as people have them, and what is missing is said."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from blood_cells import NAMES, blood_cells

from paredown.apps.api.training.hold_out import hold_out, opened
from paredown.apps.api.training.source import CLASSIFIER, DETECTOR, find_source
from paredown.targets.errors import InputError, UsageError


def image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.zeros((8, 8, 3), np.uint8))
    return path


def put(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def yolo(images: Path, labels: Path, count: int = 1) -> None:
    for number in range(count):
        image(images / f"{number}.png")
        put(labels / f"{number}.txt", "0 .5 .5 .2 .2\n1 .3 .3 .2 .2\n")


def test_an_ultralytics_yaml_with_names_by_number_and_a_root(tmp_path):
    for split in ("train", "val"):
        yolo(tmp_path / "set/images" / split, tmp_path / "set/labels" / split)
    text = "path: set\ntrain: images/train\nval: images/val\ntest:\nnames:\n  0: cat\n  1: dog\n"
    put(tmp_path / "data.yaml", text)
    for given in (tmp_path, tmp_path / "data.yaml"):
        source = find_source(given)
        assert (source.app, source.format, source.names) == (DETECTOR, "yolo", ("cat", "dog"))
        assert source.train == tmp_path / "set/images/train" and source.test is None
        assert source.validation == tmp_path / "set/images/val"
        assert len(opened(source, source.train)) == 1


def test_roboflows_folders_and_its_paths_that_lead_nowhere(tmp_path):
    for split in ("train", "valid", "test"):
        yolo(tmp_path / split / "images", tmp_path / split / "labels")
    put(tmp_path / "data.yaml", "train: ../train/images\nval: ../valid/images\nnc: 2\nnames: ['a', 'b']\n")
    assert find_source(tmp_path).train == tmp_path / "train/images"
    (tmp_path / "data.yaml").unlink()
    put(tmp_path / "classes.txt", "a\nb\n")
    source = find_source(tmp_path)
    assert source.names == ("a", "b") and source.validation == tmp_path / "valid/images"
    assert source.test == tmp_path / "test/images"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train: [", "malformed YAML"),
        ("- a", "no mapping with train"),
        ("train: images\nnames: [a]\nnc: 3", "nc is 3, and there are 1 names"),
        ("train: nowhere\nnames: [a]", "no train images 'nowhere'; looked at"),
        ("names: [a]", "no key 'train'"),
        ("train: images", "no list 'names'"),
        ("train: images\nnames: [a, a]", "a class twice"),
        ("train: images\nnames: {1: a}", "not 0 to 0"),
        ("train: [a, b]\nnames: [a]", "train is a list, not one folder"),
        ("train: !!python/object/apply:os.system ['touch ran']\nnames: [a]", "malformed YAML"),
    ],
)
def test_a_wrong_yaml_is_one_line(tmp_path, monkeypatch, text, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="data.yaml: ") as error:
        find_source(put(tmp_path / "data.yaml", text))
    assert words in str(error.value) and not (tmp_path / "ran").exists()


def test_voc_lists_are_used_and_names_are_found(tmp_path):
    blood_cells(tmp_path, {"train": 9, "val": 2})
    source = find_source(tmp_path)
    assert (source.format, source.names) == ("voc", NAMES)
    assert source.validation == tmp_path / "ImageSets/Main/val.txt"
    assert len(opened(source, source.train)) == 9


def test_coco_names_are_those_that_are_used(tmp_path):
    image(tmp_path / "images/a.png")
    document = {
        "images": [{"id": 1, "file_name": "a.png", "width": 8, "height": 8}],
        "categories": [{"id": 5, "name": "b"}, {"id": 2, "name": "a"}, {"id": 9, "name": "unused"}],
        "annotations": [
            {"image_id": 1, "category_id": c, "bbox": [1, 1, 4, 4]} for c in (5, 2)
        ],
    }  # fmt: skip
    file = put(tmp_path / "train.json", json.dumps(document))
    for given in (file, tmp_path):
        source = find_source(given)
        assert (source.format, source.names) == ("coco", ("a", "b"))
        assert len(opened(source, source.train)[0].boxes) == 2


def test_class_folders_and_lists_are_for_classifiers(tmp_path):
    for split in ("train", "val"):
        for kind in ("cat", "dog"):
            image(tmp_path / "sorted" / split / kind / "0.png")
    source = find_source(tmp_path / "sorted")
    assert (source.app, source.names) == (CLASSIFIER, ("cat", "dog"))
    assert source.validation == tmp_path / "sorted/val"
    listed = put(tmp_path / "list.csv", "file;label\nsorted/train/cat/0.png;cat\nsorted/val/dog/0.png;dog\n")
    source = find_source(listed)
    assert (source.app, source.names) == (CLASSIFIER, ("cat", "dog"))
    assert [opened(source, listed)[i].classes.tolist() for i in (0, 1)] == [[0], [1]]


def test_what_is_no_data_set_is_said_to_be_none(tmp_path):
    with pytest.raises(InputError, match="no such file or folder"):
        find_source(tmp_path / "absent")
    with pytest.raises(InputError, match="no images here; known are"):
        find_source(tmp_path)
    image(tmp_path / "photos/a.png")
    with pytest.raises(InputError, match="images, but no labels; known are"):
        find_source(tmp_path / "photos")
    yolo(tmp_path / "set", tmp_path / "set")
    with pytest.raises(InputError, match="no list of the classes' names; --names gives one"):
        find_source(tmp_path / "set")
    with pytest.raises(UsageError, match="unknown data format 'pascal'"):
        find_source(tmp_path / "set", format="pascal")


@pytest.mark.parametrize("format", ["yolo", "voc", "coco", "imagefolder"])
def test_a_fifth_is_held_out_where_there_is_no_validation(tmp_path, format):
    folder, count = tmp_path / "my set", 10
    if format == "yolo":
        yolo(folder / "images", folder / "labels", count)
        put(folder / "classes.txt", "a\nb\n")
    elif format == "voc":
        blood_cells(folder, {"all": count})
    elif format == "coco":
        images = [{"id": n, "file_name": f"{n}.png", "width": 8, "height": 8} for n in range(count)]
        boxes = [{"image_id": n, "category_id": 1, "bbox": [1, 1, 4, 4]} for n in range(count)]
        for entry in images:
            image(folder / "images" / entry["file_name"])
        document = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "a"}]}
        put(folder / "all.json", json.dumps(document))
    else:
        for number in range(count):
            image(folder / ("cat" if number % 2 else "dog") / f"{number} x.png")
    source = hold_out(find_source(folder), tmp_path / "out.safetensors")
    parts = [opened(source, path) for path in (source.train, source.validation)]
    assert [len(part) for part in parts] == [8, 2]
    seen = [{record.image.resolve() for record in part.records} for part in parts]
    assert not seen[0] & seen[1] and len(seen[0] | seen[1]) == count
    again = hold_out(find_source(folder), tmp_path / "out.safetensors")
    assert opened(again, again.train).fingerprint() == parts[0].fingerprint()


def test_too_few_labels_cannot_be_parted(tmp_path):
    yolo(tmp_path / "images", tmp_path / "labels", 3)
    put(tmp_path / "classes.txt", "a\nb\n")
    with pytest.raises(InputError, match="3 labelled images, too few to hold some out; label at least 8"):
        hold_out(find_source(tmp_path), tmp_path / "out.safetensors")
