"""Latency and memory on this machine, side by side in one run.

All variants are loaded at once and timed in turn, so that whatever else the machine does hits all of them
alike. Memory is the peak of another process.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paredown.pipeline.lower.runtimes import Runner, runtime
from paredown.targets.errors import DeviceError

WARM_UP = 2
ANSWER = "memory_mib "
NICE = 15  # of a process whose time is not taken


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
    """See `Peaks.measure`."""
    peaks = Peaks([name for name, *_ in programs.values()])
    try:
        return peaks.measure(programs)
    finally:
        peaks.close()


class Peaks:
    """Processes that tell the peak memory of programs, one for each runtime.

    They import at once what their runtime needs, which takes seconds, and wait: whoever knows early that
    there will be programs starts them early. They are nice.

    Args:
        runtimes: names.
    """

    def __init__(self, runtimes: Iterable[str]) -> None:
        self._waiting = {name: self._start(name) for name in dict.fromkeys(runtimes)}

    @staticmethod
    def _start(name: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "paredown.pipeline.device.timing", name], env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def measure(self, programs: Mapping[str, tuple[str, Path, NDArray[np.generic]]]) -> dict[str, float]:
        """Peak resident memory, in MiB, of a process that loads a program and runs it once.

        The interpreter and its imports are part of it: on ExecuTorch that includes torch, which the Python
        binding needs and a device's C++ runner does not. Programs of one runtime share a process: between
        two of them all that is free is given back, and the peak is reset.

        Args:
            programs: variant -> runtime, program file, an input to take shape and dtype from.

        Raises:
            DeviceError: a process fails.
        """
        peaks: dict[str, float] = {}
        while left := [variant for variant in programs if variant not in peaks]:
            together: dict[str, list[str]] = {}
            for variant in left:
                together.setdefault(programs[variant][0], []).append(variant)
            for name, variants in together.items():
                self._ask(name, [programs[variant] for variant in variants])
            for name, variants in together.items():
                peaks |= self._told(name, variants)
        return {variant: peaks[variant] for variant in programs}

    def _ask(self, name: str, programs: Sequence[tuple[str, Path, NDArray[np.generic]]]) -> None:
        if name not in self._waiting:
            self._waiting[name] = self._start(name)
        process = self._waiting[name]
        asked = [{"program": str(path), "shape": x.shape, "dtype": str(x.dtype)} for _, path, x in programs]
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # how it ended is told by its exit code
            process.stdin.write(f"{json.dumps(asked)}\n")
            process.stdin.flush()

    def _told(self, name: str, variants: Sequence[str]) -> dict[str, float]:
        """The peaks of at least the first variant: some kernels reset none."""
        process = self._waiting[name]
        out, errors = process.communicate()
        del self._waiting[name]
        told = [line for line in out.splitlines() if line.startswith(ANSWER)]
        if process.returncode != 0 or not told:
            last = (errors.strip().splitlines() or ["no message"])[-1]
            failed = variants[min(len(told), len(variants) - 1)]
            raise DeviceError(f"the {failed} program fails in a process of its own: {last}")
        values = (float(line.removeprefix(ANSWER)) for line in told)
        return dict(zip(variants, values, strict=False))

    def close(self) -> None:
        """Ends those that were not asked, or are still at work."""
        for process in self._waiting.values():
            process.kill()
            process.communicate()
        self._waiting = {}


def _measure_memory(name: str) -> None:
    """Prints the peak of each program that it is asked for, as long as there are peaks of their own."""
    with contextlib.suppress(OSError):
        os.nice(NICE)
    runtime(name).warm()
    for number, asked in enumerate(json.loads(sys.stdin.readline() or "[]")):
        if number and not _reset_peak():
            return
        runner = runtime(name).load(Path(asked["program"]).read_bytes(), 1, asked["program"])
        runner(np.zeros(asked["shape"], asked["dtype"]))
        # VmHWM, not getrusage: the latter also remembers the parent from before exec.
        status = Path("/proc/self/status").read_text()
        peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
        print(f"{ANSWER}{peak / 1024:.1f}", flush=True)
        del runner


def _reset_peak() -> bool:
    """Gives back what is free and forgets the peak; whether the kernel does that."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return False
    return True


if __name__ == "__main__":
    _measure_memory(sys.argv[1])
