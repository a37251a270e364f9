"""The reader of YOLO labels: round trips, wrong lines named, and where label files are looked for."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from calibration_samples import NAMES, H, W, boxes, put, put_image
from hypothesis import given, settings
from hypothesis import strategies as st

from paredown.calibration.datasets import open_dataset
from paredown.calibration.readers.records import Classes
from paredown.calibration.readers.yolo import parse_yolo
from paredown.targets.errors import InputError

pytestmark = pytest.mark.unit


@given(st.lists(st.tuples(st.integers(0, 2), boxes())), st.sampled_from(["\n", "\r\n", " \n\n\t"]))
@settings(deadline=None)
def test_yolo_round_trip(rows, end):
    text = "".join(f"{index} {' '.join(map(repr, box))}{end}" for index, box in rows)
    got = parse_yolo(text, Classes(NAMES), "a.txt")
    assert [index for index, _ in got] == [index for index, _ in rows]
    np.testing.assert_allclose([box for _, box in got], [box for _, box in rows], rtol=1e-9, atol=1e-12)


@settings(deadline=None, max_examples=300)
@given(
    st.text()
    | st.lists(st.sampled_from(["0", "1", "-1", "0.5", "nan", "1e999", "x", " ", "\n", "٣"])).map(" ".join)
)
def test_yolo_text_is_boxes_or_an_input_error(text):
    try:
        rows = parse_yolo(text, Classes(NAMES), "a.txt")
    except InputError as error:
        assert "a.txt:" in str(error)
    else:
        assert all(0 <= index < 3 and all(0 <= v <= 1 for v in box) for index, box in rows)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("3 .5 .5 .1 .1", "class 3 is out of range: there are 3 classes"),
        ("-1 .5 .5 .1 .1", "class '-1' is not a whole number"),
        ("1.0 .5 .5 .1 .1", "class '1.0'"),
        ("9" * 5000 + " .5 .5 .1 .1", "class '9999"),
        ("0 .5 .5 .1", "expected 5 columns, class cx cy w h, found 4"),
        ("0 .1 .1 .2 .1 .2 .2", "found 7; polygons"),
        ("0 .5 .5 .1 nan", "'nan' is not a finite number"),
        ("0 inf .5 .1 .1", "'inf'"),
        ("0 .5 0,5 .1 .1", "'0,5'"),
        ("0 .5 1_0 .1 .1", "'1_0'"),
        ("0 .5 .5 0 .1", "without area"),
        ("0 .5 .5 .1 -.1", "without area"),
        ("0 .5 .5 1.1 .1", "outside the image"),
        ("0 320 240 50 50", "outside the image"),
        ("0 1.004 .5 .002 .1", "beyond its edge"),
    ],
)
def test_bad_yolo_lines_are_named_with_their_number(tmp_path, line, words):
    put_image(tmp_path / "a.png")
    put(tmp_path / "a.txt", f"0 .5 .5 .1 .1\n\n{line}\n")
    with pytest.raises(InputError, match="^" + str(tmp_path / "a.txt") + ":3: .*" + words):
        open_dataset("yolo", tmp_path, names=NAMES)


def test_rounding_over_the_edge_is_clipped():
    ((_, box),) = parse_yolo("0 0.5 0.05 1.002 0.104", Classes(NAMES), "a.txt")
    assert box == pytest.approx((0.5, 0.0510, 1.0, 0.102))


@pytest.mark.parametrize("box", [".5 .5 1.02 .1", ".5 .5 .1 1.02", ".05 .5 .12 .1", ".5 .95 .1 .12"])
def test_a_hundredth_over_the_edge_is_rounding_and_more_is_an_error(box):
    cx, cy, w, h = (float(token) for token in box.split())
    assert len(parse_yolo(f"0 {box}", Classes(NAMES), "a.txt")) == 1
    with pytest.raises(InputError, match="outside the image"):
        parse_yolo(f"0 {cx} {cy} {w + 0.001} {h + 0.001}", Classes(NAMES), "a.txt")


def test_yolo_folder_lazily_decoded_with_labels_beside(tmp_path):
    put_image(tmp_path / "b.png", seed=1)
    put_image(tmp_path / "sub/a.png", seed=2)
    put_image(tmp_path / "empty.png", seed=3)
    put_image(tmp_path / "frame.0001.png", seed=4)
    (tmp_path / "late.jpg").write_bytes(b"not an image")
    put(tmp_path / "b.txt", "2 .5 .5 .25 .5\n1 .25 .5 .25 .5")
    put(tmp_path / "empty.txt", "")
    put(tmp_path / "frame.0001.txt", "0 .5 .5 1 1")
    data = open_dataset("yolo", tmp_path, names=list(NAMES))
    assert data.names == NAMES and len(data) == 5
    by_name = {data[i].name: data[i] for i in range(len(data)) if i != 3}
    assert list(by_name) == ["b.png", "empty.png", "frame.0001.png", "sub/a.png"]
    assert {name: (s.labelled, len(s.boxes)) for name, s in by_name.items()} == {
        "b.png": (True, 2),
        "empty.png": (True, 0),
        "frame.0001.png": (True, 1),
        "sub/a.png": (False, 0),
    }
    sample = by_name["b.png"]
    assert sample.image.shape == (H, W, 3) and sample.image.dtype == np.uint8
    np.testing.assert_array_equal(sample.image, cv2.imread(str(tmp_path / "b.png")))
    assert sample.boxes.dtype == np.float32 and sample.classes.dtype == np.int64
    assert sample.boxes.tolist() == [[0.5, 0.5, 0.25, 0.5], [0.25, 0.5, 0.25, 0.5]]
    assert sample.classes.tolist() == [2, 1]
    assert by_name["empty.png"].boxes.shape == (0, 4)
    assert data[-1].name == "sub/a.png"
    with pytest.raises(InputError, match=r"late\.jpg: not an image"):
        data[3]
    with pytest.raises(IndexError):
        data[5]


@pytest.mark.parametrize("folder", ["images/train", "images/images/train", "JPEGImages"])
def test_labels_in_the_mirrored_tree(tmp_path, folder):
    put_image(tmp_path / folder / "a.png")
    head, tail = ("", folder) if folder == "JPEGImages" else folder.rsplit("images", 1)
    labels = "labels" if folder == "JPEGImages" else f"{head}labels{tail}"
    put(tmp_path / labels / "a.txt", "1 .5 .5 .5 .5")
    assert open_dataset("yolo", tmp_path / folder, names=NAMES, require_labels=True)[0].classes.tolist() == [
        1
    ]
    put(tmp_path / folder / "a.txt", "2 .5 .5 .5 .5")  # the tree goes first
    assert open_dataset("yolo", tmp_path / folder, names=NAMES)[0].classes.tolist() == [1]


def test_an_images_folder_further_up_does_not_hide_labels_beside(tmp_path):
    put_image(tmp_path / "images/mine/a.png")
    put(tmp_path / "images/mine/a.txt", "1 .5 .5 .5 .5")
    assert open_dataset("yolo", tmp_path / "images/mine", names=NAMES)[0].classes.tolist() == [1]


def test_yolo_labels_elsewhere(tmp_path):
    put_image(tmp_path / "pictures/x/a.png")
    put(tmp_path / "notes/x/a.txt", "1 .5 .5 .5 .5")
    got = open_dataset("yolo", tmp_path / "pictures", names=NAMES, labels=tmp_path / "notes")
    assert got[0].classes.tolist() == [1]
    with pytest.raises(InputError, match="no such folder of labels"):
        open_dataset("yolo", tmp_path / "pictures", names=NAMES, labels=tmp_path / "nowhere")


def test_yolo_list(tmp_path, monkeypatch):
    put_image(tmp_path / "data/obj/a.png", seed=1)
    put_image(tmp_path / "data/obj/b.png", seed=2)
    put(tmp_path / "data/obj/b.txt", "1 .5 .5 .5 .5")
    listing = put(tmp_path / "data/train.txt", f"obj/b.png\r\n\n{tmp_path}/data/obj/a.png\n")
    data = open_dataset("yolo", listing, names=NAMES)
    assert [data[i].name for i in range(2)] == ["obj/b.png", "a.png"]
    assert data[0].classes.tolist() == [1]
    # darknet's own lists start at the current folder
    put(listing, "data/obj/b.png\n")
    with pytest.raises(
        InputError, match=r"train\.txt:1: no image 'data/obj/b\.png'; relative paths start at"
    ):
        open_dataset("yolo", listing, names=NAMES)
    monkeypatch.chdir(tmp_path)
    assert len(open_dataset("yolo", listing, names=NAMES)) == 1
    put(listing, "b.png\n")
    assert len(open_dataset("yolo", listing, names=NAMES, images=tmp_path / "data/obj")) == 1
    put(listing, "\n")
    with pytest.raises(InputError, match="no images in this list"):
        open_dataset("yolo", listing, names=NAMES)
    put(listing, "x" * 5000)
    with pytest.raises(InputError, match="no image"):
        open_dataset("yolo", listing, names=NAMES)
    listing.write_bytes(b"\x89PNG\xff")
    with pytest.raises(InputError, match="not UTF-8"):
        open_dataset("yolo", listing, names=NAMES)


def test_label_names_are_matched_by_name_and_the_rest_dropped(tmp_path):
    put_image(tmp_path / "a.png")
    put(tmp_path / "a.txt", "".join(f"{index} .5 .5 .{index + 1} .5\n" for index in range(4)))
    label_names = ("tree", "cat", "Car", "bird")
    sample = open_dataset("yolo", tmp_path, names=NAMES, label_names=label_names)[0]
    assert sample.classes.tolist() == [2, 0]
    np.testing.assert_allclose(sample.boxes[:, 2], [0.1, 0.3], rtol=1e-6)
    put(tmp_path / "a.txt", "4 .5 .5 .5 .5")
    with pytest.raises(InputError, match=r"a\.txt:1: class 4 is out of range: there are 4 classes"):
        open_dataset("yolo", tmp_path, names=NAMES, label_names=label_names)
