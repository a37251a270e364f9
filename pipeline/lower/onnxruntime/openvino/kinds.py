"""What an .onnx for OpenVINO holds of layers and joined tensors: ONNX Runtime's form is not exact there.

OpenVINO multiplies by one scale after the other and adds the zero point before it rounds: of a layer that is
written with its scales, three codes in ten thousand are off by one. Here sums are whole numbers, one factor
takes them to codes, and a Round comes before the zero point. OpenVINO computes it in one kernel on codes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from paredown.pipeline.graph.operations.joining.add import Add
from paredown.pipeline.graph.operations.kinds import operation
from paredown.pipeline.lower.integer import Affine, IntegerNode
from paredown.pipeline.lower.onnxruntime.kinds import Emitter, layer_attributes, pixels, units, whole
from paredown.pipeline.lower.onnxruntime.writer import Value, Writer

#: A multiplier of an addition is taken apart at this bit: float32 holds what each part makes.
LOW_BITS = 10


class ExactWriter(Writer):
    """Rounds values in units of a code before QuantizeLinear adds their zero point."""

    def __init__(self) -> None:
        super().__init__()
        self.own: Mapping[str, Emitter] = {
            "conv2d": conv2d, "linear": linear, "add": add, "sub": add, "mul": mul,
        }  # fmt: skip

    def summed(self, name: str) -> str:
        """See `Writer`; by a Round that rounds nothing OpenVINO does not quantize what is before it anew."""
        return self.op("Round", [name], f"{name}/whole")

    def rounded(self, value: Value, affine: Affine, hint: str) -> str:
        """See `Writer`."""
        name = super().rounded(value, affine, hint)
        return self.op("Round", [name], f"{hint}/round") if affine.scale == 1.0 else name


def conv2d(writer: Writer, node: IntegerNode, feeds: Sequence[Any], values: Sequence[Value]) -> Value:
    """Whole sums, one factor per channel."""
    return units(writer, node, _sums(writer, node, feeds[0], values[0], np.asarray(node.weight)))


def linear(writer: Writer, node: IntegerNode, feeds: Sequence[Any], values: Sequence[Value]) -> Value:
    """As a convolution over one pixel."""
    x, weight = pixels(writer, values[0]), np.asarray(node.weight)
    flat = replace(node, shape=(x.shape[0], len(weight), 1, 1))
    made = _sums(writer, flat, feeds[0], x, weight.reshape(*weight.shape, 1, 1))
    return pixels(writer, units(writer, flat, made), node.shape)


def _sums(writer: Writer, node: IntegerNode, feed: IntegerNode, x: Value, weight: Any) -> str:
    """A layer's sums, in units of its codes."""
    assert node.bias is not None and node.weight_scale is not None
    one, zero = np.ones(len(weight), np.float32), np.zeros(len(weight), np.int8)
    names = [writer.constant(each, f"{node.name}/w") for each in (weight, one, zero)]
    held = writer.op("DequantizeLinear", names, f"{node.name}/w/whole", axis=0)
    bias = writer.constant(np.asarray(node.bias, np.float32), f"{node.name}/b")
    made = writer.op(
        "Conv", [whole(writer, x), held, bias], f"{node.name}/sums", **layer_attributes(node, weight)
    )
    factor = np.float32(feed.out.scale) * node.weight_scale / np.float32(node.out.scale)
    factors = writer.constant(np.asarray(factor, np.float32).reshape(1, -1, 1, 1), f"{node.name}/factor")
    # A Round that rounds nothing: OpenVINO would multiply sum and bias by the factor before it adds them.
    made = writer.op("Round", [made], f"{node.name}/sums/whole")
    return writer.op("Mul", [made, factors], f"{node.name}/units")


def mul(writer: Writer, node: IntegerNode, feeds: Sequence[Any], values: Sequence[Value]) -> Value:
    """The product of whole numbers, times one factor."""
    made = writer.op("Mul", [whole(writer, value) for value in values], f"{node.name}/product")
    scale = np.float32(feeds[0].out.scale) * np.float32(feeds[1].out.scale) / np.float32(node.out.scale)
    factor = writer.constant(np.asarray(scale, np.float32), f"{node.name}/factor")
    return units(writer, node, writer.op("Mul", [made, factor], f"{node.name}/units"))


def add(writer: Writer, node: IntegerNode, feeds: Sequence[Any], values: Sequence[Value]) -> Value:
    """XNNPACK's own integers: each multiplier in two parts, so that float32 holds all that they make."""
    kind = operation(node.kind)
    assert isinstance(kind, Add)
    found, shift = kind.multipliers(node, feeds)
    split = [divmod(multiplier, 1 << LOW_BITS) for multiplier in found]
    # A Round that rounds nothing: behind it OpenVINO no longer moves one input's factor to the other.
    reals = [writer.op("Round", [whole(writer, value)], f"{node.name}/whole") for value in values]

    def number(value: float) -> str:
        return writer.constant(np.asarray(value, np.float32), f"{node.name}/number")

    def op(kind: str, *names: str) -> str:
        return writer.op(kind, names, f"{node.name}/{kind}")

    def total(part: int) -> str:
        return op("Add", *(op("Mul", x, number(each[part])) for x, each in zip(reals, split, strict=True)))

    carried = op("Floor", op("Mul", total(1), number(2.0**-LOW_BITS)))
    half = number(2.0 ** (shift - 1 - LOW_BITS))
    high = op("Add", op("Add", total(0), carried), half)
    return units(writer, node, op("Floor", op("Mul", high, number(2.0 ** (LOW_BITS - shift)))))
