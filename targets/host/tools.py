"""Programs and packages that only some commands need: where they are, or what brings them."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from paredown.targets.errors import DeviceError

#: Package -> the extra of paredown that brings it.
EXTRAS = {
    "matplotlib": "charts", "distributed": "dask", "gguf": "gguf", "h5py": "keras",
    "onnxruntime": "onnxruntime", "segno": "phone", "s3fs": "s3",
}  # fmt: skip


def lacks(package: str, what: str) -> str:
    """What is missing without a package, and how to get it; empty where it is installed.

    Args:
        package: of `EXTRAS`.
        what: needs it, to the user.
    """
    if importlib.util.find_spec(package) is not None:
        return ""
    return f"{what} needs {package}, which is not installed; pip install 'paredown[{EXTRAS[package]}]'"


def need(package: str, what: str) -> None:
    """Refuses what a package is missing for.

    Raises:
        DeviceError: this machine has no such package.
    """
    if line := lacks(package, what):
        raise DeviceError(line)


def tool(name: str, package: str) -> str:
    """The absolute path of a program.

    Args:
        name: of the program.
        package: Debian's and Ubuntu's package that has it.

    Raises:
        DeviceError: it is not installed; the line names the package.
    """
    path = shutil.which(name)
    if path is None:
        raise DeviceError(f"`{name}` is not installed", hint=f"apt-get install {package}")
    return path


def output_of(command: Sequence[str | Path], what: str, cwd: Path | None = None) -> str:
    """Runs one of them to its end.

    Args:
        command: program and arguments.
        what: it is for, to the user.
        cwd: where it runs.

    Returns:
        Its standard output.

    Raises:
        DeviceError: it fails; the line has the last one of its own.
    """
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, errors="replace")
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise DeviceError(f"{what} failed: {lines[-1]}", where=Path(command[0]).name)
    return done.stdout
