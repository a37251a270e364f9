"""Which tensors can have few bits, and what the int8 kernels need for it.

A grid of fewer levels lives in an int8 tensor of the same step, in its uppermost codes: int8 itself is the
upper clip. The lower one is a ReLU that the kernel takes in, where the levels begin at zero. Everywhere else
the kernel's own saturation at -128 is the lower clip, and a second node moves the codes up to 127
(`FakeQuantize`): both are exact on every runtime.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from paredown.pipeline.compress.training.sparsify import prunable
from paredown.pipeline.graph.alike import ALIKE
from paredown.pipeline.graph.fusion import fuse_relu, same_scale
from paredown.pipeline.graph.graph import Graph, Node
from paredown.pipeline.graph.operations.kinds import operation
from paredown.targets.errors import InputError


@dataclass(frozen=True)
class Place:
    """Tensors that share one learned grid.

    Attributes:
        root: one name for all of them.
        makers: what makes them: the names of the tensors behind which the clip sits, in running order.
        signed: whether levels may lie below zero.
        low: the least that each of the makers makes, where it has a limit: the levels stay above it.
        high: likewise the most.
    """

    root: str
    makers: tuple[str, ...]
    signed: bool
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Grid:
    """A learned grid: `levels` + 1 neighbours, zero among them.

    Attributes:
        step: the real value of one level.
        levels: all but one.
        below: how many of them lie below zero.
        signed: whether levels could lie below zero.
    """

    step: float
    levels: int
    below: int
    signed: bool


def clip_places(graph: Graph, weights: Collection[str] = ()) -> tuple[Place, ...]:
    """Where clips can sit, sorted by name.

    Behind every ReLU that kernels take in; and on whatever else a layer between the network's first and its
    last reads. A tensor with a scale from elsewhere keeps 8 bits: the input, outputs, constants, what the
    steps of a recurrent layer share.

    Args:
        graph: traced, no clips in it yet.
        weights: names of the weights of more layers whose inputs are to have few bits.
    """
    fused = fuse_relu(graph)
    find = same_scale([node for node, _ in fused])
    layers = {*prunable(graph, depthwise=True), *weights}
    read = {find(n) for node, _ in fused if node.parameters.get("weight") in layers for n in node.inputs}
    outputs = {find(name) for name in graph.outputs}
    makers: dict[str, list[tuple[Node, str]]] = {}
    for node, clamp in fused:
        if not operation(node.kind).same_scale:
            makers.setdefault(find(node.name), []).append((node, clamp))
    places = []
    for root, found in makers.items():
        names = tuple(node.name for node, _ in found)
        tops = [operation(clamp).top for _, clamp in found if clamp]
        if all(clamp and operation(node.kind).takes_relu for node, clamp in found):
            places.append(Place(root, names, False, None, _least(tops)))
        elif root in read - outputs and not any(_from_elsewhere(node) for node, _ in found):
            lows, highs = zip(*(_limits(node) for node, _ in found), strict=True)
            low = _least([None if end is None else -end for end in lows])
            places.append(Place(root, names, True, None if low is None else -low, _least([*highs, *tops])))
    return tuple(sorted(places, key=lambda place: place.root))


def gridded(graph: Graph, grids: Mapping[str, Grid]) -> Graph:
    """The graph with these grids in it.

    Args:
        graph: traced, no clips in it yet.
        grids: name of what makes a tensor -> the tensor's grid.
    """
    nodes: list[Node] = []
    moved: dict[str, str] = {}
    for given in graph:
        node = replace(given, inputs=tuple(moved.get(feed, feed) for feed in given.inputs))
        if (grid := grids.get(node.name)) is None:
            nodes.append(node)
            continue
        attrs: dict[str, Any] = {"step": grid.step, "levels": grid.levels}
        if grid.signed:
            attrs["offset"] = grid.below
        if operation(node.kind).is_relu:
            nodes.append(replace(node, attrs={**node.attrs, **attrs}))
            continue
        if fixed := operation(node.kind).fixed(node):
            attrs["fed"] = fixed
        moved[node.name] = f"{node.name}.levels"
        more = Node(moved[node.name], "fake_quantize", (node.name,), node.shape, attrs, source=node.source)
        nodes += [node, more]
    return Graph(tuple(nodes), graph.outputs)


def untrained(graph: Graph, bits: int, places: Collection[Place]) -> Graph:
    """The graph with grids of made-up steps, to see what it costs before any training.

    Args:
        graph: traced, no clips in it yet.
        bits: of an activation.
        places: of the clips.
    """
    levels = 2**bits - 1
    grids = {
        name: Grid(1 / levels, levels, levels // 2 if place.signed else 0, place.signed)
        for place in places
        for name in place.makers
    }
    return gridded(graph, grids)


def kept_at_8_bits(graph: Graph, places: Collection[Place]) -> tuple[str, ...]:
    """What layers read in 8 bits, whatever is asked for: what no clip sits behind.

    Args:
        graph: traced, no clips in it.
        places: of the clips.
    """
    fused = fuse_relu(graph)
    find = same_scale([node for node, _ in fused])
    low = {place.root for place in places}
    read = {find(n) for node, _ in fused if operation(node.kind).weighted for n in node.inputs}
    return tuple(
        node.name
        for node, _ in fused
        if not operation(node.kind).same_scale and node.kind != "input" and find(node.name) in read - low
    )


def check_clips(graph: Graph, bits: int, weights: Collection[str] = ()) -> None:
    """Checks that low-bit activations are possible at all.

    Raises:
        InputError: no activation can be clipped.
    """
    if bits < 8 and not clip_places(graph, weights):
        raise InputError(
            f"no activation of this network can have {bits} bits: none is made by a ReLU, or read by a layer "
            "between the first and the last",
            where="squantize.activation_bits",
            hint="8 bits always work; squantize.ends = true takes in the last layer",
        )


def _from_elsewhere(node: Node) -> bool:
    """Whether a tensor's scale cannot be learned."""
    return node.kind in {"input", "constant"} or ALIKE in node.attrs


def _limits(node: Node) -> tuple[float | None, float | None]:
    """The ends of a clamp that is no ReLU: its kernel has them by its scale, which is the clip's here."""
    return (node.attrs["low"], node.attrs["high"]) if node.kind == "clamp" else (None, None)


def _least(ends: list[float | None]) -> float | None:
    return min((end for end in ends if end is not None), default=None)
