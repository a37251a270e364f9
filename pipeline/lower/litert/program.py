"""LiteRT: the integer graph (or the float network) written straight into a .tflite, NHWC throughout.

Our own writer instead of `litert_torch.convert`: every weight code, scale and bias in the file is the
integer graph's own, no layout copies are added round convolutions, a convolution may have any number of
weights, and it takes a fraction of a second. Its test holds it
against litert_torch's conversion of the same network.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paredown.pipeline.graph.graph import Graph, Node
from paredown.pipeline.lower.integer import IntegerGraph, IntegerNode
from paredown.pipeline.lower.litert.layout import (
    MOST_AXES,
    TO_NCHW,
    TO_NHWC,
    merged,
    native,
    never_negative,
    same_padding,
)
from paredown.pipeline.lower.runtimes import Lowered
from paredown.targets.runners.expand import nibbles
from paredown.targets.runners.litert import Runner, load

__all__ = ["load", "lower_float", "lower_integer"]


def lower_integer(graph: IntegerGraph, io: str = "int8") -> Lowered:
    """Writes the integer graph, NHWC, batch of one.

    Args:
        graph: what to write.
        io: of what the file takes and gives; with "float32" it quantizes and dequantizes itself (LiteRT.js).
    """
    return _lower(_Writer(graph, io))


def lower_float(graph: Graph) -> Lowered:
    """Writes the traced float network: float32 in and out, NHWC, batch of one."""
    return _lower(_Writer(graph))


def _lower(writer: _Writer) -> Lowered:
    data = writer.write()
    subgraphs, rest = Runner(data).undelegated()
    return Lowered(data, subgraphs, rest)


class _Writer:
    """Builds the flatbuffer's object tree, one node at a time.

    Every tensor exists in up to two layouts: "nhwc" as the kernels want it, and "plain", torch's own order,
    where a reshape or a permute needs it. A transpose is written only where one turns into the other.
    """

    def __init__(self, graph: Graph | IntegerGraph, io: str = "int8") -> None:
        from ai_edge_litert import schema_py_generated as schema

        self.s = schema
        self.graph, self.io = graph, io
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

    def write(self) -> bytes:
        """The finished file."""
        nodes = {node.name: node for node in self.graph}
        for node in self.graph:
            if node.kind == "input":
                self.sub.inputs = [self._source(node)]
            else:
                self._node(node, nodes)
        self.sub.outputs = [self._result(nodes[name]) for name in self.graph.outputs]
        self.model.subgraphs = [self.sub]
        self._signature()
        builder = aligned_builder()
        builder.Finish(self.model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def _source(self, node: Node | IntegerNode) -> int:
        """The tensor that the file takes."""
        index = self._tensor(node, native(node))
        if not isinstance(node, IntegerNode) or self.io == "int8":
            return index
        real = self._add_tensor(f"{node.name}/real", self.sub.tensors[index].shape, np.dtype(np.float32))
        self._op("QUANTIZE", 1, [real], index, self.s.QuantizeOptionsT())
        return real

    def _result(self, node: Node | IntegerNode) -> int:
        """A tensor that the file gives."""
        index = self._as(node, native(node))
        if not isinstance(node, IntegerNode) or self.io == "int8":
            return index
        real = self._add_tensor(f"{node.name}/real", self.sub.tensors[index].shape, np.dtype(np.float32))
        self._op("DEQUANTIZE", 2, [index], real, self.s.DequantizeOptionsT())
        return real

    # -- tensors -------------------------------------------------------------------------------------------

    def _tensor(self, node: Node | IntegerNode, layout: str) -> int:
        shape = tuple(node.shape)
        if layout == "nhwc":
            shape = tuple(shape[d] for d in TO_NHWC)
        quantization = None
        if isinstance(node, IntegerNode):
            quantization = self._quantization([node.out.scale], [node.out.zero_point])
        name = node.name if layout == native(node) else f"{node.name}:{layout}"
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
        kinds = {"int8": self.s.TensorType.INT8, "int32": self.s.TensorType.INT32}
        tensor.type = kinds.get(dtype.name, self.s.TensorType.FLOAT32)
        tensor.buffer = buffer
        tensor.quantization = quantization
        self.sub.tensors.append(tensor)
        return len(self.sub.tensors) - 1

    def _quantization(self, scale: Any, zero: Any, axis: int = 0) -> Any:
        result = self.s.QuantizationParametersT()
        result.scale = np.asarray(scale, np.float32)
        result.zeroPoint = np.asarray(zero, np.int64)
        result.quantizedDimension = axis
        return result

    def _constant(self, name: str, values: NDArray[Any], quantization: Any = None) -> int:
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

    def _as(self, node: Node | IntegerNode, layout: str) -> int:
        """The index of a node's tensor in the layout wanted, transposing once if it is not there yet."""
        if len(node.shape) != 4:
            layout = "plain"
        if (node.name, layout) in self.tensors:
            return self.tensors[node.name, layout]
        other = self.tensors[node.name, "plain" if layout == "nhwc" else "nhwc"]
        index = self._tensor(node, layout)
        if node.shape[2:] == (1, 1):  # one pixel: both layouts are the same bytes
            self._reshape(other, index, self.sub.tensors[index].shape)
        else:
            self._transpose(other, index, TO_NHWC if layout == "nhwc" else TO_NCHW)
        return index

    # -- operations ----------------------------------------------------------------------------------------

    def _op(self, kind: str, version: int, inputs: list[int], output: int, options: Any = None) -> None:
        code = getattr(self.s.BuiltinOperator, kind)
        if (code, version) not in self.codes:
            entry = self.s.OperatorCodeT()
            entry.builtinCode, entry.deprecatedBuiltinCode, entry.version = code, min(code, 127), version
            self.codes[code, version] = len(self.model.operatorCodes)
            self.model.operatorCodes.append(entry)
        op = self.s.OperatorT()
        op.opcodeIndex = self.codes[code, version]
        op.inputs, op.outputs = np.asarray(inputs, np.int32), np.asarray([output], np.int32)
        if options is not None:
            op.builtinOptions = options
            op.builtinOptionsType = getattr(self.s.BuiltinOptions, type(options).__name__[:-1])
        self.sub.operators.append(op)

    def _transpose(self, source: int, target: int, dims: tuple[int, ...]) -> None:
        order = self._constant("permutation", np.asarray(dims, np.int32))
        self._op("TRANSPOSE", 2, [source, order], target, self.s.TransposeOptionsT())

    def _permute(self, node: Any, feed: Any, source: int, target: int) -> None:
        """A transpose, of as few axes as say the same where it has more than LiteRT Micro takes."""
        dims = node.attrs["dims"]
        if len(dims) <= MOST_AXES:
            self._transpose(source, target, dims)
            return
        shape, order = merged(feed.shape, dims)
        given = self.sub.tensors[source]
        dtype = np.dtype(np.int8 if isinstance(node, IntegerNode) else np.float32)
        turned = tuple(shape[axis] for axis in order)
        before = self._add_tensor(f"{node.name}/before", shape, dtype, given.quantization)
        after = self._add_tensor(f"{node.name}/after", turned, dtype, given.quantization)
        self._reshape(source, before, shape)
        self._transpose(before, after, order)
        self._reshape(after, target, node.shape)

    def _reshape(self, source: int, target: int, shape: Any) -> None:
        options = self.s.ReshapeOptionsT()
        options.newShape = np.asarray(shape, np.int32)
        wanted = self._constant("shape", np.asarray(shape, np.int32))
        self._op("RESHAPE", 1, [source, wanted], target, options)

    def _node(self, node: Node | IntegerNode, nodes: Mapping[str, Any]) -> None:
        feeds = [nodes[name] for name in node.inputs]
        kind = node.kind
        if kind in {"reshape", "permute"}:
            source = self._as(feeds[0], "plain")
            target = self._tensor(node, "plain")
            if kind == "reshape":
                self._reshape(source, target, node.attrs["shape"])
            else:
                self._permute(node, feeds[0], source, target)
            return
        layout = native(node)
        inputs = [self._as(feed, layout) for feed in feeds]
        if kind == "conv2d":
            self._conv(node, feeds[0], inputs[0])
        elif kind == "linear":
            options = self.s.FullyConnectedOptionsT()
            options.fusedActivationFunction = self._activation(node)
            weight, bias = self._weights(node, feeds[0], node.weight, 0)
            self._op("FULLY_CONNECTED", 4, [inputs[0], weight, bias], self._tensor(node, layout), options)
        elif kind == "max_pool2d":
            self._pool(node, feeds[0], inputs[0])
        elif kind == "leaky_relu":
            options = self.s.LeakyReluOptionsT()
            options.alpha = node.attrs["slope"]
            self._op("LEAKY_RELU", 2, inputs, self._tensor(node, layout), options)
        elif kind in {"relu", "relu6"}:
            self._relu(node, inputs[0])
        elif kind == "add":
            options = self.s.AddOptionsT()
            options.fusedActivationFunction = self._activation(node)
            self._op("ADD", 2, inputs, self._tensor(node, layout), options)
        elif kind == "concat":
            options = self.s.ConcatenationOptionsT()
            dim = node.attrs["dim"]
            options.axis = TO_NHWC.index(dim) if layout == "nhwc" else dim
            self._op("CONCATENATION", 2, inputs, self._tensor(node, layout), options)
        elif kind == "mean":
            options = self.s.ReducerOptionsT()
            options.keepDims = True
            axes = self._constant("axes", np.asarray([1, 2], np.int32))
            self._op("MEAN", 2, [inputs[0], axes], self._tensor(node, layout), options)
        elif kind == "pad":
            self._pad_into(inputs[0], self._tensor(node, layout), node.attrs["padding"])
        else:
            raise AssertionError(kind)

    def _conv(self, node: Any, feed: Any, source: int) -> None:
        groups, (stride_h, stride_w) = node.attrs["groups"], node.attrs["stride"]
        kernel = tuple(node.weight.shape[2:])
        source, padding = self._padding(node, feed, source, kernel, None)
        depthwise = groups == feed.shape[1] and groups > 1
        options = self.s.DepthwiseConv2DOptionsT() if depthwise else self.s.Conv2DOptionsT()
        options.padding, options.strideH, options.strideW = padding, stride_h, stride_w
        options.dilationHFactor = options.dilationWFactor = 1
        options.fusedActivationFunction = self._activation(node)
        weight = np.asarray(node.weight)
        if depthwise:
            options.depthMultiplier = node.weight.shape[0] // groups
            weight = weight.transpose(1, 2, 3, 0)
        else:
            weight = weight.transpose(0, 2, 3, 1)
        tensors = self._weights(node, feed, weight, 3 if depthwise else 0)
        kind = "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D"
        self._op(kind, 3, [source, *tensors], self._tensor(node, "nhwc"), options)

    def _weights(self, node: Any, feed: Any, weight: Any, axis: int) -> tuple[int, int]:
        """Weight and bias constants; int8 ones carry our own scales."""
        weight, bias = np.asarray(weight), np.asarray(node.bias)
        if not isinstance(node, IntegerNode):
            return self._constant(f"{node.name}/w", weight), self._constant(f"{node.name}/b", bias)
        assert node.weight_scale is not None
        zeros = np.zeros(len(node.weight_scale), np.int64)
        units = np.float32(feed.out.scale) * node.weight_scale
        weight_q = self._quantization(node.weight_scale, zeros, axis)
        weight_index = self._constant(f"{node.name}/w", weight, weight_q)
        if node.int4:
            self._in_four_bits(self.sub.tensors[weight_index])
        return weight_index, self._constant(f"{node.name}/b", bias, self._quantization(units, zeros))

    def _in_four_bits(self, tensor: Any) -> None:
        """Turns an int8 constant into int4: two codes per byte, the first in the low half."""
        buffer = self.model.buffers[tensor.buffer]
        buffer.data = nibbles(buffer.data)
        tensor.type = self.s.TensorType.INT4

    def _relu(self, node: Any, source: int) -> None:
        """A ReLU of its own: XNNPACK takes no int8 RELU, but the clamp of a pool over one pixel."""
        layout = native(node)
        if layout != "nhwc" or not isinstance(node, IntegerNode):
            self._op(node.kind.upper(), 2, [source], self._tensor(node, layout))
            return
        options = self.s.Pool2DOptionsT()
        options.padding = self.s.Padding.VALID
        options.strideH = options.strideW = options.filterHeight = options.filterWidth = 1
        kinds = self.s.ActivationFunctionType
        options.fusedActivationFunction = kinds.RELU if node.kind == "relu" else kinds.RELU6
        self._op("MAX_POOL_2D", 2, [source], self._tensor(node, layout), options)

    def _pool(self, node: Any, feed: Any, source: int) -> None:
        kernel, (stride_h, stride_w) = node.attrs["kernel"], node.attrs["stride"]
        lowest: float | None = -128 if isinstance(node, IntegerNode) else float(np.finfo(np.float32).min)
        if never_negative(feed):  # after a ReLU zero is as good as minus infinity, and PAD is delegated
            lowest = None
        source, padding = self._padding(node, feed, source, kernel, lowest)
        options = self.s.Pool2DOptionsT()
        options.padding, options.strideH, options.strideW = padding, stride_h, stride_w
        options.filterHeight, options.filterWidth = kernel
        self._op("MAX_POOL_2D", 2, [source], self._tensor(node, "nhwc"), options)

    def _padding(
        self, node: Any, feed: Any, source: int, kernel: tuple[int, int], fill: float | None
    ) -> tuple[int, int]:
        """SAME or VALID where one of them says exactly our padding, else an explicit pad and VALID."""
        left, right, top, bottom = node.attrs["padding"]
        stride = node.attrs["stride"]
        if (left, right, top, bottom) == (0, 0, 0, 0):
            return source, self.s.Padding.VALID
        if (left, right, top, bottom) == same_padding(feed.shape, kernel, stride):
            return source, self.s.Padding.SAME
        n, c, h, w = feed.shape
        shape = (n, h + top + bottom, w + left + right, c)
        padded = self._add_tensor(
            f"{node.name}/padded", shape,
            np.dtype(np.int8 if isinstance(node, IntegerNode) else np.float32),
            self.sub.tensors[source].quantization,
        )  # fmt: skip
        self._pad_into(source, padded, node.attrs["padding"], fill)
        return padded, self.s.Padding.VALID

    def _pad_into(
        self, source: int, target: int, padding: tuple[int, ...], fill: float | None = None
    ) -> None:
        left, right, top, bottom = padding
        widths = np.asarray([[0, 0], [top, bottom], [left, right], [0, 0]], np.int32)
        amounts = self._constant("pads", widths)
        if fill is None:
            self._op("PAD", 2, [source, amounts], target, self.s.PadOptionsT())
            return
        tensor = self.sub.tensors[source]
        integer = tensor.type == self.s.TensorType.INT8
        value = np.asarray([fill], np.int8 if integer else np.float32)
        lowest = self._constant("lowest", value, tensor.quantization if integer else None)
        self._op("PADV2", 2, [source, amounts, lowest], target, self.s.PadV2OptionsT())

    def _activation(self, node: Any) -> int:
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


def aligned_builder() -> Any:
    """A builder that aligns vectors to 16 bytes, as TFLite's schema demands and its generator forgets."""
    import flatbuffers

    class Builder(flatbuffers.Builder):
        def StartVector(self, size: int, count: int, alignment: int) -> Any:  # noqa: N802  the base's name
            return super().StartVector(size, count, max(alignment, 16))

    return Builder(1 << 20)
