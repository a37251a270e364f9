"""PReLU: a leaky ReLU with a learned slope per channel.

On int8 it is the sum of two parts: what is positive, and what is negative times the slope. Each part's scale
has zero at an end of the codes, so that int8's own ends cut the other part off. Programs hold depthwise
convolutions and an addition: exact, and delegated, in both runtimes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from paredown.pipeline.graph.aten import shape_of
from paredown.pipeline.graph.operations.operation import LARGEST_FACTOR, QMAX, QMIN, Shape
from paredown.pipeline.graph.operations.weighted.conv2d import Conv2d
from paredown.pipeline.graph.operations.weighted.layer import WeightedOperation

if TYPE_CHECKING:
    from collections.abc import Mapping

    from paredown.pipeline.graph.graph import Node
    from paredown.pipeline.graph.tracer import Tracer
    from paredown.pipeline.lower.integer import Scales
    from paredown.pipeline.lower.litert.program import Writer

CONV2D = Conv2d()


class PRelu(WeightedOperation):
    """Attributes: groups; its weight is (channels, 1, 1, 1), as a depthwise convolution's."""

    aten = ("prelu",)
    takes_norm = False
    takes_relu = False
    keeps_sign = False
    rules = {}

    def trace(self, tracer: Tracer, node: Any) -> None:
        if len(shape_of(node)) not in {3, 4}:
            raise tracer.unknown(node, "must read (batch, channels, height, width)")
        feed = tracer.map(node)
        shape, slope = tracer.nodes[feed].shape, tracer.constant(node, node.args[1])
        assert slope is not None
        role = "slope" if slope.numel() == shape[1] else "shared slope"
        weight = slope.reshape(-1, 1, 1, 1).expand(shape[1], 1, 1, 1).contiguous()
        names = tracer.names(**{role: node.args[1]})
        tracer.add(node, "prelu", (feed,), attrs={"groups": shape[1]}, weight=weight,
                   bias=slope.new_zeros(shape[1]), parameters=names)  # fmt: skip

    def compute(self, node: Node, *inputs: Tensor) -> Tensor:
        assert node.weight is not None
        return F.prelu(inputs[0], node.weight.flatten())

    def macs(self, node: Any) -> int:
        return 0

    def multiple(self, node: Node) -> str:
        return "depthwise"

    def thinned(self, node: Node, shape: Shape, groups: int) -> Mapping[str, Any]:
        return {"groups": groups}

    def widen(self, node: Node, scales: Scales) -> None:
        super().widen(node, scales)
        scales.widen(node.name, scales[node.inputs[0]] / LARGEST_FACTOR)

    def written(self, node: Any, feeds: Sequence[Any]) -> tuple[Any, ...]:
        if not hasattr(node, "out"):
            return (node,)
        (feed,) = feeds
        channels = node.shape[1]
        attrs = {"stride": (1, 1), "padding": (0, 0, 0, 0), "groups": channels}
        ones = {
            "weight": np.ones((channels, 1, 1, 1), np.int8), "weight_scale": np.ones(channels, np.float32),
            "bias": np.zeros(channels, np.int32),
        }  # fmt: skip
        plain = replace(node, kind="conv2d", attrs=attrs, low=QMIN, high=QMAX)
        like = type(node.out)
        positive = replace(plain, name=f"{node.name}.positive", out=like(node.out.scale, QMIN), **ones)
        if bool((node.weight >= 0).all()):
            negative = replace(plain, name=f"{node.name}.negative", out=like(node.out.scale, QMAX))
            parts: tuple[Any, ...] = (positive, negative)
        else:  # a negative slope makes positive values: cut off first
            below = replace(plain, name=f"{node.name}.below", out=like(feed.out.scale, QMAX), **ones)
            negative = replace(plain, name=f"{node.name}.negative", inputs=(below.name,))
            parts = (positive, below, negative)
        names = (positive.name, negative.name)
        total = replace(node, kind="add", inputs=names, attrs={}, weight=None, weight_scale=None, bias=None)
        return (*parts, total)

    def litert(self, writer: Writer, node: Any, feeds: Sequence[Any]) -> None:
        """Of the float network; the integer one is written as other kinds."""
        source = writer.read(feeds[0], "nhwc")
        slope = writer.constant(f"{node.name}/slope", np.asarray(node.weight).reshape(1, 1, -1))
        writer.op("PRELU", 1, [source, slope], writer.tensor(node, "nhwc"))
