"""ReLU and ReLU6: the output clamp of what feeds them, or a clamp of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from paredown.pipeline.graph.operations.operation import QMAX, Codes, Operation
from paredown.pipeline.graph.operations.placement import LITERT, Rule

if TYPE_CHECKING:
    from paredown.pipeline.graph.graph import Node
    from paredown.pipeline.graph.tracer import Tracer
    from paredown.pipeline.lower.executorch.program import QdqModule
    from paredown.pipeline.lower.integer import Affine, IntegerNode
    from paredown.pipeline.lower.litert.program import Writer


def _no_map(node: IntegerNode, feed: IntegerNode) -> bool:
    return len(node.shape) != 4


class Relu(Operation):
    """Attributes where low-bit: step, levels, and offset where it is not 0.

    It makes multiples 0..levels - offset of step.
    """

    aten: ClassVar[tuple[str, ...]] = ("relu",)
    pointwise = True
    channelwise = True
    same_scale = True
    is_relu = True
    homogeneous = True
    keeps_sign = True
    onednn: ClassVar[tuple[str, tuple[Any, ...]] | None] = ("relu", ())
    rules = {
        LITERT: (
            Rule(
                _no_map,
                "XNNPACK has no int8 ReLU; over maps it is written as a pool, here it cannot be",
                "put it right behind a convolution, a linear layer or an addition, which take it in",
            ),
        )
    }

    def trace(self, tracer: Tracer, node: Any) -> None:
        tracer.add(node, "relu", (tracer.feed(node),))

    def compute(self, node: Node, *inputs: Tensor) -> Tensor:
        if "levels" in node.attrs:
            return self._stepped(node, inputs[0], self._most(node))
        return F.relu(inputs[0])

    def _most(self, node: Node) -> int:
        return int(node.attrs["levels"] - node.attrs.get("offset", 0))

    def _stepped(self, node: Node, x: Tensor, most: float) -> Tensor:
        return (x / node.attrs["step"]).clamp(0, most).round() * node.attrs["step"]

    def limits(self, out: Affine) -> tuple[int, int]:
        return out.zero_point, QMAX

    def codes(self, node: IntegerNode, feeds: Sequence[IntegerNode], inputs: Sequence[Codes]) -> Codes:
        return np.clip(inputs[0], node.low, node.high).astype(np.int8)

    def executorch(self, program: QdqModule, node: IntegerNode, reals: Sequence[Tensor]) -> Tensor:
        return F.relu(reals[0])

    def litert(self, writer: Writer, node: Any, feeds: Sequence[Any]) -> None:
        """XNNPACK takes no int8 RELU, but the clamp of a pool over one pixel."""
        layout = writer.native(node)
        source = writer.read(feeds[0], layout)
        if layout != "nhwc" or not writer.integer:
            writer.op(node.kind.upper(), 2, [source], writer.result(node))
            return
        options = writer.s.Pool2DOptionsT()
        options.padding = writer.s.Padding.VALID
        options.strideH = options.strideW = options.filterHeight = options.filterWidth = 1
        options.fusedActivationFunction = getattr(writer.s.ActivationFunctionType, node.kind.upper())
        writer.op("MAX_POOL_2D", 2, [source], writer.result(node), options)


class Relu6(Relu):
    """The same, with 6 as the most."""

    aten = ("relu6",)
    homogeneous = False
    onednn = ("hardtanh", (0.0, 6.0))
    top = 6.0

    def trace(self, tracer: Tracer, node: Any) -> None:
        tracer.add(node, "relu6", (tracer.feed(node),))

    def compute(self, node: Node, *inputs: Tensor) -> Tensor:
        if "levels" in node.attrs:
            return self._stepped(node, inputs[0], min(self._most(node), 6 / node.attrs["step"]))
        return F.relu6(inputs[0])

    def limits(self, out: Affine) -> tuple[int, int]:
        top = int(np.rint(np.float32(6) / np.float32(out.scale))) + out.zero_point
        return out.zero_point, min(QMAX, top)

    def executorch(self, program: QdqModule, node: IntegerNode, reals: Sequence[Tensor]) -> Tensor:
        return F.relu6(reals[0])
