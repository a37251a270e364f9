"""Finds the keypoints in one image with an unpacked bundle: `python -m paredown.apps.pose.device.pose IMAGE`.

Four more numbers, left, top, width and height in pixels, are the box of the person to look at; without them
it is the whole image. Runs on the board from the bundle's own folder, with numpy, OpenCV and a LiteRT
interpreter; no torch. Prints one JSON document: the keypoints in pixels of the image, with their confidence.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from paredown.apps.pose.device.decode import decode
from paredown.apps.pose.device.region import cut, region
from paredown.calibration.array_input import read_sample
from paredown.calibration.preprocess import Preprocess
from paredown.targets.errors import ParedownError, UsageError
from paredown.targets.runners.unpacked import Unpacked, described

Box = tuple[float, float, float, float]


class Pose:
    """The pose network of an unpacked bundle.

    Args:
        folder: of the bundle, with its manifest.json.
        threads: of the runtime.

    Raises:
        InputError: the folder is no unpacked bundle with a LiteRT model, or a file of it is damaged.
    """

    def __init__(self, folder: Path, threads: int = 1) -> None:
        self._bundle = Unpacked(folder, ("app.json", "labels.txt"), threads)
        self.names = self._bundle.names
        with described(folder / "labels.txt"):
            (heatmaps,) = self._bundle.zeros()
            if heatmaps.ndim != 3 or len(heatmaps) != len(self.names):
                raise ValueError(f"outputs of {heatmaps.shape}, {len(self.names)} names")
        self.preprocess = Preprocess.from_dict(self._bundle.preprocess)

    def __call__(self, image: np.ndarray, box: Box | None = None) -> NDArray[np.float32]:
        """The keypoints of the person in a box, or in the whole image.

        Args:
            image: (H, W, 3) BGR uint8.
            box: left, top, width and height in pixels.

        Returns:
            (keypoints, 3): x and y in pixels of the image, confidence.
        """
        left = top = 0
        if box is not None:
            where = region(box, self.preprocess.width / self.preprocess.height)
            image, left, top = cut(image, where), where.left, where.top
        (heatmaps,) = self._bundle(image, self.preprocess)
        height, width = image.shape[:2]
        found = decode(heatmaps, (height, width), self.preprocess.geometry(height, width))
        return found + np.array([left, top, 0], np.float32)


def main(arguments: list[str]) -> int:
    """The command; returns the exit code."""
    try:
        box = _box(arguments)
        pose = Pose(Path.cwd())
        image = read_sample(arguments[0], pose.preprocess)
        start = time.perf_counter()
        found = pose(image, box)
        seconds = time.perf_counter() - start
    except ParedownError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    listed = [
        {"name": name, "x": round(float(x), 2), "y": round(float(y), 2), "confidence": round(float(peak), 4)}
        for name, (x, y, peak) in zip(pose.names, found, strict=True)
    ]
    print(json.dumps({"image": arguments[0], "milliseconds": round(1e3 * seconds, 2), "keypoints": listed}))
    return 0


def _box(arguments: list[str]) -> Box | None:
    usage = "usage: python -m paredown.apps.pose.device.pose IMAGE [LEFT TOP WIDTH HEIGHT]"
    if len(arguments) == 1:
        return None
    try:
        left, top, width, height = map(float, arguments[1:])
    except ValueError as error:
        raise UsageError(usage) from error
    if not (all(map(np.isfinite, (left, top))) and 0 < width < 1e6 and 0 < height < 1e6):
        raise UsageError("a box without area, or outside of everything", hint=usage)
    return left, top, width, height


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
