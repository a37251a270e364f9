"""Vela, Arm's compiler for Ethos-U: what runs on the NPU, and what that will cost by Vela's own estimate.

PyPI's `ethos-u-vela`, as a process. Its cycles are a prediction for the named system configuration (clock and
memories), never a measurement; of operators that stay on the CPU it knows no cycles at all.
"""

from __future__ import annotations

import csv
import importlib.util
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from paredown.targets.cards.card import Target
from paredown.targets.errors import DeviceError, InputError, UsageError
from paredown.targets.host.host import package_version

CONFIG = "Arm/vela.ini"  # Vela's own file of system configurations
_WARNING = re.compile(r"Warning \(supported operators\) operator: \w+, ofm: '(.*)'\nReason: (.*)\n(.*)")
_ON_CPU = re.compile(r"   CPU: \w+ = (.*) \(outputs \[([\d, ]+)\]\)")
#: What to write instead, by the words of Vela's reason or the operator's name; each proved with Vela 5.2.
INSTEAD = (
    ("DataType Float32", "quantize the program to int8"),
    ("SpaceToDepth", "write it as RESHAPE, TRANSPOSE, RESHAPE, which stay on the NPU"),
)


@dataclass(frozen=True)
class Operator:
    """One operator, as Vela placed it; one of the program's may become several.

    Attributes:
        kind: Vela's name of the program's operator, `Conv2D`.
        name: of the tensor that it makes.
        npu: whether it runs on the NPU.
        cycles: of the NPU, predicted; 0 on the CPU, whose cycles Vela does not know, and where it is fused.
        elements: that it makes on the CPU; 0 on the NPU, and where Vela does not tell.
        reason: why it stays on the CPU, in Vela's words.
    """

    kind: str
    name: str
    npu: bool
    cycles: int
    elements: int = 0
    reason: str = ""

    def line(self) -> str:
        """What to tell of an operator on the CPU: why, what it costs, and what to write instead."""
        words = f"{self.reason} {self.kind}"
        instead = next((text for sign, text in INSTEAD if sign in words), "")
        cost = f"{self.elements:,} elements that the NPU waits for, in cycles that Vela does not count"
        told = f"{self.kind} {self.name} runs on the CPU ({self.reason or 'no reason told'}): {cost}"
        return f"{told}; instead: {instead}" if instead else told


@dataclass(frozen=True)
class Compiled:
    """A program compiled for an Ethos-U; all figures are Vela's predictions.

    Attributes:
        accelerator: the NPU, as on the card.
        system: the system configuration that clock and cycles are of.
        memory_mode: what lies in which memory.
        vela: its version.
        operators: in the order of execution.
        cycles: of one inference, waits for memory counted, CPU operators not.
        inferences_per_second: at that clock, CPU operators not counted; 0 where all are on the CPU.
        macs: multiply-accumulates of one inference on the NPU.
        weight_bytes: encoded for the NPU: zeros and repeated codes shrink it.
        sram_bytes: the most in use at once.
        flash_bytes: of weights and commands off the chip, by Vela's account; `program` is a little larger.
        dram_bytes: in use where the system has DRAM instead of flash.
        program: what the flash has to hold: a .tflite of one or more NPU operators, for LiteRT Micro.
    """

    accelerator: str
    system: str
    memory_mode: str
    vela: str
    operators: tuple[Operator, ...]
    cycles: int
    inferences_per_second: float
    macs: int
    weight_bytes: int
    sram_bytes: int
    flash_bytes: int
    dram_bytes: int
    program: bytes

    @property
    def on_cpu(self) -> tuple[Operator, ...]:
        """The operators that the NPU does not take."""
        return tuple(operator for operator in self.operators if not operator.npu)


def compile_for(card: Target, program: bytes, *, where: object = ".tflite", timeout: float = 600) -> Compiled:
    """Compiles an int8 program for the Ethos-U of a card.

    Args:
        card: with an NPU.
        program: the bytes of a .tflite.
        where: named in errors.
        timeout: seconds.

    Raises:
        UsageError: the card has no NPU.
        DeviceError: Vela is not installed, does not know the card's configuration, cannot place an operator
            it should, or took too long.
        InputError: this is no TFLite model.
    """
    if card.npu is None:
        raise UsageError(f"target {card.name} has no Ethos-U", hint="a card says so under [npu]")
    if importlib.util.find_spec("ethosu") is None:
        raise DeviceError("Vela, the compiler for Ethos-U, is not installed", hint="pip install ethos-u-vela")
    if program[4:8] != b"TFL3":
        raise InputError("not a TFLite model (truncated or damaged?)", where=where)
    with tempfile.TemporaryDirectory(prefix="paredown-vela-") as name:
        folder = Path(name)
        (folder / "program.tflite").write_bytes(program)
        npu = card.npu
        told = _vela(
            ["program.tflite", "--output-dir", ".", "--show-cpu-operations", "--verbose-performance",
             "--config", CONFIG, "--accelerator-config", npu.accelerator, "--system-config", npu.system,
             "--memory-mode", npu.memory_mode],
            folder, where, timeout,
        )  # fmt: skip
        (summary,) = _table(folder / f"program_summary_{npu.system}.csv")
        cycles = round(float(summary["cycles_total"]))
        return Compiled(
            accelerator=npu.accelerator,
            system=npu.system,
            memory_mode=npu.memory_mode,
            vela=package_version("ethos-u-vela"),
            operators=_operators(_table(folder / "program_per-layer.csv"), told),
            cycles=cycles,
            inferences_per_second=float(summary["inferences_per_second"]) if cycles else 0.0,
            macs=int(summary["nn_macs"]),
            weight_bytes=int(summary["total_npu_encoded_weights"]),
            sram_bytes=_bytes(summary["sram_memory_used"]),
            flash_bytes=_bytes(summary["off_chip_flash_memory_used"]),
            dram_bytes=_bytes(summary["dram_memory_used"]),
            program=(folder / "program_vela.tflite").read_bytes(),
        )


def _vela(arguments: Sequence[str], folder: Path, where: object, timeout: float) -> str:
    """Runs Vela; what it printed."""
    command = [sys.executable, "-m", "ethosu.vela", *arguments]
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=timeout
        )
    except subprocess.TimeoutExpired as error:
        raise DeviceError(f"Vela was not done after {timeout:g} s", where=where) from error
    if done.returncode < 0:  # it reads damaged files unchecked
        raise InputError(
            "not a TFLite model that Vela reads (truncated or damaged?)", where=where,
            hint="make it again with `paredown run`",
        )  # fmt: skip
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "rror: " in line] or ["without a word"]
        raise DeviceError(f"Vela fails: {errors[-1].removeprefix('vela: ')}", where=where)
    return done.stdout


def _table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _operators(rows: Sequence[dict[str, str]], told: str) -> tuple[Operator, ...]:
    """The rows of the table per layer, with what Vela told of those on the CPU."""
    reasons = {name: f"{why}; {rule}".removesuffix("; ") for name, why, rule in _WARNING.findall(told)}
    elements = {name: prod(map(int, shape.split(","))) for name, shape in _ON_CPU.findall(told)}
    operators = []
    for row in rows:
        kind, name, cycles = row["Original Operator"], row["Name"], int(row["Op Cycles"])
        if row["Target"] == "NPU":
            operators.append(Operator(kind, name, True, cycles))
        else:
            operators.append(Operator(kind, name, False, 0, elements.get(name, 0), reasons.get(name, "")))
    return tuple(operators)


def _bytes(kib: str) -> int:
    return round(float(kib) * 1024)
