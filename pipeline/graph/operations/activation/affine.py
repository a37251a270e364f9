"""A number times, plus a number: `2 * x - 1`, `x / 6`, `-x`; hardsigmoid, clamps that are no ReLU, few bits.

On int8 each is a requantization, which programs hold as a depthwise convolution of one pixel: exact, and
delegated, in both runtimes. Where it clamps, the output's scale is such that int8's own ends are the clamp.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from paredown.pipeline.graph.aten import arguments, module_path, target
from paredown.pipeline.graph.operations.operation import LARGEST_FACTOR, QMAX, QMIN, Operation
from paredown.pipeline.graph.operations.weighted.conv2d import Conv2d
from paredown.targets.errors import InputError

if TYPE_CHECKING:
    from paredown.pipeline.graph.graph import Node
    from paredown.pipeline.graph.tracer import Tracer
    from paredown.pipeline.lower.integer import Scales
    from paredown.pipeline.lower.litert.program import Writer

CONV2D = Conv2d()


class Affine(Operation):
    """Attributes: scale, shift."""

    aten: ClassVar[tuple[str, ...]] = ("neg", "div", "rsub")
    pointwise = True
    takes_relu: ClassVar[bool] = True

    def trace(self, tracer: Tracer, node: Any) -> None:
        name, feed = target(node), tracer.feed(node)
        number = None if name == "neg" else tracer.number(node, node.args[1])
        if name == "neg":
            tracer.affine(node, feed, -1.0, 0.0)
        elif number is None:
            raise tracer.unknown(node, "divides by a tensor; only division by a number has an int8 kernel")
        elif name == "div":
            if node.kwargs.get("rounding_mode") or not number:
                raise tracer.unknown(node, "rounds, or divides by zero")
            tracer.affine(node, feed, 1 / number, 0.0)
        else:
            tracer.affine(node, feed, -1.0, number)

    def compute(self, node: Node, *inputs: Tensor) -> Tensor:
        return inputs[0] * node.attrs["scale"] + node.attrs["shift"]

    def from_zero(self, node: Node) -> bool:
        return node.attrs["shift"] == 0

    def numbers(self, node: Any) -> tuple[float, float]:
        """What the input is multiplied by, and what is added."""
        return node.attrs["scale"], node.attrs["shift"]

    def widen(self, node: Node, scales: Scales) -> None:
        scale, shift = self.numbers(node)
        scales.widen(node.name, abs(scale) * scales[node.inputs[0]] / LARGEST_FACTOR)

    def written(self, node: Any, feeds: Sequence[Any]) -> tuple[Any, ...]:
        """The convolution, between reshapes where the tensor is no map."""
        if not hasattr(node, "out"):
            return (node,)
        (feed,) = feeds
        if len(feed.shape) == 4:
            return (self._convolution(node, feed),)
        shape = (1, 1, 1, prod(feed.shape))
        first = replace(feed, name=f"{node.name}.map", kind="reshape", inputs=(feed.name,), shape=shape,
                        attrs={"shape": shape}, low=QMIN, high=127, weight=None, weight_scale=None,
                        bias=None)  # fmt: skip
        middle = self._convolution(
            replace(node, name=f"{node.name}.affine", inputs=(first.name,), shape=shape), first
        )
        last = replace(node, kind="reshape", inputs=(middle.name,), attrs={"shape": tuple(node.shape)})
        return first, middle, last

    def _convolution(self, node: Any, feed: Any) -> Any:
        channels = feed.shape[1]
        scale, shift = self.numbers(node)
        code, unit = (1 if scale > 0 else -1 if scale < 0 else 0), np.float32(abs(scale) or 1.0)
        bias = np.rint(np.float64(shift) / (np.float64(np.float32(feed.out.scale)) * np.float64(unit)))
        attrs = {"stride": (1, 1), "padding": (0, 0, 0, 0), "groups": channels}
        return replace(
            node, kind="conv2d", attrs=attrs, weight=np.full((channels, 1, 1, 1), code, np.int8),
            weight_scale=np.full(channels, unit, np.float32),
            bias=np.full(channels, np.clip(bias, -(2**30), 2**30), np.int32),
        )  # fmt: skip

    def litert(self, writer: Writer, node: Any, feeds: Sequence[Any]) -> None:
        """Of the float network; the integer one is written as a convolution."""
        scale, shift = self.numbers(node)
        source = writer.read(feeds[0], writer.native(node))
        options = writer.s.MulOptionsT()
        product = writer.like(source, f"{node.name}/product", writer.sub.tensors[source].shape)
        factor = writer.constant("scale", np.asarray([scale], np.float32))
        writer.op("MUL", 1, [source, factor], product, options)
        amount = writer.constant("shift", np.asarray([shift], np.float32))
        writer.op("ADD", 1, [product, amount], writer.result(node), writer.s.AddOptionsT())


class Clamp(Affine):
    """Attributes: low, high; either may be None."""

    aten = ("clamp", "clamp_min", "clamp_max", "hardtanh")
    takes_relu = False

    def trace(self, tracer: Tracer, node: Any) -> None:
        name = target(node)
        if name == "hardtanh":
            _, low, high = arguments(node, None, -1.0, 1.0)
        else:
            _, low, high = (*arguments(node, None, None, None), None)[:3]
            low, high = (None, low) if name == "clamp_max" else (low, high)
        if any(isinstance(end, torch.fx.Node) for end in (low, high)):
            raise tracer.unknown(node, "clamps to limits that are tensors; give numbers")
        if (low, high) in {(0, None), (0, 6)}:
            kind = "relu" if high is None else "relu6"
            tracer.add(node, kind, (tracer.feed(node),))
            return
        shift = max(low or 0.0, 0.0) + min(high or 0.0, 0.0)
        if not shift:
            self._clamp(tracer, node, tracer.feed(node), low, high)
            return
        # A scale holds zero, so the ends of the codes can be limits only with zero between them.
        name, low, high = (
            module_path(node) or node.name,
            *(e if e is None else e - shift for e in (low, high)),
        )
        attrs = {"scale": 1.0, "shift": -shift}
        below = tracer.add(node, "affine", (tracer.feed(node),), name=f"{name}.below", attrs=attrs)
        inner = self._clamp(tracer, node, below, low, high, f"{name}.inner")
        tracer.add(node, "affine", (inner,), name=name, attrs={"scale": 1.0, "shift": shift})

    def _clamp(
        self, tracer: Tracer, node: Any, feed: str, low: float | None, high: float | None, name: str = ""
    ) -> str:
        attrs = {"low": None if low is None else float(low), "high": None if high is None else float(high)}
        return tracer.add(node, "clamp", (feed,), name=name, attrs=attrs)

    def compute(self, node: Node, *inputs: Tensor) -> Tensor:
        return inputs[0].clamp(node.attrs["low"], node.attrs["high"])

    def from_zero(self, node: Node) -> bool:
        return True

    def numbers(self, node: Any) -> tuple[float, float]:
        return 1.0, 0.0

    def widen(self, node: Node, scales: Scales) -> None:
        _check_clamp(node, scales[node.inputs[0]] / scales[node.name])

    def litert(self, writer: Writer, node: Any, feeds: Sequence[Any]) -> None:
        source = writer.read(feeds[0], writer.native(node))
        low, high = node.attrs["low"], node.attrs["high"]
        shape = writer.sub.tensors[source].shape
        if high is not None:
            target = writer.result(node) if low is None else writer.like(source, f"{node.name}/min", shape)
            end = writer.constant("high", np.asarray([high], np.float32))
            writer.op("MINIMUM", 1, [source, end], target, writer.s.MaximumMinimumOptionsT())
            source = target
        if low is not None:
            end = writer.constant("low", np.asarray([low], np.float32))
            writer.op("MAXIMUM", 1, [source, end], writer.result(node), writer.s.MaximumMinimumOptionsT())


class Hardsigmoid(Affine):
    """No attributes: relu6(x + 3) / 6, on int8 with 0 and 1 as the ends of the codes."""

    aten = ("hardsigmoid",)
    takes_relu = False
    keeps_sign = True

    def trace(self, tracer: Tracer, node: Any) -> None:
        tracer.add(node, "hardsigmoid", (tracer.feed(node),))

    def compute(self, node: Node, *inputs: Tensor) -> Tensor:
        (x,) = inputs
        # Recorded for a program, it is of XNNPACK's own operations.
        return F.relu6(x + 3) * (1 / 6) if x.is_meta else F.hardsigmoid(x)

    def from_zero(self, node: Node) -> bool:
        return False

    def numbers(self, node: Any) -> tuple[float, float]:
        return 1 / 6, 0.5

    def fixed(self, node: Node) -> tuple[float, int]:
        return float(np.float32(1 / 255)), QMIN

    def widen(self, node: Node, scales: Scales) -> None:
        _check_clamp(node, scales[node.inputs[0]] / 6 / scales[node.name])

    def litert(self, writer: Writer, node: Any, feeds: Sequence[Any]) -> None:
        source = writer.read(feeds[0], writer.native(node))
        options = writer.s.AddOptionsT()
        options.fusedActivationFunction = writer.s.ActivationFunctionType.RELU6
        shifted = writer.like(source, f"{node.name}/shifted", writer.sub.tensors[source].shape)
        writer.op("ADD", 1, [source, writer.constant("shift", np.asarray([3], np.float32))], shifted, options)
        factor = writer.constant("scale", np.asarray([1 / 6], np.float32))
        writer.op("MUL", 1, [shifted, factor], writer.result(node), writer.s.MulOptionsT())


class FakeQuantize(Affine):
    """Attributes: step, levels, offset: multiples -offset..levels - offset of step, which was trained.

    And fed, where a kernel prescribes the scale and the zero point of what it reads.

    What makes the values has the same step, and -128 for the lowest level, where no kernel prescribes
    another: its saturation is the lower clip. Here the codes are moved until 127 is the uppermost level, and
    saturation is the upper clip.
    """

    aten = ()
    takes_relu = False

    def compute(self, node: Node, *inputs: Tensor) -> Tensor:
        step, below, x = node.attrs["step"], node.attrs["offset"], inputs[0]
        if "fed" in node.attrs:
            scale, zero_point = node.attrs["fed"]
            x = (x / scale).round().clamp(QMIN - zero_point, QMAX - zero_point) * scale
        return (x / step).clamp(-below, node.attrs["levels"] - below).round() * step

    def from_zero(self, node: Node) -> bool:
        return True

    def numbers(self, node: Any) -> tuple[float, float]:
        return 1.0, 0.0

    def feed_at(self, node: Node) -> tuple[float, int]:
        return float(np.float32(node.attrs["step"])), QMIN + node.attrs["offset"]

    def written(self, node: Any, feeds: Sequence[Any]) -> tuple[Any, ...]:
        """One requantization, or two where the input's codes do not begin at the lowest level."""
        (feed,) = feeds
        if not hasattr(node, "out"):
            return (node,)
        below = node.attrs["offset"]
        least = (QMIN - feed.out.zero_point) * feed.out.scale / node.out.scale
        if least > -below - 0.5:
            return super().written(node, feeds)
        out = replace(node.out, zero_point=QMIN + below)
        first = replace(node, name=f"{node.name}.below", out=out)
        last = replace(node, inputs=(first.name,))
        return (*super().written(first, feeds), *super().written(last, [first]))

    def litert(self, writer: Writer, node: Any, feeds: Sequence[Any]) -> None:
        """Of the float network: programs of floats are made of networks before they are trained so."""
        raise NotImplementedError


def _check_clamp(node: Node, factor: float) -> None:
    """A scale that is a clamp must not be widened: the clamp would move.

    Raises:
        InputError: no kernel brings input and output together.
    """
    if factor > LARGEST_FACTOR:
        raise InputError(
            f"{node.kind} {node.name}: its input reaches {factor:.0f} times as far as its limits, and int8 "
            f"kernels know at most {LARGEST_FACTOR:.0f} times",
            where=node.source,
            hint="is the network trained, and are the calibration images normalized as it expects?",
        )
