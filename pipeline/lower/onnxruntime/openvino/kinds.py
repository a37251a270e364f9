"""What an .onnx for OpenVINO holds of layers and joined tensors: ONNX Runtime's form is not exact there.

OpenVINO multiplies by one scale after the other and adds the zero point before it rounds: of a layer that is
written with its scales, three codes in ten thousand are off by one. Here sums are whole numbers, one factor
takes them to codes, and a Round comes before the zero point. OpenVINO computes it in one kernel on codes.

That kernel is the fastest one where codes have no zero point: what a zero point adds to the sums goes into
the bias, and its border is written out. A leaky ReLU reads what the layer has rounded, so that it is in the
same kernel. Both together halve the time of tiny-YOLOv2 on a processor with AMX.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paredown.pipeline.graph.operations.joining.add import Add
from paredown.pipeline.graph.operations.kinds import operation
from paredown.pipeline.lower.integer import Affine, IntegerNode
from paredown.pipeline.lower.onnxruntime import kinds
from paredown.pipeline.lower.onnxruntime.kinds import Emitter, layer_attributes, pixels, units, whole
from paredown.pipeline.lower.onnxruntime.writer import OFFSET, Value, Writer

#: A multiplier of an addition is taken apart at this bit: float32 holds what each part makes.
LOW_BITS = 10


class ExactWriter(Writer):
    """Rounds values in units of a code before QuantizeLinear adds their zero point."""

    def __init__(self) -> None:
        super().__init__()
        self.own: Mapping[str, Emitter] = {
            "conv2d": conv2d, "linear": linear, "add": add, "sub": add, "mul": mul, "leaky_relu": leaky_relu,
        }  # fmt: skip
        self._rounded: dict[str, str] = {}

    def summed(self, name: str) -> str:
        """See `Writer`; by a Round that rounds nothing OpenVINO does not quantize what is before it anew."""
        return self.op("Round", [name], f"{name}/whole")

    def codes(self, value: Value, affine: Affine, hint: str, low: int = -128, high: int = 127) -> Value:
        """See `Writer`."""
        if affine.scale != 1.0:
            return super().codes(value, affine, hint, low, high)
        rounded = self.op("Round", [self.real(value).name], f"{hint}/round")
        made = super().codes(Value(rounded, value.shape), affine, hint, low, high)
        self._rounded[made.name] = rounded
        return made

    def rounded(self, value: Value, low: int, high: int) -> str | None:
        """Codes less their zero point, as the float32 values that they were made of.

        Args:
            value: the codes.
            low: the least code.
            high: the largest one.

        Returns:
            The tensor's name; None of codes that were moved, looked up or given.
        """
        if value.name not in self._rounded:
            return None
        assert value.affine is not None
        ends = [np.asarray(end - value.affine.zero_point, np.float32) for end in (low, high)]
        names = [self._rounded[value.name], *(self.constant(end, "end") for end in ends)]
        return self.op("Clip", names, f"{value.name}/within")


def conv2d(writer: Writer, node: IntegerNode, feeds: Sequence[Any], values: Sequence[Value]) -> Value:
    """Whole sums, one factor per channel."""
    return units(writer, node, _sums(writer, node, feeds[0], values[0], np.asarray(node.weight)))


def linear(writer: Writer, node: IntegerNode, feeds: Sequence[Any], values: Sequence[Value]) -> Value:
    """As a convolution over one pixel."""
    x, weight = pixels(writer, values[0]), np.asarray(node.weight)
    flat = replace(node, shape=(x.shape[0], len(weight), 1, 1))
    made = _sums(writer, flat, feeds[0], x, weight.reshape(*weight.shape, 1, 1))
    return pixels(writer, units(writer, flat, made), node.shape)


def _sums(writer: Writer, node: IntegerNode, feed: IntegerNode, x: Value, weight: NDArray[Any]) -> str:
    """A layer's sums, in units of its codes."""
    assert node.bias is not None and node.weight_scale is not None and x.affine is not None
    one, zeros = np.ones(len(weight), np.float32), np.zeros(len(weight), np.int8)
    names = [writer.constant(each, f"{node.name}/w") for each in (weight, one, zeros)]
    held = writer.op("DequantizeLinear", names, f"{node.name}/w/whole", axis=0)
    attrs, bias = layer_attributes(node, weight), np.asarray(node.bias, np.int64)
    zero = x.affine.zero_point + OFFSET
    shifted = bias - zero * weight.reshape(len(weight), -1).sum(1, dtype=np.int64)
    if zero and np.array_equal(shifted.astype(np.float32), shifted):  # else float32 does not hold it
        x, bias = _unshifted(writer, x, zero, attrs.pop("pads", (0, 0, 0, 0))), shifted
    biases = writer.constant(bias.astype(np.float32), f"{node.name}/b")
    made = writer.op("Conv", [whole(writer, x), held, biases], f"{node.name}/sums", **attrs)
    factor = np.float32(feed.out.scale) * node.weight_scale / np.float32(node.out.scale)
    factors = writer.constant(np.asarray(factor, np.float32).reshape(1, -1, 1, 1), f"{node.name}/factor")
    # A Round that rounds nothing: OpenVINO would multiply sum and bias by the factor before it adds them.
    made = writer.op("Round", [made], f"{node.name}/sums/whole")
    return writer.op("Mul", [made, factors], f"{node.name}/units")


def _unshifted(writer: Writer, x: Value, zero: int, pads: Sequence[int]) -> Value:
    """The file's codes as whole numbers without a zero point, within their border.

    Args:
        writer: of the file.
        x: (1, channels, height, width).
        zero: the zero point of the file's codes.
        pads: of a Conv: top, left, bottom, right.
    """
    if any(pads):
        top, left, bottom, right = pads
        shape = (*x.shape[:2], x.shape[2] + top + bottom, x.shape[3] + left + right)
        amounts = writer.constant(np.asarray([0, 0, top, left, 0, 0, bottom, right], np.int64), "pads")
        x = writer.made("Pad", [x, amounts, writer.constant(np.asarray(zero, np.uint8), "zero")], x, shape)
    return replace(x, affine=Affine(1.0, -OFFSET))


def leaky_relu(writer: Writer, node: IntegerNode, feeds: Sequence[Any], values: Sequence[Value]) -> Value:
    """Of what the layer before it has rounded: codes between the two would end OpenVINO's kernel."""
    assert isinstance(writer, ExactWriter)
    (feed,), (x,), scales = feeds, values, kinds.leaky_scales(node, feeds[0])
    held = None if scales is None else writer.rounded(x, feed.low, feed.high)
    if scales is None or held is None:
        return kinds.leaky_relu(writer, node, feeds, values)
    factor = writer.constant(np.asarray(scales[0]), f"{node.name}/factor")
    real = writer.op("Mul", [held, factor], f"{node.name}/real")
    return units(writer, node, writer.op("LeakyRelu", [real], f"{node.name}/units", alpha=float(scales[1])))


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
