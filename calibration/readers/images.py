"""Image files to arrays: whole, upright, or an error that names the file."""

from __future__ import annotations

import os
import tempfile
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import cv2
import numpy as np

from paredown.targets.errors import InputError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_JPEG_MAGIC = b"\xff\xd8\xff"
_REDIRECT = threading.Lock()
# What libjpeg writes to stderr when it makes up pixels; it has other warnings, which harm nothing.
_LIBJPEG_LOST_DATA = (b"premature end of data segment", b"premature end of jpeg file")
_HINT = "fetch the image again or remove it"


def is_file(path: Path) -> bool:
    """Whether this is a file; False also for a name no file can have, or that we may not look at."""
    try:
        return path.is_file()
    except OSError:  # the name is too long, the folder forbidden
        return False


def is_dir(path: Path) -> bool:
    """Whether this is a folder; see ``is_file``."""
    try:
        return path.is_dir()
    except OSError:
        return False


def read_bytes(path: Path, what: str) -> bytes:
    """The bytes of a file that the user named.

    Raises:
        InputError: the file is missing or cannot be read; ``what`` says what it was to be.
    """
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have, with a NUL in it
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot read the {what}: {reason}", where=path) from error


def read_text(path: Path, what: str) -> tuple[str, bytes]:
    """The text of a UTF-8 file, with or without a byte order mark, and its bytes.

    Raises:
        InputError: the file is missing, cannot be read or is not UTF-8.
    """
    data = read_bytes(path, what)
    try:
        return data.decode("utf-8-sig"), data
    except UnicodeDecodeError as error:
        raise InputError(f"the {what} is not UTF-8 text (byte {error.start})", where=path) from error


def read_image(path: Path) -> np.ndarray:
    """Decodes an image file, whatever its depth and channels, to 8-bit BGR.

    The EXIF orientation is applied (darknet ignores it): people label the picture that a viewer shows, which
    is upright, and the frames that the device sees carry no such flag. Where an annotation states the
    size the data set compares it, so labels that were made on the unrotated pixels are noticed.

    A JPEG or PNG that ends early is refused before it is decoded: some versions of OpenCV fill the missing
    part with grey and say nothing that a program can see.

    Returns:
        (H, W, 3) uint8, BGR.

    Raises:
        InputError: the file is missing, empty, truncated, damaged or not an image.
    """
    data = read_bytes(path, "image")
    if not data:
        raise InputError("the image file is empty", where=path)
    problem = damage(data)
    if problem:
        raise InputError(problem, where=path, hint=_HINT)
    with tempfile.TemporaryFile() as words:
        try:
            with _stderr_to(words):
                image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        except cv2.error as error:
            raise InputError(f"OpenCV cannot decode the image: {error}", where=path) from error
        words.seek(0)
        said = words.read()
    if image is None:
        raise InputError("not an image that OpenCV can decode, or damaged", where=path)
    if any(phrase in said.lower() for phrase in _LIBJPEG_LOST_DATA):
        raise InputError("damaged JPEG (a part of its data is missing)", where=path, hint=_HINT)
    return np.asarray(image)


def find_images(folder: Path) -> list[Path]:
    """The image files in a folder and below it, in the order of their paths; hidden ones are left out.

    Raises:
        InputError: there is none, or the folder is missing.
    """
    if not is_dir(folder):
        raise InputError("no such folder of images", where=folder)
    found = [
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        # ._x.jpg: a macOS archive has one beside each x.jpg
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and is_file(path)
    ]
    if not found:
        raise InputError("no images in this folder", where=folder, hint=f"known: {' '.join(IMAGE_SUFFIXES)}")
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def find_image(stem: Path) -> Path | None:
    """The image file with this path, given without its suffix; None where there is none."""
    for suffix in IMAGE_SUFFIXES:
        for spelling in (suffix, suffix.upper()):
            # Not with_suffix: "frame.0001" would lose its number.
            path = stem.with_name(stem.name + spelling)
            if is_file(path):
                return path
    return None


def damage(data: bytes) -> str | None:
    """What is wrong with the container of a JPEG or PNG; None when it is whole, or of another format."""
    if data.startswith(_JPEG_MAGIC):
        return None if _jpeg_is_whole(data) else "truncated JPEG (no end-of-image marker)"
    if data.startswith(_PNG_MAGIC):
        return _png_damage(data)
    return None


def _jpeg_is_whole(data: bytes) -> bool:
    """Whether an end-of-image marker follows the start of the first scan.

    The segments before it are stepped over, because the thumbnail in an EXIF segment has a marker of its own.
    Bytes after the marker are allowed: phones append videos.
    """
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            break  # not at a marker: leave the judgement to the decoder, but ask for the end all the same
        marker = data[at + 1]
        if marker == 0xDA:
            break
        if marker == 0xFF:  # fill byte
            at += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD7:  # markers without a length
            at += 2
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return data.find(b"\xff\xd9", at) >= 0


def _png_damage(data: bytes) -> str | None:
    at = len(_PNG_MAGIC)
    while at + 12 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        end = at + 12 + length
        if end > len(data):
            break
        if zlib.crc32(data[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            return f"damaged PNG (wrong checksum in the chunk at byte {at})"
        if kind == b"IEND":
            return None
        at = end
    return "truncated PNG (no IEND chunk)"


@contextmanager
def _stderr_to(file: IO[bytes]) -> Iterator[None]:
    """Sends what the decoders' C code writes to stderr to a file: our error is the one line to read.

    OpenCV's own log level does not reach libjpeg, libpng and libtiff, which write to the file descriptor.
    That is the process's, hence the lock; it is held for one decode only.
    """
    with _REDIRECT:
        try:
            saved = os.dup(2)
        except OSError:  # no stderr at all, as under a service manager
            yield
            return
        try:
            os.dup2(file.fileno(), 2)
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
