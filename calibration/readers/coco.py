"""Reader of COCO annotations: one JSON file, boxes ``[x, y, w, h]`` in pixels, classes by name."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from paredown.calibration.readers.images import is_dir, is_file, read_text
from paredown.calibration.readers.reading import Reading
from paredown.calibration.readers.records import (
    Box,
    Classes,
    Record,
    Row,
    fit_box,
    is_marked,
    pack,
    pack_ignored,
    pixel_slack,
)
from paredown.targets.errors import InputError


def read_coco(path: Path, classes: Classes, images: Path | None, reading: Reading) -> list[Record]:
    """Reads a COCO data set.

    Regions marked ``iscrowd`` or ``ignore`` are ignored: nothing trains on them, and no score counts what is
    found there. Boxes of zero width or height are left out; COCO's own files have some. A file without an
    ``annotations`` list, like those of COCO's test sets, is an unlabelled set.

    Args:
        path: the JSON file.
        classes: the network's and the labels' classes; a category with boxes that is in neither is an error.
        images: folder of the images; without it they are beside the JSON file, or in ``images`` beside it.
        reading: what is noticed; errors of annotations and missing images are kept there.

    Raises:
        InputError: a missing file, malformed JSON, a wrong entry, an unknown class, or a box outside
            the image.
    """
    text, data = read_text(path, "COCO annotation file")
    entries, rows, regions, labelled = parse_coco(text, classes, str(path), reading)
    digest = hashlib.sha256(data).hexdigest() if labelled else ""
    if images is not None and not is_dir(images):
        raise InputError("no such folder of images", where=images)
    records = []
    for image_id, (name, size) in entries.items():
        file = None
        with reading.collected():
            file = find_file(name, path, images)
        if file is None:
            continue
        ignored = pack_ignored(regions.get(image_id, []), crowd=True)
        packed = pack(rows.get(image_id, []))
        records.append(Record(name, file, labelled, *packed, digest, size, ignored))
    return records


Images = dict[int | str, tuple[str, tuple[int, int]]]
_Boxes = dict[int | str, list[Row]]


def parse_coco(
    text: str, classes: Classes, where: str, reading: Reading | None = None
) -> tuple[Images, _Boxes, _Boxes, bool]:
    """Parses a COCO annotation file.

    Args:
        text: the JSON.
        classes: the network's and the labels' classes.
        where: name of the file, for messages.
        reading: keeps the errors of annotations; without it the first is raised.

    Returns:
        The images, id -> (file name, (width, height)), in the file's order; the boxes, image id -> a
        (class, (cx, cy, w, h)) per box, normalised to the image; the same of regions to ignore; and whether
        the file has annotations at all.

    Raises:
        InputError: malformed JSON, a missing or wrong entry, an unknown class, a box outside the image, or an
            `iscrowd` or `ignore` that is neither yes nor no.
    """
    document = parse_json(text, where)
    images = images_of(document, where)
    if "annotations" not in document:
        return images, {}, {}, False
    categories = _categories(document, where)
    boxes: _Boxes = {}
    regions: _Boxes = {}
    found = reading or Reading()
    for number, entry in enumerate(entries_of(document, "annotations", where)):
        at = f"{where}: annotations[{number}]"
        with found.collected():
            image_id, category = id_of(entry, "image_id", at), id_of(entry, "category_id", at)
            if image_id not in images:
                raise InputError(f"image_id {image_id!r} is not among the images", where=at)
            if category not in categories:
                raise InputError(f"category_id {category!r} is not among the categories", where=at)
            index = classes.by_name(categories[category], at)
            box = _box(entry, images[image_id][1], at, found)
            marked = [is_marked(entry.get(key), key, at) for key in ("iscrowd", "ignore")]
            if index is None:
                found.left_out["boxes of other classes left out"] += 1
            elif box is not None:
                (regions if any(marked) else boxes).setdefault(image_id, []).append((index, box))
    if reading is None:
        found.check()
    return images, boxes, regions, True


def images_of(document: dict[str, Any], where: str) -> Images:
    """The images of a COCO document, id -> (file name, (width, height)), in the file's order.

    Raises:
        InputError: there is none, or an entry is wrong.
    """
    images: Images = {}
    for number, entry in enumerate(entries_of(document, "images", where)):
        at = f"{where}: images[{number}]"
        image_id, name = id_of(entry, "id", at), entry.get("file_name")
        if not isinstance(name, str) or not name:
            raise InputError("no file_name", where=at)
        size = entry.get("width"), entry.get("height")
        if not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in size):
            raise InputError(f"width {size[0]!r} and height {size[1]!r} are not pixels", where=at)
        if image_id in images:
            raise InputError(f"image id {image_id!r} for the second time", where=at)
        images[image_id] = name, (int(size[0]), int(size[1]))  # type: ignore[arg-type]
    if not images:
        raise InputError("no images in this file", where=where)
    return images


def find_file(name: str, path: Path, images: Path | None) -> Path:
    """The file of an image that a COCO file names.

    Args:
        name: as it names it.
        path: the COCO file.
        images: folder of the images; without it they are beside the file, or in `images` beside it.

    Raises:
        InputError: there is no such folder or file.
    """
    if images is not None and not is_dir(images):
        raise InputError("no such folder of images", where=images)
    folders = [images] if images is not None else _places(path)
    file = next((folder / name for folder in folders if is_file(folder / name)), None)
    if file is None:
        raise InputError(
            f"no image {name!r} in {' or '.join(map(str, folders[:4]))}",
            where=path,
            hint="give data.images, the folder of the images",
        )
    return file


def _places(path: Path) -> list[Path]:
    """Where the images of a COCO file may be: beside it, in `images`, or as COCO itself has them.

    That is annotations/instances_val2017.json with val2017, or images/val2017, beside `annotations`.
    """
    beside = [path.parent, path.parent / "images"]
    if path.parent.name != "annotations":
        return beside
    root = path.parent.parent
    split = path.stem.rpartition("_")[2]
    return [*beside, root / split, root / "images" / split, root / "images", root]


def _box(entry: dict[str, Any], size: tuple[int, int], where: str, reading: Reading) -> Box | None:
    values = entry.get("bbox")
    if not isinstance(values, list) or len(values) != 4 or not all(is_number(value) for value in values):
        raise InputError(f"bbox {str(values)[:80]} is not four finite numbers x, y, w, h", where=where)
    if (values[2] == 0 or values[3] == 0) and min(values[2:]) >= 0:
        reading.left_out["boxes without width or height left out"] += 1
        return None
    (x, y, w, h), (width, height) = values, size
    edges = x / width, y / height, (x + w) / width, (y + h) / height
    return fit_box(edges, where, pixel_slack(width, height), reading)


def _categories(document: dict[str, Any], where: str) -> dict[int | str, str]:
    found: dict[int | str, str] = {}
    for number, entry in enumerate(entries_of(document, "categories", where)):
        at = f"{where}: categories[{number}]"
        category, name = id_of(entry, "id", at), entry.get("name")
        if not isinstance(name, str) or not name:
            raise InputError("no name", where=at)
        if category in found:
            raise InputError(f"category id {category!r} for the second time", where=at)
        found[category] = name
    return found


def parse_json(text: str, where: str) -> dict[str, Any]:
    """The document of a COCO file.

    Raises:
        InputError: malformed JSON, or no object.
    """
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"malformed JSON: {error.msg}", where=f"{where}:{error.lineno}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, a thousand brackets
        raise InputError(f"malformed JSON: {error}", where=where) from error
    if not isinstance(document, dict):
        raise InputError(f"expected a JSON object, found {type(document).__name__}", where=where)
    return document


def entries_of(document: dict[str, Any], key: str, where: str) -> list[dict[str, Any]]:
    """A list of objects in a COCO document.

    Raises:
        InputError: there is none of that name.
    """
    entries = document.get(key)
    if not isinstance(entries, list):
        raise InputError(f"no list {key!r}", where=where, hint="is it a COCO annotation file?")
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise InputError("not a JSON object", where=f"{where}: {key}[{number}]")
    return entries


def id_of(entry: dict[str, Any], key: str, where: str) -> int | str:
    """An id in an entry of a COCO document.

    Raises:
        InputError: it is none.
    """
    value = entry.get(key)
    if not isinstance(value, int | str) or isinstance(value, bool):
        raise InputError(f"{key} {str(value)[:40]} is not an id", where=where)
    return value


def is_number(value: Any) -> bool:
    """Whether this is a number that is finite and no bool."""
    # A NaN fails the comparison, and so does a whole number that no float can hold.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e12
