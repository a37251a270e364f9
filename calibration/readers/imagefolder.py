"""Reader of images of one class each: a folder per class, or a .csv of file and class."""

from __future__ import annotations

import csv
import hashlib
import itertools
from pathlib import Path

import numpy as np

from paredown.calibration.readers.images import IMAGE_SUFFIXES, find_images, is_dir, is_file, read_text, walk
from paredown.calibration.readers.reading import Reading
from paredown.calibration.readers.records import Classes, Record
from paredown.targets.errors import InputError


def read_imagefolder(path: Path, classes: Classes, reading: Reading) -> list[Record]:
    """Reads a folder with a sub-folder per class, named as the class; images lie anywhere below it.

    A folder that holds images and no sub-folders is a set without labels. Images of classes that only
    ``label_names`` has are left out. The order takes one image of each class in turn: whoever takes the first
    few (to calibrate, with data.limit) has all classes. Our design.

    A `.csv` has a row per image, its path from the file's folder and its class, with or without a head.

    Args:
        path: the folder, or the `.csv`.
        classes: the network's and the folders' classes; folders are matched by name, in any order.
        reading: what is noticed.

    Returns:
        Records without boxes; ``classes`` is the image's one class.

    Raises:
        InputError: no folder, no images, a sub-folder that is no class, or images beside the sub-folders.
    """
    if path.suffix.lower() == ".csv":
        return _listed(path, classes, reading)
    if not is_dir(path):
        raise InputError("no such folder of class folders", where=path)
    try:
        entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise InputError(f"cannot read the folder: {error.strerror}", where=path) from error
    folders = [entry for entry in entries if is_dir(entry)]
    loose = [entry for entry in entries if entry.suffix.lower() in IMAGE_SUFFIXES and entry not in folders]
    if loose and folders:
        raise InputError(
            f"an image beside the {len(folders)} class folders, and so of no class",
            where=loose[0],
            hint="move it into a class folder",
        )
    if not folders:
        return [
            Record(file.relative_to(path).as_posix(), file) for file in find_images(path, reading.skipped)
        ]
    columns = []
    for folder in folders:
        with reading.collected():
            index = None
            index = classes.by_name(folder.name, str(folder))
        if index is None or not _has_images(folder):
            reading.left_out["class folders left out (without images, or of another class)"] += 1
            continue
        label = np.array([index], np.int64)
        label.setflags(write=False)
        columns.append(
            [
                Record(file.relative_to(path).as_posix(), file, labelled=True, classes=label)
                for file in find_images(folder, reading.skipped)
            ]
        )
    reading.check()
    rows = itertools.zip_longest(*columns)
    records = [record for row in rows for record in row if record is not None]
    if not records:
        raise InputError(
            f"no images of the network's classes in any of the {len(folders)} class folders",
            where=path,
            hint=f"known images: {' '.join(IMAGE_SUFFIXES)}; check data.names and data.label_names",
        )
    return records


def csv_rows(path: Path) -> list[tuple[str, str]]:
    """File and class of each row of a .csv, by commas, semicolons or tabs; a head is left out.

    Raises:
        InputError: it cannot be read, is empty, or has a row without two columns.
    """
    text, _ = read_text(path, "list of images")
    first = text.split("\n", 1)[0]
    mark = max(",;\t", key=first.count)
    rows = [
        (number, row) for number, row in enumerate(csv.reader(text.splitlines(), delimiter=mark), 1) if row
    ]
    if rows and Path(rows[0][1][0].strip()).suffix.lower() not in IMAGE_SUFFIXES:
        rows = rows[1:]
    for number, row in rows:
        if len(row) < 2 or not row[0].strip() or not row[1].strip():
            raise InputError("not a file and a class", where=f"{path}:{number}")
    if not rows:
        raise InputError("no images in this list", where=path)
    return [(row[0].strip(), row[1].strip()) for _, row in rows]


def _listed(path: Path, classes: Classes, reading: Reading) -> list[Record]:
    records = []
    for name, kind in csv_rows(path):
        file = path.parent / name
        with reading.collected():
            index = classes.by_name(kind, f"{path}: {name}")
            if not is_file(file):
                raise InputError(f"no image {name!r}", where=path, hint="paths start at the list's folder")
            if index is None:
                reading.left_out["images of other classes left out"] += 1
                continue
            label = np.array([index], np.int64)
            label.setflags(write=False)
            digest = hashlib.sha256(kind.encode()).hexdigest()
            records.append(Record(name, file, labelled=True, classes=label, digest=digest))
    reading.check()
    if not records:
        raise InputError("no images of the network's classes in this list", where=path)
    return records


def _has_images(folder: Path) -> bool:
    return any(file.suffix.lower() in IMAGE_SUFFIXES for file in walk(folder))
