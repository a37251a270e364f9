"""Which test images become a bundle's labelled sample, and how they are stored."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from paredown.calibration.datasets import Dataset, First
from paredown.calibration.readers.images import decode_image
from paredown.calibration.readers.records import Sample
from paredown.calibration.sample.records import MEMBER, PREFIX, encode_array, encode_png
from paredown.targets.errors import InputError

COUNT, BYTES = 16, 2 << 20
_LARGE, _SIDE, _QUALITY = 256 << 10, 1024, 95
#: Segments of a JPEG that hold pixels or say how: JFIF's, Adobe's, and all that are no application's.
_KEPT = (0xE0, 0xEE)

#: An app's own labels of a sample, by name.
Extra = Callable[[Sample], Mapping[str, NDArray[Any]]]


def sample_files(data: Dataset, images: int, count: int, extra: Extra, licence: str) -> dict[str, bytes]:
    """Evenly spread test images with their labels, as members of a bundle.

    Pixels are as they are, but for photos of more than 256 KiB, which are stored smaller where their labels
    allow it. What a camera wrote beside the pixels (place, time, owner) and files' names are left out.

    Args:
        data: the test images.
        images: how many of them are scored.
        count: how many are wanted.
        extra: labels that are neither boxes nor classes.
        licence: of images and labels.

    Returns:
        Nothing where no labelled image fits into `BYTES`.
    """
    members: dict[str, bytes] = {}
    listed: list[dict[str, Any]] = []
    spread = np.linspace(0, images - 1, min(count, images)).round().astype(int)
    for index in dict.fromkeys(spread.tolist()):
        sample = data[index]
        arrays = {name: encode_array(array) for name, array in extra(sample).items()}
        if not sample.labelled and not arrays:
            continue
        stem = f"{PREFIX}{len(listed):02d}"
        suffix, content = _stored(sample, _file(data, index), movable=not arrays)
        files = {f"{stem}.{suffix}": content, **{f"{stem}.{n}.npy": each for n, each in arrays.items()}}
        if sum(map(len, [*members.values(), *files.values()])) > BYTES:
            continue
        ignored = sample.ignored
        listed.append(
            {
                "image": f"{stem}.{suffix}",
                "objects": _objects(sample.boxes, sample.classes),
                "ignored": _objects(ignored.boxes, ignored.classes) | {"crowd": ignored.crowd.tolist()},
                "arrays": {name: f"{stem}.{name}.npy" for name in arrays},
            }
        )
        members |= files
    if not listed:
        return {}
    return members | {MEMBER: listing(licence, listed, {})}


def listing(licence: str, images: Any, scores: Mapping[str, Mapping[str, float]]) -> bytes:
    """The content of `sample.json`."""
    document = {"version": 1, "licence": licence, "images": images, "scores": scores}
    return (json.dumps(document, sort_keys=True, indent=1, allow_nan=False) + "\n").encode()


def _objects(boxes: np.ndarray, classes: np.ndarray) -> dict[str, Any]:
    return {"boxes": boxes.astype(float).tolist(), "classes": classes.tolist()}


def _file(data: Dataset, index: int) -> Path | None:
    """The file of an image, where a data set has one for each."""
    while isinstance(data, First):
        data = data.whole
    records = getattr(data, "records", None)
    return None if records is None else records[index].image


def _stored(sample: Sample, file: Path | None, movable: bool) -> tuple[str, bytes]:
    """Suffix and bytes of an image."""
    image = sample.image
    if image.dtype != np.uint8 or image.ndim != 3:
        return "npy", encode_array(image)
    content = _bare_jpeg(file.read_bytes()) if file is not None else None
    if content is not None:
        try:
            same = np.array_equal(decode_image(content, "sample"), image)
        except InputError:
            same = False
        if same and (len(content) <= _LARGE or not movable):
            return "jpg", content
    content = encode_png(image)
    if len(content) <= _LARGE or not movable:
        return "png", content
    scale = min(1.0, _SIDE / max(image.shape[:2]))
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    ok, made = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    assert ok
    return "jpg", made.tobytes()


def _bare_jpeg(data: bytes) -> bytes | None:
    """A JPEG without what a camera or a program wrote beside its pixels; None of another file."""
    if not data.startswith(b"\xff\xd8\xff"):
        return None
    kept, at = [b"\xff\xd8"], 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, end = data[at + 1], at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xDA:  # the pixels; a phone's video may follow the end
            stop = data.rfind(b"\xff\xd9") if data.count(b"\xff\xd9", at) == 1 else -1
            return b"".join([*kept, data[at : stop + 2]]) if stop > 0 else None
        if marker in _KEPT or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            kept.append(data[at:end])
        at = end
    return None
