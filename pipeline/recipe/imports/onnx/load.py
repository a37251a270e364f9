"""ONNX files into plain torch modules."""

from __future__ import annotations

from pathlib import Path

from paredown.pipeline.recipe.imports.imported import Imported
from paredown.targets.errors import InputError


def load(path: Path, shape: tuple[int, ...] | None = None) -> Imported:
    """Reads an ONNX file; see `imports.read`.

    Raises:
        InputError: it cannot be imported; the line says why.
    """
    raise InputError("ONNX files cannot be read yet", where=path)
