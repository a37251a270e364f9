"""XNNPACK's graph, as ExecuTorch's delegate reads it: values, nodes, and constants by name.

A tensor of four axes has up to two values: "plain", in torch's order, and "nhwc", as convolutions and pools
want it. A transpose is written only where one turns into the other.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paredown.pipeline.lower.executorch.schema import XNNPACK
from paredown.pipeline.lower.executorch.writer.packer import Packer
from paredown.pipeline.lower.executorch.writer.recorder import NotWritten
from paredown.pipeline.lower.integer import Affine

TO_NHWC, TO_NCHW = (0, 2, 3, 1), (0, 3, 1, 2)
NONE = 2**32 - 1  # no value
_NAMED = 2**64 - 1  # a constant that has a name, and no place
_INPUT, _OUTPUT = 1, 2  # flags of values
_HEADER = struct.Struct("<4x4sHIIIQ2x")  # and two bytes that fill it up to 32
_ALIGNMENT = 16


@dataclass(eq=False)
class Tensor:
    """A tensor of the graph.

    Attributes:
        shape: as torch has it.
        affine: of codes; None of float32.
        given: its values, codes or float32, where they are known.
        native: the layout in which it was made.
        ids: layout -> number of the value.
    """

    shape: tuple[int, ...]
    affine: Affine | None = None
    given: NDArray[Any] | None = None
    native: str = "plain"
    ids: dict[str, int] = field(default_factory=dict)


class XnnGraph:
    """The graph while it is written.

    Attributes:
        named: constants by their names, in the order in which they came.
        node: number of the node that is written, for who looks at a profile.
    """

    def __init__(self) -> None:
        self.named: dict[str, bytes] = {}
        self.node = 0
        self._nodes: list[dict[str, Any]] = []
        self._values: list[dict[str, Any]] = []
        self._constants: list[dict[str, Any]] = [{"offset": 0, "size": 0, "named_key": ""}]
        self._inputs: list[int] = []
        self._outputs: list[int] = []

    # -- values --------------------------------------------------------------------------------------------

    def tensor(self, tensor: Tensor, layout: str, made: int | None = None) -> int:
        """The value of a tensor in a layout: the one that it has, or a new one.

        Args:
            tensor: of the graph.
            layout: "plain" or "nhwc".
            made: a value that is the same bytes.
        """
        if layout in tensor.ids:
            return tensor.ids[layout]
        if not tensor.ids:
            tensor.native = layout
        dims = tensor.shape if layout == "plain" else tuple(tensor.shape[dim] for dim in TO_NHWC)
        buffer = 0
        if tensor.given is not None:
            buffer = self.constant(tensor.given if layout == "plain" else tensor.given.transpose(TO_NHWC))
        if made is None:
            kind = "xnn_datatype_fp32" if tensor.affine is None else "xnn_datatype_qint8"
            quantized = tensor.affine and (
                "PerTensorQuant",
                {"scale": tensor.affine.scale, "zero_point": tensor.affine.zero_point},
            )
            made = self._value(kind, dims, buffer, quantized)
        tensor.ids[layout] = made
        return made

    def read(self, tensor: Tensor, layout: str) -> int:
        """The value of a tensor in a layout, transposed once where it is not there yet."""
        if layout in tensor.ids or tensor.given is not None or not tensor.ids:
            return self.tensor(tensor, layout)
        (source,) = tensor.ids.values()
        made = self.tensor(tensor, layout)
        self.transpose(source, made, TO_NHWC if layout == "nhwc" else TO_NCHW)
        return made

    def channels(
        self, kind: str, data: NDArray[Any], dims: Sequence[int], scale: NDArray[np.float32], axis: int
    ) -> int:
        """A constant with a scale per channel.

        Args:
            kind: its datatype, without what all of them begin with.
            data: its codes, as the file has them.
            dims: its shape.
            scale: of each channel.
            axis: that of the channels.
        """
        buffer = self.constant(data)
        scales = self.constant(scale.astype(np.float32), "scale_")
        quantized = {
            "scale": [], "channel_dim": axis, "scale_buffer_idx": scales, "num_scales": len(scale),
        }  # fmt: skip
        return self._value(f"xnn_datatype_{kind}", dims, buffer, ("PerChannelQuant", quantized))

    def constant(self, data: NDArray[Any], prefix: str = "") -> int:
        """Number of the constant with this data, whose name is its sha256."""
        held = np.ascontiguousarray(data).tobytes()
        name = prefix + hashlib.sha256(held).hexdigest()
        self.named.setdefault(name, held)
        self._constants.append({"offset": _NAMED, "size": len(held), "named_key": name})
        return len(self._constants) - 1

    def _value(self, kind: str, dims: Sequence[int], buffer: int, quantized: Any) -> int:
        number = len(self._values)
        value = {
            "datatype": kind, "num_dims": len(dims) or 1, "dims": list(dims) or [1],
            "constant_buffer_idx": buffer, "external_id": NONE, "flags": 0, "id_out": number,
        }  # fmt: skip
        if quantized is None:
            self._values.append({"xvalue_union": ("XNNTensorValue", value)})
        else:
            both = {"tensor_value": value, "quant_params": quantized}
            self._values.append({"xvalue_union": ("XNNQuantizedTensorValue", both)})
        return number

    # -- nodes ---------------------------------------------------------------------------------------------

    def op(self, kind: str, clamp: tuple[float, float] | None = None, **fields: Any) -> None:
        """Writes a node.

        Args:
            kind: its name.
            clamp: the least and the most of its output, as real values.
            fields: of its table; `flags` may be left out.
        """
        node: dict[str, Any] = {
            "xnode_union": (f"XNN{kind}", {"flags": 0, **fields}), "debug_handle": self.node,
        }  # fmt: skip
        if clamp is not None:
            node["output_min_max"] = {"output_min": clamp[0], "output_max": clamp[1]}
        self._nodes.append(node)

    def transpose(self, source: int, target: int, order: Sequence[int]) -> None:
        """Writes a transpose of one value to another."""
        self.op(
            "StaticTranspose", num_dims=len(order), perm=list(order), input_id=source, output_id=target
        )  # fmt: skip

    def reshape(self, source: int, target: int, shape: Sequence[int]) -> None:
        """Writes a reshape of one value to another, of this shape."""
        self.op(
            "StaticReshape", num_dims=len(shape), new_shape=list(shape), input_id=source, output_id=target
        )  # fmt: skip

    # -- the whole -----------------------------------------------------------------------------------------

    def takes(self, tensor: Tensor) -> None:
        """Makes a tensor the next input."""
        self._inputs.append(self._external(self.tensor(tensor, "plain"), _INPUT))

    def gives(self, tensor: Tensor) -> None:
        """Makes a tensor the next output."""
        value = self.read(tensor, "plain")
        if tensor.given is not None:
            raise NotWritten("an output is given")
        if self._of(value)["external_id"] != NONE:
            source, value = value, self.tensor(Tensor(tensor.shape, tensor.affine), "plain")
            self.reshape(source, value, tensor.shape)
        self._outputs.append(self._external(value, _OUTPUT))

    def _of(self, number: int) -> dict[str, Any]:
        kind, value = self._values[number]["xvalue_union"]
        found: dict[str, Any] = value["tensor_value"] if kind == "XNNQuantizedTensorValue" else value
        return found

    def _external(self, number: int, flag: int) -> int:
        value = self._of(number)
        value["external_id"], value["flags"] = len(self._inputs) + len(self._outputs), flag
        return number

    def payload(self) -> bytes:
        """What the delegate is given: a header and the graph."""
        table = {
            "version": "0", "xnodes": self._nodes, "xvalues": self._values,
            "num_externs": len(self._inputs) + len(self._outputs), "input_ids": self._inputs,
            "output_ids": self._outputs, "constant_data": self._constants,
        }  # fmt: skip
        data = Packer(XNNPACK, sorted_fields=True).pack("XNNGraph", table)
        filled = data + bytes(-len(data) % _ALIGNMENT)
        size = _HEADER.size
        header = _HEADER.pack(b"XH00", _HEADER.size - 2, size, len(data), size + len(filled), 0)
        return header + filled
