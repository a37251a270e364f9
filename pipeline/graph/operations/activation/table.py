"""Functions of one value: on int8 a table of 256 codes, whatever the function is (our design).

The table is computed in float64 and rounded half to even. XNNPACK and TFLite compute theirs in float32, each
in its own way; they come out alike where no value is as good as halfway between two codes. So the scales are
moved until none is. `pipeline.lower.parity` then proves it: it runs all 256 codes of every such node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from paredown.pipeline.graph.aten import arguments
from paredown.pipeline.graph.operations.operation import QMAX, QMIN, Codes, Operation, clamped

if TYPE_CHECKING:
    from paredown.pipeline.graph.graph import Node
    from paredown.pipeline.graph.tracer import Tracer
    from paredown.pipeline.lower.executorch.program import QdqModule
    from paredown.pipeline.lower.integer import Affine, IntegerNode, Scales
    from paredown.pipeline.lower.litert.program import Writer


#: How near to halfway float32 arithmetic may end up on the other side, as a share of the value in codes.
HALFWAY = 2e-6
#: A scale is moved by this factor.
NUDGE = 1 + 2.0**-14


class Table(Operation):
    """A function of one value. A subclass needs `aten`, `function` and `builtin`.

    Attributes:
        builtin: TFLite's operator, and the version that takes int8.
    """

    channelwise = True
    pointwise = True
    table = True
    builtin: ClassVar[tuple[str, int]]

    def kind(self, node: Any) -> str:
        """The name of the kind that an ATen node becomes."""
        return self.aten[0]

    def attributes(self, tracer: Tracer, node: Any) -> dict[str, Any]:
        """The attributes that an ATen node has."""
        return {}

    def function(self, x: Tensor, attrs: Mapping[str, Any]) -> Tensor:
        """The function, elementwise."""
        raise NotImplementedError

    def trace(self, tracer: Tracer, node: Any) -> None:
        attrs = self.attributes(tracer, node)
        tracer.add(node, self.kind(node), (tracer.feed(node),), attrs=attrs)

    def compute(self, node: Node, *inputs: Tensor) -> Tensor:
        return self.function(inputs[0], node.attrs)

    def widen(self, node: Node, scales: Scales) -> None:
        moved = node.name if self.fixed(node) is None else node.inputs[0]
        while self._halfway(node, scales.affine(node.inputs[0]), scales.affine(node.name)):
            scales.widen(moved, scales[moved] * NUDGE)

    def _halfway(self, node: Node, source: Affine, out: Affine) -> bool:
        """Whether a value is as good as halfway between two codes."""
        real = torch.from_numpy(source.dequantize(_every())).double()
        units = self.function(real, node.attrs).numpy() / np.float64(np.float32(out.scale))
        inside = (units > QMIN - out.zero_point - 1) & (units < QMAX - out.zero_point + 1)
        away = np.abs(np.abs(units - np.floor(units)) - 0.5)
        return bool((inside & (away < HALFWAY * np.maximum(1, np.abs(units)))).any())

    def codes(self, node: IntegerNode, feeds: Sequence[IntegerNode], inputs: Sequence[Codes]) -> Codes:
        real = feeds[0].out.dequantize(_every())
        made = self.function(torch.from_numpy(real).double(), node.attrs).numpy()
        table = clamped(np.rint(made / np.float64(np.float32(node.out.scale))), node)
        return table[inputs[0].astype(np.int16) + 128]

    def executorch(self, program: QdqModule, node: IntegerNode, reals: Sequence[Tensor]) -> Tensor:
        return self.function(reals[0], node.attrs)

    def litert(self, writer: Writer, node: Any, feeds: Sequence[Any]) -> None:
        source = writer.read(feeds[0], writer.native(node))
        name, version = self.builtin
        writer.op(name, version if writer.integer else 1, [source], writer.result(node))


def _every() -> Codes:
    """All codes."""
    return np.arange(QMIN, QMAX + 1).astype(np.int8)


class Sigmoid(Table):
    """No attributes. TFLite prescribes the scale of the output."""

    aten = ("sigmoid",)
    builtin = ("LOGISTIC", 2)
    channelwise = False
    keeps_sign = True

    def function(self, x: Tensor, attrs: Mapping[str, Any]) -> Tensor:
        return torch.sigmoid(x)

    def from_zero(self, node: Node) -> bool:
        return False

    def fixed(self, node: Node) -> tuple[float, int]:
        return 1 / 256, -128


class Tanh(Table):
    """No attributes. TFLite prescribes the scale of the output."""

    aten = ("tanh",)
    builtin = ("TANH", 2)
    keeps_sign = True

    def function(self, x: Tensor, attrs: Mapping[str, Any]) -> Tensor:
        return torch.tanh(x)

    def fixed(self, node: Node) -> tuple[float, int]:
        return 1 / 128, 0


class Elu(Table):
    """No attributes: its alpha is 1."""

    aten = ("elu",)
    builtin = ("ELU", 1)

    def attributes(self, tracer: Tracer, node: Any) -> dict[str, Any]:
        if tuple(arguments(node, None, 1.0, 1.0, 1.0)[1:]) != (1, 1, 1):
            raise tracer.unknown(node, "has an alpha or a scale other than 1, which TFLite's ELU has not")
        return {}

    def function(self, x: Tensor, attrs: Mapping[str, Any]) -> Tensor:
        return F.elu(x)


class Gelu(Table):
    """No attributes: x times the normal distribution's integral up to x."""

    aten = ("gelu",)
    builtin = ("GELU", 2)

    def attributes(self, tracer: Tracer, node: Any) -> dict[str, Any]:
        if node.kwargs.get("approximate", "none") != "none":
            raise tracer.unknown(node, "is approximated by tanh; only the exact one is known: F.gelu(x)")
        return {}

    def function(self, x: Tensor, attrs: Mapping[str, Any]) -> Tensor:
        return F.gelu(x)

    def litert(self, writer: Writer, node: Any, feeds: Sequence[Any]) -> None:
        """In float32 between codes: XNNPACK's delegate in LiteRT takes no GELU of int8."""
        source = writer.real(writer.read(feeds[0], writer.native(node)), f"{node.name}/input")
        with writer.quantized(writer.result(node), f"{node.name}/output") as made:
            writer.op("GELU", 1, [source], made, writer.s.GeluOptionsT())
