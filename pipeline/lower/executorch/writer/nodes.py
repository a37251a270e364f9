"""XNNPACK's node for each operation that was recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paredown.pipeline.graph.alike import shared
from paredown.pipeline.lower.executorch.writer.recorder import NotWritten, Step
from paredown.pipeline.lower.executorch.writer.xnnpack import NONE, TO_NHWC, Tensor, XnnGraph
from paredown.targets.runners.expand import nibbles

_KEEP_DIMS = 64  # a flag
_MOST_JOINED, _MOST_AXES = 5, 6  # XNNPACK's
_PLAIN = (0, 1, 2, 3, 4, 5)

#: Operations of torch of one value -> the node's name.
UNARY: Mapping[str, str] = {
    "sigmoid": "Sigmoid", "tanh": "Tanh", "abs": "Abs", "exp": "Exp", "log": "Log", "neg": "Negate",
    "floor": "Floor", "ceil": "Ceiling", "sqrt": "SquareRoot", "gelu": "Gelu",
}  # fmt: skip
BINARY: Mapping[str, str] = {"add": "Add", "sub": "Subtract", "mul": "Multiply", "div": "Div"}
VIEWS = frozenset({"view", "_unsafe_view"})


@dataclass(frozen=True)
class Wanted:
    """A node to write.

    Attributes:
        graph: that it is written to.
        step: what was recorded.
        reads: the tensors that it reads, without weights.
        out: the tensor that it makes; it has no value yet.
        clamp: the least and the most of its output; None where it is not clamped.
        layers: weights that layers share -> the values of weight and bias.
    """

    graph: XnnGraph
    step: Step
    reads: Sequence[Tensor]
    out: Tensor
    clamp: tuple[float, float] | None
    layers: dict[object, tuple[int, int]]

    def number(self, index: int, default: Any) -> Any:
        """An argument of torch's operation, or what it is where it is left out."""
        args = self.step.args
        return args[index] if index < len(args) else default

    def layout(self) -> str:
        """The layout of an operation that takes both: that of what it reads."""
        whole = all(len(each.shape) in (0, 4) for each in self.reads)
        return "nhwc" if whole and any(_native(each) == "nhwc" for each in self.reads) else "plain"

    def unary(self, kind: str, clamp: tuple[float, float] | None = None, **fields: Any) -> None:
        """Writes a node of one tensor that takes both layouts."""
        layout = self.layout()
        source = self.graph.read(self.reads[0], layout)
        target = self.graph.tensor(self.out, layout)
        self.graph.op(kind, clamp, input_id=source, output_id=target, **fields)


def write(wanted: Wanted) -> None:
    """Writes the node of a step.

    Raises:
        NotWritten: it is not known here.
    """
    op = wanted.step.op
    if max(map(len, (wanted.out.shape, *(each.shape for each in wanted.reads)))) > _MOST_AXES:
        raise NotWritten(f"{op} of more than {_MOST_AXES} axes")
    if any(isinstance(each, dict) for each in wanted.step.args):
        raise NotWritten(f"{op} with {wanted.step.args[-1]}")
    if op in UNARY:
        wanted.unary(UNARY[op])
    elif op in BINARY:
        _binary(wanted)
    elif op in VIEWS:
        _view(wanted)
    elif op in _KNOWN:
        _KNOWN[op](wanted)
    else:
        raise NotWritten(op)


def _native(tensor: Tensor) -> str:
    return "" if tensor.given is not None else tensor.native


