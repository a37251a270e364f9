"""The sum of two tensors; in integers 20-bit multipliers with one shared shift, half up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import Tensor

from paredown.pipeline.graph.aten import shape_of
from paredown.pipeline.graph.operations.joining.constant import (
    constant_of,
    held_constant,
    per_channel,
    scaled,
)
from paredown.pipeline.graph.operations.operation import LARGEST_FACTOR, Codes, Operation, clamped

if TYPE_CHECKING:
    from paredown.pipeline.compress.coupling.flow import Flow, Labels
    from paredown.pipeline.graph.graph import Node
    from paredown.pipeline.graph.tracer import Tracer
    from paredown.pipeline.lower.executorch.program import QdqModule
    from paredown.pipeline.lower.integer import IntegerNode, Scales
    from paredown.pipeline.lower.litert.program import Writer

#: XNNPACK's limit: the smallest factor from an input's unit to the output's.
SMALLEST_FACTOR = 2.0**-9.9


class Add(Operation):
    """No attributes."""

    aten = ("add",)
    pointwise = True
    takes_relu = True
    keeps_sign = True
    kind: ClassVar[str] = "add"
    signs: ClassVar[tuple[int, int]] = (1, 1)

    def trace(self, tracer: Tracer, node: Any) -> None:
        if node.kwargs.get("alpha", 1) != 1:
            raise tracer.unknown(node, "scales its second input (alpha)")
        if self._with_constant(tracer, node):
            return
        if found := tracer.with_number(node):
            index, number = found
            scale, shift = float(self.signs[index]), self.signs[1 - index] * number
            tracer.affine(node, tracer.feed(node, index), scale, shift)
            return
        tracer.add(node, self.kind, pair_of_tensors(tracer, node))

    def _with_constant(self, tracer: Tracer, node: Any) -> bool:
        """Whether one of the two is several given numbers, and so is traced here."""
        given = constant_of(tracer, node)
        if given is None:
            return False
        index, other, value = given
        if axis := per_channel(tracer, node, *given):
            factor, shift = float(self.signs[index]), self.signs[1 - index] * value
            scaled(tracer, node, index, axis, factor=factor, shift=shift, given=other)
            return True
        feed = tracer.feed(node, index)
        names = (feed, held_constant(tracer, node, other, shape_of(node)))
        tracer.add(node, self.kind, names if index == 0 else names[::-1])
        return True

    def compute(self, node: Node, *inputs: Tensor) -> Tensor:
        return inputs[0] + inputs[1]

    def follow(self, flow: Flow, node: Node) -> Labels:
        return tied(flow, node)

    def line(self, flow: Flow, node: Node, units: set[int], first: str, read: bool, makes: bool) -> str:
        if makes:
            return f"{node.name} adds {' and '.join(node.inputs)}: tied"
        return super().line(flow, node, units, first, read, makes)

    def widen(self, node: Node, scales: Scales) -> None:
        scales.widen(node.name, max(scales[name] for name in node.inputs) / LARGEST_FACTOR)
        for name in node.inputs:
            scales.widen(name, scales[node.name] * SMALLEST_FACTOR)

    def codes(self, node: IntegerNode, feeds: Sequence[IntegerNode], inputs: Sequence[Codes]) -> Codes:
        found, shift = self.multipliers(node, feeds)
        total: Any = 1 << (shift - 1)
        for feed, multiplier, codes in zip(feeds, found, inputs, strict=True):
            total = total + multiplier * (codes.astype(np.int64) - feed.out.zero_point)
        return clamped(total >> shift, node)

    def multipliers(self, node: IntegerNode, feeds: Sequence[IntegerNode]) -> tuple[list[int], int]:
        """What each input's codes are multiplied by, with its sign, and by how much the sum is shifted."""
        ratios = [np.float32(feed.out.scale) / np.float32(node.out.scale) for feed in feeds]
        shift = 21 - int(np.frexp(max(ratios))[1])
        found = [int(np.rint(np.ldexp(np.float64(ratio), shift))) for ratio in ratios]
        return [sign * each for sign, each in zip(self.signs, found, strict=True)], shift

    def executorch(self, program: QdqModule, node: IntegerNode, reals: Sequence[Tensor]) -> Tensor:
        return program.clamped(reals[0] + reals[1], node)

    def litert(self, writer: Writer, node: Any, feeds: Sequence[Any]) -> None:
        sources = broadcast(writer, node, feeds)
        options = writer.s.AddOptionsT()
        options.fusedActivationFunction = writer.activation(node)
        writer.op("ADD", 2, sources, writer.result(node), options)


class Sub(Add):
    """No attributes: the first input minus the second."""

    aten = ("sub",)
    keeps_sign = False
    kind = "sub"
    signs = (1, -1)

    def compute(self, node: Node, *inputs: Tensor) -> Tensor:
        return inputs[0] - inputs[1]

    def executorch(self, program: QdqModule, node: IntegerNode, reals: Sequence[Tensor]) -> Tensor:
        return program.clamped(reals[0] - reals[1], node)

    def litert(self, writer: Writer, node: Any, feeds: Sequence[Any]) -> None:
        options = writer.s.SubOptionsT()
        options.fusedActivationFunction = writer.activation(node)
        writer.op("SUB", 2, broadcast(writer, node, feeds), writer.result(node), options)


def pair_of_tensors(tracer: Tracer, node: Any) -> tuple[str, str]:
    """The names of two tensors that an ATen node takes element by element; one may be spread over the other.

    Raises:
        InputError: their shapes do not go together.
    """
    feeds = (tracer.feed(node, 0), tracer.feed(node, 1))
    one, other = (tracer.nodes[feed].shape for feed in feeds)
    if len(one) != len(other):
        raise tracer.unknown(node, f"joins tensors of {len(one)} and {len(other)} dims; reshape one of them")
    return feeds


def tied(flow: Flow, node: Node) -> Labels:
    """The labels of a tensor that two are joined to, element by element: their channels are tied."""
    first, second = (flow.channels(name) for name in node.inputs)
    if len(first) == len(second):
        flow.tie(first, second)
    return first if len(first) >= len(second) else second


def broadcast(writer: Writer, node: Any, feeds: Sequence[Any]) -> list[int]:
    """The tensors that an element-wise operator reads."""
    return [writer.read(feed, writer.native(node)) for feed in feeds]
