"""Latency and memory on this machine, side by side in one run.

All variants are loaded at once and timed in turn, so that whatever else the machine does hits all of them
alike. Memory is the peak of a process of its own per variant.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paredown.pipeline.lower.runtimes import Runner, runtime
from paredown.targets.errors import DeviceError

WARM_UP = 2


def interleaved(
    runners: Mapping[str, tuple[Runner, NDArray[np.generic]]], runs: int, tick: Callable[[int, int], None]
) -> dict[str, list[float]]:
    """Times every variant `runs` times, one after the other, round and round.

    Args:
        runners: variant -> a loaded program and one input for it.
        runs: how many times each.
        tick: progress.

    Returns:
        Variant -> milliseconds of each run, in order.
    """
    calls = {name: runner.bound(x) for name, (runner, x) in runners.items()}
    for call in calls.values():
        for _ in range(WARM_UP):
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for done in range(runs):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append((time.perf_counter() - start) * 1e3)
        tick(done + 1, runs)
    return times


class Eager:
    """The original network as torch runs it, one operation after the other.

    Args:
        network: a `torch.nn.Module` in evaluation mode.
        threads: of torch, which are those of the whole process.
    """

    def __init__(self, network: Any, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.network = network

    def __call__(self, x: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        """Runs one float32 input, (1, channels, height, width)."""
        outputs = self._run(x)()
        return tuple(output.numpy() for output in outputs)

    def bound(self, x: NDArray[Any]) -> Callable[[], object]:
        """A call with its input in place, for timing."""
        return self._run(x)

    def _run(self, x: NDArray[Any]) -> Callable[[], Any]:
        import torch

        tensor = torch.from_numpy(x)

        def call() -> Any:
            with torch.inference_mode():
                return self.network(tensor)

        return call


def peak_memory(programs: Mapping[str, tuple[str, Path, NDArray[np.generic]]]) -> dict[str, float]:
    """Peak resident memory, in MiB, of a new process per program that loads it and runs it once.

    The interpreter and its imports are part of it: on ExecuTorch that includes torch, which the Python
    binding needs and a device's C++ runner does not.

    Args:
        programs: variant -> runtime, program file, an input to take shape and dtype from.

    Raises:
        DeviceError: a process fails.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    started = {}
    for variant, (name, program, x) in programs.items():
        asked = {"runtime": name, "program": str(program), "shape": x.shape, "dtype": str(x.dtype)}
        started[variant] = subprocess.Popen(
            [sys.executable, "-P", "-m", "paredown.pipeline.device.timing", json.dumps(asked)],
            env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
    peaks = {}
    try:
        for variant, process in started.items():
            out, errors = process.communicate()
            if process.returncode != 0:
                last = (errors.strip().splitlines() or ["no message"])[-1]
                raise DeviceError(f"the {variant} program fails in a process of its own: {last}")
            peaks[variant] = float(json.loads(out.splitlines()[-1])["memory_mib"])
    finally:
        for process in started.values():  # nothing to do unless we were interrupted or one failed
            process.kill()
            process.wait()
    return peaks


def _measure_memory(arguments: str) -> None:
    asked = json.loads(arguments)
    runner = runtime(asked["runtime"]).load(Path(asked["program"]).read_bytes(), 1, asked["program"])
    runner(np.zeros(asked["shape"], asked["dtype"]))
    # VmHWM, not getrusage: the latter also remembers the parent from before exec.
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    print(json.dumps({"memory_mib": round(peak / 1024, 1)}))


if __name__ == "__main__":
    _measure_memory(sys.argv[1])
