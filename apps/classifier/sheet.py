"""A contact sheet: test images with what the network takes them for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from paredown.apps.own.sheet import BACKGROUND, EDGE, GREY, SIDE, TEXT, fitted, sheet, write

COLUMNS = 6
RIGHT, WRONG, UNKNOWN = (90, 200, 90), (70, 70, 235), GREY  # B, G, R


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
    return sheet([_tile(entry) for entry in entries], COLUMNS)


def _tile(entry: Entry) -> np.ndarray:
    colour = UNKNOWN if entry.true is None else RIGHT if entry.said == entry.true else WRONG
    tile = np.full((SIDE + 2 * EDGE + TEXT, SIDE + 2 * EDGE, 3), BACKGROUND, np.uint8)
    tile[: SIDE + 2 * EDGE] = colour
    tile[EDGE : EDGE + SIDE, EDGE : EDGE + SIDE] = fitted(entry.image, SIDE)
    write(tile, entry.said, SIDE + 2 * EDGE + 14, colour)
    if entry.true not in (None, entry.said):
        write(tile, f"is {entry.true}", SIDE + 2 * EDGE + 31, UNKNOWN)
    return tile
