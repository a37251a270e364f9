"""Reader of PASCAL VOC annotations: an XML file per image, boxes in pixels, classes by name."""

from __future__ import annotations

import hashlib
import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

from paredown.calibration.readers.images import (
    find_image,
    find_images,
    is_dir,
    is_file,
    read_bytes,
    read_image,
    read_text,
    with_any_case,
)
from paredown.calibration.readers.reading import Reading
from paredown.calibration.readers.records import (
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


def read_voc(
    path: Path, classes: Classes, images: Path | None, labels: Path | None, reading: Reading
) -> list[Record]:
    """Reads a VOC data set.

    Objects marked ``difficult`` are ignored: nothing trains on them, as in darknet's lists, and no score
    counts them or what finds them, as in VOC's own. An image without an XML file is unlabelled.

    Args:
        path: a folder with ``JPEGImages`` and ``Annotations``, or a split list ``ImageSets/Main/NAME.txt`` in
            one, or a folder of images with their XML files beside them.
        classes: the network's and the labels' classes.
        images: folder of images, instead of ``JPEGImages`` or ``path``.
        labels: folder of XML files, instead of ``Annotations`` or the images' folder.
        reading: what is noticed; errors of annotations are kept there.

    Raises:
        InputError: a missing file or image, malformed XML, an unknown class or a box outside the image.
    """
    listed = not is_dir(path)
    root = path if not listed else path.absolute().parent.parent.parent
    devkit = listed or is_dir(root / "JPEGImages")
    folder = images if images is not None else root / "JPEGImages" if devkit else root
    notes = labels if labels is not None else root / "Annotations" if devkit else folder
    if listed:
        stems = _read_split(path, folder)
    else:
        files = find_images(folder, reading.skipped)
        stems = [(file.relative_to(folder).with_suffix("").as_posix(), file) for file in files]
    if labels is not None and not is_dir(labels):
        raise InputError("no such folder of annotations", where=labels)
    return [
        _record(name, image, with_any_case(notes / f"{name}.xml"), classes, reading) for name, image in stems
    ]


def parse_voc(
    data: bytes,
    classes: Classes,
    where: str,
    image_size: Callable[[], tuple[int, int]] | None = None,
    reading: Reading | None = None,
) -> tuple[list[Row], list[Row], tuple[int, int] | None]:
    """Parses one annotation.

    VOC counts pixels from 1 and its corners are inclusive (VOC devkit): a box covers ``xmin - 1`` to
    ``xmax``.

    Args:
        data: bytes of the XML file.
        classes: the network's and the labels' classes.
        where: name of the file, for messages.
        image_size: gives width and height of the image, for an annotation that does not state them.
        reading: keeps the errors of objects; without it the first is raised.

    Returns:
        A (class, (cx, cy, w, h)) per box of the network's classes, normalised to the image; the same of
        objects marked ``difficult``; and the width and height that the annotation states, or None.

    Raises:
        InputError: malformed XML, a missing or wrong element, an unknown class, a box outside the image, or
            boxes without a size to measure them by, or a `difficult` that is neither yes nor no.
    """
    root = _parse_xml(data, where)
    size = stated = _stated_size(root, where)
    items = root.findall("object")
    if size is None and items:
        if image_size is None:
            raise InputError("boxes, but no <size> with a width and a height", where=where)
        size = image_size()
    rows: list[Row] = []
    ignored: list[Row] = []
    found = reading or Reading()
    for number, item in enumerate(items, start=1):
        with found.collected():
            assert size is not None  # there is an object
            row, difficult = _object(item, f"{where}: object {number}", size, classes, found)
            if row is not None:
                (ignored if difficult else rows).append(row)
    if reading is None:
        found.check()
    return rows, ignored, stated


def _object(
    item: ElementTree.Element, at: str, size: tuple[int, int], classes: Classes, reading: Reading
) -> tuple[Row | None, bool]:
    """The box of an object, None where it is left out, and whether it is difficult."""
    name = (item.findtext("name") or "").strip()
    if not name:
        raise InputError("no <name>", where=at)
    at = f"{at} ({name!r})"
    index = classes.by_name(name, at)
    box = item.find("bndbox")
    if box is None:
        raise InputError("no <bndbox>", where=at)
    left, top, right, bottom = (_number(box, key, at) for key in ("xmin", "ymin", "xmax", "ymax"))
    width, height = size
    edges = ((left - 1) / width, (top - 1) / height, right / width, bottom / height)
    fitted = fit_box(edges, at, pixel_slack(width, height), reading)
    difficult = is_marked(item.findtext("difficult"), "<difficult>", at)
    if index is None:
        reading.left_out["boxes of other classes left out"] += 1
    return None if index is None or fitted is None else (index, fitted), difficult


def _record(name: str, image: Path, note: Path, classes: Classes, reading: Reading) -> Record:
    if not is_file(note):
        return Record(name, image)
    data = read_bytes(note, "annotation")

    def image_size() -> tuple[int, int]:
        height, width = read_image(image, reading.orientation == "upright").shape[:2]
        return width, height

    try:
        rows, difficult, stated = parse_voc(data, classes, str(note), image_size, reading)
    except InputError as error:  # of the whole file
        reading.faults.append(error)
        return Record(name, image)
    digest, ignored = hashlib.sha256(data).hexdigest(), pack_ignored(difficult, crowd=False)
    return Record(name, image, True, *pack(rows), digest, stated, ignored)


def _read_split(path: Path, folder: Path) -> list[tuple[str, Path]]:
    """The images of a split list: an identifier per line, perhaps with a flag (1, 0, -1) after it."""
    text, _ = read_text(path, "split list")
    stems = []
    for number, line in enumerate(text.split("\n"), start=1):
        tokens = line.split()
        if not tokens:
            continue
        image = find_image(folder / line.strip())
        if image is not None:  # a name with a blank in it
            stems.append((line.strip(), image))
            continue
        image = find_image(folder / tokens[0])
        if image is None:
            raise InputError(
                f"no image {tokens[0][:200]!r} in {folder}",
                where=f"{path}:{number}",
                hint="a split list is ImageSets/Main/NAME.txt, beside JPEGImages; else give data.images",
            )
        stems.append((tokens[0], image))
    if not stems:
        raise InputError("no images in this list", where=path)
    return stems


def _parse_xml(data: bytes, where: str) -> ElementTree.Element:
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise InputError("an XML document type, which VOC annotations do not have", where=where)
    try:
        root = ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        raise InputError(f"malformed XML: {error.msg}", where=f"{where}:{error.position[0]}") from error
    except (ValueError, LookupError) as error:  # an encoding that Python does not know
        raise InputError(f"malformed XML: {error}", where=where) from error
    if root.tag != "annotation":
        raise InputError(f"expected <annotation>, found <{root.tag}>", where=where)
    return root


def _stated_size(root: ElementTree.Element, where: str) -> tuple[int, int] | None:
    element = root.find("size")
    if element is None or element.find("width") is None or element.find("height") is None:
        return None
    width, height = (_number(element, key, where) for key in ("width", "height"))
    if (width, height) == (0, 0):  # some tools write zeros when they do not know
        return None
    if width < 1 or height < 1 or width != int(width) or height != int(height):
        raise InputError(f"a size of {width:g}x{height:g} pixels", where=where)
    return int(width), int(height)


def _number(parent: ElementTree.Element, key: str, where: str) -> float:
    text = (parent.findtext(key) or "").strip()
    try:
        value = float(text)  # VOC 2011 has coordinates with a fraction
    except ValueError:
        value = math.nan
    if "_" in text or not math.isfinite(value):
        raise InputError(f"<{key}> is {text[:40]!r}, not a finite number", where=where)
    return value
