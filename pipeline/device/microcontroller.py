"""A microcontroller as far as this machine knows it: LiteRT Micro's outputs and arena, Vela's predictions.

The interpreter with its reference kernels runs here, so accuracy is what the board's would be with the same
kernels (simulated). What an Ethos-U would take is predicted by Arm's own compiler. Nobody has timed anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paredown.pipeline.report.figures import Figure, Tag
from paredown.targets.cards.card import Target
from paredown.targets.devices.programs import Outputs, Program, Tick, Timing
from paredown.targets.errors import UsageError
from paredown.targets.host.host import package_version, this_machine


class Microcontroller:
    """LiteRT Micro's interpreter in the part of a device; an `Executor`.

    Args:
        card: of the microcontroller.

    Raises:
        UsageError: the card is of none.
    """

    emulated, local, exact = True, False, False

    def __init__(self, card: Target) -> None:
        if card.microcontroller is None:
            raise UsageError(f"target {card.name} is no microcontroller", hint="give the device's address")
        self.card = card
        versions = (("tflite-micro", package_version("tflite-micro")),)
        name = f"{card.name}, LiteRT Micro on this machine"
        self.machine = replace(this_machine(name), versions=versions)

    def run(self, program: Program, inputs: NDArray[Any], tick: Tick) -> Outputs:
        """See `Executor`."""
        from paredown.targets.mcu.tflm import run

        outputs = run(program.data, inputs, where=program.where).outputs
        tick(len(inputs), len(inputs))
        return [tuple(output[index : index + 1] for output in outputs) for index in range(len(inputs))]

    def time(
        self, programs: Mapping[str, Program], x: NDArray[Any], runs: int, memory: bool, tick: Tick
    ) -> dict[str, Timing]:
        """Nothing: no time of a microcontroller is known here."""
        return {name: Timing(()) for name in programs}


@dataclass(frozen=True)
class Footprint:
    """What a program needs of a microcontroller.

    Attributes:
        figures: simulated by LiteRT Micro or predicted by Vela.
        notes: one sentence each.
    """

    figures: tuple[Figure, ...]
    notes: tuple[str, ...]


def footprint(card: Target, program: Program) -> Footprint:
    """Measures arena or SRAM and flash, and checks that they fit.

    Args:
        card: of a microcontroller.
        program: int8, LiteRT.

    Raises:
        DeviceError: it does not fit; the line says by how much. Or a tool is missing.
    """
    from paredown.targets.mcu.memory import fits

    figures, notes, sram, flash = _vela(card, program) if card.npu else _tflm(card, program)
    fits(card, sram, flash)
    return Footprint(tuple(figures), tuple(notes))


def _tflm(card: Target, program: Program) -> tuple[list[Figure], list[str], int, int]:
    from paredown.targets.mcu.tflm import run

    arena = run(program.data, np.zeros(program.input.shape, np.int8), where=program.where).arena
    machine = Microcontroller(card).machine
    flash = len(program.data)
    figures = [
        Figure("micro", program.runtime, metric, value, "B", "simulated", machine)
        for metric, value in (("arena_bytes", arena.bytes), ("flash_bytes", flash))
    ]
    notes = [f"an arena of {arena.bytes / 1024:,.1f} KiB ({arena.activations / 1024:,.1f} for activations)"]
    return figures, notes, arena.bytes, flash


def _vela(card: Target, program: Program) -> tuple[list[Figure], list[str], int, int]:
    from paredown.targets.mcu.vela import compile_for

    made = compile_for(card, program.data, where=program.where)
    machine = replace(
        this_machine(f"{made.accelerator}, {made.system}, {made.memory_mode}"),
        versions=(("ethos-u-vela", made.vela),),
    )
    tag: Tag = "predicted"
    values = {
        "cycles": (made.cycles, "1"), "inferences_per_second": (made.inferences_per_second, "1"),
        "sram_bytes": (made.sram_bytes, "B"), "flash_bytes": (len(made.program), "B"),
        "undelegated_ops": (len(made.on_cpu), "1"),
    }  # fmt: skip
    figures = [Figure("micro", program.runtime, n, v, unit, tag, machine) for n, (v, unit) in values.items()]
    notes = [
        f"Vela predicts {made.cycles:,} cycles, {made.inferences_per_second:,.0f} inferences per second on "
        f"{made.accelerator} ({made.system}); {len(made.on_cpu)} operators stay on the CPU",
        *(operator.line() for operator in made.on_cpu),
    ]
    return figures, notes, made.sram_bytes, len(made.program)
