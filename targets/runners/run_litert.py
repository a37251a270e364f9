"""Runs a .tflite on samples from a file and times one: `python3 -m paredown.targets.runners.run_litert`.

For a device: numpy and a TFLite interpreter. The same command line, output file and JSON as
`targets/runners/executorch/run.cpp`.

    IN.bin     raw samples one behind the other, NCHW, in the model's own dtype
    OUT.bin    for every sample all outputs one behind the other, likewise
    stdout     one JSON document: what ran, the times of the first sample, the memory it took
    stderr     every second how many samples are done; or the one line of an error
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from paredown.targets.errors import DeviceError, InputError, ParedownError, UsageError
from paredown.targets.runners.litert import Runner, TensorInfo

#: What the instruction-count plugin (targets/emulated/instructions.c) looks for; to a kernel, files that are
#: not open. Each pair begins and ends a bracket.
EMPTY, INFERENCE = (0x7E570000, 0x7E570001), (0x7E570002, 0x7E570003)
EMPTIES = 20  # brackets of nothing: what they cost when the Python interpreter has specialised them


class Loaded(Protocol):
    """A runner of one input."""

    def __call__(self, x: NDArray[Any], /) -> tuple[NDArray[Any], ...]:
        """Runs one sample."""


class Samples:
    """A file of raw samples, one in memory at a time: a board has little, and a thousand images are not.

    Raises:
        InputError: it cannot be read, or is no whole number of samples.
    """

    def __init__(self, path: Path, tensor: TensorInfo) -> None:
        self._path = path
        self._tensor = tensor
        try:
            size = path.stat().st_size
        except OSError as error:
            raise InputError(f"cannot read this file: {error.strerror}", where=path) from error
        if size == 0 or size % tensor.bytes:
            raise InputError(f"{size} bytes are no whole samples of {tensor.bytes} bytes", where=path)
        self._count = size // tensor.bytes

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[NDArray[Any]]:
        with self._path.open("rb") as file:
            for index in range(self._count):
                data = file.read(self._tensor.bytes)
                if len(data) < self._tensor.bytes:
                    raise InputError(f"cannot read sample {index}", where=self._path)
                yield np.frombuffer(data, self._tensor.dtype).reshape(self._tensor.shape)


def run_all(runner: Loaded, samples: Samples, target: Path) -> None:
    """Every sample through the model; the file of outputs appears under its name when it is whole.

    Raises:
        InputError: the model stops on the way.
        DeviceError: the file cannot be written.
    """
    part = target.with_name(f"{target.name}.part")
    told = time.monotonic()
    try:
        with part.open("wb") as file:
            for done, sample in enumerate(samples, start=1):
                for output in runner(sample):
                    file.write(output.tobytes())
                now = time.monotonic()
                if now - told >= 1:
                    told = now
                    print(f"{done}/{len(samples)}", file=sys.stderr, flush=True)
        part.replace(target)
    except OSError as error:
        raise DeviceError(f"cannot write this file: {error.strerror}", where=target) from error


def times(call: Callable[[], object], runs: int, warmup: int, marks: bool) -> list[float]:
    """Times a call; with marks, for the instruction-count plugin to count it too.

    Returns:
        Milliseconds of each run after the warm-up.
    """
    for _ in range(warmup):
        call()
    if marks:
        for _ in range(EMPTIES):
            _bracketed(_nothing, *EMPTY)
    found = []
    for _ in range(runs):
        start = time.perf_counter()
        if marks:
            _bracketed(call, *INFERENCE)
        else:
            call()
        found.append((time.perf_counter() - start) * 1e3)
    return found


def _nothing() -> None:
    pass


def _bracketed(call: Callable[[], object], begin: int, end: int) -> None:
    os.isatty(begin)
    call()
    os.isatty(end)


def peak_rss_kib() -> int:
    """The most memory that this process had, in KiB.

    VmHWM and not ru_maxrss, which starts with the peak of the process that started this one.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class Opened(Loaded, Protocol):
    """A runner of a program from a file."""

    @property
    def input(self) -> TensorInfo:
        """What it takes."""

    @property
    def outputs(self) -> Sequence[TensorInfo]:
        """What it gives."""

    @property
    def package(self) -> str:
        """Name and version of what runs it."""

    def bound(self, x: NDArray[Any], /) -> Callable[[], object]:
        """A call with its input in place, for timing."""


def run(
    runtime: str, opened: Callable[[bytes, int, Path], Opened], model: Path, inputs: Path, outputs: Path,
    runs: int, warmup: int, threads: int, marks: bool,
) -> dict[str, Any]:  # fmt: skip
    """Everything the command does but printing its result.

    Args:
        runtime: its name.
        opened: the program's bytes, threads and file to what runs it.
        model: the program.
        inputs: raw samples.
        outputs: where the outputs go.
        runs: timed runs of the first sample.
        warmup: runs before those.
        threads: of the runtime.
        marks: whether timed runs are marked.

    Returns:
        The JSON document.

    Raises:
        InputError: the model or the inputs are not what they should be.
        DeviceError: there is no interpreter, or the outputs cannot be written.
        UsageError: marks with more than one thread.
    """
    if marks and threads != 1:
        raise UsageError("--marks needs --threads 1: several threads wait for each other, never twice alike")
    start = time.perf_counter()
    try:
        data = model.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read this file: {error.strerror}", where=model) from error
    runner = opened(data, threads, model)
    load_ms = (time.perf_counter() - start) * 1e3
    samples = Samples(inputs, runner.input)
    run_all(runner, samples, outputs)
    found = times(runner.bound(next(iter(samples))), runs, warmup, marks)
    return {
        "runtime": runtime,
        "version": runner.package,
        "samples": len(samples),
        "load_ms": load_ms,
        "times_ms": found,
        "peak_rss_kib": peak_rss_kib(),
        "threads": threads,
        "input": vars(runner.input),
        "outputs": [vars(output) for output in runner.outputs],
    }


def _number(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"`{text}` is not a number from {least} on")
        return int(text)

    return number


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit status is the errors' own."""
    return command("litert", Runner, ".tflite", arguments)


def command(
    runtime: str,
    opened: Callable[[bytes, int, Path], Opened],
    suffix: str,
    arguments: list[str] | None = None,
) -> int:
    """The command line of a runner.

    Args:
        runtime: its name.
        opened: see `run`.
        suffix: of its programs.
        arguments: those of the process where there are none.
    """
    parser = argparse.ArgumentParser(
        prog=f"run_{runtime}", description=f"Runs a {suffix} on samples from a file."
    )
    parser.add_argument("model", type=Path, help=f"the {suffix}")
    parser.add_argument("--inputs", type=Path, required=True, help="raw samples")
    parser.add_argument("--outputs", type=Path, required=True, help="where the outputs go")
    parser.add_argument("--runs", type=_number(0), default=10, help="timed runs of the first sample")
    parser.add_argument("--warmup", type=_number(0), default=1, help="runs before those")
    parser.add_argument("--threads", type=_number(1), default=1, help="of the runtime")
    parser.add_argument("--marks", action="store_true", help="mark each timed run for the count plugin")
    try:
        print(json.dumps(run(runtime, opened, **vars(parser.parse_args(arguments)))))
    except ParedownError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
