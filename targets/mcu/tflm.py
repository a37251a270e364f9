"""LiteRT Micro, the interpreter of microcontrollers, on this machine: accuracy, and a program's arena.

PyPI's `tflite-micro` is the interpreter itself with its reference kernels. It works in a process of its own
(`targets.mcu.tflm_process`), because an arena too small for it, or a damaged program, ends the process.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paredown.targets.errors import DeviceError, InputError
from paredown.targets.mcu.memory import kib
from paredown.targets.runners.litert import signed

ENOUGH = 1 << 28  # bytes of arena to measure in; no microcontroller has as much
#: LiteRT Micro's own words, where it refuses a program.
_UNKNOWN = re.compile(r"Didn't find op for builtin opcode '(\w+)'")
_REFUSED = re.compile(r"(.*)\nNode (\w+) \(number (\d+)\) failed to (?:prepare|invoke)")
_KERNEL = re.compile(r"^\S+\.cc:?\d* ")


@dataclass(frozen=True)
class Arena:
    """What a program needs of RAM beside its own bytes, as LiteRT Micro's allocator reports it.

    Attributes:
        bytes: of the smallest arena that it runs in: 16 less, and it does not start.
        activations: of these, for tensors; the same on a microcontroller.
        persistent: the rest, for its own records; less on a 32-bit microcontroller, whose pointers are short.
    """

    bytes: int
    activations: int
    persistent: int


@dataclass(frozen=True)
class Ran:
    """What LiteRT Micro made of some inputs.

    Attributes:
        outputs: int8, one array per output of the program, (n, channels, height, width) or (n, features).
        arena: what it needed.
    """

    outputs: tuple[NDArray[np.int8], ...]
    arena: Arena


def run(
    program: bytes, inputs: NDArray[np.int8], arena_bytes: int = ENOUGH, *, where: object = ".tflite",
    timeout: float = 600,
) -> Ran:  # fmt: skip
    """Runs an int8 program in LiteRT Micro's interpreter, one input after the other.

    Args:
        program: the bytes of a .tflite with one input.
        inputs: int8 codes, (n, channels, height, width) or (n, features).
        arena_bytes: RAM that the device gives the interpreter.
        where: named in errors.
        timeout: seconds.

    Raises:
        DeviceError: the program does not fit into the arena (the line says by how much), it has an operator
            that LiteRT Micro has not (the line names it), the interpreter is not installed, or took too long.
        InputError: this is no program, or not one for these inputs.
    """
    if importlib.util.find_spec("tflite_micro") is None:
        raise DeviceError("LiteRT Micro's interpreter is not installed", hint="pip install tflite-micro")
    if program[4:8] != b"TFL3":
        raise InputError("not a TFLite model (truncated or damaged?)", where=where)
    if not len(inputs):
        raise InputError("no inputs to run it on", where=where)
    with tempfile.TemporaryDirectory(prefix="paredown-tflm-") as name:
        folder = Path(name)
        (folder / "program.tflite").write_bytes(program)
        np.save(folder / "inputs.npy", inputs.transpose(0, 2, 3, 1) if inputs.ndim == 4 else inputs)
        done = _process(folder, arena_bytes, timeout)
        if done.returncode == 0:
            return _read(folder, done.stdout)
        if arena_bytes < ENOUGH:
            roomy = _process(folder, ENOUGH, timeout)
            if roomy.returncode == 0:
                raise _too_small(_read(folder, roomy.stdout).arena, arena_bytes, where)
            done = roomy
        raise _refusal(done, where)


def _process(folder: Path, arena_bytes: int, timeout: float) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "paredown.targets.mcu.tflm_process", str(folder), str(arena_bytes)]
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=timeout)
    except subprocess.TimeoutExpired as error:
        raise DeviceError(f"LiteRT Micro was not done after {timeout:g} s", hint="give it less") from error


def _read(folder: Path, report: str) -> Ran:
    facts: dict[str, Any] = json.loads(report)
    arena = Arena(facts["total"], facts["head"], facts["tail"])
    loaded = [np.load(folder / f"output{index}.npy") for index in range(facts["outputs"])]
    outputs = [signed(o) if o.dtype == np.uint8 else o for o in loaded]
    nchw = (np.ascontiguousarray(o.transpose(0, 3, 1, 2)) if o.ndim == 4 else o for o in outputs)
    return Ran(tuple(nchw), arena)


def _too_small(arena: Arena, given: int, where: object) -> DeviceError:
    return DeviceError(
        f"needs an arena of {kib(arena.bytes)} ({kib(arena.activations)} of it for activations), "
        f"{kib(arena.bytes - given)} more than there is",
        where=where, hint="prune channels, or take a smaller input",
    )  # fmt: skip


def _refusal(done: subprocess.CompletedProcess[str], where: object) -> DeviceError | InputError:
    """Why it did not run, in one line."""
    if unknown := _UNKNOWN.search(done.stderr):
        return DeviceError(
            f"LiteRT Micro has no operator {unknown[1]}", where=where, hint="lower the network without it"
        )
    if refused := _REFUSED.search(done.stderr):
        reason = _KERNEL.sub("", refused[1]).strip()
        return DeviceError(
            f"LiteRT Micro cannot execute {refused[2]} (operator {refused[3]}): {reason}", where=where
        )
    last = done.stderr.strip().splitlines()[-1:] or [f"ended by signal {-done.returncode}"]
    return InputError(
        f"no program that LiteRT Micro runs on these inputs: {last[0]}", where=where,
        hint="make it again with `paredown run`",
    )  # fmt: skip
