"""The largest value of each window, padded by minus infinity."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from paredown.pipeline.graph.aten import arguments, pair, sides
from paredown.pipeline.graph.operations.operation import Codes, Operation
from paredown.pipeline.graph.operations.padding import (
    FAR_SAME,
    padded_elements,
    symmetric,
    written_padding,
)
from paredown.pipeline.graph.operations.placement import ETHOS, EXECUTORCH, LITERT, U55, Rule

if TYPE_CHECKING:
    from paredown.pipeline.graph.graph import Node
    from paredown.pipeline.graph.tracer import Tracer
    from paredown.pipeline.lower.executorch.program import QdqModule
    from paredown.pipeline.lower.integer import IntegerNode
    from paredown.pipeline.lower.litert.program import Writer

#: Vela's limits: rows and pixels of a window.
MOST_ROWS, MOST_WINDOW = 256, 1 << 16


def _skips(node: IntegerNode, feed: IntegerNode) -> bool:
    return any(stride > size for stride, size in zip(node.attrs["stride"], node.attrs["kernel"], strict=True))


def _padded_by_minimum(node: IntegerNode, feed: IntegerNode) -> bool:
    return not feed.never_negative and written_padding(node, feed) == "PAD"


def _large(node: IntegerNode, feed: IntegerNode) -> bool:
    return node.attrs["kernel"][0] > MOST_ROWS or prod(node.attrs["kernel"]) > MOST_WINDOW


SKIPS = Rule(
    _skips, "XNNPACK's pools have a stride of at most their window",
    "a larger window, or a convolution with that stride",
)  # fmt: skip


class MaxPool2d(Operation):
    """Attributes: kernel (h, w), stride (h, w), padding (left, right, top, bottom)."""

    aten = ("max_pool2d", "max_pool1d")
    channelwise = True
    same_scale = True
    keeps_sign = True
    rules = {
        EXECUTORCH: (SKIPS,),
        LITERT: (
            SKIPS,
            Rule(
                _padded_by_minimum,
                "its padding is not TensorFlow's SAME and what it reads can be negative, so it is padded "
                "with the smallest code: PADV2, which XNNPACK has not",
                "put a ReLU before the pool, or pad as SAME does: F.pad with -inf, more at the end than at "
                "the beginning, and a pool without padding",
                parts=(False, True), between=padded_elements,
            ),
        ),
        ETHOS: (
            Rule(
                _large, f"Ethos-U pools over at most {MOST_ROWS} rows and {MOST_WINDOW:,} pixels",
                "two smaller pools",
            ),
        ),
        U55: (FAR_SAME,),
    }  # fmt: skip

    def trace(self, tracer: Tracer, node: Any) -> None:
        _, kernel, stride, padding, dilation, ceil = arguments(node, None, None, [], [0, 0], [1, 1], False)
        kernel = sides(node, kernel, 1)
        stride = sides(node, stride, 1) if stride else kernel
        vertical, horizontal = sides(node, padding, 0)
        if ceil or pair(dilation) != (1, 1):
            raise tracer.unknown(node, "uses ceil_mode or dilation; pad explicitly instead")
        pads = (horizontal, horizontal, vertical, vertical)
        feed = tracer.windowed(node)
        producer = tracer.nodes[feed]
        if producer.kind == "pad" and producer.attrs["value"] != 0:
            pads = tuple(a + b for a, b in zip(pads, producer.attrs["padding"], strict=True))
            feed = producer.inputs[0]
        if max(pads[:2]) >= kernel[1] or max(pads[2:]) >= kernel[0]:
            raise tracer.unknown(node, f"of {kernel} is padded by {pads}: a window would see only padding")
        attrs = {"kernel": kernel, "stride": stride, "padding": pads}
        tracer.add(node, "max_pool2d", (feed,), attrs=attrs)

    def compute(self, node: Node, *inputs: Tensor) -> Tensor:
        attrs = node.attrs
        limit = min(attrs["kernel"]) // 2  # of the padding that torch's pooling takes
        x, padding = symmetric(inputs[0], attrs["padding"], float("-inf"), limit)
        return F.max_pool2d(x, attrs["kernel"], attrs["stride"], padding)

    def codes(self, node: IntegerNode, feeds: Sequence[IntegerNode], inputs: Sequence[Codes]) -> Codes:
        left, right, top, bottom = node.attrs["padding"]
        widths = ((0, 0), (0, 0), (top, bottom), (left, right))
        padded = np.pad(inputs[0], widths, constant_values=-128)
        pooled = F.max_pool2d(torch.from_numpy(padded).float(), node.attrs["kernel"], node.attrs["stride"])
        return pooled.to(torch.int8).numpy()

    def executorch(self, program: QdqModule, node: IntegerNode, reals: Sequence[Tensor]) -> Tensor:
        """Padding on one side only becomes padding on both sides and a slice: exact, and delegated."""
        (x,) = reals
        left, right, top, bottom = node.attrs["padding"]
        stride, kernel = node.attrs["stride"], node.attrs["kernel"]
        vertical, horizontal = max(top, bottom), max(left, right)
        skip = (vertical - top, horizontal - left)
        torch_takes = vertical <= kernel[0] // 2 and horizontal <= kernel[1] // 2
        if skip[0] % stride[0] or skip[1] % stride[1] or not torch_takes:
            # The extra rows would shift the windows: repeat the border instead, which no maximum notices.
            for dim, before, after in ((3, left, right), (2, top, bottom)):
                if before or after:
                    first, last = x.narrow(dim, 0, 1), x.narrow(dim, x.shape[dim] - 1, 1)
                    edges = [program.requantized(edge, node) for edge in (first, last)]
                    parts = [edges[0]] * before + [x] + [edges[1]] * after
                    x = program.requantized(torch.cat(parts, dim), node)
            vertical, horizontal, skip = 0, 0, (0, 0)
        x = F.max_pool2d(x, kernel, stride, (vertical, horizontal))
        for dim, offset, size in (
            (2, skip[0] // stride[0], node.shape[2]),
            (3, skip[1] // stride[1], node.shape[3]),
        ):
            if x.shape[dim] != size:
                x = program.requantized(x, node).narrow(dim, offset, size)
        return x

    def litert(self, writer: Writer, node: Any, feeds: Sequence[Any]) -> None:
        (feed,) = feeds
        kernel, (stride_h, stride_w) = node.attrs["kernel"], node.attrs["stride"]
        lowest: float | None = -128 if writer.integer else float(np.finfo(np.float32).min)
        if feed.never_negative:  # after a ReLU zero is as good as minus infinity, and PAD is delegated
            lowest = None
        source, padding = writer.padded(node, feed, writer.read(feed, "nhwc"), lowest)
        options = writer.s.Pool2DOptionsT()
        options.padding, options.strideH, options.strideW = padding, stride_h, stride_w
        options.filterHeight, options.filterWidth = kernel
        writer.op("MAX_POOL_2D", 2, [source], writer.tensor(node, "nhwc"), options)
