"""A reshape; its chains with permutes are thinned by `pipeline.compress.coupling.reshapes`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from torch import Tensor

from paredown.pipeline.graph.aten import module_path, shape_of
from paredown.pipeline.graph.operations.operation import Codes, Operation, Shape, Values

if TYPE_CHECKING:
    from paredown.pipeline.compress.coupling.flow import Flow, Labels
    from paredown.pipeline.graph.graph import Node
    from paredown.pipeline.graph.tracer import Tracer
    from paredown.pipeline.lower.executorch.program import QdqModule
    from paredown.pipeline.lower.integer import IntegerNode
    from paredown.pipeline.lower.litert.program import Writer


class Reshape(Operation):
    """Attributes: shape, batch of one first."""

    aten = ("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze")
    moves = True
    folds = True
    same_scale = True
    homogeneous = True
    keeps_sign = True

    def trace(self, tracer: Tracer, node: Any) -> None:
        shape = shape_of(node)
        if tracer.folded(node.args[0]) or shape[:1] != (1,):
            self._folded(tracer, node, shape)
            return
        if tracer.plain(node.args[0]):
            feed = tracer.feed(node)
        else:  # of a map whose axes are in their order but for those of one element
            feed, axes = tracer.held(node.args[0])
            long = [axis for axis in axes if tracer.nodes[feed].shape[axis] != 1]
            if long != sorted(long):
                feed = tracer.feed(node)
            elif tracer.nodes[feed].shape == shape:
                tracer.hold(node, feed, tuple(range(len(shape))))
                return
        tracer.add(node, "reshape", (feed,), attrs={"shape": shape})

    def _folded(self, tracer: Tracer, node: Any, shape: Shape) -> None:
        """From or to a shape whose first axis is not the batch."""
        argument = node.args[0]
        tracer.check(node, argument)
        name, axes = tracer.held(argument)
        if (seen := renamed(shape_of(argument), axes, shape)) and tracer.folded(argument):
            tracer.hold(node, name, seen)
            return
        feed = tracer.formed(node, argument, tracer.ordered(argument))
        whole = shape if shape[:1] == (1,) else (1, *shape)
        if tracer.nodes[feed].shape != whole:
            name = module_path(node) or node.name
            feed = tracer.add(node, "reshape", (feed,), shape=whole, attrs={"shape": whole}, name=name)
        tracer.hold(node, feed, tuple(range(len(whole) - len(shape), len(whole))))

    def compute(self, node: Node, *inputs: Tensor) -> Tensor:
        return inputs[0].reshape(inputs[0].shape[0], *node.attrs["shape"][1:])

    def follow(self, flow: Flow, node: Node) -> Labels:
        return self.moved(node, flow.full(node.inputs[0]))

    def line(self, flow: Flow, node: Node, units: set[int], first: str, read: bool, makes: bool) -> str:
        if makes:
            return f"{node.name} reshapes them"
        return super().line(flow, node, units, first, read, makes)

    def moved(self, node: Node, values: Values) -> Values:
        return values.reshape(node.attrs["shape"])

    def forms(self, node: Node, values: Values, dims: Sequence[int], given: Shape | None) -> Iterator[Values]:
        """One of the dims is smaller."""
        if given is not None:
            if prod(given) == values.size:
                yield values.reshape(given)
            return
        old = tuple(node.attrs["shape"])
        for dim in dims:
            size, rest = divmod(old[dim] * values.size, prod(old))
            if rest == 0:
                yield values.reshape(*old[:dim], size, *old[dim + 1 :])

    def thinned(self, node: Node, shape: Shape, groups: int) -> Mapping[str, Any]:
        return {**node.attrs, "shape": shape}

    def codes(self, node: IntegerNode, feeds: Sequence[IntegerNode], inputs: Sequence[Codes]) -> Codes:
        return inputs[0].reshape(inputs[0].shape[0], *node.attrs["shape"][1:])

    def executorch(self, program: QdqModule, node: IntegerNode, reals: Sequence[Tensor]) -> Tensor:
        return reals[0].reshape(node.attrs["shape"])

    def litert(self, writer: Writer, node: Any, feeds: Sequence[Any]) -> None:
        source = writer.read(feeds[0], "plain")
        writer.reshape(source, writer.tensor(node, "plain"), node.attrs["shape"])


def renamed(before: Shape, axes: Shape, after: Shape) -> Shape:
    """Where the axes of another shape are in the node that holds a value, if nothing moves; else nothing.

    Args:
        before: the shape of the value.
        axes: of the node that are its own: `Tracer.views`.
        after: the other shape.
    """
    found: list[int] = []
    old = [(size, axis) for size, axis in zip(before, axes, strict=True) if size > 1]
    new = list(after)
    while new:
        made, taken, count, places = new.pop(0), 1, 1, set[int]()
        while made != taken:
            rest: list[Any] = old if taken < made else new
            if not rest:
                return ()
            if taken < made:
                size, axis = rest.pop(0)
                taken *= size
                places.add(axis)
            else:
                made *= rest.pop(0)
                count += 1
        if len(places) > 1:
            return ()
        found += list(places or {-1}) * count
    # An axis of one element goes with the one behind it, as one head does with its features.
    for dim in range(len(found) - 2, 0, -1):
        found[dim] = found[dim + 1] if found[dim] < 0 else found[dim]
    return tuple(0 if axis < 0 else axis for axis in found)
