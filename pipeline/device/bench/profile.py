"""Where the time of an inference goes, operation by operation, on a device whose runtime has no profiler.

An operation's share is what the program up to it takes more than the one before
(`pipeline.lower.litert.slices`). Times are the smallest of several runs, since what else a device does only
ever adds. More operations never take less: noise to the contrary is averaged away (isotonic regression). An
emulator's counts of instructions are exact. Our design.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from paredown.pipeline.device.executor import Executor
from paredown.pipeline.lower.litert.slices import prefixes
from paredown.targets.devices.programs import Program


@dataclass(frozen=True)
class Row:
    """One operation.

    Attributes:
        operation: its kind, as TFLite names it.
        name: of the tensor that it makes.
        cost: milliseconds, or millions of instructions.
        share: of the whole.
    """

    operation: str
    name: str
    cost: float
    share: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


@dataclass(frozen=True)
class Profile:
    """A whole program.

    Attributes:
        unit: `ms`, or `million instructions`.
        rows: in running order.
        total: of the last prefix, which is the program itself; its fixed cost of a call is in the first row.
    """

    unit: str
    rows: tuple[Row, ...]
    total: float


def profile(
    executor: Executor,
    program: Program,
    x: NDArray[Any],
    runs: int = 20,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> Profile:
    """Measures every prefix of a LiteRT program.

    Args:
        executor: where.
        program: a .tflite.
        x: a sample, (1, channels, height, width).
        runs: of each prefix.
        tick: prefixes done, of how many.
    """
    slices = prefixes(program.data)
    programs = {
        str(index): Program("litert", part.data, program.input, part.outputs, program.threads, program.where)
        for index, part in enumerate(slices)
    }
    timings = executor.time(programs, x, runs, False, tick)
    found = [timings[name] for name in programs]
    costs = np.array([t.million_instructions if executor.emulated else min(t.times_ms) for t in found])
    rising = isotonic_regression(costs).x
    each, total = np.diff(rising, prepend=0.0), float(rising[-1])
    rows = tuple(
        Row(part.operations[-1], part.names[-1], float(cost), float(cost) / total)
        for part, cost in zip(slices, each, strict=True)
    )
    return Profile("million instructions" if executor.emulated else "ms", rows, total)
