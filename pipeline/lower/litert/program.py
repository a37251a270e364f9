"""LiteRT: the integer graph (or the float network) written straight into a .tflite, NHWC throughout.

Our own writer instead of `litert_torch.convert`: every weight code, scale and bias in the file is the
integer graph's own, no layout copies are added round convolutions, a convolution may have any number of
weights, and it takes a fraction of a second. Its test holds it
against litert_torch's conversion of the same network.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paredown.pipeline.graph.alike import shared
from paredown.pipeline.graph.graph import Graph, Node
from paredown.pipeline.graph.operations.kinds import operation
from paredown.pipeline.graph.operations.padding import written_padding
from paredown.pipeline.lower.integer import IntegerGraph, IntegerNode
from paredown.pipeline.lower.runtimes import Lowered
from paredown.targets.runners.expand import nibbles
from paredown.targets.runners.litert import Runner, load

_COMPARED = 1 << 18  # bytes of an array that may be there already

__all__ = ["load", "lower_float", "lower_integer"]

TO_NHWC, TO_NCHW = (0, 2, 3, 1), (0, 3, 1, 2)


def lower_integer(graph: IntegerGraph, io: str = "int8") -> Lowered:
    """Writes the integer graph, NHWC, batch of one.

    Args:
        graph: what to write.
        io: of what the file takes and gives; with "float32" it quantizes and dequantizes itself (LiteRT.js).
    """
    return _lower(Writer(graph, io))


def lower_float(graph: Graph) -> Lowered:
    """Writes the traced float network: float32 in and out, NHWC, batch of one."""
    return _lower(Writer(graph))


def _lower(writer: Writer) -> Lowered:
    data = writer.write()
    subgraphs, rest = Runner(data).undelegated()
    return Lowered(data, subgraphs, rest)


class Writer:
    """Builds the flatbuffer's object tree, one node at a time.

    Every tensor exists in up to two layouts: "nhwc" as the kernels want it, and "plain", torch's own order,
    where a reshape or a permute needs it. A transpose is written only where one turns into the other.
    """

    def __init__(self, graph: Graph | IntegerGraph, io: str = "int8") -> None:
        from ai_edge_litert import schema_py_generated as schema

        self.s = schema
        self.graph, self.io = graph.written, io
        self.integer = isinstance(graph, IntegerGraph)
        self.model = schema.ModelT()
        self.model.version = 3
        self.model.description = "paredown"
        self.model.buffers = [schema.BufferT()]
        self.model.operatorCodes = []
        self.sub = schema.SubGraphT()
        self.sub.name = "main"
        self.sub.tensors, self.sub.operators = [], []
        self.codes: dict[tuple[int, int], int] = {}
        self.tensors: dict[tuple[str, str], int] = {}  # (node name, layout) -> tensor index
        self.constants: dict[bytes, int] = {}
        self.layers: dict[object, tuple[int, int]] = {}  # weights that layers share -> their tensors

    def write(self) -> bytes:
        """The finished file."""
        nodes: dict[str, Any] = {node.name: node for node in self.graph}
        for node in self.graph:
            if node.kind == "input":
                self.sub.inputs = [self._source(node)]
            else:
                operation(node.kind).litert(self, node, [nodes[name] for name in node.inputs])
        self.sub.outputs = [self._result(nodes[name]) for name in self.graph.outputs]
        self.model.subgraphs = [self.sub]
        self._signature()
        builder = aligned_builder()
        builder.Finish(self.model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def _source(self, node: Node | IntegerNode) -> int:
        """The tensor that the file takes."""
        index = self.tensor(node, self.native(node))
        if not isinstance(node, IntegerNode) or self.io == "int8":
            return index
        real = self._add_tensor(f"{node.name}/real", self.sub.tensors[index].shape, np.dtype(np.float32))
        self.op("QUANTIZE", 1, [real], index, self.s.QuantizeOptionsT())
        return real

    def _result(self, node: Node | IntegerNode) -> int:
        """A tensor that the file gives."""
        index = self.read(node, self.native(node))
        if not isinstance(node, IntegerNode) or self.io == "int8":
            return index
        real = self._add_tensor(f"{node.name}/real", self.sub.tensors[index].shape, np.dtype(np.float32))
        self.op("DEQUANTIZE", 2, [index], real, self.s.DequantizeOptionsT())
        return real

    # -- tensors -------------------------------------------------------------------------------------------

    def native(self, node: Node | IntegerNode) -> str:
        """The layout in which the file names a tensor and takes or returns it."""
        return "nhwc" if len(node.shape) == 4 else "plain"

    def axis(self, node: Node | IntegerNode, dim: int) -> int:
        """Where a dim of a tensor is in its native layout."""
        return TO_NHWC.index(dim) if self.native(node) == "nhwc" else dim

    def result(self, node: Node | IntegerNode) -> int:
        """Makes the tensor of a node's output in its native layout."""
        return self.tensor(node, self.native(node))

    def tensor(self, node: Node | IntegerNode, layout: str) -> int:
        """Makes the tensor of a node's output in a layout."""
        shape = tuple(node.shape)
        if layout == "nhwc":
            shape = tuple(shape[d] for d in TO_NHWC)
        quantization = None
        if isinstance(node, IntegerNode):
            quantization = self._quantization([node.out.scale], [node.out.zero_point])
        name = node.name if layout == self.native(node) else f"{node.name}:{layout}"
        dtype = np.dtype(np.int8 if quantization else np.float32)
        index = self._add_tensor(name, shape, dtype, quantization)
        self.tensors[node.name, layout] = index
        return index

    def _add_tensor(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        quantization: Any = None,
        buffer: int = 0,
    ) -> int:
        tensor = self.s.TensorT()
        tensor.name = name
        tensor.shape = np.asarray(shape, np.int32)
        kinds = {
            "int8": self.s.TensorType.INT8, "int32": self.s.TensorType.INT32, "bool": self.s.TensorType.BOOL,
        }  # fmt: skip
        tensor.type = kinds.get(dtype.name, self.s.TensorType.FLOAT32)
        tensor.buffer = buffer
        tensor.quantization = quantization
        self.sub.tensors.append(tensor)
        return len(self.sub.tensors) - 1

    def like(self, source: int, name: str, shape: tuple[int, ...]) -> int:
        """A tensor of another shape with the type and the scale of this one."""
        quantization = self.sub.tensors[source].quantization
        dtype = np.dtype(np.int8 if quantization else np.float32)
        return self._add_tensor(name, shape, dtype, quantization)

    def scratch(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
        """A tensor without a scale, of an island."""
        return self._add_tensor(name, shape, dtype)

    def real(self, source: int, name: str) -> int:
        """A float32 tensor of what a tensor has."""
        if not self.integer:
            return source
        made = self._add_tensor(name, self.sub.tensors[source].shape, np.dtype(np.float32))
        self.op("DEQUANTIZE", 2, [source], made, self.s.DequantizeOptionsT())
        return made

    @contextlib.contextmanager
    def quantized(self, target: int, name: str) -> Iterator[int]:
        """A float32 tensor to be written, which then is quantized to this tensor."""
        if not self.integer:
            yield target
            return
        made = self._add_tensor(name, self.sub.tensors[target].shape, np.dtype(np.float32))
        yield made
        self.op("QUANTIZE", 1, [made], target, self.s.QuantizeOptionsT())

    def _quantization(self, scale: Any, zero: Any, axis: int = 0) -> Any:
        result = self.s.QuantizationParametersT()
        result.scale = np.asarray(scale, np.float32)
        result.zeroPoint = np.asarray(zero, np.int64)
        result.quantizedDimension = axis
        return result

    def constant(self, name: str, values: NDArray[Any], quantization: Any = None) -> int:
        """A tensor of fixed values."""
        values = np.ascontiguousarray(values)
        if values.size <= 64:  # shapes and permutations repeat: one tensor serves them all
            key = values.dtype.str.encode() + bytes(str(values.shape), "ascii") + values.tobytes()
            if quantization is None and key in self.constants:
                return self.constants[key]
        buffer = self.s.BufferT()
        buffer.data = values.reshape(-1).view(np.uint8)
        self.model.buffers.append(buffer)
        index = self._add_tensor(name, values.shape, values.dtype, quantization, len(self.model.buffers) - 1)
        if values.size <= 64 and quantization is None:
            self.constants[key] = index
        return index

    def given(self, node: Node | IntegerNode, values: NDArray[Any]) -> None:
        """The tensor of a node whose values are fixed, in its native layout."""
        layout = self.native(node)
        if layout == "nhwc":
            values = values.transpose(TO_NHWC)
        q = (
            self._quantization([node.out.scale], [node.out.zero_point])
            if isinstance(node, IntegerNode)
            else None
        )
        self.tensors[node.name, layout] = self.constant(node.name, values, q)

    def read(self, node: Node | IntegerNode, layout: str) -> int:
        """The index of a node's tensor in the layout wanted, transposing once if it is not there yet."""
        if len(node.shape) != 4:
            layout = "plain"
        if (node.name, layout) in self.tensors:
            return self.tensors[node.name, layout]
        other = self.tensors[node.name, "plain" if layout == "nhwc" else "nhwc"]
        index = self.tensor(node, layout)
        if node.shape[2:] == (1, 1):  # one pixel: both layouts are the same bytes
            self.reshape(other, index, self.sub.tensors[index].shape)
        else:
            self.transpose(other, index, TO_NHWC if layout == "nhwc" else TO_NCHW)
        return index

    # -- operations ----------------------------------------------------------------------------------------

    def island(self, node: Any, feeds: Sequence[Any]) -> None:
        """Writes an operation that stays in float, by its ATen operation's name."""
        from paredown.pipeline.lower.litert.floats.island import write

        write(self, node, feeds)

    def looked_up(self, node: IntegerNode, feed: IntegerNode, table: NDArray[np.int8]) -> None:
        """Writes a table of 256 codes, and that each code is looked up there."""
        source = self.read(feed, self.native(node))
        shape = tuple(self.sub.tensors[source].shape)
        whole, place = (
            self._add_tensor(f"{node.name}/{word}", shape, np.dtype(np.int32)) for word in ("code", "place")
        )
        first = self.constant("first", np.asarray(128, np.int32))
        codes = self.constant(
            f"{node.name}/table", table, self._quantization([node.out.scale], [node.out.zero_point])
        )
        self.op("CAST", 1, [source], whole, self.s.CastOptionsT())
        self.op("ADD", 1, [whole, first], place, self.s.AddOptionsT())
        self.op("GATHER", 1, [codes, place], self.result(node), self.s.GatherOptionsT())

    def op(
        self, kind: str, version: int, inputs: list[int], output: int | list[int], options: Any = None
    ) -> None:
        """Writes an operator."""
        code = getattr(self.s.BuiltinOperator, kind)
        if (code, version) not in self.codes:
            entry = self.s.OperatorCodeT()
            entry.builtinCode, entry.deprecatedBuiltinCode, entry.version = code, min(code, 127), version
            self.codes[code, version] = len(self.model.operatorCodes)
            self.model.operatorCodes.append(entry)
        op = self.s.OperatorT()
        op.opcodeIndex = self.codes[code, version]
        op.inputs, op.outputs = np.asarray(inputs, np.int32), np.atleast_1d(np.asarray(output, np.int32))
        if options is not None:
            op.builtinOptions = options
            op.builtinOptionsType = getattr(self.s.BuiltinOptions, type(options).__name__[:-1])
        self.sub.operators.append(op)

    def transpose(self, source: int, target: int, dims: tuple[int, ...]) -> None:
        """Writes a transpose of one tensor to another."""
        order = self.constant("permutation", np.asarray(dims, np.int32))
        self.op("TRANSPOSE", 2, [source, order], target, self.s.TransposeOptionsT())

    def reshape(self, source: int, target: int, shape: Any) -> None:
        """Writes a reshape of one tensor to another, of this shape."""
        options = self.s.ReshapeOptionsT()
        options.newShape = np.asarray(shape, np.int32)
        wanted = self.constant("shape", np.asarray(shape, np.int32))
        self.op("RESHAPE", 1, [source, wanted], target, options)

    def weights(self, node: Any, feed: Any, weight: Any, axis: int) -> tuple[int, int]:
        """Weight and bias constants; int8 ones carry our own scales."""
        weight, bias = np.asarray(weight), np.asarray(node.bias)
        integer = isinstance(node, IntegerNode)
        units = np.float32(feed.out.scale) * node.weight_scale if integer else None
        if (key := shared(node, units)) not in self.layers:
            self.layers[key] = self._weights(node, weight, bias, units, axis)
        return self.layers[key]

    def _weights(self, node: Any, weight: Any, bias: Any, units: Any, axis: int) -> tuple[int, int]:
        if units is None:
            return self.constant(f"{node.name}/w", weight), self.constant(f"{node.name}/b", bias)
        zeros = np.zeros(len(node.weight_scale), np.int64)
        weight_q = self._quantization(node.weight_scale, zeros, axis)
        weight_index = self.constant(f"{node.name}/w", weight, weight_q)
        if node.int4:
            self._in_four_bits(self.sub.tensors[weight_index])
        return weight_index, self.constant(f"{node.name}/b", bias, self._quantization(units, zeros))

    def _in_four_bits(self, tensor: Any) -> None:
        """Turns an int8 constant into int4: two codes per byte, the first in the low half."""
        buffer = self.model.buffers[tensor.buffer]
        buffer.data = nibbles(buffer.data)
        tensor.type = self.s.TensorType.INT4

    def padded(self, node: Any, feed: Any, source: int, fill: float | None = None) -> tuple[int, int]:
        """SAME or VALID where one of them says exactly a node's padding, else an explicit pad and VALID.

        Args:
            node: a convolution or a pool.
            feed: what it reads.
            source: the tensor of that.
            fill: the value to pad with; None for zero.

        Returns:
            The tensor to read, and the schema's padding.
        """
        said = written_padding(node, feed)
        if said != "PAD":
            return source, getattr(self.s.Padding, said)
        left, right, top, bottom = node.attrs["padding"]
        n, c, h, w = feed.shape
        shape = (n, h + top + bottom, w + left + right, c)
        padded = self.like(source, f"{node.name}/padded", shape)
        self.pad(source, padded, node.attrs["padding"], fill)
        return padded, self.s.Padding.VALID

    def pad(self, source: int, target: int, padding: tuple[int, ...], fill: float | None = None) -> None:
        """Pads a tensor (left, right, top, bottom), with zero or with a value."""
        left, right, top, bottom = padding
        widths = np.asarray([[0, 0], [top, bottom], [left, right], [0, 0]], np.int32)
        amounts = self.constant("pads", widths)
        if fill is None:
            self.op("PAD", 2, [source, amounts], target, self.s.PadOptionsT())
            return
        tensor = self.sub.tensors[source]
        integer = tensor.type == self.s.TensorType.INT8
        value = np.asarray([fill], np.int8 if integer else np.float32)
        lowest = self.constant("lowest", value, tensor.quantization if integer else None)
        self.op("PADV2", 2, [source, amounts, lowest], target, self.s.PadV2OptionsT())

    def activation(self, node: Any) -> int:
        """The schema's activation that stands for the ReLU that a node took in."""
        kinds = self.s.ActivationFunctionType
        if not isinstance(node, IntegerNode) or (node.low, node.high) == (-128, 127):
            return kinds.NONE
        return kinds.RELU if node.high == 127 else kinds.RELU6

    def _signature(self) -> None:
        signature = self.s.SignatureDefT()
        signature.signatureKey = "serving_default"
        signature.subgraphIndex = 0
        signature.inputs = [self._map("input", self.sub.inputs[0])]
        names = [f"output_{i}" for i in range(len(self.sub.outputs))]
        signature.outputs = [self._map(n, t) for n, t in zip(names, self.sub.outputs, strict=True)]
        self.model.signatureDefs = [signature]

    def _map(self, name: str, index: int) -> Any:
        entry = self.s.TensorMapT()
        entry.name, entry.tensorIndex = name, index
        return entry


def aligned_builder(once: bool = False) -> Any:
    """A builder that aligns vectors to 16 bytes, as TFLite's schema demands and its generator forgets.

    Args:
        once: whether equal arrays are written once: scales and zero points of weights that tensors of
            several subgraphs hold. Large ones, which are buffers' data, are not compared.
    """
    import flatbuffers

    class Builder(flatbuffers.Builder):
        made: dict[tuple[str, bytes], int]

        def CreateNumpyVector(self, x: NDArray[Any]) -> Any:  # noqa: N802  the base's name
            if not once or x.nbytes > _COMPARED:
                return super().CreateNumpyVector(x)
            key = x.dtype.str, x.tobytes()
            if key not in self.made:
                self.made[key] = super().CreateNumpyVector(x)
            return self.made[key]

        def StartVector(self, size: int, count: int, alignment: int) -> Any:  # noqa: N802  the base's name
            return super().StartVector(size, count, max(alignment, 16))

    builder = Builder(1 << 20)
    builder.made = {}
    return builder
