"""Softmax over the channels, and its logarithm.

XNNPACK has no int8 softmax, but a float one: programs dequantize, compute in float32 and quantize, all within
the delegate. Codes are those of the exact softmax. XNNPACK's is within a few units of float32's last place,
in an order of additions that depends on the processor: where an exact value lies that near to the middle
between two codes (of a few million random values one did) a program gives the neighbour.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from paredown.pipeline.graph.aten import arguments, shape_of
from paredown.pipeline.graph.operations.operation import Codes, Operation, clamped

if TYPE_CHECKING:
    from paredown.pipeline.compress.coupling.flow import Flow, Labels
    from paredown.pipeline.graph.graph import Node
    from paredown.pipeline.graph.tracer import Tracer
    from paredown.pipeline.lower.executorch.program import QdqModule
    from paredown.pipeline.lower.integer import IntegerNode, Scales
    from paredown.pipeline.lower.litert.program import Writer


#: Added before the logarithm, so that what is too small for float32 has one: nothing is below e to the -69.
LEAST = 1e-30
#: So many times their mean has a code, whatever the calibration saw.
SPARE = 4


class Softmax(Operation):
    """No attributes; over axis 1."""

    aten: ClassVar[tuple[str, ...]] = ("softmax", "_softmax")
    kind: ClassVar[str] = "softmax"
    folds = True
    ignores_low = True
    keeps_sign = True

    def trace(self, tracer: Tracer, node: Any) -> None:
        rank = len(shape_of(node))
        dim = int(arguments(node, None, None)[1]) % rank
        flat = rank == 2 and not tracer.folded(node.args[0])
        if tracer.held(node.args[0])[1][dim] == 0 or rank < 2:
            raise tracer.unknown(node, f"over axis {dim} of {rank} is not known")
        feed = tracer.feed(node) if flat else tracer.map(node, channels=dim)
        tracer.add(node, self.kind, (feed,))

    def compute(self, node: Node, *inputs: Tensor) -> Tensor:
        return inputs[0].softmax(1)

    def from_zero(self, node: Node) -> bool:
        return False

    def along(self, node: Node) -> int | None:
        return None

    def follow(self, flow: Flow, node: Node) -> Labels:
        labels = flow.channels(node.inputs[0])
        if flow.axes[node.name] == 2:  # each head has a softmax of its own
            return labels
        flow.lock(labels, f"passes through {node.name}, where every channel counts for every other")
        return labels

    def line(self, flow: Flow, node: Node, units: set[int], first: str, read: bool, makes: bool) -> str:
        if read and flow.axes[node.name] == 2:
            return f"{node.name} carries them, each for itself"
        return f"{node.name} reads them together: locked" if read else ""

    def widen(self, node: Node, scales: Scales) -> None:
        """It can reach more than was calibrated: of few values one, of many their mean some times over."""
        scales.widen(node.name, min(1.0, SPARE / node.shape[1]) / 255)

    def codes(self, node: IntegerNode, feeds: Sequence[IntegerNode], inputs: Sequence[Codes]) -> Codes:
        x = feeds[0].out.dequantize(inputs[0]).astype(np.float64)
        powers = np.exp(x - x.max(1, keepdims=True))
        made = self._of(powers, powers.sum(1, keepdims=True))
        return clamped(np.rint(made / node.out.scale), node)

    def _of(self, powers: NDArray[np.float64], total: NDArray[np.float64]) -> NDArray[np.float64]:
        return powers / total

    def executorch(self, program: QdqModule, node: IntegerNode, reals: Sequence[Tensor]) -> Tensor:
        """Over the last of two axes: of four, behind a convolution, XNNPACK gave wrong values."""
        (x,) = reals
        if x.ndim == 2:
            return self._last(x)
        _, channels, height, width = x.shape
        rows = x.permute(0, 2, 3, 1).reshape(height * width, channels)
        return self._last(rows).reshape(1, height, width, channels).permute(0, 3, 1, 2)

    def _last(self, x: Tensor) -> Tensor:
        return F.softmax(x, -1)

    def litert(self, writer: Writer, node: Any, feeds: Sequence[Any]) -> None:
        source = writer.real(writer.read(feeds[0], writer.native(node)), f"{node.name}/input")
        with writer.quantized(writer.result(node), f"{node.name}/output") as made:
            self._write(writer, node, source, made)

    def _write(self, writer: Writer, node: Any, source: int, made: int) -> None:
        options = writer.s.SoftmaxOptionsT()
        options.beta = 1.0
        writer.op("SOFTMAX", 1, [source], made, options)


class LogSoftmax(Softmax):
    """The same, and its logarithm."""

    aten = ("log_softmax", "_log_softmax")
    kind = "log_softmax"
    ignores_low = False
    keeps_sign = False

    def compute(self, node: Node, *inputs: Tensor) -> Tensor:
        return inputs[0].log_softmax(1)

    def widen(self, node: Node, scales: Scales) -> None:
        """As calibrated."""

    def _of(self, powers: NDArray[np.float64], total: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.log(powers / total + LEAST)

    def _last(self, x: Tensor) -> Tensor:
        return torch.log(F.softmax(x, -1) + LEAST)

    def _write(self, writer: Writer, node: Any, source: int, made: int) -> None:
        shape = tuple(writer.sub.tensors[made].shape)
        powers, more = (writer.like(made, f"{node.name}/{word}", shape) for word in ("softmax", "least"))
        super()._write(writer, node, source, powers)
        least = writer.constant("least", np.full(1, LEAST, np.float32))
        writer.op("ADD", 2, [powers, least], more, writer.s.AddOptionsT())
        writer.op("LOG", 1, [more], made)
