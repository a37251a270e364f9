"""Chains of reshapes and permutes: which thinner shapes put every value where it belongs (our design).

A chain starts at a tensor whose dim 1 is channels and ends where an operation takes dim 1 as channels again.
Between the products of an attention the units are its heads, in dim 2: `unit_axes` says where.
When channels go, the reshapes between need other numbers. They are searched for, and proved value by value:
the numbers of the values that are left must come out of the thinner chain as they come out of the whole one.
Height and width are taken to stay: forward() reads them from a shape, and no channel changes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb, prod

import numpy as np
from numpy.typing import NDArray

from paredown.pipeline.graph.graph import Graph, Node
from paredown.pipeline.graph.operations.kinds import operation

MAX_TRIES = 512  # shapes that are looked at for one chain
STEPS = (1, 2, 4, 8, 16, 32, 64)
ALL = 64  # so many sets of units are tried all, of more a sample

Shape = tuple[int, ...]
Values = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Chain:
    """Reshapes and permutes that hang together.

    Attributes:
        source: the node whose channels are moved.
        nodes: the reshapes and permutes, in running order.
        ends: names of those whose dim 1 is read as channels.
        values: where every value of the source is, by name of the node: numbers in the node's shape.
        dims: of each reshape, those that may become smaller.
        axes: the dim along which the units of the source and of each end are.
    """

    source: Node
    nodes: tuple[Node, ...]
    ends: tuple[str, ...]
    values: Mapping[str, Values]
    dims: Mapping[str, tuple[int, ...]]
    axes: Mapping[str, int]

    def shapes(
        self, left: Sequence[int], ends: Mapping[str, Sequence[int]], given: Mapping[str, Shape]
    ) -> dict[str, Shape] | None:
        """The shapes of the chain's nodes when channels are gone.

        Args:
            left: the channels of the source that stay.
            ends: the channels of each end that stay.
            given: shapes of reshapes that are fixed already, by name.

        Returns:
            Name to shape, batch of one first; None where no shapes are right.
        """
        wanted = {name: self._some(name, channels) for name, channels in ends.items()}
        tries = iter(range(MAX_TRIES))

        def solve(index: int, values: Mapping[str, Values]) -> dict[str, Shape] | None:
            if index == len(self.nodes):
                return {}
            node = self.nodes[index]
            forms = operation(node.kind).forms(
                node, values[node.inputs[0]], self.dims.get(node.name, ()), given.get(node.name)
            )
            for value in forms:
                if next(tries, None) is None:
                    return None
                if node.name in wanted and not np.array_equal(value, wanted[node.name]):
                    continue
                rest = solve(index + 1, {**values, node.name: value})
                if rest is not None:
                    return {node.name: tuple(value.shape), **rest}
            return None

        return solve(0, {self.source.name: self._some(self.source.name, left)})

    def _some(self, name: str, units: Sequence[int]) -> Values:
        return self.values[name].take(list(units), self.axes[name])


def unit_axes(graph: Graph) -> dict[str, int]:
    """The dim of every tensor along which its units are.

    It is 1 where they are channels of a map, 2 where they are the heads of an attention, and any other where
    forward() moves them there and works on single values, as on (1, length, features). Where two that belong
    together disagree it is 1, which ties all that share a place there.
    """
    plain: set[str] = set()
    while True:
        axes, wrong = _unit_axes(graph, plain)
        if wrong <= plain:
            return axes
        plain |= wrong


def _unit_axes(graph: Graph, plain: set[str]) -> tuple[dict[str, int], set[str]]:
    """The dims where these have 1, and others that must have 1 too."""
    nodes = {node.name: node for node in graph}
    own = {name: 1 if name in plain else operation(n.kind).along(n) for name, n in nodes.items()}
    wanted: dict[str, set[int]] = {name: set() for name in nodes}
    for node in reversed(graph.nodes):
        if operation(node.kind).moves:
            (feed,) = node.inputs
            wanted[feed] |= set(_before(node, nodes[feed].shape, wanted[node.name]))
        elif node.kind != "constant":
            for feed in node.inputs:
                wanted[feed] |= {own[node.name] or 0} - {0} or wanted[node.name]
    axes: dict[str, int] = {}
    places: dict[str, Values] = {}  # of what is moved: the unit of each value
    for node in graph:
        if operation(node.kind).moves:
            (feed,) = node.inputs
            if feed not in places:
                places[feed] = _along(nodes[feed].shape, axes[feed])
            places[node.name] = operation(node.kind).moved(node, places[feed])
            asked = wanted[node.name] or {_only(places[node.name])}
            axes[node.name] = asked.pop() if len(asked) == 1 and node.name not in plain else 1
        elif node.kind != "constant":
            feeds = [name for name in node.inputs if nodes[name].kind != "constant"]
            axes[node.name] = own[node.name] or next((axes[name] for name in feeds), 1)
    for node in graph:
        for feed in node.inputs if not operation(node.kind).moves and node.kind != "constant" else ():
            if nodes[feed].kind == "constant":
                axes.setdefault(feed, own[node.name] or axes[node.name])
    wrong: set[str] = set()
    for node in graph:
        for feed in node.inputs if not operation(node.kind).moves and node.kind != "constant" else ():
            if axes[feed] != (own[node.name] or axes[node.name]):
                wrong |= {node.name, feed}
                while own[feed] is None and nodes[feed].inputs and not operation(nodes[feed].kind).moves:
                    feed = nodes[feed].inputs[0]
                    wrong.add(feed)
    return axes, wrong


def _before(node: Node, shape: Shape, wanted: Iterable[int]) -> Iterator[int]:
    """The dims of what a reshape or permute reads that are these of what it makes, but for channels."""
    for axis in wanted:
        for dim in range(1, len(shape)) if axis > 1 else ():
            if shape[dim] == node.shape[axis] > 1:
                moved = operation(node.kind).moved(node, _along(shape, dim))
                if np.array_equal(moved, _along(node.shape, axis)):
                    yield dim


def _along(shape: Shape, axis: int) -> Values:
    """For every value of a tensor its place along an axis."""
    row = np.arange(shape[axis] if len(shape) > axis else 1, dtype=np.int64)
    return np.broadcast_to(row.reshape([-1 if dim == axis else 1 for dim in range(len(shape))]), shape)


def _only(units: Values) -> int:
    """The dim along which alone the unit changes; 1 where there are several."""
    found = [dim for dim in range(1, units.ndim) if not (units == units.take([0], dim)).all()]
    return found[0] if len(found) == 1 else 1


def chains(graph: Graph, axes: Mapping[str, int]) -> tuple[Chain, ...]:
    """The chains of a graph, in running order."""
    nodes = {node.name: node for node in graph}
    source: dict[str, str] = {}
    members: dict[str, list[Node]] = {}
    for node in graph:
        if operation(node.kind).moves:
            (feed,) = node.inputs
            source[node.name] = source.get(feed, feed)
            members.setdefault(source[node.name], []).append(node)
    read = {i for node in graph if not operation(node.kind).moves for i in node.inputs} | set(graph.outputs)
    return tuple(_chain(nodes[name], found, read, axes) for name, found in members.items())


def _chain(source: Node, nodes: Sequence[Node], read: set[str], axes: Mapping[str, int]) -> Chain:
    values = {source.name: np.arange(prod(source.shape), dtype=np.int64).reshape(source.shape)}
    ends = tuple(node.name for node in nodes if node.name in read)
    axis, shape = axes[source.name], source.shape
    pixels = {source.name: (*shape[1:axis], *shape[axis + 1 :])}  # how long the dims are that hold no units
    heads = any(axes[name] != 1 for name in (source.name, *ends))
    dims: dict[str, Shape] = {}
    for node in nodes:
        (feed,) = node.inputs
        values[node.name] = operation(node.kind).moved(node, values[feed])
        pixels[node.name] = pixels[feed]
        if node.kind == "reshape":
            units = np.unravel_index(values[node.name], shape)[axis]
            found = _dims(units, pixels[feed])
            pixels[node.name] = tuple(n for d, n in enumerate(node.shape) if d and d not in found)
            inner = sorted(found, reverse=True) if heads else _longest(node, found)
            dims[node.name] = (axes[node.name],) if node.name in ends else tuple(inner)
    return Chain(source, tuple(nodes), ends, values, dims, {n: axes[n] for n in (source.name, *ends)})


def _longest(node: Node, found: Iterable[int]) -> list[int]:
    longest = max((node.shape[dim] for dim in found), default=0)
    return sorted((dim for dim in found if node.shape[dim] == longest), reverse=True)


def _dims(channels: Values, pixels: Shape) -> set[int]:
    """The dims of an array of channel numbers that a number of channels is in: not height, not width.

    Those along which the channel never changes are not. Of the others, one that is as long as a dim of pixels
    of the tensor before is taken for it, unless another dim is that already. Of those that are left the
    longest is what becomes smaller: the shorter ones are what forward() divides the channels by. Where it
    does otherwise, the cut is refused.
    """
    varies = [d for d in range(1, channels.ndim) if not (channels == channels.take([0], d)).all()]
    spatial, found = list(pixels), set(varies)
    for dim in sorted(range(1, channels.ndim), key=lambda d: (d in varies, -d)):
        if channels.shape[dim] in spatial:
            spatial.remove(channels.shape[dim])
        elif dim not in varies and channels.shape[dim] == prod(spatial):
            spatial = []
        else:
            continue
        found.discard(dim)
    return found


def legal_step(count: int, legal: Callable[[Sequence[int]], bool]) -> int | None:
    """The smallest step such that `legal` accepts the removal of units wherever a multiple of it stays.

    Args:
        count: of units.
        legal: whether these units may go.

    Returns:
        None where there is none below `count`. Of many sets of units a sample is tried: a width that it gets
        wrong is refused when it is thinned.
    """
    for step in (s for s in STEPS if s < count):
        if all(legal(gone) for gone in _trials(count, step)):
            return step
    return None


def _trials(count: int, step: int) -> Iterator[Sequence[int]]:
    widths = range(step, count, step)
    if sum(comb(count, width) for width in widths) <= ALL:
        for width in widths:
            yield from combinations(range(count), count - width)
        return
    generator = np.random.default_rng(step)
    for width in sorted({widths[0], widths[len(widths) // 2], widths[-1]}, reverse=True):
        yield range(width, count)
        yield range(count - width)
        for _ in range(3):
            yield np.sort(generator.permutation(count)[width:]).tolist()
