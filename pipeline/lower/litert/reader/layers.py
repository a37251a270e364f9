"""TFLite's int8 operations with arithmetic, as nodes of the integer graph.

Codes, scales and biases are the file's own. What our kernels round otherwise than TFLite's stands in
`docs/models-from-elsewhere.md`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from paredown.pipeline.graph.operations.joining import add as adding
from paredown.pipeline.graph.operations.joining import mul as multiplying
from paredown.pipeline.graph.operations.operation import LARGEST_FACTOR, QMAX, QMIN
from paredown.pipeline.graph.operations.padding import Padding, same_padding
from paredown.pipeline.lower.integer import Affine, IntegerNode
from paredown.pipeline.lower.litert.reader.reading import MOST_VALUES, TO_NCHW, At, limits, ours
from paredown.pipeline.recipe.imports.keras.tflite.file import BYTES
from paredown.targets.errors import InputError

#: Windows of more values leave a float32 factor no room for ties.
MOST_WINDOW = 1 << 14


def _weights(at: At, axis: int) -> dict[str, Any]:
    """Weight codes as the file has them, and scales and biases, (out,).

    Args:
        at: the operation.
        axis: of the output channels.
    """
    codes, tensor = at.value(1, "kernel"), at.tensor(1)
    assert tensor is not None
    if tensor.kind not in BYTES:
        raise InputError(f"its weights are {tensor.kind.lower()}, not int8")
    count = codes.shape[axis]
    scales, zeros = np.asarray(tensor.scales, np.float32), np.asarray(tensor.zero_points, np.int64)
    if len(scales) not in (1, count) or len(zeros) != len(scales):
        raise InputError(f"its weights have {len(scales)} scales for {count} channels")
    if (zeros != BYTES[tensor.kind]).any():
        raise InputError(f"its weights have the zero point {zeros[0]}: the kernels here know none")
    if not (np.isfinite(scales).all() and (scales > 0).all()):
        raise InputError("its weights have scales that are not above zero")
    signed = (codes.astype(np.int16) - BYTES[tensor.kind]).astype(np.int8)
    scales = np.broadcast_to(scales, count).copy()
    feed = at.feed()
    if float(scales.max()) * feed.out.scale / at.out.scale > LARGEST_FACTOR:
        raise InputError("its output's scale is over 255 times finer than its sums")
    bias = np.zeros(count, np.int32)
    if (given := at.tensor(2)) is not None:
        bias = at.value(2, "bias").reshape(-1)
        if given.kind != "INT32" or len(bias) != count:
            raise InputError(f"its bias is {given.kind.lower()} of {len(bias)}, not int32 of {count}")
    return {"weight": signed, "weight_scale": scales, "bias": bias.astype(np.int32)}


def _padding(at: At, kernel: tuple[int, int], dilation: tuple[int, int] = (1, 1)) -> Padding:
    """(left, right, top, bottom)."""
    o = at.options
    name = at.reading.file.enums["padding"].get(o.padding, str(o.padding))
    if name == "VALID":
        return 0, 0, 0, 0
    if name != "SAME":
        raise InputError(f"its padding is {name}")
    reach = ((kernel[0] - 1) * dilation[0] + 1, (kernel[1] - 1) * dilation[1] + 1)
    return same_padding(at.feed().shape, reach, (o.strideH, o.strideW))


def _sizes(
    feed: IntegerNode, kernel: tuple[int, ...], attrs: Mapping[str, Any], dilation: tuple[int, int] = (1, 1)
) -> tuple[int, int]:
    """Height and width of what a window makes of a map."""
    left, right, top, bottom = attrs["padding"]
    made = [
        (size + pad - (k - 1) * apart - 1) // step + 1
        for size, pad, k, apart, step in zip(
            feed.shape[2:], (top + bottom, left + right), kernel, dilation, attrs["stride"], strict=True
        )
    ]
    return made[0], made[1]


def conv(at: At) -> IntegerNode:
    """CONV_2D and DEPTHWISE_CONV_2D."""
    each, feed, o = at.op.kind.startswith("DEPTHWISE"), at.feed(), at.options
    fields = _weights(at, 3 if each else 0)
    codes = fields["weight"]
    if codes.ndim != 4 or len(feed.shape) != 4:
        raise InputError(f"its kernel is {codes.shape}, and its input {feed.shape}")
    weight = codes.transpose(3, 0, 1, 2) if each else codes.transpose(0, 3, 1, 2)
    groups, rest = divmod(feed.shape[1], weight.shape[1])
    if rest or len(weight) % groups:
        raise InputError(f"its kernel {codes.shape} does not fit its input {feed.shape}")
    kernel, dilation = weight.shape[2:], (int(o.dilationHFactor or 1), int(o.dilationWFactor or 1))
    attrs: dict[str, Any] = {
        "stride": (int(o.strideH), int(o.strideW)), "groups": groups,
        "padding": _padding(at, (kernel[0], kernel[1]), dilation),
    }  # fmt: skip
    if dilation != (1, 1):
        attrs["dilation"] = dilation
    low, high = at.clamp()
    fields["weight"] = np.ascontiguousarray(weight)
    shape = (1, len(weight), *_sizes(feed, kernel, attrs, dilation))
    return at.add("conv2d", [feed], shape, low=low, high=high, attrs=attrs, **fields)


def dense(at: At) -> IntegerNode:
    """FULLY_CONNECTED; over several rows it is a convolution of one pixel."""
    feed, fields, (low, high) = at.feed(), _weights(at, 0), at.clamp()
    weight = fields["weight"]
    if weight.ndim != 2 or math.prod(feed.shape) % weight.shape[1]:
        raise InputError(f"its weights {weight.shape} do not fit its input {feed.shape}")
    rows, fields = math.prod(feed.shape) // weight.shape[1], {**fields, "low": low, "high": high}
    if rows > 1:
        shape, attrs = (1, rows, 1, len(weight)), {"stride": (1, 1), "padding": (0, 0, 0, 0), "groups": 1}
        fields["weight"] = weight[:, :, None, None]
        source = at.formed(feed, (1, rows, 1, weight.shape[1]), "map", "map.")
        made = at.add("conv2d", [source], ours(shape), attrs=attrs, word="pixels", **fields)
        return at.formed(made, at.shape, "", "made.")
    whole = len(feed.shape) == 4 and math.prod(feed.shape[2:]) > 1
    if whole:  # as large as the map, so that no axes are moved
        _, channels, height, width = feed.shape
        shape = (len(weight), height, width, channels)
        fields["weight"] = np.ascontiguousarray(weight.reshape(shape).transpose(TO_NCHW))
        attrs = {"stride": (1, 1), "padding": (0, 0, 0, 0), "groups": 1}
        made = at.add("conv2d", [feed], (1, len(weight), 1, 1), attrs=attrs, word="window", **fields)
        return at.formed(made, at.shape, "", "made.")
    source = at.formed(feed, (1, weight.shape[1]), "flat")
    flat = len(at.shape) == 2
    made = at.add("linear", [source], (1, len(weight)), word="" if flat else "row", **fields)
    return made if flat else at.formed(made, at.shape, "", "made.")


def _operand(at: At, index: int, rank: int) -> IntegerNode:
    """An input of an operation on single values; a constant becomes a node."""
    if at.depends(index):
        return at.feed(index)
    tensor, value = at.tensor(index), at.value(index, "operand")
    assert tensor is not None
    affine = at.reading.affine(at.op.inputs[index])
    codes = (value.astype(np.int16) - BYTES[tensor.kind]).astype(np.int8)
    codes = codes.reshape([1] * (rank - codes.ndim) + list(codes.shape))
    codes = codes.transpose(TO_NCHW) if rank == 4 else codes
    if codes.shape[0] != 1:
        raise InputError(f"its constant is {tensor.shape}, without a batch of 1")
    source = next(iter(at.reading.nodes.values()))
    return at.add("constant", [source], codes.shape, out=affine, value=np.ascontiguousarray(codes),
                  word=f"constant{index}")  # fmt: skip


def pair(at: At) -> IntegerNode:
    """ADD, SUB and MUL."""
    rank, kind, (low, high) = len(at.shape), at.op.kind.lower(), at.clamp()
    feeds = [_operand(at, index, rank) for index in (0, 1)]
    if any(len(feed.shape) != rank for feed in feeds):
        raise InputError(f"reads {feeds[0].shape} and {feeds[1].shape}, and makes {at.shape}")
    shape = np.broadcast_shapes(*(feed.shape for feed in feeds))
    scales, out = [np.float32(feed.out.scale) for feed in feeds], np.float32(at.out.scale)
    factors = [scales[0] * scales[1] / out] if kind == "mul" else [scale / out for scale in scales]
    least = multiplying.SMALLEST_FACTOR if kind == "mul" else adding.SMALLEST_FACTOR
    if max(factors) > LARGEST_FACTOR or min(factors) < least:
        raise InputError(
            f"its scales are {max(factors):.3g} or {min(factors):.3g} apart, which no kernel has"
        )
    if kind != "mul" or (low, high) == (QMIN, QMAX):
        return at.add(kind, feeds, shape, low=low, high=high)
    made = at.add(kind, feeds, shape, word="product")
    return _clamped(at, made, low, high)


def _clamped(at: At, feed: IntegerNode, low: int, high: int) -> IntegerNode:
    """A ReLU of its own, or what stands for an activation that a kernel does not take in."""
    return at.add("relu" if high == QMAX else "relu6", [feed], feed.shape, low=low, high=high)


def average(at: At) -> IntegerNode:
    """AVERAGE_POOL_2D, which rounds halves away from the code zero.

    Where there are halves, one convolution rounds them up and ends at code zero below, another rounds them
    down and ends there above: int8's own ends. Their sum has no more to round.
    """
    feed, o, (low, high) = at.feed(), at.options, at.clamp()
    at.same(feed)
    kernel = (int(o.filterHeight), int(o.filterWidth))
    count, channels = math.prod(kernel), feed.shape[1]
    padding, stride = _padding(at, kernel), (int(o.strideH), int(o.strideW))
    if any(padding):
        raise InputError(f"averages fewer values at the border (SAME, {kernel[0]}x{kernel[1]})")
    if count > MOST_WINDOW or count * channels > MOST_VALUES:
        raise InputError(f"averages {count} values of {channels} channels")
    attrs = {"kernel": kernel, "stride": stride, "padding": padding, "divisor": count}
    shape = (1, channels, *_sizes(feed, kernel, attrs))
    if count % 2:
        return at.add("avg_pool2d", [feed], shape, low=low, high=high, attrs=attrs)
    zero, made = feed.out.zero_point, []
    near = (zero - 1) // 2
    attrs = {"stride": stride, "padding": padding, "groups": channels}
    for word, end, own, half in (("below", QMAX, near, -1), ("above", QMIN, zero - 1 - near, 1)):
        bias = 2 * count * (zero + end - own) + half  # the code zero comes to the end of the codes
        made.append(at.add(
            "conv2d", [feed], shape, word=word, out=Affine(feed.out.scale, own), attrs=attrs,
            weight=np.full((channels, 1, *kernel), 2, np.int8), bias=np.full(channels, bias, np.int32),
            weight_scale=np.full(channels, 1 / (2 * count), np.float32),
        ))  # fmt: skip
    return at.add("add", made, shape, low=low, high=high)


def largest(at: At) -> IntegerNode:
    """MAX_POOL_2D."""
    feed, o, (low, high) = at.feed(), at.options, at.clamp()
    at.same(feed)
    kernel, stride = (int(o.filterHeight), int(o.filterWidth)), (int(o.strideH), int(o.strideW))
    attrs = {"kernel": kernel, "stride": stride, "padding": _padding(at, kernel)}
    shape = (1, feed.shape[1], *_sizes(feed, kernel, attrs))
    if (low, high) == (QMIN, QMAX):
        return at.add("max_pool2d", [feed], shape, attrs=attrs)
    made = at.add("max_pool2d", [feed], shape, attrs=attrs, word="pool")
    return _clamped(at, made, low, high)


def mean(at: At) -> IntegerNode:
    """MEAN over height and width."""
    feed, axes = at.feed(), {int(axis) % 4 for axis in at.value(1, "axes").reshape(-1).tolist()}
    if len(feed.shape) != 4 or axes != {1, 2}:
        raise InputError(f"is over the axes {sorted(axes)} of {len(feed.shape)}; known are height and width")
    if at.options.keepDims:
        return at.add("mean", [feed], (1, feed.shape[1], 1, 1))
    made = at.add("mean", [feed], (1, feed.shape[1], 1, 1), word="map")
    return at.formed(made, at.shape)


def leaky(at: At) -> IntegerNode:
    """LEAKY_RELU."""
    slope, feed = float(at.options.alpha), at.feed()
    factor = feed.out.scale / at.out.scale
    if not 1 / 256 <= slope <= 1 or factor > 127 or factor * slope < 1 / 256:
        raise InputError(f"its slope is {slope:g} between scales that are {factor:.3g} apart")
    return at.add("leaky_relu", [feed], feed.shape, attrs={"slope": slope})


def relu(at: At) -> IntegerNode:
    """RELU and RELU6 of their own; between two scales with a requantization."""
    feed, (low, high) = at.feed(), limits(at.op.kind, at.out)
    if feed.out == at.out:
        return _clamped(at, feed, low, high)
    return requantize(at, low, high)


def requantize(at: At, low: int = QMIN, high: int = QMAX) -> IntegerNode:
    """QUANTIZE from codes to codes; nothing where they are the same, as from uint8 to int8."""
    feed = at.feed()
    if feed.out == at.out and (low, high) == (QMIN, QMAX):
        return feed
    if feed.out.scale / at.out.scale > LARGEST_FACTOR:
        raise InputError("its output's scale is over 255 times finer than its input's")
    return at.add("affine", [feed], feed.shape, low=low, high=high, attrs={"scale": 1.0, "shift": 0.0})


def softmax(at: At) -> IntegerNode:
    """SOFTMAX along the last axis."""
    if float(at.options.beta) != 1:
        raise InputError(f"its beta is {at.options.beta:g}; known is 1")
    feed = at.feed()
    if len(feed.shape) in (2, 4):
        return at.add("softmax", [feed], feed.shape)
    rows = (1, math.prod(feed.shape[:-1]), 1, feed.shape[-1])
    made = at.add("softmax", [at.formed(feed, rows, "map", "map.")], ours(rows), word="rows")
    return at.formed(made, at.shape, "", "made.")
