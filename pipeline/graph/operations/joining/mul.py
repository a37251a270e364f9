"""The product of two tensors; in integers float32(product of codes) * scale, half to even."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from paredown.pipeline.graph.aten import shape_of
from paredown.pipeline.graph.operations.joining.add import broadcast, pair_of_tensors, tied
from paredown.pipeline.graph.operations.joining.constant import (
    constant_of,
    held_constant,
    per_channel,
    scaled,
)
from paredown.pipeline.graph.operations.operation import LARGEST_FACTOR, Codes, Operation, clamped

if TYPE_CHECKING:
    from paredown.pipeline.compress.coupling.flow import Flow, Labels
    from paredown.pipeline.graph.graph import Node
    from paredown.pipeline.graph.tracer import Tracer
    from paredown.pipeline.lower.executorch.program import QdqModule
    from paredown.pipeline.lower.integer import IntegerNode, Scales
    from paredown.pipeline.lower.litert.program import Writer

#: XNNPACK's limit: the smallest factor from the product of the inputs' units to the output's.
SMALLEST_FACTOR = 2.0**-15


class Mul(Operation):
    """No attributes."""

    aten = ("mul", "multiply")
    pointwise = True
    multiplies = True

    def trace(self, tracer: Tracer, node: Any) -> None:
        if given := constant_of(tracer, node):
            index, other, value = given
            if axis := per_channel(tracer, node, *given):
                scaled(tracer, node, index, axis, factor=value, shift=0.0, given=other)
            else:
                feed = tracer.feed(node, index)
                tracer.add(node, "mul", (feed, held_constant(tracer, node, other, shape_of(node))))
            return
        if found := tracer.with_number(node):
            index, number = found
            tracer.affine(node, tracer.feed(node, index), number, 0.0)
            return
        tracer.add(node, "mul", pair_of_tensors(tracer, node))

    def compute(self, node: Node, *inputs: Tensor) -> Tensor:
        return inputs[0] * inputs[1]

    def follow(self, flow: Flow, node: Node) -> Labels:
        return tied(flow, node)

    def line(self, flow: Flow, node: Node, units: set[int], first: str, read: bool, makes: bool) -> str:
        if makes:
            return f"{node.name} multiplies {' and '.join(node.inputs)}: tied"
        return super().line(flow, node, units, first, read, makes)

    def widen(self, node: Node, scales: Scales) -> None:
        first, second = node.inputs
        unit = scales[first] * scales[second]
        scales.widen(node.name, unit / LARGEST_FACTOR)
        scales.widen(first, scales[node.name] * SMALLEST_FACTOR / scales[second])
        scales.widen(second, scales[node.name] * SMALLEST_FACTOR / scales[first])  # the first's is prescribed

    def codes(self, node: IntegerNode, feeds: Sequence[IntegerNode], inputs: Sequence[Codes]) -> Codes:
        a, b = (x.astype(np.int32) - feed.out.zero_point for x, feed in zip(inputs, feeds, strict=True))
        scale = np.float32(feeds[0].out.scale) * np.float32(feeds[1].out.scale) / np.float32(node.out.scale)
        return clamped(np.rint((a * b).astype(np.float32) * scale), node)

    def executorch(self, program: QdqModule, node: IntegerNode, reals: Sequence[Tensor]) -> Tensor:
        return reals[0] * reals[1]

    def litert(self, writer: Writer, node: Any, feeds: Sequence[Any]) -> None:
        sources = broadcast(writer, node, feeds)
        writer.op("MUL", 2, sources, writer.result(node), writer.s.MulOptionsT())
