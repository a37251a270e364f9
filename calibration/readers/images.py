"""Image files to arrays: whole, upright, or an error that names the file."""

from __future__ import annotations

import os
import tempfile
import threading
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal

import cv2
import numpy as np

from paredown.targets.errors import InputError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
#: Files that lie beside images and are none: labels, lists, what tools leave.
BESIDE_SUFFIXES = (
    ".txt", ".xml", ".json", ".csv", ".yaml", ".yml", ".names", ".md", ".cache", ".data", ".toml", ".npy",
    ".npz", ".db", ".ini", ".html", ".log", ".zip", ".py",
)  # fmt: skip
_HEADER_BYTES = 256 * 1024  # EXIF has 64 KiB at most, and stands first
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


def read_image(path: Path, upright: bool = True) -> np.ndarray:
    """Decodes an image file, whatever its depth and channels, to 8-bit BGR.

    The EXIF orientation is applied (darknet ignores it): people label the picture that a viewer shows, which
    is upright, and the frames that the device sees carry no such flag. Where an annotation states the
    size the data set compares it, so labels that were made on the unrotated pixels are noticed.

    A JPEG or PNG that ends early is refused before it is decoded: some versions of OpenCV fill the missing
    part with grey and say nothing that a program can see.

    Args:
        path: of the file.
        upright: False leaves the pixels as they are stored.

    Returns:
        (H, W, 3) uint8, BGR.

    Raises:
        InputError: the file is missing, empty, truncated, damaged or not an image.
    """
    data = read_bytes(path, "image")
    if not data:
        raise InputError("the image file is empty", where=path)
    return decode_image(data, path, upright)


def decode_image(data: bytes, path: str | Path, upright: bool = True) -> np.ndarray:
    """The same of a file's bytes; `path` is named in errors."""
    problem = damage(data)
    if problem:
        raise InputError(problem, where=path, hint=_HINT)
    with tempfile.TemporaryFile() as words:
        try:
            with _stderr_to(words):
                how = cv2.IMREAD_COLOR | (0 if upright else cv2.IMREAD_IGNORE_ORIENTATION)
                image = cv2.imdecode(np.frombuffer(data, np.uint8), how)
        except cv2.error as error:
            raise InputError(f"OpenCV cannot decode the image: {error}", where=path) from error
        words.seek(0)
        said = words.read()
    if image is None:
        raise InputError("not an image that OpenCV can decode, or damaged", where=path)
    if any(phrase in said.lower() for phrase in _LIBJPEG_LOST_DATA):
        raise InputError("damaged JPEG (a part of its data is missing)", where=path, hint=_HINT)
    return np.asarray(image)


def find_images(folder: Path, skipped: Counter[str] | None = None) -> list[Path]:
    """The image files in a folder and below it, in the order of their paths; links to folders are followed.

    Hidden files are left out: of ._x.jpg a macOS archive has one beside each x.jpg.

    Args:
        folder: where to look.
        skipped: counts the suffixes of other files, but for those that belong to data sets.

    Raises:
        InputError: there is none, or the folder is missing.
    """
    if not is_dir(folder):
        raise InputError("no such folder of images", where=folder)
    found: list[Path] = []
    others = Counter[str]() if skipped is None else skipped
    for path in walk(folder):
        suffix = path.suffix.lower()
        if suffix in IMAGE_SUFFIXES and is_file(path):
            found.append(path)
        elif suffix not in BESIDE_SUFFIXES:
            others[suffix or path.name] += 1
    if not found:
        told = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(3))
        hint = f"known: {' '.join(IMAGE_SUFFIXES)}" + (f"; found {told}" if told else "")
        raise InputError("no images in this folder", where=folder, hint=hint)
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def walk(folder: Path) -> Iterator[Path]:
    """The files in a folder and below it; hidden ones are left out, a folder that links make twice is not."""
    above: dict[str, tuple[str, ...]] = {}
    for name, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(name)
        way = (*above.get(str(Path(name).parent), ()), real)
        if real in way[:-1]:  # a link to a folder that it lies in has no end
            folders.clear()
            continue
        above[name] = way
        folders[:] = [each for each in folders if not each.startswith(".")]
        yield from (Path(name, each) for each in files if not each.startswith("."))


def with_any_case(path: Path) -> Path:
    """The path, or that of an existing file whose suffix is written otherwise (.TXT, .Txt)."""
    if is_file(path):
        return path
    suffix = path.suffix
    for spelling in (suffix.upper(), suffix.capitalize(), f".{suffix[1:].capitalize()}"):
        other = path.with_name(path.name.removesuffix(suffix) + spelling)
        if is_file(other):
            return other
    return path


def jpeg_facts(path: Path) -> tuple[int, tuple[int, int] | None]:
    """What `jpeg_header` says of a file; one that cannot be read is upright and of unknown size."""
    try:
        with path.open("rb") as file:
            return jpeg_header(file.read(_HEADER_BYTES))
    except OSError:
        return 1, None


def jpeg_header(data: bytes) -> tuple[int, tuple[int, int] | None]:
    """EXIF's orientation, 1 where there is none, and width and height as stored, of a JPEG's first bytes.

    Anything else than a JPEG is upright and of unknown size.
    """
    if not data.startswith(_JPEG_MAGIC):
        return 1, None
    at, orientation = 2, 1
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
            orientation = _orientation(data[at + 10 : at + 2 + length])
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = (int.from_bytes(data[at + s : at + s + 2], "big") for s in (5, 7))
            return orientation, (width, height)
        at += 2 + length
    return orientation, None


def _orientation(tiff: bytes) -> int:
    """Tag 0x0112 of the first directory of EXIF's TIFF; 1 without."""
    order: Literal["little", "big"] = "little" if tiff.startswith(b"II") else "big"

    def number(at: int, size: int) -> int:
        return int.from_bytes(tiff[at : at + size], order)

    start = number(4, 4)
    for entry in range(number(start, 2)):
        at = start + 2 + 12 * entry
        if at + 12 > len(tiff):
            break
        if number(at, 2) == 0x0112:
            value = number(at + 8, 2)
            return value if 1 <= value <= 8 else 1
    return 1


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
