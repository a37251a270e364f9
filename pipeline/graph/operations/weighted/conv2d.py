"""Two-dimensional convolution, with zero padding, stride and groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from paredown.pipeline.graph.aten import arguments, sides
from paredown.pipeline.graph.operations.operation import Shape
from paredown.pipeline.graph.operations.padding import (
    FAR_SAME,
    STRIDE,
    dilation_of,
    far,
    kernel_of,
    symmetric,
    written_padding,
)
from paredown.pipeline.graph.operations.placement import U55, Rule
from paredown.pipeline.graph.operations.weighted.layer import WeightedOperation, parameters

if TYPE_CHECKING:
    from paredown.pipeline.graph.graph import Node
    from paredown.pipeline.graph.tracer import Tracer
    from paredown.pipeline.lower.executorch.program import QdqModule
    from paredown.pipeline.lower.integer import IntegerNode
    from paredown.pipeline.lower.litert.program import Writer


def depthwise(node: Any, feed: Any) -> bool:
    """Whether every group has one input channel, as the runtimes' depthwise kernels want it."""
    return bool(1 < node.attrs["groups"] == feed.shape[1])


def as_map(weight: Tensor) -> Tensor:
    """The weight of a linear layer or a convolution over lengths as that of one over maps."""
    if weight.ndim == 2:
        return weight[:, :, None, None]
    return weight.unsqueeze(2) if weight.ndim == 3 else weight


def _far_padded(node: IntegerNode, feed: IntegerNode) -> bool:
    return not depthwise(node, feed) and far(node) and written_padding(node, feed) == "PAD"


def _far_depthwise(node: IntegerNode, feed: IntegerNode) -> bool:
    return depthwise(node, feed) and far(node)


class Conv2d(WeightedOperation):
    """Attributes: stride (h, w), padding (left, right, top, bottom), groups.

    Where it is not one also dilation (h, w); with batch norm also bn_eps. A convolution over lengths is one
    over maps of height one.
    """

    aten = ("conv2d", "conv1d")
    plain_sums = True
    rules = {
        **WeightedOperation.rules,
        U55: (
            Rule(
                _far_padded, "Vela fails at a stride above 3 with padding other than TensorFlow's SAME",
                STRIDE, "refused",
            ),
            Rule(_far_depthwise, "Ethos-U55 strides by at most 3 in depthwise convolutions", STRIDE),
            FAR_SAME,
        ),
    }  # fmt: skip

    def trace(self, tracer: Tracer, node: Any) -> None:
        _, w, b, stride, padding, dilation, groups = arguments(node, None, None, None, [1], [0], [1], 1)
        fields = parameters(tracer, node, w, b)
        fields["weight"] = as_map(fields["weight"])
        apart = sides(node, dilation, 1)
        if isinstance(padding, str):
            spans = zip(fields["weight"].shape[2:], apart, strict=True)
            total = [(k - 1) * step if padding == "same" else 0 for k, step in spans]
            pads = (total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2)
        else:
            vertical, horizontal = sides(node, padding, 0)
            pads = (horizontal, horizontal, vertical, vertical)
        feed = tracer.windowed(node)
        producer = tracer.nodes[feed]
        if producer.kind == "pad" and tracer.sole_use(node):  # explicit zeros cost nothing in the conv
            pads = tuple(a + b for a, b in zip(pads, producer.attrs["padding"], strict=True))
            feed = producer.inputs[0]
        attrs = {"stride": sides(node, stride, 1), "padding": pads, "groups": int(groups)}
        if apart != (1, 1):
            attrs["dilation"] = apart
        tracer.add(node, "conv2d", (feed,), attrs=attrs, **fields)

    def own(self, weight: Tensor, groups: int) -> Tensor:
        return as_map(weight)

    def theirs(self, weight: Tensor, groups: int, ndim: int) -> Tensor:
        return weight.reshape(*weight.shape[:2], *weight.shape[6 - ndim :])

    def compute(self, node: Node, *inputs: Tensor) -> Tensor:
        assert node.weight is not None
        x, padding = symmetric(inputs[0], node.attrs["padding"], 0.0)
        attrs = node.attrs
        return F.conv2d(
            x, node.weight, node.bias, attrs["stride"], padding, dilation_of(node), attrs["groups"]
        )

    def unfolded(self, node: Node, x: Tensor) -> tuple[Tensor, tuple[int, int], Tensor, Tensor]:
        assert node.weight is not None
        (down, right), (high, wide) = dilation_of(node), node.weight.shape[2:]
        dy, dx = torch.meshgrid(torch.arange(high) * down, torch.arange(wide) * right, indexing="ij")
        return F.pad(x, node.attrs["padding"]), node.attrs["stride"], dy.flatten(), dx.flatten()

    def thinned(self, node: Node, shape: Shape, groups: int) -> Mapping[str, Any]:
        return {**node.attrs, "groups": groups}

    def multiple(self, node: Node) -> str:
        assert node.weight is not None
        if node.attrs["groups"] > 1 and node.weight.shape[1] == 1:
            return "depthwise"
        return "pointwise" if kernel_of(node) == (1, 1) else "conv"

    def accumulated(self, node: IntegerNode, values: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        padded, attrs = F.pad(values, node.attrs["padding"]), node.attrs
        return F.conv2d(padded, weight, bias, attrs["stride"], 0, dilation_of(node), attrs["groups"])

    def executorch(self, program: QdqModule, node: IntegerNode, reals: Sequence[Tensor]) -> Tensor:
        (x,), attrs = reals, node.attrs
        weight, bias = program.weight(node), program.bias(node)
        left, right, top, bottom = attrs["padding"]
        if (left, top) != (right, bottom):
            x = program.requantized(F.pad(x, (left, right, top, bottom)), program.graph[node.inputs[0]])
            left = top = 0
        x = F.conv2d(x, weight, bias, attrs["stride"], (top, left), dilation_of(node), attrs["groups"])
        return program.clamped(x, node)

    def litert(self, writer: Writer, node: Any, feeds: Sequence[Any]) -> None:
        (feed,) = feeds
        groups, (stride_h, stride_w) = node.attrs["groups"], node.attrs["stride"]
        source, padding = writer.padded(node, feed, writer.read(feed, "nhwc"))
        each = depthwise(node, feed)
        options = writer.s.DepthwiseConv2DOptionsT() if each else writer.s.Conv2DOptionsT()
        options.padding, options.strideH, options.strideW = padding, stride_h, stride_w
        options.dilationHFactor, options.dilationWFactor = dilation_of(node)
        options.fusedActivationFunction = writer.activation(node)
        weight = np.asarray(node.weight)
        if each:
            options.depthMultiplier = node.weight.shape[0] // groups
            weight = weight.transpose(1, 2, 3, 0)
        else:
            weight = weight.transpose(0, 2, 3, 1)
        tensors = writer.weights(node, feed, weight, 3 if each else 0)
        kind = "DEPTHWISE_CONV_2D" if each else "CONV_2D"
        writer.op(kind, 3, [source, *tensors], writer.tensor(node, "nhwc"), options)

    def card_kind(self, node: IntegerNode, feed: IntegerNode) -> str:
        return "depthwise_conv2d" if depthwise(node, feed) else node.kind
