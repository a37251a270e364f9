"""LiteRT Micro at work: `python -m paredown.targets.mcu.tflm_process FOLDER ARENA_BYTES`.

Reads FOLDER/program.tflite and inputs.npy (NHWC), writes output0.npy ..., and prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np


def main(folder: Path, arena_bytes: int) -> None:
    """Runs the program on every input."""
    from tflite_micro.python.tflite_micro import runtime

    interpreter = runtime.Interpreter.from_file(str(folder / "program.tflite"), arena_size=arena_bytes)
    results: list[list[np.ndarray]] = []
    unsigned = interpreter.get_input_details(0)["dtype"] == np.uint8  # outside its codes are int8
    for x in np.load(folder / "inputs.npy"):
        codes = x.view(np.uint8) ^ np.uint8(128) if unsigned and x.dtype == np.int8 else x
        interpreter.set_input(np.ascontiguousarray(codes[None]), 0)
        interpreter.invoke()
        results.append(_outputs(interpreter))
    for index, parts in enumerate(zip(*results, strict=True)):
        np.save(folder / f"output{index}.npy", np.concatenate(parts))
    print(json.dumps({"outputs": len(results[0]), **_allocations(interpreter)}))


def _outputs(interpreter: Any) -> list[np.ndarray]:
    """Copies of all outputs; the interpreter does not say how many it has."""
    found: list[np.ndarray] = []
    while True:
        try:
            found.append(np.array(interpreter.get_output(len(found))))
        except IndexError:
            return found


def _allocations(interpreter: Any) -> dict[str, int]:
    """Total, head and tail of the arena in bytes, which the interpreter only ever prints."""
    with tempfile.TemporaryFile("w+") as caught:
        sys.stderr.flush()
        saved = os.dup(2)
        os.dup2(caught.fileno(), 2)
        try:
            interpreter.print_allocations()
        finally:
            os.dup2(saved, 2)
            os.close(saved)
        caught.seek(0)
        printed = caught.read()
    return {part: int(size) for part, size in re.findall(r"Arena allocation (\w+) (\d+) bytes", printed)}


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
