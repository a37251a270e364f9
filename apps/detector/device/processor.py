"""One picture's way: turned, preprocessed, inferred, decoded, tracked, counted, drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np

from paredown.apps.detector.device.boxes.counting import Counting
from paredown.apps.detector.device.boxes.decode import Detections
from paredown.apps.detector.device.boxes.tracker import Track, Tracker
from paredown.apps.detector.device.drawing.overlay import overlay
from paredown.apps.detector.device.frames.source import Frame
from paredown.apps.detector.device.frames.timing import Split

_TURNS = {90: cv2.ROTATE_90_CLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_COUNTERCLOCKWISE}


class Model(Protocol):
    """A detector, step by step; `apps.detector.device.detect.Detector` is one."""

    @property
    def names(self) -> Sequence[str]:
        """Of the classes."""

    def prepare(self, image: np.ndarray) -> Any:
        """The network's input of an image (H, W, 3) BGR."""

    def infer(self, x: Any) -> Any:
        """The network's outputs."""

    def decode(self, outputs: Any, size: tuple[int, int], threshold: float) -> Detections:
        """What is in an image of this height and width, boxes normalised to it."""


@dataclass(frozen=True, eq=False)
class FrameResult:
    """What one picture showed.

    Attributes:
        frame: the picture, as its source gave it.
        size: height and width, once turned.
        tracks: in it.
        counts: of lines and zones so far.
        ms: of each step until it was drawn.
        picture: drawn into; None where nobody asked for it.
    """

    frame: Frame
    size: tuple[int, int]
    tracks: tuple[Track, ...]
    counts: dict[str, Any]
    ms: dict[str, float]
    picture: np.ndarray | None


class FrameProcessor:
    """Looks at one picture after the other.

    Args:
        model: the detector.
        tracker: of its detections.
        counting: of its tracks.
        split: the stopwatch.
        rotate: clockwise, of 0, 90, 180, 270.
        mirror: left and right, after the rotation.
        drawing: whether pictures are drawn into.
    """

    def __init__(
        self,
        model: Model,
        tracker: Tracker,
        counting: Counting,
        split: Split,
        *,
        rotate: int = 0,
        mirror: bool = False,
        drawing: bool = False,
    ) -> None:
        self.model, self.tracker, self.counting, self.split = model, tracker, counting, split
        self._rotate, self._mirror, self._drawing = rotate, mirror, drawing

    def __call__(self, frame: Frame) -> FrameResult:
        """Looks at the next picture."""
        split, tracker = self.split, self.tracker
        image = turned(frame.image, self._rotate, self._mirror)
        size = (image.shape[0], image.shape[1])
        x = self.model.prepare(image)
        split.lap("preprocess")
        outputs = self.model.infer(x)
        split.lap("infer")
        found = self.model.decode(outputs, size, tracker.config.unsure)
        split.lap("decode")
        tracks = tracker.update(found, frame.at)
        self.counting.update(tracks, tracker.alive, frame.at)
        split.lap("track")
        picture = None
        if self._drawing:
            picture = overlay(image, tracks, self.model.names, self.counting, split.median_ms())
            split.lap("draw")
        return FrameResult(frame, size, tracks, self.counting.to_dict(), split.ms, picture)


def turned(image: np.ndarray, rotate: int, mirror: bool) -> np.ndarray:
    """An image rotated clockwise by 0, 90, 180 or 270 degrees, and then mirrored left to right."""
    if rotate:
        image = cv2.rotate(image, _TURNS[rotate])
    return cv2.flip(image, 1) if mirror else image
