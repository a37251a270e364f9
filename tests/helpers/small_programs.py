"""One small network as programs of both runtimes, and what it computes."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from paredown.pipeline.graph.trace import trace
from paredown.pipeline.lower import reference
from paredown.pipeline.lower.integer import quantize
from paredown.pipeline.lower.runtimes import RUNTIMES


class Small(nn.Module):
    """Two convolutions and a linear layer; outputs (1, 8, 4, 4) and (1, 5) of (1, 3, 8, 8)."""

    MACS = 8 * 8 * 16 * 3 * 9 + 4 * 4 * 8 * 16 * 9 + 8 * 5

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = F.relu(self.b(F.max_pool2d(F.relu(self.a(x)), 2)))
        return x, self.head(x.mean((2, 3)))


@dataclass(frozen=True)
class Programs:
    """`int8` and `float32` map a runtime to its program, `codes` are inputs of the int8 ones.

    `expected` are the int8 outputs as a runner writes them, computed by the integer reference and no runtime.
    """

    int8: dict[str, bytes]
    float32: dict[str, bytes]
    codes: np.ndarray
    expected: bytes


@functools.cache
def small_programs() -> Programs:
    torch.manual_seed(0)
    graph = trace(Small().eval(), (1, 3, 8, 8))
    values = graph.run(torch.rand(8, 3, 8, 8))
    ranges = {name: (float(value.min()), float(value.max())) for name, value in values.items()}
    integer = quantize(graph, ranges, input_range=(0.0, 1.0), most=63)  # exact on every x86, too
    codes = np.random.default_rng(0).integers(-128, 128, (5, 3, 8, 8)).astype(np.int8)
    outputs = [part for code in codes for part in reference.predict(integer, code[None])]
    return Programs(
        {name: runtime.lower_integer(integer).data for name, runtime in RUNTIMES.items()},
        {name: runtime.lower_float(graph).data for name, runtime in RUNTIMES.items()},
        codes,
        b"".join(part.tobytes() for part in outputs),
    )
