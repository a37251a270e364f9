"""Pools, reductions and softmax of ONNX."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.pipeline.recipe.imports.onnx.builder import Builder, Live, Node, Value
from paredown.pipeline.recipe.imports.onnx.operations.layers import padded, window
from paredown.pipeline.recipe.imports.onnx.operations.moves import shaped

MAX_POOLS: Mapping[int, Any] = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
AVERAGE_POOLS: Mapping[int, Any] = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}


def max_pool(b: Builder, node: Node, x: Value) -> Any:
    """Max pooling; what is padded is never the largest."""
    kernel, strides, dilations, before, after = _window(b, node, x)
    if len([name for name in node.outputs if name]) > 1:
        raise node.error("its second output, the places of the maxima, is used")
    made = MAX_POOLS[len(kernel)]
    if before == after and all(2 * p <= k for p, k in zip(before, kernel, strict=True)):
        pool = made(kernel, strides, before, dilations)
    else:
        x = padded(b, node, x, before, after, float("-inf") if _negative(b, x) else 0.0)
        pool = made(kernel, strides, 0, dilations)
    return b.module(node, pool, x)


def _negative(b: Builder, x: Value) -> bool:
    """Whether a value may be negative; behind ReLU zeros pad as well, and have an int8 code."""
    if not isinstance(x, Live):
        return True
    step = next((step for step in reversed(b.steps) if x.name in step.outputs), None)
    return step is None or not isinstance(b.modules[step.path], (nn.ReLU, nn.ReLU6, nn.Sigmoid))


def average_pool(b: Builder, node: Node, x: Value) -> Any:
    """Average pooling; where padding does not count, and is unequal, sums are divided by what counts."""
    kernel, strides, dilations, before, after = _window(b, node, x)
    if any(step != 1 for step in dilations):
        raise node.error(f"has dilations {dilations}")
    counts_pads = bool(node.attrs.get("count_include_pad", 0))
    made = AVERAGE_POOLS[len(kernel)]
    extra = _ceiled(b, node, x)
    half = all(2 * p <= k for p, k in zip(before, kernel, strict=True))
    if before == [p - e for p, e in zip(after, extra, strict=True)] and half and not any(extra):
        return b.module(node, made(kernel, strides, before, False, counts_pads), x)
    size = b.shape(x)[2:]
    ones = torch.ones(1, 1, *size)
    real = [p - e for p, e in zip(after, extra, strict=True)]
    inside = _pad(ones, before, real, 1.0 if counts_pads else 0.0)
    inside = _pad(inside, [0] * len(extra), extra, 0.0)
    pool = made(kernel, strides)
    share = pool(inside)
    found = b.module(node, pool, padded(b, node, x, before, after, 0.0))
    if bool((share == 1).all()):
        return found
    return b.call(node, operator.mul, found, 1 / share)


def _pad(x: Tensor, before: list[int], after: list[int], value: float) -> Tensor:
    sides = [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair]
    return F.pad(x, sides, "constant", value)


def _window(b: Builder, node: Node, x: Value) -> tuple[list[int], ...]:
    """Kernel, strides, dilations, padding before and after, what `ceil_mode` adds included."""
    shape, kernel = b.shape(x), list(node.attrs["kernel_shape"])
    if len(shape) - 2 not in MAX_POOLS or len(kernel) != len(shape) - 2:
        raise node.error(f"reads {len(shape)} axes with a window of {len(kernel)}")
    strides, dilations, before, after = window(node, shape[2:], kernel)
    after = [p + e for p, e in zip(after, _ceiled(b, node, x), strict=True)]
    return kernel, strides, dilations, before, after


def _ceiled(b: Builder, node: Node, x: Value) -> list[int]:
    """What `ceil_mode` adds behind the last window; none that would begin in the padding."""
    shape, kernel = b.shape(x)[2:], list(node.attrs["kernel_shape"])
    if not node.attrs.get("ceil_mode"):
        return [0] * len(kernel)
    strides, dilations, before, after = window(node, shape, kernel)
    found = []
    for n, k, s, d, p, q in zip(shape, kernel, strides, dilations, before, after, strict=True):
        span = (k - 1) * d + 1
        count = -(-(n + p + q - span) // s) + 1
        if (count - 1) * s >= n + p:
            count -= 1
        found.append(max((count - 1) * s + span - (n + p + q), 0))
    return found


def global_pool(b: Builder, node: Node, x: Value) -> Any:
    """Over all axes behind the channels."""
    axes = tuple(range(2, len(b.shape(x))))
    if node.kind == "GlobalAveragePool":
        if len(axes) == 2:
            return b.module(node, nn.AdaptiveAvgPool2d(1), x)
        return b.call(node, torch.mean, x, axes, True)
    return b.call(node, torch.amax, x, axes, True)


def reduce(b: Builder, node: Node, x: Value, axes: Value = None) -> Any:
    """Over some axes or all; the axes are an attribute before opset 18, of ReduceSum before 13."""
    rank = len(b.shape(x))
    named = node.attrs.get("axes") if axes is None else b.ints(node, axes, "axes")
    if not named and node.attrs.get("noop_with_empty_axes"):
        return x
    over = tuple(sorted(axis % rank for axis in named)) if named else tuple(range(rank))
    keep = bool(node.attrs.get("keepdims", 1))
    reduction = REDUCTIONS[node.kind.removeprefix("Reduce")]
    if isinstance(x, Live) and not keep and over == tuple(range(1, rank)):
        # a value for each image has an axis besides the batch: most give it one again at once
        return shaped(b, node, b.call(node, reduction, x, over, True), [b.shape(x)[0]])
    return b.call(node, reduction, x, over, keep)


def _l1(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return x.abs().sum(axes, keep)


def _l2(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return x.square().sum(axes, keep).sqrt()


def _squares(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return x.square().sum(axes, keep)


def _log_sum(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return x.sum(axes, keep).log()


def _product(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    for axis in reversed(axes):
        x = x.prod(axis, keep)
    return x


REDUCTIONS: Mapping[str, Callable[..., Tensor]] = {
    "Sum": torch.sum, "Mean": torch.mean, "Max": torch.amax, "Min": torch.amin, "Prod": _product, "L1": _l1,
    "L2": _l2, "SumSquare": _squares, "LogSum": _log_sum, "LogSumExp": torch.logsumexp,
}  # fmt: skip


def arg(b: Builder, node: Node, x: Value) -> Any:
    """The place of the largest or smallest; of equal ones the first."""
    if node.attrs.get("select_last_index"):
        raise node.error("takes the last of equal values")
    chosen = torch.argmax if node.kind == "ArgMax" else torch.argmin
    return b.call(node, chosen, x, node.attrs.get("axis", 0), bool(node.attrs.get("keepdims", 1)))


def softmax(b: Builder, node: Node, x: Value) -> Any:
    """Along one axis; before opset 13 over all axes from that one on."""
    shape = b.shape(x)
    made = {"Softmax": nn.Softmax, "LogSoftmax": nn.LogSoftmax}[node.kind]
    axis = node.attrs.get("axis", 1 if node.opset < 13 else -1) % len(shape)
    if node.opset >= 13 or all(size == 1 for size in shape[axis + 1 :]):
        return b.module(node, made(axis if axis < len(shape) - 1 else -1), x)
    if all(size == 1 for size in shape[axis:-1]):
        return b.module(node, made(-1), x)
    flat = b.call(node, torch.flatten, x, axis)
    return b.call(node, torch.unflatten, b.module(node, made(-1), flat), axis, list(shape[axis:]))


def top_k(b: Builder, node: Node, x: Value, k: Value = None) -> Any:
    """The k largest or smallest, sorted."""
    count = node.attrs["k"] if k is None else b.ints(node, k, "k")[0]
    largest, ordered = bool(node.attrs.get("largest", 1)), bool(node.attrs.get("sorted", 1))
    return b.call(node, torch.topk, x, count, node.attrs.get("axis", -1), largest, ordered)


def cumsum(b: Builder, node: Node, x: Value, axis: Value) -> Any:
    """The sum up to each place."""
    if node.attrs.get("exclusive") or node.attrs.get("reverse"):
        raise node.error("is exclusive or runs backwards")
    return b.call(node, torch.cumsum, x, b.ints(node, axis, "axis")[0])
