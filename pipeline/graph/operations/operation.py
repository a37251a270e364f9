"""An operation kind: one small class, without state, with all that is known of the kind.

How it is traced, computed in float, coupled, quantized, computed in integers, lowered to each runtime, and
placed. `Operation` has a default for everything that most kinds do alike; docs/extending.md adds a kind step
by step. What an operation is told (the tracer, the flow, the writers) comes as an argument: this package
imports nothing that stands above it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from paredown.pipeline.graph.operations.placement import Rule

if TYPE_CHECKING:
    from paredown.pipeline.compress.coupling.flow import Flow, Labels
    from paredown.pipeline.graph.graph import Node
    from paredown.pipeline.graph.tracer import Tracer
    from paredown.pipeline.lower.executorch.program import QdqModule
    from paredown.pipeline.lower.integer import Affine, IntegerNode, Scales
    from paredown.pipeline.lower.litert.program import Writer

Codes = NDArray[np.int8]
Values = NDArray[np.int64]
Shape = tuple[int, ...]

QMIN, QMAX = -128, 127
#: XNNPACK's limit for the largest factor from an input's unit to the output's: it must stay under 256.
LARGEST_FACTOR = 255.0


class Traced:
    """What an exported program can hold, and what tracing makes of it.

    Attributes:
        aten: names of the ATen operations, without overload and trailing underscore.
        pointwise: each of its values is made of those at the same place in what it reads, alike in every
            place: it may be given maps whose axes are in another order, and 4 of them for 3. A weight per
            channel is not alike in every place. It leaves shapes to `Tracer.add`, and asks `Tracer.axis`
            which axis a number of an axis is.
        folds: it knows values whose first axis is not the batch, as windows have it that are batched:
            `Tracer.views`.
    """

    aten: ClassVar[tuple[str, ...]] = ()
    pointwise: ClassVar[bool] = False
    folds: ClassVar[bool] = False

    def takes(self, node: Any) -> bool:
        """Whether an ATen node is for this class, where several classes have its name in `aten`.

        The first class that takes it traces it. Where none does, the last one traces it, and says why it
        cannot.
        """
        return True

    def trace(self, tracer: Tracer, node: Any) -> None:
        """Makes nodes of ours of an ATen node, or folds it into the node before it.

        Args:
            tracer: makes nodes, reads arguments.
            node: of the exported program.

        Raises:
            InputError: it cannot be carried; `tracer.unknown` makes the error.
        """
        raise NotImplementedError


class Operation(Traced):
    """An operation kind. Every kind needs `trace`, `compute`, `codes`, `executorch` and `litert`.

    A kind that other kinds' kernels compute needs `written` in the place of the last three.

    Attributes:
        weighted: its nodes have a weight and a bias.
        transposed: of a weighted kind: a module's parameter has its output channels second.
        channelwise: it computes each channel for itself, zero from zeros, and to the bit alike beside however
            many other channels.
        table: it is a function of one value: on int8 a table of 256 codes.
        moves: it only moves values, whatever channel they are of: a reshape or a permute. Such a kind has
            `moved`, `forms` and `thinned`.
        joins: its output is its inputs side by side.
        ignores_low: what is far below the other values that it reads counts for nothing.
        multiplies: it makes zero where one of its inputs is zero.
        same_scale: its output has the very codes of its inputs.
        island: it is computed in float, between a dequantize and a quantize, by its ATen operation's name.
        tolerance: codes by which a program may differ from `codes`, on the same inputs.
        takes_norm: of a weighted kind: a batch norm that follows it is folded into its weights.
        takes_relu: it clamps its output, and so can take in a ReLU that follows it.
        is_relu: it clamps to `limits`, and can be taken in.
        top: of a ReLU: the most that it makes; None where there is no limit.
        homogeneous: where its output has as many channels as its input, one that is s > 0 times as large
            comes out s times as large, and no other changes.
        keeps_sign: it makes no negative values where it reads none.
        onednn: oneDNN's name of it, where a convolution can apply it to its own output, and the numbers that
            this takes (a text is the name of an attribute); None where it cannot.
        rules: (runtime, delegate) -> when it leaves the delegate. `placement.U55` has the rules of Ethos-U55
            and U65 alone.
    """

    weighted: ClassVar[bool] = False
    transposed: ClassVar[bool] = False
    channelwise: ClassVar[bool] = False
    table: ClassVar[bool] = False
    moves: ClassVar[bool] = False
    joins: ClassVar[bool] = False
    ignores_low: ClassVar[bool] = False
    multiplies: ClassVar[bool] = False
    same_scale: ClassVar[bool] = False
    island: ClassVar[bool] = False
    tolerance: ClassVar[int] = 0
    takes_norm: ClassVar[bool] = False
    takes_relu: ClassVar[bool] = False
    is_relu: ClassVar[bool] = False
    top: ClassVar[float | None] = None
    homogeneous: ClassVar[bool] = False
    keeps_sign: ClassVar[bool] = False
    onednn: ClassVar[tuple[str, tuple[Any, ...]] | None] = None
    rules: ClassVar[Mapping[tuple[str, str], tuple[Rule, ...]]] = MappingProxyType({})

    # -- float ---------------------------------------------------------------------------------------------

    def compute(self, node: Node, *inputs: Tensor) -> Tensor:
        """Computes a node in floating point; a batch of any size."""
        raise NotImplementedError

    def macs(self, node: Node | IntegerNode) -> int:
        """Multiply-accumulates of one inference, bias not counted."""
        if node.weight is None:
            return 0
        return prod(node.weight.shape) * prod(node.shape[2:])

    def from_zero(self, node: Node) -> bool:
        """Whether it makes zero of zero."""
        return True

    def own(self, weight: Tensor, groups: int) -> Tensor:
        """Of a weighted kind: a weight as a node has it, of the parameter that a module has.

        Args:
            weight: the parameter.
            groups: of the layer.

        Returns:
            (out, in / groups, ...), which shares the memory where it can.
        """
        return weight

    def theirs(self, weight: Tensor, groups: int, ndim: int) -> Tensor:
        """The inverse of `own`.

        Args:
            weight: (out, in / groups, ...).
            groups: of the layer.
            ndim: of the parameter.
        """
        return weight

    def computed(self, node: Node, weight: Tensor, *inputs: Tensor) -> Tensor:
        """Computes a weighted node from a weight as a module has it: see `theirs`."""
        return self.compute(replace(node, weight=weight), *inputs)

    def unfolded(self, node: Node, x: Tensor) -> tuple[Tensor, tuple[int, int], Tensor, Tensor]:
        """Of a weighted kind over maps: what makes it a linear problem.

        Args:
            node: of this kind.
            x: its input.

        Returns:
            A map; the stride by which a window goes over it; and where in the window the taps of the weights
            are, rows and columns, in their order.
        """
        raise NotImplementedError

    # -- coupling ------------------------------------------------------------------------------------------

    def follow(self, flow: Flow, node: Node) -> Labels:
        """The labels of the output's channels; ties those that must stay or go together.

        The default is right for what computes every channel for itself: the labels of its first input.
        """
        return flow.channels(node.inputs[0])

    def along(self, node: Node) -> int | None:
        """The axis of what it reads and makes along which the units of a group are.

        Returns:
            1 where they are its channels; 2 where they are the heads of an attention; None for the axis in
            which they are in what it reads.
        """
        return None if self.pointwise or self.moves else 1

    def masked(self, node: Node, gone: Sequence[int], axis: int) -> Node:
        """The node as it is where some of its channels are gone, in the whole shape, with zeros there.

        Args:
            node: with weights, or of a kind that overrides this.
            gone: channels of its output.
            axis: of its output, in which they are.
        """
        assert node.weight is not None and node.bias is not None
        weight, bias = node.weight.clone(), node.bias.clone()
        weight[list(gone)] = 0
        bias[list(gone)] = 0
        return replace(node, weight=weight, bias=bias)

    def line(self, flow: Flow, node: Node, units: set[int], first: str, read: bool, makes: bool) -> str:
        """What a node does with the units of a group, for people; empty where there is nothing to say.

        Args:
            flow: of the graph.
            node: of this kind.
            units: of the group.
            first: name of the layer that the group is named after.
            read: the node reads some of them.
            makes: its output has some of them.
        """
        if read and not makes:
            return f"{node.name} ({node.attrs.get('op', node.kind)}) is not known: locked"
        return ""

    def moved(self, node: Node, values: Values) -> Values:
        """Values, in the shape of the input, as the node moves them."""
        raise NotImplementedError

    def forms(self, node: Node, values: Values, dims: Sequence[int], given: Shape | None) -> Iterator[Values]:
        """What the node may make of fewer values.

        Args:
            node: of this kind.
            values: those that are left, in the shape of the thinner input.
            dims: of the output, those that may become smaller.
            given: the shape of the output, where it is known.
        """
        yield self.moved(node, values)

    def thinned(self, node: Node, shape: Shape, groups: int) -> Mapping[str, Any]:
        """The attributes of the node when channels are gone.

        Args:
            node: of this kind.
            shape: its new shape.
            groups: of a weighted node: the groups that are left.
        """
        return node.attrs

    def channels_read(self, node: Node, rows: int, whole: int) -> int:
        """Of what has no weights: channels of an input where the output has fewer than it had.

        Args:
            node: of this kind, as it was.
            rows: channels of the output.
            whole: channels that the input had.
        """
        return rows

    def multiple(self, node: Node) -> str:
        """Of a weighted node: the field of a card's `channel_multiple` that its width should obey."""
        raise NotImplementedError

    # -- integers ------------------------------------------------------------------------------------------

    def fixed(self, node: Node) -> tuple[float, int] | None:
        """Scale and zero point of the output, where the kernels prescribe them."""
        return None

    def feed_at(self, node: Node) -> tuple[float, int] | None:
        """Scale and zero point that what it reads is to have, where no kernel prescribes others."""
        return None

    def limits(self, out: Affine) -> tuple[int, int]:
        """Of a ReLU: the smallest and the largest code."""
        return QMIN, QMAX

    def widen(self, node: Node, scales: Scales) -> None:
        """Widens the scales next to a node until a kernel can bring them together.

        Raises:
            InputError: no kernel computes this node at any scales.
        """

    def codes(self, node: IntegerNode, feeds: Sequence[IntegerNode], inputs: Sequence[Codes]) -> Codes:
        """Computes a node in integers, to the bit as the kernels of both runtimes do.

        Args:
            node: of this kind.
            feeds: the nodes that it reads.
            inputs: their codes, a batch of any size.
        """
        raise NotImplementedError

    # -- programs ------------------------------------------------------------------------------------------

    def written(self, node: Any, feeds: Sequence[Any]) -> tuple[Any, ...]:
        """The nodes that programs hold in this one's place: itself, or some of other kinds.

        Args:
            node: a `Node` or an `IntegerNode` of this kind.
            feeds: the nodes that it reads, of the same class.

        Returns:
            Nodes of the same class, in running order. They read what this one reads, and each other; the last
            one has this one's name and output, the others its name, a dot and a word.
        """
        return (node,)

    def recipe(self, node: Node | IntegerNode, constants: Sequence[Tensor]) -> Callable[..., Tensor]:
        """Of an island: what programs compute in float, for a batch of one.

        Args:
            node: of this kind.
            constants: the node's, as tensors.
        """
        raise NotImplementedError

    def constants(self, node: IntegerNode, feeds: Sequence[IntegerNode]) -> Mapping[str, NDArray[Any]]:
        """Arrays that the torch operations of a .pte read: `QdqModule.constant` gives them by these names."""
        return {}

    def executorch(self, program: QdqModule, node: IntegerNode, reals: Sequence[Tensor]) -> Tensor:
        """The torch operations that a .pte holds.

        Args:
            program: has the node's weights, and quantizes in between.
            node: of this kind.
            reals: its inputs, dequantized.

        Returns:
            The output, not yet quantized.
        """
        raise NotImplementedError

    def litert(self, writer: Writer, node: Any, feeds: Sequence[Any]) -> None:
        """Writes the operators that a .tflite holds.

        Args:
            writer: of the file.
            node: a `Node` or an `IntegerNode` of this kind.
            feeds: the nodes that it reads, of the same class.
        """
        raise NotImplementedError

    def card_kind(self, node: IntegerNode, feed: IntegerNode) -> str:
        """What target cards call it."""
        return node.kind


class Input(Operation):
    """The network's input; it is computed by nobody."""

    def follow(self, flow: Flow, node: Node) -> Labels:
        labels = flow.new(node.shape[1])
        flow.lock(labels, "is the network's input")
        return labels


class Unknown(Operation):
    """What only `trace(..., opaque=True)` keeps: it can be run and pruned around, but not lowered."""

    def compute(self, node: Node, *inputs: Tensor) -> Tensor:
        assert node.compute is not None
        return node.compute(*inputs)

    def follow(self, flow: Flow, node: Node) -> Labels:
        return flow.unknown(node)


def clamped(values: NDArray[Any], node: IntegerNode) -> Codes:
    """Values in units of a node's output, as codes."""
    return np.clip(values + node.out.zero_point, node.low, node.high).astype(np.int8)
