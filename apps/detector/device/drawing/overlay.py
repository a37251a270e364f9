"""Tracks, lines, zones, counts and where the time goes, drawn into a picture: numpy and OpenCV only."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from paredown.apps.detector.device.boxes.counting import Counting, Point
from paredown.apps.detector.device.boxes.tracker import Track
from paredown.apps.detector.device.drawing.draw import FONT, draw_box, draw_label, line_and_scale
from paredown.apps.detector.device.frames.timing import STEPS

_WHITE, _LINE, _ZONE, _SHADE = (255, 255, 255), (0, 200, 255), (255, 160, 0), 0.45


def overlay(
    image: np.ndarray,
    tracks: Sequence[Track],
    names: Sequence[str],
    counting: Counting,
    median_ms: Mapping[str, float],
) -> np.ndarray:
    """Draws what a camera saw.

    Args:
        image: uint8 (H, W, 3), B, G, R; left as it is.
        tracks: boxes normalised to the image.
        names: of the classes; a class beyond them is shown by its number.
        counting: lines and zones.
        median_ms: of the steps and of the latency; nothing is said of steps that it lacks.

    Returns:
        A new image of the same shape.
    """
    picture = np.ascontiguousarray(image).copy()
    for track in sorted(tracks, key=lambda track: track.score):  # the best last, on top
        name = names[track.category] if track.category < len(names) else str(track.category)
        draw_box(picture, track.box, track.category, f"{name} {track.id}  {track.score:.2f}")
    for zone in counting.zones:
        label = f"{zone.zone.name}: {zone.inside} inside, {zone.entered} in all"
        _outline(picture, zone.zone.corners, _ZONE, label, closed=True)
    for line in counting.lines:
        label = f"{line.line.name}: {line.entered} in, {line.left} out"
        _outline(picture, (line.line.start, line.line.end), _LINE, label, closed=False)
    _panel(picture, median_ms)
    return picture


def _outline(
    picture: np.ndarray, points: Sequence[Point], colour: tuple[int, int, int], text: str, closed: bool
) -> None:
    """A line or polygon, with a label in its middle, where no other one begins."""
    height, width = picture.shape[:2]
    corners = np.rint(np.array(points) * [width - 1, height - 1]).astype(np.int32)
    scale, line = line_and_scale(picture)
    cv2.polylines(picture, [corners], closed, colour, line, cv2.LINE_AA)
    (across, _), _ = cv2.getTextSize(text, FONT, scale, line)
    x, y = corners.mean(axis=0).astype(int).tolist()
    draw_label(picture, text, (max(0, min(x - across // 2, width - across)), y), colour)


def _panel(picture: np.ndarray, median_ms: Mapping[str, float]) -> None:
    """Milliseconds of each step, in the upper left corner, on a shaded ground."""
    rows = [(step, f"{median_ms[step]:.1f} ms") for step in (*STEPS, "latency") if median_ms.get(step)]
    if not rows:
        return
    letters = _letters(tuple(rows), *line_and_scale(picture))
    ground = picture[: letters.shape[0], : letters.shape[1]]
    shaded = cv2.convertScaleAbs(ground, alpha=_SHADE)
    ground[:] = cv2.max(shaded, letters[: ground.shape[0], : ground.shape[1]])


@functools.lru_cache(maxsize=1)  # medians hardly change from one picture to the next, and text takes time
def _letters(rows: tuple[tuple[str, str], ...], scale: float, line: int) -> np.ndarray:
    """Names and values in white on black, uint8 (height, width, 3)."""
    (_, up), below = cv2.getTextSize("latency", FONT, scale, line)
    (column, _), _ = cv2.getTextSize("preprocess ", FONT, scale, line)
    (number, _), _ = cv2.getTextSize("0000.0 ms", FONT, scale, line)
    step, margin = round(1.5 * (up + below)), up
    right = margin + column + number
    letters = np.zeros((margin + step * len(rows), right + margin, 3), np.uint8)
    for row, (name, value) in enumerate(rows, start=1):
        (across, _), _ = cv2.getTextSize(value, FONT, scale, line)
        cv2.putText(letters, name, (margin, row * step), FONT, scale, _WHITE, line, cv2.LINE_AA)
        cv2.putText(letters, value, (right - across, row * step), FONT, scale, _WHITE, line, cv2.LINE_AA)
    return letters
