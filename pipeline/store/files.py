"""How the files of an artefact are written and read: JSON, and graphs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PARALLEL_MACS = 1_000_000_000  # of one inference; below this torch runs on one thread
#: Has torch's threads for large networks, where another machine's results are to be the same as here.
THREADS = "PAREDOWN_THREADS"


def write_json(path: Path, value: object) -> None:
    """Writes canonical, readable JSON."""
    path.write_text(json.dumps(value, sort_keys=True, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads what `write_json` wrote."""
    return json.loads(path.read_text())


def write_graph(out: Path, structure: bytes, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Writes a dumped graph."""
    from safetensors.numpy import save_file

    (out / "graph.json").write_bytes(structure)
    save_file({name: np.ascontiguousarray(a) for name, a in arrays.items()}, out / "arrays.safetensors")


def read_graph(folder: Path) -> tuple[bytes, dict[str, NDArray[Any]]]:
    """Reads a dumped graph."""
    from safetensors.numpy import load_file

    return (folder / "graph.json").read_bytes(), load_file(folder / "arrays.safetensors")


def set_threads(original: Path) -> None:
    """One thread of torch for a small network: on a shared machine, waiting for each other costs far more.

    Float sums hang on the number of threads, so every stage that computes with torch has the same.

    Args:
        original: the folder of the original network's traced graph.
    """
    import torch

    small = read_json(original / "size.json")["macs"] < PARALLEL_MACS
    torch.set_num_threads(1 if small else most_threads())


def most_threads() -> int:
    """Threads of torch for large networks: the cores of this process, or those of who gave it its work."""
    return int(os.environ.get(THREADS) or len(os.sched_getaffinity(0)))
