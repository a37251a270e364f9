"""The sum of two tensors of one shape; in integers 20-bit multipliers with one shared shift, half up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from paredown.pipeline.graph.operations.operation import LARGEST_FACTOR, Codes, Operation, clamped

if TYPE_CHECKING:
    from paredown.pipeline.compress.coupling.flow import Flow, Labels
    from paredown.pipeline.graph.graph import Node
    from paredown.pipeline.graph.tracer import Tracer
    from paredown.pipeline.lower.executorch.program import QdqModule
    from paredown.pipeline.lower.integer import IntegerNode, Scales
    from paredown.pipeline.lower.litert.program import Writer

#: XNNPACK's limit: the smallest factor from an input's unit to the output's.
SMALLEST_FACTOR = 2.0**-9.9


class Add(Operation):
    """No attributes."""

    aten = ("add",)
    pointwise = True
    takes_relu = True
    keeps_sign = True

    def trace(self, tracer: Tracer, node: Any) -> None:
        if node.kwargs.get("alpha", 1) != 1:
            raise tracer.unknown(node, "scales its second input (alpha)")
        feeds = (tracer.feed(node, 0), tracer.feed(node, 1))
        if tracer.nodes[feeds[0]].shape != tracer.nodes[feeds[1]].shape:
            raise tracer.unknown(node, "broadcasts; both sides must have one shape")
        tracer.add(node, "add", feeds)

    def compute(self, node: Node, *inputs: Tensor) -> Tensor:
        return inputs[0] + inputs[1]

    def follow(self, flow: Flow, node: Node) -> Labels:
        first, second = (flow.channels(name) for name in node.inputs)
        flow.tie(first, second)
        return first

    def line(self, flow: Flow, node: Node, units: set[int], first: str, read: bool, makes: bool) -> str:
        if makes:
            return f"{node.name} adds {' and '.join(node.inputs)}: tied"
        return super().line(flow, node, units, first, read, makes)

    def widen(self, node: Node, scales: Scales) -> None:
        scales.widen(node.name, max(scales[name] for name in node.inputs) / LARGEST_FACTOR)
        for name in node.inputs:
            scales.widen(name, scales[node.name] * SMALLEST_FACTOR)

    def codes(self, node: IntegerNode, feeds: Sequence[IntegerNode], inputs: Sequence[Codes]) -> Codes:
        ratios = [np.float32(feed.out.scale) / np.float32(node.out.scale) for feed in feeds]
        exponent = int(np.frexp(max(ratios))[1]) - 1
        shift = 20 - exponent
        total = np.full(inputs[0].shape, 1 << (shift - 1), np.int64)
        for feed, ratio, codes in zip(feeds, ratios, inputs, strict=True):
            multiplier = int(np.rint(np.ldexp(np.float64(ratio), shift)))
            total += multiplier * (codes.astype(np.int64) - feed.out.zero_point)
        return clamped(total >> shift, node)

    def executorch(self, program: QdqModule, node: IntegerNode, reals: Sequence[Tensor]) -> Tensor:
        return program.clamped(reals[0] + reals[1], node)

    def litert(self, writer: Writer, node: Any, feeds: Sequence[Any]) -> None:
        sources = [writer.read(feed, writer.native(node)) for feed in feeds]
        options = writer.s.AddOptionsT()
        options.fusedActivationFunction = writer.activation(node)
        writer.op("ADD", 2, sources, writer.result(node), options)
