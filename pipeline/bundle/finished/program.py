"""Finished programs of other tools: what they take and give, by their own runtime's word, and what they do.

Each is looked at and run in a process of its own (`pipeline.bundle.finished.child`): a damaged file may end
it.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paredown.pipeline.bundle.finished.child import EXACT, INPUTS, USUAL
from paredown.targets.errors import DeviceError, InputError

#: Suffix -> runtime, and where in a file its format is written as what.
SUFFIXES = {".tflite": "litert", ".pte": "executorch", ".onnx": "onnxruntime"}
IDENTIFIERS = {"litert": b"TFL3", "executorch": b"ET12"}
FORMATS = {"litert": "a TFLite model", "executorch": "an ExecuTorch program", "onnxruntime": "an ONNX file"}
LARGEST = (1 << 31) - 1  # bytes: the offsets of flatbuffers and protobufs are 32 bits with a sign
TIMEOUT = 600.0  # seconds
AGAIN = "copy it again, or write it again with the tool that made it"
#: What goes in and out as int8, and how much less its codes are.
CODES = {"int8": 0, "uint8": 128}


@dataclass(frozen=True)
class Tensor:
    """An input or output as the outside of our runners has it.

    Attributes:
        name: in the file.
        shape: with a batch of one; NCHW where it has four axes.
        dtype: "int8" (uint8 is this with another zero point) or "float32".
        scale: real = scale * (code - zero_point); None where the file does not say it.
        zero_point: likewise; of float32 1 and 0.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: float | None
    zero_point: int


@dataclass(frozen=True)
class Described:
    """A program.

    Attributes:
        path: of the file.
        runtime: that runs it.
        input: its one input.
        outputs: in order.
        operations: kind -> how many; empty where the runtime does not say.
        states: operations by which a call depends on those before it.
        softmax: whether each output is that of a softmax.
    """

    path: Path
    runtime: str
    input: Tensor
    outputs: tuple[Tensor, ...]
    operations: Mapping[str, int]
    states: tuple[str, ...]
    softmax: bool = False

    @property
    def dtype(self) -> str:
        """Of input and outputs."""
        return self.input.dtype


def runtime_of(path: Path) -> str:
    """The runtime of a finished program.

    Raises:
        InputError: no such file, of another kind, too large, empty.
    """
    runtime = SUFFIXES.get(path.suffix.lower())
    if runtime is None:
        raise InputError(f"not a finished program ({path.suffix or 'no suffix'})", where=path,
                         hint=f"known are {', '.join(SUFFIXES)}")  # fmt: skip
    try:
        if path.is_dir():
            raise InputError("a folder, not a file", where=path, hint=f"name the {path.suffix} in it")
        size = path.stat().st_size
        if size > LARGEST:
            raise InputError(f"{size / 2**30:.1f} GiB; {FORMATS[runtime]} has at most 2", where=path)
        with path.open("rb") as file:
            head = file.read(8)
    except OSError as error:
        raise InputError(f"cannot read this file: {error.strerror}", where=path) from error
    wanted = IDENTIFIERS.get(runtime)
    if not head or (wanted is not None and head[4:8] != wanted):
        found = f"{size} bytes, its identifier is {head[4:8]!r}" if head else "empty"
        raise InputError(f"not {FORMATS[runtime]} ({found})", where=path, hint=AGAIN)
    return runtime


def describe(path: Path) -> Described:
    """What a program takes and gives.

    Raises:
        InputError: it is no program that its runtime loads, or has not one input of int8, uint8 or float32
            and outputs like it, of known sizes and a batch of one.
        DeviceError: its runtime is not installed here.
    """
    runtime = runtime_of(path)
    with tempfile.TemporaryDirectory(prefix="paredown-finished-") as folder:
        told = in_child(path, runtime, Path(folder))
    if len(told["inputs"]) != 1 or not told["outputs"]:
        names = ", ".join(each["name"] for each in told["inputs"])
        what = f"has {len(told['inputs'])} inputs ({names}) and {len(told['outputs'])} outputs"
        raise InputError(f"{what}, not one input", where=path, hint="make the others constants")
    source, *outputs = (_tensor(each, path, runtime) for each in (*told["inputs"], *told["outputs"]))
    for each in outputs:
        if each.dtype != source.dtype:
            what = f"takes {source.dtype} and gives {each.dtype} ({each.name})"
            raise InputError(what, where=path, hint="convert it with one type of input and output")
    states, softmax = tuple(told["states"]), bool(told.get("softmax"))
    return Described(path, runtime, source, tuple(outputs), told["operations"], states, softmax)


