"""What convolutions and linear layers have in common: weights, an accumulator, its requantization."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paredown.pipeline.graph.operations.operation import LARGEST_FACTOR, QMAX, QMIN, Codes, Operation, clamped
from paredown.pipeline.graph.operations.placement import ETHOS, Rule

if TYPE_CHECKING:
    from paredown.pipeline.compress.coupling.flow import Flow, Labels
    from paredown.pipeline.graph.graph import Node
    from paredown.pipeline.graph.tracer import Tracer
    from paredown.pipeline.lower.integer import IntegerNode, Scales

#: Vela's limit: the sum of the weights of one output.
MOST_WEIGHTS = 127 << 16
#: float32 holds every whole number up to this one.
FLOAT32_WHOLE = 1 << 24


def _sums(node: IntegerNode) -> NDArray[np.int64]:
    """The sum of the weights of each output, without their signs."""
    assert node.weight is not None
    return np.abs(node.weight.astype(np.int16)).reshape(len(node.weight), -1).sum(1, dtype=np.int64)


def _heavy(node: IntegerNode, feed: IntegerNode) -> bool:
    return int(_sums(node).max()) > MOST_WEIGHTS


def _largest_sum(node: IntegerNode, feed: IntegerNode) -> int:
    """What no sum of some of an output's products and its bias exceeds, in whatever order they are added."""
    assert node.bias is not None
    farthest = max(QMAX - feed.out.zero_point, feed.out.zero_point - QMIN)
    return int((_sums(node) * farthest + np.abs(node.bias.astype(np.int64))).max(initial=0))


HEAVY = Rule(
    _heavy, f"the weights of one output sum up to more than {MOST_WEIGHTS:,}", "fewer inputs per output"
)


class WeightedOperation(Operation):
    """A convolution or a linear layer."""

    weighted = True
    takes_norm = True
    takes_relu = True
    rules = {ETHOS: (HEAVY,)}

    def follow(self, flow: Flow, node: Node) -> Labels:
        return flow.layer(node)

    def line(self, flow: Flow, node: Node, units: set[int], first: str, read: bool, makes: bool) -> str:
        if not makes:
            return f"{node.name} reads them" if read else ""
        verb = "carries them" if node.attrs.get("groups", 1) > 1 and read else "makes them"
        shared = flow.shares.get(node.name)
        why = f", sharing a parameter with {shared}" if shared else ""
        return f"{node.name} {verb}" + (" too" if node.name != first else "") + why

    def widen(self, node: Node, scales: Scales) -> None:
        scales.widen(node.name, scales[node.inputs[0]] * scales.weights(node.name) / LARGEST_FACTOR)

    def codes(self, node: IntegerNode, feeds: Sequence[IntegerNode], inputs: Sequence[Codes]) -> Codes:
        assert node.weight is not None and node.bias is not None
        held = torch.float32 if _largest_sum(node, feeds[0]) <= FLOAT32_WHOLE else torch.float64
        values = torch.from_numpy(inputs[0]).to(held) - feeds[0].out.zero_point
        weight, bias = (torch.from_numpy(each).to(held) for each in (node.weight, node.bias))
        with torch.backends.nnpack.flags(enabled=False):  # Winograd's sums are no whole numbers
            return requantized(self.accumulated(node, values, weight, bias).numpy(), node, feeds[0])

    def accumulated(self, node: IntegerNode, values: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Exact int32 accumulators, as floats of the arguments' type, which holds every sum of them."""
        raise NotImplementedError


def parameters(tracer: Tracer, node: Any, weight: Any, bias: Any) -> dict[str, Any]:
    """The weight, bias and parameters of a node, from the arguments of an ATen node."""
    value, offset = tracer.constant(node, weight), tracer.constant(node, bias)
    assert value is not None
    offset = torch.zeros(value.shape[0]) if offset is None else offset
    names = tracer.names(weight=weight, bias=bias)
    return {"weight": value, "bias": offset, "parameters": names}


def requantized(accumulator: NDArray[np.floating], node: IntegerNode, feed: IntegerNode) -> Codes:
    """The accumulators as codes: float32(accumulator) * (input * weight / output scale), half to even."""
    assert node.weight_scale is not None
    scale = np.float32(feed.out.scale) * node.weight_scale / np.float32(node.out.scale)
    scale = scale.reshape(-1, *[1] * (accumulator.ndim - 2))
    return clamped(np.rint(accumulator.astype(np.float32) * scale), node)
