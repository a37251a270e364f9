"""Data sets of people, or things, with keypoints: COCO's JSON, each annotation cut out of its image."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paredown.apps.pose.device.region import Region, cut, region
from paredown.calibration.census import Census
from paredown.calibration.datasets import Sample
from paredown.calibration.readers.coco import (
    entries_of,
    find_file,
    id_of,
    images_of,
    is_number,
    parse_json,
)
from paredown.calibration.readers.images import read_bytes, read_image, read_text
from paredown.calibration.readers.records import is_marked
from paredown.targets.errors import InputError

Points = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class PoseSample(Sample):
    """One person, cut out.

    Attributes:
        points: (keypoints, 3) x, y in pixels of the part that was cut out, and 1 if it is labelled, else 0.
        length: the longer side of the person's box, pixels.
    """

    points: Points
    length: float


@dataclass(frozen=True, eq=False)
class Person:
    """One annotation.

    Attributes:
        name: of the sample.
        image: path.
        size: width and height that the file states.
        where: the part of the image to look at; None = the whole.
        points: (keypoints, 3) in pixels of the image.
        length: see `PoseSample`.
    """

    name: str
    image: Path
    size: tuple[int, int]
    where: Region | None = None
    points: Points | None = None
    length: float = 0.0


class People:
    """A data set of people; `read_people` makes it."""

    def __init__(self, people: Sequence[Person], names: tuple[str, ...], digest: str) -> None:
        """Takes the annotations, the keypoints' names, and the digest of the JSON file and its options."""
        self.names = names
        self._people, self._digest = tuple(people), digest
        self._fingerprint: str | None = None

    def __len__(self) -> int:
        return len(self._people)

    def __getitem__(self, index: int) -> Sample:
        person = self._people[index]
        image = read_image(person.image)
        height, width = image.shape[:2]
        if (width, height) != person.size:
            raise InputError(
                f"the image is {width}x{height} pixels, its keypoints were made for "
                f"{person.size[0]}x{person.size[1]}", where=person.image,
            )  # fmt: skip
        left = top = 0
        if person.where is not None:
            image, left, top = cut(image, person.where), person.where.left, person.where.top
        boxes = np.zeros((0, 4), np.float32)
        if person.points is None:
            return Sample(person.name, image, boxes, np.zeros(0, np.int64), False)
        points = person.points - np.array([left, top, 0], np.float32)
        return PoseSample(person.name, image, boxes, _seen(points), True, points, person.length)

    @property
    def census(self) -> Census:
        """People, those with keypoints, and how often each keypoint is labelled."""
        seen = [_seen(person.points).tolist() for person in self._people if person.points is not None]
        counts = Counter(index for each in seen for index in each)
        objects = {name: counts[index] for index, name in enumerate(self.names)}
        return Census(len(self), len(seen), objects, kind="keypoints")

    def classes_of(self, index: int) -> NDArray[np.int64] | None:
        """(N,) int64, the keypoints that are labelled; None where none was looked for."""
        points = self._people[index].points
        return None if points is None else _seen(points)

    def fingerprint(self) -> str:
        """Sha256, in hex, over the bytes of the images and the JSON file, and the names; computed once."""
        if self._fingerprint is None:
            total = hashlib.sha256(json.dumps([self.names, self._digest]).encode() + b"\n")
            digests: dict[Path, str] = {}
            for person in self._people:
                if person.image not in digests:
                    data = read_bytes(person.image, "image")
                    digests[person.image] = hashlib.sha256(data).hexdigest()
                total.update(json.dumps([person.name, digests[person.image]]).encode() + b"\n")
            self._fingerprint = total.hexdigest()
        return self._fingerprint


