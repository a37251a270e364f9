"""Runs an unpacked bundle on one input: `python -m paredown.apps.outputs.device.predict INPUT [OUT.npz]`.

INPUT is an image, or a .npy file where the network takes arrays. Runs on the board from the bundle's own
folder, with numpy, OpenCV and a LiteRT interpreter; no torch. Prints one JSON document: shape, mean and range
of each output; OUT.npz gets all values.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from paredown.calibration.array_input import input_from_dict, read_sample
from paredown.targets.errors import InputError, ParedownError, UsageError
from paredown.targets.runners.unpacked import Unpacked


class Network:
    """The network of an unpacked bundle.

    Args:
        folder: of the bundle, with its manifest.json.
        threads: of the runtime.

    Raises:
        InputError: the folder is no unpacked bundle with a LiteRT model, or a file of it is damaged.
    """

    def __init__(self, folder: Path, threads: int = 1) -> None:
        self._bundle = Unpacked(folder, ("app.json",), threads)
        self.source = input_from_dict(self._bundle.preprocess)

    def __call__(self, sample: np.ndarray) -> tuple[NDArray[np.float32], ...]:
        """The outputs, without a batch, for an image (H, W, 3) BGR uint8, or for an array."""
        return tuple(self._bundle(sample, self.source))


def main(arguments: list[str]) -> int:
    """The command; returns the exit code."""
    try:
        if len(arguments) not in (1, 2):
            raise UsageError("usage: python -m paredown.apps.outputs.device.predict INPUT [OUT.npz]")
        network = Network(Path.cwd())
        sample = read_sample(arguments[0], network.source)
        start = time.perf_counter()
        outputs = network(sample)
        seconds = time.perf_counter() - start
        if len(arguments) == 2:
            _write(arguments[1], outputs)
    except ParedownError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    listed = [
        {
            "shape": list(output.shape), "mean": round(float(output.mean()), 6),
            "min": round(float(output.min()), 6), "max": round(float(output.max()), 6),
        }
        for output in outputs
    ]  # fmt: skip
    print(json.dumps({"input": arguments[0], "milliseconds": round(1e3 * seconds, 2), "outputs": listed}))
    return 0


def _write(path: str, outputs: tuple[NDArray[np.float32], ...]) -> None:
    try:
        with Path(path).open("wb") as file:
            np.savez(file, *outputs)
    except OSError as error:
        raise InputError(f"cannot write the outputs: {error.strerror}", where=path) from error


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
