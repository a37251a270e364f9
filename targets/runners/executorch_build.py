"""Builds the ExecuTorch runner: `python -m paredown.targets.runners.executorch_build ARCH`.

C++ sources of ours against the shared libraries of the ExecuTorch wheel, which need no torch: this
environment's own wheel for this machine, the wheel for Linux on Arm for a board.
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import shutil
import sys
import tempfile
import zipfile
from importlib import metadata
from pathlib import Path

from paredown.targets.errors import DeviceError, ParedownError
from paredown.targets.host.cache import cache_folder, key_of, made_once
from paredown.targets.host.tools import output_of, tool

SOURCE = Path(__file__).with_name("executorch") / "run.cpp"
#: Runs language models.
LANGUAGE = Path(__file__).with_name("executorch") / "language.cpp"
#: What they include.
HEADERS = tuple(
    Path(__file__).with_name("executorch") / f"{name}.h"
    for name in ("runner", "operators", "kernel", "team", "linear", "attention")
)
#: The wheel for a foreign architecture with its sha256, in pip's words.
WHEELS = Path(__file__).with_name("executorch") / "wheels.txt"
LIBRARIES = (
    "executorch", "executorch_kernels_optimized", "executorch_kernels_quantized",
    "executorch_backend_xnnpack", "executorch_threadpool",
)  # fmt: skip
FLAGS = ("-std=c++20", "-O2", "-s", "-DC10_USING_CUSTOM_GENERATED_MACROS")
#: The kernels and the delegate register themselves when they are loaded: nothing refers to them.
LINK = ("-Wl,--no-as-needed", "-Wl,--allow-shlib-undefined", "-Wl,-rpath,$ORIGIN/lib")
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux2014")


def build(arch: str, cache: Path) -> Path:
    """A folder to copy to a device: programs `run` and `language`, the libraries they need in `lib`.

    Args:
        arch: "x86_64", "aarch64", or "native".
        cache: a folder to keep it in; the same source, compiler and wheel are built once.

    Raises:
        DeviceError: there is no compiler or no wheel for this architecture, or one of them fails.
    """
    arch = platform.machine() if arch == "native" else arch
    compiler = _compiler(arch)
    version = output_of([compiler, "-dumpfullversion"], "asking the compiler for its version").strip()
    executorch = _version()
    sources = b"".join(path.read_bytes() for path in (SOURCE, LANGUAGE, *HEADERS))
    key = key_of(sources, arch, version, executorch, repr((FLAGS, LINK, LIBRARIES)))

    def make(folder: Path) -> None:
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            _compile(compiler, executorch, _wheel(arch, Path(scratch)), folder)

    return made_once(cache / "executorch" / f"{arch}-{executorch}-{key}", make)


def _version() -> str:
    try:
        return metadata.version("executorch")
    except metadata.PackageNotFoundError:
        raise DeviceError("executorch is not installed", hint="pip install paredown") from None


def _compiler(arch: str) -> str:
    if arch == platform.machine():
        return tool("g++", "g++")
    return tool(f"{arch}-linux-gnu-g++", f"g++-{arch.replace('_', '-')}-linux-gnu")


def _wheel(arch: str, scratch: Path) -> Path:
    """The package's folder, with `include` and `lib`: the installed one, or a downloaded one in `scratch`."""
    if arch == platform.machine():
        spec = importlib.util.find_spec("executorch")
        if spec is None or not spec.submodule_search_locations:
            raise DeviceError("executorch is not installed", hint="pip install paredown")
        # a folder of the same name on the path is a part of the package for Python, and has no libraries
        places = [Path(place) for place in spec.submodule_search_locations]
        return next((place for place in places if (place / "lib").is_dir()), places[0])
    platforms = [word for name in PLATFORMS for word in ("--platform", f"{name}_{arch}")]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--require-hashes", "--requirement", str(WHEELS), "--dest", str(scratch)]
    command += ["--python-version", "3.11", "--implementation", "cp", *platforms]
    output_of(command, f"getting the wheel for {arch}")
    with zipfile.ZipFile(next(scratch.glob("*.whl"))) as wheel:
        wanted = ("executorch/include/", "executorch/lib/")
        wheel.extractall(scratch, [name for name in wheel.namelist() if name.startswith(wanted)])
    return scratch / "executorch"


def _compile(compiler: str, version: str, package: Path, folder: Path) -> None:
    libraries = [package / "lib" / f"lib{name}.so" for name in LIBRARIES]
    (folder / "lib").mkdir()
    for library in libraries:
        shutil.copy(library, folder / "lib")
    include = package / "include"
    c10 = include / "executorch" / "runtime" / "core" / "portable_type" / "c10"
    command = [compiler, *FLAGS, f'-DEXECUTORCH_VERSION="{version}"', f"-isystem{include}", f"-isystem{c10}"]
    for source in (SOURCE, LANGUAGE):
        program = folder / source.stem
        output_of([*command, source, "-o", program, *LINK, *libraries], "building the ExecuTorch runner")


def main(arguments: list[str] | None = None) -> int:
    """Builds it into the cache and prints where it is."""
    parser = argparse.ArgumentParser(description="Builds the ExecuTorch runner.")
    parser.add_argument("arch", nargs="?", default="native", help="x86_64, aarch64 or native")
    try:
        print(build(parser.parse_args(arguments).arch, cache_folder()))
    except ParedownError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
