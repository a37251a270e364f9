"""Leaky ReLU; in integers 8.8 fixed point multipliers: `(x * 2**7 * m + 2**14) >> 15`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from paredown.pipeline.graph.aten import arguments
from paredown.pipeline.graph.operations.operation import Codes, Operation, clamped
from paredown.targets.errors import InputError

if TYPE_CHECKING:
    from paredown.pipeline.graph.graph import Node
    from paredown.pipeline.graph.tracer import Tracer
    from paredown.pipeline.lower.executorch.program import QdqModule
    from paredown.pipeline.lower.integer import IntegerNode, Scales
    from paredown.pipeline.lower.litert.program import Writer

#: XNNPACK's limits: the largest factor from the input's unit to the output's, and its 8.8 fixed point's
#: smallest step.
LARGEST_FACTOR, STEP = 127.0, 2.0**-8


class LeakyRelu(Operation):
    """Attributes: slope."""

    aten = ("leaky_relu",)
    homogeneous = True
    pointwise = True
    channelwise = True
    keeps_sign = True
    onednn = ("leaky_relu", ("slope",))

    def trace(self, tracer: Tracer, node: Any) -> None:
        attrs = {"slope": float(arguments(node, None, 0.01)[1])}
        tracer.add(node, "leaky_relu", (tracer.feed(node),), attrs=attrs)

    def compute(self, node: Node, *inputs: Tensor) -> Tensor:
        return F.leaky_relu(inputs[0], node.attrs["slope"])

    def widen(self, node: Node, scales: Scales) -> None:
        slope = node.attrs["slope"]
        if not STEP <= slope <= 1:
            raise InputError(
                f"leaky ReLU {node.name}: its slope {slope} is outside the int8 kernel's 1/256 to 1",
                hint="plain ReLU is the alternative",
            )
        scales.widen(node.name, scales[node.inputs[0]] / LARGEST_FACTOR)
        scales.widen(node.inputs[0], scales[node.name] * STEP / slope)

    def codes(self, node: IntegerNode, feeds: Sequence[IntegerNode], inputs: Sequence[Codes]) -> Codes:
        positive, negative = multipliers(node.attrs["slope"], feeds[0].out.scale, node.out.scale)
        # 256 possible inputs: a table is both the fastest and the plainest way.
        real = np.arange(-128, 128, dtype=np.int64) - feeds[0].out.zero_point
        table = clamped(((real << 7) * np.where(real >= 0, positive, negative) + (1 << 14)) >> 15, node)
        return table[inputs[0].astype(np.int16) + 128]

    def executorch(self, program: QdqModule, node: IntegerNode, reals: Sequence[Tensor]) -> Tensor:
        return F.leaky_relu(reals[0], node.attrs["slope"])

    def litert(self, writer: Writer, node: Any, feeds: Sequence[Any]) -> None:
        source = writer.read(feeds[0], writer.native(node))
        options = writer.s.LeakyReluOptionsT()
        options.alpha = node.attrs["slope"]
        writer.op("LEAKY_RELU", 2, [source], writer.result(node), options)


def multipliers(slope: float, before: float, after: float) -> tuple[int, int]:
    """Positive and negative multiplier of the int8 leaky ReLU, in units of 1/256."""
    positive = np.float32(before) / np.float32(after)
    negative = positive * np.float32(slope)
    return int(np.rint(np.float32(256) * positive)), int(np.rint(np.float32(256) * negative))
