"""The reader of VOC annotations: round trips, wrong files named, folders and splits."""

from __future__ import annotations

import shutil
from pathlib import Path
from xml.sax.saxutils import escape

import pytest
from calibration_samples import NAMES, H, W, put, put_image
from hypothesis import given, settings
from hypothesis import strategies as st

from paredown.calibration.datasets import open_dataset
from paredown.calibration.readers.records import Classes
from paredown.calibration.readers.voc import parse_voc
from paredown.targets.errors import InputError

pytestmark = pytest.mark.unit


def voc_xml(
    *objects: tuple[str, float, float, float, float], size: str | None = f"{W} {H}", extra: str = ""
) -> str:
    parts = ["<annotation><filename>ignored.jpg</filename>"]
    if size:
        width, height = size.split()
        parts.append(f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>")
    for name, *corners in objects:
        box = "".join(
            f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
        )
        parts.append(f"<object><name>{escape(name)}</name>{extra}<bndbox>{box}</bndbox></object>")
    return "".join([*parts, "</annotation>"])


@st.composite
def corners(draw: st.DrawFn) -> tuple[str, int, int, int, int]:
    """A class and its corners as VOC has them: pixels from 1, inclusive."""
    left, right = sorted((draw(st.integers(1, W)), draw(st.integers(1, W))))
    top, bottom = sorted((draw(st.integers(1, H)), draw(st.integers(1, H))))
    return draw(st.sampled_from(NAMES)), left, top, right, bottom


@settings(deadline=None)
@given(st.lists(corners(), max_size=5))
def test_voc_round_trip(objects):
    rows, ignored, size = parse_voc(voc_xml(*objects).encode(), Classes(NAMES), "a.xml")
    assert size == (W, H) and not ignored and len(rows) == len(objects)
    for (index, (cx, cy, w, h)), (name, left, top, right, bottom) in zip(rows, objects, strict=True):
        assert NAMES[index] == name
        assert ((cx - w / 2) * W + 1, (cx + w / 2) * W) == pytest.approx((left, right))
        assert ((cy - h / 2) * H + 1, (cy + h / 2) * H) == pytest.approx((top, bottom))


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=60), st.integers(0, 300), st.integers(0, 60))
def test_damaged_voc_is_boxes_or_an_input_error(noise, at, cut):
    data = voc_xml(("dog", 1, 1, 10, 10), ("car", 2, 2, 8, 8)).encode()
    try:
        rows, *_ = parse_voc(data[:at] + noise + data[at + cut :], Classes(NAMES), "a.xml")
    except InputError as error:
        assert "a.xml" in str(error)
    else:
        assert all(0 <= index < 3 for index, _ in rows)


def test_a_box_over_all_of_the_image_is_all_of_it():
    ((index, box),), *_ = parse_voc(voc_xml(("dog", 1, 1, W, H)).encode(), Classes(NAMES), "a.xml")
    assert index == 1 and box == (0.5, 0.5, 1.0, 1.0)


def test_voc_sets_difficult_objects_apart_and_does_not_read_parts():
    part = "<part><name>head</name><bndbox><xmin>-9</xmin></bndbox></part>"
    words = {w: 0 for w in ("1", "true", "Yes", " 1\n")} | {w: 1 for w in ("0", "False", "no", "", " ")}
    extras = {f"<difficult>{word}</difficult>": count for word, count in words.items()}
    for extra, count in {**extras, part: 1, "": 1}.items():
        rows, ignored, _ = parse_voc(
            voc_xml(("dog", 1, 1, 9, 9), extra=extra).encode(), Classes(NAMES), "a.xml"
        )
        assert (len(rows), len(ignored)) == (count, 1 - count), extra


def test_a_difficult_that_is_neither_yes_nor_no_is_an_error():
    xml = voc_xml(("dog", 1, 1, 9, 9), extra="<difficult>maybe</difficult>").encode()
    with pytest.raises(
        InputError, match=r"a\.xml: object 1 \('dog'\): <difficult> is 'maybe', neither 0 nor 1"
    ):
        parse_voc(xml, Classes(NAMES), "a.xml")


