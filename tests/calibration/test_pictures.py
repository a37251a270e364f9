"""Image files: odd names, damaged ones, full disks. Pixels in another size, against OpenCV and Pillow."""

from __future__ import annotations

import os

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from paredown.calibration.pictures import read_picture, resample, write_picture
from paredown.targets.errors import InputError

sides = st.integers(1, 70)
IMAGE = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)


def test_a_name_that_is_not_utf8(tmp_path):
    """OpenCV's own reader ends the process with a segmentation fault."""
    path = tmp_path / os.fsdecode(b"caf\xe9.png")
    write_picture(path, IMAGE)
    np.testing.assert_array_equal(read_picture(path), IMAGE)
    assert os.listdir(os.fsencode(tmp_path)) == [b"caf\xe9.png"]  # noqa: PTH208


def test_it_is_what_opencv_writes_and_reads(tmp_path):
    write_picture(tmp_path / "a.jpg", IMAGE)
    cv2.imwrite(str(tmp_path / "b.jpg"), IMAGE)
    assert (tmp_path / "a.jpg").read_bytes() == (tmp_path / "b.jpg").read_bytes()
    np.testing.assert_array_equal(read_picture(tmp_path / "a.jpg"), cv2.imread(str(tmp_path / "b.jpg")))


@pytest.mark.parametrize("data", [b"", b"\x89PNG and then nothing", bytes(1000)])
def test_what_is_no_image(tmp_path, data):
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(InputError, match="a.png: cannot read this image .truncated or damaged"):
        read_picture(tmp_path / "a.png")


def test_what_is_not_there_or_no_format(tmp_path):
    with pytest.raises(InputError, match="cannot read this image: No such file"):
        read_picture(tmp_path / "none.png")
    with pytest.raises(InputError, match="cannot read this image: Is a directory"):
        read_picture(tmp_path)
    with pytest.raises(InputError, match="cannot write this image; name it .png or .jpg"):
        write_picture(tmp_path / "a.words", IMAGE)
    with pytest.raises(InputError, match="cannot write this image: No such file"):
        write_picture(tmp_path / "no" / "a.png", IMAGE)


def test_a_full_disk_leaves_what_was_there(tmp_path):
    """/dev/full takes no byte: the old picture stays, and nothing beside it."""
    write_picture(tmp_path / "a.png", IMAGE)
    (tmp_path / ".a.png.part").symlink_to("/dev/full")
    with pytest.raises(InputError, match="cannot write this image: No space left on device"):
        write_picture(tmp_path / "a.png", IMAGE + 1)
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png"), IMAGE)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@settings(max_examples=60, deadline=None)
@given(sides, sides, sides, sides)
def test_an_average_is_of_all_that_a_pixel_covers(height, width, rows, columns):
    """Against a larger picture that repeats every pixel, cut into a block for each; in whole numbers."""
    image = noise(height, width, seed=height)
    got = resample(image, columns, rows, "area")
    large = image.repeat(rows, axis=0).repeat(columns, axis=1)
    blocks = large.reshape(rows, height, columns, width, 3).astype(np.int64)
    count = height * width
    np.testing.assert_array_equal(got, (2 * blocks.sum(axis=(1, 3)) + count) // (2 * count))


@pytest.mark.parametrize("size", [(480, 640), (96, 96), (192, 288), (1080, 1920), (97, 101)])
def test_averages_are_opencvs_area_but_for_the_rounding_of_halves(size):
    image = noise(*size)
    want = cv2.resize(image, (96, 96), interpolation=cv2.INTER_AREA).astype(int)
    apart = np.abs(resample(image, 96, 96, "area") - want)
    assert apart.max() <= 1 and (apart > 0).mean() < 0.1


def test_averages_of_a_picture_of_many_pixels_do_not_overflow():
    """255 of 11 million pixels are more than 31 bits hold."""
    assert (resample(np.full((2900, 3900, 3), 255, np.uint8), 5, 7, "area") == 255).all()


@settings(max_examples=100, deadline=None)
@given(sides, sides, sides, sides, st.sampled_from(["bilinear", "bicubic"]))
def test_pillows_filters_are_its_own_bytes(height, width, rows, columns, kind):
    """Across first in two calls: Pillow 13 chooses the order by the size, earlier ones go across first."""
    image, name = noise(height, width, seed=width), Image.Resampling[kind.upper()]
    want = np.asarray(Image.fromarray(image).resize((columns, height), name).resize((columns, rows), name))
    np.testing.assert_array_equal(resample(image, columns, rows, f"pillow-{kind}"), want)


@pytest.mark.parametrize("size", [(480, 640), (224, 224), (192, 288), (1080, 1920), (97, 101), (2, 1)])
def test_bicubic_is_opencvs_but_for_its_rounding(size):
    """OpenCV computes in float32, or counts weights in 1/2048, as the processor has it."""
    image = noise(*size)
    want = cv2.resize(image, (224, 224), interpolation=cv2.INTER_CUBIC).astype(int)
    apart = np.abs(resample(image, 224, 224, "bicubic") - want)
    assert apart.max() <= 1 and (apart > 0).mean() < 0.1


@pytest.mark.parametrize("kind", ["area", "bicubic", "pillow-bilinear", "pillow-bicubic"])
@pytest.mark.parametrize("size", [(9, 9), (31, 5), (300, 3)])
def test_flat_images_stay_flat(kind, size):
    for level in (0, 1, 127, 254, 255):
        assert (resample(np.full((*size, 3), level, np.uint8), 17, 12, kind) == level).all()