def read_people(
    path: Path, names: tuple[str, ...], images: Path | None, ratio: float, require_labels: bool
) -> People:
    """Reads a COCO keypoints file.

    An annotation is a sample: the box that it has, wider, is cut out of its image; without a box it is the
    whole image. Left out are crowds, and annotations without one labelled keypoint. A file without an
    `annotations` list is unlabelled: its images are looked at as a whole.

    Args:
        path: the JSON file.
        names: of the network's keypoints, in the order of its heatmaps; the file's are matched by name.
        images: folder of the images; without it they are beside the JSON file, or in `images` beside it.
        ratio: width of the network's input over its height.
        require_labels: refuse a file without a labelled keypoint.

    Raises:
        InputError: a missing file or image, malformed JSON, a wrong entry, or not the network's keypoints.
    """
    text, data = read_text(path, "COCO keypoints file")
    document, where = parse_json(text, str(path)), str(path)
    found = images_of(document, where)
    files = {key: (find_file(name, path, images), name, size) for key, (name, size) in found.items()}
    digest = hashlib.sha256(data + repr(ratio).encode()).hexdigest()
    if "annotations" not in document:
        if require_labels:
            raise InputError("no 'annotations' in this file, and they are needed here", where=path)
        return People([Person(name, file, size) for file, name, size in files.values()], names, digest)
    orders = _orders(document, names, where)
    people = []
    for number, entry in enumerate(entries_of(document, "annotations", where)):
        at = f"{where}: annotations[{number}]"
        if is_marked(entry.get("iscrowd"), "iscrowd", at):
            continue
        key, category = id_of(entry, "image_id", at), id_of(entry, "category_id", at)
        if key not in files:
            raise InputError(f"image_id {key!r} is not among the images", where=at)
        if category not in orders:
            raise InputError(f"category_id {category!r} is not among the categories", where=at)
        points = _points(entry, orders[category], at)
        if not points[:, 2].any():
            continue
        file, name, size = files[key]
        box = _box(entry, at)
        part = None if box is None else region(box, ratio)
        length = max(box[2:]) if box is not None else _extent(points, size)
        people.append(Person(f"{name}#{number}", file, size, part, points, length))
    if not people:
        raise InputError("not one labelled keypoint in this file", where=path)
    return People(people, names, digest)


def _seen(points: Points) -> NDArray[np.int64]:
    return np.flatnonzero(points[:, 2]).astype(np.int64)


def _extent(points: Points, size: tuple[int, int]) -> float:
    """The longer side of the box around the labelled keypoints; the image's where they have none."""
    known = points[points[:, 2] > 0, :2]
    return float(np.ptp(known, axis=0).max()) or float(max(size))


def _orders(document: dict[str, Any], names: tuple[str, ...], where: str) -> dict[int | str, list[int]]:
    """Of each category: where in its list the network's keypoints are."""
    orders: dict[int | str, list[int]] = {}
    for number, entry in enumerate(entries_of(document, "categories", where)):
        at = f"{where}: categories[{number}]"
        listed = entry.get("keypoints", list(names))
        if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
            raise InputError("'keypoints' is no list of names", where=at)
        if len(listed) != len(names):
            raise InputError(
                f"{len(listed)} keypoints, and the network has {len(names)}", where=at,
                hint="data.names must list the network's keypoints, and the file's must be the same",
            )  # fmt: skip
        if missing := [name for name in names if name not in listed]:
            raise InputError(
                f"no keypoint {missing[0]!r} among {', '.join(listed)[:200]}", where=at,
                hint="data.names must spell the keypoints as the file does",
            )  # fmt: skip
        orders[id_of(entry, "id", at)] = [listed.index(name) for name in names]
    return orders


def _points(entry: dict[str, Any], order: list[int], where: str) -> Points:
    values = entry.get("keypoints")
    if not isinstance(values, list) or not all(is_number(value) for value in values):
        raise InputError("no list 'keypoints' of finite numbers", where=where,
                         hint="is it a COCO keypoints file?")  # fmt: skip
    if len(values) != 3 * len(order):
        raise InputError(
            f"'keypoints' has {len(values)} numbers, not x, y and visibility of {len(order)} keypoints",
            where=where,
        )
    points = np.array(values, np.float32).reshape(-1, 3)[order]
    wrong = ~np.isin(points[:, 2], (0, 1, 2))
    if wrong.any():
        raise InputError(f"a visibility of {points[wrong, 2][0]:g}, not 0, 1 or 2", where=where)
    points[:, 2] = points[:, 2] > 0
    points.setflags(write=False)
    return points


def _box(entry: dict[str, Any], where: str) -> tuple[float, float, float, float] | None:
    values = entry.get("bbox")
    if values is None:
        return None
    if not isinstance(values, list) or len(values) != 4 or not all(is_number(value) for value in values):
        raise InputError(f"bbox {str(values)[:80]} is not four finite numbers x, y, w, h", where=where)
    left, top, width, height = map(float, values)
    if width <= 0 or height <= 0:
        raise InputError(f"a box without area: width {width:g}, height {height:g}", where=where)
    return left, top, width, height
