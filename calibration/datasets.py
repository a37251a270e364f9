"""Data sets of images, labelled or not: one protocol over all formats of files and folders."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np

from paredown.calibration.census import Census, count_classes, count_records
from paredown.calibration.readers.arrays import ArraySet, read_arrays
from paredown.calibration.readers.cifar import Cifar, read_cifar
from paredown.calibration.readers.coco import read_coco
from paredown.calibration.readers.imagefolder import read_imagefolder
from paredown.calibration.readers.images import (
    find_images,
    is_dir,
    is_file,
    jpeg_facts,
    read_image,
    read_text,
)
from paredown.calibration.readers.reading import Orientation, Reading
from paredown.calibration.readers.records import Classes, Record, Sample
from paredown.calibration.readers.voc import read_voc
from paredown.calibration.readers.yolo import read_yolo
from paredown.targets.errors import InputError, UsageError

CLASS_FORMATS = ("imagefolder", "cifar")  # one class per image, no boxes
BOX_FORMATS = ("yolo", "voc", "coco", "folder")
ARRAYS = "arrays"  # instead of images
TURNED = 'its EXIF orientation turns it: label the upright image, or set data.orientation = "stored"'
FORMATS = (*BOX_FORMATS, *CLASS_FORMATS, ARRAYS)


class Dataset(Protocol):
    """A sequence of samples. Labels are read and checked on opening, images when they are asked for."""

    names: tuple[str, ...]

    def __len__(self) -> int:
        """Number of samples."""

    def __getitem__(self, index: int) -> Sample:
        """Decodes one sample.

        Raises:
            InputError: the image is missing, truncated or damaged; its file is named.
        """

    def fingerprint(self) -> str:
        """Sha256, in hex, over the bytes of images and labels, and the names. The second call is free."""


class ImageSet:
    """A data set of image files; ``open_dataset`` makes it."""

    def __init__(self, records: Sequence[Record], classes: Classes, reading: Reading | None = None) -> None:
        """Takes the records in their order, already checked, and how they were read."""
        self.names = classes.names
        self.records = tuple(records)
        self.reading = reading or Reading()
        self._classes = classes
        self._fingerprint: str | None = None

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Sample:
        record = self.records[index]
        image = read_image(record.image, self.reading.orientation == "upright")
        height, width = image.shape[:2]
        if record.size is not None and record.size != (width, height):
            turned = record.size == (height, width)
            stated = f"{record.size[0]}x{record.size[1]}"
            raise InputError(
                f"the image is {width}x{height} pixels, its labels were made for {stated}",
                where=record.image,
                hint=TURNED if turned and self.reading.orientation == "upright" else None,
            )
        labels = record.boxes, record.classes, record.labelled
        return Sample(record.name, image, *labels, ignored=record.ignored)

    @property
    def census(self) -> Census:
        """What is in it, and what was left out."""
        return count_records(self.records, self.names, self.reading)

    def classes_of(self, index: int) -> np.ndarray | None:
        """(N,) int64, the sample's classes, without decoding its image; None where it is unlabelled."""
        record = self.records[index]
        return record.classes if record.labelled else None

    def fingerprint(self) -> str:
        """Sha256, in hex, over the bytes of images and labels, and the names; computed once.

        Paths do not enter, the samples' names do: a copy of the set on another machine has the same.

        Raises:
            InputError: an image cannot be read.
        """
        if self._fingerprint is None:
            total = hashlib.sha256()
            for part in self._digested():
                # One JSON text a line: no two different sets give the same bytes.
                total.update(json.dumps(part).encode() + b"\n")
            self._fingerprint = total.hexdigest()
        return self._fingerprint

    def _digested(self) -> Iterator[list[object]]:
        stored = ["stored"] if self.reading.orientation == "stored" else []
        yield [self.names, self._classes.label_names, *stored]
        for record in self.records:
            try:
                with record.image.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise InputError(f"cannot read the image: {error.strerror}", where=record.image) from error
            part: list[object] = [record.name, digest, record.labelled, record.digest]
            # The label file says them already; but scores of before left them out.
            yield [*part, "ignored"] if len(record.ignored) else part


