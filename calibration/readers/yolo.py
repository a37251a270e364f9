"""Reader of YOLO labels: a text file per image, ``class cx cy w h`` per line, normalised to the image."""

from __future__ import annotations

import hashlib
import math
import os
from pathlib import Path

from paredown.calibration.readers.images import find_images, is_dir, is_file, read_text, with_any_case
from paredown.calibration.readers.reading import Reading
from paredown.calibration.readers.records import Classes, Record, Row, fit_box, pack
from paredown.targets.errors import InputError, UsageError

_COLUMNS = "class cx cy w h"


def read_yolo(
    path: Path, classes: Classes, images: Path | None, labels: Path | None, reading: Reading
) -> list[Record]:
    """Reads a folder of images, or a ``.txt`` list of them, with their YOLO labels.

    A label file is looked for under ``labels`` if that is given, else where the last ``images`` or
    ``JPEGImages`` component of the image's path reads ``labels`` (darknet), else beside the image. Without
    one the image is unlabelled; an empty one says that there is nothing on it.

    Args:
        path: the folder, or the list. Relative entries of a list start at ``images`` if that is given,
            else at the list's own folder, else (as darknet has it) at the current one.
        classes: the network's and the labels' classes.
        images: where the entries of a list start; with a folder it is an error.
        labels: folder of label files, in the folders that the images have below ``path`` or ``images``.
        reading: what is noticed; errors of label lines are kept there.

    Raises:
        InputError: a missing file, no images, or a label line that is wrong, with file and line.
        UsageError: ``images`` with a folder.
    """
    if is_dir(path):
        if images is not None:
            raise UsageError(f"goes with a list of images; {path} is a folder", where="data.images")
        files = [(file.relative_to(path).as_posix(), file) for file in find_images(path, reading.skipped)]
    else:
        files = _read_list(path, images)
    if labels is not None and not is_dir(labels):
        raise InputError("no such folder of labels", where=labels)
    return [_record(name, file, classes, labels, reading) for name, file in files]


def parse_yolo(text: str, classes: Classes, where: str, reading: Reading | None = None) -> list[Row]:
    """Parses one label file.

    Args:
        text: its content; blank lines are skipped.
        classes: the network's and the labels' classes.
        where: name of the file, for messages.
        reading: keeps the errors; without it the first is raised.

    Returns:
        A (class, (cx, cy, w, h)) per box of the network's classes.

    Raises:
        InputError: a malformed line, a class out of range or a box outside the image, as ``file:line``.
    """
    rows = []
    found = reading or Reading()
    for number, line in enumerate(text.split("\n"), start=1):
        if tokens := line.split():
            with found.collected():
                row = _row(tokens, classes, f"{where}:{number}", found)
                if row is not None:
                    rows.append(row)
    if reading is None:
        found.check()
    return rows


def _row(tokens: list[str], classes: Classes, at: str, reading: Reading) -> Row | None:
    """The box of a line; None where it is left out."""
    if len(tokens) != 5:
        hint = "polygons and scores are not read" if len(tokens) > 5 else None
        raise InputError(f"expected 5 columns, {_COLUMNS}, found {len(tokens)}", where=at, hint=hint)
    if not (tokens[0].isascii() and tokens[0].isdigit()) or len(tokens[0]) > 9:
        raise InputError(f"class {tokens[0][:40]!r} is not a whole number", where=at)
    index = classes.by_index(int(tokens[0]), at)
    cx, cy, w, h = (_number(token, at) for token in tokens[1:])
    if max(cx, cy, w, h) > 2:
        raise InputError(
            f"a box outside the image, not normalised to it: {' '.join(tokens[1:])[:60]}", where=at,
            hint="YOLO labels are shares of width and height, not pixels",
        )  # fmt: skip
    box = fit_box((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), at, reading=reading)
    if index is None:
        reading.left_out["boxes of other classes left out"] += 1
    return None if index is None or box is None else (index, box)


def label_path(image: Path) -> Path:
    """Where the label file of an image is: in the ``labels`` tree if it is there, else beside the image."""
    parts = list(image.absolute().parts)
    beside = with_any_case(image.with_suffix(".txt"))
    for at in range(len(parts) - 2, -1, -1):
        if parts[at] in ("images", "JPEGImages"):
            parts[at] = "labels"
            mirrored = with_any_case(Path(*parts).with_suffix(".txt"))
            return mirrored if is_file(mirrored) or not is_file(beside) else beside
    return beside


def _record(name: str, image: Path, classes: Classes, labels: Path | None, reading: Reading) -> Record:
    path = label_path(image) if labels is None else with_any_case((labels / name).with_suffix(".txt"))
    if not is_file(path):
        return Record(name, image)
    text, data = read_text(path, "label file")
    boxes, indices = pack(parse_yolo(text, classes, str(path), reading))
    return Record(name, image, True, boxes, indices, hashlib.sha256(data).hexdigest())


def _read_list(path: Path, images: Path | None) -> list[tuple[str, Path]]:
    text, _ = read_text(path, "list of images")
    starts = [images] if images is not None else [path.parent, Path()]
    files: list[tuple[str, Path]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        entry = line.strip()
        if not entry:
            continue
        file = next((start / entry for start in starts if is_file(start / entry)), None)
        if file is None:
            raise InputError(
                f"no image {entry[:200]!r}",
                where=f"{path}:{number}",
                hint=f"relative paths start at {' or '.join(str(start.absolute()) for start in starts)}",
            )
        # A name that is the same on every machine: an absolute path is cut to its last component.
        files.append((file.name if Path(entry).is_absolute() else Path(entry).as_posix(), file))
    if not files:
        raise InputError("no images in this list", where=path)
    if len({name for name, _ in files}) < len({file for _, file in files}):
        # The same file name in several folders: what they have in common above is left out instead.
        above = Path(os.path.commonpath([file.absolute().parent for _, file in files]))
        files = [(file.absolute().relative_to(above).as_posix(), file) for _, file in files]
    return files


def _number(token: str, where: str) -> float:
    try:
        value = float(token)
    except ValueError:
        value = math.nan
    if "_" in token or not math.isfinite(value):  # Python reads 1_0 as ten
        raise InputError(f"{token[:40]!r} is not a finite number; the columns are {_COLUMNS}", where=where)
    return value
