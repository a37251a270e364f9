"""Tensors of an island in a .tflite: how its operators are written, whatever they compute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from paredown.targets.errors import InputError

if TYPE_CHECKING:
    from paredown.pipeline.lower.litert.program import Writer

#: Kind -> the least version that can do it.
VERSIONS = {"TRANSPOSE": 2, "BROADCAST_TO": 2, "PADV2": 2, "SELECT_V2": 1, "DEQUANTIZE": 2}


@dataclass(frozen=True)
class Ref:
    """A tensor of the file, its shape and its type."""

    index: int
    shape: tuple[int, ...]
    dtype: str = "float32"


Value = Ref | Tensor


class Tensors:
    """What writes the operators of one island.

    Args:
        writer: of the file.
        node: of a kind that is an island.
    """

    def __init__(self, writer: Writer, node: Any) -> None:
        self.writer, self.s, self.node = writer, writer.s, node

    def unknown(self, what: str) -> InputError:
        """That TFLite has nothing for an operation."""
        attrs = self.node.attrs
        part = "" if attrs["op"].removeprefix("aten::") in what else f" (its part {what})"
        return InputError(
            f"{attrs['op']}{part} has no float operator in LiteRT", where=attrs["line"] or self.node.name,
            hint='lower to ExecuTorch alone ([lower] runtimes = ["executorch"]), or write it otherwise',
        )  # fmt: skip

    def ref(self, value: Any, like: Value | None = None) -> Ref:
        """A value as a tensor of the file; a number in the type of another value."""
        if isinstance(value, Ref):
            return value
        if isinstance(value, Tensor):
            return self.constant(value)
        return self.number(value, like)

    def number(self, value: float, like: Any = None) -> Ref:
        """A number in the type of a value."""
        dtype = like.dtype if isinstance(like, Ref) else "float32"
        if dtype == "int32" and isinstance(value, float) and not value.is_integer():
            dtype = "float32"
        return self.array(np.asarray(value, dtype))

    def array(self, values: NDArray[Any]) -> Ref:
        """Numbers as a tensor of the file."""
        return Ref(self.writer.constant("number", values), values.shape, values.dtype.name)

    def ints(self, values: Sequence[int]) -> Ref:
        """Whole numbers as a tensor of the file."""
        return self.array(np.asarray(values, np.int32))

    def constant(self, value: Tensor) -> Ref:
        """A tensor of torch's as one of the file."""
        return self.array(value.detach().to(getattr(torch, dtype_of(value))).contiguous().numpy())

    def op(
        self, kind: str, inputs: Sequence[Value], shape: Sequence[int], dtype: str, options: Any = None
    ) -> Ref:
        """Writes an operator of one output."""
        writer = self.writer
        if isinstance(options, str):
            options = getattr(self.s, options)()
        read = [self.ref(value).index for value in inputs]
        made = writer.scratch(f"{self.node.name}/{kind.lower()}", tuple(shape), np.dtype(dtype))
        writer.op(kind, VERSIONS.get(kind, 1), read, made, options)
        return Ref(made, tuple(int(n) for n in shape), dtype)

    def reshaped(self, value: Value, shape: Sequence[int]) -> Ref:
        """The same values in another shape."""
        ref = self.ref(value)
        if ref.shape == tuple(shape):
            return ref
        options = self.s.ReshapeOptionsT()
        options.newShape = np.asarray(shape, np.int32)
        return self.op("RESHAPE", [ref, self.ints(shape)], shape, ref.dtype, options)

    def transposed(self, value: Value, dims: Sequence[int]) -> Ref:
        """A value with its axes in another order."""
        ref = self.ref(value)
        if list(dims) == list(range(len(dims))):
            return ref
        shape = [ref.shape[d] for d in dims]
        return self.op("TRANSPOSE", [ref, self.ints(dims)], shape, ref.dtype, "TransposeOptionsT")

    def cast(self, value: Value, dtype: str) -> Ref:
        """A value in another type."""
        ref = self.ref(value)
        if ref.dtype == dtype:
            return ref
        options = self.s.CastOptionsT()
        return self.op("CAST", [ref], ref.shape, dtype, options)

    def gathered(self, value: Value, index: Value, axis: int, shape: Sequence[int]) -> Ref:
        """The parts of a value at these places of an axis."""
        ref, where = self.ref(value), self.cast(index, "int32")
        options = self.s.GatherOptionsT()
        options.axis = axis
        return self.op("GATHER", [ref, where], shape, ref.dtype, options)


def dtype_of(value: Tensor) -> str:
    """The type in a file of a tensor of torch's."""
    if value.dtype == torch.bool:
        return "bool"
    return "float32" if value.dtype.is_floating_point else "int32"


def result_of(node: fx.Node) -> tuple[tuple[int, ...], str]:
    """Shape and type of what a node makes."""
    value = node.meta["val"]
    return tuple(value.shape), dtype_of(value)
