"""A stranger's program runs once in a process of its own before this process loads it.

Runtimes read the offsets of a file unchecked: a damaged program whose hashes were made anew can end the
process that loads it. Programs do the same for every input, so that one run stands for all. What has run is
noted in the cache, by its bytes and the runtime's version, and is not run apart again.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import tempfile
from pathlib import Path

import numpy as np

from paredown.pipeline.bundle.finished.child import INPUTS, USUAL
from paredown.pipeline.bundle.finished.program import in_child
from paredown.pipeline.lower.runtimes import runtime
from paredown.targets.devices.programs import Program
from paredown.targets.host.cache import cache_folder


def run_apart(program: Program) -> None:
    """Runs a program on zeros in a process of its own, unless it has run here before.

    Raises:
        InputError: it does not load or run, or ended its process.
        DeviceError: its runtime is not installed here.
    """
    noted = cache_folder() / "ran" / _name(program)
    if noted.exists():
        return
    with tempfile.TemporaryDirectory(prefix="paredown-apart-") as folder:
        path = Path(folder) / program.file
        path.write_bytes(program.data)
        np.save(Path(folder) / INPUTS, np.zeros(program.input.shape, program.input.dtype))
        in_child(path, program.runtime, Path(folder), (USUAL,), where=program.where)
    with contextlib.suppress(OSError):  # without a cache it runs apart every time
        noted.parent.mkdir(parents=True, exist_ok=True)
        noted.touch()


def _name(program: Program) -> str:
    package = runtime(program.runtime).package
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # another build of it, or none: the child says which
        version = "0"
    return f"{package}-{version}-{hashlib.sha256(program.data).hexdigest()}"
