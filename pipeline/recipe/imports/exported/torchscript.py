"""TorchScript programs, through torch's own converter; what they call is looked at before they are loaded."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from paredown.pipeline.recipe.imports.exported.rebuild import rebuilt
from paredown.pipeline.recipe.imports.imported import Imported
from paredown.targets.errors import InputError

ONNX = "or export it as ONNX, and import that"
MOST_CODE = 64 * 2**20
#: Operations of TorchScript that reach files, processes or other code.
REACHES = re.compile(
    r"\b(?:torch\.(?:from_file|save|load|_C|classes|__torch__\.torch\.classes)|ops\.(?!prim|aten)\w+)"
)


def load(path: Path, shape: tuple[int, ...] | None = None) -> Imported:
    """Reads a TorchScript program; see `imports.read`.

    Raises:
        InputError: it is damaged, calls more than torch's own operations, or cannot be converted; or its
            input's shape is not given, which such a file does not hold.
    """
    _check(path)
    if not shape or len(shape) < 2:
        raise InputError("a TorchScript file does not say the shape of its input", where=path,
                         hint="give it: --shape 3x224x224, or width and height in [preprocess]")  # fmt: skip
    try:
        script = torch.jit.load(str(path), map_location="cpu").eval()
    except Exception as error:  # torch's reader raises many kinds for a damaged file
        reason = (str(error).splitlines() or [""])[0][:120]
        raise InputError(f"torch cannot read the program ({reason})", where=path) from error
    full = _full(script, shape)
    program = _converted(script.float(), full, path)
    return rebuilt(program, full, path, "TorchScript", sizes_open=True)


def _check(path: Path) -> None:
    """Refuses programs whose code calls what torch's own operations are not."""
    try:
        with zipfile.ZipFile(path) as archive:
            code = [
                info
                for info in archive.infolist()
                if "/code/" in info.filename and info.filename.endswith(".py")
            ]
            if sum(info.file_size for info in code) > MOST_CODE:
                raise InputError("holds more than 64 MiB of code", where=path)
            for info in code:
                found = REACHES.search(archive.read(info).decode(errors="replace"))
                if found:
                    raise InputError(f"calls {found.group()}, which is no operation of a network", where=path,
                                     hint="it is not loaded")  # fmt: skip
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise InputError("not a TorchScript program, or a damaged one", where=path) from error


def _full(script: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape with its batch of one and its channels, as the first weight has them."""
    first = next((value for value in script.parameters() if value.dim() >= 3), None)
    if first is not None and len(shape) == first.dim() - 2:
        return (1, int(first.shape[1]), *shape)
    whole = shape[0] == 1 and (first is None or len(shape) == first.dim())
    return tuple(shape) if whole else (1, *shape)


def _converted(script: Any, shape: tuple[int, ...], path: Path) -> torch.export.ExportedProgram:
    """An exported program of the same graph."""
    from torch._export.converter import TS2EPConverter

    x = torch.zeros(shape)
    told = logging.getLogger("torch")
    level = told.level
    try:
        with torch.no_grad():
            script(x)
    except Exception as error:  # whatever the program raises is about the input
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        sizes, reason = "x".join(map(str, shape)), lines[-1][:120] if lines else type(error).__name__
        raise InputError(f"fails on an input of {sizes} ({reason})", where=path,
                         hint="give the --shape that it takes; one tensor is known") from error  # fmt: skip
    try:
        told.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            return TS2EPConverter(script, (x,)).convert()
    except Exception as error:  # the converter raises many kinds
        reason = (str(error).splitlines() or [""])[0][:120]
        raise InputError(f"torch cannot convert the program ({type(error).__name__}: {reason})", where=path,
                         hint=f"export the module with torch.export.save, {ONNX}") from error  # fmt: skip
    finally:
        told.setLevel(level)
