"""Sheets of small pictures with words under them, for previews of all tasks."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

SIDE, EDGE, TEXT, GAP = 144, 4, 38, 6  # pixels of a picture, its frame, the words under it, the space around
LEGEND = 24  # names of it at most
GREY = (190, 190, 190)  # B, G, R
BACKGROUND = 32
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def sheet(tiles: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Tiles of one size in rows, (H, W, 3) uint8."""
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    high, wide = tiles[0].shape[0] + GAP, tiles[0].shape[1] + GAP
    whole = np.full((rows * high + GAP, columns * wide + GAP, 3), BACKGROUND, np.uint8)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        top, left = GAP + row * high, GAP + column * wide
        whole[top : top + high - GAP, left : left + wide - GAP] = tile
    return whole


def fitted(image: np.ndarray, side: int) -> np.ndarray:
    """A picture (H, W, 3) in the middle of a square."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    square = np.full((side, side, 3), BACKGROUND, np.uint8)
    top, left = (side - size[1]) // 2, (side - size[0]) // 2
    method = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    square[top : top + size[1], left : left + size[0]] = cv2.resize(image, size, interpolation=method)
    return square


def captioned(square: np.ndarray, words: str) -> np.ndarray:
    """A square picture of `SIDE` pixels with a line of words under it."""
    tile = np.full((SIDE + 2 * EDGE + TEXT // 2, SIDE + 2 * EDGE, 3), BACKGROUND, np.uint8)
    tile[EDGE : EDGE + SIDE, EDGE : EDGE + SIDE] = square
    write(tile, words, SIDE + 2 * EDGE + 14, GREY)
    return tile


def write(tile: np.ndarray, text: str, baseline: int, colour: tuple[int, int, int], left: int = 2) -> None:
    """A line of small words, cut to the picture's width."""
    text = text.encode("ascii", "replace").decode()  # OpenCV's fonts have no more
    while len(text) > 1 and cv2.getTextSize(text, _FONT, 0.42, 1)[0][0] > tile.shape[1] - left - 2:
        text = text[:-1]
    cv2.putText(tile, text, (left, baseline), _FONT, 0.42, colour, 1, cv2.LINE_AA)


def legend(names: Sequence[str], palette: np.ndarray, width: int) -> np.ndarray:
    """The first names, each beside its colour, in rows under a sheet of this width."""
    columns, high = max(1, width // 150), 20
    shown = names[:LEGEND]
    rows = np.full((-(-len(shown) // columns) * high + 6, width, 3), BACKGROUND, np.uint8)
    for index, name in enumerate(shown):
        row, column = divmod(index, columns)
        top, left = row * high + 3, column * 150 + 8
        rows[top : top + 14, left : left + 14] = palette[index]
        write(rows[:, : left + 145], name, top + 12, GREY, left + 20)
    return rows


def picture(sample: np.ndarray) -> np.ndarray:
    """A sample as a picture, (H, W, 3) uint8 BGR: an image as it is, an array from blue to yellow."""
    if sample.dtype == np.uint8:
        return sample
    flat = sample.reshape(-1, sample.shape[-1]) if sample.ndim > 1 else sample[None]
    low, high = float(flat.min()), float(flat.max())
    levels = ((flat - low) * (255 / (high - low or 1.0))).astype(np.uint8)
    if levels.shape[0] < levels.shape[1] / 4:  # a long signal of few channels is a stripe otherwise
        levels = levels.repeat(-(-levels.shape[1] // (4 * levels.shape[0])), 0)
    return np.asarray(cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS))


def colours(count: int) -> np.ndarray:
    """(count, 3) uint8, BGR: colours that are far apart, the first one dark."""
    found = np.full((count, 3), 60, np.uint8)
    for index in range(1, count):
        hue = int(index * 0.618034 * 180) % 180
        bright = 255 if index % 2 else 190
        pixel = np.array([[[hue, 200, bright]]], np.uint8)
        found[index] = cv2.cvtColor(pixel, cv2.COLOR_HSV2BGR)[0, 0]
    return found
