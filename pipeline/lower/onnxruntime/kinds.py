"""What an .onnx holds of the kinds that have an operator of their own, of codes and of floats.

Exact on codes are those whose kernel is XNNPACK's arithmetic (`conv2d`, `linear`), those that only move
codes, tables of 256 codes, and those that are written here as whole numbers in float32, which holds them
(`conv_transpose2d`, `mean`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paredown.pipeline.graph.operations.activation.leaky_relu import multipliers
from paredown.pipeline.graph.operations.kinds import operation
from paredown.pipeline.graph.operations.moving.slice import ranges_of
from paredown.pipeline.lower.integer import Affine, IntegerNode
from paredown.pipeline.lower.onnxruntime.pairs import PAIRS, factors
from paredown.pipeline.lower.onnxruntime.writer import OFFSET, Value, Writer

Emitter = Callable[[Writer, Any, Sequence[Any], Sequence[Value]], Value]
#: Kinds that are one operator of real values.
OPERATORS: Mapping[str, str] = {**PAIRS, "softmax": "Softmax", "log_softmax": "LogSoftmax"}
#: Moves a value off a half, by less than a float32 product is off itself.
NUDGE = 2.0**-18


def parameters(writer: Writer, node: Any, feed: Any, weight: NDArray[Any]) -> list[str]:
    """Weight and bias of a layer, as an operator on real values reads them."""
    if not isinstance(node, IntegerNode):
        return [writer.constant(array, f"{node.name}/w") for array in (weight, np.asarray(node.bias))]
    assert node.weight_scale is not None and node.bias is not None
    unit = np.float32(feed.out.scale) * node.weight_scale
    held: list[tuple[Any, Any, Any, str]] = [
        (weight, node.weight_scale, np.zeros(len(unit), np.int8), "w"),
        (node.bias, unit, np.zeros(len(unit), np.int32), "b"),
    ]
    made = []
    for codes, scale, zero, word in held:
        names = [writer.constant(each, f"{node.name}/{word}") for each in (codes, scale, zero)]
        made.append(writer.op("DequantizeLinear", names, f"{node.name}/{word}/real", axis=0))
    return made


def finished(writer: Writer, node: Any, name: str) -> Value:
    """The tensor of a node, of its real values."""
    value = Value(name, tuple(node.shape))
    if not isinstance(node, IntegerNode):
        return value
    return writer.codes(value, node.out, node.name, node.low, node.high)


def units(writer: Writer, node: IntegerNode, name: str) -> Value:
    """The tensor of a node, of its values in units of its scale."""
    value = Value(name, tuple(node.shape))
    codes = writer.codes(value, Affine(1.0, node.out.zero_point), node.name, node.low, node.high)
    return replace(codes, affine=node.out)


def whole(writer: Writer, value: Value) -> str:
    """Codes less their zero point, as float32."""
    assert value.affine is not None
    return writer.real(replace(value, affine=Affine(1.0, value.affine.zero_point))).name


def _sides(attrs: Mapping[str, Any], word: str = "padding") -> list[int]:
    """ONNX's order of a padding (left, right, top, bottom)."""
    left, right, top, bottom = attrs[word]
    return [top, left, bottom, right]


def conv2d(writer: Writer, node: Any, feeds: Sequence[Any], values: Sequence[Value]) -> Value:
    """Fused to QLinearConv."""
    weight = np.asarray(node.weight)
    names = [writer.real(values[0]).name, *parameters(writer, node, feeds[0], weight)]
    made = writer.op("Conv", names, f"{node.name}/real", **layer_attributes(node, weight))
    return finished(writer, node, made)


def layer_attributes(node: Any, weight: NDArray[Any]) -> dict[str, Any]:
    """Of a Conv that is a `conv2d`, or a `linear` over one pixel."""
    if node.kind == "linear":
        return {"kernel_shape": [1, 1]}
    return {
        "group": int(node.attrs["groups"]), "pads": _sides(node.attrs),
        "kernel_shape": list(weight.shape[2:]), "strides": list(node.attrs["stride"]),
        "dilations": list(node.attrs.get("dilation", (1, 1))),
    }  # fmt: skip


