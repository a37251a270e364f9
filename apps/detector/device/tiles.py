"""Detection in frames larger than the network's input: overlapping tiles, and one box per object again.

Runs on the board: numpy only. Our design; tiles with an overlap are common practice (SAHI, arXiv 2202.06934),
the merging is ours: two tiles see the same thing where they overlap, so two boxes are of one object if they
agree on that part, however much of the object each tile has.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from targets.errors import UsageError

Array = np.ndarray

AGREE = 0.5  # least agreement of two boxes of one object, where both tiles see
BORDER = 3.0  # pixels; a box that ends this near to a tile's border may go on behind it
NMS_IOU = 0.45


@dataclass(frozen=True)
class Window:
    """A tile's place in the frame, in whole pixels: left, top, right, bottom (the last two exclusive)."""

    left: int
    top: int
    right: int
    bottom: int

    def cut(self, frame: Array) -> Array:
        """The tile's pixels, a view of the frame (H, W, 3)."""
        return frame[self.top : self.bottom, self.left : self.right]


@dataclass(frozen=True)
class Tiling:
    """How frames are cut.

    Attributes:
        size: side of a tile, in pixels of the frame; a frame that is smaller is one tile.
        overlap: least share of a tile that it has in common with the next one, 0 to 0.9.

    Raises:
        UsageError: a value out of range.
    """

    size: int
    overlap: float = 0.25

    def __post_init__(self) -> None:
        """Checks both."""
        if self.size < 32:
            raise UsageError(f"tiles of {self.size} pixels", hint="32 at least")
        if not 0 <= self.overlap <= 0.9:
            raise UsageError(f"tiles that overlap by {self.overlap:g}", hint="0 to 0.9")

    def windows(self, height: int, width: int) -> tuple[Window, ...]:
        """The tiles of a frame of that size, row by row: as few as cover it, spread evenly."""
        rows, columns = (self._starts(length) for length in (height, width))
        return tuple(
            Window(x, y, min(x + self.size, width), min(y + self.size, height))
            for y, x in itertools.product(rows, columns)
        )

    def _starts(self, length: int) -> list[int]:
        if length <= self.size:
            return [0]
        step = self.size - math.ceil(self.overlap * self.size)
        count = math.ceil((length - self.size) / step) + 1
        return [round(i * (length - self.size) / (count - 1)) for i in range(count)]
