"""Decoding: truncated, damaged and rotated files; and that nothing but our error is said about them."""

from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paredown.calibration.readers.images import find_image, find_images, read_image, read_text
from paredown.targets.errors import InputError

pytestmark = pytest.mark.unit


def photo(height: int = 48, width: int = 64) -> np.ndarray:
    """A smooth image, so that JPEG stays close to it."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], -1).astype(
        np.uint8
    )


def encoded(suffix: str, image: np.ndarray | None = None, *options: int) -> bytes:
    done, data = cv2.imencode(suffix, photo() if image is None else image, list(options))
    assert done
    return data.tobytes()


def with_segment(jpeg: bytes, payload: bytes, marker: int = 0xE1) -> bytes:
    return jpeg[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(payload) + 2) + payload + jpeg[2:]


def exif(orientation: int) -> bytes:
    """An EXIF segment with the orientation tag (0x0112, SHORT, one value) and nothing else."""
    ifd = struct.pack(">HHHIHHI", 1, 0x0112, 3, 1, orientation, 0, 0)
    return b"Exif\0\0MM\0*" + struct.pack(">I", 8) + ifd


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".ppm"])
def test_lossless_formats_come_back(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(encoded(suffix))
    np.testing.assert_array_equal(read_image(path), photo())


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_lossy_formats_come_close(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(encoded(suffix))
    got = read_image(path)
    assert got.shape == (48, 64, 3) and np.abs(got.astype(int) - photo()).mean() < 6


@pytest.mark.parametrize(
    "image",
    [np.full((5, 6), 9, np.uint8), np.full((5, 6), 9 * 257, np.uint16), np.full((5, 6, 4), 9, np.uint8)],
    ids=["grey", "16 bits", "alpha"],
)
def test_other_depths_and_channels_become_bgr8(tmp_path, image):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(".png", image))
    got = read_image(path)
    assert got.shape == (5, 6, 3) and got.dtype == np.uint8 and (got == 9).all()


@pytest.mark.parametrize("progressive", [0, 1])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.7, 0.99])
def test_truncated_jpeg_is_named(tmp_path, capfd, share, progressive):
    whole = encoded(".jpg", None, cv2.IMWRITE_JPEG_PROGRESSIVE, progressive)
    path = tmp_path / "broken.jpg"
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(InputError, match=r"broken\.jpg: truncated JPEG"):
        read_image(path)
    assert capfd.readouterr() == ("", "")


def test_a_jpeg_that_was_preallocated_but_not_filled_is_truncated(tmp_path):
    whole = encoded(".jpg")
    path = tmp_path / "a.jpg"
    path.write_bytes(whole[: len(whole) // 2].ljust(len(whole), b"\0"))
    with pytest.raises(InputError, match="truncated JPEG"):
        read_image(path)


def test_a_jpeg_that_lost_data_in_its_middle_is_damaged(tmp_path, capfd):
    whole = encoded(".jpg", np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    path = tmp_path / "a.jpg"
    path.write_bytes(whole[: len(whole) // 2] + b"\xff\xd9")
    with pytest.raises(InputError, match=r"a\.jpg: damaged JPEG"):
        read_image(path)
    assert capfd.readouterr() == ("", "")


def test_the_end_marker_of_an_exif_thumbnail_does_not_count(tmp_path):
    whole = with_segment(encoded(".jpg"), b"Exif\0\0" + encoded(".jpg", photo(8, 8)))
    path = tmp_path / "a.jpg"
    path.write_bytes(whole)
    assert read_image(path).shape == (48, 64, 3)
    path.write_bytes(whole[:-100])
    with pytest.raises(InputError, match="truncated JPEG"):
        read_image(path)


def test_bytes_after_the_end_of_a_jpeg_are_allowed(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(".jpg") + b"a phone's video" * 100)
    assert read_image(path).shape == (48, 64, 3)


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_every_cut_of_a_png_is_named(tmp_path_factory, data):
    whole = encoded(".png")
    path = tmp_path_factory.mktemp("png") / "broken.png"
    path.write_bytes(whole[: data.draw(st.integers(8, len(whole) - 1))])
    with pytest.raises(InputError, match=r"broken\.png: truncated PNG"):
        read_image(path)


def test_a_flipped_bit_in_a_png_is_named(tmp_path, capfd):
    whole = bytearray(encoded(".png"))
    whole[len(whole) // 2] ^= 4
    path = tmp_path / "a.png"
    path.write_bytes(bytes(whole))
    with pytest.raises(InputError, match="damaged PNG"):
        read_image(path)
    assert capfd.readouterr() == ("", "")


def test_a_png_that_lies_about_its_pixels_is_named(tmp_path, capfd):
    """All chunks are whole and their checksums right, but the pixels are no zlib stream: libpng complains."""
    whole = encoded(".png")
    header = whole[: 8 + 25]
    pixels = b"IDAT" + b"not zlib"
    chunk = struct.pack(">I", 8) + pixels + struct.pack(">I", zlib.crc32(pixels))
    path = tmp_path / "a.png"
    path.write_bytes(header + chunk + whole[-12:])
    with pytest.raises(InputError, match=r"a\.png: not an image that OpenCV can decode"):
        read_image(path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("suffix", [".bmp", ".webp", ".tif", ".ppm"])
def test_truncated_files_of_other_formats_are_named(tmp_path, capfd, suffix):
    whole = encoded(suffix)
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="broken"):
        read_image(path)
    assert capfd.readouterr() == ("", "")


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"RIFF\0\0\0\0WEBP", b"P6\n"]),
    st.binary(),
)
def test_noise_is_an_image_or_an_input_error(tmp_path_factory, magic, noise):
    path = tmp_path_factory.mktemp("noise") / "a.jpg"
    path.write_bytes(magic + noise)
    try:
        assert read_image(path).ndim == 3
    except InputError as error:
        assert "a.jpg" in str(error)


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, -1), (8, 1)])
def test_exif_orientation_is_applied(tmp_path, orientation, turns):
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(".jpg"))
    plain = read_image(path)
    path.write_bytes(with_segment(encoded(".jpg"), exif(orientation)))
    np.testing.assert_array_equal(read_image(path), np.rot90(plain, turns))


def test_missing_empty_and_impossible_files(tmp_path):
    with pytest.raises(InputError, match=r"none\.jpg: cannot read the image: No such file"):
        read_image(tmp_path / "none.jpg")
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(InputError, match=r"empty\.jpg: the image file is empty"):
        read_image(tmp_path / "empty.jpg")
    with pytest.raises(InputError, match="cannot read"):
        read_image(tmp_path / "nul\0.jpg")
    with pytest.raises(InputError, match="cannot read"):
        read_image(tmp_path)


def test_stderr_still_works_afterwards(tmp_path, capfd):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(".png"))
    read_image(path)
    import os

    os.write(2, b"heard")
    assert capfd.readouterr().err == "heard"


def test_find_images_is_sorted_recursive_and_skips_the_hidden(tmp_path):
    for name in (
        "b/2.JPG",
        "a.png",
        "b/1.jpeg",
        ".hidden/x.jpg",
        "b/._1.jpeg",
        "notes.txt",
        "c.jpg/not-an-image.md",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)]
    assert found == ["a.png", "b/1.jpeg", "b/2.JPG"]
    assert find_image(tmp_path / "b/2") == tmp_path / "b/2.JPG"
    assert find_image(tmp_path / "b/3") is None
    assert find_image(tmp_path / ("x" * 5000)) is None


def test_folders_without_images(tmp_path):
    with pytest.raises(InputError, match="no images in this folder"):
        find_images(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        find_images(tmp_path / "none")


def test_text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfcaf\xc3\xa9")
    assert read_text(path, "list")[0] == "café"
    path.write_bytes(b"ok \xff")
    with pytest.raises(InputError, match=r"a\.txt: the list is not UTF-8 text \(byte 3\)"):
        read_text(path, "list")