def _convolution(wanted: Wanted) -> None:
    graph, args = wanted.graph, wanted.step.args
    node = args[1].layer
    stride, padding, dilation, transposed, adjustment, groups = args[3:9]
    if node is None or len(wanted.out.shape) != 4 or (transposed and groups > 1):
        raise NotWritten("a convolution that is no layer over maps")
    source = graph.read(wanted.reads[0], "nhwc")
    out, per = node.weight.shape[:2]
    deep = per == 1 and not transposed
    order, axis = ((1, 2, 3, 0), 3) if deep else (TO_NHWC, 0)
    data = np.asarray(node.weight).transpose(order)
    weight, bias = _layer(wanted, node, "qcint8", data, data.shape, axis)
    target = graph.tensor(wanted.out, "nhwc")
    high, wide = node.weight.shape[2:]
    kind = "ConvTranspose2d" if transposed else "DepthwiseConv2d" if deep else "Conv2d"
    graph.op(
        kind, wanted.clamp, padding_top=padding[0], padding_right=padding[1], padding_bottom=padding[0],
        padding_left=padding[1], kernel_height=high, kernel_width=wide, subsampling_height=stride[0],
        subsampling_width=stride[1], dilation_height=dilation[0], dilation_width=dilation[1],
        group_input_channels=per, group_output_channels=out // groups, groups=groups,
        adjustment_height=adjustment[0], adjustment_width=adjustment[1], input1_id=source, filter_id=weight,
        bias_id=bias, output_id=target,
    )  # fmt: skip


def _linear(wanted: Wanted) -> None:
    graph, node = wanted.graph, wanted.step.args[0].layer
    if node is None:
        raise NotWritten("a product that is no layer")
    source = graph.read(wanted.reads[0], "plain")
    four = getattr(node, "int4", False)
    held = nibbles(node.weight) ^ np.uint8(0x88) if four else np.asarray(node.weight)
    weight, bias = _layer(wanted, node, "qcint4" if four else "qcint8", held, node.weight.shape, 0)
    target = graph.tensor(wanted.out, "plain")
    graph.op("FullyConnected", wanted.clamp, input1_id=source, filter_id=weight, bias_id=bias,
             output_id=target)  # fmt: skip


def _product(wanted: Wanted) -> None:
    """A matrix times a given one, in float32."""
    graph, turned = wanted.graph, wanted.step.args[1].made
    if turned is None or turned.op != "t" or turned.args[0].given is None:
        raise NotWritten("a product that is no layer")
    source = graph.read(wanted.reads[0], "plain")
    given = np.asarray(turned.args[0].given, np.float32)
    weight = graph.tensor(Tensor(given.shape, None, given), "plain")
    target = graph.tensor(wanted.out, "plain")
    graph.op("FullyConnected", input1_id=source, filter_id=weight, bias_id=NONE, output_id=target)


def _products(wanted: Wanted) -> None:
    """Matrices times matrices, in float32."""
    one, other = (wanted.graph.read(each, "plain") for each in wanted.reads)
    target = wanted.graph.tensor(wanted.out, "plain")
    wanted.graph.op("BatchMatrixMultiply", input1_id=one, input2_id=other, output_id=target)


def _layer(
    wanted: Wanted, node: Any, kind: str, held: NDArray[Any], dims: Sequence[int], axis: int
) -> tuple[int, int]:
    """The values of a layer's weight and bias.

    Args:
        wanted: the layer's node.
        node: the layer, of integers or of floats.
        kind: datatype of codes.
        held: the weight as the file has it.
        dims: its shape.
        axis: where its output channels are.
    """
    graph, affine = wanted.graph, wanted.reads[0].affine
    if (affine is None) != (wanted.out.affine is None) or (affine is None) != hasattr(node, "scale"):
        raise NotWritten("a layer that is neither of codes nor of floats")
    units = None if affine is None else np.float32(affine.scale) * node.weight_scale
    key = shared(node, units)
    if key in wanted.layers:
        return wanted.layers[key]
    layout = "nhwc" if len(dims) == 4 else "plain"
    if units is None:
        weight = graph.tensor(Tensor(tuple(dims), None, held), "plain")
        graph.tensor(wanted.out, layout)
        offset = np.asarray(node.bias)
        bias = graph.tensor(Tensor(offset.shape, None, offset), "plain")
    else:
        weight = graph.channels(kind, held, dims, node.weight_scale, axis)
        graph.tensor(wanted.out, layout)  # where the exporter has it
        bias = graph.channels("qcint32", node.bias, node.bias.shape, units, 0)
    wanted.layers[key] = weight, bias
    return weight, bias


