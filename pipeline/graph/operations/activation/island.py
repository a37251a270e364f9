"""What no integer kernel computes stays in float: an island between a dequantize and a quantize (our design).

The node keeps the ATen operation's name and arguments (`floats.py`), and both runtimes compute
it with their float kernels. An operation on single values is a `function` where it reads one tensor
(`function.py`); any other is an `island`. Floats are added in an order that is the runtime's own: where a
value is as good as halfway between two codes, a program gives the neighbour: `tolerance` is what parity
grants.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paredown.pipeline.graph.operations.activation import floats
from paredown.pipeline.graph.operations.operation import Codes, Operation, clamped
from paredown.targets.errors import InputError

if TYPE_CHECKING:
    from paredown.pipeline.compress.coupling.flow import Flow, Labels
    from paredown.pipeline.graph.graph import Node
    from paredown.pipeline.lower.executorch.program import QdqModule
    from paredown.pipeline.lower.integer import IntegerNode, Scales
    from paredown.pipeline.lower.litert.program import Writer


class Island(Operation):
    """`op`, `given`, `takes`, `held`, `makes`, `result`: `floats.described`; `single`: on single values.

    `line` is the line of the user's code, `why` what keeps it from being a known kind.
    """

    kind: ClassVar[str] = "island"
    island = True
    tolerance = 1

    def compute(self, node: Node, *inputs: Tensor) -> Tensor:
        return floats.run(node.attrs, node.constants, inputs)

    def from_zero(self, node: Node) -> bool:
        return bool((self.at_zero(node) == 0).all())

    def at_zero(self, node: Node) -> Tensor:
        """What it makes of zeros."""
        zeros = [torch.zeros(1, *[1] * (len(node.shape) - 1)) for _ in node.inputs]
        return self.compute(node, *zeros)

    def follow(self, flow: Flow, node: Node) -> Labels:
        read = [flow.channels(name) for name in node.inputs]
        if self._passes(node, read):
            for other in read[1:]:
                flow.tie(read[0], other)
            return read[0]
        return flow.unknown(node, "is computed in float as a whole")

    def _passes(self, node: Node, read: Sequence[Labels]) -> bool:
        """Whether channels may go: the same number on all sides, each made of its own, zero from zeros."""
        alike = {len(labels) for labels in read} == {node.shape[1]}
        plain = all(constant.numel() == 1 for constant in node.constants)
        return bool(node.attrs["single"]) and alike and plain and self.from_zero(node)

    def line(self, flow: Flow, node: Node, units: set[int], first: str, read: bool, makes: bool) -> str:
        if makes and len(node.inputs) > 1:
            return f"{node.name} ({node.attrs['op']}) reads {' and '.join(node.inputs)}: tied"
        return f"{node.name} ({node.attrs['op']}) reads them together: locked" if read and not makes else ""

    def fixed(self, node: Node) -> tuple[float, int] | None:
        """A mask is zeros and ones."""
        return (1.0, 0) if node.attrs["makes"] == "bool" else None

    def widen(self, node: Node, scales: Scales) -> None:
        """A step of a whole number is one."""
        if node.attrs["makes"] != "int64":
            return
        if scales[node.name] > 1 + 1e-6:
            raise InputError(
                f"{node.attrs['op']} makes whole numbers over more than 255, which 8 bits do not hold",
                where=node.source or node.attrs["line"] or node.name,
                hint="compute it behind the network",
            )
        scales.widen(node.name, 1.0)

    def codes(self, node: IntegerNode, feeds: Sequence[IntegerNode], inputs: Sequence[Codes]) -> Codes:
        reals = [torch.from_numpy(f.out.dequantize(x)) for f, x in zip(feeds, inputs, strict=True)]
        constants = [torch.from_numpy(np.asarray(each)) for each in node.constants]
        made = floats.run(node.attrs, constants, reals).numpy().astype(np.float64)
        return coded(made, node)

    def recipe(self, node: Node | IntegerNode, constants: Sequence[Tensor]) -> Callable[..., Tensor]:
        return floats.function(node.attrs, constants)

    def executorch(self, program: QdqModule, node: IntegerNode, reals: Sequence[Tensor]) -> Tensor:
        made = program.island(node, reals)
        return torch.where(made == made, made, torch.zeros_like(made)) if node.attrs["nan"] else made

    def card_kind(self, node: IntegerNode, feed: IntegerNode) -> str:
        """Cards know none of them."""
        return f"{node.attrs['op'].removeprefix('aten::').partition('.')[0]} in float"

    def litert(self, writer: Writer, node: Any, feeds: Sequence[Any]) -> None:
        writer.island(node, feeds)


def coded(made: NDArray[np.float64], node: IntegerNode) -> Codes:
    """Real values as codes: what is no number is zero, what is infinite the last code."""
    units = np.nan_to_num(made / np.float64(np.float32(node.out.scale)), nan=0.0)
    return clamped(np.clip(np.rint(units), -1024, 1024), node)
