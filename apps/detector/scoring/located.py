"""From a network's outputs to boxes on the image: one way for training, runs and devices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paredown.apps.detector.device.boxes.decode import Decoder, Detections, detect
from paredown.calibration.preprocess import Preprocess

SCORE_THRESHOLD = 0.005  # darknet's, to score mAP


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
