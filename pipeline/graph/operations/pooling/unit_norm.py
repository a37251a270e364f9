"""Vectors of length 1, as `F.normalize` makes them: the values of a row by the root of their squares' sum.

ATen has it in four operations, of which one spreads the length over the row. Together they are one kind, and
exact where `normalize` is: in float32, within the delegate, from whole numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from paredown.pipeline.graph.aten import arguments, module_path, shape_of, target
from paredown.pipeline.graph.operations.operation import Codes, Operation, Shape
from paredown.pipeline.graph.operations.pooling.normalize import Normalize
from paredown.pipeline.graph.operations.pooling.whole import (
    Steps,
    offsets,
    requantized,
    total,
    totals,
    whole,
)

if TYPE_CHECKING:
    from paredown.pipeline.compress.coupling.flow import Flow, Labels
    from paredown.pipeline.graph.graph import Node
    from paredown.pipeline.graph.tracer import Tracer
    from paredown.pipeline.lower.executorch.program import QdqModule
    from paredown.pipeline.lower.integer import IntegerNode
    from paredown.pipeline.lower.litert.program import Writer

#: A length below which torch divides by this number; where it is larger, it counts, and is not known here.
MOST_EPS = 1e-6
#: Keeps a row of zeros what it is; next to the square of one code it is nothing.
LEAST = 1e-12


class UnitNorm(Normalize):
    """No attributes but Normalize's: groups is 0, each pixel of a map is a row."""

    aten: ClassVar[tuple[str, ...]] = ("linalg_vector_norm", "clamp_min", "expand_as", "div")

    def takes(self, node: Any) -> bool:
        """Whether an operation is one of the four, and their results go nowhere else."""
        while target(node) != "div":
            if len(node.users) != 1 or target(node) not in self.aten:
                return False
            (node,) = node.users
        return _dim(node) is not None

    def trace(self, tracer: Tracer, node: Any) -> None:
        if not self.takes(node):
            raise tracer.unknown(node, "is known only in F.normalize, along one axis", "use F.normalize(x)")
        dim = _dim(node) if target(node) == "div" else None
        if dim is None:
            tracer.skip(node)
            return
        rank, name = len(shape_of(node)), module_path(node) or node.name
        attrs = {"groups": 0, "eps": LEAST}
        if rank == 2 and not tracer.folded(node.args[0]):
            shape: Shape = (1, shape_of(node)[1], 1, 1)
            feed = tracer.add(node, "reshape", (tracer.feed(node),), shape=shape, name=f"{name}.map",
                              attrs={"shape": shape})  # fmt: skip
            tracer.add(node, "unit_norm", (feed,), shape=shape, attrs=attrs, name=name)
            self._flat(tracer, node, name)
            return
        feed = tracer.map(node, channels=dim)
        tracer.add(node, "unit_norm", (feed,), shape=tracer.nodes[feed].shape, attrs=attrs, name=name)

    def compute(self, node: Node, *inputs: Tensor) -> Tensor:
        (x,) = inputs
        return x / torch.sqrt((x * x).sum(1, keepdim=True)).clamp_min(LEAST)

    def follow(self, flow: Flow, node: Node) -> Labels:
        """A channel of zeros adds nothing to the length: channels pass, as through what computes each."""
        return Operation.follow(self, flow, node)

    def line(self, flow: Flow, node: Node, units: set[int], first: str, read: bool, makes: bool) -> str:
        return f"{node.name} brings them to length 1" if read else ""

    def thinned(self, node: Node, shape: Shape, groups: int) -> Mapping[str, Any]:
        return node.attrs

    def codes(self, node: IntegerNode, feeds: Sequence[IntegerNode], inputs: Sequence[Codes]) -> Codes:
        (feed,), (x,) = feeds, inputs
        moved = x.transpose(0, 2, 3, 1)
        rows = offsets(moved, feed.out)
        length = np.sqrt(total(rows * rows) + np.float32(LEAST))
        codes = requantized(rows / length, node)
        return np.ascontiguousarray(codes.reshape(moved.shape).transpose(0, 3, 1, 2))

    def executorch(self, program: QdqModule, node: IntegerNode, reals: Sequence[Tensor]) -> Tensor:
        (x,), feed = reals, program.graph[node.inputs[0]]
        ones = program.constant(node, "ones"), program.constant(node, "parts")
        moved = x.permute(0, 2, 3, 1)
        rows = whole(moved.reshape(-1, moved.shape[3]), feed.out)
        made = rows / torch.sqrt(totals(rows * rows, *ones) + LEAST)
        return made.reshape(moved.shape).permute(0, 3, 1, 2)

    def _written(self, writer: Writer, steps: Steps, node: Any, feed: Any, rows: int) -> int:
        if writer.integer:
            rows = steps.whole(rows, feed.out)
        length = steps.totals(steps.pair("MUL", rows, rows))
        return steps.pair("DIV", rows, steps.root(steps.by("ADD", length, LEAST)))


def _dim(node: Any) -> int | None:
    """The axis along which a division brings what it reads to length 1; None where it does not."""
    given, length = node.args[:2]
    if node.kwargs.get("rounding_mode") or not hasattr(length, "target"):
        return None
    for name in ("expand_as", "clamp_min"):
        if target(length) == name:
            if name == "clamp_min" and not 0 <= float(length.args[1]) <= MOST_EPS:
                return None
            length = length.args[0]
    if target(length) != "linalg_vector_norm" or length.args[0] is not given:
        return None
    _, order, dims, keep, _ = arguments(length, None, 2, None, False, None)
    rank = len(shape_of(given))
    if order != 2 or not keep or dims is None or len(dims) != 1 or rank not in (2, 3, 4):
        return None
    return (int(dims[0]) % rank) or None
