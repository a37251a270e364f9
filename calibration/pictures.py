"""Image files, by any name: OpenCV dies of one that is not UTF-8, and keeps a full disk to itself."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import cv2
import numpy as np

from paredown.targets.errors import InputError


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