def _binary(wanted: Wanted) -> None:
    layout = wanted.layout()
    one, other = (wanted.graph.read(each, layout if each.shape else "plain") for each in wanted.reads)
    target = wanted.graph.tensor(wanted.out, layout)
    kind = BINARY[wanted.step.op]
    wanted.graph.op(kind, wanted.clamp, input1_id=one, input2_id=other, output_id=target)


def _view(wanted: Wanted) -> None:
    (tensor,), out = wanted.reads, wanted.out
    alike = tensor.native == "nhwc" and _order(tensor.shape, TO_NHWC) == _order(tensor.shape, _PLAIN[:4])
    source = wanted.graph.read(tensor, "nhwc" if alike else "plain")
    wanted.graph.reshape(source, wanted.graph.tensor(out, "plain"), out.shape)


def _order(shape: Sequence[int], dims: Sequence[int]) -> list[int]:
    """The axes as they lie in memory, without those of one."""
    return [dim for dim in dims if shape[dim] != 1]


def _permute(wanted: Wanted) -> None:
    """To the layout in which nothing moves, where there is one; else to that of what it reads."""
    (tensor,), graph = wanted.reads, wanted.graph
    given = TO_NHWC if tensor.native == "nhwc" else _PLAIN[: len(tensor.shape)]
    dims = [dim % len(given) for dim in wanted.step.args[1]]
    orders = {"plain": [given.index(dim) for dim in dims]}
    if len(dims) == 4:
        orders["nhwc"] = [given.index(dims[dim]) for dim in TO_NHWC]
    source = graph.read(tensor, tensor.native)
    for layout, order in orders.items():
        if order == sorted(order):
            graph.tensor(wanted.out, layout, source)
            return
    graph.transpose(source, graph.tensor(wanted.out, tensor.native), orders[tensor.native])


def _slice(wanted: Wanted) -> None:
    dim, start, step = wanted.number(1, 0), wanted.number(2, 0) or 0, wanted.number(4, 1)
    (tensor,), layout = wanted.reads, wanted.layout()
    if step != 1:
        raise NotWritten("a slice with steps")
    dims = TO_NHWC if layout == "nhwc" else _PLAIN[: len(tensor.shape)]
    start += tensor.shape[dim] if start < 0 else 0
    offsets = [start if each == dim % len(dims) else 0 for each in dims]
    wanted.unary(
        "StaticSlice", num_dims=len(dims), offsets=offsets, sizes=[wanted.out.shape[each] for each in dims]
    )


