"""A number times plus a number, beside a layer, becomes part of the layer: exact, and rounded once less.

Networks have such nodes as learned scales, as a mean and a deviation written out, or by an exporter that took
a normalization apart. In int8 each is a requantization of its own: what it moves zero to may lie between two
codes, and then almost all values of a map have the same error, which no sum takes away (our design).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import torch

from paredown.pipeline.graph.alike import ALIKE
from paredown.pipeline.graph.graph import Graph, Node
from paredown.pipeline.graph.operations.kinds import operation

AFFINE = "affine"
BEHIND = frozenset({"conv2d", "conv_transpose2d", "linear"})
BEFORE = frozenset({"conv2d", "linear"})


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
