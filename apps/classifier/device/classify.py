"""Classifies one image with an unpacked bundle: `python -m paredown.apps.classifier.device.classify IMAGE`.

A network of arrays takes a .npy file instead.

Runs on the board from the bundle's own folder, with numpy, OpenCV and a LiteRT interpreter; no torch. Prints
one JSON document: the likeliest classes first.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from paredown.calibration.array_input import input_from_dict, read_sample
from paredown.targets.errors import ParedownError, UsageError
from paredown.targets.runners.unpacked import Unpacked, described


class Classifier:
    """The classifier of an unpacked bundle.

    Args:
        folder: of the bundle, with its manifest.json.
        threads: of the runtime.

    Raises:
        InputError: the folder is no unpacked bundle with a LiteRT model, or a file of it is damaged.
    """

    def __init__(self, folder: Path, threads: int = 1) -> None:
        self._bundle = Unpacked(folder, ("app.json", "labels.txt"), threads)
        self.names = self._bundle.names
        with described(folder / "app.json"):
            facts = self._bundle.document("app.json")
            self.show, self._probabilities = int(facts["show"]), bool(facts.get("probabilities"))
            (logits,) = self._bundle.zeros()
            if logits.shape != (len(self.names),) or self.show < 1:
                raise ValueError(f"{logits.shape} outputs, {len(self.names)} names")
        self.source = input_from_dict(self._bundle.preprocess)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """The probability of each class, (classes,) float32, for an image (H, W, 3) BGR or an array."""
        (logits,) = self._bundle(image, self.source)
        return logits if self._probabilities else softmax(logits)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities of (classes,) logits."""
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def main(arguments: list[str]) -> int:
    """The command; returns the exit code."""
    try:
        if len(arguments) != 1:
            raise UsageError("usage: python -m paredown.apps.classifier.device.classify IMAGE")
        classifier = Classifier(Path.cwd())
        image = read_sample(arguments[0], classifier.source)
        start = time.perf_counter()
        shares = classifier(image)
        seconds = time.perf_counter() - start
    except ParedownError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    best = np.argsort(-shares, kind="stable")[: classifier.show]
    listed = [{"class": classifier.names[i], "probability": round(float(shares[i]), 4)} for i in best]
    print(json.dumps({"image": arguments[0], "milliseconds": round(1e3 * seconds, 2), "classes": listed}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
