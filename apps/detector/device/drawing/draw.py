"""Detections drawn into a picture. Runs on the board: numpy and OpenCV only."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import cv2
import numpy as np

from paredown.apps.detector.device.boxes.decode import Detections

FONT = cv2.FONT_HERSHEY_SIMPLEX


def class_colour(category: int) -> tuple[int, int, int]:
    """Returns a class's colour as B, G, R: hues a golden angle apart, so that neighbours differ."""
    red, green, blue = colorsys.hsv_to_rgb(category * 0.381966 % 1.0, 0.9, 1.0)
    return round(255 * blue), round(255 * green), round(255 * red)


def line_and_scale(picture: np.ndarray) -> tuple[float, int]:
    """Returns the scale of text and the thickness of lines that suit a picture's size."""
    scale = max(0.4, min(picture.shape[:2]) / 900)
    return scale, max(1, round(2 * scale))


def draw_box(picture: np.ndarray, box: Sequence[float] | np.ndarray, category: int, text: str) -> None:
    """Draws a box with its label into a picture.

    Args:
        picture: uint8 (H, W, 3), B, G, R, contiguous.
        box: x1, y1, x2, y2 normalised to the picture; what reaches outside is cut off, what is not finite
            is not drawn.
        category: whose colour it has.
        text: of the label.
    """
    if not np.isfinite(box).all():
        return
    height, width = picture.shape[:2]
    sides = [width - 1, height - 1, width - 1, height - 1]
    x1, y1, x2, y2 = np.rint(np.clip(box, 0, 1) * sides).astype(int).tolist()
    cv2.rectangle(picture, (x1, y1), (x2, y2), class_colour(category), line_and_scale(picture)[1])
    draw_label(picture, text, (x1, y1), class_colour(category))


def draw_label(picture: np.ndarray, text: str, corner: tuple[int, int], colour: tuple[int, int, int]) -> None:
    """Draws text on a ground of its own.

    Args:
        picture: uint8 (H, W, 3), B, G, R, contiguous.
        text: in black.
        corner: the lower left one, in pixels; at the upper edge the label is moved down into the picture.
        colour: of the ground.
    """
    scale, line = line_and_scale(picture)
    (across, up), below = cv2.getTextSize(text, FONT, scale, line)
    x, foot = corner[0], max(corner[1], up + below)
    cv2.rectangle(picture, (x, foot - up - below), (x + across, foot), colour, cv2.FILLED)
    cv2.putText(picture, text, (x, foot - below), FONT, scale, (0, 0, 0), line, cv2.LINE_AA)


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
    order = np.argsort(detections.scores, kind="stable")  # the best last, on top
    for box, score, category in zip(
        detections.boxes[order], detections.scores[order], detections.classes[order].tolist(), strict=True
    ):
        name = names[category] if category < len(names) else str(category)
        draw_box(picture, box, category, f"{name} {score:.2f}")
    return picture


def draw_labels(
    image: np.ndarray, boxes: np.ndarray, classes: np.ndarray, names: Sequence[str]
) -> np.ndarray:
    """Draws labelled boxes with their class names; arguments as for `draw`."""
    picture = np.ascontiguousarray(image).copy()
    for box, category in zip(boxes, classes.tolist(), strict=True):
        draw_box(picture, box, category, names[category] if category < len(names) else str(category))
    return picture
