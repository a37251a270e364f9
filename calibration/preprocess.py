"""The preprocessing contract: how an image becomes the network's input, as data.

One frozen object serves training, calibration, scoring and the device, and a bundle carries it. This file is
copied to the device: it needs numpy, OpenCV, ``pictures.py`` and ``targets/errors.py``, nothing else.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

import cv2
import numpy as np

from paredown.calibration.pictures import resample
from paredown.targets.errors import InputError, UsageError

Resize = Literal["stretch", "letterbox", "crop"]
Resample = Literal["bilinear", "area", "bicubic", "pillow-bilinear", "pillow-bicubic"]
Colour = Literal["rgb", "bgr", "grey"]
Layout = Literal["nchw", "nhwc"]
Dtype = Literal["float32", "int8"]
RESAMPLES: tuple[Resample, ...] = get_args(Resample)

_CHOICES = {
    "resize": ("stretch", "letterbox", "crop"),
    "resample": RESAMPLES,
    "colour": ("rgb", "bgr", "grey"),
    "layout": ("nchw", "nhwc"),
    "dtype": ("float32", "int8"),
}
_LARGEST_SIDE = 16384  # beyond it: a wrong unit or a typing error, not a network
_LONGEST = 4  # sides of a ratio beyond which an image is cut before it is resized to a shorter side
_LARGEST_NUMBER = 1e6  # of a mean or std; keeps every value of the table finite in float32
_SMALLEST_STD = 1e-6
#: Fields that there once were not, and what they are where they are left out.
YOUNGER = {"resample": "bilinear", "shorter_side": None}


@dataclass(frozen=True)
class Geometry:
    """Where an image lies in the network's input: ``input = image * scale + offset`` on each axis.

    Both sides are normalised to 0..1 of their own width and height. A letterbox has scale < 1 and offset > 0
    on the padded axis; a crop has scale > 1 and offset < 0 on the cropped one. Our design.
    """

    scale_x: float
    scale_y: float
    offset_x: float
    offset_y: float

    def to_image(self, boxes: np.ndarray, clip: bool = True) -> np.ndarray:
        """Maps boxes on the network's input back to the image.

        Args:
            boxes: (N, 4) xyxy, normalised to the network's input.
            clip: to the image. Darknet scores unclipped boxes; clipping them raises mAP by up to a point.

        Returns:
            (N, 4) xyxy, normalised to the image, in the floating type of ``boxes``.
        """
        boxes, scale, offset = self._operands(boxes)
        boxes = (boxes - offset) / scale
        return np.clip(boxes, 0.0, 1.0) if clip else boxes

    def to_input(self, boxes: np.ndarray) -> np.ndarray:
        """Maps boxes on the image to the network's input; the inverse of ``to_image``.

        Args:
            boxes: (N, 4) xyxy, normalised to the image.

        Returns:
            (N, 4) xyxy, normalised to the network's input. Not clipped: under ``crop`` a box may lie outside,
            and it is the caller who knows what to do with it.
        """
        boxes, scale, offset = self._operands(boxes)
        return boxes * scale + offset

    def _operands(self, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        boxes = np.asarray(boxes)
        if not np.issubdtype(boxes.dtype, np.floating):
            boxes = boxes.astype(np.float32)
        scale = np.array([self.scale_x, self.scale_y] * 2, boxes.dtype)
        offset = np.array([self.offset_x, self.offset_y] * 2, boxes.dtype)
        return boxes, scale, offset


@dataclass(frozen=True)
class _Placement:
    """In whole pixels: the part of the image that is used, and where in the input it is resized to."""

    source: tuple[int, int, int, int]  # left, top, width, height in the image
    target: tuple[int, int, int, int]  # left, top, width, height in the input


@dataclass(frozen=True)
class Preprocess:
    """How a BGR image becomes the network's input: ``(resized / 255 - mean) / std``.

    Bilinear pixels (``cv2.INTER_LINEAR``, without antialiasing) are cheap on the device; builds of OpenCV for
    different processors may differ in them by a level of 255. Other pixels are sums of whole numbers, and
    everything after resizing is a table: the same everywhere. A single ``mean`` or ``std`` stands for every
    channel. Our design.

    Attributes:
        width: of the network's input, pixels.
        height: of the network's input, pixels.
        resize: ``stretch`` ignores the aspect ratio, ``letterbox`` keeps it and pads both sides alike with
            ``fill`` (whole pixels, rounded down, as darknet does), ``crop`` keeps it and resizes the largest
            centred part of the image that has the input's aspect ratio.
        resample: ``bilinear`` looks at the four nearest pixels, ``bicubic`` at the sixteen nearest
            (``cv2.INTER_CUBIC``, within a level); ``area`` is the mean of all the image that a pixel of the
            input covers (``cv2.INTER_AREA``, halves rounded up); ``pillow-bilinear`` and ``pillow-bicubic``
            look at all of it and a little beyond: the very bytes of Pillow's filters of these names, across
            first, which most trainers of classifiers use.
        colour: order of the channels; ``grey`` is one channel, ITU-R BT.601 luma as OpenCV computes it.
        mean: one per channel, of the value / 255.
        std: one per channel, of the value / 255; 1e-6 at least.
        layout: of one image, ``nchw`` (C, H, W) or ``nhwc`` (H, W, C).
        dtype: what the network takes: ``float32`` from ``__call__``, ``int8`` from ``quantized``.
        fill: grey level 0..255 of the letterbox's border.
        shorter_side: of ``crop``, pixels: the image is resized until its shorter side is that long, and the
            input is cut from its centre, as "256, then the centre of 224"; None = the largest part. An image
            more than four times as long as wide is cut to that first.

    Raises:
        UsageError: a field is out of range, or the number of means or stds is not the number of channels.
    """

    width: int
    height: int
    resize: Resize = "stretch"
    colour: Colour = "rgb"
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    layout: Layout = "nchw"
    dtype: Dtype = "float32"
    fill: int = 128
    resample: Resample = "bilinear"
    shorter_side: int | None = None

    def __post_init__(self) -> None:
        """Checks every field and brings it to its one spelling, so that equal contracts have equal hashes."""
        for name in ("width", "height"):
            _check_integer(name, getattr(self, name), 1, _LARGEST_SIDE)
        _check_integer("fill", self.fill, 0, 255)
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise UsageError(f"{value!r} is not one of {', '.join(choices)}", where=f"preprocess.{name}")
        if self.shorter_side is not None:
            least = max(self.width, self.height)
            _check_integer("shorter_side", self.shorter_side, least, _LARGEST_SIDE)
            if self.resize != "crop":
                what = f'is for resize = "crop", and resize is {self.resize!r}'
                raise UsageError(what, where="preprocess.shorter_side")
        for name in ("mean", "std"):
            object.__setattr__(self, name, self._per_channel(name, getattr(self, name)))
        if min(self.std) < _SMALLEST_STD:
            raise UsageError(f"{min(self.std):g} is less than {_SMALLEST_STD:g}", where="preprocess.std")

    @property
    def channels(self) -> int:
        """Number of channels of the network's input: 3, or 1 for grey."""
        return 1 if self.colour == "grey" else 3

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of the network's input with its batch of one, (1, channels, height, width)."""
        return (1, self.channels, self.height, self.width)

    @property
    def hash(self) -> str:
        """Sha256, in hex, of the canonical JSON of ``to_dict``."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def value_range(self) -> tuple[float, float]:
        """The smallest and the largest real value that any image can put into the network's input."""
        values = self._values()
        return float(values.min()), float(values.max())

    def to_dict(self) -> dict[str, Any]:
        """Every field as plain JSON values; younger fields only where they are not what all once were."""
        values = asdict(self)
        for name, once in YOUNGER.items():
            if values[name] == once:
                del values[name]
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocess:
        """The inverse of ``to_dict``; fields that are left out have their defaults.

        Raises:
            InputError: ``values`` is not a mapping, has an unknown field, lacks the size, or has a bad value.
        """
        if not isinstance(values, Mapping):
            raise InputError(f"expected a table of fields, found {type(values).__name__}", where="preprocess")
        known = [field.name for field in fields(cls)]
        unknown = [str(key) for key in values if key not in known]
        if unknown:
            what = f"unknown field {', '.join(map(repr, unknown))}"
            raise InputError(what, where="preprocess", hint=f"known: {', '.join(known)}")
        missing = [name for name in ("width", "height") if name not in values]
        if missing:
            raise InputError(f"no {' and no '.join(missing)}", where="preprocess")
        try:
            return cls(**values)
        except UsageError as error:
            raise InputError(str(error)) from error

    def pixels(self, image: np.ndarray) -> np.ndarray:
        """Resizes an image and orders its colours.

        Args:
            image: (H, W, 3) uint8, BGR, as OpenCV decodes it.

        Returns:
            (height, width, channels) uint8, contiguous.

        Raises:
            InputError: ``image`` is of another shape or dtype, or empty.
        """
        _check_image(image)
        place = self._placement(*image.shape[:2])
        left, top, width, height = place.source
        part = image[top : top + height, left : left + width]
        left, top, width, height = place.target
        resized = self.resized(part, width, height)
        if self.colour == "rgb":
            resized = cv2.cvtColor(resized, cv2.COLOR_BGR2RGB)
        elif self.colour == "grey":
            resized = cv2.cvtColor(resized, cv2.COLOR_BGR2GRAY)
        resized = np.asarray(resized).reshape(height, width, self.channels)
        if (width, height) == (self.width, self.height):
            return resized
        if left < 0 or top < 0:  # larger than the input
            return np.ascontiguousarray(resized[-top : self.height - top, -left : self.width - left])
        canvas = np.full((self.height, self.width, self.channels), self.fill, np.uint8)
        canvas[top : top + height, left : left + width] = resized
        return canvas

    def resized(self, image: np.ndarray, width: int, height: int) -> np.ndarray:
        """An image (H, W, 3) uint8 in another size, (height, width, 3), as ``resample`` says.

        Raises:
            InputError: OpenCV cannot do it, as with sides beyond its own limits.
        """
        try:
            return resample(image, width, height, self.resample)
        except cv2.error as error:
            size = f"{image.shape[1]}x{image.shape[0]}"
            raise InputError(f"OpenCV cannot resize an image of {size} pixels: {error}") from error

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Preprocesses one image.

        Args:
            image: (H, W, 3) uint8, BGR.

        Returns:
            float32 without a batch dimension, (C, height, width) or (height, width, C) as ``layout`` says.

        Raises:
            InputError: ``image`` is of another shape or dtype, or empty.
        """
        return self._look_up(image, self._values())

    def quantized(self, image: np.ndarray, scale: float, zero_point: int) -> np.ndarray:
        """Preprocesses one image straight to int8, through a table of 256 entries per channel.

        Equal, element by element, to ``clip(rint(real / scale) + zero_point, -128, 127)`` of the float32 that
        ``__call__`` gives, divided in float64 and rounded half to even.

        Args:
            image: (H, W, 3) uint8, BGR.
            scale: of the input tensor; positive and finite.
            zero_point: of the input tensor; -128..127.

        Returns:
            int8 in the shape of ``__call__``.

        Raises:
            InputError: ``image`` is of another shape or dtype, or the scale or zero point is out of range.
        """
        if not (math.isfinite(scale) and scale > 0):
            raise InputError(f"the input's scale {scale} is not a positive number")
        if not -128 <= zero_point <= 127:
            raise InputError(f"the input's zero point {zero_point} is not within -128..127")
        codes = np.rint(self._values().astype(np.float64) / float(scale)) + int(zero_point)
        return self._look_up(image, np.clip(codes, -128, 127).astype(np.int8))

    def geometry(self, image_height: int, image_width: int) -> Geometry:
        """Where an image of this size lies in the network's input, to map boxes back and forth.

        Raises:
            InputError: a side is not positive.
        """
        if image_height < 1 or image_width < 1:
            raise InputError(f"an image of {image_width}x{image_height} pixels has no area")
        place = self._placement(image_height, image_width)
        left, top, width, height = place.source
        to_left, to_top, to_width, to_height = place.target
        # image pixel x -> input pixel (x - left) * to_width / width + to_left, then both sides normalised
        per_x, per_y = to_width / width, to_height / height
        return Geometry(
            scale_x=per_x * image_width / self.width,
            scale_y=per_y * image_height / self.height,
            offset_x=(to_left - left * per_x) / self.width,
            offset_y=(to_top - top * per_y) / self.height,
        )

    def _placement(self, image_height: int, image_width: int) -> _Placement:
        width, height = self.width, self.height
        whole = (0, 0, image_width, image_height)
        # Integers only: the same pixels on every machine.
        wide = image_width * height >= width * image_height  # wider than the input's aspect ratio
        if self.resize == "letterbox":
            if wide:
                height = max(1, image_height * width // image_width)
            else:
                width = max(1, image_width * height // image_height)
            return _Placement(whole, ((self.width - width) // 2, (self.height - height) // 2, width, height))
        if self.shorter_side is not None:
            return self._about_the_centre(image_height, image_width, self.shorter_side)
        if self.resize == "crop":
            part_width, part_height = image_width, image_height
            if wide:
                part_width = max(1, image_height * width // height)
            else:
                part_height = max(1, image_width * height // width)
            left, top = (image_width - part_width) // 2, (image_height - part_height) // 2
            return _Placement((left, top, part_width, part_height), (0, 0, width, height))
        return _Placement(whole, (0, 0, width, height))

    def _about_the_centre(self, image_height: int, image_width: int, shorter: int) -> _Placement:
        """All of the image, resized until its shorter side is that long: its centre is the input."""
        part_width = min(image_width, _LONGEST * image_height)
        part_height = min(image_height, _LONGEST * image_width)
        left, top = (image_width - part_width) // 2, (image_height - part_height) // 2
        short = min(part_width, part_height)
        width, height = part_width * shorter // short, part_height * shorter // short
        place = (-((width - self.width) // 2), -((height - self.height) // 2))
        return _Placement((left, top, part_width, part_height), (*place, width, height))

    def _values(self) -> np.ndarray:
        """(C, 256) float32: the input's real value for each level of each channel, rounded once."""
        level = np.arange(256, dtype=np.float64) / 255.0
        mean, std = np.array(self.mean)[:, None], np.array(self.std)[:, None]
        return ((level - mean) / std).astype(np.float32)

    def _look_up(self, image: np.ndarray, table: np.ndarray) -> np.ndarray:
        pixels = self.pixels(image)
        # (C, 256) -> the (1, 256, C) that cv2.LUT reads; it drops the last dimension of one channel.
        out = cv2.LUT(pixels, np.ascontiguousarray(table.T[None]))
        out = np.asarray(out).reshape(pixels.shape)
        return np.ascontiguousarray(out.transpose(2, 0, 1)) if self.layout == "nchw" else out

    def _per_channel(self, name: str, values: Any) -> tuple[float, ...]:
        where = f"preprocess.{name}"
        values = (values,) if isinstance(values, int | float) else values
        if not isinstance(values, list | tuple) or not all(map(_is_number, values)):
            raise UsageError(f"{values!r} is not a list of numbers within +-{_LARGEST_NUMBER:g}", where=where)
        numbers = tuple(float(value) for value in values)
        # One number stands for all channels, and equal numbers for one: the defaults serve grey, too.
        if numbers and len(set(numbers)) == 1 and len(numbers) in (1, 3):
            return numbers[:1] * self.channels
        if len(numbers) != self.channels:
            what = f"{len(numbers)} values for {self.channels} channel(s) of colour {self.colour!r}"
            raise UsageError(what, where=where)
        return numbers


def _check_integer(name: str, value: Any, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise UsageError(f"{value!r} is not a whole number within {low}..{high}", where=f"preprocess.{name}")


def _is_number(value: Any) -> bool:
    # A NaN fails the comparison, and so does a whole number that no float can hold.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST_NUMBER


def _check_image(image: Any) -> None:
    if not isinstance(image, np.ndarray):
        raise InputError(f"expected an image as an array, found {type(image).__name__}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        found = f"{image.shape} {image.dtype}"
        raise InputError(f"expected an image of shape (height, width, 3) and dtype uint8, found {found}")
