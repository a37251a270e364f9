"""Every data set says what is in it, and what was left out and why."""

from __future__ import annotations

import struct
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paredown.calibration.census import Census, count_classes
from paredown.calibration.datasets import First, census_of, open_dataset
from paredown.targets.errors import InputError

NAMES = ("red", "white", "platelet")


def image(path: Path, size: tuple[int, int] = (40, 20), orientation: int = 1) -> Path:
    """An image file of this width and height as stored; a JPEG may have EXIF's flag."""
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = path.suffix.lower()
    ok, data = cv2.imencode(suffix, np.full((size[1], size[0], 3), 90, np.uint8))
    assert ok
    found = data.tobytes()
    if orientation != 1:
        tiff = b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)
        segment = b"Exif\0\0" + tiff
        found = found[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + found[2:]
    path.write_bytes(found)
    return path


def put(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@settings(max_examples=20, deadline=None)
@given(rows=st.lists(st.lists(st.integers(0, 2), max_size=4) | st.none(), min_size=1, max_size=6))
def test_the_count_is_that_of_the_label_files(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("set")
    for number, classes in enumerate(rows):
        image(folder / f"{number}.png")
        if classes is not None:
            put(folder / f"{number}.txt", "".join(f"{c} .5 .5 .2 .2\n" for c in classes))
    census = census_of(open_dataset("yolo", folder, names=NAMES))
    assert census is not None
    known = [row for row in rows if row is not None]
    assert (census.images, census.labelled) == (len(rows), len(known))
    expected = Counter(c for row in known for c in row)
    assert census.objects == {name: expected[index] for index, name in enumerate(NAMES)}
    assert dict(census.rows())["objects_red"] == expected[0]


def test_files_that_are_no_known_images_are_named_with_what_to_do(tmp_path):
    image(tmp_path / "a.JPG")
    put(tmp_path / "a.TXT", "0 .5 .5 .2 .2\n")
    for name in ("b.heic", "c.HEIC", "d.gif", "e.psd", "Thumbs.db", ".hidden.heic"):
        put(tmp_path / name, "x")
    census = census_of(open_dataset("yolo", tmp_path, names=NAMES))
    assert census is not None and census.labelled == 1
    line = census.line()
    assert line.startswith("1 images, 1 labelled; 1 boxes: red 1; none of white, platelet; ")
    assert "1 .gif files left out (not read: convert them to PNG)" in line
    assert "2 .heic files left out (not read: convert them to JPEG)" in line
    assert "1 .psd files left out (no known kind of image)" in line and ".db" not in line
    only = tmp_path / "phone"
    put(only / "a.heic", "x")
    with pytest.raises(InputError, match=r"no images in this folder; known: .*; found 1 \.heic"):
        open_dataset("folder", only, names=())


def test_linked_folders_are_followed_and_circles_end(tmp_path):
    image(tmp_path / "disk" / "a.png")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "linked").symlink_to(tmp_path / "disk", target_is_directory=True)
    (tmp_path / "disk" / "up").symlink_to(tmp_path / "set", target_is_directory=True)
    data = open_dataset("folder", tmp_path / "set", names=())
    assert [data[index].name for index in range(len(data))] == ["linked/a.png"]


def test_the_same_name_in_several_folders_has_labels_of_its_own(tmp_path):
    for number, folder in enumerate(("day", "night")):
        image(tmp_path / "images" / folder / "0001.jpg")
        put(tmp_path / "labels" / folder / "0001.txt", f"{number} .5 .5 .2 .2\n")
    files = [tmp_path / "images" / folder / "0001.jpg" for folder in ("day", "night")]
    listed = put(tmp_path / "all.txt", "".join(f"{file}\n" for file in files))
    for path, labels in ((tmp_path / "images", None), (listed, None), (listed, tmp_path / "labels")):
        data = open_dataset("yolo", path, names=NAMES, labels=labels)
        assert [data[i].name for i in (0, 1)] == ["day/0001.jpg", "night/0001.jpg"]
        assert [data[i].classes.tolist() for i in (0, 1)] == [[0], [1]]


def test_boxes_that_reach_outside_are_errors_or_clipped_and_counted(tmp_path):
    image(tmp_path / "a.png")
    put(tmp_path / "a.txt", "0 .9 .5 .4 .5\n1 1.5 .5 .2 .2\n2 .5 .5 .1 .1\n")
    with pytest.raises(InputError, match="2 errors in the labels") as error:
        open_dataset("yolo", tmp_path, names=NAMES)
    assert "a.txt:1" in str(error.value) and 'data.boxes = "clip"' in str(error.value)
    data = open_dataset("yolo", tmp_path, names=NAMES, clip=True)
    assert data[0].classes.tolist() == [0, 2]
    assert data[0].boxes[0] == pytest.approx([0.85, 0.5, 0.3, 0.5])
    census = census_of(data)
    assert census is not None
    assert census.left_out[:2] == (
        "1 boxes clipped to the image",
        "1 boxes left out, since they lie outside the image",
    )


def test_labels_in_pixels_are_said_to_be_so(tmp_path):
    image(tmp_path / "a.png")
    put(tmp_path / "a.txt", "0 20 10 8 6\n")
    with pytest.raises(InputError, match="not normalised to it: 20 10 8 6; YOLO labels are shares"):
        open_dataset("yolo", tmp_path, names=NAMES, clip=True)


VOC = (
    "<annotation><size><width>{}</width><height>{}</height></size><object><name>red</name>"
    "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>18</ymax></bndbox></object></annotation>"
)


def test_images_that_exif_turns_are_counted_and_labels_of_the_stored_pixels_noticed(tmp_path):
    image(tmp_path / "a.jpg", (40, 20), orientation=6)
    put(tmp_path / "a.xml", VOC.format(20, 40))
    upright = open_dataset("voc", tmp_path, names=NAMES)
    assert upright[0].image.shape == (40, 20, 3)
    census = census_of(upright)
    assert census is not None and "1 images turned upright by EXIF" in census.line()
    put(tmp_path / "a.xml", VOC.format(40, 20))
    with pytest.raises(InputError, match=r'made for 40x20 pixels as stored.*data\.orientation = "stored"'):
        open_dataset("voc", tmp_path, names=NAMES)
    stored = open_dataset("voc", tmp_path, names=NAMES, orientation="stored")
    assert stored[0].image.shape == (20, 40, 3) and len(stored[0].boxes) == 1
    assert stored.fingerprint() != upright.fingerprint()


def test_what_label_names_drop_is_counted(tmp_path):
    image(tmp_path / "a.png")
    put(tmp_path / "a.txt", "0 .5 .5 .2 .2\n1 .5 .5 .2 .2\n")
    census = census_of(open_dataset("yolo", tmp_path, names=("red",), label_names=("red", "dust")))
    assert census is not None and "1 boxes of other classes left out" in census.line()


def test_a_part_of_a_set_says_so_and_long_lists_are_cut(tmp_path):
    for name in NAMES:
        image(tmp_path / name / "0.png")
    data = open_dataset("imagefolder", tmp_path, names=NAMES)
    part = census_of(First(data, 2))
    assert part is not None
    whole = "3 images, 3 labelled, the first 2 used; classes: red 1, white 1, platelet 1"
    assert part.line() == whole
    many = Census(20, 20, {f"c{number}": 20 - number for number in range(12)})
    assert many.line().endswith("and 4 more classes")
    assert count_classes([0, None, 0], ("cat",)).line() == "3 images, 2 labelled; classes: cat 2"
