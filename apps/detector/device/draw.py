"""Detections drawn into a picture. Runs on the board: numpy and OpenCV only."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import cv2
import numpy as np

from apps.detector.device.decode import Detections

_FONT = cv2.FONT_HERSHEY_SIMPLEX


def class_colour(category: int) -> tuple[int, int, int]:
    """Returns a class's colour as B, G, R: hues a golden angle apart, so that neighbours differ."""
    red, green, blue = colorsys.hsv_to_rgb(category * 0.381966 % 1.0, 0.9, 1.0)
    return round(255 * blue), round(255 * green), round(255 * red)


def draw(image: np.ndarray, detections: Detections, names: Sequence[str]) -> np.ndarray:
    """Draws boxes, class names and scores.

    Args:
        image: uint8 (H, W, 3), B, G, R; left as it is.
        detections: boxes normalised to the image; what reaches outside is cut off.
        names: class names; a class beyond them is shown by its number.

    Returns:
        A new image of the same shape.
    """
    picture = np.ascontiguousarray(image).copy()
    height, width = picture.shape[:2]
    scale = max(0.4, min(height, width) / 900)
    line = max(1, round(2 * scale))
    order = np.argsort(detections.scores, kind="stable")  # the best last, on top
    for box, score, category in zip(
        detections.boxes[order], detections.scores[order], detections.classes[order], strict=True
    ):
        if not np.isfinite(box).all():
            continue
        sides = [width - 1, height - 1, width - 1, height - 1]
        x1, y1, x2, y2 = np.rint(np.clip(box, 0, 1) * sides).astype(int).tolist()
        colour = class_colour(int(category))
        name = names[category] if category < len(names) else str(int(category))
        text = f"{name} {score:.2f}"
        (across, up), below = cv2.getTextSize(text, _FONT, scale, line)
        foot = max(y1, up + below)  # inside the picture even for a box at its upper edge
        cv2.rectangle(picture, (x1, y1), (x2, y2), colour, line)
        cv2.rectangle(picture, (x1, foot - up - below), (x1 + across, foot), colour, cv2.FILLED)
        cv2.putText(picture, text, (x1, foot - below), _FONT, scale, (0, 0, 0), line, cv2.LINE_AA)
    return picture
