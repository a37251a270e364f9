"""The labelled sample of a bundle: a few test images with their labels, by which any machine scores it.

`sample.json` lists them; images are members as JPEG, PNG or .npy, other labels (masks, keypoints) as .npy.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from paredown.calibration.readers.images import decode_image, jpeg_header
from paredown.calibration.readers.records import Ignored, Sample
from paredown.targets.cards.card import Schema
from paredown.targets.cards.tomlfile import first_problem
from paredown.targets.errors import InputError

MEMBER, PREFIX, VERSION = "sample.json", "sample-", 1
MOST = 1000  # images
_PIXELS = 1 << 26  # of an image, at most
_PNG = b"\x89PNG\r\n\x1a\n"
_NPY = b"\x93NUMPY"

Box = Annotated[tuple[float, float, float, float], Field(strict=False)]
Boxes = Annotated[tuple[Box, ...], Field(strict=False)]
Whole = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False)]


class Objects(Schema):
    """Objects of an image: boxes cx, cy, w, h, normalised to it, and classes; of a classifier no boxes."""

    boxes: Boxes = ()
    classes: Whole = ()
    crowd: Annotated[tuple[bool, ...], Field(strict=False)] = ()


class Entry(Schema):
    """One image, and what is in it."""

    image: str
    objects: Objects
    ignored: Objects = Objects()
    arrays: Mapping[str, str] = {}
    """Labels of other kinds by their name: members that are .npy."""


class SampleList(Schema):
    """The content of `sample.json`."""

    version: Annotated[int, Field(ge=VERSION, le=VERSION)] = VERSION
    licence: str
    images: Annotated[tuple[Entry, ...], Field(strict=False, min_length=1, max_length=MOST)]
    scores: Mapping[str, Mapping[str, float]] = {}
    """Runtime -> metric -> what its program scores on these images."""


class SampleSet:
    """A bundle's sample as a data set.

    Args:
        listed: what is in it.
        members: of the bundle.
        names: of the classes.
        where: names the bundle in errors.
        finish: turns a sample and its other labels, by name, into what the app scores by.
    """

    def __init__(
        self, listed: SampleList, members: Mapping[str, bytes], names: tuple[str, ...], where: str,
        finish: Callable[[Sample, Mapping[str, NDArray[Any]]], Sample],
    ) -> None:  # fmt: skip
        self.names, self.listed = names, listed
        self._members, self._where, self._finish = members, where, finish

    def __len__(self) -> int:
        return len(self.listed.images)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        entry = self.listed.images[index]
        image = self._image(entry.image)
        ignored = Ignored(*self._objects(entry.ignored), np.array(entry.ignored.crowd, bool))
        if len(ignored.crowd) != len(ignored.classes):
            raise self._broken("its ignored objects do not fit together")
        plain = Sample(entry.image, image, *self._objects(entry.objects), True, ignored=ignored)
        return self._finish(plain, {name: self._array(file) for name, file in entry.arrays.items()})

    def classes_of(self, index: int) -> np.ndarray | None:
        """(N,) int64, without decoding the image."""
        return self._objects(self.listed.images[index].objects)[1]

    def fingerprint(self) -> str:
        """Over the list and the bytes of all files."""
        total = hashlib.sha256(self._members[MEMBER])
        for name in sorted(self._members):
            if name.startswith(PREFIX):
                total.update(name.encode() + b"\0" + hashlib.sha256(self._members[name]).digest())
        return total.hexdigest()

    def _objects(self, objects: Objects) -> tuple[np.ndarray, np.ndarray]:
        boxes = np.array(objects.boxes, np.float32).reshape(-1, 4)
        classes = np.array(objects.classes, np.int64)
        if len(boxes) not in (0, len(classes)) or (classes >= max(1, len(self.names))).any():
            raise self._broken("its boxes and classes do not fit together")
        return boxes, classes

    def _image(self, name: str) -> np.ndarray:
        data = self._member(name)
        if data.startswith(_NPY):
            return self._array(name)
        size = jpeg_header(data)[1]
        if data.startswith(_PNG):
            size = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
        if size is None or not 0 < size[0] * size[1] <= _PIXELS:
            raise self._broken(f"{name} is neither a JPEG nor a PNG of a usual size")
        return decode_image(data, f"{self._where}:{name}")

    def _array(self, name: str) -> NDArray[Any]:
        data = self._member(name)
        try:
            found: NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
            if found.dtype.kind not in "uif" or found.nbytes > len(data):
                raise ValueError("another kind of array")
        except (ValueError, OSError, EOFError, SyntaxError, MemoryError, TypeError) as error:
            raise self._broken(f"{name} is no array of numbers") from error
        return found

    def _member(self, name: str) -> bytes:
        if not name.startswith(PREFIX) or name not in self._members:
            raise self._broken(f"it has no file {name!r}")
        return self._members[name]

    def _broken(self, what: str) -> InputError:
        return InputError(f"the labelled sample is broken: {what}", where=self._where)


def open_sample(
    members: Mapping[str, bytes],
    names: tuple[str, ...],
    where: str,
    finish: Callable[[Sample, Mapping[str, NDArray[Any]]], Sample],
) -> SampleSet:
    """The sample of a bundle; see `SampleSet`.

    Raises:
        InputError: the list is broken.
    """
    try:
        listed = SampleList.model_validate(json.loads(members[MEMBER]))
    except (ValidationError, ValueError, RecursionError) as error:
        said = first_problem(error)[1] if isinstance(error, ValidationError) else "it is not JSON"
        raise InputError(f"the labelled sample is broken: {said}", where=f"{where}:{MEMBER}") from error
    return SampleSet(listed, members, names, where, finish)


def encode_array(array: NDArray[Any]) -> bytes:
    """An array as .npy has it."""
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(array) if array.ndim else array, allow_pickle=False)
    return file.getvalue()


def encode_png(image: np.ndarray) -> bytes:
    """An image (H, W, 3) uint8 without any loss."""
    ok, data = cv2.imencode(".png", image)
    assert ok
    return data.tobytes()
