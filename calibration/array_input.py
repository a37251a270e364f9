"""The contract of inputs that are no images: arrays, which go into the network as they are.

What `preprocess.Preprocess` is for images. This file is copied to the device: it needs numpy, OpenCV,
that file and ``targets/errors.py``, nothing else.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from paredown.calibration.pictures import read_picture
from paredown.calibration.preprocess import Preprocess
from paredown.targets.errors import InputError

KEY = "arrays"  # of the one field, by which a stored contract is told from an image's
MOST_AXES = 3
_LARGEST_SIDE = 1 << 24


@dataclass(frozen=True)
class ArrayInput:
    """An array of one shape, float32, without its batch of one.

    Attributes:
        shape: (channels, height, width), (channels, length) or (features,).

    Raises:
        InputError: no such shape.
    """

    shape: tuple[int, ...]

    layout = "nchw"
    #: Nobody knows what an array may hold: calibration finds the range.
    value_range = None

    def __post_init__(self) -> None:
        """Checks the shape."""
        sides = all(type(side) is int and 1 <= side <= _LARGEST_SIDE for side in self.shape)
        if not 1 <= len(self.shape) <= MOST_AXES or not sides:
            raise InputError(
                f"an array of shape {self.shape} is no network's input",
                hint="use (channels, height, width), (channels, length) or (features,)",
            )

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape with its batch of one."""
        return (1, *self.shape)

    @property
    def hash(self) -> str:
        """Sha256, in hex, of the canonical JSON of ``to_dict``."""
        return hashlib.sha256(json.dumps(self.to_dict(), separators=(",", ":")).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {KEY: list(self.shape)}

    def __call__(self, array: np.ndarray) -> np.ndarray:
        """The array itself, contiguous.

        Raises:
            InputError: another shape or dtype, or a value that is not finite.
        """
        if not isinstance(array, np.ndarray) or array.dtype != np.float32 or array.shape != self.shape:
            found = f"{array.shape} {array.dtype}" if isinstance(array, np.ndarray) else type(array).__name__
            raise InputError(f"expected an array of shape {self.shape} and dtype float32, found {found}")
        if not np.isfinite(array).all():
            raise InputError("an array with a value that is not finite (NaN or infinite)")
        return np.ascontiguousarray(array)

    def quantized(self, array: np.ndarray, scale: float, zero_point: int) -> np.ndarray:
        """The codes: ``clip(rint(real / scale) + zero_point, -128, 127)``, divided in float64.

        Raises:
            InputError: as ``__call__``, or the scale or zero point is out of range.
        """
        if not (math.isfinite(scale) and scale > 0):
            raise InputError(f"the input's scale {scale} is not a positive number")
        if not -128 <= zero_point <= 127:
            raise InputError(f"the input's zero point {zero_point} is not within -128..127")
        codes = np.rint(self(array).astype(np.float64) / float(scale)) + int(zero_point)
        return np.clip(codes, -128, 127).astype(np.int8)


#: How a sample becomes the network's input, whatever it is.
AnyInput = Preprocess | ArrayInput


def input_from_dict(values: Mapping[str, Any]) -> AnyInput:
    """The contract that a bundle stores: an image's or an array's.

    Raises:
        InputError: it is neither.
    """
    if not isinstance(values, Mapping) or KEY not in values:
        return Preprocess.from_dict(values)
    shape = values[KEY]
    if len(values) != 1 or not isinstance(shape, list):
        raise InputError(f"expected nothing but a shape in {KEY!r}", where="preprocess")
    return ArrayInput(tuple(shape))


def read_sample(path: str, source: AnyInput) -> np.ndarray:
    """What a device's command is given: an image file, or a .npy where the network takes arrays.

    Raises:
        InputError: the file is missing, damaged or of another kind.
    """
    if isinstance(source, Preprocess):
        return read_picture(path)
    try:
        array = np.load(path, allow_pickle=False)
    except Exception as error:  # numpy's reader raises many kinds for a damaged file
        raise InputError(f"cannot read this array: {str(error)[:100]}", where=path) from error
    if not isinstance(array, np.ndarray):
        raise InputError("an archive of arrays, not one array", where=path, hint="give a .npy file")
    return array
