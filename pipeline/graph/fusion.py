"""What the integer graph will do with the float one: what takes in a ReLU, which scales are shared.

A number times plus a number, beside a layer, becomes part of the layer first: exact, and rounded once less.
Networks have such nodes as learned scales, as a mean and a deviation written out, or by an exporter that took
a normalization apart. In int8 each is a requantization of its own: what it moves zero to may lie between two
codes, and then almost all values of a map have the same error, which no sum takes away (our design).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

import torch

from paredown.pipeline.graph.alike import ALIKE
from paredown.pipeline.graph.graph import Graph, Node
from paredown.pipeline.graph.operations.kinds import operation

AFFINE = "affine"
BEHIND = frozenset({"conv2d", "conv_transpose2d", "linear"})
BEFORE = frozenset({"conv2d", "linear"})


def fuse_relu(graph: Graph) -> list[tuple[Node, str]]:
    """Pairs every node with the clamp it takes in; the ReLU's name wins, since consumers refer to it."""
    fused: list[tuple[Node, str]] = []
    renamed: dict[str, int] = {}
    for node in graph:
        feed = node.inputs[0] if node.inputs else ""
        is_relu = operation(node.kind).is_relu
        if is_relu and feed in renamed:
            position = renamed[feed]
            producer = fused[position][0]
            if len(graph.consumers(feed)) == 1 and feed not in graph.outputs:
                attrs = {**producer.attrs, **node.attrs}
                fused[position] = (replace(producer, name=node.name, attrs=attrs), node.kind)
                continue
        if operation(node.kind).takes_relu:
            renamed[node.name] = len(fused)
        fused.append((node, node.kind if is_relu else ""))
    return fused


def same_scale(nodes: Sequence[Node], apart: Collection[tuple[str, int]] = ()) -> Callable[[str], str]:
    """A function from a tensor's name to one name for all tensors that share its scale.

    Args:
        nodes: of the graph.
        apart: (node, index) of inputs that keep a scale of their own; see `scales_apart`.
    """
    leader = {node.name: node.name for node in nodes}

    def find(name: str) -> str:
        while leader[name] != name:
            leader[name] = leader[leader[name]]
            name = leader[name]
        return name

    # Layers that steps share have one bias, in units of their input's scale; all else has its step's own.
    layers = [node for node in nodes if operation(node.kind).weighted]
    shared = {name for node in layers for name in (node.name, *node.inputs)}
    alike: dict[str, str] = {}
    for node in nodes:
        if ALIKE in node.attrs and node.name in shared:
            leader[find(node.name)] = find(alike.setdefault(node.attrs[ALIKE], node.name))
        if operation(node.kind).same_scale:
            for index, feed in enumerate(node.inputs):
                if (node.name, index) not in apart:
                    leader[find(node.name)] = find(feed)
    return find


def scales_apart(
    nodes: Sequence[Node], ranges: Mapping[str, tuple[float, float]], least: float = 2.0
) -> frozenset[tuple[str, int]]:
    """The inputs of concatenations that keep a scale of their own, and are requantized there (our design).

    The inputs of a concatenation share its scale. One does not where its scale is prescribed and others' are
    not the same, or where others read it too and would see it `least` times as coarse.

    Args:
        nodes: with their ReLUs taken in.
        ranges: (low, high) of every tensor.
        least: how much wider the range of all inputs together is.

    Returns:
        (concatenation, index of the input).
    """
    joins = [node for node in nodes if operation(node.kind).joins]
    find = same_scale(nodes, {(node.name, index) for node in joins for index in range(len(node.inputs))})
    fixed = {find(n.name): f for n in nodes if (f := operation(n.kind).fixed(n)) is not None}
    trained = {find(node.name) for node in nodes if "levels" in node.attrs}
    readers: dict[str, set[str]] = {}
    for node in nodes:
        for root in {find(name) for name in node.inputs} - {find(node.name)}:
            readers.setdefault(root, set()).add(node.name)

    def span(names: Sequence[str]) -> float:
        ends = [end for name in names for end in ranges.get(name, (0.0, 0.0))]
        return max(0.0, *ends) - min(0.0, *ends)

    def parts(node: Node, name: str) -> bool:
        root = find(name)
        if root in fixed:
            return any(fixed.get(find(other)) != fixed[root] for other in node.inputs)
        return bool(readers[root] - {node.name}) and span(node.inputs) >= least * span([name])

    return frozenset(
        (node.name, index)
        for node in joins
        if not trained & {find(name) for name in (node.name, *node.inputs)}
        for index, name in enumerate(node.inputs)
        if parts(node, name)
    )


@torch.no_grad()
def fold_affine(graph: Graph) -> Graph:
    """The same network without the affine nodes that a layer behind or before them can take in.

    Layers whose codes were trained, or that steps of a recurrence share, stay as they are; so does what a
    ReLU follows, which goes into the layer itself. Of a padded layer only the factor can come from before it:
    its border is zeros.

    Args:
        graph: traced, BN folded.
    """
    nodes = {node.name: node for node in graph}
    for name in list(nodes):
        node = nodes[name]
        if node.kind == AFFINE and node.name not in graph.outputs and "levels" not in node.attrs:
            found = _into_feed(nodes, node, graph.outputs) or _into_readers(nodes, node)
            if found:
                nodes.update(found)
                nodes = _without(nodes, node, node.inputs[0])
    return Graph(tuple(nodes.values()), graph.outputs)


def _into_feed(nodes: Mapping[str, Node], node: Node, outputs: tuple[str, ...]) -> dict[str, Node] | None:
    """The layer that feeds it, with its factor and its amount."""
    layer = nodes[node.inputs[0]]
    alone = Counter(name for each in nodes.values() for name in each.inputs)[layer.name] == 1
    clamped = any(operation(each.kind).is_relu for each in _readers(nodes, node.name))
    if not _free(layer, BEHIND) or not alone or clamped or layer.name in outputs:
        return None
    assert layer.weight is not None and layer.bias is not None
    factor, amount = float(node.attrs["scale"]), float(node.attrs["shift"])
    bias = (layer.bias.double() * factor + amount).to(layer.bias.dtype)
    weight = (layer.weight.double() * factor).to(layer.weight.dtype)
    return {layer.name: replace(layer, weight=weight, bias=bias)}


def _into_readers(nodes: Mapping[str, Node], node: Node) -> dict[str, Node] | None:
    """All layers that read it, if all of them can take it."""
    factor, amount = float(node.attrs["scale"]), float(node.attrs["shift"])
    found = {}
    for layer in _readers(nodes, node.name):
        padded = any(layer.attrs.get("padding", ()))
        if not _free(layer, BEFORE) or (padded and amount):
            return None
        assert layer.weight is not None and layer.bias is not None
        sums = layer.weight.double().flatten(1).sum(1)
        bias = (layer.bias.double() + sums * amount).to(layer.bias.dtype)
        weight = (layer.weight.double() * factor).to(layer.weight.dtype)
        found[layer.name] = replace(layer, weight=weight, bias=bias)
    return found or None


def _free(layer: Node, kinds: frozenset[str]) -> bool:
    return layer.kind in kinds and layer.scale is None and ALIKE not in layer.attrs


def _readers(nodes: Mapping[str, Node], name: str) -> list[Node]:
    return [node for node in nodes.values() if name in node.inputs]


def _without(nodes: Mapping[str, Node], gone: Node, feed: str) -> dict[str, Node]:
    """The nodes without one, whose readers read what fed it."""
    return {
        name: replace(node, inputs=tuple(feed if each == gone.name else each for each in node.inputs))
        for name, node in nodes.items()
        if name != gone.name
    }
