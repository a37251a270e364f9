"""How the files of an artefact are written and read: JSON, and graphs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.stage import Stage
from pipeline.store import Store
from targets.errors import InputError


def stored(store: Store, stage: Stage) -> Path:
    """The folder of a stage's artefact, which must have run.

    Raises:
        InputError: it is not there any more.
    """
    path = store.get(stage.key)
    if path is None:
        raise InputError(
            f"the artefact of stage {stage.name} was removed or damaged meanwhile",
            where=store.root,
            hint="run the same command again",
        )
    return path


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