@pytest.mark.parametrize(
    ("xml", "words"),
    [
        ("", "malformed XML"),
        ("<annotation>\n<object>\n</annotation>", r"a\.xml:3: malformed XML: mismatched tag"),
        ("<html/>", "expected <annotation>, found <html>"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation/>', "document type"),
        ('<?xml version="1.0" encoding="no-such"?><annotation/>', "malformed XML"),
        (
            voc_xml(("cat", 1, 1, 9, 9)),
            r"object 1 \('cat'\): class 'cat' is not one of the network's \(did you mean 'car'",
        ),
        (voc_xml(("dog", 1, 1, 9, 9), ("", 1, 1, 9, 9)), "object 2: no <name>"),
        (voc_xml(("dog", "nan", 1, 9, 9)), "<xmin> is 'nan', not a finite number"),
        (voc_xml(("dog", "", 1, 9, 9)), "<xmin> is ''"),
        (voc_xml(("dog", 9, 1, 1, 9)), "without area"),
        (voc_xml(("dog", 1, 1, W + 2, 9)), "outside the image"),
        (voc_xml(("dog", -1, 1, 9, 9)), "outside the image"),
        (voc_xml(("dog", 1, 1, 9, 9), size="40 -20"), "a size of 40x-20 pixels"),
        (voc_xml(("dog", 1, 1, 9, 9), size="40.5 20"), "a size of 40.5x20 pixels"),
        (voc_xml(("dog", 1, 1, 9, 9), size="wide 20"), "<width> is 'wide'"),
        ("<annotation><object><name>dog</name></object></annotation>", "no <bndbox>"),
    ],
)
def test_bad_voc_files_are_named(tmp_path, xml, words):
    put_image(tmp_path / "a.jpg")
    put(tmp_path / "a.xml", xml)
    with pytest.raises(InputError, match=words) as caught:
        open_dataset("voc", tmp_path, names=NAMES)
    assert str(caught.value).startswith(str(tmp_path / "a.xml"))


@pytest.fixture
def devkit(tmp_path) -> Path:
    root = tmp_path / "VOC2007"
    for number, name in enumerate(("000001", "000002", "000003")):
        put_image(root / f"JPEGImages/{name}.jpg", seed=number)
    put(root / "Annotations/000001.xml", voc_xml(("dog", 1, 1, 20, 10)))
    put(root / "Annotations/000003.xml", voc_xml())
    put(root / "ImageSets/Main/test.txt", "000003\n000001\n")
    put(root / "ImageSets/Main/dog_test.txt", "000003 -1\n000001  1\n")
    return root


def test_voc_devkit_folder_and_splits(devkit, monkeypatch):
    every = open_dataset("voc", devkit, names=NAMES)
    assert [(s.name, s.labelled, len(s.boxes)) for s in (every[i] for i in range(len(every)))] == [
        ("000001", True, 1),
        ("000002", False, 0),
        ("000003", True, 0),
    ]
    assert every[0].boxes.tolist() == [[0.25, 0.25, 0.5, 0.5]]
    for split in ("test", "dog_test"):
        data = open_dataset("voc", devkit / f"ImageSets/Main/{split}.txt", names=NAMES, require_labels=True)
        assert [data[i].name for i in range(len(data))] == ["000003", "000001"]
    monkeypatch.chdir(devkit / "ImageSets/Main")
    assert len(open_dataset("voc", "test.txt", names=NAMES)) == 2
    put(devkit / "ImageSets/Main/test.txt", "000001\n000009\n")
    with pytest.raises(InputError, match=r"test\.txt:2: no image '000009'"):
        open_dataset("voc", devkit / "ImageSets/Main/test.txt", names=NAMES)


def test_voc_folders_elsewhere(devkit, tmp_path):
    shutil.move(devkit / "Annotations", tmp_path / "notes")
    shutil.move(devkit / "JPEGImages", tmp_path / "pictures")
    elsewhere = {"images": tmp_path / "pictures", "labels": tmp_path / "notes"}
    assert (
        len(open_dataset("voc", devkit / "ImageSets/Main/test.txt", names=NAMES, **elsewhere)[1].boxes) == 1
    )
    assert (
        len(open_dataset("voc", tmp_path / "pictures", names=NAMES, labels=tmp_path / "notes")[0].boxes) == 1
    )
    with pytest.raises(InputError, match="no such folder of annotations"):
        open_dataset("voc", tmp_path / "pictures", names=NAMES, labels=tmp_path / "nowhere")


@pytest.mark.parametrize("size", [None, "0 0"])
def test_voc_without_a_size_asks_the_image(tmp_path, size):
    put_image(tmp_path / "a.jpg")
    put(tmp_path / "a.xml", voc_xml(("dog", 1, 1, 20, 10), size=size))
    assert open_dataset("voc", tmp_path, names=NAMES)[0].boxes.tolist() == [[0.25, 0.25, 0.5, 0.5]]


def test_labels_made_for_another_size_are_noticed(tmp_path):
    put_image(tmp_path / "a.png")
    put(tmp_path / "a.xml", voc_xml(("dog", 1, 1, 9, 9), size=f"{H} {W}"))
    with pytest.raises(
        InputError, match=r"a\.png: the image is 40x20 .* made for 20x40; its EXIF orientation"
    ):
        open_dataset("voc", tmp_path, names=NAMES)[0]
    put(tmp_path / "a.xml", voc_xml(("dog", 1, 1, 9, 9), size="80 40"))
    with pytest.raises(InputError, match="the image is 40x20 pixels, its labels were made for 80x40$"):
        open_dataset("voc", tmp_path, names=NAMES)[0]


def test_voc_drops_what_label_names_has_and_the_network_has_not():
    xml = voc_xml(("cat", 1, 1, 9, 9), ("dog", 1, 1, 9, 9)).encode()
    rows, *_ = parse_voc(xml, Classes(NAMES, ("cat", "dog")), "a.xml")
    assert [index for index, _ in rows] == [1]
