"""Images with label PNGs: the values of every kind of PNG, and labels that are wrong."""

from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paredown.apps.segmenter.masks import MaskSample, read_mask, read_masks
from paredown.calibration.readers.records import Classes
from paredown.targets.errors import InputError

pytestmark = pytest.mark.unit
NAMES = ("ground", "road", "car")


def png(values: np.ndarray, bits: int = 8, kind: int = 0) -> bytes:
    """A PNG written by hand: grey (kind 0) or a palette (3), of few bits."""
    height, width = values.shape
    flat = np.unpackbits(values.astype(np.uint8)[..., None], axis=2)[..., 8 - bits :].reshape(height, -1)
    rows = np.packbits(flat, axis=1)
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))]
    if kind == 3:
        colours = np.random.default_rng(0).integers(0, 256, (2**bits, 3), np.uint8)
        parts += [(b"PLTE", colours.tobytes()), (b"tRNS", b"\0\xff")]
    parts += [(b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    chunks = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([1, 2, 4, 8]), st.sampled_from([0, 3]), st.integers(1, 9), st.integers(1, 9),
    st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_values_of_grey_and_palette_pngs_are_classes(tmp_path_factory, bits, kind, height, width, seed):
    values = np.random.default_rng(seed).integers(0, 2**bits, (height, width))
    path = tmp_path_factory.mktemp("label") / "x.png"
    path.write_bytes(png(values, bits, kind))
    names = tuple(f"class {index}" for index in range(254))
    values[values == 254] = 253
    path.write_bytes(png(values, bits, kind))
    assert np.array_equal(read_mask(path, Classes(names)), values)


def test_255_and_classes_that_the_network_has_not_are_not_scored(tmp_path):
    (tmp_path / "x.png").write_bytes(png(np.array([[0, 1, 2, 255]])))
    assert read_mask(tmp_path / "x.png", Classes(NAMES)).tolist() == [[0, 1, 2, 255]]
    other = Classes(("car", "ground"), NAMES)
    assert read_mask(tmp_path / "x.png", other).tolist() == [[1, 255, 0, 255]]


@pytest.fixture
def folder(tmp_path):
    for split, count in (("train", 3), ("test", 2)):
        for kind in ("images", "labels"):
            (tmp_path / kind / split / "a").mkdir(parents=True)
        for index in range(count):
            image = np.full((6, 8, 3), 20 * index, np.uint8)
            cv2.imwrite(str(tmp_path / "images" / split / "a" / f"{index}.jpg"), image)
            mask = np.full((6, 8), 255)
            mask[:, :4] = index
            (tmp_path / "labels" / split / "a" / f"{index}.png").write_bytes(png(mask, kind=3))
    return tmp_path


def opened(folder, split="test", labels="labels", required=True, images=None):
    path = folder / "images" / split if isinstance(split, str) else split
    return read_masks(path, Classes(NAMES), folder / labels, images, required)


def test_labels_lie_in_the_folder_of_the_split_or_the_folder_itself(folder):
    for labels in ("labels", "labels/test"):
        data = opened(folder, labels=labels)
        assert len(data) == 2 and data.names == NAMES
        sample = data[1]
        assert isinstance(sample, MaskSample) and sample.labelled and sample.classes.tolist() == [1]
        assert sample.mask is not None and sample.mask[0].tolist() == [1] * 4 + [255] * 4
        assert data.classes_of(0).tolist() == [0]


def test_a_list_of_images_without_suffixes_as_voc_has_it(folder):
    names = folder / "test.txt"
    names.write_text("a/1\n\na/0.jpg\n")
    data = opened(folder, names, "labels/test", images=folder / "images" / "test")
    assert [data[i].name for i in (0, 1)] == ["a/1.jpg", "a/0.jpg"]
    for text, message in (("a/7", "test.txt:1: no image 'a/7'"), (" ", "no images in this list")):
        names.write_text(text)
        with pytest.raises(InputError, match=message):
            opened(folder, names, images=folder / "images" / "test")


def test_the_fingerprint_follows_labels_and_names(folder):
    first = opened(folder).fingerprint()
    assert opened(folder).fingerprint() == first
    (folder / "labels/test/a/0.png").write_bytes(png(np.full((6, 8), 2)))
    assert opened(folder).fingerprint() != first


def test_an_image_without_a_label_is_unlabelled_or_named(folder):
    (folder / "labels/train/a/1.png").unlink()
    data = opened(folder, "train", required=False)
    assert [data[i].labelled for i in range(3)] == [True, False, True] and data.classes_of(1) is None
    with pytest.raises(InputError, match=r"images/train/a/1\.jpg: no label .*labels/train/a/1\.png"):
        opened(folder, "train")
    with pytest.raises(InputError, match="no such folder of labels"):
        opened(folder, labels="none")


def test_a_label_of_another_size_is_named_with_both(folder):
    (folder / "labels/test/a/0.png").write_bytes(png(np.zeros((6, 7))))
    with pytest.raises(InputError, match=r"a/0\.jpg: the image is 8x6 pixels, its labels were made for 7x6"):
        opened(folder)[0]


def test_a_class_out_of_range_names_file_place_and_value(folder):
    mask = np.zeros((6, 8))
    mask[2, 5] = 7
    (folder / "labels/test/a/0.png").write_bytes(png(mask))
    with pytest.raises(
        InputError, match=r"a/0\.png: the pixel in row 2, column 5 has the value 7, and there are 3"
    ):
        opened(folder)[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            cv2.imencode(".png", np.zeros((6, 8, 3), np.uint8))[1].tobytes(),
            "an RGB PNG; a label is a PNG of one channel",
        ),
        (cv2.imencode(".png", np.zeros((6, 8, 4), np.uint8))[1].tobytes(), "an RGBA PNG"),
        (cv2.imencode(".png", np.zeros((6, 8), np.uint16))[1].tobytes(), "a PNG of 16 bits"),
        (cv2.imencode(".jpg", np.zeros((6, 8), np.uint8))[1].tobytes(), "not a PNG"),
        (b"", "not a PNG"),
        (png(np.zeros((6, 8)))[:-20], "PNG"),
    ],
)
def test_other_files_are_refused_on_opening_or_reading(folder, content, message):
    (folder / "labels/test/a/0.png").write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        opened(folder)[0]
    assert "labels/test/a/0.png" in str(caught.value)
