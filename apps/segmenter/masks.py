"""Data sets of images with a class for every pixel: a label PNG for each image, in a folder of their own."""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from paredown.apps.segmenter.device.class_map import IGNORED
from paredown.calibration.census import Census
from paredown.calibration.datasets import ImageSet
from paredown.calibration.readers.images import (
    damage,
    find_image,
    find_images,
    is_dir,
    is_file,
    read_bytes,
    read_text,
)
from paredown.calibration.readers.records import Classes, Record, Sample
from paredown.targets.errors import InputError

Mask = NDArray[np.uint8]

_MAGIC = b"\x89PNG\r\n\x1a\n"
_GREY, _PALETTE = 0, 3  # colour types of a PNG
_KINDS = {2: "an RGB", 4: "a grey and alpha", 6: "an RGBA"}
_WANTED = "a label is a PNG of one channel or a palette, of 8 bits, whose values are classes"


@dataclass(frozen=True, eq=False)
class MaskSample(Sample):
    """One image with a class for every pixel.

    Attributes:
        mask: (H, W) uint8, indices into the data set's names, `IGNORED` = not scored; None without a label.
    """

    mask: Mask | None = None


class MaskSet(ImageSet):
    """A data set of images and label PNGs; `read_masks` makes it."""

    def __init__(self, records: Sequence[Record], labels: Sequence[Path | None], classes: Classes) -> None:
        """Takes the images, the label file of each, and the classes that they are read with."""
        super().__init__(records, classes)
        self._labels = tuple(labels)

    def __getitem__(self, index: int) -> MaskSample:
        plain = super().__getitem__(index)
        mask = self._mask(index)
        seen = np.zeros(0, np.int64) if mask is None else _classes(mask)
        return MaskSample(plain.name, plain.image, plain.boxes, seen, mask is not None, mask)

    @property
    def census(self) -> Census:
        """Images and labels; which classes are in them, every label would have to be decoded for."""
        return replace(super().census, objects={})

    def classes_of(self, index: int) -> np.ndarray | None:
        """(N,) int64, the classes that the label shows, without the image; None where there is none."""
        mask = self._mask(index)
        return None if mask is None else _classes(mask)

    def _mask(self, index: int) -> Mask | None:
        path = self._labels[index]
        return None if path is None else read_mask(path, self._classes)


def with_mask(sample: Sample, mask: Mask) -> MaskSample:
    """A sample with a mask that was made for it."""
    return MaskSample(sample.name, sample.image, sample.boxes, _classes(mask), True, mask)


def read_masks(
    path: Path, classes: Classes, labels: Path, images: Path | None, require_labels: bool
) -> MaskSet:
    """Reads images and the label PNGs that go with them.

    The label of `a/b.jpg` is `a/b.png` below the folder of labels, or below its folder of the split's own
    name where there is one. An image without a label file is unlabelled. What kind of PNG a label is, and its
    size, is checked on opening; its values when it is asked for.

    Args:
        path: a folder of images, or a `.txt` list of them, with or without suffix (as VOC has it).
        classes: the network's and the labels' classes; of the latter those that the network has not are not
            scored.
        labels: the folder of label PNGs.
        images: where the entries of a list start; without it, beside the list.
        require_labels: refuse an image without a label.

    Raises:
        InputError: a missing file or folder, or a label that is no such PNG.
    """
    if not is_dir(labels):
        raise InputError("no such folder of labels", where=labels)
    if is_dir(path):
        files = [(file.relative_to(path).as_posix(), file) for file in find_images(path)]
        own = labels / path.name
        folder = own if is_dir(own) else labels
    else:
        files, folder = _listed(path, images or path.parent), labels
    records: list[Record] = []
    found: list[Path | None] = []
    for name, file in files:
        label = folder / Path(name).with_suffix(".png")
        if not is_file(label):
            if require_labels:
                raise InputError(
                    f"no label {label}, and it is needed here", where=file,
                    hint="labels are PNGs of the images' names; data.labels is their folder",
                )  # fmt: skip
            records.append(Record(name, file))
            found.append(None)
            continue
        data = read_bytes(label, "label")
        size = _header(data, label)[:2]
        digest = hashlib.sha256(data).hexdigest()
        records.append(Record(name, file, labelled=True, digest=digest, size=size))
        found.append(label)
    return MaskSet(records, found, classes)


