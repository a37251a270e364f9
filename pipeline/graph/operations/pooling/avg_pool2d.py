"""The average of each window of a map, zeros round it; the average of the whole map is `mean`.

XNNPACK has no int8 average pool in ExecuTorch. So programs hold a depthwise convolution whose weights are all
the code 1 with a scale of 1 / divisor: exact, and delegated, in both runtimes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from paredown.pipeline.graph.aten import arguments, shape_of, sides, target
from paredown.pipeline.graph.operations.operation import LARGEST_FACTOR, Operation
from paredown.pipeline.graph.operations.padding import symmetric
from paredown.pipeline.graph.operations.pooling.interpolate import interpolated
from paredown.pipeline.graph.operations.weighted.conv2d import Conv2d

if TYPE_CHECKING:
    from paredown.pipeline.graph.graph import Node
    from paredown.pipeline.graph.tracer import Tracer
    from paredown.pipeline.lower.integer import Scales

CONV2D = Conv2d()


class AvgPool2d(Operation):
    """Attributes: kernel (h, w), stride (h, w), padding (left, right, top, bottom), divisor."""

    aten = ("avg_pool2d", "avg_pool1d", "adaptive_avg_pool2d")
    homogeneous = True
    channelwise = True
    takes_relu = True
    keeps_sign = True

    def takes(self, node: Any) -> bool:
        if target(node) == "avg_pool2d":
            return True
        before, made = shape_of(node.args[0])[2:], shape_of(node)[2:]
        return all(size % count == 0 for size, count in zip(before, made, strict=True))

    def trace(self, tracer: Tracer, node: Any) -> None:
        if target(node) == "adaptive_avg_pool2d":
            self._adaptive(tracer, node)
            return
        _, kernel, stride, padding, ceil, counted, divisor = arguments(
            node, None, None, [], [0, 0], False, True, None
        )
        kernel = sides(node, kernel, 1)
        stride = sides(node, stride, 1) if stride else kernel
        vertical, horizontal = sides(node, padding, 0)
        pads = (horizontal, horizontal, vertical, vertical)
        feed = tracer.windowed(node)
        before, made = tracer.nodes[feed].shape, shape_of(node)
        made = (*made[:2], 1, made[2]) if len(made) == 3 else made
        reaches = made[2:] != _windows(before[2:], kernel, stride, (vertical, horizontal))
        if reaches and divisor is not None:
            raise tracer.unknown(
                node, "has windows that reach over the border (ceil_mode) and a divisor; use F.pad before it"
            )
        if divisor is None:
            divisors = {prod(kernel)}
            if not counted and not reaches:
                divisors = _divisors(before[2:], made[2:], kernel, stride, (vertical, horizontal))
            if reaches or len(divisors) > 1:  # fewer values at the border
                windows = {"kernel": kernel, "stride": stride, "padding": (vertical, horizontal)}
                rest = {"ceil": bool(ceil), "counted": bool(counted)}
                interpolated(tracer, node, {"mode": "average", "size": made[2:], **windows, **rest})
                return
            (divisor,) = divisors
        if divisor < 1:
            raise tracer.unknown(node, f"has the divisor {divisor}; it must be positive")
        producer = tracer.nodes[feed]
        if producer.kind == "pad" and tracer.sole_use(node):  # explicit zeros count, as all values do
            pads = tuple(a + b for a, b in zip(pads, producer.attrs["padding"], strict=True))
            feed = producer.inputs[0]
        attrs = {"kernel": kernel, "stride": stride, "padding": pads, "divisor": int(divisor)}
        tracer.add(node, "avg_pool2d", (feed,), attrs=attrs)

    def _adaptive(self, tracer: Tracer, node: Any) -> None:
        """Windows side by side."""
        sizes = zip(shape_of(node.args[0])[2:], shape_of(node)[2:], strict=True)
        kernel = tuple(size // count for size, count in sizes)
        if kernel == (1, 1):
            tracer.skip(node)
            return
        attrs = {"kernel": kernel, "stride": kernel, "padding": (0, 0, 0, 0), "divisor": prod(kernel)}
        tracer.add(node, "avg_pool2d", (tracer.feed(node),), attrs=attrs)

    def compute(self, node: Node, *inputs: Tensor) -> Tensor:
        kernel, stride = node.attrs["kernel"], node.attrs["stride"]
        limit = min(kernel) // 2  # of the padding that torch's pooling takes
        x, padding = symmetric(inputs[0], node.attrs["padding"], 0.0, limit)
        return F.avg_pool2d(x, kernel, stride, padding, divisor_override=node.attrs["divisor"])

    def widen(self, node: Node, scales: Scales) -> None:
        scales.widen(node.name, scales[node.inputs[0]] / node.attrs["divisor"] / LARGEST_FACTOR)

    def written(self, node: Any, feeds: Sequence[Any]) -> tuple[Any, ...]:
        channels = feeds[0].shape[1]
        shape = (channels, 1, *node.attrs["kernel"])
        unit = np.float32(1) / np.float32(node.attrs["divisor"])
        attrs = {"stride": node.attrs["stride"], "padding": node.attrs["padding"], "groups": channels}
        node = replace(node, kind="conv2d", attrs=attrs)
        if not hasattr(node, "out"):  # the float graph's
            return (replace(node, weight=torch.full(shape, float(unit)), bias=torch.zeros(channels)),)
        weight, scale = np.ones(shape, np.int8), np.full(channels, unit, np.float32)
        return (replace(node, weight=weight, weight_scale=scale, bias=np.zeros(channels, np.int32)),)


def _windows(
    size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> tuple[int, ...]:
    """How many whole windows there are, (vertical, horizontal)."""
    axes = zip(size, kernel, stride, padding, strict=True)
    return tuple((n + 2 * pad - k) // step + 1 for n, k, step, pad in axes)


def _divisors(
    size: Sequence[int],
    made: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> set[int]:
    """By what the sums of windows are divided, where the padding is not counted."""

    def counts(axis: int) -> set[int]:
        starts = [place * stride[axis] - padding[axis] for place in range(made[axis])]
        return {min(start + kernel[axis], size[axis]) - max(start, 0) for start in starts}

    return {rows * columns for rows in counts(0) for columns in counts(1)}
