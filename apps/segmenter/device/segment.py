"""Segments one image with an unpacked bundle: `python -m paredown.apps.segmenter.device.segment IMAGE [MAP]`.

Runs on the board from the bundle's own folder, with numpy, OpenCV and a LiteRT interpreter; no torch. Prints
one JSON document: the share of the image that each class has, the largest first. MAP is a PNG to write, of
one channel: the class of every pixel.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from paredown.apps.segmenter.device.class_map import class_map
from paredown.calibration.array_input import read_sample
from paredown.calibration.pictures import write_picture
from paredown.calibration.preprocess import Preprocess
from paredown.targets.errors import ParedownError, UsageError
from paredown.targets.runners.unpacked import Unpacked, described


class Segmenter:
    """The segmenter of an unpacked bundle.

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
            (logits,) = self._bundle.zeros()
            if logits.ndim != 3 or len(logits) != len(self.names):
                raise ValueError(f"outputs of {logits.shape}, {len(self.names)} names")
        self.preprocess = Preprocess.from_dict(self._bundle.preprocess)

    def __call__(self, image: np.ndarray) -> NDArray[np.uint8]:
        """The class of every pixel, (H, W), of an image (H, W, 3) BGR uint8."""
        (logits,) = self._bundle(image, self.preprocess)
        height, width = image.shape[:2]
        return class_map(logits, (height, width), self.preprocess.geometry(height, width))


def main(arguments: list[str]) -> int:
    """The command; returns the exit code."""
    try:
        if len(arguments) not in (1, 2):
            raise UsageError("usage: python -m paredown.apps.segmenter.device.segment IMAGE [MAP]")
        segmenter = Segmenter(Path.cwd())
        image = read_sample(arguments[0], segmenter.preprocess)
        start = time.perf_counter()
        found = segmenter(image)
        seconds = time.perf_counter() - start
        if len(arguments) == 2:
            write_picture(arguments[1], found)
    except ParedownError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    shares = np.bincount(found.ravel(), minlength=len(segmenter.names))[: len(segmenter.names)] / found.size
    order = [index for index in np.argsort(-shares, kind="stable") if shares[index]]
    listed = [{"class": segmenter.names[i], "share": round(float(shares[i]), 4)} for i in order]
    print(json.dumps({"image": arguments[0], "milliseconds": round(1e3 * seconds, 2), "classes": listed}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
