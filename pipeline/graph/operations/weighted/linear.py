"""A linear layer over (batch, features)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor

from paredown.pipeline.graph.aten import arguments, shape_of
from paredown.pipeline.graph.operations.weighted.layer import WeightedOperation, parameters

if TYPE_CHECKING:
    from paredown.pipeline.graph.graph import Node
    from paredown.pipeline.graph.tracer import Tracer
    from paredown.pipeline.lower.executorch.program import QdqModule
    from paredown.pipeline.lower.integer import IntegerNode
    from paredown.pipeline.lower.litert.program import Writer


class Linear(WeightedOperation):
    """No attributes."""

    aten = ("linear",)

    def trace(self, tracer: Tracer, node: Any) -> None:
        _, w, b = arguments(node, None, None, None)
        fields = parameters(tracer, node, w, b)
        if len(shape_of(node)) != 2:
            raise tracer.unknown(node, "must read (batch, features); flatten before it")
        tracer.add(node, "linear", (tracer.feed(node),), **fields)

    def compute(self, node: Node, *inputs: Tensor) -> Tensor:
        assert node.weight is not None
        return F.linear(inputs[0], node.weight, node.bias)

    def multiple(self, node: Node) -> str:
        return "linear"

    def accumulated(self, node: IntegerNode, values: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear(values, weight, bias)

    def executorch(self, program: QdqModule, node: IntegerNode, reals: Sequence[Tensor]) -> Tensor:
        return program.clamped(F.linear(reals[0], program.weight(node), program.bias(node)), node)

    def litert(self, writer: Writer, node: Any, feeds: Sequence[Any]) -> None:
        source = writer.read(feeds[0], writer.native(node))
        options = writer.s.FullyConnectedOptionsT()
        options.fusedActivationFunction = writer.activation(node)
        tensors = writer.weights(node, feeds[0], node.weight, 0)
        writer.op("FULLY_CONNECTED", 4, [source, *tensors], writer.result(node), options)
