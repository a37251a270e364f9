"""Profile and sustained latency, with an executor whose times are known."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from paredown.pipeline.device.bench.profile import profile
from paredown.pipeline.device.bench.sustained import ends, plot, sustain
from paredown.pipeline.device.executor import Here
from paredown.pipeline.graph.trace import trace
from paredown.pipeline.lower.integer import quantize
from paredown.pipeline.lower.litert.program import lower_integer
from paredown.pipeline.lower.litert.slices import prefixes
from paredown.targets.devices.programs import Program, Timing
from paredown.targets.host.host import this_machine
from paredown.targets.runners.litert import TensorInfo

SHAPE = (1, 3, 8, 8)
X = np.zeros(SHAPE, np.int8)


class Known:
    """Takes so many milliseconds, or instructions, per operation of a program, and gets hot."""

    def __init__(self, emulated: bool = False) -> None:
        self.machine, self.emulated = this_machine(), emulated
        self.local, self.exact = False, True
        self.clock = 0.0

    def run(self, program: Program, inputs: Any, tick: Any) -> Any:
        raise AssertionError("nothing is scored here")

    def time(
        self, programs: Mapping[str, Program], x: Any, runs: int, memory: bool, tick: Any
    ) -> dict[str, Timing]:
        found = {}
        for name, program in programs.items():
            length = 1 + 2 * len(prefixes(program.data)) ** 2 if program.runtime == "litert" else 1
            ms = length * (1.0 if self.clock < 30 else 1.5)
            self.clock += runs * ms / 1e3
            found[name] = Timing((ms + 1, ms, ms + 2)[:runs] * 5, instructions={"total": length * 1000})
        return found


@pytest.fixture(scope="module")
def program() -> Program:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.LeakyReLU(0.1), nn.Conv2d(4, 2, 1)).eval()
    graph = trace(network, SHAPE)
    ranges = {k: (float(v.min()), float(v.max())) for k, v in graph.run(torch.rand(SHAPE)).items()}
    integer = quantize(graph, ranges, input_range=(0.0, 1.0))
    outputs = tuple(TensorInfo(tuple(integer[name].shape)) for name in integer.outputs)
    return Program("litert", lower_integer(integer).data, TensorInfo(SHAPE), outputs)


@pytest.mark.parametrize("emulated", [False, True])
def test_an_operation_costs_what_it_adds(program: Program, emulated: bool) -> None:
    found = profile(Known(emulated), program, X, runs=3)
    assert [row.operation for row in found.rows] == ["CONV_2D", "LEAKY_RELU", "CONV_2D"]
    unit = 1e-3 if emulated else 1.0
    assert found.unit == ("million instructions" if emulated else "ms")
    assert [row.cost for row in found.rows] == pytest.approx([3 * unit, 6 * unit, 10 * unit])
    assert found.total == pytest.approx(19 * unit) and sum(row.share for row in found.rows) == pytest.approx(
        1
    )


def test_the_profile_of_this_machine_has_every_operation(program: Program) -> None:
    found = profile(Here(), program, X, runs=2)
    assert len(found.rows) == 3 and found.total > 0


def test_heat_shows_between_the_first_and_the_last_fifth(program: Program, tmp_path: Path) -> None:
    executor = Known()
    bursts = sustain(
        executor,
        {"litert": program},
        X,
        1.0,
        lambda: (40 + executor.clock / 2, None),
        now=lambda: executor.clock,
    )
    first, last = ends(bursts, "litert")
    assert last / first == pytest.approx(30.5 / 20, abs=0.1) and bursts[-1].seconds < 60 <= executor.clock
    assert bursts[0].temperature_c < bursts[-1].temperature_c and bursts[0].clock_mhz is None
    plot(bursts, "a board", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