def _pad(wanted: Wanted) -> None:
    (tensor,), pads = wanted.reads, wanted.step.args[1]
    if min(pads) < 0:
        raise NotWritten("a pad that cuts")
    dims = TO_NHWC if wanted.layout() == "nhwc" else _PLAIN[: len(tensor.shape)]
    last = len(dims) - 1
    sides = {last - index: pads[2 * index : 2 * index + 2] for index in range(len(pads) // 2)}
    before, after = zip(*(sides.get(dim, (0, 0)) for dim in dims), strict=True)
    wanted.unary("StaticConstantPad", pre_paddings=list(before), post_paddings=list(after),
                 padding_value=float(wanted.number(2, 0.0)))  # fmt: skip


def _concat(wanted: Wanted) -> None:
    layout, count = wanted.layout(), len(wanted.reads)
    if not 2 <= count <= _MOST_JOINED:
        raise NotWritten(f"{count} tensors side by side")
    dim = wanted.number(1, 0) % len(wanted.out.shape)
    axis = TO_NHWC.index(dim) if layout == "nhwc" else dim
    sources = [wanted.graph.read(each, layout) for each in wanted.reads]
    names: dict[str, Any] = {
        f"input{index + 1}_id": sources[index] if index < count else NONE for index in range(_MOST_JOINED)
    }
    target = wanted.graph.tensor(wanted.out, layout)
    wanted.graph.op(f"Concatenate{count}", axis=axis, output_id=target, **names)


def _max_pool(wanted: Wanted) -> None:
    _pool(wanted, "MaxPooling2d", dilation=wanted.number(4, [1, 1]), more=wanted.number(5, False))


def _average(wanted: Wanted) -> None:
    if wanted.out.affine is not None or wanted.number(6, None) is not None:
        raise NotWritten("an average of codes, or by another number")
    if any(wanted.number(3, [0, 0])) and wanted.number(5, True):
        raise NotWritten("an average that counts zeros beside the map")
    _pool(wanted, "AvgPooling2d", dilation=[1, 1], more=wanted.number(4, False))


def _pool(wanted: Wanted, kind: str, dilation: Sequence[int], more: bool) -> None:
    _, kernel, *_ = wanted.step.args
    stride, padding = wanted.number(2, []) or kernel, wanted.number(3, [0, 0])
    if more or len(wanted.out.shape) != 4 or stride[0] > kernel[0] or stride[1] > kernel[1]:
        raise NotWritten("a pool with gaps")
    source = wanted.graph.read(wanted.reads[0], "nhwc")
    target = wanted.graph.tensor(wanted.out, "nhwc")
    wanted.graph.op(
        kind, padding_top=padding[0], padding_right=padding[1], padding_bottom=padding[0],
        padding_left=padding[1], pooling_height=kernel[0], pooling_width=kernel[1], stride_height=stride[0],
        stride_width=stride[1], dilation_height=dilation[0], dilation_width=dilation[1], input_id=source,
        output_id=target, flags=_KEEP_DIMS,
    )  # fmt: skip


def _mean(wanted: Wanted) -> None:
    axes = len(wanted.reads[0].shape)
    dims = sorted(dim % axes for dim in wanted.number(1, []))
    if axes != 4 or dims != [2, 3] or not wanted.number(2, False):
        raise NotWritten("a mean that is not over maps")
    source = wanted.graph.read(wanted.reads[0], "nhwc")
    target = wanted.graph.tensor(wanted.out, "nhwc")
    wanted.graph.op("GlobalAvgPooling2d", input_id=source, output_id=target, flags=_KEEP_DIMS)


def _softmax(wanted: Wanted) -> None:
    axes = len(wanted.out.shape)
    if wanted.step.args[1] % axes != axes - 1 or axes != 2:
        raise NotWritten("a softmax that is not over the last of two axes")
    wanted.unary("Softmax")


def _clamp(wanted: Wanted) -> None:
    wanted.unary("Clamp", clamped(wanted.step))


def clamped(step: Step) -> tuple[float, float]:
    """The least and the most of what a "relu", a "hardtanh" or a "clamp" makes."""
    if step.op == "relu":
        return 0.0, inf
    widest = (-1.0, 1.0) if step.op == "hardtanh" else (-inf, inf)
    given = (*step.args[1:3], None, None)
    low, high = (limit if each is None else float(each) for each, limit in zip(given, widest, strict=False))
    return low, high


def _leaky(wanted: Wanted) -> None:
    wanted.unary("LeakyReLU", negative_slope=float(wanted.number(1, 0.01)))


def _elu(wanted: Wanted) -> None:
    if any(float(each) != 1 for each in wanted.step.args[2:]):
        raise NotWritten("an ELU of another scale")
    wanted.unary("ELU", alpha=float(wanted.number(1, 1.0)))


_KNOWN: Mapping[str, Callable[[Wanted], None]] = {
    "convolution": _convolution, "addmm": _linear, "mm": _product, "bmm": _products, "permute": _permute,
    "slice": _slice, "constant_pad_nd": _pad, "cat": _concat,
    "max_pool2d_with_indices": _max_pool, "mean": _mean,
    "_softmax": _softmax, "relu": _clamp, "hardtanh": _clamp, "clamp": _clamp,
    "avg_pool2d": _average, "leaky_relu": _leaky, "elu": _elu,
}  # fmt: skip
