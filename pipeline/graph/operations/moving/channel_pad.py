"""Channels of zeros before and behind those of a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from paredown.pipeline.graph.operations.operation import Codes, Operation

if TYPE_CHECKING:
    from paredown.pipeline.compress.coupling.flow import Flow, Labels
    from paredown.pipeline.graph.graph import Node
    from paredown.pipeline.lower.executorch.program import QdqModule
    from paredown.pipeline.lower.integer import IntegerNode
    from paredown.pipeline.lower.litert.program import Writer


class ChannelPad(Operation):
    """Attributes: channels (before, behind). `Pad` traces it."""

    same_scale = True
    keeps_sign = True

    def compute(self, node: Node, *inputs: Tensor) -> Tensor:
        (x,) = inputs
        return F.pad(x, (*[0, 0] * (x.dim() - 2), *node.attrs["channels"]))

    def follow(self, flow: Flow, node: Node) -> Labels:
        """The zeros stay, since forward() holds how many they are."""
        zeros = [flow.new(count) for count in node.attrs["channels"]]
        for labels in zeros:
            flow.lock(labels, f"is added to zeros of a fixed number at {node.source or node.name}")
        return np.concatenate([zeros[0], flow.channels(node.inputs[0]), zeros[1]])

    def line(self, flow: Flow, node: Node, units: set[int], first: str, read: bool, makes: bool) -> str:
        return f"{node.name} puts zeros beside them" if makes else ""

    def channels_read(self, node: Node, rows: int, whole: int) -> int:
        return rows - sum(node.attrs["channels"])

    def codes(self, node: IntegerNode, feeds: Sequence[IntegerNode], inputs: Sequence[Codes]) -> Codes:
        widths = [(0, 0), node.attrs["channels"], *[(0, 0)] * (len(node.shape) - 2)]
        return np.pad(inputs[0], widths, constant_values=node.out.zero_point)

    def executorch(self, program: QdqModule, node: IntegerNode, reals: Sequence[Tensor]) -> Tensor:
        return F.pad(reals[0], (*[0, 0] * (len(node.shape) - 2), *node.attrs["channels"]))

    def litert(self, writer: Writer, node: Any, feeds: Sequence[Any]) -> None:
        source = writer.read(feeds[0], writer.native(node))
        widths = np.zeros((len(node.shape), 2), np.int32)
        widths[writer.axis(node, 1)] = node.attrs["channels"]
        amounts = writer.constant("pads", widths)
        writer.op("PAD", 2, [source, amounts], writer.result(node), writer.s.PadOptionsT())

    def card_kind(self, node: IntegerNode, feed: IntegerNode) -> str:
        """The same operator."""
        return "pad"
