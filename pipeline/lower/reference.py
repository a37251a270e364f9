"""The integer graph executed in true integer arithmetic: what the device's kernels compute, bit for bit.

Accumulators are exact integers (carried in float64, which holds every sum of these products exactly), and
each requantization is the kernel's own: XNNPACK's, which serves both runtimes on x86-64 and aarch64.

* convolution, linear: float32(accumulator) * (input scale * weight scale / output scale), half to even.
* leaky ReLU: 8.8 fixed point multipliers, `(x * 2**7 * m + 2**14) >> 15`.
* add: 20-bit fixed point multipliers with one shared shift, rounding half up.
* mean: float32(sum of codes) * scale + bias, each step in float32, half to even; both zero points are in the
  bias. A kernel that fuses the two steps (FMA; none does on x86-64) may differ by one code at exact ties.

Source of the formulas: XNNPACK's microkernel parameters, read and then confirmed value by value against
both runtimes (`tests/pipeline/lower/test_reference.py`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from paredown.pipeline.lower.integer import IntegerGraph, IntegerNode

Codes = NDArray[np.int8]


def run(graph: IntegerGraph, codes: Codes) -> dict[str, Codes]:
    """Every tensor of the network, as int8 codes.

    Args:
        graph: the integer graph.
        codes: int8, (batch, channels, height, width), in the scale of the graph's input.

    Returns:
        Name to codes, in running order.
    """
    values: dict[str, Codes] = {}
    for node in graph:
        if node.kind == "input":
            values[node.name] = codes
        else:
            feeds = [graph[name] for name in node.inputs]
            values[node.name] = apply(node, feeds, [values[name] for name in node.inputs])
    return values


def predict(graph: IntegerGraph, codes: Codes) -> tuple[Codes, ...]:
    """The network's outputs only, keeping no more tensors alive than it must."""
    last_use = {name: index for index, node in enumerate(graph) for name in node.inputs}
    values: dict[str, Codes] = {}
    for index, node in enumerate(graph):
        if node.kind == "input":
            values[node.name] = codes
            continue
        feeds = [graph[name] for name in node.inputs]
        values[node.name] = apply(node, feeds, [values[name] for name in node.inputs])
        for name in node.inputs:
            if last_use[name] == index and name not in graph.outputs:
                values.pop(name, None)
    return tuple(values[name] for name in graph.outputs)


def apply(node: IntegerNode, feeds: list[IntegerNode], inputs: list[Codes]) -> Codes:
    """One operation on int8 codes."""
    x, attrs = inputs[0], node.attrs
    match node.kind:
        case "conv2d" | "linear":
            return _requantize(_accumulate(node, feeds[0], x), node, feeds[0])
        case "leaky_relu":
            return _leaky(node, feeds[0], x)
        case "max_pool2d":
            left, right, top, bottom = attrs["padding"]
            padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=-128)
            pooled = F.max_pool2d(torch.from_numpy(padded).float(), attrs["kernel"], attrs["stride"])
            return pooled.to(torch.int8).numpy()
        case "add":
            return _add(node, feeds, inputs)
        case "concat":
            return np.concatenate(inputs, attrs["dim"])
        case "mean":
            return _mean(node, feeds[0], x)
        case "relu" | "relu6":
            return np.clip(x, node.low, node.high).astype(np.int8)
        case "pad":
            left, right, top, bottom = attrs["padding"]
            widths = ((0, 0), (0, 0), (top, bottom), (left, right))
            return np.pad(x, widths, constant_values=node.out.zero_point)
        case "reshape":
            return x.reshape(x.shape[0], *attrs["shape"][1:])
        case "permute":
            return np.ascontiguousarray(x.transpose(attrs["dims"]))
    raise AssertionError(node.kind)


def _accumulate(node: IntegerNode, feed: IntegerNode, x: Codes) -> NDArray[np.float64]:
    """Exact int32 accumulators, as float64."""
    assert node.weight is not None and node.bias is not None
    values = torch.from_numpy(x).double() - feed.out.zero_point
    weight = torch.from_numpy(node.weight).double()
    bias = torch.from_numpy(node.bias).double()
    if node.kind == "linear":
        return F.linear(values, weight, bias).numpy()
    padded = F.pad(values, node.attrs["padding"])
    return F.conv2d(padded, weight, bias, node.attrs["stride"], 0, 1, node.attrs["groups"]).numpy()


def _requantize(accumulator: NDArray[np.float64], node: IntegerNode, feed: IntegerNode) -> Codes:
    assert node.weight_scale is not None
    scale = np.float32(feed.out.scale) * node.weight_scale / np.float32(node.out.scale)
    scale = scale.reshape(-1, *[1] * (accumulator.ndim - 2))
    return _clamp(np.rint(accumulator.astype(np.float32) * scale), node)


def _clamp(values: NDArray[Any], node: IntegerNode) -> Codes:
    return np.clip(values + node.out.zero_point, node.low, node.high).astype(np.int8)


def leaky_multipliers(slope: float, before: float, after: float) -> tuple[int, int]:
    """Positive and negative multiplier of the int8 leaky ReLU, in units of 1/256."""
    positive = np.float32(before) / np.float32(after)
    negative = positive * np.float32(slope)
    return int(np.rint(np.float32(256) * positive)), int(np.rint(np.float32(256) * negative))


def _leaky(node: IntegerNode, feed: IntegerNode, x: Codes) -> Codes:
    positive, negative = leaky_multipliers(node.attrs["slope"], feed.out.scale, node.out.scale)
    # 256 possible inputs: a table is both the fastest and the plainest way.
    real = np.arange(-128, 128, dtype=np.int64) - feed.out.zero_point
    table = _clamp(((real << 7) * np.where(real >= 0, positive, negative) + (1 << 14)) >> 15, node)
    return table[x.astype(np.int16) + 128]


def _mean(node: IntegerNode, feed: IntegerNode, x: Codes) -> Codes:
    count = x.shape[2] * x.shape[3]
    scale = np.float32(feed.out.scale) / np.float32(node.out.scale) * (np.float32(1) / np.float32(count))
    bias = np.float32(node.out.zero_point) - np.float32(feed.out.zero_point * count) * scale
    total = x.sum((2, 3), keepdims=True, dtype=np.int64).astype(np.float32)
    return np.clip(np.rint(total * scale + bias), node.low, node.high).astype(np.int8)


def _add(node: IntegerNode, feeds: list[IntegerNode], inputs: list[Codes]) -> Codes:
    ratios = [np.float32(feed.out.scale) / np.float32(node.out.scale) for feed in feeds]
    exponent = int(np.frexp(max(ratios))[1]) - 1
    shift = 20 - exponent
    total = np.full(inputs[0].shape, 1 << (shift - 1), np.int64)
    for feed, ratio, codes in zip(feeds, ratios, inputs, strict=True):
        multiplier = int(np.rint(np.ldexp(np.float64(ratio), shift)))
        total += multiplier * (codes.astype(np.int64) - feed.out.zero_point)
    return _clamp(total >> shift, node)
