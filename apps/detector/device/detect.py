"""Detects on one image: `python -m paredown.apps.detector.device.detect IMAGE [OUT.png]`.

Runs on the board from the bundle's own folder, with numpy, OpenCV and a LiteRT interpreter; no torch. Prints
one JSON document.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from paredown.apps.detector.device.boxes.decode import (
    Detections,
    check_thresholds,
    classes_of,
    decoder_of,
    detect,
)
from paredown.apps.detector.device.drawing.draw import draw
from paredown.calibration.pictures import read_picture, write_picture
from paredown.calibration.preprocess import Preprocess
from paredown.targets.errors import ParedownError, UsageError
from paredown.targets.runners.unpacked import Unpacked, described


class Detector:
    """The detector of an unpacked bundle.

    Args:
        folder: of the bundle, with its manifest.json.
        threads: of the runtime.

    Raises:
        InputError: the folder is no unpacked bundle with a LiteRT model, a file of it is damaged, does not
            fit the model, or is of a later version.
    """

    def __init__(self, folder: Path, threads: int = 1) -> None:
        self._bundle = Unpacked(folder, ("app.json", "labels.txt"), threads)
        self.app = self._bundle.document("app.json")
        self.names: list[str] = self._bundle.names
        with described(folder / "app.json"):
            self._decoder = decoder_of(self.app)
            if (classes := classes_of(self._bundle.zeros(), self._decoder)) != len(self.names):
                raise ValueError(f"{classes} classes, {len(self.names)} names")
            check_thresholds(self.app)
        self.preprocess = Preprocess.from_dict(self._bundle.preprocess)

    def __call__(self, image: np.ndarray, threshold: float) -> Detections:
        """What is in an image (H, W, 3 BGR uint8): boxes normalised to the image."""
        outputs = self.infer(self.prepare(image))
        return self.decode(outputs, (image.shape[0], image.shape[1]), threshold)

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """The first step: the model's input of an image (H, W, 3 BGR uint8)."""
        return self._bundle.prepare(image, self.preprocess)

    def infer(self, x: np.ndarray) -> list[np.ndarray]:
        """The second step: the model's outputs as real numbers."""
        return self._bundle.infer(x)

    def decode(self, outputs: list[np.ndarray], size: tuple[int, int], threshold: float) -> Detections:
        """The third step: boxes normalised to an image of this height and width."""
        found = detect(outputs, self._decoder, threshold, self.app["nms_iou"])
        boxes = self.preprocess.geometry(*size).to_image(found.boxes)
        return Detections(boxes, found.scores, found.classes)


def main(arguments: list[str]) -> int:
    """The command; returns the exit code."""
    try:
        if not 1 <= len(arguments) <= 2:
            raise UsageError("usage: python -m paredown.apps.detector.device.detect IMAGE [OUT.png]")
        detector = Detector(Path.cwd())
        image = read_picture(arguments[0])
        start = time.perf_counter()
        found = detector(image, detector.app["show_threshold"])
        seconds = time.perf_counter() - start
        if len(arguments) == 2:
            write_picture(arguments[1], draw(image, found, detector.names))
    except ParedownError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    listed = [
        {"class": detector.names[c], "score": round(float(s), 4), "box": [round(float(v), 4) for v in b]}
        for b, s, c in zip(found.boxes, found.scores, found.classes, strict=True)
    ]
    print(json.dumps({"image": arguments[0], "milliseconds": round(1e3 * seconds, 2), "detections": listed}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
