"""ncnn on an emulated board, for `bench/arm.py`: marks its inferences, writes the last one's outputs.

Started there: `arm_peer.py FOLDER RUNS`, FOLDER with ncnn's files, `in.npy` and the package. It imports
nothing of ours.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

EMPTY, INFERENCE = (0x7E570000, 0x7E570001), (0x7E570002, 0x7E570003)  # as in targets/emulated/instructions.c
EMPTIES, WARM_UP = 20, 2


def main() -> None:
    """Runs it, one thread; all else is ncnn's default, 16-bit floats where the core computes with them."""
    folder, runs = Path(sys.argv[1]), int(sys.argv[2])
    sys.path.insert(0, str(folder))
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = 1
    if net.load_param(str(folder / "model.ncnn.param")) or net.load_model(str(folder / "model.ncnn.bin")):
        raise SystemExit("ncnn does not load its own files")
    x = ncnn.Mat(np.load(folder / "in.npy")).clone()
    source, outputs = net.input_names()[0], sorted(net.output_names())

    def call() -> list[np.ndarray]:
        with net.create_extractor() as extractor:
            extractor.input(source, x)
            return [np.array(extractor.extract(name)[1]) for name in outputs]

    for _ in range(WARM_UP):
        found = call()
    for marks, work, times in ((EMPTY, list, EMPTIES), (INFERENCE, call, runs)):
        for _ in range(times):
            os.isatty(marks[0])
            work()
            os.isatty(marks[1])
    np.savez(folder / "out.npz", *found)


if __name__ == "__main__":
    main()
