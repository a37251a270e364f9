"""What convolutions and linear layers have in common: weights, an accumulator, its requantization."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paredown.pipeline.graph.operations.operation import LARGEST_FACTOR, Codes, Operation, clamped
from paredown.pipeline.graph.operations.placement import ETHOS, Rule

if TYPE_CHECKING:
    from paredown.pipeline.compress.coupling.flow import Flow, Labels
    from paredown.pipeline.graph.graph import Node
    from paredown.pipeline.graph.tracer import Tracer
    from paredown.pipeline.lower.integer import IntegerNode, Scales

#: Vela's limit: the sum of the weights of one output.
MOST_WEIGHTS = 127 << 16
#: Up to here float32 holds every whole number, and so every sum of whole numbers that stays below, in any
#: order of adding; it is several times as fast as float64.
EXACT = 1 << 24


def _heavy(node: IntegerNode, feed: IntegerNode) -> bool:
    assert node.weight is not None
    sums = np.abs(node.weight.astype(np.int64)).reshape(len(node.weight), -1).sum(1)
    return int(sums.max()) > MOST_WEIGHTS


HEAVY = Rule(
    _heavy, f"the weights of one output sum up to more than {MOST_WEIGHTS:,}", "fewer inputs per output"
)


class WeightedOperation(Operation):
    """A convolution or a linear layer."""

    weighted = True
    plain_sums = False  # whether accumulators are sums of products, row by row of the weight
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
        zero = feeds[0].out.zero_point
        parts = [torch.from_numpy(part) for part in (inputs[0], node.weight, node.bias)]
        if self.plain_sums and largest_sum(node.weight, node.bias, zero) <= EXACT:
            values, weight, bias = (part.float() for part in parts)
            with torch.backends.nnpack.flags(enabled=False):  # it transforms them (Winograd)
                made = self.accumulated(node, values - zero, weight, bias)
            if bool((made == made.round()).all()):  # else another kernel does so
                return requantized(made.numpy(), node, feeds[0])
        values, weight, bias = (part.double() for part in parts)
        return requantized(self.accumulated(node, values - zero, weight, bias).numpy(), node, feeds[0])

    def accumulated(self, node: IntegerNode, values: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Exact int32 accumulators, in the dtype of the arguments."""
        raise NotImplementedError


def parameters(tracer: Tracer, node: Any, weight: Any, bias: Any) -> dict[str, Any]:
    """The weight, bias and parameters of a node, from the arguments of an ATen node."""
    value, offset = tracer.constant(node, weight), tracer.constant(node, bias)
    assert value is not None
    offset = torch.zeros(value.shape[0]) if offset is None else offset
    names = tracer.names(weight=weight, bias=bias)
    return {"weight": value, "bias": offset, "parameters": names}


def largest_sum(weight: NDArray[np.generic], bias: NDArray[np.generic], zero_point: int) -> int:
    """What no partial sum of an output can exceed, for any int8 codes of the input.

    Args:
        weight: codes, (outputs, ...).
        bias: whole numbers, (outputs,).
        zero_point: of the input.
    """
    reach = max(127 - zero_point, zero_point + 128)
    sums = np.abs(weight.astype(np.int64)).reshape(len(weight), -1).sum(1) * reach
    return int((sums + np.abs(bias.astype(np.int64))).max())


def requantized(accumulator: NDArray[np.floating], node: IntegerNode, feed: IntegerNode) -> Codes:
    """The accumulators as codes: float32(accumulator) * (input * weight / output scale), half to even."""
    assert node.weight_scale is not None
    scale = np.float32(feed.out.scale) * node.weight_scale / np.float32(node.out.scale)
    scale = scale.reshape(-1, *[1] * (accumulator.ndim - 2))
    return clamped(np.rint(accumulator.astype(np.float32) * scale), node)