def linear(writer: Writer, node: Any, feeds: Sequence[Any], values: Sequence[Value]) -> Value:
    """As a convolution over one pixel, whose kernel is the faster one and takes a scale per output."""
    x, weight = pixels(writer, values[0]), np.asarray(node.weight)
    weight = weight.reshape(*weight.shape, 1, 1)
    names = [writer.real(x).name, *parameters(writer, node, feeds[0], weight)]
    made = writer.op("Conv", names, f"{node.name}/real", **layer_attributes(node, weight))
    out = finished(writer, replace(node, shape=(x.shape[0], len(weight), 1, 1)), made)
    return pixels(writer, out, node.shape)


def pixels(writer: Writer, value: Value, shape: tuple[int, ...] = ()) -> Value:
    """Rows of features as a batch of one pixel each, or such a batch in another shape."""
    shape = shape or (int(np.prod(value.shape[:-1])), value.shape[-1], 1, 1)
    return writer.made("Reshape", [value, _shape(writer, shape)], value, shape)


def conv_transpose2d(writer: Writer, node: Any, feeds: Sequence[Any], values: Sequence[Value]) -> Value:
    """ONNX Runtime has it in float alone: on whole numbers, which float32 holds up to 2**24."""
    groups = int(node.attrs["groups"])
    weight = np.asarray(operation(node.kind).theirs(_tensor(node.weight), groups, 4)).copy()
    top, left = node.attrs["padding"]
    attrs = {
        "group": groups, "strides": list(node.attrs["stride"]), "pads": [top, left, top, left],
        "output_padding": list(node.attrs["output_padding"]), "kernel_shape": list(weight.shape[2:]),
    }  # fmt: skip
    if not isinstance(node, IntegerNode):
        names = [values[0].name, *parameters(writer, node, feeds[0], weight)]
        return finished(writer, node, writer.op("ConvTranspose", names, f"{node.name}/real", **attrs))
    assert node.bias is not None and node.weight_scale is not None
    codes = writer.constant(weight, f"{node.name}/w")
    held = writer.op("Cast", [codes], f"{node.name}/w/whole", to=writer.onnx.TensorProto.FLOAT)
    bias = writer.constant(node.bias.astype(np.float32), f"{node.name}/b")
    sums = writer.op("ConvTranspose", [whole(writer, values[0]), held, bias], f"{node.name}/sums", **attrs)
    scale = np.float32(feeds[0].out.scale) * node.weight_scale / np.float32(node.out.scale)
    factor = writer.constant(scale.reshape(1, -1, 1, 1), f"{node.name}/factor")
    return units(writer, node, writer.op("Mul", [sums, factor], f"{node.name}/units"))


def joined(writer: Writer, node: Any, feeds: Sequence[Any], values: Sequence[Value]) -> Value:
    """Of two real values; ONNX Runtime has Add and Mul on codes, here in units of the output's."""
    if isinstance(node, IntegerNode):
        held = [
            writer.real(replace(value, affine=Affine(float(factor), feed.out.zero_point))).name
            for value, feed, factor in zip(values, feeds, factors(node, feeds), strict=True)
        ]
        return units(writer, node, writer.op(OPERATORS[node.kind], held, f"{node.name}/units"))
    names = [writer.real(value).name for value in values]
    return finished(writer, node, writer.op(OPERATORS[node.kind], names, f"{node.name}/real"))


def mean(writer: Writer, node: Any, feeds: Sequence[Any], values: Sequence[Value]) -> Value:
    """The sum of codes in float32, which holds it, and XNNPACK's own steps from there."""
    (x,), (feed,) = values, feeds
    if not isinstance(node, IntegerNode):
        made = writer.op("ReduceMean", [x.name], f"{node.name}/real", axes=[2, 3], keepdims=1)
        return finished(writer, node, made)
    count = feed.shape[2] * feed.shape[3]
    scale = np.float32(feed.out.scale) / np.float32(node.out.scale) * (np.float32(1) / np.float32(count))
    bias = np.float32(node.out.zero_point) - np.float32(feed.out.zero_point * count) * scale
    axes = writer.constant(np.asarray([2, 3], np.int64), "axes")
    # Ours, not less their zero point.
    codes = writer.summed(writer.real(replace(x, affine=Affine(1.0, 0))).name)
    total = writer.op("ReduceSum", [codes, axes], f"{node.name}/sum", keepdims=1)
    scaled = writer.op("Mul", [total, writer.constant(np.asarray(scale), "scale")], f"{node.name}/scaled")
    made = writer.op("Add", [scaled, writer.constant(np.asarray(bias), "bias")], f"{node.name}/codes")
    codes_out = writer.codes(Value(made, node.shape), Affine(1.0, 0), node.name, node.low, node.high)
    return replace(codes_out, affine=node.out)


