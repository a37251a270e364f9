"""Images: files of any name, and pixels in another size.

OpenCV dies of a name that is not UTF-8, and keeps a full disk to itself. Pixels in another size are sums of
whole numbers, the same on every machine and in the browser's page; ``bilinear`` alone is OpenCV's own.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from paredown.targets.errors import InputError

Pixels = NDArray[np.uint8]
_BITS, _CUBIC_BITS = 22, 20  # of what weights are counted in: Pillow's, and ours of the sixteen nearest


def read_picture(path: str | PathLike[str]) -> np.ndarray:
    """The image of a file, (H, W, 3) uint8, channels in the order B, G, R, upright.

    Raises:
        InputError: the file is missing, or damaged, or no image.
    """
    try:
        data = np.frombuffer(Path(path).read_bytes(), np.uint8)
        image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    except OSError as error:
        raise InputError(f"cannot read this image: {error.strerror}", where=path) from error
    except cv2.error:  # larger than OpenCV takes
        image = None
    if image is None:
        raise InputError("cannot read this image (truncated or damaged?)", where=path)
    return np.asarray(image, np.uint8)


def write_picture(path: str | PathLike[str], image: np.ndarray) -> None:
    """Writes an image in the format that the name says; the file is whole, or as it was.

    Args:
        path: as .png or .jpg.
        image: (H, W, 3) uint8 in the order B, G, R, or (H, W).

    Raises:
        InputError: there is no such format, or the file cannot be written.
    """
    target = Path(path)
    try:
        made, data = cv2.imencode(target.suffix, image)
    except cv2.error:  # no such format
        made = False
    if not made:
        raise InputError("cannot write this image", where=path, hint="name it .png or .jpg")
    part = target.with_name(f".{target.name}.part")
    try:
        try:
            part.write_bytes(data.tobytes())
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"cannot write this image: {error.strerror}", where=path) from error


def resample(image: Pixels, width: int, height: int, kind: str) -> Pixels:
    """An image in another size.

    Args:
        image: (H, W, 3) uint8.
        width: of the result, pixels.
        height: of the result, pixels.
        kind: of `Preprocess.resample`.

    Returns:
        (height, width, 3) uint8.

    Raises:
        cv2.error: OpenCV cannot do it.
    """
    if kind == "bilinear":
        return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR))
    if kind == "area":
        return _averaged(image, width, height)
    if kind == "bicubic":
        across, down = (_nearest_four(*each) for each in ((image.shape[1], width), (image.shape[0], height)))
        sums = _weighed(_weighed(image, *across, 1), *down, 0)
        return np.clip(np.rint(sums / 2.0 ** (2 * _CUBIC_BITS)), 0, 255).astype(np.uint8)
    across, down = (_covered(kind, *each) for each in ((image.shape[1], width), (image.shape[0], height)))
    return _rounded(_weighed(_rounded(_weighed(image, *across, 1)), *down, 0))


def _averaged(image: Pixels, width: int, height: int) -> Pixels:
    """Of each pixel the mean of what it covers, exact, halves rounded up.

    The sum of a rectangle is a difference of prefix sums, which are linear between the edges of two pixels.
    """
    rows, columns = image.shape[:2]
    sums = cv2.integral(image, sdepth=cv2.CV_32S if image.size * 255 < 2**31 else cv2.CV_64F)
    (top, below), (left, right) = _edges(rows, height), _edges(columns, width)
    at = sum(
        sums[y[:, None], x].astype(np.int64) * (v[:, None] * u)[..., None]
        for y, v in (top, below)
        for x, u in (left, right)
    )
    cells = np.diff(np.diff(at, axis=0), axis=1)
    area = rows * columns  # of each, in pixels / (width * height)
    return ((2 * cells + area) // (2 * area)).astype(np.uint8)


def _edges(length: int, count: int) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Where ``count`` equal parts of ``length`` pixels meet: the pixels' edges before and behind.

    Each with its weight in parts of ``count``.
    """
    before, part = np.divmod(np.arange(count + 1, dtype=np.int64) * length, count)
    return (before, count - part), (np.minimum(before + 1, length), part)


def _nearest_four(length: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The four nearest pixels of each of ``count`` and their weights in 1/2^20, those of ``cv2.INTER_CUBIC``.

    Returns:
        Both (count, 4) int64.
    """
    before, part = np.divmod((2 * np.arange(count, dtype=np.int64) + 1) * length - count, 2 * count)
    x = part / (2 * count)
    weights = [np.rint(_cubic(np.abs(x - place), -0.75) * 2.0**_CUBIC_BITS) for place in (-1, 0, 1)]
    weights.append(2.0**_CUBIC_BITS - weights[0] - weights[1] - weights[2])
    places = before[:, None] + np.arange(-1, 3)
    return np.clip(places, 0, length - 1), np.stack(weights, 1).astype(np.int64)


def _covered(kind: str, length: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The pixels that each of ``count`` covers, and beyond, and their weights in 1/2^22, as Pillow's.

    Its filter is as wide as a pixel of the result where that is larger than one of the image. Pillow goes
    across an image first; 13 and later do not where the height shrinks much more than the width.

    Returns:
        Both (count, taps) int64; weights of pixels that a filter does not reach are 0.
    """
    scale = length / count
    wide = max(scale, 1.0)
    reach = (2.0 if kind == "pillow-bicubic" else 1.0) * wide
    centre = (np.arange(count) + 0.5) * scale
    first = np.maximum((centre - reach + 0.5).astype(np.int64), 0)
    stop = np.minimum((centre + reach + 0.5).astype(np.int64), length)
    taps = int((stop - first).max())
    weights, total = np.zeros((count, taps)), np.zeros(count)
    for tap in range(taps):  # one after another: the sum of floats depends on it
        x = np.abs((tap + first - centre + 0.5) * (1.0 / wide))
        value = _cubic(x, -0.5) if kind == "pillow-bicubic" else np.maximum(1.0 - x, 0.0)
        weights[:, tap] = np.where(first + tap < stop, value, 0.0)
        total += weights[:, tap]
    scaled = weights / total[:, None] * 2.0**_BITS
    whole = np.trunc(scaled + np.where(scaled < 0, -0.5, 0.5)).astype(np.int64)
    return np.minimum(first[:, None] + np.arange(taps), length - 1), whole


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """The cubic convolution kernel at distances x >= 0, in float64: 0 from 2 on."""
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _weighed(values: np.ndarray, places: np.ndarray, weights: np.ndarray, axis: int) -> np.ndarray:
    """Sums of ``values`` (H, W, 3) at ``places`` of an axis times ``weights``; int64."""
    shape = (-1, 1, 1) if axis == 0 else (1, -1, 1)
    total: np.ndarray = np.int64(0)  # type: ignore[assignment]
    for place, weight in zip(places.T, weights.T, strict=True):
        total = total + values.take(place, axis) * weight.reshape(shape)
    return total


def _rounded(sums: np.ndarray) -> Pixels:
    """Sums in 1/2^22 to levels, halves rounded up."""
    return np.clip((sums + (1 << (_BITS - 1))) >> _BITS, 0, 255).astype(np.uint8)
