"""Padding by zeros; before a max pool also by minus infinity. Convolutions and pools take it in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from paredown.pipeline.graph.aten import shape_of, target
from paredown.pipeline.graph.operations.operation import Codes, Operation

if TYPE_CHECKING:
    from paredown.pipeline.graph.graph import Node
    from paredown.pipeline.graph.tracer import Tracer
    from paredown.pipeline.lower.executorch.program import QdqModule
    from paredown.pipeline.lower.integer import IntegerNode
    from paredown.pipeline.lower.litert.program import Writer


class Pad(Operation):
    """Attributes: padding (left, right, top, bottom), value."""

    aten = ("pad", "constant_pad_nd")
    channelwise = True
    same_scale = True
    keeps_sign = True

    def trace(self, tracer: Tracer, node: Any) -> None:
        _, padding, *rest = node.args
        value = rest[-1] if rest and not isinstance(rest[-1], str) else 0.0
        value = 0.0 if value is None else float(value)
        mode = rest[0] if rest and isinstance(rest[0], str) else "constant"
        lowest = value == float("-inf")
        pooled = all(target(user) in {"max_pool1d", "max_pool2d"} for user in node.users)
        if mode != "constant" or (value != 0 and not (lowest and pooled)):
            raise tracer.unknown(node, f"({mode}, {value}) is known with zeros, or -inf before max_pool2d")
        axes = len(shape_of(node)) - 2
        if len(padding) > 2 * axes or min(padding) < 0 or axes not in {1, 2}:
            raise tracer.unknown(node, f"by {tuple(padding)} is known outwards, over height and width only")
        padding = tuple(padding) + (0,) * (4 - len(padding))
        tracer.add(node, "pad", (tracer.map(node),), attrs={"padding": padding, "value": value})

    def compute(self, node: Node, *inputs: Tensor) -> Tensor:
        return F.pad(inputs[0], node.attrs["padding"], value=node.attrs.get("value", 0.0))

    def codes(self, node: IntegerNode, feeds: Sequence[IntegerNode], inputs: Sequence[Codes]) -> Codes:
        left, right, top, bottom = node.attrs["padding"]
        widths = ((0, 0), (0, 0), (top, bottom), (left, right))
        return np.pad(inputs[0], widths, constant_values=node.out.zero_point)

    def executorch(self, program: QdqModule, node: IntegerNode, reals: Sequence[Tensor]) -> Tensor:
        return F.pad(reals[0], node.attrs["padding"])

    def litert(self, writer: Writer, node: Any, feeds: Sequence[Any]) -> None:
        source = writer.read(feeds[0], writer.native(node))
        writer.pad(source, writer.result(node), node.attrs["padding"])
