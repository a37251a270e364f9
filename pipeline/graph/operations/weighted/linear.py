"""A linear layer over (batch, features); over more axes it is traced as a convolution of one pixel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from paredown.pipeline.graph.aten import arguments, shape_of, target
from paredown.pipeline.graph.operations.weighted.conv2d import as_map
from paredown.pipeline.graph.operations.weighted.layer import WeightedOperation, parameters

if TYPE_CHECKING:
    from paredown.pipeline.graph.graph import Node
    from paredown.pipeline.graph.tracer import Tracer
    from paredown.pipeline.lower.executorch.program import QdqModule
    from paredown.pipeline.lower.integer import IntegerNode
    from paredown.pipeline.lower.litert.program import Writer


_COMPUTED = "computed weight 0"  # see `Node.parameters`


class Linear(WeightedOperation):
    """No attributes."""

    folds = True
    aten = ("linear", "matmul", "mm", "addmm")
    plain_sums = True

    def takes(self, node: Any) -> bool:
        return target(node) == "linear" or len(shape_of(_arguments(node)[0])) == 2

    def trace(self, tracer: Tracer, node: Any) -> None:
        weight, bias = _arguments(node)
        fields = parameters(tracer, node, weight, bias)
        if target(node) != "linear":  # the matrix has its outputs last, as no parameter of a layer has
            matrix = fields["weight"].T.contiguous()
            offset = torch.zeros(1) if bias is None else fields["bias"]
            names = {_COMPUTED if role == "weight" else role: p for role, p in fields["parameters"].items()}
            offset = offset.reshape(-1).expand(len(matrix)).contiguous()
            fields = {"weight": matrix, "bias": offset, "parameters": names}
        feed = node.args[1] if target(node) == "addmm" else node.args[0]
        rank = len(shape_of(feed))
        if rank == 2 and not tracer.folded(feed):
            tracer.add(node, "linear", (tracer.tensor(node, feed),), **fields)
            return
        # Over more axes it is a convolution of one pixel on the map whose channels are the last of them.
        fields["weight"] = as_map(fields["weight"])
        attrs = {"stride": (1, 1), "padding": (0, 0, 0, 0), "groups": 1}
        tracer.add(node, "conv2d", (tracer.map(node, channels=rank - 1),), attrs=attrs, **fields)

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


def _arguments(node: Any) -> tuple[Any, Any]:
    """The arguments that are the weight and the bias."""
    if target(node) == "linear":
        _, weight, bias = arguments(node, None, None, None)
        return weight, bias
    return (node.args[2], node.args[0]) if target(node) == "addmm" else (node.args[1], None)
