"""What the data set formats share: names, options, fingerprints; and the real sets, counted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from calibration_samples import NAMES, SHARED, needs_shared, put, put_image

from paredown.calibration.datasets import First, Kept, census_of, open_dataset, read_names
from paredown.calibration.readers.records import Classes, match_name
from paredown.targets.errors import InputError, UsageError

pytestmark = pytest.mark.unit


def test_samples_are_kept_as_far_as_there_is_room(tmp_path):
    for number in range(3):
        put_image(tmp_path / f"{number}.png", 8, 6)
    read = []

    class Counted(First):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    whole = open_dataset("folder", tmp_path, names=())
    kept = Kept(Counted(whole, 3), room=2 * 8 * 6 * 3)
    for _ in range(2):
        for index in range(3):
            assert np.array_equal(kept[index].image, whole[index].image)
    assert read == [0, 1, 2, 2] and len(kept) == 3
    assert Kept(whole).fingerprint() == whole.fingerprint() and census_of(Kept(whole)) == whole.census
    with pytest.raises(ValueError, match="read-only"):
        kept[0].image[0] = 0
    with pytest.raises(IndexError):
        kept[3]


def test_read_names(tmp_path):
    path = tmp_path / "a.names"
    path.write_bytes(b"\xef\xbb\xbfcar\r\ntraffic light\r\ncaf\xc3\xa9\r\n\r\n")
    assert read_names(path) == ("car", "traffic light", "café")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no class names"),
        (b"\n \n", "no class names"),
        (b"car\n\ndog\n", r"a\.names:2: a blank line"),
        (b"car\ndog\ncar\n", r"a\.names:3: class 'car' for the second time"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_bad_names(tmp_path, data, words):
    path = tmp_path / "a.names"
    path.write_bytes(data)
    with pytest.raises(InputError, match=words):
        read_names(path)
    with pytest.raises(InputError, match=r"none\.names: cannot read"):
        read_names(tmp_path / "none.names")


@pytest.mark.parametrize(
    ("name", "names", "want"),
    [
        ("dog", ("car", "dog"), 1),
        ("Dog", ("car", "dog"), 1),
        ("potted plant", ("pottedplant",), 0),
        ("traffic_light", ("traffic light",), 0),
        ("airplane", ("aeroplane",), 0),
        ("aeroplane", ("airplane",), 0),
        ("tv", ("tvmonitor", "tv"), 1),
        ("TV", ("tvmonitor",), 0),
        ("hot dog", ("dog",), None),
        ("", ("dog",), None),
    ],
)
def test_match_name(name, names, want):
    assert match_name(name, names) == want


# The 80 names of COCO's own JSON in the order of their ids, where they differ from darknet's coco.names.
@needs_shared
def test_all_of_cocos_own_names_are_found_in_darknets_list():
    darknet = read_names(SHARED / "yololite-yolov2" / "coco.names")
    own = {"airplane": 4, "motorcycle": 3, "couch": 57, "potted plant": 58, "dining table": 60, "tv": 62}
    assert {name: match_name(name, darknet) for name in own} == own
    voc = read_names(SHARED / "yololite-yolov2" / "voc.names")
    assert sum(match_name(name, voc) is not None for name in darknet) == 20


def test_lists_without_a_name_in_common():
    with pytest.raises(InputError, match="no name in common.*label_names"):
        Classes(NAMES, ("cat", "bird"))


def test_wrong_options(tmp_path):
    put_image(tmp_path / "a.png")
    with pytest.raises(UsageError, match="did you mean yolo.*known: yolo, voc, coco, folder"):
        open_dataset("yolov2", tmp_path, names=NAMES)
    with pytest.raises(UsageError, match=r"data\.names: no classes"):
        open_dataset("yolo", tmp_path, names=[])
    with pytest.raises(UsageError, match="'coco' has no 'labels'"):
        open_dataset("coco", tmp_path / "a.json", names=NAMES, labels=tmp_path)
    with pytest.raises(UsageError, match="'folder' has no 'images'"):
        open_dataset("folder", tmp_path, names=NAMES, images=tmp_path)
    with pytest.raises(UsageError, match=r"data\.images: goes with a list"):
        open_dataset("yolo", tmp_path, names=NAMES, images=tmp_path)


@pytest.mark.parametrize("format", ["yolo", "voc", "coco", "folder"])
def test_missing_and_empty(tmp_path, format):
    with pytest.raises(InputError, match="nowhere: no such file or folder"):
        open_dataset(format, tmp_path / "nowhere", names=NAMES)
    with pytest.raises(InputError):
        open_dataset(format, tmp_path / "nul\0", names=NAMES)
    with pytest.raises(InputError, match="no images in this folder" if format != "coco" else "cannot read"):
        open_dataset(format, tmp_path, names=NAMES)


@pytest.mark.parametrize("format", ["yolo", "voc", "folder"])
def test_labels_where_they_are_required(tmp_path, format):
    put_image(tmp_path / "a.png")
    assert open_dataset(format, tmp_path, names=NAMES)[0].labelled is False
    with pytest.raises(InputError, match="needed here"):
        open_dataset(format, tmp_path, names=NAMES, require_labels=True)


def test_labels_without_a_box_where_they_are_required(tmp_path):
    put_image(tmp_path / "a.png")
    put(tmp_path / "a.txt", "0 .5 .5 .5 .5")
    options = {"names": NAMES, "label_names": ("cat", "dog")}
    assert len(open_dataset("yolo", tmp_path, **options)[0].boxes) == 0
    with pytest.raises(InputError, match="not one box of the network's classes"):
        open_dataset("yolo", tmp_path, **options, require_labels=True)


def test_truncated_image_is_named_when_it_is_asked_for(tmp_path):
    path = put_image(tmp_path / "a.jpg")
    path.write_bytes(path.read_bytes()[:-200])
    data = open_dataset("folder", tmp_path, names=NAMES)
    with pytest.raises(InputError, match=r"a\.jpg: truncated JPEG"):
        data[0]


def test_labels_are_read_only(tmp_path):
    put_image(tmp_path / "a.png")
    put(tmp_path / "a.txt", "0 .5 .5 .5 .5")
    with pytest.raises(ValueError, match="read-only"):
        open_dataset("yolo", tmp_path, names=NAMES)[0].boxes[0] = 0


def test_fingerprint_follows_the_bytes_and_not_the_place(tmp_path, monkeypatch):
    for name in "ab":
        put_image(tmp_path / f"one/{name}.png", seed=ord(name))
        put(tmp_path / f"one/{name}.txt", "0 .5 .5 .5 .5")
    shutil.copytree(tmp_path / "one", tmp_path / "two")

    def fingerprint(folder: str, **options) -> str:
        return open_dataset("yolo", tmp_path / folder, **{"names": NAMES, **options}).fingerprint()

    base = fingerprint("one")
    assert len(base) == 64 and fingerprint("two") == base
    assert fingerprint("two", names=("car", "dog", "bush")) != base
    assert fingerprint("two", label_names=NAMES) != base
    put(tmp_path / "two/a.txt", "0 .5 .5 .5 .50")
    changed = fingerprint("two")
    put(tmp_path / "two/a.txt", "0 .5 .5 .5 .5")
    assert changed != base and fingerprint("two") == base
    (tmp_path / "two/a.png").rename(tmp_path / "two/c.png")
    (tmp_path / "two/a.txt").rename(tmp_path / "two/c.txt")
    assert fingerprint("two") != base
    put_image(tmp_path / "two/c.png", seed=99)
    (tmp_path / "two/c.png").rename(tmp_path / "two/a.png")
    (tmp_path / "two/c.txt").rename(tmp_path / "two/a.txt")
    assert fingerprint("two") != base

    data = open_dataset("yolo", tmp_path / "one", names=NAMES)
    assert data.fingerprint() == base
    monkeypatch.setattr(Path, "open", lambda *_: pytest.fail("read a second time"))
    assert data.fingerprint() == base


def test_fingerprint_of_a_vanished_image(tmp_path):
    path = put_image(tmp_path / "a.png")
    data = open_dataset("folder", tmp_path, names=NAMES)
    path.unlink()
    with pytest.raises(InputError, match=r"a\.png: cannot read the image"):
        data.fingerprint()


@needs_shared
@pytest.mark.parametrize(
    ("names", "split", "images", "count"),
    [
        ("voc", "val", 64, 287),
        ("voc", "train", 128, 452),
        ("coco", "val", 64, None),
        ("coco", "train", 128, 929),
    ],
)
def test_coco_of_the_house(names, split, images, count):
    """The counts are those of shared/data/README.md and of the set's SOURCE.txt."""
    lists = SHARED / "yololite-yolov2"
    data = open_dataset(
        "yolo",
        SHARED / "coco" / "images" / split,
        names=read_names(lists / f"{names}.names"),
        label_names=read_names(lists / "coco.names"),
        require_labels=True,
    )
    samples = [data[index] for index in range(len(data))]
    assert len(samples) == images
    assert count is None or sum(len(sample.boxes) for sample in samples) == count
    assert all(sample.image.shape[2] == 3 and sample.image.any() for sample in samples)


