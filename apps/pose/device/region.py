"""The part of an image that a pose network looks at: a person's box, wider, in the shape of the input."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

WIDER = 1.25  # of a box (Xiao et al., arXiv 1804.06208, section 4.1)


@dataclass(frozen=True)
class Region:
    """In whole pixels of the image; it may reach outside.

    Attributes:
        left: of its first column.
        top: of its first row.
        width: in pixels.
        height: in pixels.
    """

    left: int
    top: int
    width: int
    height: int


def region(box: tuple[float, float, float, float], ratio: float) -> Region:
    """The region around a box.

    Args:
        box: left, top, width and height in pixels.
        ratio: width of the network's input over its height.
    """
    left, top, width, height = box
    across = max(width, height * ratio) * WIDER
    down = across / ratio
    return Region(
        round(left + width / 2 - across / 2), round(top + height / 2 - down / 2),
        max(1, round(across)), max(1, round(down)),
    )  # fmt: skip


def cut(image: np.ndarray, where: Region) -> np.ndarray:
    """The region of an image (H, W, 3); black where it reaches outside."""
    part = np.zeros((where.height, where.width, 3), np.uint8)
    height, width = image.shape[:2]
    top, bottom = max(0, where.top), min(height, where.top + where.height)
    left, right = max(0, where.left), min(width, where.left + where.width)
    if top < bottom and left < right:
        rows = slice(top - where.top, bottom - where.top)
        columns = slice(left - where.left, right - where.left)
        part[rows, columns] = image[top:bottom, left:right]
    return part
