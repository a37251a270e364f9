"""Int8 `.tflite` of other tools as integer graphs: do our programs give the codes of the file itself?

    python bench/kept_codes.py FILE.tflite ... --photos FOLDER --record

Each file runs in LiteRT as it is, with XNNPACK and with TFLite's reference kernels; beside it run
the programs that its integer graph is lowered to. Inputs are photos, each stretched to the input's size, or
random codes without them. What stays a sealed program says why.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from record import Table, add_option

from paredown.pipeline.lower.integer import IntegerGraph
from paredown.pipeline.lower.litert.reader.load import load
from paredown.pipeline.lower.runtimes import runtime
from paredown.targets.errors import InputError
from paredown.targets.runners.litert import Runner
from paredown.targets.runners.vectors import test_inputs

COLUMNS = ("file", "becomes", "inputs", "codes", "LiteRT, ours", "ExecuTorch, ours", "reference kernels")


def inputs_of(graph: IntegerGraph, photos: list[Path], count: int) -> NDArray[np.int8]:
    """Codes (count, channels, height, width)."""
    _, channels, *size = graph.input.shape
    if channels != 3 or len(size) != 2 or not photos:
        return test_inputs(graph.input.shape, count)
    chosen = photos[:: max(1, len(photos) // count)][:count]
    images = [cv2.resize(cv2.imread(str(path)), (size[1], size[0])) for path in chosen]
    pixels = np.stack(images)[..., ::-1].transpose(0, 3, 1, 2)
    return np.ascontiguousarray(pixels.astype(np.int16) - 128).astype(np.int8)


def row(path: Path, photos: list[Path], count: int) -> list[str]:
    """The cells of a file."""
    try:
        graph = load(path)
    except InputError as error:
        return [path.name, error.what.partition("stays sealed: ")[2].partition(";")[0], *["-"] * 5]
    data, inputs = path.read_bytes(), inputs_of(graph, photos, count)
    file, exact = Runner(data), Runner(data, reference=True)
    others = [runtime(n).load(runtime(n).lower_integer(graph).data, 1, n) for n in ("litert", "executorch")]
    total, apart, most = 0, [0] * 3, [0] * 3
    for index in range(len(inputs)):
        x = inputs[index : index + 1]
        truth = np.concatenate([each.reshape(-1) for each in file(x)]).astype(int)
        total += truth.size
        for place, program in enumerate((*others, exact)):
            codes = np.concatenate([each.reshape(-1) for each in program(x)]).astype(int)
            apart[place] += int(np.count_nonzero(codes - truth))
            most[place] = max(most[place], int(np.abs(codes - truth).max()))
    cells = [f"{n}, by up to {m}" if n else "0" for n, m in zip(apart, most, strict=True)]
    return [path.name, f"{len(graph.nodes)} nodes", str(len(inputs)), f"{total:,}", *cells]


def main() -> None:
    """A row for each file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--photos", type=Path, help="a folder of pictures")
    parser.add_argument("--count", type=int, default=64, help="inputs of each file")
    add_option(parser)
    options = parser.parse_intermixed_args()
    found = sorted(options.photos.rglob("*.jpg")) if options.photos else []
    note = "The last three columns are codes that differ from those of the file in LiteRT with XNNPACK."
    with Table("kept-codes", COLUMNS, options.record, notes=[note]) as table:
        for path in options.files:
            table.row(*row(path, found, options.count))


if __name__ == "__main__":
    main()