@needs_shared
def test_aerial_cars_of_the_house():
    folder = SHARED / "aerial-cars"
    data = open_dataset("yolo", folder, names=read_names(folder / "aerial.names"), require_labels=True)
    assert len(data) == 92
    lines = sum(
        bool(line.strip())
        for path in folder.glob("*.txt")
        if path.with_suffix(".jpg").is_file()
        for line in path.read_text().split("\n")
    )
    assert sum(len(record.boxes) for record in data.records) == lines == 2746


@needs_shared
def test_coco_reader_agrees_with_pycocotools_and_the_yolo_reader(tmp_path):
    """The house's YOLO labels rewritten as COCO JSON: both readers and pycocotools see the same boxes."""
    pycoco = pytest.importorskip("pycocotools.coco")
    names = read_names(SHARED / "yololite-yolov2" / "coco.names")
    folder = SHARED / "coco" / "images" / "val"
    plain = open_dataset("yolo", folder, names=names)
    images, annotations = [], []
    for number in range(len(plain)):
        sample = plain[number]
        height, width = sample.image.shape[:2]
        images.append({"id": number, "file_name": sample.name, "width": width, "height": height})
        for (cx, cy, w, h), index in zip(sample.boxes.tolist(), sample.classes.tolist(), strict=True):
            box = [(cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height]
            known = {"id": len(annotations) + 1, "image_id": number, "iscrowd": 0, "area": box[2] * box[3]}
            annotations.append({**known, "category_id": index + 1, "bbox": box})
    categories = [{"id": number + 1, "name": name} for number, name in enumerate(names)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    path = put(tmp_path / "val.json", json.dumps(document))
    data = open_dataset("coco", path, names=names, images=folder)
    oracle = pycoco.COCO(str(path))
    for number in range(len(data)):
        sample, other = data[number], plain[number]
        assert sample.name == other.name and sample.classes.tolist() == other.classes.tolist()
        np.testing.assert_allclose(sample.boxes, other.boxes, atol=2e-6)
        truth = oracle.loadAnns(oracle.getAnnIds(imgIds=[number]))
        assert [item["category_id"] - 1 for item in truth] == sample.classes.tolist()
        height, width = sample.image.shape[:2]
        corners = (sample.boxes[:, :2] - sample.boxes[:, 2:] / 2) * (width, height)
        np.testing.assert_allclose(
            corners, np.array([item["bbox"][:2] for item in truth]).reshape(-1, 2), atol=1e-3
        )
