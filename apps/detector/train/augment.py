"""What training changes about an image, by chance: zoom and shift, mirror, colour; four in one (mosaic)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from paredown.calibration.preprocess import Preprocess


@dataclass(frozen=True)
class Augment:
    """How far an image may be changed; all zero and no flips is no change."""

    zoom: float = 0.2
    """Largest enlargement or reduction: 0.2 draws a factor from 1 / 1.2 to 1.2; the axes differ a little."""
    shift: float = 0.1
    """Largest shift, as a share of the image's width or height."""
    flips: bool = True
    """Mirror half of the images left to right; wrong for digits and letters."""
    colour: float = 0.2
    """Largest change of each channel's gain; half of it, of the whole range, is the largest offset."""
    hsv: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Largest change of hue, as a share of the circle, and of the gain of saturation and brightness."""
    mosaic: float = 0.0
    """Share of images that are put together of four (arXiv 2004.10934, section 3.3)."""
    visible: float = 0.5
    """A box of which less than this share stays inside the image is dropped; an ignored one never."""

    def __call__(
        self, image: np.ndarray, boxes: np.ndarray, classes: np.ndarray, random: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Changes one image and its boxes.

        Args:
            image: (H, W, 3) uint8.
            boxes: (N, 4) cx, cy, w, h normalised to the image.
            classes: (N,); negative of objects that are ignored.
            random: where chance comes from; always as many draws, whatever the settings but for hsv.

        Returns:
            The image (same shape), and the boxes and classes that can still be seen.
        """
        draws = random.uniform(-1, 1, 12)
        height, width = image.shape[:2]
        zoom = (1 + self.zoom) ** (draws[0] + 0.2 * draws[1:3])
        shift = self.shift * draws[3:5] + (1 - zoom) / 2  # the middle stays in the middle
        if self.zoom or self.shift:
            # Boxes measure from the image's edge, OpenCV from the first pixel's centre.
            moved = shift * (width, height) + (zoom - 1) / 2
            matrix = np.array([[zoom[0], 0, moved[0]], [0, zoom[1], moved[1]]])
            # Grey around it, as darknet: a mirrored border would show objects again, without labels.
            image = cv2.warpAffine(image, matrix, (width, height), borderValue=(128, 128, 128))
            boxes, classes = self._moved(boxes, classes, zoom, shift)
        if self.flips and draws[5] < 0:
            image = np.ascontiguousarray(image[:, ::-1])
            boxes = np.stack([1 - boxes[:, 0], *boxes[:, 1:].T], axis=1)
        if self.colour:
            gain, offset = 1 + self.colour * draws[6:9], 128 * self.colour * draws[9]
            table = np.clip(np.arange(256)[:, None] * gain + offset, 0, 255).astype(np.uint8)
            image = cv2.LUT(image, table[None])
        if any(self.hsv):
            image = _recoloured(image, np.array(self.hsv) * random.uniform(-1, 1, 3))
        return image, boxes.astype(np.float32), classes

    def _moved(
        self, boxes: np.ndarray, classes: np.ndarray, zoom: np.ndarray, shift: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        centre, size = boxes[:, :2] * zoom + shift, boxes[:, 2:] * zoom
        low, high = np.clip(centre - size / 2, 0, 1), np.clip(centre + size / 2, 0, 1)
        area = size.prod(-1)
        keep = (high - low).prod(-1) >= _least(area, classes, self.visible)
        return np.concatenate([(low + high) / 2, high - low], axis=1)[keep], classes[keep]


def mosaic(
    images: Sequence[np.ndarray],
    boxes: Sequence[np.ndarray],
    classes: Sequence[np.ndarray],
    preprocess: Preprocess,
    random: np.random.Generator,
    visible: float = 0.5,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Puts four images around a point, each as large as it would be alone, a little more or less.

    Args:
        images: four of (H, W, 3) uint8.
        boxes: (N, 4) of each, cx, cy, w, h normalised to it.
        classes: (N,) of each.
        preprocess: of the network: says the size of what is made, and how images are resized.
        random: where chance comes from.
        visible: a box of which less than this share is seen is dropped.

    Returns:
        The image, (height, width, 3), and the boxes and classes that can be seen.
    """
    height, width = preprocess.height, preprocess.width
    canvas = np.full((height, width, 3), 128, np.uint8)
    middle = (random.uniform(0.3, 0.7, 2) * (width, height)).astype(int)
    kept, kinds = [np.zeros((0, 4), np.float32)], [np.zeros(0, np.int64)]
    for corner, (image, found, labels) in enumerate(zip(images, boxes, classes, strict=True)):
        scale = random.uniform(0.7, 1.3) * np.array([width, height])
        side = np.maximum(1, scale.round()).astype(int)
        right, below = corner % 2, corner // 2
        start = middle - side * (1 - right, 1 - below)  # the image's corner lies at the middle
        low = np.maximum(start, (middle[0] * right, middle[1] * below))
        high = np.minimum(start + side, (width if right else middle[0], height if below else middle[1]))
        part = preprocess.resized(image, int(side[0]), int(side[1]))
        (left, top), (stop_x, stop_y) = low - start, high - start
        canvas[low[1] : high[1], low[0] : high[0]] = part[top:stop_y, left:stop_x]
        corners = np.concatenate([found[:, :2] - found[:, 2:] / 2, found[:, :2] + found[:, 2:] / 2], 1)
        corners = corners * np.tile(side, 2) + np.tile(start, 2)
        cut = np.concatenate([np.maximum(corners[:, :2], low), np.minimum(corners[:, 2:], high)], 1)
        area = (corners[:, 2:] - corners[:, :2]).prod(1)
        seen = (cut[:, 2:] - cut[:, :2]).clip(0).prod(1) >= _least(area, labels, visible)
        cut = cut[seen] / np.tile((width, height), 2)
        kept.append(np.concatenate([(cut[:, :2] + cut[:, 2:]) / 2, cut[:, 2:] - cut[:, :2]], 1))
        kinds.append(labels[seen])
    return canvas, np.concatenate(kept).astype(np.float32), np.concatenate(kinds)


def _least(area: np.ndarray, classes: np.ndarray, visible: float) -> np.ndarray:
    """The area of each box that must stay; any part of an ignored one stays ignored."""
    return np.maximum(np.where(classes < 0, 0, visible) * area, 1e-9)


def _recoloured(image: np.ndarray, change: np.ndarray) -> np.ndarray:
    """An image (H, W, 3) with hue turned, and saturation and brightness scaled, by these shares."""
    hue, saturation, value = cv2.split(cv2.cvtColor(image, cv2.COLOR_BGR2HSV))
    steps = np.arange(256)
    turned = ((steps + change[0] * 180) % 180).astype(np.uint8)
    tables = [turned, *(np.clip(steps * (1 + share), 0, 255).astype(np.uint8) for share in change[1:])]
    parts = [cv2.LUT(p, table) for p, table in zip((hue, saturation, value), tables, strict=True)]
    return np.asarray(cv2.cvtColor(cv2.merge(parts), cv2.COLOR_HSV2BGR))