class First:
    """The first images of a data set, as a data set of its own.

    Args:
        data: the whole set.
        count: how many images; all where there are fewer.
    """

    def __init__(self, data: Dataset, count: int) -> None:
        self.whole, self._count = data, min(count, len(data))
        self.names = data.names

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self._count:
            raise IndexError(f"image {index} of {self._count}")
        return self.whole[index]

    def classes_of(self, index: int) -> np.ndarray | None:
        """Those of the whole set."""
        return classes_of(self.whole, index)

    def fingerprint(self) -> str:
        """Of the whole set and the count."""
        return hashlib.sha256(f"{self.whole.fingerprint()}:{self._count}".encode()).hexdigest()


class Kept(First):
    """A whole data set whose samples stay in memory once they were read, as far as there is room.

    A run scores the same images several times. What is kept may not be written to.

    Args:
        data: the set.
        room: bytes of decoded images at most.
    """

    def __init__(self, data: Dataset, room: int = 256 << 20) -> None:
        super().__init__(data, len(data))
        self._room, self._samples = room, dict[int, Sample]()

    def __getitem__(self, index: int) -> Sample:
        sample = self._samples.get(index)
        if sample is None:
            sample = super().__getitem__(index)
            if sample.image.nbytes <= self._room:
                self._room -= sample.image.nbytes
                if sample.image.dtype == np.uint8:  # torch warns of arrays that it may not write to
                    sample.image.setflags(write=False)
                self._samples[index] = sample
        return sample

    def fingerprint(self) -> str:
        """Of the set."""
        return self.whole.fingerprint()


def census_of(data: Dataset) -> Census | None:
    """What is in a data set, without decoding an image; None where it does not say."""
    if isinstance(data, First):
        whole = census_of(data.whole)
        return whole if whole is None or whole.images == len(data) else replace(whole, used=len(data))
    found: Census | None = getattr(data, "census", None)
    if found is None and isinstance(data, Cifar | ArraySet):
        labels = [data.classes_of(index) for index in range(len(data))]
        return count_classes([None if label is None else int(label[0]) for label in labels], data.names)
    return found


def classes_of(data: Dataset, index: int) -> np.ndarray | None:
    """A sample's classes, (N,) int64, None where it is unlabelled; decodes only if there is no other way."""
    find = getattr(data, "classes_of", None)
    if find is not None:
        return find(index)
    sample = data[index]
    return sample.classes if sample.labelled else None


