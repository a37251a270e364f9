"""SavedModel folders of TensorFlow: converted to ONNX by tf2onnx, in an environment of its own.

TensorFlow and what this package needs cannot be installed together, so that another Python is asked.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from paredown.targets.errors import InputError

if TYPE_CHECKING:
    from paredown.pipeline.recipe.imports.imported import Imported

#: Names the interpreter of an environment in which tensorflow and tf2onnx are installed.
PYTHON = "PAREDOWN_TENSORFLOW_PYTHON"
OPSET, SECONDS = 17, 1800


def command(python: str, path: Path, onnx: Path) -> list[str]:
    """What converts a SavedModel."""
    places = ("--saved-model", str(path), "--output", str(onnx))
    return [python, "-m", "tf2onnx.convert", *places, "--opset", str(OPSET)]


def load(path: Path, shape: tuple[int, ...] | None = None) -> Imported:
    """Reads a SavedModel; see `imports.read`.

    Raises:
        InputError: no interpreter is named, it has no tf2onnx, or tf2onnx cannot convert the model.
    """
    from paredown.pipeline.recipe.imports.onnx.load import load as load_onnx

    python = os.environ.get(PYTHON)
    if not python:
        by_hand = shlex.join(command("python", path, Path("model.onnx")))
        hint = f"pip install tensorflow-cpu tf2onnx there and set {PYTHON} to its python; or run {by_hand}"
        raise InputError("a SavedModel is converted by tf2onnx, in an environment of its own", where=path,
                         hint=f"{hint} and import model.onnx")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "model.onnx"
        _convert(python, path, made)
        try:
            found = load_onnx(made, shape)
        except InputError as error:
            raise InputError(str(error).replace(str(made), "as ONNX"), where=path) from error
    return replace(found, format=f"SavedModel, through {found.format}")


def _convert(python: str, path: Path, made: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    try:
        done = subprocess.run(
            command(python, path, made), capture_output=True, text=True, timeout=SECONDS, env=environment,
            check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InputError(f"{python} cannot run tf2onnx ({type(error).__name__})", where=path,
                         hint=f"set {PYTHON} to a python that has it") from error  # fmt: skip
    if done.returncode or not made.is_file():
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        reason = lines[-1][:160] if lines else f"exit code {done.returncode}"
        raise InputError(f"tf2onnx cannot convert it ({reason})", where=path, hint=f"{PYTHON} is {python}")
