"""The mean over height and width; what pools the whole map is this.

In integers: float32(sum of codes) * scale + bias, each step in float32, half to even; both zero points are in
the bias. A kernel that fuses the two steps (FMA; none does on x86-64) may differ by one code at exact ties.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from paredown.pipeline.graph.aten import arguments, pair, shape_of, target
from paredown.pipeline.graph.operations.operation import Codes, Operation
from paredown.pipeline.graph.operations.placement import ETHOS, Rule
from paredown.pipeline.graph.operations.pooling.reduce import kept, reduced

if TYPE_CHECKING:
    from paredown.pipeline.graph.graph import Node
    from paredown.pipeline.graph.tracer import Tracer
    from paredown.pipeline.lower.executorch.program import QdqModule
    from paredown.pipeline.lower.integer import IntegerNode
    from paredown.pipeline.lower.litert.program import Writer

#: Vela's limits: the side and the pixels of what is read.
MEAN_SIDE, MEAN_PIXELS = 4096, 1 << 24


def _large(node: IntegerNode, feed: IntegerNode) -> bool:
    sides = feed.shape[2:]
    return max(sides) >= MEAN_SIDE or prod(sides) > MEAN_PIXELS


class Mean(Operation):
    """No attributes; the two axes stay, of size one."""

    aten = ("mean", "adaptive_avg_pool2d", "adaptive_avg_pool1d", "avg_pool2d", "avg_pool1d")
    homogeneous = True
    keeps_sign = True
    rules = {
        ETHOS: (
            Rule(
                _large, f"Ethos-U takes means over less than {MEAN_SIDE:,} rows or columns",
                "a pool before the mean",
            ),
        )
    }  # fmt: skip

    def takes(self, node: Any) -> bool:
        if target(node) == "mean":
            rank = len(shape_of(node.args[0]))
            return rank in {3, 4} and 0 not in reduced(node)[0] and len(kept(node)) == 1
        if target(node).startswith("adaptive"):
            return all(size == 1 for size in shape_of(node)[2:])
        return _pools_all(node)

    def trace(self, tracer: Tracer, node: Any) -> None:
        if target(node) == "mean":
            feed = tracer.map(node, channels=kept(node)[0])
        else:
            feed = tracer.windowed(node)
        shape = (*tracer.nodes[feed].shape[:2], 1, 1)
        name = tracer.add(node, "mean", (feed,), shape=shape)
        tracer.drop(node, name, target(node) != "mean" or reduced(node)[1])

    def compute(self, node: Node, *inputs: Tensor) -> Tensor:
        return inputs[0].mean((2, 3), keepdim=True)

    def codes(self, node: IntegerNode, feeds: Sequence[IntegerNode], inputs: Sequence[Codes]) -> Codes:
        (feed,), (x,) = feeds, inputs
        count = x.shape[2] * x.shape[3]
        scale = np.float32(feed.out.scale) / np.float32(node.out.scale) * (np.float32(1) / np.float32(count))
        bias = np.float32(node.out.zero_point) - np.float32(feed.out.zero_point * count) * scale
        total = x.sum((2, 3), keepdims=True, dtype=np.int64).astype(np.float32)
        return np.clip(np.rint(total * scale + bias), node.low, node.high).astype(np.int8)

    def executorch(self, program: QdqModule, node: IntegerNode, reals: Sequence[Tensor]) -> Tensor:
        return reals[0].mean((2, 3), keepdim=True)

    def litert(self, writer: Writer, node: Any, feeds: Sequence[Any]) -> None:
        source = writer.read(feeds[0], writer.native(node))
        options = writer.s.ReducerOptionsT()
        options.keepDims = True
        axes = writer.constant("axes", np.asarray([1, 2], np.int32))
        writer.op("MEAN", 2, [source, axes], writer.result(node), options)


def _pools_all(node: Any) -> bool:
    """Whether an ATen average pool is the mean of the whole map."""
    _, kernel, _, padding, _, _, divisor = arguments(node, None, None, [], [0, 0], False, True, None)
    sides = shape_of(node.args[0])[2:]
    return pair(kernel)[-len(sides) :] == sides and not any(pair(padding)) and divisor is None