def open_dataset(
    format: str,
    path: str | Path,
    *,
    names: Sequence[str],
    label_names: Sequence[str] | None = None,
    images: str | Path | None = None,
    labels: str | Path | None = None,
    require_labels: bool = False,
    split: str | None = None,
    clip: bool = False,
    orientation: Orientation = "upright",
) -> Dataset:
    """Opens a data set and checks all of its labels; images are decoded when they are asked for.

    Args:
        format: ``yolo``, ``voc``, ``coco``, ``folder`` (images only, of any use but scoring); with a
            class per image instead of boxes: ``imagefolder`` (a sub-folder per class), ``cifar``; without
            images: ``arrays``.
        path: yolo: a folder of images or a ``.txt`` list of them. voc: a folder with ``JPEGImages`` and
            ``Annotations``, an ``ImageSets/Main/NAME.txt`` in one, or a folder of images and XML files. coco:
            the JSON file. folder, imagefolder: the folder. cifar: the unpacked archive's folder, or one file.
            arrays: see ``readers.arrays``. Folders are searched through, in the order of the paths.
        names: the network's classes; folder and arrays do without.
        label_names: the label files' classes where they differ: matched by name, the rest dropped.
        images: where the images are, if not where the format expects them.
        labels: where the label files are, if not where the format expects them (yolo, voc).
        require_labels: refuse a set without any box, or label, of the network's classes.
        split: "train", "calibration" or "test": selects the files of a folder that holds all (cifar).
        clip: cut boxes that reach outside the image at its edge; else they are errors.
        orientation: whether images are turned as EXIF says, or left as they are stored.

    Raises:
        UsageError: an unknown format, or an option that this format does not have.
        InputError: no images, a missing or malformed file, a label out of range, a box outside the image;
            or no labels where they are required.
    """
    if format not in FORMATS:
        near = difflib.get_close_matches(format, FORMATS, n=1)
        hint = (f"did you mean {near[0]}? " if near else "") + f"known: {', '.join(FORMATS)}"
        raise UsageError(f"unknown data format {format!r}", where="data.format", hint=hint)
    unused = {"yolo": (), "voc": (), "coco": ("labels",)}.get(format, ("labels", "images"))
    for option, value in (("labels", labels), ("images", images)):
        if value is not None and option in unused:
            raise UsageError(f"data of format {format!r} has no {option!r}", where=f"data.{option}")
    if not names and format not in ("folder", ARRAYS):
        raise UsageError("no classes", where="data.names")
    path = Path(path)
    if not is_dir(path) and not is_file(path):
        raise InputError("no such file or folder", where=path)
    images, labels = (None if folder is None else Path(folder) for folder in (images, labels))
    classes = Classes(tuple(names), None if label_names is None else tuple(label_names))
    reading = Reading(clip, orientation)

    if format == "cifar":
        return read_cifar(path, classes, split)
    if format == ARRAYS:
        arrays = read_arrays(path, classes)
        if require_labels and not any(arrays.classes_of(index) is not None for index in range(len(arrays))):
            raise InputError(
                f"no labels for any of the {len(arrays)} arrays, and they are needed here",
                where=path, hint="sort them into a folder per class, or give a .npz with `labels`",
            )  # fmt: skip
        return arrays
    if format == "yolo":
        records = read_yolo(path, classes, images, labels, reading)
    elif format == "voc":
        records = read_voc(path, classes, images, labels, reading)
    elif format == "coco":
        records = read_coco(path, classes, images, reading)
    elif format == "imagefolder":
        records = read_imagefolder(path, classes, reading)
    else:
        found = find_images(path, reading.skipped)
        records = [Record(file.relative_to(path).as_posix(), file) for file in found]
    _note_turned(records, reading)
    reading.check()
    if require_labels:
        _check_labelled(format, path, records)
    return ImageSet(records, classes, reading)


def read_names(path: str | Path) -> tuple[str, ...]:
    """Reads a list of class names: one a line, in the order of their indices.

    Raises:
        InputError: the file is missing, empty or not UTF-8, or has a blank line between names (which would
            shift the indices) or a name twice.
    """
    path = Path(path)
    text, _ = read_text(path, "list of class names")
    names = [line.strip() for line in text.rstrip().split("\n")]
    if names == [""]:
        raise InputError("no class names in this file", where=path)
    for number, name in enumerate(names, start=1):
        if not name:
            raise InputError("a blank line among the class names", where=f"{path}:{number}")
        if name in names[: number - 1]:
            raise InputError(f"class {name!r} for the second time", where=f"{path}:{number}")
    return tuple(names)


def _note_turned(records: Sequence[Record], reading: Reading) -> None:
    """Counts images that EXIF turns; labels that fit only the pixels as they are stored are errors."""
    for record in records:
        orientation, size = jpeg_facts(record.image)
        if orientation == 1:
            continue
        reading.turned += 1
        if (
            reading.orientation == "upright"
            and orientation >= 5
            and size
            and record.size == size != size[::-1]
        ):
            made = f"its labels were made for {size[0]}x{size[1]} pixels as stored, and EXIF turns the image"
            reading.faults.append(InputError(made, where=record.image, hint=TURNED))


def _check_labelled(format: str, path: Path, records: Sequence[Record]) -> None:
    if format == "folder":
        what = "a plain folder of images has no labels, and they are needed here"
        raise InputError(what, where=path, hint="set data.format")
    if not any(record.labelled for record in records):
        hints = {"coco": "the file has no 'annotations'", "imagefolder": "sort them into a folder per class"}
        raise InputError(
            f"no labels for any of the {len(records)} images, and they are needed here",
            where=path,
            hint=hints.get(
                format, f"is data.format = {format!r} right? data.labels says where label files are"
            ),
        )
    if format != "imagefolder" and not any(len(record.boxes) for record in records):
        raise InputError(
            f"not one box of the network's classes on {len(records)} images, and some are needed here",
            where=path,
            hint="check data.names and data.label_names",
        )
