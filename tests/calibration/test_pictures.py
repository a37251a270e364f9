"""Image files: odd names, damaged ones, full disks."""

from __future__ import annotations

import os

import cv2
import numpy as np
import pytest

from paredown.calibration.pictures import read_picture, write_picture
from paredown.targets.errors import InputError

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
