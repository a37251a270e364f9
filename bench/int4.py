"""Weights in four bits in the program against eight, on both runtimes: bytes, time, and whether it is equal.

    python bench/int4.py --runs 300

What it prints decides `int4` on a target's card. Prints Markdown; times are interleaved medians, one thread.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from record import Table, add_option
from torch import nn

from paredown.pipeline.compress.grids.grid import GridConfig
from paredown.pipeline.compress.squantize.fold import fold
from paredown.pipeline.compress.squantize.qat_network import LayerPlan, QatNetwork
from paredown.pipeline.graph.trace import trace
from paredown.pipeline.lower.integer import IntegerGraph, in_int4, quantize
from paredown.pipeline.lower.runtimes import RUNTIMES


def linear(inputs: int, outputs: int) -> nn.Module:
    """Three fully connected layers."""
    layers = [nn.Linear(inputs, outputs), nn.ReLU(), nn.Linear(outputs, outputs), nn.ReLU()]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(outputs, 10))


def convolutions(side: int) -> nn.Module:
    """Three convolutions."""
    layers = [nn.Conv2d(16, 64, 1), nn.ReLU(), nn.Conv2d(64, 64, side, padding=side // 2), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(64, 32, 1))


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear 1280, 1024": (lambda: linear(1280, 1024), (1, 20, 8, 8)),
    "linear 4096, 512": (lambda: linear(4096, 512), (1, 16, 16, 16)),
    "3x3 convolutions": (lambda: convolutions(3), (1, 16, 32, 32)),
    "1x1 convolutions": (lambda: convolutions(1), (1, 16, 32, 32)),
}


def squantized(network: nn.Module, shape: tuple[int, ...]) -> IntegerGraph:
    """The network with 4-bit codes, as the pipeline has it."""
    names = [name for name, _ in network.named_parameters() if name.endswith("weight")]
    plans = {name: LayerPlan(GridConfig(4, "uniform"), sparsity=0.3) for name in names}
    graph = fold(QatNetwork(network.eval(), trace(network, shape), plans), shape)
    values = [graph.run(torch.randn(shape).clamp(-3, 3)) for _ in range(8)]
    ranges = {
        k: (min(float(v[k].min()) for v in values), max(float(v[k].max()) for v in values)) for k in values[0]
    }
    return quantize(graph, ranges, input_range=(-3.0, 3.0))


def main() -> None:
    """Prints a row per network and runtime."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=300)
    add_option(parser)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    heads = (
        "network", "runtime", "int8, bytes", "int4, bytes", "int8, ms", "int4, ms", "int4 / int8", "equal",
        "undelegated",
    )  # fmt: skip
    with Table("int4", heads, arguments.record) as table:
        for name, (make, shape) in CASES.items():
            eight = squantized(make(), shape)
            four = in_int4(eight, ("linear", "conv2d"))
            x = np.random.default_rng(0).integers(-128, 128, shape).astype(np.int8)
            for runtime in ("executorch", "litert"):
                if runtime == "executorch" and "conv" in name:
                    continue  # XNNPACK's int4 is for matrices there: lowering stops at the weight's shape
                tools = RUNTIMES[runtime]
                made = [tools.lower_integer(graph) for graph in (eight, four)]
                runners = [tools.load(lowered.data) for lowered in made]
                equal = all(np.array_equal(a, b) for a, b in zip(*(r(x) for r in runners), strict=True))
                calls, times = [r.bound(x) for r in runners], ([], [])
                for _ in range(arguments.runs):
                    for call, seen in zip(calls, times, strict=True):
                        start = time.perf_counter()
                        call()
                        seen.append(1e3 * (time.perf_counter() - start))
                ms = [float(np.median(seen)) for seen in times]
                sizes = [f"{len(lowered.data):,}" for lowered in made]
                cells = [*sizes, f"{ms[0]:.3f}", f"{ms[1]:.3f}", f"{ms[1] / ms[0]:.2f}"]
                cells += ["yes" if equal else "no", ", ".join(made[1].undelegated) or "none"]
                table.row(name, runtime, *cells)


if __name__ == "__main__":
    main()