def softmax(writer: Writer, node: Any, feeds: Sequence[Any], values: Sequence[Value]) -> Value:
    """Over the channels, in float: ONNX Runtime's kernel on codes is off by one in an eighth of them."""
    kind = OPERATORS[node.kind]
    made = writer.op(kind, [writer.real(values[0]).name], f"{node.name}/real", axis=1)
    if not isinstance(node, IntegerNode):
        return finished(writer, node, made)
    scale = writer.constant(np.asarray(node.out.scale, np.float32), "scale")
    return units(writer, node, writer.op("Div", [made, scale], f"{node.name}/units"))


def max_pool2d(writer: Writer, node: Any, feeds: Sequence[Any], values: Sequence[Value]) -> Value:
    """On codes as they are."""
    attrs = {"kernel_shape": list(node.attrs["kernel"]), "strides": list(node.attrs["stride"])}
    (x,), dilation = values, node.attrs.get("dilation", (1, 1))
    attrs["dilations"] = list(dilation)
    return writer.made("MaxPool", [x], x, node.shape, pads=_sides(node.attrs), **attrs)


def concat(writer: Writer, node: Any, feeds: Sequence[Any], values: Sequence[Value]) -> Value:
    """Of codes of one scale."""
    return writer.made("Concat", list(values), values[0], node.shape, axis=int(node.attrs["dim"]))


def reshape(writer: Writer, node: Any, feeds: Sequence[Any], values: Sequence[Value]) -> Value:
    """Moves nothing."""
    return writer.made("Reshape", [values[0], _shape(writer, node.shape)], values[0], node.shape)


def permute(writer: Writer, node: Any, feeds: Sequence[Any], values: Sequence[Value]) -> Value:
    """A transpose."""
    return writer.made("Transpose", list(values), values[0], node.shape, perm=list(node.attrs["dims"]))


def slices(writer: Writer, node: Any, feeds: Sequence[Any], values: Sequence[Value]) -> Value:
    """Every dim at once."""
    taken = ranges_of(node)
    columns = [[r.start for r in taken.values()], [_end(r) for r in taken.values()], [*taken],
               [r.step for r in taken.values()]]  # fmt: skip
    names = [writer.constant(np.asarray(column, np.int64), "slice") for column in columns]
    return writer.made("Slice", [values[0], *names], values[0], node.shape)


def _end(taken: range) -> int:
    """Before the first index, an end of -1 would be the last one."""
    return taken.stop if taken.stop >= 0 else -(2**31)


def pad(writer: Writer, node: Any, feeds: Sequence[Any], values: Sequence[Value]) -> Value:
    """With zeros: on codes, with the zero point."""
    (x,), rank = values, len(node.shape)
    if "channels" in node.attrs:
        before, after = [0] * rank, [0] * rank
        before[1], after[1] = node.attrs["channels"]
    else:
        top, left, bottom, right = _sides(node.attrs)
        before, after = [0, 0, top, left], [0, 0, bottom, right]
    amounts = writer.constant(np.asarray([*before, *after], np.int64), "pads")
    zero = np.asarray(0.0, np.float32)
    if x.affine is not None:
        zero = np.asarray(x.affine.zero_point + OFFSET, np.uint8)
    return writer.made("Pad", [x, amounts, writer.constant(zero, "zero")], x, node.shape)


def resize(writer: Writer, node: Any, feeds: Sequence[Any], values: Sequence[Value]) -> Value:
    """Each pixel as often as its factors say."""
    sizes = [writer.constant(np.asarray(node.attrs[word], np.int64), word) for word in ("rows", "columns")]
    rows = writer.made(
        "Gather", [values[0], sizes[0]], values[0], (*node.shape[:3], feeds[0].shape[3]), axis=2
    )
    return writer.made("Gather", [rows, sizes[1]], rows, node.shape, axis=3)


