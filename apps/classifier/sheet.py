"""A contact sheet: test images with what the network takes them for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

SIDE, EDGE, TEXT, GAP = 144, 4, 38, 6  # pixels of a picture, its frame, the words under it, the space around
COLUMNS = 6
RIGHT, WRONG, UNKNOWN = (90, 200, 90), (70, 70, 235), (190, 190, 190)  # B, G, R
_BACKGROUND = 32
_FONT = cv2.FONT_HERSHEY_SIMPLEX


@dataclass(frozen=True, eq=False)
class Entry:
    """One picture.

    Attributes:
        image: (H, W, 3) uint8, BGR.
        said: name of the class that the network says.
        true: name of the right one; None where nobody knows.
    """

    image: np.ndarray
    said: str
    true: str | None


def contact_sheet(entries: Sequence[Entry]) -> np.ndarray:
    """Draws the pictures in rows: a green frame where the network is right, red and the truth where not.

    Returns:
        (H, W, 3) uint8, BGR.
    """
    columns = min(COLUMNS, len(entries))
    rows = -(-len(entries) // columns)
    wide, high = SIDE + 2 * EDGE + GAP, SIDE + 2 * EDGE + TEXT + GAP
    sheet = np.full((rows * high + GAP, columns * wide + GAP, 3), _BACKGROUND, np.uint8)
    for number, entry in enumerate(entries):
        row, column = divmod(number, columns)
        top, left = GAP + row * high, GAP + column * wide
        sheet[top : top + high - GAP, left : left + wide - GAP] = _tile(entry)
    return sheet


def _tile(entry: Entry) -> np.ndarray:
    colour = UNKNOWN if entry.true is None else RIGHT if entry.said == entry.true else WRONG
    tile = np.full((SIDE + 2 * EDGE + TEXT, SIDE + 2 * EDGE, 3), _BACKGROUND, np.uint8)
    tile[: SIDE + 2 * EDGE] = colour
    height, width = entry.image.shape[:2]
    scale = SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    picture = np.full((SIDE, SIDE, 3), _BACKGROUND, np.uint8)
    top, left = (SIDE - size[1]) // 2, (SIDE - size[0]) // 2
    method = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    picture[top : top + size[1], left : left + size[0]] = cv2.resize(entry.image, size, interpolation=method)
    tile[EDGE : EDGE + SIDE, EDGE : EDGE + SIDE] = picture
    _write(tile, entry.said, SIDE + 2 * EDGE + 14, colour)
    if entry.true not in (None, entry.said):
        _write(tile, f"is {entry.true}", SIDE + 2 * EDGE + 31, UNKNOWN)
    return tile


def _write(tile: np.ndarray, text: str, baseline: int, colour: tuple[int, int, int]) -> None:
    text = text.encode("ascii", "replace").decode()  # OpenCV's fonts have no more
    while len(text) > 1 and cv2.getTextSize(text, _FONT, 0.42, 1)[0][0] > tile.shape[1] - 4:
        text = text[:-1]
    cv2.putText(tile, text, (2, baseline), _FONT, 0.42, colour, 1, cv2.LINE_AA)
