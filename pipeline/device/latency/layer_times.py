"""What layers take, one by one: here, or on a device behind a transport."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paredown.pipeline.device.executor import Executor
from paredown.pipeline.device.latency.layers import LayerShape, one_layer
from paredown.pipeline.lower.runtimes import Runtime, runtime
from paredown.targets.devices.programs import Program
from paredown.targets.runners.litert import TensorInfo

#: What programs of one runtime take, by key; milliseconds, or millions of instructions.
Times = Callable[[Runtime, Mapping[Any, Program]], dict[Any, float]]

FEWEST, MOST = 11, 101  # runs of each
SECONDS = 2.0  # per chunk, about
CALL_CHAIN = 9
CALL_SIZES = (8, 32)  # side of the inputs, 16 channels, with which a call is timed


class LayerMeasure:
    """Measures layers, through the very path that makes the shipped program.

    Args:
        name: of the runtime.
        times: the runtime and a program and its input by key -> its time, by key.
    """

    def __init__(self, name: str, times: Times) -> None:
        self.runtime, self.times = runtime(name), times
        self._call: tuple[float, float] | None = None

    def __call__(self, shapes: Sequence[LayerShape]) -> dict[LayerShape, float]:
        """Milliseconds of each layer; all are loaded and timed together."""
        programs = {shape: one_layer(shape) for shape in shapes if shape.kind != "input"}
        times = {
            shape: max(ms - self.call(math.prod(shape.inputs[0]), math.prod(shape.output)), 0.0)
            for shape, ms in self._time(programs).items()
        }
        # a call of the whole network: its outputs are small beside its input
        times |= {s: self.call(math.prod(s.output), 0) for s in shapes if s.kind == "input"}
        return times

    def call(self, read: int, written: int) -> float:
        """Milliseconds of a call that reads and writes so many values and does nothing with them."""
        if self._call is None:
            ends = []
            for side in CALL_SIZES:
                shape = (1, 16, side, side)
                layer = LayerShape("leaky_relu", (shape,), shape, (("slope", 0.1),))
                times = self._time({n: one_layer(layer, n) for n in (1, CALL_CHAIN)})
                each = (times[CALL_CHAIN] - times[1]) / (CALL_CHAIN - 1)
                ends.append((2 * math.prod(shape), max(times[1] - max(each, 0.0), 0.0)))
            (small, low), (large, high) = ends
            slope = max((high - low) / (large - small), 0.0)
            self._call = (max(low - slope * small, 0.0), slope)
        return self._call[0] + self._call[1] * (read + written)

    def _time(self, graphs: Mapping[Any, Any]) -> dict[Any, float]:
        """What these programs take."""
        programs = {}
        for key, graph in graphs.items():
            outputs = tuple(TensorInfo(tuple(graph[name].shape)) for name in graph.outputs)
            data = self.runtime.lower_integer(graph).data
            where = f"one {graph.nodes[-1].kind}"
            programs[key] = Program(
                self.runtime.name, data, TensorInfo(tuple(graph.input.shape)), outputs, where=where
            )
        return self.times(self.runtime, programs) if programs else {}


def times_here(kind: Runtime, programs: Mapping[Any, Program]) -> dict[Any, float]:
    """Medians of the run times, in this process, timed in turn."""
    calls = {key: kind.load(p.data, 1, p.where).bound(_sample(p)) for key, p in programs.items()}
    once = sum(min(ms) for ms in _in_turn(calls, 3).values()) / 1e3
    runs = int(min(max(SECONDS / max(once, 1e-6), FEWEST), MOST))
    return {key: float(np.median(ms)) for key, ms in _in_turn(calls, runs).items()}


def times_there(executor: Executor, kind: Runtime, programs: Mapping[Any, Program]) -> dict[Any, float]:
    """Medians of the run times on a device, or millions of instructions."""
    found = {}
    for key, program in programs.items():
        timing = executor.time({"layer": program}, _sample(program), MOST, False, lambda done, total: None)
        found[key] = (
            timing["layer"].million_instructions if executor.emulated else timing["layer"].percentile(50)
        )
    return found


def _sample(program: Program) -> NDArray[np.int8]:
    return np.random.default_rng(0).integers(-128, 128, program.input.shape).astype(np.int8)


def _in_turn(calls: Mapping[Any, Callable[[], object]], runs: int) -> dict[Any, list[float]]:
    """Milliseconds of every call, one after the other, round and round.

    They are the calling thread's own, which does all the work of a program of one thread: what else a busy
    machine does in between would fall on long layers and spare short ones.
    """
    times: dict[Any, list[float]] = {key: [] for key in calls}
    for _ in range(runs):
        for key, call in calls.items():
            start = time.thread_time()
            call()
            times[key].append((time.thread_time() - start) * 1e3)
    return times