def _tensor(told: Mapping[str, Any], path: Path, runtime: str) -> Tensor:
    """A tensor, checked."""
    name, dtype, shape = told["name"], told["dtype"], tuple(told["shape"])
    written = "x".join("?" if axis in told["open"] else str(size) for axis, size in enumerate(shape))
    # An open batch of TFLite is one unless somebody changes it.
    if told["open"] and not (runtime == "litert" and told["open"] == [0] and shape[0] == 1):
        raise InputError(f"the size of {name} is open ({written})", where=path,
                         hint="export it for one size, with a batch of 1")  # fmt: skip
    if dtype not in (*CODES, "float32"):
        raise InputError(f"{name} is {dtype}, not int8, uint8 or float32", where=path)
    if not shape or shape[0] != 1 or math.prod(shape) < 1:
        raise InputError(f"{name} is {written or 'one number'}, without a batch of 1", where=path,
                         hint="export it with a batch of 1")  # fmt: skip
    if runtime == "litert" and len(shape) == 4:
        shape = (1, shape[3], shape[1], shape[2])
    if dtype == "float32":
        return Tensor(name, shape, dtype, 1.0, 0)
    if len(told["scales"]) > 1:
        raise InputError(f"{name} has a scale per channel", where=path, hint="convert it with one scale")
    scale = told["scales"][0] if told["scales"] and told["scales"][0] > 0 else None
    zero = told["zero_points"][0] if scale is not None else 0
    return Tensor(name, shape, "int8", scale, zero - CODES[dtype])


def scaled(program: Described, like: Sequence[Tensor]) -> Described:
    """A program whose codes have these scales, its input's first, where its file does not say them.

    Raises:
        InputError: it has other tensors, or nobody says them.
    """
    ours = (program.input, *program.outputs)
    if all(each.scale is not None for each in ours):
        return program
    if [each.shape for each in ours] != [each.shape for each in like] or any(e.scale is None for e in like):
        raise InputError(
            f"{FORMATS[program.runtime]} does not say the scales of its int8 codes", where=program.path,
            hint="give its .tflite too, or `input` and `outputs` in the file of --preprocess",
        )  # fmt: skip
    source, *outputs = (
        replace(each, scale=other.scale, zero_point=other.zero_point)
        for each, other in zip(ours, like, strict=True)
    )
    return replace(program, input=source, outputs=tuple(outputs))


@dataclass(frozen=True)
class Ran:
    """What a program gave for some inputs, each output (n, ...), in the program's own dtype.

    Attributes:
        usual: with the kernels that every device uses.
        exact: with the reference kernels of TFLite, or with ONNX Runtime kept from saturating; those of
            `usual` where the runtime has one kind alone.
    """

    usual: tuple[NDArray[Any], ...]
    exact: tuple[NDArray[Any], ...]


def run(program: Described, inputs: NDArray[Any]) -> Ran:
    """Runs a program on inputs, one after the other from a fresh start.

    Args:
        program: described.
        inputs: (n, ...) of its dtype.

    Raises:
        InputError: it stops on the way, or gives other shapes than it says.
    """
    with tempfile.TemporaryDirectory(prefix="paredown-finished-") as name:
        folder = Path(name)
        np.save(folder / INPUTS, inputs)
        counts = in_child(program.path, program.runtime, folder)["outputs"]
        ways = {
            way: tuple(np.load(folder / f"{way}{place}.npy") for place in range(count))
            for way, count in counts.items()
        }
    for place, (found, said) in enumerate(zip(ways[USUAL], program.outputs, strict=True)):
        if found.shape[1:] != said.shape:
            what = f"output {place} ({said.name}) is {found.shape[1:]}, and {said.shape} by the file"
            raise InputError(what, where=program.path, hint="export it with outputs of one size")
    made = {way: tuple(each[:, 0] for each in found) for way, found in ways.items()}
    return Ran(made[USUAL], made.get(EXACT, made[USUAL]))


def in_child(
    path: Path, runtime: str, folder: Path, ways: Sequence[str] = (USUAL, EXACT), *, where: object = None
) -> dict[str, Any]:
    """What the child says; its death is a line.

    Args:
        path: of the program.
        runtime: that runs it.
        folder: of the child, perhaps with inputs.
        ways: in which the program runs on these.
        where: names the program in errors, instead of its path.

    Raises:
        InputError: it does not load or run, ended the child, or is not done in time.
        DeviceError: its runtime is not installed here.
    """
    where = where or path
    command = [
        sys.executable, "-P", "-m", "paredown.pipeline.bundle.finished.child",
        str(path.absolute()), runtime, str(folder), *ways,
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT)
    except subprocess.TimeoutExpired as error:
        raise InputError(f"not done after {TIMEOUT:g} s", where=where, hint=AGAIN) from error
    try:
        told: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        ended = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        what = f"its runtime ({runtime}) ended by {ended}: damaged, or not for this release"
        raise InputError(what, where=where, hint=AGAIN) from None
    if done.returncode == DeviceError.exit_code:
        raise DeviceError(told["line"])
    if "error" in told:
        raise InputError(told["error"], where=where, hint=AGAIN)
    return told
