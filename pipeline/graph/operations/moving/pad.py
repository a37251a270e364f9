"""Padding by zeros; before a max pool also by minus infinity. Convolutions and pools take it in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from paredown.pipeline.graph.aten import module_path, shape_of, target
from paredown.pipeline.graph.operations.moving.resize import resized
from paredown.pipeline.graph.operations.moving.slice import sliced
from paredown.pipeline.graph.operations.operation import Codes, Operation

if TYPE_CHECKING:
    from paredown.pipeline.graph.graph import Node
    from paredown.pipeline.graph.tracer import Tracer
    from paredown.pipeline.lower.executorch.program import QdqModule
    from paredown.pipeline.lower.integer import IntegerNode
    from paredown.pipeline.lower.litert.program import Writer


#: ATen name -> mode, of those that take the values of the border.
MODES = {
    "reflection_pad2d": "reflect", "replication_pad2d": "replicate", "circular_pad": "circular",
}  # fmt: skip


class Pad(Operation):
    """Attributes: padding (left, right, top, bottom), value."""

    aten = ("pad", "constant_pad_nd", "reflection_pad2d", "replication_pad2d")
    channelwise = True
    same_scale = True
    keeps_sign = True

    def trace(self, tracer: Tracer, node: Any) -> None:
        _, padding, *rest = node.args
        if not any(padding):
            tracer.skip(node)
            return
        value = rest[-1] if rest and not isinstance(rest[-1], str) else 0.0
        value = 0.0 if value is None else float(value)
        mode = rest[0] if rest and isinstance(rest[0], str) else MODES.get(target(node), "constant")
        lowest = value == float("-inf")
        pooled = all(target(user) in {"max_pool1d", "max_pool2d"} for user in node.users)
        constant = mode == "constant" and (value == 0 or (lowest and pooled))
        if not constant and mode not in MODES.values():
            raise tracer.unknown(
                node, f"({mode}, {value}) is known with zeros, with values of its border, or -inf before "
                "max_pool2d",
            )  # fmt: skip
        rank = len(shape_of(node))
        pads = list(zip(padding[::2], padding[1::2], strict=True))[::-1]  # of the last dims
        pads = [(0, 0)] * (rank - len(pads)) + [(int(a), int(b)) for a, b in pads]
        if rank == 3:  # a map of height one
            pads.insert(2, (0, 0))
        known = (1, 2, 3) if mode == "constant" and value == 0 else (2, 3)
        if rank not in {3, 4} or any(any(pads[dim]) for dim in range(4) if dim not in known):
            raise tracer.unknown(
                node, f"by {tuple(padding)} is known over height and width, and with zeros over channels"
            )
        feed, name = tracer.map(node, turned=False), module_path(node) or node.name
        if mode != "constant":
            shape = tracer.nodes[feed].shape
            places = [_border(mode, shape[dim], *pads[dim]) for dim in (2, 3)]
            tracer.alias[node.name] = resized(tracer, node, feed, *places)
            return
        feed, pads = _cropped(tracer, node, feed, pads, name)
        if any(pads[1]):
            (front, back), shape = pads[1], tracer.nodes[feed].shape
            alone = not any(pads[2] + pads[3])
            feed = tracer.add(
                node, "channel_pad", (feed,), shape=(1, shape[1] + front + back, *shape[2:]),
                name=name if alone else f"{name}.channels", attrs={"channels": (front, back)},
            )  # fmt: skip
        tracer.alias[node.name] = feed
        if any(pads[2] + pads[3]):
            attrs = {"padding": (*pads[3], *pads[2]), "value": value}
            tracer.add(node, "pad", (feed,), attrs=attrs)

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


def _cropped(
    tracer: Tracer, node: Any, feed: str, pads: list[tuple[int, int]], name: str
) -> tuple[str, list[tuple[int, int]]]:
    """Takes in what pads are negative: the name of a slice, and the pads that are left."""
    shape = tracer.nodes[feed].shape
    ranges = {
        dim: range(max(-a, 0), size - max(-b, 0))
        for dim, (size, (a, b)) in enumerate(zip(shape, pads, strict=True)) if min(a, b) < 0
    }  # fmt: skip
    if ranges:
        feed = sliced(tracer, node, feed, ranges, name=f"{name}.cropped")
    return feed, [(max(a, 0), max(b, 0)) for a, b in pads]


def _border(mode: str, size: int, before: int, behind: int) -> list[int]:
    """Which place of an axis each place of the padded axis is; what is negative goes of the whole axis."""
    numbers = np.arange(size)
    kind = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}[mode]
    widths = (max(before, 0), max(behind, 0))
    found: list[int] = np.pad(numbers, widths, mode=kind).tolist()  # type: ignore[call-overload]
    return found[max(-before, 0) : len(found) - max(-behind, 0)]
