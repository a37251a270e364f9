"""A permutation of axes, the batch first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from paredown.pipeline.graph.aten import shape_of, target
from paredown.pipeline.graph.operations.operation import Codes, Operation, Shape, Values
from paredown.pipeline.graph.operations.placement import AXES, LITERT, MICRO, U55, Rule, many_axes

if TYPE_CHECKING:
    from paredown.pipeline.compress.coupling.flow import Flow, Labels
    from paredown.pipeline.graph.graph import Node
    from paredown.pipeline.graph.tracer import Tracer
    from paredown.pipeline.lower.executorch.program import QdqModule
    from paredown.pipeline.lower.integer import IntegerNode
    from paredown.pipeline.lower.litert.program import Writer

MOST_HELD = 4  # axes of what is held in another order
MOST_AXES = 5  # of a transpose in LiteRT Micro
MOST_TRANSPOSED = 1 << 16  # of Ethos-U55 and U65: elements of any two axes of a transpose


def merged(shape: Shape, dims: tuple[int, ...]) -> tuple[Shape, tuple[int, ...]]:
    """The same transpose of the same memory with as few axes as can be.

    Args:
        shape: of what is transposed.
        dims: the permutation.

    Returns:
        A shape of as many elements, and its permutation: without axes of one element, and with those that
        stay neighbours made one: (1, 8, 10, 2, 10, 2) by (0, 3, 5, 1, 2, 4) is (80, 2, 10, 2) by
        (1, 3, 0, 2).
    """
    long = [axis for axis, size in enumerate(shape) if size > 1]
    runs: list[list[int]] = []
    for axis in (axis for axis in dims if axis in long):
        if runs and long.index(axis) == long.index(runs[-1][-1]) + 1:
            runs[-1].append(axis)
        else:
            runs.append([axis])
    ranked = sorted(runs)
    return tuple(math.prod(shape[axis] for axis in run) for run in ranked), tuple(map(ranked.index, runs))


def _transposed(node: IntegerNode, feed: IntegerNode) -> tuple[Shape, tuple[int, ...]]:
    """Shape and permutation of the transpose that a .tflite holds."""
    dims = node.attrs["dims"]
    return (feed.shape, dims) if len(dims) <= MOST_AXES else merged(feed.shape, dims)


def _many(node: IntegerNode, feed: IntegerNode) -> bool:
    return len(_transposed(node, feed)[1]) > MOST_AXES


def _wide(node: IntegerNode, feed: IntegerNode) -> bool:
    shape, dims = _transposed(node, feed)
    last_three = math.prod(shape[:-3]) == 1
    most = max(shape) if last_three else math.prod(sorted(shape)[2:])
    return dims != tuple(sorted(dims)) and most > MOST_TRANSPOSED


class Permute(Operation):
    """Attributes: dims; "direct", where a .tflite moves from one map to another in its own layout."""

    aten = ("permute", "transpose")
    moves = True
    folds = True
    same_scale = True
    keeps_sign = True
    rules = {
        LITERT: (Rule(many_axes, AXES, "move fewer axes at a time", parts=(False, True, False)),),
        MICRO: (
            Rule(
                _many, f"LiteRT Micro transposes at most {MOST_AXES} axes", "move fewer axes at a time",
                "refused",
            ),
        ),
        U55: (
            Rule(
                _wide, f"axes of the transpose have more than {MOST_TRANSPOSED:,} elements together",
                "do it on a smaller map, deeper in the network",
            ),
        ),
    }  # fmt: skip

    def trace(self, tracer: Tracer, node: Any) -> None:
        if target(node) == "permute":
            dims = [d % len(node.args[1]) for d in node.args[1]]
        else:
            rank = len(shape_of(node))
            dims = list(range(rank))
            a, b = (d % rank for d in node.args[1:3])
            dims[a], dims[b] = dims[b], dims[a]
        if dims[0] != 0 or tracer.folded(node.args[0]):
            self._folded(tracer, node, dims)
            return
        feed = tracer.tensor(node, node.args[0]) if tracer.plain(node.args[0]) else ""
        name, axes = tracer.held(node.args[0])
        seen = tuple(axes[d] for d in dims)
        if seen[0] != 0:  # steps first, for a recurrent layer
            tracer.hold(node, name, seen)
            return
        if not feed or seen == tuple(range(len(tracer.nodes[name].shape))):
            tracer.hold(node, name, seen)
            return
        tracer.add(node, "permute", (feed,), attrs={"dims": tuple(dims)})
        if len(dims) <= MOST_HELD:
            tracer.sources[node.name] = (name, seen)

    def _folded(self, tracer: Tracer, node: Any, dims: list[int]) -> None:
        """Only other names for the axes; where several are one axis of the node, in their order there."""
        argument = node.args[0]
        tracer.check(node, argument)
        name, axes = tracer.held(argument)
        long = {d for d, size in enumerate(shape_of(argument)) if size > 1 or axes[d]}
        kept = [[d for d in order if d in long] for order in (dims, range(len(dims)))]
        for axis in set(axes):
            moved, whole = ([d for d in order if axes[d] == axis] for order in kept)  # noqa: B023
            if moved != whole:
                axes = tracer.ordered(argument)
                name = tracer.formed(node, argument, axes)
                break
        seen = tuple(axes[d] for d in dims)
        if shape_of(node)[0] == 1 and 0 not in seen:
            seen = (0, *seen[1:])  # of one element: the batch again
        tracer.hold(node, name, seen)

    def compute(self, node: Node, *inputs: Tensor) -> Tensor:
        return inputs[0].permute(node.attrs["dims"])

    def follow(self, flow: Flow, node: Node) -> Labels:
        return self.moved(node, flow.full(node.inputs[0]))

    def line(self, flow: Flow, node: Node, units: set[int], first: str, read: bool, makes: bool) -> str:
        if makes:
            return f"{node.name} permutes them"
        return super().line(flow, node, units, first, read, makes)

    def moved(self, node: Node, values: Values) -> Values:
        return values.transpose(node.attrs["dims"])

    def codes(self, node: IntegerNode, feeds: Sequence[IntegerNode], inputs: Sequence[Codes]) -> Codes:
        return np.ascontiguousarray(inputs[0].transpose(node.attrs["dims"]))

    def executorch(self, program: QdqModule, node: IntegerNode, reals: Sequence[Tensor]) -> Tensor:
        return reals[0].permute(node.attrs["dims"])

    def litert(self, writer: Writer, node: Any, feeds: Sequence[Any]) -> None:
        """A transpose, of as few axes as say the same where it has more than LiteRT Micro takes."""
        (feed,), dims = feeds, node.attrs["dims"]
        if node.attrs.get("direct"):
            axes = tuple(writer.axis(feed, dims[d]) for d in (0, 2, 3, 1))
            writer.transpose(writer.read(feed, "nhwc"), writer.tensor(node, "nhwc"), axes)
            return
        source = writer.read(feed, "plain")
        made = writer.tensor(node, "plain")
        if len(dims) <= MOST_AXES:
            writer.transpose(source, made, dims)
            return
        shape, order = merged(feed.shape, dims)
        before = writer.like(source, f"{node.name}/before", shape)
        after = writer.like(source, f"{node.name}/after", tuple(shape[axis] for axis in order))
        writer.reshape(source, before, shape)
        writer.transpose(before, after, order)
        writer.reshape(after, made, node.shape)

    def card_kind(self, node: IntegerNode, feed: IntegerNode) -> str:
        """Cards speak of no permutation but a reorg's."""
        return "reorg" if len(node.shape) == MOST_AXES + 1 else node.kind
