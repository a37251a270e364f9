"""What training changes about an image, by chance: zoom and shift, mirror, colour."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np


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
    visible: float = 0.5
    """A box of which less than this share stays inside the image is dropped."""

    def __call__(
        self, image: np.ndarray, boxes: np.ndarray, classes: np.ndarray, random: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Changes one image and its boxes.

        Args:
            image: (H, W, 3) uint8.
            boxes: (N, 4) cx, cy, w, h normalised to the image.
            classes: (N,).
            random: where chance comes from; always as many draws, whatever the settings.

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
        return image, boxes.astype(np.float32), classes

    def _moved(
        self, boxes: np.ndarray, classes: np.ndarray, zoom: np.ndarray, shift: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        centre, size = boxes[:, :2] * zoom + shift, boxes[:, 2:] * zoom
        low, high = np.clip(centre - size / 2, 0, 1), np.clip(centre + size / 2, 0, 1)
        area = size.prod(-1)
        keep = (high - low).prod(-1) >= np.maximum(self.visible * area, 1e-9)
        return np.concatenate([(low + high) / 2, high - low], axis=1)[keep], classes[keep]
