"""Float32 arithmetic that all kernels do alike: sums of whole numbers.

Programs that compute within the delegate in float32 add in an order that depends on the processor. A sum of
whole numbers below 2**24 is exact in any order. So what such an operation reads is brought to its codes minus
the zero point: times 1 / scale, and rounded, by adding a number beside which float32 has no fractions and
taking it away again. Long sums are made of parts, whose thousands and units are added apart. Every other step
is one operation on single values, which IEEE 754 prescribes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray

from paredown.pipeline.graph.operations.operation import Codes, clamped

if TYPE_CHECKING:
    from torch import Tensor

    from paredown.pipeline.lower.integer import Affine, IntegerNode
    from paredown.pipeline.lower.litert.program import Writer

Floats = NDArray[np.float32]
#: Beside this float32 has no fractions: 1.5 * 2**23.
WHOLE = 12582912.0
#: So many squares of differences of codes stay below 2**24.
MOST_SQUARES = 258
THOUSANDS = 4096.0


def inverse(scale: float) -> float:
    """1 / scale, as float32."""
    return float(np.float32(1) / np.float32(scale))


def rounded(x: Tensor) -> Tensor:
    """The nearest whole numbers, half to even."""
    return (x + WHOLE) - WHOLE


def whole(x: Tensor, out: Affine) -> Tensor:
    """Codes minus the zero point, of dequantized values."""
    return rounded(x * inverse(out.scale))


def offsets(codes: Codes, out: Affine) -> Floats:
    """Codes minus the zero point, as float32."""
    return codes.astype(np.float32) - np.float32(out.zero_point)


def total(x: NDArray[Any]) -> Floats:
    """Sums along the last axis, which stays: exact, then float32."""
    return x.astype(np.float64).sum(-1, keepdims=True).astype(np.float32)


def parts_of(size: int) -> int:
    """Into how many parts of one length a sum of so many squares is divided."""
    return next(n for n in range(-(-size // MOST_SQUARES), size + 1) if size % n == 0)


def totals(rows: Tensor, ones: Tensor, parts: Tensor) -> Tensor:
    """The sums of the rows of a matrix, as products with ones: as many as a part has, and as there are parts.

    XNNPACK has no sum in ExecuTorch.
    """
    count, length = len(rows), ones.shape[1]
    sums = F.linear(rows.reshape(-1, length), ones)
    if parts.shape[1] == 1:
        return sums
    sums = sums.reshape(count, -1)
    high = rounded(sums * (1 / THOUSANDS))
    return F.linear(high, parts) * THOUSANDS + F.linear(sums - high * THOUSANDS, parts)


def requantized(x: Floats, node: IntegerNode) -> Codes:
    """Float32 values as codes of a node, as the kernels quantize."""
    return clamped(np.rint(x * np.float32(1 / np.float64(node.out.scale))), node)


class Steps:
    """Writes float32 operators of a .tflite, one after another, each with a tensor of its own.

    Args:
        writer: of the file.
        name: of the node: the tensors' begin with it.
    """

    def __init__(self, writer: Writer, name: str) -> None:
        self.writer, self.name, self._count = writer, name, 0

    def shape(self, tensor: int) -> tuple[int, ...]:
        """Of a tensor."""
        return tuple(int(n) for n in self.writer.sub.tensors[tensor].shape)

    def fresh(self, like: int, shape: tuple[int, ...]) -> int:
        """A new tensor."""
        self._count += 1
        return self.writer.like(like, f"{self.name}/step{self._count}", shape)

    def number(self, value: float) -> int:
        """A constant of one number."""
        return self.writer.constant("number", np.asarray([value], np.float32))

    def pair(self, kind: str, one: int, other: int, target: int | None = None) -> int:
        """An operator on two tensors, of which the second may be spread over the first."""
        made = self.fresh(one, self.shape(one)) if target is None else target
        short = {"ADD": "Add", "SUB": "Sub", "MUL": "Mul", "DIV": "Div"}[kind]
        self.writer.op(kind, 1, [one, other], made, getattr(self.writer.s, f"{short}OptionsT")())
        return made

    def by(self, kind: str, one: int, value: float, target: int | None = None) -> int:
        """An operator on a tensor and a number."""
        return self.pair(kind, one, self.number(value), target)

    def root(self, one: int) -> int:
        """Square roots."""
        made = self.fresh(one, self.shape(one))
        self.writer.op("SQRT", 1, [one], made)
        return made

    def rounded(self, one: int) -> int:
        """The nearest whole numbers."""
        return self.by("SUB", self.by("ADD", one, WHOLE), WHOLE)

    def whole(self, one: int, out: Affine) -> int:
        """Codes minus the zero point, of dequantized values."""
        return self.rounded(self.by("MUL", one, inverse(out.scale)))

    def reshaped(self, one: int, shape: tuple[int, ...], target: int | None = None) -> int:
        """The same values in another shape."""
        if target is None and self.shape(one) == shape:
            return one
        made = self.fresh(one, shape) if target is None else target
        self.writer.reshape(one, made, shape)
        return made

    def totals(self, one: int) -> int:
        """The sums of the rows of a matrix: see the function of this name."""
        count, size = self.shape(one)
        parts = parts_of(size)
        sums = self._sums(self.reshaped(one, (count * parts, size // parts)))
        if parts == 1:
            return sums
        sums = self.reshaped(sums, (count, parts))
        high = self.rounded(self.by("MUL", sums, 1 / THOUSANDS))
        low = self.pair("SUB", sums, self.by("MUL", high, THOUSANDS))
        return self.pair("ADD", self.by("MUL", self._sums(high), THOUSANDS), self._sums(low))

    def _sums(self, one: int) -> int:
        rows, count = self.shape(one)
        ones = self.writer.constant(f"{self.name}/ones", np.ones((1, count), np.float32))
        made = self.fresh(one, (rows, 1))
        self.writer.op("FULLY_CONNECTED", 4, [one, ones], made, self.writer.s.FullyConnectedOptionsT())
        return made
