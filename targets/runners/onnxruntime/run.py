"""Runs an .onnx on samples from a file and times one: `python3 -m paredown.targets.runners.onnxruntime.run`.

For a device: numpy and onnxruntime. The same command line, output file and JSON as
`targets/runners/run_litert.py`.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from paredown.targets.errors import InputError
from paredown.targets.runners.onnxruntime.runner import Runner
from paredown.targets.runners.run_litert import Samples, command, peak_rss_kib, run_all, single, times


def run(
    model: Path, inputs: Path, outputs: Path, runs: int, warmup: int, threads: int, marks: bool
) -> dict[str, Any]:
    """Everything the command does but printing its result.

    Returns:
        The JSON document.

    Raises:
        InputError: the model or the inputs are not what they should be.
        DeviceError: there is no onnxruntime, or the outputs cannot be written.
        UsageError: marks with more than one thread.
    """
    single(marks, threads)
    start = time.perf_counter()
    try:
        data = model.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read this file: {error.strerror}", where=model) from error
    runner = Runner(data, threads, model)
    load_ms = (time.perf_counter() - start) * 1e3
    samples = Samples(inputs, runner.input)
    run_all(runner, samples, outputs)
    found = times(runner.bound(next(iter(samples))), runs, warmup, marks)
    return {
        "runtime": "onnxruntime",
        "version": f"onnxruntime {runner.version}",
        "samples": len(samples),
        "load_ms": load_ms,
        "times_ms": found,
        "peak_rss_kib": peak_rss_kib(),
        "threads": threads,
        "input": vars(runner.input),
        "outputs": [vars(output) for output in runner.outputs],
    }


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit status is the errors' own."""
    return command(run, "run_onnxruntime", ".onnx", arguments)


if __name__ == "__main__":
    sys.exit(main())