def relu(writer: Writer, node: Any, feeds: Sequence[Any], values: Sequence[Value]) -> Value:
    """A range of codes."""
    return replace(writer.clipped(values[0], node.low, node.high, node.name), affine=node.out)


def leaky_relu(writer: Writer, node: Any, feeds: Sequence[Any], values: Sequence[Value]) -> Value:
    """LeakyRelu at scales that make its table XNNPACK's; looked up where none do."""
    (feed,), (x,), scales = feeds, values, leaky_scales(node, feeds[0])
    if scales is None:
        return looked_up(writer, node, feeds, values)
    real = writer.real(replace(x, affine=Affine(float(scales[0]), feed.out.zero_point)))
    made = writer.op("LeakyRelu", [real.name], f"{node.name}/units", alpha=float(scales[1]))
    return units(writer, node, made)


def leaky_scales(node: IntegerNode, feed: IntegerNode) -> tuple[np.float32, np.float32] | None:
    """The scale of the input's codes and the slope that make XNNPACK's table; None where none do."""
    positive, negative = multipliers(node.attrs["slope"], feed.out.scale, node.out.scale)
    if positive <= 0:
        return None
    scale = np.float32(positive / 256 * (1 + NUDGE))
    slope = np.float32(negative / 256 * (1 - NUDGE) / np.float64(scale))
    real = (every().astype(np.float32) - np.float32(feed.out.zero_point)) * scale
    made = np.rint(np.where(real >= 0, real, real * slope)) + node.out.zero_point
    codes = np.clip(made, node.low, node.high).astype(np.int8)
    return (scale, slope) if np.array_equal(codes, table(node, feed)) else None


def every() -> NDArray[np.int8]:
    """All codes."""
    return np.arange(-128, 128).astype(np.int8)


def table(node: IntegerNode, feed: IntegerNode) -> NDArray[np.int8]:
    """The codes that a function of one value makes of all codes."""
    return operation(node.kind).codes(node, [feed], [every()]).reshape(-1)


def looked_up(writer: Writer, node: Any, feeds: Sequence[Any], values: Sequence[Value]) -> Value:
    """A table of 256 codes."""
    codes = (table(node, feeds[0]).astype(np.int16) + OFFSET).astype(np.uint8)
    places = writer.op("Cast", [values[0].name], f"{node.name}/place", to=writer.onnx.TensorProto.INT32)
    name = writer.op("Gather", [writer.constant(codes, f"{node.name}/table"), places], node.name, axis=0)
    return Value(name, tuple(node.shape), node.out)


def constant(writer: Writer, node: Any, feeds: Sequence[Any], values: Sequence[Value]) -> Value:
    """Given values."""
    held = np.broadcast_to(np.asarray(node.value), node.shape)
    if isinstance(node, IntegerNode):
        held = (held.astype(np.int16) + OFFSET).astype(np.uint8)
        return Value(writer.constant(held, node.name), tuple(node.shape), node.out)
    return Value(writer.constant(held.astype(np.float32), node.name), tuple(node.shape))


def _shape(writer: Writer, shape: Sequence[int]) -> str:
    return writer.constant(np.asarray(shape, np.int64), "shape")


def _tensor(array: Any) -> Any:
    import torch

    return torch.as_tensor(array)


#: Kind -> how it is written, of codes and of floats.
BOTH: Mapping[str, Emitter] = {
    "conv2d": conv2d, "linear": linear, "conv_transpose2d": conv_transpose2d, "add": joined,
    "sub": joined, "mul": joined, "mean": mean, "softmax": softmax,
    "log_softmax": softmax, "max_pool2d": max_pool2d, "concat": concat, "reshape": reshape,
    "permute": permute, "slice": slices, "pad": pad, "channel_pad": pad, "resize": resize,
    "constant": constant,
}  # fmt: skip
#: The same of codes alone; other kinds of one value are `looked_up`.
OF_CODES: Mapping[str, Emitter] = {"relu": relu, "relu6": relu, "leaky_relu": leaky_relu}
