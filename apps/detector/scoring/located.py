"""From a network's outputs to boxes on the image: one way for training, runs and devices."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from paredown.apps.detector.device.boxes.decode import Decoder, Detections, detect
from paredown.calibration.preprocess import Preprocess

SCORE_THRESHOLD = 0.005  # darknet's, to score mAP
KEPT = 128 * 2**20  # bytes of boxes


def located(
    outputs: Sequence[np.ndarray],
    decoder: Decoder,
    preprocess: Preprocess,
    size: tuple[int, int],
    threshold: float = SCORE_THRESHOLD,
) -> Detections:
    """What outputs show in an image, as a device shows it: boxes are clipped to the image.

    Args:
        outputs: of one image, each without a batch.
        decoder: of the network.
        preprocess: that the image went through.
        size: height and width of the image.
        threshold: the least score of a box.

    Returns:
        Boxes x1, y1, x2, y2, normalised to the image.
    """
    found = detect(outputs, decoder, threshold)
    return Detections(preprocess.geometry(*size).to_image(found.boxes), found.scores, found.classes)


class Located:
    """`located` at the scoring threshold, of outputs that come again.

    The sensitivity test scores a point on the first images, then on some more; so does `best_case`. What has
    the same bytes is decoded once. Where it gets too much, what nobody asked for longest goes.

    Args:
        decoder: of the network.
        preprocess: that the images went through.
        kept: most bytes of boxes.
    """

    def __init__(self, decoder: Decoder, preprocess: Preprocess, kept: int = KEPT) -> None:
        self._decoder, self._preprocess, self._left = decoder, preprocess, kept
        self._known: OrderedDict[bytes, Detections] = OrderedDict()

    def __call__(self, outputs: Sequence[np.ndarray], size: tuple[int, int]) -> Detections:
        """The boxes of one image of this height and width."""
        digest = hashlib.sha256(f"{size}".encode())
        for part in outputs:
            digest.update(f"{part.shape} {part.dtype}".encode())
            digest.update(np.ascontiguousarray(part).data)
        key = digest.digest()
        if key in self._known:
            self._known.move_to_end(key)
            return self._known[key]
        found = self._known[key] = located(outputs, self._decoder, self._preprocess, size)
        self._left -= _bytes(found)
        while self._left < 0:
            self._left += _bytes(self._known.popitem(last=False)[1])
        return found


def _bytes(found: Detections) -> int:
    return found.boxes.nbytes + found.scores.nbytes + found.classes.nbytes