def read_mask(path: Path, classes: Classes) -> Mask:
    """The classes of a label PNG, (H, W) uint8; `IGNORED` where it says 255, or a class the network has not.

    Raises:
        InputError: no such PNG, damaged, or a value that is no class.
    """
    values = _decode(read_bytes(path, "label"), path)
    known = classes.names if classes.label_names is None else classes.label_names
    table = np.full(256, IGNORED, np.uint8)
    for value in range(min(len(known), IGNORED)):
        index = classes.by_index(value, str(path))
        table[value] = IGNORED if index is None else index
    wrong = (values >= len(known)) & (values != IGNORED)
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise InputError(
            f"the pixel in row {row}, column {column} has the value {values[row, column]}, and there are "
            f"{len(known)} classes, 0 to {len(known) - 1}; 255 is not scored",
            where=path, hint="check data.names, and data.label_names if the labels use other classes",
        )  # fmt: skip
    return table[values]


def _classes(mask: Mask) -> NDArray[np.int64]:
    counts = np.bincount(mask.ravel(), minlength=256)
    return np.flatnonzero(counts[:IGNORED]).astype(np.int64)


def _header(data: bytes, path: Path) -> tuple[int, int, int, int]:
    """Width, height, bits and colour type of a label PNG."""
    if not data.startswith(_MAGIC) or len(data) < 33 or data[12:16] != b"IHDR":
        raise InputError("not a PNG", where=path, hint=_WANTED)
    width, height, bits, kind = struct.unpack(">IIBB", data[16:26])
    if kind not in (_GREY, _PALETTE):
        raise InputError(f"{_KINDS.get(kind, 'another')} PNG", where=path, hint=_WANTED)
    if bits > 8:
        raise InputError(f"a PNG of {bits} bits", where=path, hint=_WANTED)
    return width, height, bits, kind


def _decode(data: bytes, path: Path) -> Mask:
    """The values of a PNG's pixels, (H, W) uint8: of a palette not its colours, which OpenCV would give.

    A palette's PNG differs from a grey one in its header and its list of colours alone.
    """
    if problem := damage(data):
        raise InputError(problem, where=path)
    width, height, bits, _ = _header(data, path)
    header = b"IHDR" + data[16:25] + bytes([_GREY]) + data[26:29]
    chunks = [data[:12] + header + struct.pack(">I", zlib.crc32(header))]
    at = 33
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] in (b"IDAT", b"IEND"):
            chunks.append(data[at:end])
        at = end
    try:
        values = cv2.imdecode(np.frombuffer(b"".join(chunks), np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise InputError(f"OpenCV cannot decode the label: {error}", where=path) from error
    if values is None or values.shape != (height, width) or values.dtype != np.uint8:
        raise InputError("not a PNG that OpenCV can decode, or damaged", where=path)
    return values // (255 // (2**bits - 1))  # of fewer bits OpenCV spreads the values over 0..255


def _listed(path: Path, start: Path) -> list[tuple[str, Path]]:
    """The images of a list: a name per line, below a folder."""
    text, _ = read_text(path, "list of images")
    files = []
    for number, line in enumerate(text.split("\n"), start=1):
        name = line.strip()
        if not name:
            continue
        file = start / name if is_file(start / name) else find_image(start / name)
        if file is None:
            raise InputError(
                f"no image {name[:200]!r} in {start}", where=f"{path}:{number}",
                hint="give data.images, the folder of the images",
            )  # fmt: skip
        files.append((file.relative_to(start).as_posix(), file))
    if not files:
        raise InputError("no images in this list", where=path)
    return files
