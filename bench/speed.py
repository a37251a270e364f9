"""int8 against fp32 on the same runtime, interleaved, one thread: `yolov2-tiny-voc` at 416 by default.

    python bench/speed.py [NETWORK] [--runs 30]

Weights are random: time does not depend on them. Prints Markdown, and what the CPU can do with int8.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from record import Table, add_option

from paredown.apps.detector.network import YoloV2
from paredown.pipeline.device.timing import interleaved
from paredown.pipeline.graph.trace import trace
from paredown.pipeline.lower.integer import quantize
from paredown.pipeline.lower.runtimes import RUNTIMES

INT8_FLAGS = ("avx2", "avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm")


def main() -> None:
    """Prints one row per variant."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", nargs="?", default="yolov2-tiny-voc")
    parser.add_argument("--runs", type=int, default=30)
    add_option(parser)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    network = YoloV2.builtin(arguments.network).eval()
    graph = trace(network, (1, 3, network.height, network.width))
    x = torch.rand(1, 3, network.height, network.width)
    ranges = {name: (float(v.min()), float(v.max())) for name, v in graph.run(x).items()}
    integer = quantize(graph, ranges, input_range=(0.0, 1.0))
    codes = integer.input.out.quantize(x.numpy())
    runners = {}
    for name, runtime in RUNTIMES.items():
        runners[f"{name}-fp32"] = (runtime.load(runtime.lower_float(graph).data), x.numpy())
        runners[name] = (runtime.load(runtime.lower_integer(integer).data), codes)
    times = interleaved(runners, arguments.runs, lambda done, total: None)
    flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if "flags" in line.lower())
    has = [flag for flag in INT8_FLAGS if flag in flags.split()]
    print(
        f"{arguments.network} at {network.height}, 1 thread, {arguments.runs} runs; CPU: {', '.join(has)}\n"
    )
    kind = "vnni" if any("vnni" in flag for flag in has) else "avx2" if "avx2" in has else "arm"
    with Table(
        f"speed-{kind}", ("variant", "median ms", "p10", "p90", "faster than its fp32"), arguments.record
    ) as table:
        table.note(
            f"`{arguments.network}` at {network.height}, one thread, {arguments.runs} interleaved runs."
        )
        table.note(f"The processor's int8 instructions: {', '.join(has)}.")
        for name, values in times.items():
            p10, median, p90 = np.percentile(values, [10, 50, 90])
            ratios = np.asarray(times.get(f"{name}-fp32", values)) / np.asarray(values)
            ratio = "" if name.endswith("fp32") else f"{np.median(ratios):.2f}x"
            table.row(name, f"{median:.1f}", f"{p10:.1f}", f"{p90:.1f}", ratio)


if __name__ == "__main__":
    main()
